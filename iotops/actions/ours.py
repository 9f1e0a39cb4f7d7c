"""Which repository and which snapshots are this hub's.

Every action that writes to the repository asks here first: a disk with another repository on it
must not be taken for ours. Not here: making one (`repository.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iotops.actions import locks
from iotops.errors import GuardError, RepositoryNotOurs
from iotops.hub import Hub

if TYPE_CHECKING:  # `status` knows the tag only, and must start quickly
    from iotops.clients.restic import SnapshotInfo

TAG = "iotops"
"""Tag of every snapshot; the hub's id and the outcome are two more."""


@dataclass(frozen=True)
class Ours:
    """The hub's repository, as it was found.

    Attributes:
        id: restic's id of it.
        snapshots: this hub's, oldest first; None where they did not have to be listed.
    """

    id: str
    snapshots: tuple[SnapshotInfo, ...] | None = None


def check_repository(hub: Hub) -> Ours:
    """Make sure that the repository is there, opens, and is this hub's.

    An exclusive lock that a dead restic of this machine left keeps everybody out; it goes.

    Raises:
        RepositoryMissing, WrongPassword, Locked: as restic says.
        RepositoryNotOurs: it is another one than was recorded.
    """
    return locks.without_dead(hub, lambda: _check(hub))


def _check(hub: Hub) -> Ours:
    if hub.copy:
        return _check_copy(hub)
    repository, state, listed = hub.repository, hub.state.read(), None
    if state.repository and state.snapshot:
        listed = repository.snapshots(tags=(TAG, hub.id))
        if any(one.id == state.snapshot for one in listed):
            return Ours(state.repository, listed)
    repository_id = repository.id()
    if state.repository and repository_id != state.repository:
        raise RepositoryNotOurs(
            f"the repository has the id {repository_id[:10]}, this hub recorded"
            f" {state.repository[:10]}",
            hint="correct repository.url in iotops.toml; if the change is meant:"
            " iotops init --repository URL --accept-repository",
        )
    return Ours(repository_id, listed)


def _check_copy(hub: Hub) -> Ours:
    """Do the same for a copy; where none was recorded, it must hold snapshots of this hub."""
    name = hub.copy
    recorded = hub.state.read().copies.get(name, {}).get("repository", "")
    found = hub.repository.id()
    listed = None
    if not recorded:
        listed = hub.repository.snapshots(tags=(TAG, hub.id))
    if (recorded and found != recorded) or listed == ():
        known = f"recorded is {recorded[:10]}" if recorded else "it holds nothing of this hub"
        raise RepositoryNotOurs(
            f"the repository of the copy {name} has the id {found[:10]}; {known}",
            hint="correct its url in iotops.toml; if it is the right one:"
            f" iotops init --copy {name} --accept-repository",
        )
    return Ours(found, listed)


def refuse_protected(hub: Hub, url: str) -> None:
    """Refuse a repository on the disk that it protects; a link that leads there counts.

    Raises:
        GuardError: it is one.
    """
    place = url.removeprefix("local:")
    if place.startswith("/") and Path(place).resolve().is_relative_to(hub.root.resolve()):
        raise GuardError(
            f"the repository {url} lies on the disk that it protects",
            hint="put it on another disk or machine: repository.url in iotops.toml",
        )


def snapshots(hub: Hub) -> tuple[SnapshotInfo, ...]:
    """List this hub's snapshots, oldest first, of a repository that is this hub's.

    Raises:
        RepositoryNotOurs: it is another one than was recorded.
    """
    found = check_repository(hub).snapshots
    return hub.repository.snapshots(tags=(TAG, hub.id)) if found is None else found
