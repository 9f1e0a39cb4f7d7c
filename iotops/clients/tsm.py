"""InfluxDB's files, read without InfluxDB: TSM, tombstones, and the length of a bolt file.

A captured file counts as captured only after its checksums were checked, and the points in it
are what a restore is compared with. This door reads; it never opens a file for writing, and it
raises nothing but `TsmError` (and `OSError` turned into one), whatever the bytes are. It reads
with `pread`, not with a memory map: a bad sector under a map ends the process by SIGBUS, under a
read it is an error with a name. Not here: which files belong together, and what to do when one
is damaged (`services/influxdb.py`).

Formats as in influxdb v2.9.1, `tsdb/engine/tsm1/{writer,reader,timestamp,tombstone}.go`, and
bbolt's `page.go` and `meta.go`.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from iotops.errors import IotopsError

MAGIC = b"\x16\xd1\x16\xd1\x01"
"""The first five bytes of every TSM file: the magic number and version 1."""

EARLIEST = -(2**63)
LATEST = 2**63 - 1
"""The bounds of a time in nanoseconds; a tombstone with both deletes the whole series."""

_ENTRY = struct.Struct(">qqqI")
_KEY_LIMIT = 0xFFFF
_CHUNK = 1 << 20
_POINTS_LIMIT = 1 << 20
"""Far over the 10,000 points of InfluxDB's largest blocks; more is damage, not data."""

_WORD_POINTS = (240, 120, 60, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1)
_WORD_BITS = (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 60)
_POINTS_BY_BYTE = bytes(_WORD_POINTS[byte >> 4] for byte in range(256))
"""simple8b: how many values the 64-bit word holds whose highest byte is the index."""


class TsmError(IotopsError):
    """A file of InfluxDB's storage is damaged, cut short, or not what its name says."""


@dataclass
class Span:
    """What one series field holds in one file: number of points and the time they cover (ns)."""

    points: int = 0
    first: int = LATEST
    last: int = EARLIEST


@dataclass(frozen=True)
class Inventory:
    """What a checked TSM file holds.

    Args:
        spans: points and time by (measurement, field), as the server shows these names.
        keys: number of series fields.
        blocks: number of blocks, each with a correct checksum.
        size: length of the file in bytes.
    """

    spans: Mapping[tuple[str, str], Span]
    keys: int
    blocks: int
    size: int

    @property
    def first(self) -> int:
        """Time of the earliest point in nanoseconds."""
        return min((span.first for span in self.spans.values()), default=LATEST)

    @property
    def last(self) -> int:
        """Time of the latest point in nanoseconds."""
        return max((span.last for span in self.spans.values()), default=EARLIEST)

    def by_measurement(self) -> dict[str, int]:
        """Return the number of points of every measurement, over all its fields."""
        found: dict[str, int] = {}
        for (measurement, _), span in self.spans.items():
            found[measurement] = found.get(measurement, 0) + span.points
        return found


@dataclass(frozen=True)
class Tombstone:
    """A deleted range: points of `key` with `first` <= time <= `last` (ns) are gone."""

    key: bytes
    first: int
    last: int


def names(key: bytes) -> tuple[str, str]:
    """Return measurement and field of an index key, as the server shows them.

    A key is the series key in line protocol, `#!~#`, and the field's name.
    """
    series, _, field = key.partition(b"#!~#")
    end = 0
    while (end := series.find(b",", end)) > 0 and series[end - 1 : end] == b"\\":
        end += 1
    measurement = series if end < 0 else series[:end]
    measurement = measurement.replace(b"\\,", b",").replace(b"\\ ", b" ")
    return measurement.decode("utf-8", "replace"), field.decode("utf-8", "replace")


