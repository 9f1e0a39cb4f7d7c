"""What restores have put aside: the old data that `undo` can swap back, and when it may go.

It goes by command, or after a number of days and a later complete backup, which has then read its
snapshot back. Its own file because `status` asks for it, and must start quickly. Not here:
swapping it back.

An undo that has exchanged everything is settled by one record; what is left to do then, `release`,
can be done again, so a run that died in it is finished by `resume.py` and not taken back.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from iotops.clients import files
from iotops.events import Report, silent, step
from iotops.hub import Hub
from iotops.journal import RUNNING, Run, RunRecord

BYTES = "aside"
"""Name in a record of how many bytes the run has put aside."""
SETTLED = "settled"
"""Name in a record of a run that has done its work: from then on it can only be finished."""


DISCARDED = "discarded"
"""Name in a restore's record of the run that removed its old data."""


@dataclass(frozen=True)
class OldData:
    """The data that a run put aside.

    Attributes:
        run: a restore, or an undo. restored: when, ISO 8601 UTC; "" = not known. bytes: how much.
        until: when the days are over after which a complete backup lets it go; "" = never.
    """

    run: str
    restored: str
    bytes: int
    until: str = ""


def old_data(hub: Hub) -> tuple[OldData, ...]:
    """List what restores have put aside, oldest first, as far as this user may look."""
    if not os.access(hub.layout.replaced, os.R_OK | os.X_OK):
        return ()  # none yet; or only root may look, who alone can do anything about it
    known = {record.id: record for record in hub.journal.runs()}
    keep = timedelta(days=hub.settings.data.old_data_days)
    found: list[OldData] = []
    for folder in sorted(hub.layout.replaced.iterdir()):
        if folder.is_dir():
            record = known.get(folder.name)
            size = record.about.get(BYTES, "") if record is not None else ""
            # Written down when it was put aside: to walk all of it takes long.
            number = int(size) if size.isascii() and size.isdigit() else files.tree_bytes(folder)
            when = put_aside(record, folder.name)
            # Without a record nobody knows what is in it: it goes by command only.
            closed = record is not None and record.outcome != RUNNING
            found.append(
                OldData(
                    folder.name,
                    when.isoformat(timespec="seconds") if when else "",
                    number,
                    (when + keep).isoformat(timespec="seconds") if when and closed else "",
                )
            )
    return tuple(found)


def put_aside(record: RunRecord | None, run: str) -> datetime | None:
    """Tell when a run put data aside: by its record, or by its name where the record is gone."""
    try:
        if record is not None:
            return datetime.fromisoformat(record.ended or record.started).astimezone(UTC)
        return datetime.strptime(run.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def due(found: Sequence[OldData], begun: datetime, now: datetime) -> tuple[OldData, ...]:
    """Choose what a backup lets go that is complete, and was read back. Pure.

    Args:
        begun: when that backup began: what was put aside after it stays.
    """
    return tuple(
        one
        for one in found
        if one.until
        and datetime.fromisoformat(one.restored) < begun
        and datetime.fromisoformat(one.until) <= now
    )


def discard(hub: Hub, runs: Collection[str], by: str, report: Report = silent) -> None:
    """Remove for good what these runs have put aside.

    Args:
        by: the run that does it, for the record of a restore.
    """
    # Before anything goes: half of it must never be swapped in.
    for record in hub.journal.runs():
        if record.id in runs and record.swaps:
            hub.journal.reopen(record).note(swaps=(), about={**record.about, DISCARDED: by})
    for run in runs:
        with step(report, "discard", run):
            files.remove_tree(hub.layout.replaced / run)


def measured(hub: Hub, run: Run) -> None:
    """Write down how much a run has put aside."""
    folder = hub.layout.replaced / run.id
    if folder.is_dir():
        run.note(about={**run.record.about, BYTES: str(files.tree_bytes(folder))})


def settled(run: Run) -> None:
    """Note that an undo has done its work."""
    run.note(swaps=(), about={**run.record.about, SETTLED: "yes"})


def is_settled(run: Run) -> bool:
    """Tell whether a run can only be finished: an undo, or a change of the broker's users."""
    return run.record.about.get(SETTLED) == "yes"


def release(hub: Hub, run: Run) -> None:
    """Let go of the restore that an undo has swapped back: there is nothing left to undo."""
    restore = run.record.about.get("restore", "")
    for record in hub.journal.runs():
        if record.id == restore and record.swaps:
            undone = {**record.about, "undone": run.id}
            hub.journal.reopen(record).note(swaps=(), about=undone)
    if restore:
        files.remove_tree(hub.layout.replaced / restore)
