"""What differs between Git and the hub, and what it takes to make the hub equal: a pure decision.

Files are compared three ways: what the target commit says, what is on the disk, and what may be
there without anybody having edited it (the commit that is checked out, the last good one). What is
none of these is a local edit, and refuses. Containers are compared with the target's declaration.
Not here: gathering the facts (`syncfacts.py`), a file's diff and the secrets in it (`syncdiff.py`),
applying (`syncapply.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

from iotops.actions.hooks import refused_in_git
from iotops.actions.syncdiff import masked, shown
from iotops.clients.compose import Container, Mount, Port, ServiceModel
from iotops.clients.composemodel import UP
from iotops.model import ConfigFile, Finding, OnChange, Severity

RANK = (OnChange.NOTHING, OnChange.RELOAD, OnChange.RESTART, OnChange.RECREATE)
RESERVED = frozenset({".git", ".env", "flows", ".iotops", ".iotops-data-root"})
"""First parts of paths that Git's `main` may not have: they are others' in the hub folder."""


class ChangeKind(StrEnum):
    """In which way something is not as Git says."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    COMMITTED = "committed"
    """The file is in place already, but no service has been told."""
    LOCAL = "local"
    """Edited on the hub; never overwritten."""
    CONTAINER = "container"
    ORPHAN = "orphan"
    """A container that the Compose file does not name."""
    HOST = "host"
    """An installed unit that is not as this version has it; told, never written."""


WRITTEN = (ChangeKind.ADDED, ChangeKind.CHANGED, ChangeKind.REMOVED)


@dataclass(frozen=True)
class File:
    """A file's content. `link`: a symbolic link, its target the content."""

    data: bytes
    executable: bool = False
    link: bool = False

    @property
    def mark(self) -> str:
        """A short text that differs whenever the file does."""
        kind = "link" if self.link else "program" if self.executable else "file"
        return f"{kind} {hashlib.sha256(self.data).hexdigest()}"


@dataclass(frozen=True)
class Change:
    """One thing that is not as Git says.

    Attributes:
        path: of the file in the hub folder; of a container the name of its Compose service.
        diff: what differs, from the hub to Git (of a local edit: from Git to the hub), masked.
        service: the Compose service that it concerns; empty = none.
        on_change: what that service needs.
        before: what must still be there when it is applied; empty = nothing was.
    """

    path: str
    kind: ChangeKind
    diff: str
    service: str
    on_change: OnChange
    before: str = ""


@dataclass(frozen=True)
class ServiceFacts:
    """A Compose service as the target declares it and as it runs.

    Attributes:
        state: of its container; empty = it has none. container: its id.
        declared: whether the target names it.
        differs: how its container is not as declared, a line each.
        config: the configuration files that its kind knows.
        mounts: paths in the hub folder that it mounts ("" = all of it), and whether each is one
            file.
        stale: configuration files that changed after the container started; only looked for where
            no commit is known that the hub was equal to.
        after: services that it depends on. follows: those with which it is to be restarted.
            joins: those whose network or other namespace it shares.
    """

    state: str
    container: str = ""
    declared: bool = True
    differs: tuple[str, ...] = ()
    config: tuple[ConfigFile, ...] = ()
    mounts: tuple[tuple[str, bool], ...] = ()
    stale: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    joins: tuple[str, ...] = ()


