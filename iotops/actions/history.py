"""Whether the disk in the machine is the one that the hub was on at its last good backup.

A clone keeps the sentinel, and made block by block also the file system's UUID. What an older copy
cannot have is the journal's record of the last good backup, whose time stands outside of the disk.
Not here: mount, sentinel and UUID (`disk.py`).
"""

from __future__ import annotations

from iotops.errors import GuardError
from iotops.hub import Hub
from iotops.journal import KEPT_RUNS, stamp
from iotops.model import Finding, Severity

CODE = "disk.older"
_DONE = ("complete", "partial")


def older_copy(hub: Hub) -> Finding | None:
    """Judge whether the data root knows of the last good backup, or of a restore since.

    Returns:
        A finding of severity ERROR; None = it does, or nobody can know.
    """
    good = hub.state.read().good.get("backup", "")
    if not good or good > stamp():
        return None  # the latter is the guard of the clock's business
    newest = (hub.journal.last(action, *_DONE) for action in ("backup", "restore"))
    if any(record is not None and record.ended >= good for record in newest):
        return None
    runs = hub.journal.runs()
    if len(runs) >= KEPT_RUNS and runs[0].started > good:
        return None  # its record has made room for newer ones
    last = f"its newest record is of {runs[-1].started}" if runs else "it has no records"
    return Finding(
        CODE,
        Severity.ERROR,
        str(hub.root),
        f"the disk at {hub.root} does not know of the last good backup ({good}); {last}:"
        " it may be an older copy of this hub's disk",
        "mount the right disk, or bring this one up to date: iotops restore latest; if its data"
        " is what you want to keep: iotops backup --accept-disk",
    )


def require_known(hub: Hub) -> None:
    """Refuse a disk that does not know of the last good backup; see `older_copy`.

    Raises:
        GuardError: with the finding's text and hint.
    """
    found = older_copy(hub)
    if found is not None:
        raise GuardError(found.message, hint=found.hint)
