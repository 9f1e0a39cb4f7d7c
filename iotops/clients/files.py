"""The door to the file system: safe writes, hashes, owners, online SQLite copies.

Everything here keeps two promises. A file is replaced by writing a temporary one beside it and
renaming it, so that a reader or a power cut sees the old or the new one, never half of one. And
no symbolic link is followed where the owner of a container could have planted it.

Not here: what is copied and why (`staging.py` walks, services choose), nor any policy.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath

from iotops.clients import attributes
from iotops.errors import CaptureError, IotopsError, NoSpace


class DamagedDatabase(CaptureError):
    """A file that begins as a SQLite database is none, or is damaged."""


CHUNK = 1 << 20
ATTEMPTS = 3
"""How often a file is copied that changed meanwhile."""
RACY_NS = 50_000_000
"""A file that changed less than this long before it is read may change again and keep its times:
they advance with the kernel's tick (4 ms, 10 ms at most)."""
SQLITE_MAGIC = b"SQLite format 3\x00"
SQLITE_SIDE_FILES = ("-wal", "-shm", "-journal")
SQLITE_WAIT = 30.0
"""Seconds that a database may be locked by its program before its copy is given up."""
TEMPORARY = ".iotops-new-"
"""How the names of our temporary files begin."""


def path_text(path: str | Path) -> str:
    """Write a path as text that JSON can hold: a backslash doubled, foreign bytes as `\\xNN`."""
    raw = os.fsencode(path).replace(b"\\", b"\\\\")
    return raw.decode("utf-8", "backslashreplace")


def path_of(text: str) -> str:
    """Undo `path_text`."""
    raw = re.sub(
        rb"\\(\\|x[0-9a-f]{2})",
        lambda match: b"\\" if match[1] == b"\\" else bytes([int(match[1][1:], 16)]),
        text.encode("utf-8", "surrogateescape"),
    )
    return os.fsdecode(raw)


def below(root: Path, relative: str) -> Path:
    """Join a path that comes from outside to a root, refusing everything that could leave it.

    Raises:
        IotopsError: it is absolute, empty, or has a `..` in it.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\x00" in relative:
        raise IotopsError(f"the path {relative!r} leads out of its folder and is refused")
    return root.joinpath(*pure.parts)


def is_regular(path: Path) -> bool:
    """Tell whether a path is a regular file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def beside(target: Path) -> Path:
    """Give a name for a temporary file in a target's folder.

    It is made of chance, not of the target's name: that may be as long as a name can be, and a
    name made of it could be the name of somebody's file.
    """
    return target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")


