"""What differs between the hub folder and a snapshot's copy of it: shown, never changed.

Not here: the extraction (`extract.py`), and what a restore does (`restore.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from iotops import config
from iotops.clients import files
from iotops.model import Finding, Severity

ENV = ".env"


def differences(here: Path, there: Path) -> Iterator[Finding]:
    """Compare two hub folders, Git's own files and the worktree of the flows left out.

    Args:
        here: the hub folder. there: the snapshot's, extracted; nothing is found without one.
    """
    if not there.is_dir():
        return  # that part was not captured, which the plan has said
    now, then = _plain(here), _plain(there)
    for path in sorted(now | then):
        if path.startswith((".git/", "flows/")):
            continue
        if path not in then:
            text = "is not in the snapshot"
        elif path not in now:
            text = "is in the snapshot, but not in the hub folder"
        elif not _same(here / path, there / path):
            text = "differs from the snapshot's" + (_names(here, there) if path == ENV else "")
        else:
            continue
        yield Finding("hub.differs", Severity.WARNING, path, f"{path} {text}")


def _names(here: Path, there: Path) -> str:
    """Name the variables whose value differs, never a value: data may hold a secret's old one."""
    now, then = config.read_env(here / ENV), config.read_env(there / ENV)
    names = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    return f" in {', '.join(names)}" if names else ""


def _plain(root: Path) -> set[str]:
    found: set[str] = set()
    for top, _, names in os.walk(root):
        for name in names:
            found.add((Path(top) / name).relative_to(root).as_posix())
    return found


def _same(here: Path, there: Path) -> bool:
    """Compare two files; a link by where it leads: to follow one could mean to read for ever."""
    try:
        if here.is_symlink() or there.is_symlink():
            return here.readlink() == there.readlink()
        one, other = here.lstat(), there.lstat()
        return one.st_size == other.st_size and files.sha256(here) == files.sha256(there)
    except OSError:
        return False
