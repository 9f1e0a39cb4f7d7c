"""Writes small TSM and tombstone files, for tests that need ones no server would make on demand.

Values are left out: nothing in the product reads them. Times are written in each of the three
encodings (influxdb v2.9.1, `tsdb/engine/tsm1/timestamp.go`).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 60)
"""simple8b: bits per value of the selectors 2 to 15; as many values as fit into 60 bits."""


def uvarint(value: int) -> bytes:
    """Encode an unsigned number, seven bits a byte."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def raw_times(times: Sequence[int]) -> bytes:
    """Encode times as plain differences."""
    deltas = [later - earlier for earlier, later in pairwise(times)]
    return b"\x00" + b"".join(struct.pack(">q", number) for number in (times[0], *deltas))


def run_times(first: int, step: int, count: int, power: int = 0) -> bytes:
    """Encode evenly spaced times; `step` is in units of ten to the `power`."""
    return bytes([0x20 | power]) + struct.pack(">q", first) + uvarint(step) + uvarint(count)


def packed_times(times: Sequence[int], power: int = 0) -> bytes:
    """Encode times as simple8b words; each difference must be divisible by ten to the `power`."""
    deltas = [(b - a) // 10**power for a, b in pairwise(times)]
    out = bytes([0x10 | power]) + struct.pack(">q", times[0])
    while deltas:
        ones = next((n for n in (240, 120) if deltas[:n] == [1] * n), 0)
        if ones:
            out += struct.pack(">Q", (0 if ones == 240 else 1) << 60)
            deltas = deltas[ones:]
            continue
        selector, bits = next(
            (selector, bits)
            for selector, bits in enumerate(BITS, start=2)
            if len(deltas) >= 60 // bits
            and all(number < 1 << bits for number in deltas[: 60 // bits])
        )
        part = deltas[: 60 // bits]
        word = selector << 60
        for at, number in enumerate(part):
            word |= number << at * bits
        out += struct.pack(">Q", word)
        deltas = deltas[len(part) :]
    return out


def block(times: bytes, kind: int = 0) -> bytes:
    """Make a block of encoded times and one byte in the place of its values."""
    data = bytes([kind]) + uvarint(len(times)) + times + b"\x10"
    return struct.pack(">I", zlib.crc32(data)) + data


def write_tsm(path: Path, keys: Mapping[bytes, Sequence[tuple[Sequence[int], bytes]]]) -> None:
    """Write a TSM file: for every key its blocks, each as times and the same times encoded."""
    body = b"\x16\xd1\x16\xd1\x01"
    index = b""
    for key in sorted(keys):
        index += struct.pack(">H", len(key)) + key + struct.pack(">BH", 0, len(keys[key]))
        for times, encoded in keys[key]:
            data = block(encoded)
            index += struct.pack(">qqqI", times[0], times[-1], len(body), len(data))
            body += data
    path.write_bytes(body + index + struct.pack(">Q", len(body)))


def write_tombstone(
    path: Path, members: Sequence[Sequence[tuple[bytes, int, int]]], version: int = 4
) -> None:
    """Write a tombstone file; version 4 holds one gzip member for every delete."""

    def records(ranges: Sequence[tuple[bytes, int, int]]) -> bytes:
        return b"".join(
            struct.pack(">I", len(key)) + key + struct.pack(">qq", first, last)
            for key, first, last in ranges
        )

    body = struct.pack(">I", 0x1500 + version)
    for member in members:
        body += gzip.compress(records(member)) if version > 2 else records(member)
    path.write_bytes(body)
