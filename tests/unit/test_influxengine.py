"""The engine folder as it lies on the disk, and what is remembered of it between runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from iotops.clients.influxengine import Engine, Ledger, Mark, Shard
from iotops.clients.influxwindows import Window
from iotops.clients.tsm import TsmError
from tests.support import tsmwriter

pytestmark = pytest.mark.unit

SHARD = Shard("00000000000000aa", "autogen", 7)
KEY = b"m,k=v#!~#f"
EVER = 2**62


def put(folder: Path, number: int, times: list[int], key: bytes = KEY) -> Path:
    """Write a TSM file as the engine names it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:09}-000000001.tsm"
    tsmwriter.write_tsm(path, {key: [(times, tsmwriter.raw_times(times))]})
    return path


def marks(folder: Path) -> dict[str, Mark]:
    found = {}
    for path in sorted(folder.iterdir()):
        state = path.stat()
        found[path.name] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def test_shards_are_numbered_folders_below_a_policy(tmp_path: Path) -> None:
    for name in ("aa/autogen/7", "aa/autogen/12", "aa/_series/00", "bb/autogen/3", "bb/autogen/x"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "note").write_text("")
    assert [shard.path for shard in Engine(tmp_path).shards()] == [
        "aa/autogen/7",
        "aa/autogen/12",
        "bb/autogen/3",
    ]
    with pytest.raises(FileNotFoundError):
        Engine(tmp_path / "nowhere").shards()


