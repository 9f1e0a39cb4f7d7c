"""The recovery kit: a page with everything that a fresh machine needs, and the proof that it opens.

The page has a password of its own, a further key of the repository: it can be retired alone, and
what is typed from paper is never the password that the hub uses. It is nowhere but on the page.
What the state file remembers (the key's id, when it was made and proven) survives without the
disk. Not here: the page itself (`kitpage.py`), the form of the password (`paper.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from iotops import config
from iotops.actions.kitkeys import (
    BEGUN,
    ID,
    Added,
    add,
    is_paper,
    of_place,
    retire,
    take_back,
    without_orphans,
)
from iotops.clients import files
from iotops.errors import (
    GuardError,
    IotopsError,
    RepositoryNotOurs,
    WrongPassword,
)
from iotops.events import Noted, Report, silent, step
from iotops.hub import LINK, Hub
from iotops.journal import State, stamp
from iotops.model import Finding, Outcome, Severity

if TYPE_CHECKING:  # `status` asks for findings only, and must start quickly
    from iotops.clients.restic import SnapshotInfo

HTML, TEXT = "kit.html", "kit.txt"
STALE = timedelta(days=180)


@dataclass(frozen=True)
class MadeKit:
    """A kit that was written.

    Attributes:
        html, text: where. key: id of the new paper's key in the repository.
        copies: the same by copy. left_out: copy -> why it is not on the page.
        removed: ids of the keys of older papers that open nothing any more.
        older: ids of those that still do. own: of the one that the hub itself uses; "" = none.
        orphans: ids of keys that a kit which was broken off had left without a paper; removed.
    """

    html: Path
    text: Path
    key: str
    copies: Mapping[str, str]
    left_out: Mapping[str, str]
    removed: tuple[str, ...]
    older: tuple[str, ...]
    own: str = ""
    orphans: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proven:
    """The repository was opened with what stands on paper.

    Attributes:
        key: id of the key that opened it. newest: it is the newest paper's.
        snapshot: whose manifest was read with it. taken: when that was made, UTC.
        copies: copy -> why it was not opened with it; empty where it was.
    """

    key: str
    newest: bool
    repository: str
    snapshot: str
    taken: datetime
    copies: Mapping[str, str]


def _places(hub: Hub) -> tuple[Hub, ...]:
    """Give the hub at its repository, and at each copy."""
    return (hub, *(hub.at_copy(one.name) for one in hub.copies))


# -- making ---------------------------------------------------------------------------------------


def make(
    hub: Hub, *, output: Path | None = None, replace: bool = False, report: Report = silent
) -> MadeKit:
    """Make a kit: a new key in the repository and in its copies, proven, and the page with it.

    One password opens them all: one is typed on the day it is needed, and proven before. A copy
    that cannot be reached is left out, and named.

    Args:
        output: folder for the files; None = in memory (below `paths.run`), gone at the next boot.
        replace: remove the keys of this hub's older papers.

    Raises:
        GuardError: the files would get into Git, into the backups or onto the disk itself.
        RepositoryNotOurs, RepositoryMissing, WrongPassword, Locked: no key was added.
    """
    from iotops.actions import paper

    folder = (output or hub.settings.paths.run / "kit").absolute()
    _check_output(hub, folder)
    with hub.locked("kit"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        orphans = without_orphans(_places(hub), report)
        word, added, left = paper.generate(), list[Added](), dict[str, str]()
        with files.in_memory(word.encode()) as password_file:
            try:
                for place in _places(hub):
                    try:
                        added.append(add(place, password_file, report))
                    except IotopsError as error:
                        if not place.copy:
                            raise
                        left[place.copy] = error.message
                        report(Noted("warning", f"copy {place.copy}: {error.message}"))
                with step(report, "page"):
                    _write(hub, folder, word, added)
            except BaseException:
                for one in added:
                    take_back(one.place, one.before)
                raise
        known = hub.state.read().kit
        begun = {name: ids for name, ids in known.items() if name.startswith(BEGUN)}
        record = {"made": stamp()}
        for one in added:
            record[of_place(one.place, "key")] = one.key.id[:ID]
            record[of_place(one.place, "access")] = _fingerprint(one.place)
            begun.pop(of_place(one.place, BEGUN), None)
        record["repository"] = added[0].repository
        record["own_key"] = next((one.id[:ID] for one in added[0].before if one.current), "")
        proofs = {name: text for name, text in known.items() if name.startswith("proven")}
        hub.state.update(kit={**proofs, **begun, **record})
        removed: list[str] = []
        older: list[str] = []
        for one in added:
            recorded = known.get(of_place(one.place, "key"), "")
            found = [key for key in one.before if is_paper(hub, key, recorded)]
            papers = [key.id for key in found if not key.current]
            older += papers
            if replace and papers:
                removed += retire(one.place, papers, report)
    return MadeKit(
        folder / HTML,
        folder / TEXT,
        added[0].key.id,
        {one.place.copy: one.key.id for one in added if one.place.copy},
        left,
        tuple(removed),
        tuple(one for one in older if one not in removed),
        next((one.id for one in added[0].before if one.current and is_paper(hub, one, "")), ""),
        orphans,
    )


def _check_output(hub: Hub, folder: Path) -> None:
    """Refuse places from which the page's password would spread by itself."""
    real = folder.resolve()
    chosen = hub.settings.repository
    url = chosen.url if chosen is not None else ""
    places = [
        (hub.folder, "the hub folder, which goes into Git and into every snapshot"),
        (hub.root, "the data root, which goes into every snapshot"),
    ]
    if url.startswith("/"):
        places.append((Path(url), "the repository that it opens"))
    tree = next((one for one in (real, *real.parents) if (one / ".git").exists()), None)
    if tree is not None:
        places.append((tree, "a working tree of Git"))
    for place, what in places:
        if real.is_relative_to(place.resolve()):
            raise GuardError(
                f"the kit would be written into {what}: {folder}",
                hint="name another folder with --output, or none: iotops kit",
            )


