"""Put the data of services back out of a snapshot, inside a run of another verb.

The same machinery as a restore's: extracted beside the data, every hash checked before anything is
exchanged, exchanged by renaming, the data that was there put aside. The caller has stopped what it
must, holds the lock, and waits for the services itself. Not here: choosing, plans, new disks
(`restore.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from iotops.actions import aside, extract, swap
from iotops.clients import files
from iotops.errors import RestoreError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run
from iotops.model import Finding, Manifest, ServiceRecord
from iotops.services.base import Service


@dataclass(frozen=True)
class Extracted:
    """Data that lies beside what it is to replace, checked: a service each, and its record."""

    folder: Path
    services: tuple[Service, ...]
    records: tuple[ServiceRecord, ...]


def held(
    hub: Hub, snapshot: str, services: Sequence[Service]
) -> tuple[Manifest, tuple[ServiceRecord, ...]]:
    """Give a snapshot's manifest, and what that says of services.

    Raises:
        RestoreError: the snapshot does not hold one of them.
        IotopsError: it cannot be read.
    """
    made = extract.read_manifest(hub.repository, snapshot)
    known = {one.name: one for one in made.services if not one.error}
    missing = [one.name for one in services if one.name not in known]
    if missing:
        raise RestoreError(f"the snapshot {snapshot[:8]} does not hold {', '.join(missing)}")
    return made, tuple(known[one.name] for one in services)


def take_out(
    hub: Hub, run: Run, snapshot: str, services: Sequence[Service], report: Report = silent
) -> Extracted:
    """Extract the data of services and check it; they may run meanwhile.

    Args:
        snapshot: its full id.

    Raises:
        RestoreError: the snapshot does not hold one of them, or is damaged.
        IotopsError: it cannot be had, or finds no room.
    """
    made, records = held(hub, snapshot, services)
    folder = hub.layout.tmp / run.id / "snapshot"
    extract.extract_checked(hub, snapshot, made, [one.folder for one in records], folder, report)
    return Extracted(folder, tuple(services), records)


def exchange(hub: Hub, run: Run, taken: Extracted, report: Report = silent) -> None:
    """Exchange the data of services, which stand still, for what was extracted.

    Args:
        run: whose record takes down what is disturbed; `swap.put_right` puts that right.
    """
    pairs = [*zip(taken.services, taken.records, strict=True)]
    for service, record in pairs:
        with step(report, "prepare", service.name):
            swap.refuse_link(hub, service.place.folder)
            live = service.place.folder if service.place.folder.is_dir() else None
            for note in service.load(taken.folder / record.folder, record, live):
                report(Noted("warning", note, service.name))
    files.sync_filesystem(hub.root)
    for service, record in pairs:
        live = service.place.folder
        swap.stop_for_swap(hub, run, live, report)
        with step(report, "swap", service.name):
            swap.swap_folder(hub, run, service.name, live, taken.folder / record.folder)
    swap.start_stopped(hub, run, report)
    aside.measured(hub, run)


def verified(hub: Hub, records: Sequence[ServiceRecord]) -> Iterator[Finding]:
    """Yield how the running services differ from what the manifest recorded."""
    for record in records:
        yield from hub.service(record.name).verify(record)
