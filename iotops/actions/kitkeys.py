"""The keys of papers in a repository: added, taken back, retired, and those that have no paper.

A key is on record before it is added, so that one whose kit was broken off is found by the next
kit: its password is nowhere, and it is removed. Not here: the page that a password stands on
(`kitpage.py`), and what is known of the kit otherwise (`kit.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iotops.errors import IotopsError, ProgramFailed
from iotops.events import Noted, Report, step
from iotops.hub import Hub
from iotops.signals import shield

if TYPE_CHECKING:  # `status` asks for findings only, and must start quickly
    from iotops.clients.restic import KeyInfo

MARK = "iotops-kit"
"""The "user" of a paper's key in the repository; its "host" is the hub's, see `host_of`."""
BEGUN = "begun"
"""Name in the state of the papers' keys that were there when a kit was begun; gone when it ends."""
NONE = "none"
ID = 16
"""Characters of an id in the state file, which is small; restic takes the beginning of one, too."""


@dataclass(frozen=True)
class Added:
    """A repository with a new key: `place` is the hub at it, `before` the keys that it had."""

    place: Hub
    repository: str
    key: KeyInfo
    before: tuple[KeyInfo, ...]


def host_of(hub: Hub) -> str:
    """Give the "host" of this hub's papers' keys: hubs of one name may share a repository."""
    return f"{hub.name}-{hub.id[:8]}"


def of_place(place: Hub, what: str) -> str:
    """Name what is recorded of a repository: "key", or "key nas" of the copy nas."""
    return f"{what} {place.copy}".strip()


def add(place: Hub, password_file: Path, report: Report) -> Added:
    """Add a key with the new password to one repository, and open that with it.

    If anything of it fails, the key is taken back: no paper would name it.
    """
    from iotops.actions.ours import check_repository
    from iotops.clients.restic import Repository

    repository = place.repository
    with step(report, "repository", place.copy):
        repository_id = check_repository(place).id
        before = repository.list_keys()
    papers = [one.id[:ID] for one in before if is_paper(place, one, "")]
    # On record before it is there: killed in between, nobody else would know that it has no paper.
    _begun(place, " ".join(papers) or NONE)
    try:
        with step(report, "key", place.copy):
            repository.add_key(password_file, user=MARK, host=host_of(place))
            access = dataclasses.replace(repository.access, password_file=password_file, key="")
            key = next(one for one in Repository(access).list_keys() if one.current)
    except BaseException:
        take_back(place, before)
        raise
    return Added(place, repository_id, key, before)


def take_back(place: Hub, before: Sequence[KeyInfo]) -> None:
    """Remove the keys of papers that were not there before."""
    known = [one.id for one in before]
    with shield(), suppress(IotopsError):
        for one in place.repository.list_keys():
            if is_paper(place, one, "") and one.id not in known:
                place.repository.remove_key(one.id)
        _begun(place, "")


def _begun(place: Hub, papers: str) -> None:
    """Note which papers' keys are there before one is added; empty = nothing is being added."""
    own, kit = of_place(place, BEGUN), place.state.read().kit
    others = {key: text for key, text in kit.items() if key != own}
    place.state.update(kit={**others, own: papers} if papers else others)


def without_orphans(places: Iterable[Hub], report: Report) -> tuple[str, ...]:
    """Remove keys that a kit which was broken off has left without a paper; gives their ids.

    Raises:
        IotopsError: the hub's own repository cannot be asked; a copy is asked at the next kit.
    """
    gone: list[str] = []
    for place in places:
        begun = place.state.read().kit.get(of_place(place, BEGUN), "")
        if not begun:
            continue
        try:
            with step(report, "orphans", place.copy):
                for one in place.repository.list_keys():
                    if _is_orphan(place, one, begun):
                        place.repository.remove_key(one.id)
                        gone.append(one.id)
                _begun(place, "")
        except IotopsError as error:
            if not place.copy and not isinstance(error, ProgramFailed):
                raise
            text = f"a key without a paper could not be removed: {error.message}"
            report(Noted("warning", text, place.copy))
    return tuple(gone)


def _is_orphan(place: Hub, key: KeyInfo, begun: str) -> bool:
    """Whether a key of this hub's came when a kit was begun that did not end."""
    ours = is_paper(place, key, "") and not key.current
    return ours and not any(key.named(one) for one in begun.split())


def is_paper(hub: Hub, key: KeyInfo, recorded: str) -> bool:
    """Whether a key is of a paper of this hub; another hub may share the repository."""
    return (key.user == MARK and key.host == host_of(hub)) or key.named(recorded)


def retire(place: Hub, older: Sequence[str], report: Report) -> tuple[str, ...]:
    """Remove the keys of older papers from one repository.

    Raises:
        IotopsError: one could not be removed; the new kit is written and counts.
    """
    with step(report, "retire", place.copy):
        for one in older:
            try:
                place.repository.remove_key(one)
            except IotopsError as error:
                raise IotopsError(
                    f"the new kit is written, but the key {one[:8]} of an older paper could not"
                    f" be removed, and still opens the repository: {error.message}",
                    hint=f"remove it where the repository allows it: restic key remove {one}",
                ) from error
    return tuple(older)