def _write(hub: Hub, folder: Path, word: str, added: Sequence[Added]) -> None:
    from iotops.actions import kitpage

    accesses = []
    for one in added:
        access, chosen = one.place.repository.access, one.place.settings.repository
        assert chosen is not None  # it was opened
        accesses.append(
            kitpage.Access(
                f"The copy {one.place.copy}" if one.place.copy else "The repository",
                one.key.id,
                {"RESTIC_REPOSITORY": access.url, "RESTIC_PASSWORD": word, **access.environment},
                kitpage.elsewhere(access.url, access.environment, access.ssh_config),
                one.place.copy,
                chosen.password_file,
                chosen.credentials_file,
                chosen.ssh_config,
            )
        )
    ground = kitpage.Ground(
        hub_id=hub.id,
        owner=hub.settings.hub.owner,
        folder=hub.folder,
        root=hub.root,
        mounted=hub.settings.data.kind == "mount",
        link=LINK,
    )
    steps = kitpage.steps(ground, accesses)
    sheet = kitpage.Sheet(hub.name, hub.id, datetime.now(UTC), tuple(accesses), steps)
    for name, page in ((HTML, kitpage.html(sheet)), (TEXT, kitpage.text(sheet))):
        try:
            files.write(folder / name, page.encode(), mode=0o600)
        except OSError as error:
            raise IotopsError(
                f"{folder / name} cannot be written: {error.strerror}; no key was added",
                hint="name another folder with --output, or none: iotops kit",
            ) from error


def _fingerprint(hub: Hub) -> str:
    """Tell by a few letters whether address and credentials are those of the paper.

    Keyed with the hub's own password: whoever can read the state file only, can test no guess.
    Empty where this user cannot read what it is made of.
    """
    chosen = hub.settings.repository
    if chosen is None:
        return ""
    try:
        password = chosen.password_file.read_bytes()
        if chosen.credentials_file is not None:
            chosen.credentials_file.read_bytes()  # a missing one would read as empty
    except OSError:
        return ""
    named = config.read_env(chosen.credentials_file) if chosen.credentials_file else {}
    values = sorted((name, value.reveal()) for name, value in named.items())
    text = json.dumps([chosen.url, values])
    return hmac.new(password, text.encode(), hashlib.sha256).hexdigest()[:16]


# -- proving --------------------------------------------------------------------------------------


def verify(hub: Hub, typed: str, report: Report = silent) -> Proven:
    """Open the repository with a password as typed from paper, with exactly that, and record it.

    The copies that stand on the paper are opened, too; one that fails takes nothing from the proof
    of the others.

    Args:
        typed: see `paper.read`.

    Raises:
        Mistyped: it cannot be a kit's password; the repository was not asked.
        WrongPassword: the repository does not open with it.
        RepositoryNotOurs: it opens another one than this hub recorded.
        SnapshotUnknown: it opens, and there is nothing in it to bring back.
    """
    from iotops.actions import paper

    word = paper.read(typed)
    with hub.locked("kit"), files.in_memory(word.encode()) as password_file:
        state = hub.state.read()
        key, repository_id, newest = _open(hub, password_file, report)
        proof = {"proven": stamp(), "proven_key": key[:ID]}
        begun = state.kit.get(BEGUN, "")
        # It was printed after all, before the making of it was broken off.
        printed = bool(begun) and not any(_same_key(key, one) for one in begun.split())
        if not state.kit.get("key") or printed:  # or this machine has never made one
            proof |= {"key": key[:ID], "repository": repository_id, "access": _fingerprint(hub)}
        known = {**state.kit, **proof}
        if printed:
            known.pop(BEGUN)
        hub.state.update(kit=known)
        copies: dict[str, str] = {}
        for place in _places(hub)[1:]:
            if not known.get(of_place(place, "key")):
                continue  # it is not on the paper
            try:
                known[of_place(place, "proven_key")] = _open(place, password_file, report)[0][:ID]
                copies[place.copy] = ""
            except IotopsError as error:
                copies[place.copy] = error.message
                report(Noted("error", f"copy {place.copy}: {error.message}"))
        hub.state.update(kit=known)
    same = _same_key(known["key"], key)
    return Proven(key, same, repository_id, newest.id, newest.time, copies)


