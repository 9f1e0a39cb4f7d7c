"""Hand a service's data out in its vendor's own form.

InfluxDB: a folder for `influx restore`, for another server, another provider, or a day without
iotops. It is taken from the running server, because the vendor's form needs the server's own list
of shards, and goes through the same checks as a capture. Not here: snapshots (`backup.py`), which
restore more (deletions that are not carried out yet, tokens as they are) and cost less.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from iotops.actions import resume
from iotops.actions.recorded import recorded
from iotops.clients import files
from iotops.clients.staging import Staging
from iotops.errors import UsageError
from iotops.events import Moved, Noted, Report, silent, step
from iotops.hub import Hub
from iotops.services.influxdb import Exported, Influxdb

_OURS = re.compile(rf"\d{{8}}T\d{{6}}Z\.|{re.escape(files.TEMPORARY)}")


@dataclass(frozen=True)
class Handed:
    """An export that is whole: the run, the folder, what is in it, how long it took."""

    run: str
    folder: Path
    exported: Exported
    seconds: float


def influx(hub: Hub, folder: Path, *, service: str = "", report: Report = silent) -> Handed:
    """Write what InfluxDB holds into a folder that the vendor's `influx restore` takes.

    Args:
        folder: made where it is missing; must be empty.
        service: which one, where the hub has several.

    Raises:
        UsageError: the folder is not empty or in the data root, or the hub has no InfluxDB.
        CaptureError, ServerError, NoSpace: nothing is left in the folder.
    """
    began = time.monotonic()
    folder = folder.absolute()
    hub.guard()
    if folder.resolve().is_relative_to(hub.root.resolve()):
        raise UsageError(
            f"{folder} lies in the data root, and all that lies there goes into every backup",
            hint="name a folder on another disk, or in /var/tmp",
        )
    _refuse_full(folder)
    chosen = _choose(hub, service)
    with hub.locked("export"):
        resume.settle(hub, report)
        with recorded(hub, "export", report) as run:
            run.step("export")
            made = not folder.exists()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            work = hub.layout.tmp / run.id
            try:
                work.mkdir(mode=0o700, parents=True)
                staging = Staging(
                    chosen.place.folder,
                    work / "staging",
                    prefix=chosen.name,
                    memory=work / "memory.json",
                )
                with step(report, "export", chosen.name):
                    exported = chosen.export(
                        staging,
                        folder,
                        lambda done, total: report(Moved("export", done, total, chosen.name)),
                    )
            except BaseException:
                _clear(folder, made=made)
                raise
            finally:
                files.remove_tree(work)
            for warning in _warnings(exported):
                report(Noted("warning", warning, chosen.name))
            return Handed(run.id, folder, exported, time.monotonic() - began)


def _warnings(exported: Exported) -> tuple[str, ...]:
    if not exported.tombstones:
        return exported.warnings
    return (
        *exported.warnings,
        f"{exported.tombstones} files of deletions that InfluxDB has not carried out yet are in it;"
        " the vendor's restore drops them, and the deleted points come back",
    )


def _choose(hub: Hub, name: str) -> Influxdb:
    found = hub.of_kind("influxdb")
    if name:
        found = tuple(one for one in (hub.service(name),) if one.kind == "influxdb")
    if not found:
        raise UsageError(
            f"{name or 'this hub'} is no InfluxDB" if name else "this hub has no InfluxDB",
            hint='name the service in iotops.toml with kind = "influxdb"',
        )
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise UsageError("this hub has several InfluxDBs", hint=f"--service NAME; one of: {names}")
    chosen = found[0]
    assert isinstance(chosen, Influxdb)
    return chosen


def _refuse_full(folder: Path) -> None:
    """Refuse a folder with something in it: the vendor's tool reads all manifests of a folder.

    Raises:
        UsageError: it is not empty, or no folder.
    """
    try:
        with os.scandir(folder) as entries:
            taken = next(entries, None) is not None
    except FileNotFoundError:
        return
    except NotADirectoryError:
        taken = True
    if taken:
        raise UsageError(
            f"{folder} is not an empty folder; an export goes into one of its own",
            hint=f"iotops export influx {folder}/new",
        )


def _clear(folder: Path, *, made: bool) -> None:
    """Leave nothing half. What is not ours came in meanwhile, and stays."""
    for path in folder.iterdir():
        if _OURS.match(path.name):
            path.unlink()
    if made:
        with suppress(OSError):  # not empty after all
            folder.rmdir()
