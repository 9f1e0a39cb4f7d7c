"""Locks in the repository that a dead restic of this machine left behind.

A run that was killed leaves restic's lock, and a forget, prune or check then waits for nobody.
restic's own `unlock` is not run blindly: it sends SIGHUP to whatever process has the number that a
lock of this host names, which after a restart may be Node-RED or influxd (measured; restic 0.14 to
0.19, internal/restic/lock_unix.go). So each lock is looked at first, and a lock of another machine
or of a living restic is never removed. Not here: the lock of iotops itself (`journal.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from iotops.errors import IotopsError, Locked
from iotops.events import Noted, Report, silent
from iotops.hub import Hub
from iotops.journal import process_birth

if TYPE_CHECKING:
    from iotops.clients.restic import LockInfo

T = TypeVar("T")

ABSENT, OTHER, RESTIC = "absent", "other", "restic"
"""What a lock's process number leads to on this machine: nothing, another program, a restic."""


REAPED = 5.0
"""Seconds: an ended process whose parent has died is taken away by process 1, mostly at once."""


def without_dead(hub: Hub, call: Callable[[], T], report: Report = silent) -> T:
    """Do something that needs the repository to itself; dead locks of this machine are no obstacle.

    The caller holds the hub's lock. The locks are looked at only when one is in the way.

    Raises:
        Locked: a living restic, or another machine, holds a lock.
    """
    try:
        return call()
    except Locked:
        if not remove_dead(hub, report):
            raise
        return call()


def remove_dead(hub: Hub, report: Report = silent) -> bool:
    """Remove the locks that dead restics of this machine left, if that harms nobody.

    Returns:
        Whether any was removed.

    Raises:
        IotopsError: the locks cannot be read, or not be removed.
    """
    found = hub.repository.locks()
    host, boot = os.uname().nodename, booted()
    dead = [one for one in found if is_dead(one, host, boot, held_by(one.pid))]
    if not dead:
        return False
    ours = [one for one in found if one.host == host]
    wait_until_gone([one.pid for one in dead])
    if all(held_by(one.pid) == RESTIC or not _has_number(one.pid) for one in ours):
        hub.repository.unlock()  # asks only numbers that nobody has, or a restic, which ignores it
    elif len(dead) == len(found):
        hub.repository.unlock(every=True)  # asks nobody
    else:
        names = _names(dead)
        text = f"a lock of a dead restic ({names}) is left beside others: restic unlock, later"
        report(Noted("warning", text, "repository"))
        return False
    text = f"removed the lock of a dead restic of this machine ({_names(dead)})"
    report(Noted("warning", text, "repository"))
    return True


def is_dead(lock: LockInfo, host: str, boot: datetime, holder: str) -> bool:
    """Tell whether a lock is of a restic of this machine that lives no more. Pure.

    Args:
        host: this machine's name. boot: when it was started.
        holder: what the lock's process number leads to, see `held_by`.
    """
    if lock.host != host:
        return False
    return holder != RESTIC or lock.time < boot


def held_by(pid: int) -> str:
    """Look at what a process number leads to on this machine."""
    try:
        program = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ABSENT
    if not process_birth(pid):
        return ABSENT  # it has ended, and only waits for its parent to look
    return RESTIC if program.startswith("restic") else OTHER


def _has_number(pid: int) -> bool:
    """Tell whether a number is taken, be it by a process that has ended and was not looked at."""
    return Path(f"/proc/{pid}").exists()


def wait_until_gone(pids: Sequence[int], patience: float = REAPED) -> bool:
    """Give the system a moment to take away processes that have ended: restic asks by number.

    Args:
        patience: seconds.

    Returns:
        Whether none of the numbers belongs to an ended process any more.
    """
    until = time.monotonic() + patience
    while any(_has_number(pid) and held_by(pid) == ABSENT for pid in pids):
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True


def booted() -> datetime:
    """Give when this machine was started, by its present clock."""
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return datetime.now(UTC) - timedelta(seconds=up)


def _names(locks: Sequence[LockInfo]) -> str:
    return ", ".join(f"process {one.pid}, {one.time:%Y-%m-%d %H:%M} UTC" for one in locks)


def sweep(hub: Hub, report: Report = silent) -> None:
    """Remove dead locks after a run that died, where the repository is on this machine.

    A far one is not asked now: it may be out of reach, and the services wait to be started. There
    a dead lock goes when it is in the way.
    """
    url = hub.settings.repository.url if hub.settings.repository else ""
    if not (Path(url) / "locks").is_dir() or not any((Path(url) / "locks").iterdir()):
        return
    try:
        remove_dead(hub, report)
    except IotopsError as error:
        report(Noted("warning", f"its locks could not be looked at: {error.message}", "repository"))
