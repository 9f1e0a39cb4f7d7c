"""A disk that can really be lost: a file with ext4, loop-mounted.

Not here: what is on it.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Disk:
    """One file with a file system, mounted at a folder.

    Args:
        image: the file, made here. mount: the mount point, made here. size: bytes.
    """

    def __init__(self, image: Path, mount: Path, size: int = 900 << 20) -> None:
        self.image = image
        self.mount = mount
        mount.mkdir(parents=True, exist_ok=True)
        self._make(size)
        self.attach()

    def _make(self, size: int) -> None:
        with self.image.open("wb") as file:
            file.truncate(size)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", str(self.image))

    def attach(self) -> None:
        """Mount it."""
        _run("mount", "-o", "loop", str(self.image), str(self.mount))

    def detach(self) -> None:
        """Unmount it; who still uses it keeps what it has (as with a pulled cable)."""
        _run("umount", "-l", str(self.mount))

    def lose(self) -> None:
        """Unmount, format and mount again: an empty disk, sentinel gone too."""
        _run("umount", str(self.mount))
        # A new file: whoever still sees the old mount (another mount namespace) keeps the old one,
        # and the kernel would give its loop device, with the old content, to the same file again.
        size = self.image.stat().st_size
        self.image.unlink()
        self._make(size)
        self.attach()

    def remove(self) -> None:
        """Unmount for good and remove the file."""
        if os.path.ismount(self.mount):
            subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True)
        self.image.unlink(missing_ok=True)


def chown_tree(folder: Path, owner: tuple[int, int]) -> None:
    """Give a folder and everything in it to a numeric user and group, following no link."""
    os.lchown(folder, *owner)
    for top, folders, names in os.walk(folder):
        for name in (*folders, *names):
            os.lchown(Path(top) / name, *owner)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fill a disk to the last block, root's reserve too; make room again at the end."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size, part = 0, 64 << 20
        while part >= 4096:
            try:
                os.posix_fallocate(descriptor, size, part)
                size += part
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                part //= 4
        yield
    finally:
        os.close(descriptor)
        filler.unlink(missing_ok=True)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
