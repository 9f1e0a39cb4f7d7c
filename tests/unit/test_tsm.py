"""The reader of InfluxDB's files: what a real server wrote, and whatever bytes may come instead.

The samples in `tsm/` were written by InfluxDB 2.9.1, `counts.json` is what it answered itself
(`tests/support/tsm_samples.py` makes both).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotops.clients.tsm import (
    EARLIEST,
    LATEST,
    TsmError,
    TsmFile,
    check_bolt,
    check_tsm,
    count_times,
    decode_times,
    names,
    read_tombstones,
    surplus,
)
from tests.support import tsmwriter

pytestmark = pytest.mark.unit

SAMPLES = Path(__file__).parent / "tsm"
FILES = sorted(SAMPLES.glob("*.tsm"))
STONES = sorted(SAMPLES.glob("*.tombstone"))
PAIRS = [(path, path.with_suffix(".tombstone")) for path in FILES]


def counted(pairs: list[tuple[Path, Path | None]], before: int = LATEST) -> dict[str, int]:
    """Count as the ledger does: what each file holds, less what a query would not return."""
    found: dict[str, int] = {}
    for path, _ in pairs:
        for name, points in check_tsm(path).by_measurement().items():
            found[name] = found.get(name, 0) + points
    for name, points in surplus(pairs, before).items():
        found[name] -= points
    return {name: points for name, points in found.items() if points}


def test_a_real_shard_counts_as_its_server_counted_it() -> None:
    assert len(FILES) == 3 and len(STONES) == 3
    assert counted([*PAIRS]) == json.loads((SAMPLES / "counts.json").read_text())


def test_without_its_tombstones_the_same_shard_has_more() -> None:
    assert counted([(path, None) for path in FILES]) == {
        "even": 270,  # 60 of 195 points were written twice, in two fields
        "lone": 1,
        "uneven": 390,
        "we ird,name": 390,
    }


def test_the_inventory_names_fields_and_times() -> None:
    inventory = check_tsm(FILES[0])
    assert {field for _, field in inventory.spans} == {"float", "int", "text", "flag", "unsigned"}
    span = inventory.spans["even", "int"]
    assert (span.points, span.first, span.last) == (
        120,
        1_700_006_400 * 10**9,
        (1_700_006_400 + 1190) * 10**9,
    )
    assert inventory.size == FILES[0].stat().st_size
    assert inventory.first == span.first and inventory.last >= span.last


def test_points_at_or_after_the_moment_do_not_count() -> None:
    lone = 1_700_006_400 * 10**9
    assert "lone" not in counted([*PAIRS], lone)
    assert counted([*PAIRS], lone + 1)["lone"] == 1
    assert counted([*PAIRS], lone) == {}


def test_a_key_is_read_as_the_server_shows_it() -> None:
    assert names(rb"we\ ird\,name,a\ b=c\,d#!~#unsigned") == ("we ird,name", "unsigned")
    assert names(b"plain#!~#a b") == ("plain", "a b")
    assert names(b"m,k=v#!~#f#!~#g") == ("m", "f#!~#g")
    assert names(b"\xff,k=v#!~#\xfe") == ("�", "�")


# -- whatever comes instead --------------------------------------------------------------------


def refused(path: Path) -> str:
    """Give the message with which a file is refused."""
    with pytest.raises(TsmError) as caught:
        check_tsm(path)
    return caught.value.message


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = FILES[2].read_bytes()
    path = tmp_path / "cut.tsm"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert str(path) in refused(path)


def test_every_flipped_byte_of_blocks_and_header_is_found(tmp_path: Path) -> None:
    whole = FILES[2].read_bytes()
    with TsmFile(FILES[2]) as file:
        end = file.index_at
    path = tmp_path / "flipped.tsm"
    for at in range(end):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        refused(path)


def test_a_wrong_time_or_place_in_the_index_is_found(tmp_path: Path) -> None:
    path = tmp_path / "index.tsm"
    whole = bytearray(FILES[2].read_bytes())
    with TsmFile(FILES[2]) as file:
        at = file.index_at
        key, _ = next(file.index())
    entry = at + 2 + len(key) + 3
    for field, form in ((0, ">q"), (16, ">q"), (24, ">I")):
        changed = bytearray(whole)
        (value,) = struct.unpack_from(form, changed, entry + field)
        struct.pack_into(form, changed, entry + field, value + 1)
        path.write_bytes(changed)
        refused(path)


def test_an_index_out_of_order_is_refused(tmp_path: Path) -> None:
    """The server finds keys by halving: one out of place is a series lost."""
    path = tmp_path / "1.tsm"
    times = [1, 2]
    blocks = [(times, tsmwriter.raw_times(times))]
    tsmwriter.write_tsm(path, {b"aaaa#!~#f": blocks, b"bbbb#!~#f": blocks})
    whole = path.read_bytes()
    assert check_tsm(path).keys == 2
    for wrong in (b"aaaa#!~#f", b"AAAA#!~#f"):
        path.write_bytes(whole.replace(b"bbbb#!~#f", wrong))
        assert "not in order" in refused(path)


def test_missing_and_foreign_files_have_a_name_in_the_message(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.tsm")
    assert "directory" in refused(tmp_path)
    (tmp_path / "text.tsm").write_text("not a TSM file, but long enough to be read")
    assert "does not begin" in refused(tmp_path / "text.tsm")
    (tmp_path / "old.tombstone").write_text("cpu,host=a#!~#value\n")
    with pytest.raises(TsmError, match="known version"):
        list(read_tombstones(tmp_path / "old.tombstone"))
    with pytest.raises(TsmError, match="No such file"):
        list(read_tombstones(tmp_path / "none.tombstone"))


def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Cut, overwrite or insert a few bytes somewhere."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        new = draw(st.binary(max_size=9))
        data[at : at + draw(st.sampled_from((0, len(new), len(new) + 40)))] = new
    return bytes(data[: draw(st.sampled_from((len(data), len(data) // 2)))])


@st.composite
def mutations(draw: st.DrawFn, files: list[Path]) -> bytes:
    return mutated(draw, draw(st.sampled_from(files)).read_bytes())


def only_its_own_error(act: Callable[[], object]) -> None:
    try:
        act()
    except TsmError as error:
        assert error.message


@settings(max_examples=300, deadline=None)
@given(mutations(FILES))
def test_no_bytes_raise_anything_but_its_own_error(data: bytes) -> None:
    with TemporaryDirectory() as name:
        path = Path(name) / "000000001-000000001.tsm"
        path.write_bytes(data)
        only_its_own_error(lambda: check_tsm(path))
        only_its_own_error(lambda: surplus([(path, None), (FILES[0], STONES[0])]))


@settings(max_examples=300, deadline=None)
@given(mutations(STONES))
def test_no_tombstone_raises_anything_but_its_own_error(data: bytes) -> None:
    with TemporaryDirectory() as name:
        path = Path(name) / "000000001-000000001.tombstone"
        path.write_bytes(data)
        only_its_own_error(lambda: list(read_tombstones(path)))


@given(st.binary(max_size=80), st.sampled_from((0x00, 0x10, 0x16, 0x20, 0x2C, 0x30, 0xF0)))
def test_any_times_decode_to_as_many_as_were_counted(data: bytes, first: int) -> None:
    encoded = bytes([first]) + data

    def both() -> None:
        points = count_times(encoded)
        if points < 10_000:
            assert len(decode_times(encoded)) == points

    only_its_own_error(both)


# -- the counting, against a plain model -------------------------------------------------------

KEYS = (b"m,k=a#!~#f", b"m,k=b#!~#f", b"n#!~#g")
small_times = st.lists(st.integers(-50, 200), min_size=1, max_size=30, unique=True).map(sorted)
even_times = st.builds(
    lambda first, step, count: list(range(first, first + step * count, step)),
    st.integers(-50, 100),
    st.integers(1, 9),
    st.integers(2, 30),
)


@st.composite
def blocks(draw: st.DrawFn) -> list[tuple[list[int], bytes]]:
    """Draw one key's blocks: times ascending over all of them, each block encoded in some way."""
    times: list[int] = draw(st.one_of(small_times, even_times))
    size = draw(st.integers(1, 12))
    found = []
    for at in range(0, len(times), size):
        part = times[at : at + size]
        step = part[1] - part[0] if len(part) > 1 else 0
        ways = [tsmwriter.raw_times(part), tsmwriter.packed_times(part)]
        if len(part) > 1 and part == list(range(part[0], part[-1] + 1, step)):
            ways.append(tsmwriter.run_times(part[0], step, len(part)))
        found.append((part, draw(st.sampled_from(ways))))
    return found