def _uvarint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the unsigned varint at `at` and the position after it."""
    value = shift = 0
    for byte in data[at : at + 10]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise TsmError("a number runs over the end of its block")


def count_times(data: bytes | memoryview) -> int:
    """Return how many points a block's time part holds, without decoding them.

    Args:
        data: the encoded times, first byte included.
    """
    if len(data) < 9:
        raise TsmError("a block's times are cut short")
    encoding = data[0] >> 4
    if encoding == 1:
        if len(data) % 8 != 1:
            raise TsmError("a block's packed times end inside a word")
        points = 1 + sum(bytes(data[9::8]).translate(_POINTS_BY_BYTE))
    elif encoding == 2:
        _, at = _uvarint(data, 9)
        points, _ = _uvarint(data, at)
    elif encoding == 0:
        if len(data) % 8 != 1:
            raise TsmError("a block's raw times end inside a number")
        points = len(data) // 8
    else:
        raise TsmError(f"a block's times are in the unknown encoding {encoding}")
    if not 0 < points <= _POINTS_LIMIT:
        raise TsmError(f"a block claims {points} points")
    return points


def decode_times(data: bytes | memoryview) -> Sequence[int]:
    """Return the times (ns) of a block's time part, ascending as they were written."""
    points = count_times(data)
    scale = 10 ** (data[0] & 0xF)
    first: int = struct.unpack_from(">q", data, 1)[0]
    if data[0] >> 4 == 2:
        delta = _uvarint(data, 9)[0] * scale
        if points == 1 or delta == 0:
            return [first] * points
        return range(first, first + points * delta, delta)
    if data[0] >> 4 == 0:
        deltas = [number for (number,) in struct.iter_unpack(">q", data[9:])]
    else:
        deltas = []
        for (word,) in struct.iter_unpack(">Q", data[9:]):
            bits = _WORD_BITS[word >> 60]
            count = _WORD_POINTS[word >> 60]
            if bits == 0:  # selectors 0 and 1: a run of ones, no payload
                deltas += [scale] * count
                continue
            mask = (1 << bits) - 1
            deltas += [(word >> at & mask) * scale for at in range(0, bits * count, bits)]
    times = [first]
    for delta in deltas:
        first += delta
        times.append(first)
    return times


class TsmFile:
    """An open TSM file; a context manager. Opening checks header and footer only.

    Raises:
        TsmError: not a TSM file, cut short, or not readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise TsmError(f"cannot open {path}: {_reason(error)}") from error
        try:
            self.size = os.fstat(self._fd).st_size
            if self.size < len(MAGIC) + 8 or self.read(0, len(MAGIC)) != MAGIC:
                raise self.fault("does not begin as a TSM file does")
            (self.index_at,) = struct.unpack(">Q", self.read(self.size - 8, 8))
            if not len(MAGIC) <= self.index_at < self.size - 8:
                raise self.fault("has no index where its end points to")
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fault(self, what: str) -> TsmError:
        """Return the error that says `what` is wrong with this file."""
        return TsmError(
            f"{self.path} {what}",
            hint="influxd inspect verify-tsm --engine-path ENGINE shows what the server makes of "
            "it; an older snapshot may hold the file whole",
        )

    def read(self, at: int, size: int) -> bytes:
        """Return exactly `size` bytes from `at`."""
        try:
            data = os.pread(self._fd, size, at)
            while len(data) < size:  # a signal may cut a large read short
                more = os.pread(self._fd, size - len(data), at + len(data))
                if not more:
                    raise self.fault(f"ends at byte {at + len(data)}, inside a block or its index")
                data += more
        except OSError as error:
            raise self.fault(f"cannot be read at byte {at}: {_reason(error)}") from error
        return data

    def index(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key with its packed block entries (28 bytes each), in the file's order.

        The index is read in pieces: it may be large, and only one piece is held.

        Raises:
            TsmError: keys not ascending, or the index does not end where it must.
        """
        end = self.size - 8
        at = self.index_at
        buffer = b""
        begin = 0  # position in `buffer` of the byte at `at`
        last = b""
        while at < end:
            if len(buffer) - begin < 4 * _KEY_LIMIT and at + len(buffer) - begin < end:
                buffer = self.read(at, min(_CHUNK, end - at))
                begin = 0
            length = int.from_bytes(buffer[begin : begin + 2])
            head = begin + 2 + length + 3
            if head > len(buffer):
                raise self.fault("has a key that runs over the end of its index")
            key = buffer[begin + 2 : head - 3]
            size = int.from_bytes(buffer[head - 2 : head]) * _ENTRY.size
            if size == 0 or at + head - begin + size > end:
                raise self.fault("has a block list that runs over the end of its index")
            if key <= last:
                raise self.fault("has an index whose keys are not in order")
            at += head - begin
            if head + size <= len(buffer):
                yield key, buffer[head : head + size]
                begin = head + size
            else:
                yield key, self.read(at, size)
                buffer, begin = b"", 0
            at += size
            last = key

    def times(self, at: int, size: int) -> bytes:
        """Return the encoded times of the block at `at`; its checksum is not looked at."""
        if not (len(MAGIC) <= at and size > 14 and at + size <= self.index_at):
            raise self.fault("has an index entry that points outside its blocks")
        data = self.read(at + 4, size - 4)
        length, begin = _uvarint(data, 1)
        if begin + length > len(data):
            raise self.fault(f"has a block at byte {at} whose times run over its end")
        return data[begin : begin + length]


