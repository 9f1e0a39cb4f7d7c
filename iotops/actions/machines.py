"""Whether another machine makes snapshots under this hub's id.

After a move to a new card, or from a copied one, two systems can run as one hub: each one's
`latest` is then the other's data, and their retentions remove each other's snapshots. Not here:
whether the disk is an older copy (`history.py`), whose repository it is (`ours.py`).
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from iotops.actions import extract
from iotops.actions.ours import Ours
from iotops.actions.snapshot import host_record
from iotops.hub import Hub
from iotops.journal import State
from iotops.model import Finding, HostRecord, Severity

if TYPE_CHECKING:
    from iotops.clients.restic import SnapshotInfo

CODE = "hub.twice"
_LOOKED_AT = 3
"""Manifests that are read at most, each by one call of restic: the newest ones."""


def another(hub: Hub, ours: Ours, state: State) -> Finding | None:
    """Find a snapshot newer than this machine's last one that it did not make itself.

    A run of this machine stands in its journal, also one that was killed before the state file
    knew its snapshot. Host name and machine id would not do: a copied card has the same ones.
    Not found: one whose clock stands before this machine's last snapshot, and what was made before
    the last restore here, of whatever.

    Args:
        ours: the snapshots as they were before this machine adds one.
        state: what was known then.

    Returns:
        A finding of severity WARNING that names both machines; None = there is none, or this
        machine has made no snapshot that others could be newer than.

    Raises:
        IotopsError: a manifest could not be read.
    """
    newer = _newer(state, ours.snapshots or ())
    if not newer:
        return None
    made_here = {record.id for record in hub.journal.runs()}
    for one in reversed(newer[-_LOOKED_AT:]):
        made = extract.read_manifest(hub.repository, one.id)
        if made.run not in made_here:
            here, there = _names(host_record(), made.host)
            return Finding(
                CODE,
                Severity.WARNING,
                "repository",
                f"another machine makes snapshots of this hub: {one.id[:8]} of"
                f" {one.time:%Y-%m-%d %H:%M} UTC was made by {there}, and this is {here}",
                "let only one of them run as this hub; on the other: sudo systemctl disable --now"
                " iotops-backup.timer && sudo iotops down; to go on here with its data:"
                f" iotops restore {one.id[:8]}",
            )
    return None


def _newer(state: State, snapshots: tuple[SnapshotInfo, ...]) -> list[SnapshotInfo]:
    """Give the snapshots since this machine's last one, or since a restore of what was there."""
    own = [one.time for one in snapshots if one.id == state.snapshot]
    # The other machine's retention may have removed it: then its end is known, if not its time.
    if not own and (good := state.good.get("backup")):
        own = [datetime.fromisoformat(good)]
    if not own:
        return []
    if restored := state.good.get("restore"):
        own.append(datetime.fromisoformat(restored))
    since = max(own)
    return [one for one in snapshots if one.time > since and one.id not in state.disowned]


def _names(here: HostRecord, there: HostRecord) -> tuple[str, str]:
    """Name two machines so that they can be told apart."""
    if here.name != there.name:
        return here.name, there.name
    if here.machine_id != there.machine_id:
        return (
            f"{here.name} (machine id {here.machine_id[:8] or 'unknown'})",
            f"{there.name} (machine id {there.machine_id[:8] or 'unknown'})",
        )
    return here.name, f"a copy of this system (host name {there.name}, too)"
