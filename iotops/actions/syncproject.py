"""The target's Compose project, read as it will be in the hub folder; nothing is written there.

Compose resolves what a Compose file names (`env_file`, `include`, `extends`, `label_file`, mounts)
against the project's folder, and what it finds goes into the hash of each service. So the target's
files are laid out in a folder that stands for the root folder, at the hub folder's own path, with
links to whatever else lies on this machine beside them and around; the folder's own path is taken
out of what Compose answers. An absolute path into the hub folder is not seen through: Compose reads
the old file there. Not here: what follows from it (`syncfacts.py`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from iotops.actions.syncplan import File
from iotops.clients import files
from iotops.clients.compose import ComposeStack
from iotops.clients.composefiles import FILES
from iotops.hub import Hub

OVERRIDES = tuple(
    f"{stem}.override.{end}" for stem in ("compose", "docker-compose") for end in ("yml", "yaml")
)
"""What Compose takes in beside one of `FILES`, in its order: one of these."""
OURS = (".env", ".git")
"""What no commit brings: this machine's own counts."""


@contextmanager
def target_project(
    hub: Hub, wanted: Mapping[str, File], tracked: Collection[str]
) -> Iterator[ComposeStack]:
    """Give the target's Compose project, as long as the block lasts; it starts nothing.

    Args:
        wanted: the target's files. tracked: paths that Git knows here now.
    """
    here = hub.folder.resolve()
    with tempfile.TemporaryDirectory(prefix="iotops-sync-") as base:
        root = Path(base).resolve()
        folder = _below(root, here)
        _lay_out(root, here, wanted, tracked)
        paths = [
            _below(root, Path(os.path.normpath(here / name)))
            for name in compose_names(hub, wanted, tracked)
        ]
        yield ComposeStack(folder, files=paths, root=root)


def compose_names(
    hub: Hub, wanted: Mapping[str, File], tracked: Collection[str]
) -> tuple[str, ...]:
    """Name the project's files as they will be: Git's, and those that only this machine has.

    Args:
        wanted: the target's files. tracked: paths that Git knows here now.
    """
    chosen = hub.env.get("COMPOSE_FILE")
    if chosen is not None:
        return tuple(chosen.reveal().split(os.pathsep))
    there = {name for name in FILES + OVERRIDES if name in wanted}
    there |= {
        name for name in FILES + OVERRIDES if name not in tracked and (hub.folder / name).is_file()
    }
    return (
        *[name for name in FILES if name in there][:1],
        *[name for name in OVERRIDES if name in there][:1],
    )


def taken_in(hub: Hub, project: ComposeStack) -> set[str]:
    """Name the files of the hub folder that a project reads beside those that it starts with."""
    tops, every = project.files()
    here = hub.folder.resolve()
    return {
        path.relative_to(here).as_posix()
        for path in {*every} - {*tops}
        if path.is_relative_to(here)
    }


def _lay_out(root: Path, here: Path, wanted: Mapping[str, File], tracked: Collection[str]) -> None:
    """Put the target's files below a folder, and links to what Git does not know."""
    known = {path for path in (*wanted, *tracked) if PurePosixPath(path).parts[0] not in OURS}
    gits = {files.below(here, path) for path in known}
    inner = {one for path in (here / "any", *gits) for one in path.parents}
    for path in known & {*wanted}:
        place = _below(root, here / path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not wanted[path].link:
            place.write_bytes(wanted[path].data)
    for real in sorted(inner):  # every folder before the first link: nothing is made behind one
        with suppress(FileExistsError, NotADirectoryError):  # a file is there from now on
            _below(root, real).mkdir(exist_ok=True)
    for real in inner:
        with suppress(OSError):  # this user may not look in there, or it is no folder here
            for one in {*real.iterdir()} - gits - inner:
                if not os.path.lexists(place := _below(root, one)):
                    place.symlink_to(one)
    for path in known & {*wanted}:
        if wanted[path].link:
            with suppress(FileExistsError):
                _below(root, here / path).symlink_to(os.fsdecode(wanted[path].data))


def _below(root: Path, path: Path) -> Path:
    """Give the place that stands for an absolute path."""
    return root / path.relative_to(path.anchor)