def _reason(error: OSError | ValueError) -> str:
    """Return the system's words for `error`, without the path that it repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class _Blocks:
    """Reads the blocks of a file in rising order through one buffer."""

    def __init__(self, file: TsmFile) -> None:
        self._file = file
        self._buffer = memoryview(b"")
        self._at = 0

    def get(self, at: int, size: int) -> memoryview:
        """Return `size` bytes from `at`; the view is good until the next call."""
        begin = at - self._at
        if begin < 0 or begin + size > len(self._buffer):
            room = min(max(_CHUNK, size), self._file.index_at - at)
            self._buffer = memoryview(self._file.read(at, room))
            self._at = at
            begin = 0
        return self._buffer[begin : begin + size]


def check_tsm(path: Path, moved: Callable[[int], None] | None = None) -> Inventory:
    """Check every byte of a TSM file that has a checksum, and count its points.

    The index has no checksum of its own; it must parse to its end, its keys must ascend, its
    blocks must lie inside the file in the order of time, and every block must begin at the time
    its entry says.

    Args:
        path: the file.
        moved: called with the number of bytes checked since the last call, about every MiB.

    Returns:
        what the file holds. Points rewritten inside the same shard are counted once per file.

    Raises:
        TsmError: any of this does not hold, or the file cannot be read.
    """
    spans: dict[tuple[str, str], Span] = {}
    keys = blocks = reported = done = 0
    with TsmFile(path) as file:
        source = _Blocks(file)
        for key, entries in file.index():
            keys += 1
            name = names(key)
            span = spans.get(name)
            if span is None:
                span = spans[name] = Span()
            before = EARLIEST
            for first, last, at, size in _ENTRY.iter_unpack(entries):
                if not (len(MAGIC) <= at and at + size <= file.index_at and size > 14):
                    raise file.fault("has an index entry that points outside its blocks")
                if not before <= first <= last:
                    raise file.fault("has an index whose blocks are not in the order of time")
                span.points += _check_block(file, source, first, at, size)
                span.first = min(span.first, first)
                span.last = max(span.last, last)
                before = last
                blocks += 1
                done += size
                if moved is not None and done - reported >= _CHUNK:
                    moved(done - reported)
                    reported = done
        if moved is not None:
            moved(file.size - reported)
        return Inventory(spans, keys, blocks, file.size)


def _check_block(file: TsmFile, source: _Blocks, first: int, at: int, size: int) -> int:
    """Check the block of `size` bytes at `at` and return its number of points."""
    data = source.get(at, size)
    if zlib.crc32(data[4:]) != int.from_bytes(data[:4]):
        raise file.fault(f"is damaged: the block at byte {at} does not have its checksum")
    if data[4] > 4:
        raise file.fault(f"has a block of unknown type at byte {at}")
    try:
        length, begin = _uvarint(data, 5)
        if begin + length > size:
            raise TsmError("its times run over its end")
        points = count_times(data[begin : begin + length])
    except TsmError as error:
        raise file.fault(f"has a bad block at byte {at}: {error.message}") from None
    if struct.unpack_from(">q", data, begin + 1)[0] != first:
        raise file.fault(f"has an index that does not fit its block at byte {at}")
    return points


def read_tombstones(path: Path) -> Iterator[Tombstone]:
    """Yield the deleted ranges of a tombstone file, in the order they were written.

    Versions 2, 3 and 4 are read; the text format before them (InfluxDB 0.12) is refused. An empty
    file has no ranges, as for the server.

    Raises:
        TsmError: damaged, cut short, or of an unknown version.
    """
    try:
        with path.open("rb") as file:
            header = file.read(4)
            if not header:
                return
            version = int.from_bytes(header)
            if version == 0x1502:
                pieces = iter(lambda: file.read(_CHUNK), b"")
            elif version in (0x1503, 0x1504):
                pieces = _inflate(path, iter(lambda: file.read(_CHUNK), b""))
            else:
                raise TsmError(f"{path} is not a tombstone file of a known version")
            yield from _ranges(path, pieces)
    except (OSError, ValueError) as error:
        raise TsmError(f"cannot read {path}: {_reason(error)}") from error


def _inflate(path: Path, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of the gzip members in `pieces`, one after the other."""
    member = zlib.decompressobj(wbits=31)
    begun = False
    try:
        for piece in pieces:
            while piece:
                begun = True
                content = member.decompress(piece, _CHUNK)
                if content:
                    yield content
                if member.eof:
                    piece = member.unused_data
                    member = zlib.decompressobj(wbits=31)
                    begun = False
                else:
                    piece = member.unconsumed_tail
    except zlib.error as error:
        raise TsmError(f"{path} is damaged: {error}") from error
    if begun:
        raise TsmError(f"{path} is cut short")


