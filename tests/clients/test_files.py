"""The door to the file system: real files, real SQLite writers that are really killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops.clients import files
from iotops.errors import CaptureError, IotopsError, NoSpace

pytestmark = pytest.mark.clients

WRITER = """
import sqlite3, sys
link = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.argv[2].split(";"):
    link.execute(line)
print("there", flush=True)
sys.stdin.read()
"""


@contextmanager
def writer(database: Path, sql: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has executed SQL on a database and holds it open until the end."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(database), sql],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        yield child
        child.kill()


def database(path: Path, mode: str = "DELETE") -> None:
    with closing(sqlite3.connect(path)) as link:
        link.execute(f"PRAGMA journal_mode={mode}")
        link.execute("CREATE TABLE t (n INTEGER, filler TEXT)")
        link.executemany("INSERT INTO t VALUES (?, ?)", [(n, "x" * 500) for n in range(2000)])
        link.commit()


def total(path: Path) -> int:
    with closing(sqlite3.connect(path)) as link:
        assert link.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return int(link.execute("SELECT sum(n) FROM t").fetchone()[0])


BEFORE = sum(range(2000))


@given(st.binary(min_size=1).filter(lambda raw: b"\x00" not in raw))
def test_any_name_survives_as_text(raw: bytes) -> None:
    name = os.fsdecode(raw)
    text = files.path_text(name)
    text.encode("utf-8")  # JSON can hold it
    assert files.path_of(text) == name


def test_write_is_atomic_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    files.write(target, b"one", mode=0o600)
    inode = target.stat().st_ino
    files.write(target, b"two", mode=0o640)
    assert target.read_bytes() == b"two" and target.stat().st_ino != inode
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [target]


def test_a_copy_refuses_links_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError):
            files.copy_plain(tmp_path / name, tmp_path / "copy")
        with pytest.raises(OSError):
            files.copy_sqlite(tmp_path / name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


CHANGER = """
import itertools, os, sys
append = sys.argv[1] == "append"
file = os.open(sys.argv[2], os.O_WRONLY | (os.O_APPEND if append else 0))
for number in itertools.count():
    os.write(file, b"line %08d" % number) if append else os.pwrite(file, b"%012d" % number, 0)
    if number == 0:
        print("there", flush=True)
