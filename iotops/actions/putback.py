"""Put the data of services back out of a snapshot, inside a run of another verb.

The same machinery as a restore's: extracted beside the data, every hash checked before anything is
exchanged, exchanged by renaming, the data that was there put aside. The caller has stopped what it
must, holds the lock, and waits for the services itself. Not here: choosing, plans, new disks
(`restore.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iotops.actions import aside, extract, swap
from iotops.clients import files
from iotops.errors import RestoreError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run
from iotops.model import Finding, ServiceRecord
from iotops.services.base import Service


def put_back(
    hub: Hub, run: Run, snapshot: str, services: Sequence[Service], report: Report = silent
) -> tuple[ServiceRecord, ...]:
    """Exchange the data of services for a snapshot's.

    Args:
        run: whose record takes down what is disturbed; `swap.put_right` puts that right.
        snapshot: its full id.

    Returns:
        What the manifest says of each, for `verified` once they answer.

    Raises:
        RestoreError: the snapshot does not hold one of them, or is damaged.
    """
    made = extract.read_manifest(hub.repository, snapshot)
    held = {one.name: one for one in made.services if not one.error}
    missing = [one.name for one in services if one.name not in held]
    if missing:
        raise RestoreError(f"the snapshot {snapshot[:8]} does not hold {', '.join(missing)}")
    records = [held[one.name] for one in services]
    folders = [one.folder for one in records]
    extracted = hub.layout.tmp / run.id / "snapshot"
    extract.extract_checked(hub, snapshot, made, folders, extracted, report)
    for service, record in zip(services, records, strict=True):
        with step(report, "prepare", service.name):
            swap.refuse_link(hub, service.place.folder)
            live = service.place.folder if service.place.folder.is_dir() else None
            for note in service.load(extracted / record.folder, record, live):
                report(Noted("warning", note, service.name))
    files.sync_filesystem(hub.root)
    for service, record in zip(services, records, strict=True):
        live = service.place.folder
        swap.stop_for_swap(hub, run, live, report)
        with step(report, "swap", service.name):
            swap.swap_folder(hub, run, service.name, live, extracted / record.folder)
    swap.start_stopped(hub, run, report)
    aside.measured(hub, run)
    return tuple(records)


def verified(hub: Hub, records: Sequence[ServiceRecord]) -> Iterator[Finding]:
    """Yield how the running services differ from what the manifest recorded."""
    for record in records:
        yield from hub.service(record.name).verify(record)
