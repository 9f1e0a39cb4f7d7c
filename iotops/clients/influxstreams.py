"""The two streams of InfluxDB's backup API, checked to their last byte while they arrive.

A server that fails in the middle of either answers 200 all the same and appends its error text,
so that nothing but the structure tells whole from broken: the closing delimiter of the multipart
body, the 1,024 zero bytes at the end of a tar (`http/backup_service.go`, `tsdb/engine/tsm1/
engine.go`, v2.9.1). Memory stays at one chunk. Not here: HTTP itself (`http.py`), and what the
files say inside (`tsm.py`).
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from iotops.errors import ServerError

Read = Callable[[int], bytes]
"""Gives up to so many bytes; empty at the end."""

CHUNK = 1 << 20
_HEADERS_LIMIT = 8192
_BLOCK = tarfile.BLOCKSIZE
_TRAILER = 2 * _BLOCK
_NAME = re.compile(r"\d{1,20}-\d{1,20}\.(tsm|tombstone)")
_MESSAGE = re.compile(rb'"message"\s*:\s*"((?:[^"\\]|\\.)*)"')


class StreamError(ServerError):
    """The server's stream ended early or is not what it must be; nothing of it may be used."""


def _broken(what: str, tail: bytes) -> StreamError:
    """Make the error; the server's own words may be the last thing that arrived."""
    said = _MESSAGE.search(tail)
    words = f" (it says: {said[1].decode('utf-8', 'replace')[:200]})" if said else ""
    return StreamError(
        f"{what}{words}",
        hint="look into the server's log: iotops logs influxdb; then try again",
    )


def save_parts(read: Read, content_type: str, targets: dict[str, Path]) -> None:
    """Save the parts of a `multipart/mixed` body into files.

    Args:
        read: the body.
        content_type: the answer's header; it names the boundary.
        targets: where each part goes, by its name, in the order they must come.

    Raises:
        StreamError: a part is missing, unknown or out of order, or the closing delimiter did not
            come as the very last thing.
        OSError: a target cannot be written.
    """
    match = re.search(r'boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?', content_type)
    if not content_type.lower().startswith("multipart/") or match is None:
        raise StreamError(f"the backup metadata came as {content_type or 'nothing'}, not in parts")
    body = _Parts(read, b"\r\n--" + match[1].encode())
    body.skip_to_first()
    for name, path in targets.items():
        found = body.header()
        if found != name:
            raise _broken(f"the backup metadata has the part {found!r} instead of {name!r}", b"")
        with path.open("wb") as file:
            body.copy(file)
    if not body.closed():
        raise _broken("the backup metadata does not end with its closing delimiter", body.tail)


class _Parts:
    """A multipart body, read once from front to back."""

    def __init__(self, read: Read, delimiter: bytes) -> None:
        self._read = read
        self._delimiter = delimiter
        self._buffer = b"\r\n"  # so that the first delimiter looks like every other
        self._ended = False
        self.tail = b""

    def _more(self) -> bool:
        data = b"" if self._ended else self._read(CHUNK)
        self._ended = not data
        self._buffer += data
        return not self._ended

    def skip_to_first(self) -> None:
        """Take the first delimiter, which must be the first thing."""
        while len(self._buffer) < len(self._delimiter) and self._more():
            pass
        if not self._buffer.startswith(self._delimiter):
            raise _broken("the backup metadata does not begin with a part", self._buffer[:400])
        self._buffer = self._buffer[len(self._delimiter) :]

    def header(self) -> str:
        """Take a part's header lines and give its name; empty when there is no further part."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _HEADERS_LIMIT or not self._more():
                if self._buffer.startswith(b"--"):
                    return ""
                raise _broken("the backup metadata ends inside a header", self._buffer[-400:])
        lines = self._buffer[:end].decode("utf-8", "replace")
        self._buffer = self._buffer[end + 4 :]
        name = re.search(r'\bname="([^"]*)"', lines)
        return name[1] if name is not None else ""

    def copy(self, file: BinaryIO) -> None:
        """Write a part's content and take the delimiter after it."""
        keep = len(self._delimiter) - 1
        while (end := self._buffer.find(self._delimiter)) < 0:
            ready = max(0, len(self._buffer) - keep)
            file.write(self._buffer[:ready])
            self.tail = (self.tail + self._buffer[:ready])[-400:]
            self._buffer = self._buffer[ready:]
            if not self._more():
                raise _broken("the backup metadata was cut short", self.tail + self._buffer)
        file.write(self._buffer[:end])
        self._buffer = self._buffer[end + len(self._delimiter) :]

    def closed(self) -> bool:
        """Tell whether the delimiter just taken was the closing one, and the end."""
        while self._more() and len(self._buffer) < _HEADERS_LIMIT:
            pass
        self.tail = self._buffer[:400]
        return self._buffer.rstrip(b"\r\n") == b"--"


def unpack_shard(read: Read, prefix: str, folder: Path) -> list[str]:
    """Unpack a shard's tar, keeping owner, mode and time of its files.

    Args:
        read: the body.
        prefix: what every name in it must begin with: `<bucket>/autogen/<shard>/`.
        folder: an existing folder that receives the files by their last name.

    Returns:
        The names of the files, in the tar's order; none for an empty shard.

    Raises:
        StreamError: it does not parse to its trailer, something follows that, or a name is not
            one that a shard's file can have.
        OSError: a file cannot be written.
    """
    what = f"the copy of shard {prefix.rstrip('/')}"
    source = _Exactly(read, what)
    names: list[str] = []
    while (block := source.get(_BLOCK)).strip(b"\0"):
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise _broken(f"{what} is not a whole tar", block) from None
        name = entry.name.removeprefix(prefix)
        if not entry.isreg() or not entry.name.startswith(prefix) or not _NAME.fullmatch(name):
            raise _broken(f"{what} holds {entry.name!r}, which is not a shard's file", b"")
        if name in names:
            raise _broken(f"{what} holds {name} twice", b"")
        with (folder / name).open("xb") as file:
            source.copy(file, entry.size)
            if os.geteuid() == 0:
                os.fchown(file.fileno(), entry.uid, entry.gid)
            os.fchmod(file.fileno(), entry.mode & 0o777)
        os.utime(folder / name, (entry.mtime, entry.mtime))
        names.append(name)
    rest = source.get(_TRAILER - _BLOCK).strip(b"\0") + read(_BLOCK)
    if rest:
        raise _broken(f"{what} does not end as a tar must", rest)
    return names


class _Exactly:
    """Turns a reader of any-length pieces into one of exact lengths."""

    def __init__(self, read: Read, what: str) -> None:
        self._read = read
        self._what = what
        self._tail = b""

    def get(self, size: int) -> bytes:
        """Give exactly `size` bytes."""
        data = b""
        while len(data) < size:
            piece = self._read(size - len(data))
            if not piece:
                raise _broken(f"{self._what} was cut short", self._tail + data)
            data += piece
        return data

    def copy(self, file: BinaryIO, size: int) -> None:
        """Write exactly `size` bytes into a file and skip the padding after them."""
        left = size
        while left:
            piece = self._read(min(left, CHUNK))
            if not piece:
                raise _broken(f"{self._what} was cut short", self._tail)
            file.write(piece)
            self._tail = (self._tail + piece)[-400:]
            left -= len(piece)
        self.get(-size % _BLOCK)