def _open(place: Hub, password_file: Path, report: Report) -> tuple[str, str, SnapshotInfo]:
    """Open one repository and read its newest manifest; gives the ids of key and repository."""
    from iotops.actions import extract
    from iotops.actions.ours import TAG
    from iotops.clients.restic import Repository, find_snapshot

    state = place.state.read()
    recorded = state.repository
    if place.copy:
        recorded = state.copies.get(place.copy, {}).get("repository", "")
    access = dataclasses.replace(
        place.repository.access,
        password_file=password_file,
        password_from="",
        key=state.kit.get(of_place(place, "key"), ""),
    )
    repository = Repository(access)
    with step(report, "open", place.copy):
        try:
            repository_id = repository.id()
        except WrongPassword as error:
            raise WrongPassword(
                "the repository does not open with the password from this paper",
                hint="is it an older paper, whose key was removed? A new one: iotops kit",
            ) from error
        if recorded and repository_id != recorded:
            raise RepositoryNotOurs(
                f"it opens the repository {repository_id[:10]}, but this hub recorded"
                f" {recorded[:10]}",
                hint="correct repository.url in iotops.toml, then: iotops kit",
            )
        key = next(one for one in repository.list_keys() if one.current)
    with step(report, "read", place.copy):
        found = repository.snapshots(tags=(TAG, place.id, Outcome.COMPLETE.value))
        newest = find_snapshot("latest", found)
        extract.read_manifest(repository, newest.id)
    return key.id, repository_id, newest


# -- judging --------------------------------------------------------------------------------------


def findings(hub: Hub, state: State, now: datetime | None = None) -> Iterator[Finding]:
    """Judge the kit by the records alone: never made, never proven, proven long ago, outdated."""
    if not state.repository:
        return  # there is nothing yet that it could open
    kit = state.kit
    proven = kit.get("proven", "")
    again = "prove it, with the paper in your hand: iotops kit --verify"

    def warn(code: str, message: str, hint: str) -> Finding:
        return Finding(code, Severity.WARNING, "kit", message, hint)

    if any(name.startswith(BEGUN) for name in kit):
        yield warn(
            "kit.unfinished",
            "a kit was begun and not finished: a key without a paper may open the repository",
            "make one, which removes that key: iotops kit",
        )
    if not kit.get("key"):
        yield warn(
            "kit.missing",
            "there is no recovery kit: without this machine nobody could open the backups",
            "make one, and print it: iotops kit",
        )
        return
    if kit.get("repository", state.repository) != state.repository:
        yield warn(
            "kit.outdated",
            "the repository is another one than when the kit was made",
            "make a new one: iotops kit",
        )
    for place in _places(hub):
        which = f"copy {place.copy}" if place.copy else "repository"
        then, there = kit.get(of_place(place, "access"), ""), _fingerprint(place)
        if not kit.get(of_place(place, "key")):
            yield warn(
                "kit.outdated", f"the {which} is not on the kit", "make a new one: iotops kit"
            )
        elif then and there and then != there:
            yield warn(
                "kit.outdated",
                f"the {which}'s address, credential or password file has changed since the kit was"
                " made",
                "make a new one: iotops kit --replace",
            )
        elif (
            place.copy
            and proven
            and not _same_key(
                kit[of_place(place, "key")], kit.get(of_place(place, "proven_key"), "")
            )
        ):
            yield warn("kit.unproven", f"the {which} was not opened with the kit yet", again)
    if not proven or not _same_key(kit.get("key", ""), kit.get("proven_key", "")):
        older = f" (an older paper was, on {proven[:10]})" if proven else ""
        made = f" of {kit['made'][:10]}" if kit.get("made") else ""
        yield warn("kit.unproven", f"the kit{made} has not been proven yet{older}", again)
    elif (now or datetime.now(UTC)) - datetime.fromisoformat(proven) > STALE:
        yield warn("kit.stale", f"the kit was last proven on {proven[:10]}", again)


def _same_key(key: str, other: str) -> bool:
    """Whether two ids name one key; restic 0.14 gives their beginnings only."""
    return bool(other) and (key.startswith(other) or other.startswith(key))
