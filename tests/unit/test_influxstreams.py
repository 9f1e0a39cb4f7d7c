"""The structure checks of InfluxDB's backup streams: whole or refused, wherever it breaks."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotops.clients.influxstreams import StreamError, save_parts, unpack_shard

pytestmark = pytest.mark.unit

BOUNDARY = "0123456789abcdef" * 3
KIND = f"multipart/mixed; boundary={BOUNDARY}"
PREFIX = "00000000000000aa/autogen/7/"


def multipart(parts: dict[str, bytes]) -> bytes:
    """Make a body as Go's multipart writer does."""
    out = b""
    for number, (name, content) in enumerate(parts.items()):
        out += b"\r\n" if number else b""
        out += f"--{BOUNDARY}\r\n".encode()
        out += f'Content-Disposition: attachment; name="{name}"\r\n'.encode()
        out += b"Content-Type: application/octet-stream\r\n\r\n" + content
    return out + f"\r\n--{BOUNDARY}--\r\n".encode()


def reader(body: bytes, sizes: list[int]) -> Callable[[int], bytes]:
    """Give a body in pieces of the given sizes, over and over."""
    stream = io.BytesIO(body)
    turn = iter(sizes * (len(body) + 2))
    return lambda size: stream.read(min(size, next(turn)))


def parts_of(body: bytes, sizes: list[int], kind: str = KIND) -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        targets = {part: Path(name) / part for part in ("kv", "sql", "buckets")}
        save_parts(reader(body, sizes), kind, targets)
        return {part: path.read_bytes() for part, path in targets.items()}


# What looks like a delimiter and is none is the hard part of such a body.
near = st.lists(
    st.sampled_from([b"\r\n", b"--", b"\r\n--", BOUNDARY[:20].encode(), b"\r\n--" + b"0123", b"x"])
).map(b"".join)


@settings(deadline=None)
@given(near, near, near, st.lists(st.integers(1, 70), min_size=1, max_size=4))
def test_parts_come_out_as_they_went_in(
    kv: bytes, sql: bytes, buckets: bytes, sizes: list[int]
) -> None:
    parts = {"kv": kv, "sql": sql, "buckets": buckets}
    assert parts_of(multipart(parts), sizes) == parts


WHOLE = multipart({"kv": b"store", "sql": b"tables", "buckets": b"[]"})


def test_every_cut_is_refused_but_the_last_line_break() -> None:
    for length in range(len(WHOLE) - 2):
        with pytest.raises(StreamError):
            parts_of(WHOLE[:length], [1000])
        with pytest.raises(StreamError):
            parts_of(WHOLE[:length] + b'{"message":"disk full"}', [7])
    assert parts_of(WHOLE[:-2], [1000])["kv"] == b"store"


def test_the_servers_own_words_are_repeated() -> None:
    with pytest.raises(StreamError, match="disk quota exceeded") as caught:
        parts_of(WHOLE[:200] + b'{"code":"internal error","message":"disk quota exceeded"}', [9])
    assert "log" in caught.value.hint


@pytest.mark.parametrize(
    "parts",
    [
        {"kv": b"a", "sql": b"b"},
        {"sql": b"b", "kv": b"a", "buckets": b"c"},
        {"kv": b"a", "sql": b"b", "other": b"c"},
        {"kv": b"a", "sql": b"b", "buckets": b"c", "more": b"d"},
    ],
)
def test_missing_foreign_and_swapped_parts_are_refused(parts: dict[str, bytes]) -> None:
    with pytest.raises(StreamError):
        parts_of(multipart(parts), [33])


@pytest.mark.parametrize(
    "kind", ["", "application/json", "multipart/mixed", "multipart/mixed; x=1"]
)
def test_another_kind_of_answer_is_refused(kind: str) -> None:
    with pytest.raises(StreamError, match="not in parts"):
        parts_of(WHOLE, [100], kind)


# -- tar ---------------------------------------------------------------------------------------


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime, info.type, info.linkname = (
        size,
        0o640,
        1_700_000_000,
        kind,
        link,
    )
    return info.tobuf(tarfile.USTAR_FORMAT)


def tar(*members: tuple[str, bytes]) -> bytes:
    out = b""
    for name, content in members:
        out += entry(PREFIX + name, len(content)) + content + bytes(-len(content) % 512)
    return out + bytes(1024)


def unpacked(body: bytes, sizes: list[int]) -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        names = unpack_shard(reader(body, sizes), PREFIX, Path(name))
        assert sorted(names) == sorted(path.name for path in Path(name).iterdir())
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


TWO = tar(("000000001-000000001.tombstone", b"t" * 30), ("000000001-000000001.tsm", b"s" * 700))


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=4))
def test_files_come_out_as_they_went_in(sizes: list[int]) -> None:
    assert unpacked(TWO, sizes) == {
        "000000001-000000001.tombstone": b"t" * 30,
        "000000001-000000001.tsm": b"s" * 700,
    }


def test_mode_and_time_come_along(tmp_path: Path) -> None:
    unpack_shard(reader(TWO, [4096]), PREFIX, tmp_path)
    state = (tmp_path / "000000001-000000001.tsm").stat()
    assert (state.st_mode & 0o777, state.st_mtime) == (0o640, 1_700_000_000)


def test_an_empty_shard_is_its_trailer_only() -> None:
    assert unpacked(bytes(1024), [100]) == {}


def test_every_cut_of_a_tar_is_refused() -> None:
    for length in range(len(TWO)):
        with pytest.raises(StreamError):
            unpacked(TWO[:length], [4096])


@pytest.mark.parametrize("more", [b"\0", b"{", bytes(512), b'{"message":"gone"}'])
def test_anything_after_the_end_is_refused(more: bytes) -> None:
    with pytest.raises(StreamError, match="does not end"):
        unpacked(TWO + more, [4096])


@pytest.mark.parametrize(
    "head",
    [
        entry("/etc/passwd"),
        entry("00000000000000aa/autogen/8/000000001-000000001.tsm"),
        entry(PREFIX + "../000000001-000000001.tsm"),
        entry(PREFIX + "sub/000000001-000000001.tsm"),
        entry(PREFIX + "fields.idx"),
        entry(PREFIX + "000000001-000000001.tsm", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        entry(PREFIX + "000000001-000000001.tsm", kind=tarfile.DIRTYPE),
    ],
)
def test_names_and_kinds_that_no_shard_has_are_refused(head: bytes) -> None:
    with pytest.raises(StreamError, match="not a shard's file"):
        unpacked(head + bytes(1024), [4096])


def test_the_same_name_twice_is_refused() -> None:
    twice = ("000000001-000000001.tsm", b"x")
    with pytest.raises(StreamError, match="twice"):
        unpacked(tar(twice, twice), [4096])