@contextmanager
def open_plain(path: Path, within: Path | None = None) -> Iterator[int]:
    """Open a regular file for reading without following a link at its end.

    Args:
        within: a folder, all links resolved, that the opened file must lie in: a folder above the
            file may have been exchanged for a link since it was looked at.

    Yields:
        A file descriptor.

    Raises:
        OSError: it is gone, a link, or not a regular file, or it lies elsewhere.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        if within is not None:
            _require_within(descriptor, within, path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_folder(path: Path, within: Path) -> Iterator[int]:
    """Open a folder for listing, following no link that leads out of another one; see above.

    Raises:
        OSError: it is gone (also: exchanged for a link), unreadable, or it lies elsewhere.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        _require_within(descriptor, within, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _require_within(descriptor: int, within: Path, path: Path) -> None:
    """Ask the kernel where an open file really lies; a name alone can be made to lie."""
    real = Path(f"/proc/self/fd/{descriptor}").readlink()
    if not real.is_relative_to(within):
        raise FileNotFoundError(errno.ENOENT, "leads elsewhere by now", str(path))


def first_link(root: Path, path: Path) -> Path | None:
    """Give the first symbolic link on the way from a root down to a path, itself included."""
    here = root
    for part in path.relative_to(root).parts:
        here = here / part
        if here.is_symlink():
            return here
    return None


def sha256(path: Path) -> str:
    """Give the SHA-256 of a regular file's content, hexadecimal."""
    digest = hashlib.sha256()
    with open_plain(path) as descriptor:
        while chunk := os.read(descriptor, CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write(
    path: Path,
    data: bytes | Iterable[bytes],
    *,
    mode: int = 0o644,
    owner: tuple[int, int] | None = None,
    sync: bool = True,
) -> None:
    """Write a file atomically: temporary file beside it, fsync, rename, fsync of the folder.

    Args:
        data: its content, or the pieces of it in order.
        owner: numeric user and group; None = whoever we are.
        sync: whether it must survive a power cut right after.
    """
    temporary = beside(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:  # around the opening too: a signal may come right after it
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if owner is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), *owner)
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sweep(folder: Path, *, older: float = 0.0) -> None:
    """Remove the temporary files that writers of ours left in a folder when they were killed.

    Args:
        older: seconds that one must be old; for folders where somebody may be writing now.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime >= older:
                path.unlink()


@contextmanager
def in_memory(data: bytes) -> Iterator[Path]:
    """Give a file that lies on no disk: for a secret that another program reads from a file.

    It is a descriptor of this process, which a program of the same user opens by its path. It is
    gone when the context ends, and with the process, however that ends.
    """
    descriptor = os.memfd_create("iotops", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, owner: tuple[int, int] | None = None, mode: int = 0o755) -> None:
    """Make a folder that has this mode whatever the umask, which is 0077 under a timer."""
    folder.mkdir(mode=mode)
    folder.chmod(mode)
    if owner is not None and os.geteuid() == 0:
        os.chown(folder, *owner)


def make_folders(folder: Path, *, owner: tuple[int, int] | None = None) -> None:
    """Make a folder, and those above it that are missing, so that everybody can enter them."""
    for one in reversed(missing_folders(folder)):
        make_folder(one, owner=owner)


def missing_folders(folder: Path) -> tuple[Path, ...]:
    """Name a folder and those above it, as far as they do not exist; the innermost first."""
    return tuple(one for one in (folder, *folder.parents) if not one.exists())


def sync_folder(folder: Path) -> None:
    """Make a folder's entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(folder: Path) -> None:
    """Flush the whole file system that holds a folder (restic's restorer does not)."""
    import ctypes

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            os.sync()
    finally:
        os.close(descriptor)


def copy_plain(source: Path, target: Path, within: Path | None = None) -> os.stat_result:
    """Copy one regular file with mode, owner, times and attributes; it appears by rename.

    A file that is being appended to is copied as it was at one moment: the copy is compared with
    the beginning of the source once more. Holes stay holes.

    Args:
        within: the folder that the source must really lie in; see `open_plain`.

    Returns:
        The source's state as it was copied.

    Raises:
        CaptureError: it kept changing while it was copied.
        OSError: it is gone, unreadable, or not a regular file.
    """
    temporary = beside(target)
    for attempt in range(ATTEMPTS):
        try:
            with open_plain(source, within) as reader:
                before = os.fstat(reader)
                fresh = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) < RACY_NS
                _copy_bytes(reader, temporary, before)
                same = _state(before) == _state(os.fstat(reader))
                if fresh if same else attempt == ATTEMPTS - 1:
                    same = _begins_with(reader, temporary)
            if same:
                temporary.replace(target)
                return before
        finally:
            temporary.unlink(missing_ok=True)
    raise CaptureError(
        f"{source} kept changing while it was copied",
        hint="declare the folder as one that is copied cold, or stop what writes to it",
    )


def _begins_with(reader: int, copy: Path) -> bool:
    """Tell whether an open file begins with exactly what a copy of it holds."""
    with open_plain(copy) as copied:
        state = os.fstat(copied)
        if os.fstat(reader).st_size < state.st_size:
            return False
        # What is a hole in both is equal without being read.
        pieces = {*_pieces(copied, state), *_pieces(reader, os.fstat(reader))}
        for start, end in sorted(pieces):
            for position in range(start, min(end, state.st_size), CHUNK):
                size = min(CHUNK, end - position, state.st_size - position)
                if os.pread(reader, size, position) != os.pread(copied, size, position):
                    return False
    return True


def _copy_bytes(reader: int, temporary: Path, state: os.stat_result) -> None:
    writer = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Not beyond the size it had: a file that grows as fast as it is read has no end.
        size = state.st_size
        for start, end in _pieces(reader, state):
            if (reached := _copy_piece(reader, writer, start, end)) < end:
                size = reached  # it was cut short meanwhile
                break
        os.ftruncate(writer, size)
        set_owner_mode(writer, state)
        attributes.carry(reader, writer)  # whoever stages it looks whether all came along
        os.utime(writer, ns=(state.st_mtime_ns, state.st_mtime_ns))
    finally:
        os.close(writer)