def _ranges(path: Path, pieces: Iterable[bytes]) -> Iterator[Tombstone]:
    """Cut unpacked tombstone records out of `pieces` of any length."""
    buffer = b""
    for piece in pieces:
        buffer += piece
        at = 0
        while len(buffer) - at >= 4:
            length = int.from_bytes(buffer[at : at + 4])
            if length > _KEY_LIMIT:
                raise TsmError(f"{path} is damaged: a key of {length} bytes")
            end = at + 4 + length + 16
            if end > len(buffer):
                break
            first, last = struct.unpack_from(">qq", buffer, end - 16)
            yield Tombstone(buffer[at + 4 : end - 16], first, last)
            at = end
        buffer = buffer[at:]
    if buffer:
        raise TsmError(f"{path} ends inside a record")


class _Block:
    """One block of one key, read and decoded only when the counting needs its times."""

    __slots__ = ("_before", "_cuts", "_file", "_times", "at", "dropped", "first", "last", "size")

    def __init__(
        self,
        file: TsmFile,
        entry: tuple[int, int, int, int],
        cuts: Sequence[tuple[int, int]],
        before: int,
    ) -> None:
        self.first, self.last, self.at, self.size = entry
        self._file = file
        self._cuts = [cut for cut in cuts if cut[0] <= self.last and cut[1] >= self.first]
        self._before = before
        self._times: Sequence[int] | None = None
        self.dropped = 0

    @property
    def whole(self) -> bool:
        """Whether every point of the block counts: nothing deleted, nothing too late."""
        return not self._cuts and self.last < self._before

    def times(self) -> Sequence[int]:
        """Return the times that count, ascending; `dropped` then says how many do not."""
        if self._times is None:
            data = self._file.times(self.at, self.size)
            gone = self.first >= self._before or any(
                first <= self.first and self.last <= last for first, last in self._cuts
            )
            times = () if gone else decode_times(data)
            for first, last in reversed(self._cuts):
                begin, end = bisect_left(times, first), bisect_right(times, last)
                times = [*times[:begin], *times[end:]]
            self._times = times[: bisect_left(times, self._before)]
            self.dropped = count_times(data) - len(self._times)
        return self._times


