"""The facts that config-sync compares: Git's files, the disk's, containers and their declaration.

Not here: which commit is the target (`sync.py`), how its Compose project is read without writing
into the hub folder (`syncproject.py`), what follows from the facts (`syncplan.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path

from iotops.actions import hubfiles, synchost
from iotops.actions.syncplan import File, ServiceFacts, SyncFacts, differences
from iotops.actions.syncproject import taken_in, target_project
from iotops.clients import files
from iotops.clients.compose import ComposeStack, Container, ServiceModel
from iotops.clients.gitremote import Upstream
from iotops.errors import GuardError, StackError
from iotops.hub import Hub
from iotops.model import Finding, Severity

BRANCH = "main"
MADE = "sync.json"
"""File in iotops' own folder: of which declaration this program made a container."""
LARGEST = 1 << 20
"""Bytes up to which a file is read that Git does not know: configuration is small."""
SHORT = 6
"""Letters that a secret has at least: a shorter one would take ordinary words with it."""


def worktree(hub: Hub) -> Upstream:
    """Give the hub folder as the worktree of `main`.

    Raises:
        GuardError: it is no worktree, has another branch checked out, or no commit.
    """
    tree = Upstream(hub.folder, owner=hub.owner)
    if not tree.exists():
        raise GuardError(
            f"{hub.folder} is not in Git", hint=f"put it there: {hubfiles.into_git(hub.folder)}"
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


def gather(
    hub: Hub, tree: Upstream, target: str, good: str, found: tuple[Finding, ...]
) -> SyncFacts:
    """Gather everything that a plan needs to know.

    Args:
        target: the commit that the hub shall be equal to. good: the last good one; may be empty.
        found: what was found about the target.
    """
    head = tree.head() or ""
    wanted = content(tree, target)
    known = wanted if head == target else content(tree, head)
    before = content(tree, good) if good else known
    new = [one.path for one in tree.status() if one.code == "??"]
    known_to_git = {*wanted, *known, *before}
    present = {
        path: file
        for path in {*known_to_git, *new}
        if (file := on_disk(hub.folder, path, whole=path in known_to_git)) is not None
    }
    services, taken, broken = _services(hub, wanted, {*known, *before}, present, unknown=not good)
    host, odd = synchost.look(hub)
    return SyncFacts(
        head=head,
        target=target,
        good=good,
        wanted=wanted,
        known=known,
        before=before,
        present=present,
        services=services,
        taken=taken,
        secrets=secrets(hub),
        host=host,
        blocked=_blocked(hub.folder, {*wanted} - {*known}, {*known, *before} - {*wanted}),
        findings=(*found, *broken, *odd),
    )


def content(tree: Upstream, commit: str) -> dict[str, File]:
    """Give the files of a commit."""
    return {
        path: File(one.data, one.mode == "100755", one.mode == "120000")
        for path, one in tree.entries(commit).items()
    }


def on_disk(folder: Path, path: str, *, whole: bool = True) -> File | None:
    """Read a file of the hub folder; what lies behind a link counts as one.

    Args:
        whole: also a large one; else its size stands for what it holds. A database that nobody
            has ignored does not fit into the memory of a Pi.
    """
    place = files.below(folder, path)
    if files.first_link(folder, place.parent) is not None:
        return File(b"", link=True)
    if place.is_symlink():
        return File(os.fsencode(place.readlink()), link=True)
    if not files.is_regular(place):
        return None
    with files.open_plain(place) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        state = os.fstat(descriptor)
        if not whole and state.st_size > LARGEST:
            return File(f"{state.st_size} bytes, not read\n".encode())
        return File(file.read(), bool(state.st_mode & 0o100))


def _blocked(folder: Path, new: set[str], leaving: set[str]) -> dict[str, str]:
    """Find what lies in the way of new files: a link or a file on the way to one, or a folder that
    is not empty once the files are gone that leave it."""
    found: dict[str, str] = {}
    for path in new:
        place = files.below(folder, path)
        for above in [*reversed(place.relative_to(folder).parents)][1:]:
            here = folder / above
            if here.is_symlink() or (files.is_regular(here) and above.as_posix() not in leaving):
                found[path] = above.as_posix()
                break
        if place.is_symlink() or not place.is_dir():
            continue
        for base, _, names in os.walk(place):
            inside = [(Path(base) / name).relative_to(folder).as_posix() for name in names]
            if staying := [one for one in inside if one not in leaving]:
                found[path] = staying[0]
                break
    return found


def secrets(hub: Hub) -> tuple[str, ...]:
    """Give the values of `.env` that no diff may show and no commit may hold."""
    return tuple(value for value in hub.named_secrets().values() if len(value) >= SHORT)


def _services(
    hub: Hub,
    wanted: Mapping[str, File],
    tracked: set[str],
    present: Mapping[str, File],
    *,
    unknown: bool,
) -> tuple[dict[str, ServiceFacts], set[str], list[Finding]]:
    """Gather how the containers stand to the target's Compose project, and what files it reads."""
    here = ComposeStack(hub.folder)
    containers = hub.stack.containers()
    there = {path: present[path] for path in {*wanted, *tracked} if path in present}
    with nullcontext(here) if there == wanted else target_project(hub, wanted, tracked) as project:
        taken = taken_in(hub, here) | taken_in(hub, project)
        try:
            model, hashes = project.model(), project.hashes()
        except StackError as error:
            finding = Finding(
                "compose.broken", Severity.ERROR, "Compose", error.message, error.hint
            )
            return {}, taken, [finding]
    declared = model.services
    if model.project != here.project:
        text = f"the commit calls the Compose project {model.project}: the containers of"
        text += f" {here.project} would go on beside its own"
        hint = f"keep the name: {here.project}"
        return {}, taken, [Finding("compose.project", Severity.ERROR, "Compose", text, hint)]
    kinds = {one.place.container: one for one in hub.services}
    images = here.image_ids(sorted({one.image for one in declared.values() if one.image}))
    made = remembered(hub)
    found = {name: _orphan(one) for name, one in containers.items() if name not in declared}
    for name, one_declared in declared.items():
        one = containers.get(name)
        same = one is not None and made.get(name) == (one.id, hashes.get(name, ""))
        known = one.config_hash if one is not None and same else hashes.get(name, "")
        service = kinds.get(name)
        mounts = tuple(_mounts(hub.folder.resolve(), one_declared, wanted))
        found[name] = ServiceFacts(
            state=one.state if one is not None else "",
            container=one.id if one is not None else "",
            differs=differences(one_declared, known, images.get(one_declared.image, ""), one)
            if one
            else (),
            config=service.config_files if service is not None else (),
            mounts=mounts,
            stale=_stale(hub.folder, one, mounts, wanted) if one is not None and unknown else (),
            after=one_declared.after,
            follows=one_declared.follows,
            joins=one_declared.joins,
        )
    return found, taken, []


def _orphan(one: Container) -> ServiceFacts:
    return ServiceFacts(one.state, one.id, declared=False)


def _mounts(
    folder: Path, model: ServiceModel, wanted: Mapping[str, File]
) -> Iterator[tuple[str, bool]]:
    for mount in (*model.mounts, *model.given):
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


# -- which declaration a container was made of ----------------------------------------------------


def remembered(hub: Hub) -> dict[str, tuple[str, str]]:
    """Read of which declarations containers were made: by service, container id and hash.

    What Compose writes on a container is not always the hash that it gives for the declaration
    (where the container was made without its dependencies, 2.26; with a `label_file`, 2.40; seen).
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


def remember(hub: Hub, stack: ComposeStack, made: Collection[str]) -> None:
    """Write down of which declaration Compose has just made containers.

    Args:
        made: their services, also those whose container Compose found to be as declared.
    """
    known = made_of(remembered(hub), hub.stack.containers(), stack.hashes(), made)
    files.write(hub.layout.folder / MADE, json.dumps(known).encode(), mode=0o644)


def made_of(
    before: Mapping[str, tuple[str, str]],
    containers: Mapping[str, Container],
    hashes: Mapping[str, str],
    made: Collection[str],
) -> dict[str, tuple[str, str]]:
    """Say of which declarations the present containers are known to be made.

    Nothing is said of a container that others made, or that was there before: today's declaration
    may be another one than it was made of.
    """
    known: dict[str, tuple[str, str]] = {}
    for name, one in containers.items():
        if name in made and name in hashes:
            known[name] = (one.id, hashes[name])
        elif name in before and before[name][0] == one.id:
            known[name] = before[name]
    return known