def _pieces(reader: int, state: os.stat_result) -> Iterator[tuple[int, int]]:
    """Give the parts of a file that are no holes, as (start, end)."""
    if state.st_blocks * 512 >= state.st_size:
        yield 0, state.st_size
        return
    position = 0
    while position < state.st_size:
        try:
            start = os.lseek(reader, position, os.SEEK_DATA)
            end = os.lseek(reader, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # not every file system can tell
                yield position, state.st_size
            return  # nothing but a hole is left
        yield start, min(end, state.st_size)
        position = end


def _copy_piece(reader: int, writer: int, position: int, end: int) -> int:
    """Copy a part of a file to the same place of another; tell how far it came."""
    try:
        while position < end:
            moved = os.copy_file_range(reader, writer, end - position, position, position)
            if moved == 0:
                return position
            position += moved
    except OSError:
        # Not every file system can; the plain way always does.
        while position < end:
            chunk = os.pread(reader, min(end - position, CHUNK), position)
            if not chunk:
                return position
            view = memoryview(chunk)
            while view:
                written = os.pwrite(writer, view, position)
                position, view = position + written, view[written:]
    return position


def set_owner_mode(descriptor: int, state: os.stat_result) -> None:
    """Give an open file the owner (when we are root) and permission bits of another.

    Not its set-uid and set-gid bits: what is copied as root must not become a way to be root, and
    a restore refuses a file that has them.
    """
    if os.geteuid() == 0:
        os.fchown(descriptor, state.st_uid, state.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(state.st_mode) & ~(stat.S_ISUID | stat.S_ISGID))


def _state(state: os.stat_result) -> tuple[int, int, int, int]:
    return (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def is_sqlite(path: Path) -> bool:
    """Tell whether a regular file begins as SQLite databases do."""
    try:
        with open_plain(path) as descriptor:
            return os.read(descriptor, len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError:
        return False


def is_sqlite_side(path: Path, ending: str) -> bool:
    """Tell whether a file beside a database is what SQLite itself keeps under that name.

    Args:
        ending: one of `SQLITE_SIDE_FILES`. The beginnings are those of the file format
            (sqlite.org/fileformat2.html and walformat.html); an ended journal is empty or zeroed.
    """
    try:
        with open_plain(path) as descriptor:
            head = os.read(descriptor, 8)
    except OSError:
        return False
    if head.strip(b"\x00") == b"":
        return True
    begins = {
        "-wal": (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"),
        "-shm": (b"\x18\xe2\x2d\x00", b"\x00\x2d\xe2\x18"),
        "-journal": (b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7",),
    }
    return head.startswith(begins[ending])


def copy_sqlite(
    source: Path, target: Path, *, wait: float = SQLITE_WAIT, within: Path | None = None
) -> None:
    """Copy a live SQLite database by its online backup, then check the copy.

    The source is opened read-only; a writer in another process is not disturbed. The copy has the
    source's owner and mode, no side files, and rollback journal mode, so that it can be opened
    anywhere. Its time of change is the newest of database and side files: in WAL mode the
    database itself keeps its own while its content changes.

    Args:
        wait: seconds that its program may keep it locked.
        within: the folder that the source must really lie in; see `open_plain`.

    Raises:
        DamagedDatabase: it is none, or the copy fails its integrity check.
        CaptureError: it is locked for too long, or cannot be opened.
        OSError: it is gone, unreadable, or not a regular file.
    """
    temporary = beside(target)
    with open_plain(source, within) as descriptor:  # refuses links and anything but a regular file
        state = os.fstat(descriptor)
    changed = max(mark.st_mtime_ns for mark in (state, *_sides(source).values()))
    try:
        if not _backup_closed(source, temporary):
            try:
                _backup(f"{_uri(source)}?mode=ro", temporary, wait)
            except sqlite3.OperationalError as error:
                # What its program left behind when it was killed must be rolled back, and that
                # cannot be done read-only: it is done in a copy.
                if not error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
                    raise
                _backup_unfinished(source, temporary)
        _check_database(temporary, source)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
        try:
            set_owner_mode(descriptor, state)
            attributes.carry(source, descriptor)
            os.utime(descriptor, ns=(changed, changed))
        finally:
            os.close(descriptor)
        temporary.replace(target)
    except sqlite3.OperationalError as error:
        raise CaptureError(f"copying the database {source} failed: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(source, str(error)) from error
    finally:
        _remove_database(temporary)


def _backup(uri: str, target: Path, wait: float) -> None:
    ends = time.monotonic() + wait

    def look(status: int, remaining: int, total: int) -> None:
        # Called after each try, also after one that met a lock: without it there is no end.
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > ends:
            raise CaptureError(
                f"the database stayed locked for {wait:.0f} s",
                hint="declare the folder as one that is copied cold",
            )

    _remove_database(target)
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=min(5.0, wait))) as reader,
        closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer, progress=look)


def _backup_closed(source: Path, target: Path) -> bool:
    """Copy a database in WAL mode that nobody has open, leaving no side files beside it.

    Returns:
        False: it is not such a one, or it was opened meanwhile; nothing is copied then.
    """
    with open_plain(source) as descriptor:
        head = os.read(descriptor, 20)
    if head[18:20] != b"\x02\x02" or _sides(source):
        return False  # whoever has one open in WAL mode keeps both side files there
    before = source.stat(follow_symlinks=False)
    _backup(f"{_uri(source)}?mode=ro&immutable=1", target, SQLITE_WAIT)
    return not _sides(source) and _state(source.stat(follow_symlinks=False)) == _state(before)


def _backup_unfinished(source: Path, target: Path) -> None:
    """Copy a database with the side files of an unfinished change, and finish it in the copy."""
    _remove_database(target)
    before = {ending: _state(side) for ending, side in _sides(source).items()}
    for ending in ("", *(e for e in before if e != "-shm")):
        copy_plain(source.with_name(source.name + ending), target.with_name(target.name + ending))
    if before != {ending: _state(side) for ending, side in _sides(source).items()}:
        raise CaptureError(f"the database {source} kept changing while it was copied")


def _check_database(copy: Path, source: Path) -> None:
    with closing(sqlite3.connect(copy)) as writer:
        writer.execute("PRAGMA journal_mode=DELETE")
        verdict = str(writer.execute("PRAGMA integrity_check").fetchone()[0])
    if verdict != "ok":
        raise _damaged(source, verdict.splitlines()[0])


def _damaged(source: Path, how: str) -> DamagedDatabase:
    return DamagedDatabase(
        f"the database {source} is damaged: {how}",
        hint="repair it or restore it from an older snapshot: iotops snapshots",
    )


def _sides(source: Path) -> dict[str, os.stat_result]:
    found = {}
    for ending in SQLITE_SIDE_FILES:
        try:
            found[ending] = source.with_name(source.name + ending).lstat()
        except OSError:
            continue  # not there; or a name that is too long to have one
    return found


def _uri(path: Path) -> str:
    from urllib.parse import quote

    return "file:" + quote(os.fsencode(path))


def _remove_database(path: Path) -> None:
    path.unlink(missing_ok=True)  # its name is one of ours, hence short enough for the endings
    for ending in SQLITE_SIDE_FILES:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder and everything in it; a folder that is not there is fine."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def open_mode(path: Path) -> int:
    """Give the mode of a file that others than its owner can get at, 0 of one that they cannot."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return mode if mode & 0o077 else 0


def tree_bytes(folder: Path) -> int:
    """Sum the sizes of the regular files in a folder (bytes); what vanishes does not count."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                state = (Path(top) / name).lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(state.st_mode):
                total += state.st_size
    return total


def free_bytes(folder: Path) -> int:
    """Give the bytes that can still be written to a folder's file system by root."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def require_space(folder: Path, needed: int, *, doing: str) -> None:
    """Refuse when a file system has not enough room.

    Args:
        needed: bytes about to be written; a reserve of 64 MiB is added.

    Raises:
        NoSpace: with both numbers.
    """
    free = free_bytes(folder)
    if free < needed + (64 << 20):
        raise NoSpace(
            f"{doing} needs {needed / 1e6:.0f} MB on the file system of {folder};"
            f" {free / 1e6:.0f} MB are free",
            hint=f"make room there and try again (look: df -h {folder})",
        )