ranges = st.tuples(st.sampled_from(KEYS), st.integers(-60, 210), st.integers(0, 120)).map(
    lambda drawn: (drawn[0], drawn[1], drawn[1] + drawn[2])
)
whole_series = st.sampled_from(KEYS).map(lambda key: (key, EARLIEST, LATEST))
shards = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(KEYS), blocks(), min_size=1),
        st.lists(st.lists(st.one_of(ranges, whole_series), max_size=3), max_size=2),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(shards, st.sampled_from((LATEST, 0, 60, 120)), st.sampled_from((2, 3, 4)))
def test_a_shard_counts_as_the_union_of_its_files_less_what_was_deleted(
    shard: list[
        tuple[dict[bytes, list[tuple[list[int], bytes]]], list[list[tuple[bytes, int, int]]]]
    ],
    before: int,
    version: int,
) -> None:
    expected: dict[bytes, set[int]] = {}
    with TemporaryDirectory() as name:
        pairs: list[tuple[Path, Path | None]] = []
        for number, (keys, members) in enumerate(shard):
            path = Path(name) / f"{number}.tsm"
            tsmwriter.write_tsm(path, keys)
            stone = path.with_suffix(".tombstone")
            deleted = members if version == 4 else [[cut for member in members for cut in member]]
            if members:
                tsmwriter.write_tombstone(stone, deleted, version)
            pairs.append((path, stone if members else None))
            for key, parts in keys.items():
                cuts = [cut for member in members for cut in member if cut[0] == key]
                expected.setdefault(key, set()).update(
                    time
                    for times, _ in parts
                    for time in times
                    if time < before and not any(a <= time <= b for _, a, b in cuts)
                )
        found = counted(pairs, before)
    m = len(expected.get(KEYS[0], ())) + len(expected.get(KEYS[1], ()))
    n = len(expected.get(KEYS[2], ()))
    assert found == {name: points for name, points in (("m", m), ("n", n)) if points}


