"""A candidate configuration as if it were the hub folder, in a folder of its own.

It holds copies of the candidate's files, with owners and modes as they will be, and among them
what lies there on this machine and not in Git (a password file beside `mosquitto.conf`): a
container that has a folder mounted could not follow a link. Links lead to what else only this
machine has: `.env`, the override file. Not here: any judgement (`candidate.py`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from iotops.clients import files
from iotops.clients.git import Worktree
from iotops.hub import Hub

PREFIX = "iotops-candidate-"
"""Begin of the name of a view's folder; one that nobody holds is removed by the next look."""
YOUNG = 60.0
"""Seconds in which a view's folder may exist and not be held yet."""
LARGEST = 1 << 20
"""Bytes up to which a file of this machine is put among the candidate's: configuration is small."""


@dataclass(frozen=True)
class View:
    """A candidate as if it were the hub folder.

    Attributes:
        hub: the running hub. tree: the candidate's files. folder: the view.
    """

    hub: Hub
    tree: Path
    folder: Path

    def relative(self, path: Path) -> Path | None:
        """Give a path of the hub folder or of this view as one below it; None = elsewhere."""
        for top in (self.folder, self.hub.folder, self.tree):
            if path.is_relative_to(top):
                return path.relative_to(top)
        return None


@contextmanager
def candidate_view(hub: Hub, tree: Path) -> Iterator[View]:
    """Make the view of a candidate, and remove it in every case.

    It has the hub folder's name, after which Compose calls a project that has none of its own.

    Args:
        tree: the candidate's files, absolute.
    """
    with held_folder(hub) as top:
        folder = top / hub.folder.resolve().name
        folder.mkdir()
        _fill(folder, hub, tree)
        yield View(hub, tree, folder)


@contextmanager
def held_folder(hub: Hub) -> Iterator[Path]:
    """Make a folder, for us alone, in which something is tried; remove it in every case."""
    tmp = hub.layout.tmp if hub.layout.tmp.is_dir() else Path(tempfile.gettempdir())
    sweep(tmp)
    top = Path(tempfile.mkdtemp(prefix=PREFIX, dir=tmp))
    held = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield top
    finally:
        files.remove_tree(top)
        os.close(held)


def sweep(folder: Path) -> None:
    """Remove the views of looks that were killed; one that somebody holds stays."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                state = os.fstat(held)
                if state.st_uid == os.geteuid() and time.time() - state.st_mtime > YOUNG:
                    files.remove_tree(path)
            finally:
                os.close(held)


def _fill(folder: Path, hub: Hub, tree: Path) -> None:
    here = hub.folder.resolve()
    repository = Worktree(here, owner=hub.owner)
    known: frozenset[str] = frozenset()
    if repository.exists() and repository.head() is not None:
        known = frozenset(repository.files())
    owner = hub.owner
    for path in sorted(tree.rglob("*")):
        relative = path.relative_to(tree)
        if relative.parts[0] not in (".env", ".git"):  # this machine's own .env counts
            _copy(path, folder / relative, here / relative, owner)
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        for relative in _local(here, path.name, known, hub.root):
            source, target = here / relative, folder / relative
            if os.path.lexists(target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # its service may have removed it meanwhile
                if source.is_dir():
                    _copy(source, target, source, owner)
                else:
                    files.copy_plain(source, target, here)  # no folder on the way became a link
    gone = {path.partition("/")[0] for path in known} | {".git"}  # or it is there already
    for path in sorted(here.iterdir()):
        if path.name not in gone and not os.path.lexists(folder / path.name):
            (folder / path.name).symlink_to(path)


def _copy(source: Path, target: Path, live: Path, owner: tuple[int, int]) -> None:
    """Copy one file, folder or link, as it will be: with the live one's owner and mode."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir()
        mode = 0o755
    elif files.is_regular(source):
        shutil.copyfile(source, target)
        mode = 0o755 if source.stat().st_mode & 0o100 else 0o644
    else:
        return
    if not live.is_symlink() and live.exists() and live.is_dir() == source.is_dir():
        state = live.stat()
        mode, owner = state.st_mode & 0o7777, (state.st_uid, state.st_gid)
    if os.geteuid() == 0:
        os.chown(target, *owner)
    target.chmod(mode)


def _local(here: Path, name: str, known: frozenset[str], root: Path) -> Iterator[Path]:
    """Yield the folders and small files below a folder of the hub folder, not those under Git."""
    for top, inner, names in os.walk(here / name):
        inner[:] = [one for one in inner if one != ".git" and Path(top) / one != root]
        for one in inner:
            if not (path := Path(top) / one).is_symlink():
                yield path.relative_to(here)
        for one in names:
            path = Path(top) / one
            relative = path.relative_to(here)
            if relative.as_posix() in known or not files.is_regular(path):
                continue
            with suppress(FileNotFoundError):
                if path.stat().st_size <= LARGEST:
                    yield relative
