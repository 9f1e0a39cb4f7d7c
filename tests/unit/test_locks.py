"""Which lock in the repository is of a dead restic: told by machine, process and time of boot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops.actions.locks import (
    ABSENT,
    OTHER,
    RESTIC,
    booted,
    held_by,
    is_dead,
    wait_until_gone,
)
from iotops.clients.restic import LockInfo

pytestmark = pytest.mark.unit

BOOT = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEFORE, AFTER = BOOT - timedelta(minutes=1), BOOT + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("host", "made", "holder", "dead"),
    [
        ("hub", AFTER, ABSENT, True),
        ("hub", AFTER, OTHER, True),  # its number was given to another program
        ("hub", AFTER, RESTIC, False),
        ("hub", BEFORE, RESTIC, True),  # a restic of this boot cannot have made it
        ("hub", BEFORE, OTHER, True),
        ("elsewhere", BEFORE, ABSENT, False),  # its process is nowhere to be looked at
    ],
)
def test_whether_a_lock_is_dead(host: str, made: datetime, holder: str, dead: bool) -> None:
    lock = LockInfo("ab" * 32, made, host, 4711, "root", True)
    assert is_dead(lock, "hub", BOOT, holder) is dead


def test_what_a_process_number_leads_to(tmp_path: Path) -> None:
    assert held_by(os.getpid()) == OTHER
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert held_by(ended.pid) == ABSENT
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, tmp_path / "restic")
    with subprocess.Popen([tmp_path / "restic", "60"]) as child:
        until = time.monotonic() + 10
        while held_by(child.pid) != RESTIC:  # its name comes a moment after its start
            assert time.monotonic() < until
        child.kill()


def test_a_zombie_holds_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert held_by(child.pid) == ABSENT
    child.wait()


def test_an_ended_process_is_waited_for_until_its_parent_has_looked() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not wait_until_gone([os.getpid(), child.pid], 0.1), "its number is still taken"
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(wait_until_gone([child.pid], 60)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive(), "it waits for the parent"
    child.wait()
    waiting.join(30)
    assert told == [True]


def test_who_lives_is_not_waited_for() -> None:
    began = time.monotonic()
    assert wait_until_gone([os.getpid()], 60)
    assert time.monotonic() - began < 30


def test_when_the_machine_was_started() -> None:
    lines = Path("/proc/stat").read_text().splitlines()
    (told,) = [int(line.split()[1]) for line in lines if line.startswith("btime")]
    assert abs(booted().timestamp() - told) < 5
    assert booted().timestamp() < time.time()