def test_a_tombstone_file_with_large_keys_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "1.tombstone"
    members = [[(bytes([65 + n]) * 60_000, n, n + 1) for n in range(20)], [], [(b"k", -5, 5)]]
    tsmwriter.write_tombstone(path, members)
    found = [(stone.key, stone.first, stone.last) for stone in read_tombstones(path)]
    assert found == [record for member in members for record in member]
    whole = path.read_bytes()
    for length in (5, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(TsmError):
            list(read_tombstones(path))
    path.write_bytes(b"")
    assert list(read_tombstones(path)) == []


def test_an_index_larger_than_one_read_is_followed_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "1.tsm"
    times = [1, 5, 9]
    keys = {
        b"m,k=%05d" % n + b"x" * 900 + b"#!~#f": [(times, tsmwriter.raw_times(times))]
        for n in range(3000)
    }
    tsmwriter.write_tsm(path, keys)
    moved: list[int] = []
    inventory = check_tsm(path, moved.append)
    assert (inventory.keys, inventory.blocks, sum(moved)) == (3000, 3000, path.stat().st_size)
    assert inventory.by_measurement() == {"m": 9000}


# -- bolt --------------------------------------------------------------------------------------


def bolt(pages: int, change: int, size: int = 4096) -> bytes:
    """Make a bolt file's two meta pages and as many empty pages as they say."""

    def meta(number: int) -> bytes:
        body = struct.pack(
            "<IIIIQQQQQ", 0xED0CDAED, 2, size, 0, 3, 0, 2, pages, change - 1 + number
        )
        value = 0xCBF29CE484222325
        for byte in body:
            value = (value ^ byte) * 0x100000001B3 % 2**64
        return (bytes(16) + body + struct.pack("<Q", value)).ljust(size, b"\0")

    return meta(0) + meta(1) + bytes(size * (pages - 2))


@pytest.mark.parametrize("size", [4096, 16384])  # a Pi 5's kernel has pages of 16 KiB
def test_a_bolt_file_must_have_the_length_it_claims(tmp_path: Path, size: int) -> None:
    path = tmp_path / "influxd.bolt"
    whole = bolt(9, 40, size)
    path.write_bytes(whole)
    check_bolt(path)
    for length in (0, 10, 100, size, len(whole) - size, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(TsmError):
            check_bolt(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(TsmError, match="bytes where"):
        check_bolt(path)


def test_a_bolt_file_is_judged_by_its_newer_whole_meta_page(tmp_path: Path) -> None:
    path = tmp_path / "influxd.bolt"
    whole = bytearray(bolt(9, 40))
    whole[20] ^= 1
    path.write_bytes(whole)
    check_bolt(path)
    whole[4096 + 20] ^= 1
    path.write_bytes(whole)
    with pytest.raises(TsmError, match="meta pages"):
        check_bolt(path)


@given(st.binary(max_size=200))
def test_no_bolt_bytes_raise_anything_but_its_own_error(data: bytes) -> None:
    with TemporaryDirectory() as name:
        path = Path(name) / "influxd.bolt"
        path.write_bytes(data)
        only_its_own_error(lambda: check_bolt(path))