"""


@contextmanager
def changing(how: str, path: Path) -> Iterator[None]:
    """A program that appends to a file, or writes into its beginning, without a pause."""
    with subprocess.Popen(
        [sys.executable, "-c", CHANGER, how, str(path)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        try:
            yield
        finally:
            child.kill()


def test_a_file_that_only_grows_is_copied_as_it_was_at_one_moment(tmp_path: Path) -> None:
    source = tmp_path / "grows.csv"
    source.write_bytes(b"begin\n" * 2_000_000)
    with changing("append", source):
        files.copy_plain(source, tmp_path / "copy")
    copied = (tmp_path / "copy").read_bytes()
    assert len(copied) >= 12_000_000 and source.read_bytes().startswith(copied)


def test_a_file_that_changes_inside_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "changes.bin"
    source.write_bytes(b"begin\n" * 8_000_000)
    with changing("inside", source), pytest.raises(CaptureError, match="kept changing"):
        files.copy_plain(source, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changes.bin"]


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_database_being_written_is_copied_whole(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "live.db"
    database(source, mode)
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(source, timeout=30)) as link:
            while not stop.wait(0.002):  # a writer that never pauses starves everybody
                # Two far pages that must agree.
                link.execute("UPDATE t SET n = n + 1 WHERE rowid = 1")
                link.execute("UPDATE t SET n = n - 1 WHERE rowid = 2000")
                link.commit()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            files.copy_sqlite(source, tmp_path / f"copy{number}")
            assert total(tmp_path / f"copy{number}") == BEFORE
    finally:
        stop.set()
        thread.join()


def test_a_closed_wal_database_gets_no_side_files_from_being_copied(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    folder.mkdir()
    database(folder / "a.db", "WAL")
    assert [path.name for path in folder.iterdir()] == ["a.db"]
    before = (folder / "a.db").read_bytes()
    files.copy_sqlite(folder / "a.db", tmp_path / "copy.db")
    assert [path.name for path in folder.iterdir()] == ["a.db"]
    assert (folder / "a.db").read_bytes() == before
    assert total(tmp_path / "copy.db") == BEFORE
    head = (tmp_path / "copy.db").read_bytes()[18:20]
    assert head == b"\x01\x01", "the copy must open without side files"


def test_a_wal_that_was_never_written_back_is_in_the_copy(tmp_path: Path) -> None:
    source = tmp_path / "live.db"
    database(source, "WAL")
    with writer(source, "PRAGMA wal_autocheckpoint=0;UPDATE t SET n = n + 1") as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert (tmp_path / "live.db-wal").stat().st_size > 0
    files.copy_sqlite(source, tmp_path / "copy.db")
    assert total(tmp_path / "copy.db") == BEFORE + 2000


def test_a_half_written_change_of_a_killed_program_is_rolled_back_in_the_copy(
    tmp_path: Path,
) -> None:
    source = tmp_path / "live.db"
    database(source)
    # A small cache makes SQLite write pages into the database before the end of the change.
    sql = "PRAGMA cache_size=5;BEGIN;UPDATE t SET n = n + 1"
    with writer(source, sql) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    journal = tmp_path / "live.db-journal"
    assert journal.stat().st_size > 0
    before = (source.read_bytes(), journal.read_bytes())
    files.copy_sqlite(source, tmp_path / "copy.db")
    assert total(tmp_path / "copy.db") == BEFORE
    assert (source.read_bytes(), journal.read_bytes()) == before, "the live file is not ours"
    assert not list(tmp_path.glob(".iotops*"))


def test_a_database_locked_for_good_is_given_up(tmp_path: Path) -> None:
    source = tmp_path / "live.db"
    database(source)
    with writer(source, "PRAGMA locking_mode=EXCLUSIVE;BEGIN EXCLUSIVE"):
        began = time.monotonic()
        with pytest.raises(CaptureError, match="locked"):
            files.copy_sqlite(source, tmp_path / "copy.db", wait=1.0)
        assert time.monotonic() - began < 20
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == []


def test_a_database_under_the_longest_name_is_copied(tmp_path: Path) -> None:
    source = tmp_path / ("d" * 255)
    database(tmp_path / "short")
    (tmp_path / "short").rename(source)
    files.copy_sqlite(source, tmp_path / ("e" * 255))
    (tmp_path / ("e" * 255)).rename(tmp_path / "short")
    assert total(tmp_path / "short") == BEFORE


def test_a_damaged_database_is_called_so(tmp_path: Path) -> None:
    source = tmp_path / "live.db"
    database(source)
    with source.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(64 * 1024))
    with pytest.raises(files.DamagedDatabase, match="damaged"):
        files.copy_sqlite(source, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_paths_from_outside_stay_below(tmp_path: Path) -> None:
    assert files.below(tmp_path, "a/b") == tmp_path / "a/b"
    for bad in ("..", "a/../../b", "/etc", "", "."):
        with pytest.raises(IotopsError):
            files.below(tmp_path, bad)


def test_missing_room_is_told_with_both_numbers(tmp_path: Path) -> None:
    files.require_space(tmp_path, 1, doing="a test")
    with pytest.raises(NoSpace, match="needs 1000000000000 MB"):
        files.require_space(tmp_path, 10**18, doing="a test")


def test_a_file_that_others_can_get_at_is_told_by_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    for mode, told in ((0o600, 0), (0o400, 0), (0o640, 0o640), (0o602, 0o602), (0o644, 0o644)):
        path.chmod(mode)
        assert files.open_mode(path) == told