def test_a_shards_files_are_its_tsm_files_with_their_tombstones(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    folder = tmp_path / "data" / SHARD.path
    assert engine.files(SHARD) == {} and engine.unflushed(SHARD) == {}
    put(folder, 1, [1])
    for name in (
        "000000001-000000001.tombstone",
        "000000002-000000001.tombstone",  # its TSM file is gone
        "000000003-000000001.tsm.tmp",
        "fields.idx",
        "000000004-000000001.tsm.bad",
    ):
        (folder / name).write_bytes(b"")
    (folder / "000000005-000000001.tsm").symlink_to(folder / "000000001-000000001.tsm")
    (folder / "2.tmp").mkdir()
    assert list(engine.files(SHARD)) == ["000000001-000000001.tombstone", "000000001-000000001.tsm"]
    assert [path.name for path in engine.aside(SHARD)] == ["000000004-000000001.tsm.bad", "2.tmp"]


def test_only_segments_with_something_in_them_are_unflushed(tmp_path: Path) -> None:
    folder = tmp_path / "wal" / SHARD.path
    folder.mkdir(parents=True)
    (folder / "_00001.wal").write_bytes(b"")
    (folder / "_00002.wal").write_bytes(b"12345")
    (folder / "other").write_bytes(b"1")
    assert Engine(tmp_path).unflushed(SHARD) == {"_00002.wal": 5}


def test_what_was_counted_is_not_read_again(tmp_path: Path) -> None:
    put(tmp_path, 1, [1, 2, 3])
    put(tmp_path, 2, [3, 4])
    first = Ledger()
    assert first.account(SHARD, tmp_path, marks(tmp_path), EVER) == {"m": 4}
    size = sum(mark[0] for mark in marks(tmp_path).values())
    assert first.read == size
    second = Ledger(first.text())
    assert second.account(SHARD, tmp_path, marks(tmp_path), EVER) == {"m": 4}
    assert second.read == 0 and second.text() == first.text()
    new = put(tmp_path, 3, [9], b"n#!~#f")
    third = Ledger(second.text())
    assert third.account(SHARD, tmp_path, marks(tmp_path), EVER) == {"m": 4, "n": 1}
    assert third.read == new.stat().st_size


def test_the_points_of_every_window_are_kept_for_the_restore(tmp_path: Path) -> None:
    put(tmp_path, 1, [11, 12, 13])
    ledger = Ledger()
    ledger.account(SHARD, tmp_path, marks(tmp_path), EVER, (10, 20))
    for other, window in ((2, (20, 30)), (3, (29, 40)), (4, None)):
        shard = Shard(SHARD.bucket, "autogen", other)
        ledger.account(shard, tmp_path, marks(tmp_path), EVER, window)
    assert ledger.windows() == {}  # what this run counts is the next one's business
    assert Ledger(ledger.text()).windows() == {
        SHARD.bucket: [Window(10, 20, {"m": 3}), Window(20, 40, {"m": 6})]
    }
    again = Ledger(ledger.text())
    again.account(SHARD, tmp_path, marks(tmp_path), EVER, (10, 20))
    assert again.read == 0


def test_a_new_tombstone_or_a_lost_file_is_counted_anew(tmp_path: Path) -> None:
    put(tmp_path, 1, [1, 2, 3])
    second = put(tmp_path, 2, [4, 5])
    ledger = Ledger()
    ledger.account(SHARD, tmp_path, marks(tmp_path), EVER)
    tsmwriter.write_tombstone(tmp_path / "000000001-000000001.tombstone", [[(KEY, 2, 9)]])
    ledger = Ledger(ledger.text())
    assert ledger.account(SHARD, tmp_path, marks(tmp_path), EVER) == {"m": 3}
    second.unlink()
    ledger = Ledger(ledger.text())
    assert ledger.account(SHARD, tmp_path, marks(tmp_path), EVER) == {"m": 1}
    assert ledger.read == 0


def test_points_that_lie_ahead_are_counted_when_their_time_has_come(tmp_path: Path) -> None:
    put(tmp_path, 1, [1, 2, 30])
    ledger = Ledger()
    assert ledger.account(SHARD, tmp_path, marks(tmp_path), 10) == {"m": 2}
    ledger = Ledger(ledger.text())
    assert ledger.account(SHARD, tmp_path, marks(tmp_path), 31) == {"m": 3}
    assert ledger.read == 0


def test_a_file_with_the_same_name_and_another_inode_is_checked(tmp_path: Path) -> None:
    path = put(tmp_path, 1, [1, 2, 3])
    ledger = Ledger()
    ledger.account(SHARD, tmp_path, marks(tmp_path), EVER)
    state = path.stat()
    damaged = bytearray(path.read_bytes())
    damaged[12] ^= 1
    other = tmp_path.parent / "other"
    other.write_bytes(damaged)
    os.utime(other, ns=(state.st_mtime_ns, state.st_mtime_ns))
    other.replace(path)
    with pytest.raises(TsmError, match="damaged"):
        Ledger(ledger.text()).account(SHARD, tmp_path, marks(tmp_path), EVER)


def test_a_shard_that_is_not_captured_leaves_the_ledger(tmp_path: Path) -> None:
    put(tmp_path, 1, [1])
    ledger = Ledger()
    ledger.account(SHARD, tmp_path, marks(tmp_path), EVER)
    text = ledger.text()
    assert Ledger(text).held(SHARD) and not Ledger().held(SHARD)
    assert json.loads(Ledger(text).text())["shards"] == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "names": [], "shards": {}}',
        '{"format": 1, "names": [], "shards": {"a": {}}}',
        '{"format": 1, "names": [], "shards": {"a": {"files": {"x": [1]}, "stones": {},'
        ' "points": [], "open": false}}}',
        '{"format": 1, "names": [], "shards": {"a": {"files": {}, "stones": {},'
        ' "points": [0, 1], "open": false}}}',
        '{"format": 1, "names": [], "shards": {"a": {"files": {}, "stones": {},'
        ' "points": [], "open": false, "window": [5, 5]}}}',
        '{"format": 1, "names": [], "shards": {"a": {"files": {}, "stones": {},'
        ' "points": [], "open": false, "window": [5]}}}',
    ],
)
def test_a_ledger_that_is_not_ours_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    put(tmp_path, 1, [1, 2])
    ledger = Ledger(text)
    assert ledger.account(SHARD, tmp_path, marks(tmp_path), EVER) == {"m": 2}
    assert ledger.read > 0
