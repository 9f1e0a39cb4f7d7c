"""Look at what Git says the hub shall be and at what the hub is; commit what was edited on it.

The target is the remote's `main` after a fetch, or the commits of the hub folder itself where the
settings name no remote. A remote whose history was rewritten, or whose commit nobody allowed has
signed, is a finding. Looking writes nothing but the fetched commits and a line in the state file.
Not here: the decision (`syncplan.py`), applying it (`syncapply.py`), validation (`candidate.py`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from iotops.actions.flows import SECRET_NAME
from iotops.actions.hooks import refused_in_git
from iotops.actions.syncplan import (
    ChangeKind,
    File,
    ServiceFacts,
    SyncFacts,
    SyncPlan,
    differences,
    plan,
)
from iotops.clients import files
from iotops.clients.compose import ComposeStack, Container, ServiceModel
from iotops.clients.gitremote import Upstream
from iotops.errors import (
    Conflict,
    GitError,
    GuardError,
    IotopsError,
    Skipped,
    StackError,
    TimedOut,
    Unreachable,
    UsageError,
)
from iotops.events import Report, silent, step
from iotops.hub import Hub
from iotops.journal import stamp
from iotops.model import Finding, OnChange, Severity
from iotops.services.base import Service

BRANCH = "main"
REMOTE = "sync"
"""Name of the remote that `[sync] remote` gives the address of."""
BASES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
OVERRIDES = tuple(
    f"{stem}.override.{end}" for stem in ("compose", "docker-compose") for end in ("yml", "yaml")
)
"""The names that Compose looks for, in its order: one of each."""
MADE = "sync.json"
"""File in iotops' own folder: of which declaration this program made a container."""
SHORT = 6
"""Letters that a secret has at least: a shorter one would take ordinary words with it."""


@dataclass(frozen=True)
class SyncStatus:
    """Where the hub stands to Git.

    Attributes:
        commit: the last one that was applied and ran well; empty = none yet. applied: when.
        returned: one that was returned from, and why.
        plan: what differs now; without a fetch.
    """

    commit: str
    applied: str
    returned: str
    why: str
    plan: SyncPlan


def worktree(hub: Hub) -> Upstream:
    """Give the hub folder as the worktree of `main`.

    Raises:
        GuardError: it is no worktree, has another branch checked out, or no commit.
    """
    tree = Upstream(hub.folder, owner=hub.owner)
    if not tree.exists():
        raise GuardError(
            f"{hub.folder} is not in Git", hint=f"put it there: git init -b {BRANCH} {hub.folder}"
        )
    branch = tree.branch()
    if branch != BRANCH:
        raise GuardError(
            f"the hub folder is at {branch or 'a commit without a branch'}, not at {BRANCH}",
            hint=f"git -C {hub.folder} checkout {BRANCH}",
        )
    if tree.head() is None:
        raise GuardError(
            f"nothing is committed in {hub.folder} yet", hint="commit it: iotops sync adopt"
        )
    return tree


def look(hub: Hub, report: Report = silent, *, fetch: bool = True) -> SyncPlan:
    """Compare the hub with Git and decide what it takes; note in the state file what differs.

    Args:
        fetch: ask the remote, if the settings name one; else what was fetched last counts.

    Raises:
        GuardError: the hub folder is not at `main`. Skipped: the remote does not answer.
        IotopsError: Git or the engine could not be asked.
    """
    with hub.flows_locked("sync"):
        tree = worktree(hub)
        state = hub.state.read().sync
        good = state.get("commit", "")
        good = good if good and tree.has(good) else ""
        with step(report, "fetch" if fetch and hub.settings.sync.remote else "look"):
            target, tip, found = _target(hub, tree, good, fetch=fetch)
            found += _unsigned(hub, tree, target, good)
        with step(report, "compare"):
            facts = _facts(hub, tree, target, good, tuple(found))
    decided = plan(facts)
    noted = {**state, "looked": stamp(), "drift": summary(decided)}
    if tip and not any(one.severity is Severity.ERROR for one in found):
        noted["tip"] = tip
    with suppress(IotopsError, OSError):  # to look, nobody needs rights
        hub.state.update(sync=noted)
    return decided


def status(hub: Hub, report: Report = silent) -> SyncStatus:
    """Tell where the hub stands to Git, without asking the remote."""
    decided = look(hub, report, fetch=False)
    state = hub.state.read().sync
    return SyncStatus(
        state.get("commit", ""),
        state.get("applied", ""),
        state.get("returned", ""),
        state.get("why", ""),
        decided,
    )