def _shared(one: _Block, other: _Block) -> set[int]:
    """Return the times that both blocks hold; the larger is decoded only if it must be."""
    small, large = sorted((one, other), key=lambda block: block.size)
    times = small.times()
    inside = times[bisect_left(times, large.first) : bisect_right(times, large.last)]
    return set(inside).intersection(large.times()) if inside else set()


def _surplus(blocks: list[_Block]) -> int:
    """Return how many points of one key's blocks a query would not see."""
    surplus = 0
    active: list[_Block] = []
    for block in sorted(blocks, key=lambda block: block.first):
        if not block.whole:
            block.times()
            surplus += block.dropped
        active = [earlier for earlier in active if earlier.last >= block.first]
        twice: set[int] = set()
        for earlier in active:
            twice |= _shared(earlier, block)
        surplus += len(twice)
        active.append(block)
    return surplus


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same times as ascending ranges that do not touch each other."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def surplus(files: Sequence[tuple[Path, Path | None]], before: int = LATEST) -> dict[str, int]:
    """Count the points of a shard's files that a query would not return.

    The files' own counts minus this is what the server answers: a point written twice is counted
    once, a point under its file's tombstone and a point not before `before` are not counted. Only
    the indexes are read, and those blocks that overlap, are deleted from, or reach `before`.

    Args:
        files: every TSM file of the shard, with its tombstone file if there is one.
        before: points at this time (ns) or later do not count.

    Returns:
        points to take off by measurement; measurements without any are left out.

    Raises:
        TsmError: an index, a tombstone file or a block is damaged.
    """
    opened: list[TsmFile] = []
    found: dict[str, int] = {}
    try:
        sources = []
        for number, (path, stone) in enumerate(files):
            opened.append(TsmFile(path))
            cuts: dict[bytes, list[tuple[int, int]]] = {}
            for cut in read_tombstones(stone) if stone is not None else ():
                cuts.setdefault(cut.key, []).append((cut.first, cut.last))
            sources.append(_entries(opened[-1], number, cuts))
        for key, group in groupby(merge(*sources, key=lambda entry: entry[0]), lambda e: e[0]):
            blocks = []
            for _, number, entries, ranges in group:
                for entry in _ENTRY.iter_unpack(entries):
                    blocks.append(_Block(opened[number], entry, ranges, before))
            extra = _surplus(blocks)
            if extra:
                measurement = names(key)[0]
                found[measurement] = found.get(measurement, 0) + extra
    finally:
        for file in opened:
            file.close()
    return found


def _entries(
    file: TsmFile, number: int, cuts: Mapping[bytes, list[tuple[int, int]]]
) -> Iterator[tuple[bytes, int, bytes, Sequence[tuple[int, int]]]]:
    """Yield the index of a file with its number and the deleted ranges of every key."""
    for key, entries in file.index():
        yield key, number, entries, _joined(cuts[key]) if key in cuts else ()


def check_bolt(path: Path) -> None:
    """Check that a copied bolt database has its whole length.

    bolt's two meta pages hold the number of pages; the newer valid one counts, and a file
    written by a read transaction is exactly that long.

    Raises:
        TsmError: not a bolt file, both meta pages damaged, or cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1 << 17)  # two pages of at most 64 KiB
    except (OSError, ValueError) as error:
        raise TsmError(f"cannot read {path}: {_reason(error)}") from error
    best: tuple[int, int] | None = None
    page = int.from_bytes(head[24:28], "little")
    for at in {0, page if 512 <= page <= 1 << 16 else 0, 4096}:
        meta = head[at + 16 : at + 80]
        if len(meta) < 64 or meta[:8] != b"\xed\xda\x0c\xed\x02\x00\x00\x00":
            continue
        if _fnv(meta[:56]) != int.from_bytes(meta[56:], "little"):
            continue
        size_of_page, pages, change = struct.unpack("<8xI28x2Q", meta[:56])
        best = max(best or (0, 0), (change, size_of_page * pages))
    if best is None:
        raise TsmError(f"{path} is not a bolt database, or both its meta pages are damaged")
    if size != best[1]:
        raise TsmError(f"{path} has {size} bytes where its own count of pages says {best[1]}")


def _fnv(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash of `data`."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