@dataclass(frozen=True)
class SyncFacts:
    """What a plan needs to know.

    Attributes:
        head: the commit that is checked out. target: what the hub shall be. good: the last one
            that the hub was equal to and ran well with; empty = none is known.
        wanted: the target's files. known: those of `head`. before: those of `good`.
        present: what is on the disk of all these, and files that Git neither knows nor ignores.
        services: by the name in the Compose file.
        taken: files of which the Compose project takes declarations or variables, beside those
            that it starts with.
        secrets: values that no diff may show.
        host: pieces of the machine beside the hub folder that are not as they should be.
        blocked: what lies in the way of files that the target brings, by their paths.
        findings: what was found while looking.
    """

    head: str
    target: str
    good: str
    wanted: Mapping[str, File]
    known: Mapping[str, File]
    before: Mapping[str, File]
    present: Mapping[str, File]
    services: Mapping[str, ServiceFacts] = field(default_factory=dict)
    taken: Collection[str] = ()
    secrets: tuple[str, ...] = field(default=(), repr=False)
    host: tuple[Change, ...] = ()
    blocked: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class SyncPlan:
    """What it takes to make the hub equal to a commit.

    Attributes:
        head, target, good: commit ids, as in `SyncFacts`.
        services: what each Compose service needs; none that needs nothing.
    """

    head: str
    target: str
    good: str
    changes: tuple[Change, ...]
    services: Mapping[str, OnChange]
    findings: tuple[Finding, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether an error among the findings forbids going on."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def equal(self) -> bool:
        """Whether there is nothing to do and nothing to tell."""
        return not self.changes and self.head == self.target

    @property
    def files(self) -> tuple[str, ...]:
        """The paths that are to be written or removed."""
        return tuple(sorted({one.path for one in self.changes if one.kind in WRITTEN}))


def plan(facts: SyncFacts) -> SyncPlan:
    """Decide what differs and what is to be done. Pure: reads its argument only."""
    findings = [*facts.findings, *_refused_paths(facts)]
    changes: list[Change] = []
    local: list[str] = []
    for path in sorted({*facts.wanted, *facts.known, *facts.before, *facts.present}):
        found = _file(facts, path)
        if found is None:
            continue
        kind, before, old, new = found
        if kind is ChangeKind.LOCAL:
            local.append(path)
        diff = shown(path, old, new, facts.secrets)
        changes += _for_services(facts, Change(path, kind, diff, "", OnChange.NOTHING, before))
    findings += [_blocked(path, what) for path, what in sorted(facts.blocked.items())]
    findings += [_local(path, facts) for path in local if path not in facts.blocked]
    findings += _stopped(facts)
    changes += _stale(facts, {one.path for one in changes})
    changes += [*_containers(facts), *facts.host]
    changes += _dragged(facts, _needs(changes))
    return SyncPlan(
        facts.head, facts.target, facts.good, tuple(changes), _needs(changes), tuple(findings)
    )


def _file(facts: SyncFacts, path: str) -> tuple[ChangeKind, str, File | None, File | None] | None:
    """Judge one path: its kind, the mark of what is there, and the two sides of the diff."""
    wanted, present = facts.wanted.get(path), facts.present.get(path)
    known, before = facts.known.get(path), facts.before.get(path)
    mark = present.mark if present is not None else ""
    if present == wanted:
        if facts.good and before != wanted:
            return ChangeKind.COMMITTED, mark, before, wanted
        return None
    if present is not None and known is None and before is None and wanted is None:
        return ChangeKind.LOCAL, mark, None, present
    if present == known or (facts.good and present == before):
        if present is None:
            return ChangeKind.ADDED, mark, None, wanted
        kind = ChangeKind.REMOVED if wanted is None else ChangeKind.CHANGED
        return kind, mark, present, wanted
    return ChangeKind.LOCAL, mark, known, present


def _for_services(facts: SyncFacts, change: Change) -> Iterator[Change]:
    """Yield a file's change once for each service that sees the file, or may be declared by it.

    Compose does not tell which file a value came from: where the project takes in the file, it is
    told for each service that is to be made anew.
    """
    needs = {
        name: need
        for name, one in facts.services.items()
        if one.declared and (need := _need(one, change.path)) is not None
    }
    if change.path in facts.taken:
        made = [name for name, one in facts.services.items() if one.declared and one.differs]
        needs |= dict.fromkeys(made, OnChange.RECREATE)
    if not needs:
        yield change
    for name, need in needs.items():
        idle = change.kind is ChangeKind.LOCAL or facts.services[name].state not in UP
        need = OnChange.NOTHING if idle else need
        yield Change(change.path, change.kind, change.diff, name, need, change.before)


def _need(service: ServiceFacts, path: str) -> OnChange | None:
    """Tell what a service needs when a file changed; None = it does not see the file.

    A file that is mounted by itself stays the old one in the container until that starts again.
    """
    pure = PurePosixPath(path)
    seen = [
        (mount, alone)
        for mount, alone in service.mounts
        if not mount or pure == PurePosixPath(mount) or pure.is_relative_to(mount)
    ]
    if not seen:
        return None
    if any(alone for _, alone in seen):
        return OnChange.RESTART
    for one in service.config:
        if path == one.path or (one.path.endswith("/") and path.startswith(one.path)):
            return one.on_change
    # Whoever mounts the whole folder (a backup program, a log viewer) reads what it wants.
    return OnChange.NOTHING if any(not mount for mount, _ in seen) else OnChange.RESTART


def _stale(facts: SyncFacts, told: set[str]) -> Iterator[Change]:
    for name, one in facts.services.items():
        for path in one.stale:
            need = _need(one, path)
            if path in told or need in (None, OnChange.NOTHING) or one.state not in UP:
                continue
            text = "changed after the container was started"
            present = facts.present.get(path)
            mark = present.mark if present is not None else ""
            yield Change(path, ChangeKind.COMMITTED, text, name, need or OnChange.NOTHING, mark)


def _containers(facts: SyncFacts) -> Iterator[Change]:
    """Yield the containers that are not as declared.

    One that its owner has stopped, and a stack that is down as a whole, stay so.
    """
    down = not any(one.state for one in facts.services.values() if one.declared)
    for name, one in facts.services.items():
        if not one.declared:
            text = "it is not in the Compose file, or in a profile that is not active"
            yield Change(name, ChangeKind.ORPHAN, text, name, OnChange.NOTHING, one.container)
        elif not one.state and not down:
            text = "it has no container"
            yield Change(name, ChangeKind.CONTAINER, text, name, OnChange.RECREATE)
        elif one.state in UP and one.differs:
            text = masked("\n".join(one.differs), facts.secrets)
            yield Change(name, ChangeKind.CONTAINER, text, name, OnChange.RECREATE, one.container)


def _stopped(facts: SyncFacts) -> Iterator[Finding]:
    """Yield the containers that stand still and are not as declared.

    They count as drift once somebody starts them: until then nothing runs that Git does not say.
    """
    for name, one in facts.services.items():
        if one.declared and one.state and one.state not in UP and one.differs:
            lines = masked("; ".join(one.differs), facts.secrets)
            text = f"{name} is {one.state}, was made of an older declaration and stays so ({lines})"
            yield Finding("sync.stopped", Severity.INFO, name, text, "iotops up makes it anew")


def _dragged(facts: SyncFacts, needs: Mapping[str, OnChange]) -> Iterator[Change]:
    """Yield the services that are disturbed because one is that they depend on."""
    found = {name for name, need in needs.items() if need is OnChange.RECREATE}
    for kind, dragged in ((OnChange.RECREATE, _made_anew), (OnChange.RESTART, _restarted)):
        while new := dragged(facts, found):
            for name, text in new.items():
                container = facts.services[name].container
                yield Change(name, ChangeKind.CONTAINER, text, name, kind, container)
            found |= {*new}
        found |= {name for name, need in needs.items() if need is OnChange.RESTART}


def _made_anew(facts: SyncFacts, found: Set[str]) -> dict[str, str]:
    """Say why services are made anew along with those found.

    Compose 2.26 also makes anew what lies between two that it is told to make anew, whether it
    changed or not (seen); later versions do not.
    """
    told, left = {*found}, [*found]
    while left:
        before = facts.services[left.pop()].after
        left += [one for one in before if one not in told and one in facts.services]
        told |= {*before}
    new: dict[str, str] = {}
    for name, one in _running_but(found, facts):
        if name in told and (other := _first(one.after, found)):
            new[name] = f"Compose may make it anew along with {other}, which it depends on"
        if other := _first(one.joins, found):
            new[name] = f"it shares what is made anew with {other}"
    return new


def _restarted(facts: SyncFacts, found: Set[str]) -> dict[str, str]:
    """Say why services are restarted along with those found."""
    new: dict[str, str] = {}
    for name, one in _running_but(found, facts):
        # Named in `depends_on` too, Compose shows no `restart` for what is joined.
        if other := _first(one.joins, found):
            new[name] = f"it shares what is restarted with {other}"
        if other := _first(one.follows, found):
            new[name] = f"it is to be restarted with {other} (depends_on: restart)"
    return new


def _running_but(names: Set[str], facts: SyncFacts) -> Iterator[tuple[str, ServiceFacts]]:
    for name, one in sorted(facts.services.items()):
        if one.declared and one.state in UP and name not in names:
            yield name, one


def _first(names: Sequence[str], found: Set[str]) -> str:
    return next((one for one in names if one in found), "")


def _needs(changes: Sequence[Change]) -> dict[str, OnChange]:
    needs: dict[str, OnChange] = {}
    for one in changes:
        if one.service and one.on_change is not OnChange.NOTHING:
            known = needs.get(one.service, OnChange.NOTHING)
            needs[one.service] = max(known, one.on_change, key=RANK.index)
    return dict(sorted(needs.items()))


# -- refusals -------------------------------------------------------------------------------------


def _local(path: str, facts: SyncFacts) -> Finding:
    text = f"{path} is not in Git"
    hint = f"keep it: iotops sync adopt; or name it in .gitignore, or remove it: {path}"
    if path in facts.known:
        text = f"{path} was edited on the hub and not committed"
        hint = f"keep it: iotops sync adopt; drop it: git checkout -- {path}"
    elif path in facts.wanted:
        text = f"{path} was made on the hub, and the commit brings another one"
        hint = f"move it out of the hub folder, or remove it: {path}; then: iotops sync plan"
    return Finding("sync.local", Severity.ERROR, path, text, hint)


def _blocked(path: str, what: str) -> Finding:
    return Finding(
        "sync.blocked",
        Severity.ERROR,
        path,
        f"the commit brings {path}, and {what} is in its way, which is not in Git",
        f"look at it, and move it away: ls -ld {what}",
    )


def _refused_paths(facts: SyncFacts) -> Iterator[Finding]:
    """Yield what the target may not bring: links, secrets, and what is others' in the folder."""
    new = [path for path, one in facts.wanted.items() if one != facts.known.get(path)]
    yield from refused_in_git(path for path in new if path not in facts.known)
    for path in new:
        parts = PurePosixPath(path).parts
        if parts[0].lower() in RESERVED or ".git" in [part.lower() for part in parts]:
            text = f"the commit brings {path}, which has another use in a hub folder"
            yield Finding("sync.path", Severity.ERROR, path, text, f"git rm --cached {path}")
        elif facts.wanted[path].link:
            text = f"the commit brings {path} as a symbolic link, which is not followed"
            yield Finding("sync.link", Severity.ERROR, path, text, "commit the file itself")


# -- containers -----------------------------------------------------------------------------------


def differences(
    declared: ServiceModel, config_hash: str, image_id: str, running: Container
) -> tuple[str, ...]:
    """Tell how a container is not as declared; of variables their names, never their values.

    Args:
        config_hash: Compose's, of the declaration; empty = not known.
        image_id: what the declared image's name stands for now; empty = not here.
    """
    moved = bool(image_id) and bool(running.image_id) and image_id != running.image_id
    if config_hash and config_hash == running.config_hash and not moved:
        return ()
    lines: list[str] = []
    if declared.image and declared.image != running.image:
        lines.append(f"image: {running.image} runs, {declared.image} is declared")
    elif moved:
        names = f"{_short(running.image_id)} runs, the name is now {_short(image_id)}"
        lines.append(f"image {declared.image}: {names}")
    if config_hash and config_hash == running.config_hash:
        return tuple(lines)
    lines += _both(
        "mount",
        {*map(_mount, (*declared.mounts, *declared.given))},
        {*map(_mount, _own(running, declared))},
    )
    lines += _both("port", {*map(_port, declared.ports)}, {*map(_port, running.ports)})
    for name in sorted({*declared.environment, *running.environment}):
        there, now = declared.environment.get(name), running.environment.get(name)
        if there is None and name not in running.inherited:
            lines.append(f"variable {name} is no longer declared")
        elif there is not None and now is None:
            lines.append(f"variable {name} is declared, and not there")
        elif there is not None and there != now:
            lines.append(f"variable {name} has another value")
    if config_hash and not lines:
        lines.append("another part of its declaration (command, health check, network ...)")
    return tuple(lines)


def _own(running: Container, declared: ServiceModel) -> Iterator[Mount]:
    """Yield a container's mounts without the nameless volumes that its image asks for."""
    targets = {mount.target for mount in declared.mounts}
    for mount in running.mounts:
        if mount.kind != "volume" or mount.target in targets or len(mount.name) != 64:
            yield mount


def _both(what: str, declared: set[str], running: set[str]) -> Iterator[str]:
    yield from (f"{what} {one}: declared, not there" for one in sorted(declared - running))
    yield from (f"{what} {one}: there, not declared" for one in sorted(running - declared))


def _mount(mount: Mount) -> str:
    source = str(mount.source) if mount.source is not None else mount.name or mount.kind
    return f"{source} at {mount.target}" + (" read-only" if mount.read_only else "")


def _port(port: Port) -> str:
    return f"{port.host or '*'}:{port.published or '?'} to {port.target}/{port.protocol}"


def _short(image: str) -> str:
    return image.removeprefix("sha256:")[:12]