def summary(decided: SyncPlan) -> str:
    """Say in a few words what differs; empty = nothing."""
    names: dict[str, int] = {}
    for one in decided.changes:
        name = one.service or "files"
        names[name] = names.get(name, 0) + 1
    return ", ".join(f"{name}: {number}" for name, number in sorted(names.items()))


# -- the target -----------------------------------------------------------------------------------


def _target(hub: Hub, tree: Upstream, good: str, *, fetch: bool) -> tuple[str, str, list[Finding]]:
    """Find the commit that the hub shall be equal to, the remote's, and what is odd about it."""
    head, url = tree.head() or "", hub.settings.sync.remote
    if not url:
        return head, "", []
    if fetch:
        tree.set_remote(REMOTE, url)
        try:
            tip = tree.fetch(REMOTE, BRANCH)
        except (Unreachable, TimedOut) as error:
            raise Skipped(
                error.message, hint="look whether it can be reached, then: iotops sync plan"
            ) from error
    else:
        try:
            tip = tree.resolve(f"refs/remotes/{REMOTE}/{BRANCH}")
        except GitError:
            return head, "", []
    if tip == head:
        return head, tip, []
    seen = hub.state.read().sync.get("tip", "")
    lost = seen and tree.has(seen) and not tree.is_ancestor(seen, tip)
    behind = tree.is_ancestor(tip, head)
    if lost or (good and not behind and not tree.is_ancestor(good, tip)):
        return head, tip, [_odd("rewritten", "does not lead on from the commits it had", tip, hub)]
    if behind:
        text = f"{BRANCH} has commits that the remote lacks"
        hint = f"git -C {hub.folder} push {REMOTE} {BRANCH}"
        return head, tip, [Finding("sync.ahead", Severity.WARNING, BRANCH, text, hint)]
    if tree.is_ancestor(head, tip):
        return tip, tip, []
    return head, tip, [_odd("diverged", f"and {BRANCH} here have grown apart", tip, hub)]


def _odd(code: str, text: str, tip: str, hub: Hub) -> Finding:
    return Finding(
        f"sync.{code}",
        Severity.ERROR,
        REMOTE,
        f"the remote's {BRANCH} ({tip[:8]}) {text}; nothing of it is applied",
        f"look: git -C {hub.folder} log --oneline --graph {BRANCH} {REMOTE}/{BRANCH}; if it is"
        f" meant, take it over: git -C {hub.folder} reset --keep {REMOTE}/{BRANCH}",
    )


def _unsigned(hub: Hub, tree: Upstream, target: str, good: str) -> list[Finding]:
    allowed = hub.settings.sync.allowed_signers
    if allowed is None or target == good:
        return []
    try:
        if not allowed.is_file():
            raise GitError(f"there is no file {allowed}")
        tree.signer(target, allowed)
    except GitError as error:
        text = f"the commit {target[:8]} is not signed by an allowed key: {error.message}"
        hint = f"sign it (git commit -S), or look at the keys: {allowed}"
        return [Finding("sync.unsigned", Severity.ERROR, target[:8], text, hint)]
    return []


# -- the facts ------------------------------------------------------------------------------------


def _facts(
    hub: Hub, tree: Upstream, target: str, good: str, found: tuple[Finding, ...]
) -> SyncFacts:
    head = tree.head() or ""
    wanted = content(tree, target)
    known = wanted if head == target else content(tree, head)
    before = content(tree, good) if good else known
    new = [one.path for one in tree.status() if one.code == "??"]
    present = {
        path: file
        for path in {*wanted, *known, *before, *new}
        if (file := on_disk(hub.folder, path)) is not None
    }
    services, broken = _services(hub, wanted, {*known, *before}, present, unknown=not good)
    return SyncFacts(
        head=head,
        target=target,
        good=good,
        wanted=wanted,
        known=known,
        before=before,
        present=present,
        services=services,
        secrets=secrets(hub),
        findings=(*found, *broken),
    )


def content(tree: Upstream, commit: str) -> dict[str, File]:
    """Give the files of a commit."""
    return {
        path: File(one.data, one.mode == "100755", one.mode == "120000")
        for path, one in tree.entries(commit).items()
    }


def on_disk(folder: Path, path: str) -> File | None:
    """Read a file of the hub folder; what lies behind a link counts as one."""
    place = files.below(folder, path)
    if files.first_link(folder, place.parent) is not None:
        return File(b"", link=True)
    if place.is_symlink():
        return File(os.fsencode(place.readlink()), link=True)
    if not files.is_regular(place):
        return None
    with files.open_plain(place) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        return File(file.read(), bool(os.fstat(descriptor).st_mode & 0o100))


