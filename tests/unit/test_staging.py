"""Staging: what is copied, what is kept, what is named; on real folders."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from iotops.clients.staging import SIDES, SPECIAL, Staged, Staging
from iotops.errors import CaptureError
from iotops.model import Artifact, Exclude

pytestmark = pytest.mark.unit

HOSTILE = (
    b"plain.txt",
    b" leading and trailing ",
    b"-rf",
    b"new\nline",
    b"back\\slash and \\x41",
    b"quote\"'$(date)`",
    b"not utf-8 \xff\xfe",
    "ünïcode 漢字 😀".encode(),
    b"*.db",
    b"[a-z]?",
    b".hidden",
    b"...",
    b"~",
    b"a" * 255,
    "漢".encode() * 85,
    b"query?x=1&mode=rw#part",
    b"percent%2e%2e",
    b"manifest.json",
    b".plain.txt.iotops-new",
)


class Case:
    """A live folder and its staging folder; each `run` is one capture."""

    def __init__(self, root: Path) -> None:
        self.live = root / "live"
        self.staged = root / "staging" / "part"
        self.live.mkdir()
        self.known: dict[str, Artifact] = {}

    def staging(self, excludes: Sequence[Exclude] = ()) -> Staging:
        return Staging(
            self.live,
            self.staged,
            prefix="part",
            excludes=excludes,
            known=self.known,
            memory=self.staged.parent / "part.memory",
        )

    def run(self, excludes: Sequence[Exclude] = ()) -> Staged:
        staging = self.staging(excludes)
        staging.rest()
        done = staging.finish()
        self.known = {artifact.path: artifact for artifact in done.artifacts}
        return done


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def settle(path: Path) -> None:
    """Wait until a change of the file could not hide behind the same times."""
    while time.time_ns() - path.lstat().st_ctime_ns < 60_000_000:
        time.sleep(0.01)


def database(path: Path, rows: int = 3, wal: bool = False) -> None:
    with closing(sqlite3.connect(path)) as link:
        if wal:
            link.execute("PRAGMA journal_mode=WAL")
        link.execute("CREATE TABLE t (n INTEGER)")
        link.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(rows)])
        link.commit()


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as link:
        return int(link.execute("SELECT count(*) FROM t").fetchone()[0])


def test_every_hostile_name_comes_along(case: Case) -> None:
    wanted = {}
    for folder in (b"", b"sub", b"sub/folder \xff", b"sub/two\nlines"):
        base = Path(os.fsdecode(os.path.join(os.fsencode(case.live), folder)))  # noqa: PTH118
        base.mkdir(exist_ok=True)
        for name in HOSTILE:
            path = base / os.fsdecode(name)
            path.write_bytes(os.fsencode(path))
            wanted[path.relative_to(case.live)] = path.read_bytes()
    done = case.run()
    assert {
        path.relative_to(case.staged): path.read_bytes()
        for path in case.staged.rglob("*")
        if path.is_file()
    } == wanted
    assert sum(artifact.type == "file" for artifact in done.artifacts) == len(wanted)
    assert done.left_out == () and done.warnings == ()


def test_mode_owner_times_links_and_empty_folders(case: Case) -> None:
    file = case.live / "file"
    file.write_bytes(b"x")
    file.chmod(0o640)
    os.utime(file, ns=(1_600_000_000_123_456_789,) * 2)
    (case.live / "empty").mkdir(mode=0o711)
    (case.live / "link").symlink_to("/etc/shadow")
    (case.live / "folder-link").symlink_to("empty")
    if os.geteuid() == 0:
        os.chown(file, 1883, 472)
    found = {artifact.path: artifact for artifact in case.run().artifacts}
    assert set(found) == {"part/file", "part/empty", "part/link", "part/folder-link"}
    copied = found["part/file"]
    assert (copied.mode, copied.mtime_ns) == (0o640, 1_600_000_000_123_456_789)
    assert (copied.uid, copied.gid) == (file.stat().st_uid, file.stat().st_gid)
    assert found["part/empty"].type == "directory" and found["part/empty"].mode == 0o711
    assert found["part/link"].target == "/etc/shadow" and found["part/link"].sha256 == ""
    assert (case.staged / "link").is_symlink()
    assert found["part/folder-link"].target == "empty"


def test_an_unchanged_file_keeps_its_inode_a_changed_one_gets_a_new_one(case: Case) -> None:
    for name in ("same", "other"):
        (case.live / name).write_bytes(b"one")
    settle(case.live / "other")
    first = {a.path: a for a in case.run().artifacts}
    (case.live / "other").write_bytes(b"two")
    second = {a.path: a for a in case.run().artifacts}
    assert second["part/same"] == first["part/same"]
    assert second["part/other"].inode != first["part/other"].inode
    assert second["part/other"].sha256 != first["part/other"].sha256
    assert (case.staged / "other").read_bytes() == b"two"


def test_a_file_asked_for_twice_in_a_run_is_copied_once(case: Case) -> None:
    (case.live / "file").write_bytes(b"x")
    settle(case.live / "file")
    for copies in (True, False):
        staging = case.staging()
        assert staging.copy("file") is copies
        inode = staging.path("file").stat().st_ino
        assert staging.copy("file") is False
        assert staging.path("file").stat().st_ino == inode
        staging.finish()


def test_a_file_is_known_again_only_when_it_had_settled_before_it_was_read(case: Case) -> None:
    """Up to Linux 6.12 times advance in ticks: a second write may keep size and times."""
    path = case.live / "file"
    path.write_bytes(b"x")

    def copied() -> bool:
        staging = case.staging()
        found = staging.copy("file")
        staging.finish()
        return found

    settle(path)
    assert [copied(), copied()] == [True, False]
    soon = time.time_ns() + 10**12  # stands for "changed just now", however slow this machine is
    os.utime(path, ns=(soon, soon))
    assert [copied(), copied()] == [True, True]


def test_what_is_gone_from_the_live_folder_goes_from_staging(case: Case) -> None:
    (case.live / "a").mkdir()
    (case.live / "a/x").write_bytes(b"x")
    (case.live / "b").write_bytes(b"b")
    (case.live / "link").symlink_to("a")
    case.run()
    (case.live / "a/x").unlink()
    (case.live / "b").unlink()
    (case.live / "link").unlink()
    assert [artifact.path for artifact in case.run().artifacts] == ["part/a"]
    assert sorted(path.name for path in case.staged.rglob("*")) == ["a"]


def test_files_links_and_folders_change_places(case: Case) -> None:
    outside = case.live.parent / "outside"
    outside.mkdir()
    (case.live / "x").symlink_to(outside)
    (case.live / "y").mkdir()
    (case.live / "y/inner").write_bytes(b"y")
    case.run()
    (case.live / "x").unlink()
    (case.live / "x").mkdir()
    (case.live / "x/inner").write_bytes(b"x")
    (case.live / "y/inner").unlink()
    (case.live / "y").rmdir()
    (case.live / "y").write_bytes(b"file now")
    case.run()
    assert (case.staged / "x/inner").read_bytes() == b"x"
    assert not (case.staged / "x").is_symlink()
    assert (case.staged / "y").read_bytes() == b"file now"
    assert list(outside.iterdir()) == []


def test_a_link_staged_earlier_never_leads_a_copy_out(case: Case) -> None:
    outside = case.live.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (case.live / "x").symlink_to(outside)
    case.run()
    (case.live / "x").unlink()
    (case.live / "x/deep").mkdir(parents=True)
    (case.live / "x/deep/file").write_bytes(b"inside")
    staging = case.staging()
    staging.copy("x/deep/file")
    assert list((outside / "deep").iterdir()) == []
    assert (case.staged / "x/deep/file").read_bytes() == b"inside"


def test_a_live_path_behind_a_link_is_refused(case: Case) -> None:
    outside = case.live.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"not yours")
    (case.live / "x").symlink_to(outside)
    with pytest.raises(CaptureError, match="symbolic link"):
        case.staging().copy("x/secret")
    assert not (case.staged / "x").exists()


def test_excluded_is_counted_under_its_rule_and_nothing_else_is_left_out(case: Case) -> None:
    rules = (Exclude("log/", "made again"), Exclude("**/node_modules", "fetched"))
    for path in ("log/a", "log/deep/b", "deep/log/kept", "deep/node_modules/c", "node_modules/d"):
        (case.live / path).parent.mkdir(parents=True, exist_ok=True)
        (case.live / path).write_bytes(b"12345")
    (case.live / "log-file").write_bytes(b"kept")
    os.mkfifo(case.live / "pipe")
    done = case.run(rules)
    assert {(one.pattern, one.files, one.bytes) for one in done.left_out} == {
        ("log/", 2, 10),
        ("**/node_modules", 2, 10),
        (SPECIAL.pattern, 1, 0),
    }
    kept = {artifact.path for artifact in done.artifacts if artifact.type == "file"}
    assert kept == {"part/log-file", "part/deep/log/kept"}


def test_a_file_that_a_service_could_not_copy_is_not_taken_from_the_last_run(case: Case) -> None:
    (case.live / "flows").write_bytes(b"old")
    case.run()
    (case.live / "flows").unlink()
    staging = case.staging()
    with pytest.raises(FileNotFoundError):
        staging.copy("flows")
    staging.rest()
    assert staging.finish().artifacts == ()
    assert not (case.staged / "flows").exists()


def test_what_was_staged_and_vanished_is_an_error(case: Case) -> None:
    (case.live / "file").write_bytes(b"x")
    staging = case.staging()
    staging.rest()
    (case.staged / "file").unlink()
    with pytest.raises(CaptureError, match="vanished"):
        staging.finish()


def test_a_database_in_use_comes_whole_and_its_side_files_are_named(case: Case) -> None:
    path = case.live / "data.db"
    database(path, wal=True)
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("INSERT INTO t VALUES (99)")
        writer.commit()
        assert (case.live / "data.db-wal").stat().st_size > 0
        done = case.run()
        assert [artifact.path for artifact in done.artifacts] == ["part/data.db"]
        assert [(one.pattern, one.files) for one in done.left_out] == [(SIDES.pattern, 2)]
        assert rows(case.staged / "data.db") == 4


def test_files_that_only_look_like_side_files_are_copied(case: Case) -> None:
    database(case.live / "notes")
    (case.live / "notes-journal").write_bytes(b"Dear diary")
    (case.live / "other-wal").write_bytes(b"belongs to nothing")
    found = {artifact.path for artifact in case.run().artifacts}
    assert found == {"part/notes", "part/notes-journal", "part/other-wal"}
    assert (case.staged / "notes-journal").read_bytes() == b"Dear diary"


def test_a_change_in_the_wal_alone_is_seen_though_the_database_keeps_its_times(case: Case) -> None:
    path = case.live / "data.db"
    database(path, wal=True)
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint=0")
        writer.execute("INSERT INTO t VALUES (1)")
        writer.commit()
        settle(case.live / "data.db-wal")
        first = case.run().artifacts[0]
        before = path.stat()
        writer.execute("INSERT INTO t VALUES (2)")
        writer.commit()
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        second = case.run().artifacts[0]
    assert rows(case.staged / "data.db") == 5
    # restic takes a file of equal size and times for unchanged once inodes are used again.
    assert second.sha256 != first.sha256 and second.mtime_ns != first.mtime_ns


def test_a_damaged_database_that_nobody_asked_for_is_copied_as_it_is(case: Case) -> None:
    broken = b"SQLite format 3\x00" + random.Random(3).randbytes(5000)
    (case.live / "broken").write_bytes(broken)
    (case.live / "broken-wal").write_bytes(b"\x37\x7f\x06\x82 what is left")
    database(case.live / "good")
    done = case.run()
    assert (case.staged / "broken").read_bytes() == broken
    assert (case.staged / "broken-wal").exists()
    assert len(done.warnings) == 1 and "broken is damaged" in done.warnings[0]
    with pytest.raises(CaptureError, match="damaged"):
        case.staging().sqlite("broken")


def test_links_are_kept_dropped_and_made_again(case: Case) -> None:
    source = case.live / "file.tsm"
    source.write_bytes(b"tsm")
    staging = case.staging()
    staging.link("file.tsm")
    assert (case.staged / "file.tsm").stat().st_ino == source.stat().st_ino
    first = staging.finish().artifacts
    case.known = {artifact.path: artifact for artifact in first}
    staging.link("file.tsm")
    assert source.stat().st_nlink == 2
    staging.drop_links()
    assert source.stat().st_nlink == 1 and not (case.staged / "file.tsm").exists()
    again = case.staging()
    again.link("file.tsm")
    assert again.finish().artifacts == first
    (case.live / "link.tsm").symlink_to("/etc/passwd")
    with pytest.raises(CaptureError, match="regular"):
        case.staging().link("link.tsm")


def test_put_writes_only_what_is_new(case: Case) -> None:
    assert case.staging().put("made/by.us", b"{}")
    assert not case.staging().put("made/by.us", b"{}")
    assert case.staging().put("made/by.us", b"[]")
    assert case.staging().put("made/by.us", b"[]", mode=0o640)
    staging = case.staging()
    staging.keep("made/by.us")
    assert [a.path for a in staging.finish().artifacts] == ["part/made", "part/made/by.us"]
    with pytest.raises(CaptureError):
        staging.keep("never/was")


def test_a_path_that_leads_out_is_refused(case: Case) -> None:
    for path in ("../x", "/etc/passwd", "a/../../x", ""):
        with pytest.raises(Exception, match="leads out"):
            case.staging().put(path, b"x")


def test_a_torn_memory_only_costs_a_copy(case: Case) -> None:
    (case.live / "file").write_bytes(b"x")
    settle(case.live / "file")
    case.run()
    (case.staged.parent / "part.memory").write_bytes(b'{"file": [1, 2')
    assert [artifact.path for artifact in case.run().artifacts] == ["part/file"]


def test_holes_stay_holes(case: Case) -> None:
    path = case.live / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
        for offset in (1 << 20, 1 << 29):
            file.seek(offset)
            file.write(b"data")
    staging = case.staging()
    staging.copy("sparse")
    staged = case.staged / "sparse"
    assert staged.stat().st_size == 1 << 30
    assert staged.stat().st_blocks * 512 < 1 << 20
    with staged.open("rb") as file:
        assert [file.seek(offset) and file.read(5) for offset in (1 << 20, 1 << 29)] == [
            b"data\0"
        ] * 2


def test_a_file_that_ends_or_begins_with_a_hole(case: Case) -> None:
    for name, offset in (("begin", 1 << 20), ("end", 0)):
        with (case.live / name).open("wb") as file:
            file.truncate(2 << 20)
            file.seek(offset)
            file.write(b"data")
    with (case.live / "nothing").open("wb") as file:
        file.truncate(1 << 20)
    case.run()
    for path in case.live.iterdir():
        assert (case.staged / path.name).read_bytes() == path.read_bytes()


ATTRIBUTE = "user.iotops"
ACCESS_LIST = bytes.fromhex(  # user::rw-, user:1883:r--, group::r--, mask::r--, other::---
    "02000000 01000600ffffffff 020004005b070000 04000400ffffffff 10000400ffffffff 20000000ffffffff"
)


def test_extended_attributes_and_access_lists_come_along(case: Case) -> None:
    file, folder = case.live / "file", case.live / "folder"
    file.write_bytes(b"x")
    database(case.live / "data.db")
    folder.mkdir()
    for path in (file, folder, case.live / "data.db"):
        os.setxattr(path, ATTRIBUTE, b"kept\0\xff")
    os.setxattr(file, "system.posix_acl_access", ACCESS_LIST)
    os.setxattr(folder, "system.posix_acl_default", ACCESS_LIST)
    settle(file)
    done = case.run()
    for name in ("file", "folder", "data.db"):
        assert os.getxattr(case.staged / name, ATTRIBUTE) == b"kept\0\xff"
    assert os.getxattr(case.staged / "file", "system.posix_acl_access") == ACCESS_LIST
    assert os.getxattr(case.staged / "folder", "system.posix_acl_default") == ACCESS_LIST
    assert done.warnings == ()
    inode = (case.staged / "file").stat().st_ino
    os.removexattr(file, ATTRIBUTE)  # nothing else of it changes
    os.removexattr(folder, ATTRIBUTE)
    case.run()
    assert ATTRIBUTE not in os.listxattr(case.staged / "file")
    assert ATTRIBUTE not in os.listxattr(case.staged / "folder")
    assert (case.staged / "file").stat().st_ino != inode


def test_rights_of_a_program_do_not_come_along(case: Case) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a file capabilities")
    (case.live / "program").write_bytes(b"#!/bin/sh\n")
    os.setxattr(  # cap_net_raw+ep, version 2 (capabilities(7))
        case.live / "program",
        "security.capability",
        bytes.fromhex("0100000200200000000000000000000000000000"),
    )
    case.run()
    assert "security.capability" not in os.listxattr(case.staged / "program")


EXCHANGER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
one, other = (os.fsencode(path) for path in sys.argv[1:])
print("there", flush=True)
while True:  # RENAME_EXCHANGE: at every instant both names exist
    libc.renameat2(-100, one, -100, other, 2)
"""


