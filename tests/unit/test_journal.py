"""The journal, the state file and the lock: what is written before, survives, and is told apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iotops.errors import Exit, Locked
from iotops.journal import KEPT_RUNS, SPARE, SPARE_BYTES, Journal, State, StateFile, Swap, lock
from tests.conftest import need
from tests.support.disk import Disk, filled

pytestmark = pytest.mark.unit


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    (tmp_path / "journal").mkdir()
    return Journal(tmp_path / "journal")


@pytest.fixture
def dead_process() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def rewrite(journal: Journal, run: str, **changes: object) -> None:
    path = journal.folder / f"{run}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_run_is_on_the_disk_before_its_work(journal: Journal) -> None:
    run = journal.begin("restore", root="/data")
    run.stopping("mqtt", "c1")
    swap = Swap("mqtt", "/data/mqtt", "/data/.iotops/old", "/data/.iotops/new", had_old=True)
    run.swapping(swap)
    (seen,) = journal.runs()
    assert seen.outcome == "running" and not seen.dead and seen.about == {"root": "/data"}
    assert [(one.service, one.container) for one in seen.stopped] == [("mqtt", "c1")]
    assert seen.swaps == (swap,)
    run.started("mqtt")
    run.note(swaps=())
    run.close("complete")
    (seen,) = journal.runs()
    assert (seen.outcome, seen.stopped, seen.swaps) == ("complete", (), ()) and seen.ended


def test_a_run_whose_process_is_gone_is_dead(journal: Journal, dead_process: int) -> None:
    run = journal.begin("backup")
    assert journal.dead() == ()
    rewrite(journal, run.id, pid=dead_process)
    assert [one.id for one in journal.dead()] == [run.id]
    journal.reopen(journal.dead()[0]).close("failed")
    assert journal.dead() == ()


def test_a_run_of_another_boot_is_dead_whoever_has_its_number_now(journal: Journal) -> None:
    run = journal.begin("backup")
    rewrite(journal, run.id, boot="another", pid=os.getpid())
    assert [one.id for one in journal.dead()] == [run.id]


def test_the_newest_of_an_action_and_outcome_is_found(journal: Journal) -> None:
    first = journal.begin("backup")
    first.close("complete")
    rewrite(journal, first.id)
    (journal.folder / f"{first.id}.json").rename(
        journal.folder / "20200101T000000Z-backup-0000.json"
    )
    journal.begin("backup").close("failed")
    journal.begin("restore").close("complete")
    newest = journal.last("backup")
    good = journal.last("backup", "complete", "partial")
    assert newest is not None and newest.outcome == "failed"
    assert good is not None and good.outcome == "complete"
    assert journal.last("drill") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}', '{"swaps": [{}]}'])
def test_a_damaged_record_hides_no_other(journal: Journal, text: str) -> None:
    journal.begin("backup").close("complete")
    (journal.folder / "20200101T000000Z-backup-0000.json").write_text(text)
    assert [one.outcome for one in journal.runs()] == ["complete"]


def test_old_records_go(journal: Journal) -> None:
    for number in range(KEPT_RUNS + 5):
        (journal.folder / f"2020{number:04d}-backup-0000.json").write_text("{}")
    journal.begin("backup")
    assert len([*journal.folder.glob("*.json")]) == KEPT_RUNS


def test_a_full_disk_has_room_for_the_records_of_the_run_that_met_it(tmp_path: Path) -> None:
    """A file system of one megabyte, full to the last block."""
    need("root")
    disk = Disk(tmp_path / "disk.ext4", tmp_path / "data", size=1 << 20)
    try:
        (disk.mount / "journal").mkdir()
        journal = Journal(disk.mount / "journal")
        run = journal.begin("restore")
        with filled(disk.mount):
            for number in range(20):
                run.stopping(f"service{number}", "c" * 64)
            for number in range(20):
                run.started(f"service{number}")
            run.close("failed")
            (seen,) = journal.runs()
            assert seen.outcome == "failed" and seen.stopped == ()
            with pytest.raises(OSError, match="No space"):
                (disk.mount / "other").write_bytes(b"x" * 100_000)
        assert not (disk.mount / "journal" / SPARE).exists()
        journal.begin("backup")
        assert (disk.mount / "journal" / SPARE).stat().st_size == SPARE_BYTES
    finally:
        disk.remove()


def test_what_could_not_be_written_is_not_believed(journal: Journal) -> None:
    run = journal.begin("restore")
    shutil.rmtree(journal.folder)
    with pytest.raises(OSError):
        run.stopping("mqtt", "c1")
    assert run.record.stopped == ()


# -- the state file -------------------------------------------------------------------------------


def test_the_state_keeps_last_and_good_apart(journal: Journal, tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state", "hub1")
    run = journal.begin("backup")
    run.close("complete")
    state.finished(run.record)
    good = state.read().good["backup"]
    failed = journal.begin("backup")
    failed.close("failed", message="x" * 5000)
    state.finished(failed.record)
    seen = state.read()
    assert seen.good == {"backup": good}
    assert seen.last["backup"]["outcome"] == "failed"
    assert state.path.stat().st_size < 4096


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hub": "other", "repository": "r"}'])
def test_a_damaged_or_foreign_state_is_empty(tmp_path: Path, text: str) -> None:
    state = StateFile(tmp_path, "hub1")
    state.path.write_text(text)
    assert state.read().repository == "" and state.read().hub == "hub1"
    state.update(repository="r2")
    assert state.read().repository == "r2"


ODD: list[object] = [
    None,
    3,
    2.5,
    True,
    "",
    "x",
    "yesterday",
    "2026-01-01T00:00:00",
    [],
    ["x"],
    {},
    {"x": []},
    {"backup": "x"},
    {"backup": {"time": "x", "outcome": 1}},
    {"backup": {"message": ["x"]}},
    {"key": "a", "made": "x", "proven": "2026-01-01T00:00:00"},
]


@pytest.mark.parametrize("key", [one.name for one in fields(State) if one.name != "hub"])
@pytest.mark.parametrize("value", ODD)
def test_odd_values_of_the_state_reach_nobody(tmp_path: Path, key: str, value: object) -> None:
    """Types are what the class declares, and a time can be read."""
    state = StateFile(tmp_path, "hub1")
    state.path.write_text(json.dumps({"hub": "hub1", "name": "kept", key: value}))
    read = state.read()
    if key != "name":
        assert read.name == "kept"
    for text in (read.name, read.disk, read.repository, read.snapshot, *read.good.values()):
        assert isinstance(text, str)
    for entry in read.last.values():
        assert all(isinstance(one, str) for one in entry.values())
    for time in (
        *read.good.values(),
        *(read.kit[name] for name in ("made", "proven") if name in read.kit),
        *(one["time"] for one in read.last.values() if "time" in one),
    ):
        assert datetime.fromisoformat(time) <= datetime.now(UTC)
    state.update(snapshot="s1")
    assert state.read().snapshot == "s1"


def test_odd_values_of_a_record_reach_nobody(journal: Journal) -> None:
    run = journal.begin("backup")
    for value in ODD:
        rewrite(
            journal, run.id, services=value, about=value, stopped=value, swaps=value, step=value
        )
        for record in journal.runs():
            assert all(isinstance(one, str) for one in record.services.values())
            assert isinstance(record.step, str)
    for value in (None, [], "x"):
        rewrite(journal, run.id, pid=value)
        assert journal.runs() == ()  # like any damaged record


def test_the_state_is_written_only_when_it_changes(tmp_path: Path) -> None:
    state = StateFile(tmp_path, "hub1")
    state.update(snapshot="s1")
    before = state.path.stat().st_ino
    state.update(snapshot="s1")
    assert state.path.stat().st_ino == before
    state.update(snapshot="s2")
    assert state.path.stat().st_ino != before


# -- the lock -------------------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of hub1 until its input ends."""
    code = (
        "import sys; from pathlib import Path; from iotops.journal import lock\n"
        f"with lock(Path({str(tmp_path)!r}), 'hub1', 'backup'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    with child:
        yield child
        child.kill()


def test_a_second_run_is_refused_and_told_by_whom(
    tmp_path: Path, held: subprocess.Popen[str]
) -> None:
    told = f"iotops backup, process {held.pid}"
    with pytest.raises(Locked, match=told) as caught, lock(tmp_path, "hub1", "restore"):
        pass
    assert caught.value.exit is Exit.LOCKED and "iotops status" in caught.value.hint
    with lock(tmp_path, "hub2", "backup"):
        pass  # another hub is another lock


def test_a_lock_ends_with_its_process(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    held.kill()
    held.wait()
    with lock(tmp_path, "hub1", "restore"):
        pass


def test_a_short_lock_is_waited_for(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    assert held.stdin is not None
    held.stdin.close()
    with lock(tmp_path, "hub1", "restore", patience=10.0):
        pass


def test_the_state_stays_under_4_kb_whatever_is_said(tmp_path: Path) -> None:
    """Messages are cut before anything else is."""
    state = StateFile(tmp_path, "hub1")
    times = "2026-03-01T03:10:00+00:00"
    last = {
        action: {"time": times, "outcome": "failed", "message": "é" * 300, "snapshot": "a" * 64}
        for action in ("backup", "restore", "drill", "copy", "check", "prune", "retention", "flows")
    }
    copies = {
        f"copy-{number}": {
            "repository": "b" * 64,
            "snapshot": "c" * 64,
            "outcome": "failed",
            "message": "m" * 150,
            "good": times,
        }
        for number in range(4)
    }
    kit = {"made": times, "proven": times, "repository": "d" * 64, "own_key": "e" * 16}
    for name in ("", *(f" {one}" for one in copies)):
        kit |= {f"{what}{name}": "f" * 16 for what in ("key", "access", "proven_key")}
    state.update(last=last, copies=copies, good=dict.fromkeys(last, times), kit=kit)
    assert state.path.stat().st_size < 4096
    found = state.read()
    assert found.copies["copy-3"]["repository"] == "b" * 64 and found.kit == kit
    assert found.last["backup"]["message"].startswith("é")
    state.update(last={"backup": last["backup"]})
    assert state.read().last["backup"]["message"] == "é" * 300  # where there is room, all of it