def secrets(hub: Hub) -> tuple[str, ...]:
    """Give the values of `.env` that no diff may show and no commit may hold."""
    found = (value.reveal() for name, value in hub.env.items() if SECRET_NAME.search(name))
    return tuple(value for value in found if len(value) >= SHORT)


def _services(
    hub: Hub,
    wanted: Mapping[str, File],
    tracked: set[str],
    present: Mapping[str, File],
    *,
    unknown: bool,
) -> tuple[dict[str, ServiceFacts], list[Finding]]:
    """Gather how the containers stand to the target's Compose project."""
    here = ComposeStack(hub.folder)
    containers = hub.stack.containers()
    with _project(hub, wanted, tracked, present) as candidate:
        try:
            declared = (candidate or here).model().services
            hashes = (candidate or here).hashes()
        except StackError as error:
            finding = Finding(
                "compose.broken", Severity.ERROR, "Compose", error.message, error.hint
            )
            return {}, [finding]
    now = hashes
    if candidate is not None:
        try:
            now = here.hashes()
        except StackError:  # broken on the disk: the target mends it
            now = {}
    kinds = {one.place.container: one for one in hub.services}
    images = here.image_ids(sorted({one.image for one in declared.values() if one.image}))
    made = remembered(hub)
    found = {name: _orphan(one) for name, one in containers.items() if name not in declared}
    for name, model in declared.items():
        one = containers.get(name)
        same = one is not None and made.get(name) == (one.id, hashes.get(name, ""))
        known = one.config_hash if one is not None and same else hashes.get(name, "")
        if now.get(name) != hashes.get(name):
            known = hashes.get(name, "")
        service = kinds.get(name)
        mounts = tuple(_mounts(hub.folder.resolve(), model, wanted))
        found[name] = ServiceFacts(
            state=one.state if one is not None else "",
            container=one.id if one is not None else "",
            differs=differences(model, known, images.get(model.image, ""), one) if one else (),
            config=service.config_files if service is not None else (),
            mounts=mounts,
            stale=_stale(hub.folder, one, mounts, wanted) if one is not None and unknown else (),
        )
    return found, []


def _orphan(one: Container) -> ServiceFacts:
    return ServiceFacts(one.state, one.id, declared=False)


def _mounts(
    folder: Path, model: ServiceModel, wanted: Mapping[str, File]
) -> Iterator[tuple[str, bool]]:
    for mount in model.mounts:
        if mount.source is not None and mount.source.is_relative_to(folder):
            path = mount.source.relative_to(folder).as_posix()
            yield ("" if path == "." else path), path in wanted or mount.source.is_file()


def _stale(
    folder: Path, one: Container, mounts: Sequence[tuple[str, bool]], wanted: Mapping[str, File]
) -> tuple[str, ...]:
    """Name the mounted files that changed after a container started."""
    try:
        started = datetime.fromisoformat(one.started_at).timestamp()
    except ValueError:
        return ()
    found: list[str] = []
    for path in wanted:
        if any(mount and (path == mount or path.startswith(f"{mount}/")) for mount, _ in mounts):
            with suppress(OSError):
                if (folder / path).lstat().st_mtime > started:
                    found.append(path)
    return tuple(found)


@contextmanager
def _project(
    hub: Hub, wanted: Mapping[str, File], tracked: set[str], present: Mapping[str, File]
) -> Iterator[ComposeStack | None]:
    """Give the target's Compose project as it will be in the hub folder; None = it is there."""
    names = _compose_names(hub, wanted, tracked)
    if all(wanted.get(name) == present.get(name) for name in names if name in wanted) and not any(
        name in tracked and name not in wanted for name in present if name in BASES + OVERRIDES
    ):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="iotops-sync-") as base:
        paths: list[Path] = []
        for name in names:
            path = hub.folder / name
            if name in wanted:
                path = Path(base) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(wanted[name].data)
            paths.append(path)
        yield ComposeStack(hub.folder, files=paths)


