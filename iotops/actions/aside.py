"""What restores have put aside: the old data that `undo` can swap back.

Its own file because `status` asks for it, and must start quickly. Not here: swapping it back.

An undo that has exchanged everything is settled by one record; what is left to do then, `release`,
can be done again, so a run that died in it is finished by `resume.py` and not taken back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from iotops.clients import files
from iotops.hub import Hub
from iotops.journal import Run

BYTES = "aside"
"""Name in a record of how many bytes the run has put aside."""


@dataclass(frozen=True)
class OldData:
    """The data that a restore put aside: which run, when, how much (bytes)."""

    run: str
    restored: str
    bytes: int


def old_data(hub: Hub) -> tuple[OldData, ...]:
    """List what restores have put aside, oldest first, as far as this user may look."""
    if not os.access(hub.layout.replaced, os.R_OK | os.X_OK):
        return ()  # none yet; or only root may look, who alone can do anything about it
    known = {record.id: record for record in hub.journal.runs()}
    found: list[OldData] = []
    for folder in sorted(hub.layout.replaced.iterdir()):
        if folder.is_dir():
            record = known.get(folder.name)
            size = record.about.get(BYTES, "") if record is not None else ""
            # Written down when it was put aside: to walk all of it takes long.
            number = int(size) if size.isascii() and size.isdigit() else files.tree_bytes(folder)
            found.append(OldData(folder.name, record.started if record else "", number))
    return tuple(found)


def measured(hub: Hub, run: Run) -> None:
    """Write down how much a run has put aside."""
    folder = hub.layout.replaced / run.id
    if folder.is_dir():
        run.note(about={**run.record.about, BYTES: str(files.tree_bytes(folder))})


def settled(run: Run) -> None:
    """Note that an undo has done its work: from now on it can only be finished."""
    run.note(swaps=(), about={**run.record.about, "settled": "yes"})


def is_settled(run: Run) -> bool:
    """Tell whether a run is an undo that can only be finished."""
    return run.record.about.get("settled") == "yes"


def release(hub: Hub, run: Run) -> None:
    """Let go of the restore that an undo has swapped back: there is nothing left to undo."""
    restore = run.record.about.get("restore", "")
    for record in hub.journal.runs():
        if record.id == restore and record.swaps:
            undone = {**record.about, "undone": run.id}
            hub.journal.reopen(record).note(swaps=(), about=undone)
    if restore:
        files.remove_tree(hub.layout.replaced / restore)
