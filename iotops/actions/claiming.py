"""Claim a data root together with the data on it, because its owner says that it is the hub's own.

A data root with data and no sentinel is refused everywhere else, since it may be another disk than
the hub's. An adopted hub is the one that had data before it had a sentinel. Not here: claiming an
empty disk (`disk.claim`), and the question whether it is meant (`cli/adopt.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

from iotops import disk
from iotops.errors import GuardError, UsageError
from iotops.hub import Hub
from iotops.model import Severity


def claimable(hub: Hub) -> tuple[str, ...]:
    """See that a data root may be claimed with what lies on it; nothing is written.

    Returns:
        The names of what lies there.

    Raises:
        GuardError: it is claimed already, is no mount point, or the hub was on another disk.
    """
    data, state = hub.settings.data, hub.state.read()
    found = disk.inspect(data.root, data.kind, hub.id)
    bad = [one for one in found if one.severity is Severity.ERROR]
    wrong = [one for one in bad if one.code not in disk.UNCLAIMED]
    if wrong:
        raise GuardError("; ".join(one.message for one in wrong), hint=wrong[0].hint)
    if not bad:
        raise GuardError(f"the data root {data.root} is this hub's already", hint="iotops status")
    here = disk.identity(data.root)
    if (state.disk and state.disk != here) or (not state.disk and state.good.get("backup")):
        raise GuardError(
            f"this hub was on another disk than the one at {data.root} now: data that is not its"
            " own may lie there",
            hint="mount the right one; on an empty one: iotops restore latest --claim-disk",
        )
    return names(data.root)


def claim(hub: Hub) -> tuple[Path, ...]:
    """Claim a data root with what lies on it: its sentinel, and iotops' own folder beside it.

    Returns:
        What was made.

    Raises:
        UsageError: not root. GuardError: as `claimable`.
    """
    if os.geteuid() != 0:
        raise UsageError("claiming a disk needs root", hint="sudo iotops init --claim-data")
    claimable(hub)
    data = hub.settings.data
    disk.claim(data.root, data.kind, hub.id, hub.name, hub.owner[1], with_data=True)
    hub.state.update(name=hub.name, folder=str(hub.folder), disk=disk.identity(data.root))
    return data.root / disk.SENTINEL, data.root / disk.FOLDER


def names(root: Path) -> tuple[str, ...]:
    """Give the names of what lies on a data root."""
    return tuple(sorted(one.name for one in root.iterdir() if one.name != "lost+found"))