def _compose_names(hub: Hub, wanted: Mapping[str, File], tracked: set[str]) -> list[str]:
    """Name the project's files as they will be: Git's, and those that only this machine has."""
    chosen = hub.env.get("COMPOSE_FILE")
    if chosen is not None:
        return chosen.reveal().split(os.pathsep)
    there = {name for name in BASES + OVERRIDES if name in wanted}
    there |= {
        name for name in BASES + OVERRIDES if name not in tracked and (hub.folder / name).is_file()
    }
    return [
        *[name for name in BASES if name in there][:1],
        *[name for name in OVERRIDES if name in there][:1],
    ]


# -- which declaration a container was made of ----------------------------------------------------


def remembered(hub: Hub) -> dict[str, tuple[str, str]]:
    """Read of which declarations containers were made: by service, container id and hash.

    What Compose writes on a container is not always the hash that it gives for the declaration
    (with `env_file`, or where the container was made without its dependencies; 2.26, seen).
    """
    try:
        document: object = json.loads((hub.layout.folder / MADE).read_bytes())
    except (OSError, ValueError):
        return {}
    found = document.items() if isinstance(document, dict) else ()
    return {
        str(name): (str(pair[0]), str(pair[1]))
        for name, pair in found
        if isinstance(pair, list) and len(pair) == 2
    }


def remember(hub: Hub, stack: ComposeStack) -> None:
    """Write down of which declarations the present containers are, after they were made so."""
    hashes = stack.hashes()
    made = {
        name: (one.id, hashes[name])
        for name, one in hub.stack.containers().items()
        if name in hashes and one.state
    }
    files.write(hub.layout.folder / MADE, json.dumps(made).encode(), mode=0o644)


# -- adopting local edits -------------------------------------------------------------------------


@dataclass(frozen=True)
class Adopted:
    """What was committed: the commit's id (empty = nothing had been edited) and its paths."""

    commit: str
    paths: tuple[str, ...]


def adopt(
    hub: Hub, paths: Sequence[str] = (), message: str = "", report: Report = silent
) -> Adopted:
    """Commit what was edited in the hub folder, on `main`, as the hub's owner.

    Args:
        paths: only these, relative to the hub folder; empty = all.
        message: of the commit; empty = one that names the files.

    Raises:
        GuardError: one of them holds secrets or running state. UsageError: a path is unknown.
    """
    with hub.flows_locked("sync adopt"):
        tree = Upstream(hub.folder, owner=hub.owner)
        if tree.exists() and tree.head() is not None:
            tree = worktree(hub)
        edited = [one.path for one in tree.status()]
        for path in paths:
            if not any(one == path or one.startswith(f"{path.rstrip('/')}/") for one in edited):
                raise UsageError(
                    f"{path} was not edited on the hub", hint="what was: iotops sync plan"
                )
        chosen = [
            one
            for one in edited
            if not paths or any(one == p or one.startswith(f"{p.rstrip('/')}/") for p in paths)
        ]
        _refuse_secrets(hub, chosen)
        if not chosen:
            return Adopted("", ())
        with step(report, "commit"):
            names = ", ".join(chosen[:3]) + (f" and {len(chosen) - 3} more" if chosen[3:] else "")
            commit = tree.commit_all(message or f"Adopt edits on the hub: {names}", chosen)
    return Adopted(commit or "", tuple(chosen))


def _refuse_secrets(hub: Hub, paths: Sequence[str]) -> None:
    refused = refused_in_git(path for path in paths if (hub.folder / path).exists())
    if refused:
        raise GuardError(
            "; ".join(one.message for one in refused),
            hint=f"keep it out: add {refused[0].subject} to .gitignore",
        )
    values = [value.encode() for value in secrets(hub)]
    for path in paths:
        file = on_disk(hub.folder, path)
        if file is not None and any(value in file.data for value in values):
            raise GuardError(
                f"{path} holds a value of .env in clear text and may not be committed",
                hint=f"let it come from the environment, then: iotops sync adopt {path}",
            )


def conflict(decided: SyncPlan) -> Conflict:
    """Give the error that says why a plan is not applied."""
    bad = [one for one in decided.findings if one.severity is Severity.ERROR]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return Conflict(f"nothing was applied: {bad[0].message}{more}", hint=bad[0].hint)


def touched(decided: SyncPlan, hub: Hub) -> tuple[Service, ...]:
    """Give the services whose containers a plan touches."""
    needs = {name for name, need in decided.services.items() if need is not OnChange.NOTHING}
    return tuple(one for one in hub.services if one.place.container in needs)


def local(decided: SyncPlan) -> tuple[str, ...]:
    """Name the paths that were edited on the hub."""
    return tuple(sorted({one.path for one in decided.changes if one.kind is ChangeKind.LOCAL}))