def test_a_folder_exchanged_for_a_link_is_never_followed_out(case: Case) -> None:
    """A container may do so to its own folder at any instant, and the copy is made as root."""
    outside = case.live.parent / "outside"
    outside.mkdir()
    for number in range(20):
        (outside / f"file{number}").write_bytes(b"not yours")
    (case.live / "x").mkdir()
    for number in range(20):
        (case.live / f"x/file{number}").write_bytes(b"mine")
    (case.live / "y").symlink_to(outside)
    argv = [sys.executable, "-c", EXCHANGER, str(case.live / "x"), str(case.live / "y")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"there\n"
        try:
            found = set()
            for _ in range(300):
                try:
                    case.run()
                except CaptureError:
                    continue  # refused is fine
                for path in case.staged.rglob("*"):
                    if path.is_file() and not path.is_symlink():
                        found.add(path.read_bytes())
                        path.unlink()
        finally:
            child.kill()
    assert found <= {b"mine"}


def test_folders_nested_without_an_end_are_refused(case: Case) -> None:
    (case.live / Path(*["d"] * 190)).mkdir(parents=True)
    assert len(case.run().artifacts) == 190
    (case.live / Path(*["d"] * 300)).mkdir(parents=True)
    with pytest.raises(CaptureError, match="nested deeper"):
        case.run()
