"""What a dead run leaves beyond the steps of the kill matrix: locks, power cuts, changes since.

The matrix (`test_kill_matrix.py`) ends every step; here the world is another one when things are
put right: the machine was started again, the container is gone, the process number is somebody
else's, the disk shows what had reached it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import need
from tests.e2e.test_drill import left_behind
from tests.support.hubs import HubUnderTest, docker
from tests.support.killmatrix import FOLDERS, RUNNING, STOPPED, Held, LightHub
from tests.support.lab import lab
from tests.support.resticbench import environment, leave_exclusive_lock

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

RESTORE = ("restore", "latest", "--yes")


@pytest.fixture
def light(light_hubs: list[LightHub]) -> Iterator[LightHub]:
    """One light hub, whose folders say "today" while the newest snapshot says "snapshot"."""
    hub = light_hubs[0]
    if any((hub.own / "replaced").iterdir()):
        assert hub.iotops("undo", "--discard", "--yes").code == 0
    hub.write("today")
    docker("stop", hub.container(STOPPED))
    assert hub.running() == RUNNING
    yield hub
    assert hub.iotops("resume").code == 0
    again = hub.iotops("up")
    assert again.code == 0, again.err
    docker("stop", hub.container(STOPPED))


def killed(hub: LightHub, step: str, service: str = "", *argv: str) -> str:
    """Kill a command (a restore) in a step; give its run."""
    run = Held(hub, *(argv or RESTORE))
    assert any((one.name, one.service) == (step, service) for one in run.steps()), run.errors()
    run.signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    return run.runs[-1][1]


def rewrite(hub: LightHub, run: str, **changes: object) -> None:
    """Change a record by hand."""
    path = hub.own / "journal" / f"{run}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def resumed(hub: LightHub) -> str:
    """Let `resume` put things right; give what it said."""
    done = hub.iotops("resume", "--json")
    assert done.code == 0, done.err + done.out
    return done.out


# -- the next command -----------------------------------------------------------------------------


def test_up_refuses_while_a_restore_is_open(light: LightHub) -> None:
    killed(light, "swap", "cold")
    before = light.running()
    refused = light.iotops("up")
    assert refused.code == 1 and "died and has not been settled" in refused.err
    assert "next:  iotops resume" in refused.err.replace("settle it first: ", "")
    assert light.running() == before
    resumed(light)
    assert (light.words(), light.running()) == ({"today"}, RUNNING)
    assert "nothing to do" in light.iotops("resume").out
    assert light.iotops("up").code == 0


@pytest.mark.parametrize(
    ("argv", "step", "service"), [(("backup",), "start", "cold"), (RESTORE, "swap", "cold")]
)
def test_a_lost_terminal_ends_a_run_cleanly(
    light: LightHub, argv: tuple[str, ...], step: str, service: str
) -> None:
    """SIGHUP: the SSH session broke off."""
    run = Held(light, *argv)
    assert any((one.name, one.service) == (step, service) for one in run.steps())
    run.signal(signal.SIGHUP)
    assert run.end() == 130
    record = light.record(run.runs[-1][1])
    assert record["outcome"] == "interrupted" and record["message"] == "interrupted by SIGHUP"
    assert (light.words(), light.running()) == ({"today"}, RUNNING)


# -- the owner was there --------------------------------------------------------------------------


def test_a_container_removed_since_is_no_obstacle(light: LightHub) -> None:
    run = killed(light, "swap", "cold")
    docker("rm", "-f", light.container("cold"))
    assert "its container was removed" in resumed(light)
    assert light.record(run)["outcome"] == "failed" and light.words() == {"today"}
    assert light.running() == RUNNING - {"cold"}


def test_a_container_made_anew_since_is_left_as_it_is(light: LightHub) -> None:
    killed(light, "swap", "cold")
    docker("rm", "-f", light.container("cold"))
    docker("compose", "--project-directory", str(light.folder), "create", "cold")
    assert "made anew" in resumed(light)
    assert light.words() == {"today"} and light.running() == RUNNING - {"cold"}


def test_a_container_that_was_never_stopped_is_left_alone(light: LightHub) -> None:
    """The power went between the note and the stop."""
    run = killed(light, "capture", "other", "backup")
    cold = light.container("cold")
    full = docker("inspect", "-f", "{{.Id}}", cold).strip()
    rewrite(light, run, stopped=[{"service": "cold", "container": full}])
    before = docker("inspect", "-f", "{{.State.StartedAt}}", cold)
    resumed(light)
    assert light.record(run)["stopped"] == []
    assert docker("inspect", "-f", "{{.State.StartedAt}}", cold) == before


def test_a_folder_made_anew_between_two_renames_is_kept(light: LightHub) -> None:
    """The power went with nothing in its place; at boot the engine and a server made a new one."""
    run = killed(light, "swap", "cold")
    live, old = light.root / "cold", light.own / "replaced" / run / "cold"
    new = light.own / "tmp" / run / "snapshot" / "cold"
    before = light.record(run)["swaps"]
    assert isinstance(before, list)
    if old.exists():  # it came further
        live.rename(new)
    else:
        old.parent.mkdir(exist_ok=True)
        live.rename(old)
    swap = {"service": "cold", "live": str(live), "old": str(old), "new": str(new)}
    others = [one for one in before if one["live"] != str(live)]
    rewrite(light, run, swaps=[*others, {**swap, "had_old": True, "done": False}])
    live.mkdir()
    (live / "virgin").write_text("an empty database\n")
    assert "made anew" in resumed(light)
    assert (light.words(), light.running()) == ({"today"}, RUNNING)
    (kept,) = old.parent.iterdir()
    assert [path.name for path in kept.iterdir()] == ["virgin"]


# -- another boot ---------------------------------------------------------------------------------


def test_a_record_of_another_boot_is_dead_whoever_has_its_number(light: LightHub) -> None:
    run = killed(light, "swap", "cold")
    rewrite(light, run, boot="another", pid=os.getpid(), born="")
    resumed(light)
    assert light.record(run)["outcome"] == "failed"
    assert (light.words(), light.running()) == ({"today"}, RUNNING)


def test_a_number_used_again_in_this_boot_does_not_keep_a_run_alive(light: LightHub) -> None:
    run = killed(light, "swap", "cold")
    rewrite(light, run, pid=os.getpid())  # born at another time than the run
    resumed(light)
    assert light.record(run)["outcome"] == "failed"
    assert (light.words(), light.running()) == ({"today"}, RUNNING)


def power_cut(hub: LightHub, step: str, service: str, *argv: str) -> str:
    """Take the disk as it is in a step, what had not reached it is lost; give the run.

    The loop device's file holds what the file system wrote; what is in its memory is not in it.
    """
    run = Held(hub, *argv)
    assert any((one.name, one.service) == (step, service) for one in run.steps()), run.errors()
    cut = hub.base / "cut.ext4"
    with run.stopped():
        subprocess.run(["cp", "--sparse=always", hub.disk.image, cut], check=True)
        up = hub.running()
        run.signal(signal.SIGKILL)
    run.end()
    for name in sorted(hub.running()):
        docker("kill", hub.container(name))
    hub.disk.detach()
    cut.replace(hub.disk.image)
    hub.disk.attach()
    for name in sorted(up):  # the engine starts again what nobody stopped on purpose
        docker("start", hub.container(name))
    name = run.runs[-1][1]
    rewrite(hub, name, boot="the one before")
    return name


@pytest.mark.parametrize(
    ("step", "service", "argv"),
    [
        ("start", "cold", ("backup",)),
        ("save", "", ("backup",)),
        ("swap", "cold", RESTORE),
        ("verify", "cold", RESTORE),
        ("clean", "", RESTORE),
    ],
)
def test_the_power_goes(light: LightHub, step: str, service: str, argv: tuple[str, ...]) -> None:
    # Something new to stage, which has not reached the disk yet. New by name: ext4 writes out at
    # once what is renamed over an older file.
    fresh = f"fresh-{secrets.token_hex(4)}"
    for name in FOLDERS:
        (light.root / name / "deep" / fresh).write_bytes(os.urandom(300_000))
    subprocess.run(["sync", "-f", light.root], check=True)
    run = power_cut(light, step, service, *argv)
    resumed(light)
    record = light.record(run)
    assert (record["outcome"], record["stopped"], record["swaps"]) == ("failed", [], [])
    assert (light.words(), light.running()) == ({"today"}, RUNNING)
    made = light.iotops("backup", "--json")
    assert made.code == 0, made.err
    out = light.base / "out"
    try:
        assert light.iotops("restore", "latest", "--into", str(out)).code == 0
        for name, place in (("cold", "cold"), ("quiet", "quiet"), ("notes", "other/notes")):
            live, saved = light.root / name / "deep" / fresh, out / place / "deep" / fresh
            assert saved.read_bytes() == live.read_bytes(), f"{name}: torn in the snapshot"
    finally:
        shutil.rmtree(out, ignore_errors=True)
        light.write("snapshot")
        assert light.iotops("backup").code == 0  # as the other tests expect it


def test_a_power_cut_after_a_backup_tears_nothing_in_the_next_one(light: LightHub) -> None:
    """What a run staged is remembered as unchanged: it must be on the disk as a whole."""
    fresh = light.root / "cold" / "deep" / f"fresh-{secrets.token_hex(4)}"
    fresh.write_bytes(os.urandom(3_000_000))
    subprocess.run(["sync", "-f", light.root], check=True)
    assert light.iotops("backup").code == 0
    cut = light.base / "cut.ext4"
    subprocess.run(["cp", "--sparse=always", light.disk.image, cut], check=True)
    for name in sorted(light.running()):
        docker("kill", light.container(name))
    light.disk.detach()
    cut.replace(light.disk.image)
    light.disk.attach()
    for name in sorted(RUNNING):
        docker("start", light.container(name))
    assert fresh.stat().st_size == 3_000_000
    staged = light.own / "staging" / "cold" / "deep" / fresh.name
    assert staged.read_bytes() == fresh.read_bytes()
    light.write("snapshot")
    assert light.iotops("backup").code == 0


# -- a new disk -----------------------------------------------------------------------------------


def test_a_restore_onto_a_new_disk_is_killed_and_done_again(light: LightHub) -> None:
    """What did not run before is not started by putting right: it has no folder there."""
    for name in sorted(RUNNING):
        docker("kill", light.container(name))
    light.disk.lose()
    killed(light, "wait", "cold", *RESTORE, "--claim-disk")
    resumed(light)
    assert light.running() == frozenset()
    assert not any((light.root / name).exists() for name in FOLDERS)
    again = light.iotops(*RESTORE)
    assert again.code == 0, again.err
    assert light.words() == {"snapshot"} and light.running() == RUNNING | {STOPPED}


# -- locks in the repository ----------------------------------------------------------------------


def bare(hub: LightHub) -> tuple[Path, dict[str, str]]:
    """The bare restic, and what it needs."""
    program = Path(lab().restic[max(lab().restic)])
    return program, environment(hub.repository, hub.password_file, hub.base)


def locks(hub: LightHub) -> list[str]:
    """The names of the locks that are there."""
    return sorted(
        path.name for path in (hub.repository / "locks").iterdir() if len(path.name) == 64
    )


@contextmanager
def at_work(hub: LightHub, *before: str) -> Iterator[subprocess.Popen[bytes]]:
    """A living restic that holds a lock."""
    program, values = bare(hub)
    known = locks(hub)
    child = subprocess.Popen(
        [*before, program, "backup", "--stdin", "--host", "other"],
        env=values,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while locks(hub) == known:
            assert time.monotonic() < until and child.poll() is None
        yield child
    finally:
        child.kill()
        child.wait()


def reused(pid: int) -> subprocess.Popen[bytes]:
    """Start another program under a process number that was somebody else's."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        child = subprocess.Popen(["sleep", "600"])
        if child.pid == pid:
            return child
        child.kill()
        child.wait()
    pytest.fail("the process number was not to be had")


@pytest.mark.parametrize("command", [("backup",), ("prune", "--yes"), ("check",)])
def test_a_dead_exclusive_lock_of_ours_is_no_obstacle(
    light: LightHub, command: tuple[str, ...]
) -> None:
    leave_exclusive_lock(*bare(light))
    assert len(locks(light)) == 1
    light.write("snapshot")
    done = light.iotops(*command)
    assert done.code == 0, done.err
    assert locks(light) == []


def test_resume_removes_the_lock_of_a_dead_run(light: LightHub) -> None:
    killed(light, "save", "", "backup")
    leave_exclusive_lock(*bare(light))
    assert "removed the lock of a dead restic" in resumed(light)
    assert locks(light) == []


def test_another_program_with_a_locks_number_is_not_hung_up(light: LightHub) -> None:
    """restic's own unlock would send it SIGHUP, and keep the lock."""
    other = reused(leave_exclusive_lock(*bare(light)))
    try:
        done = light.iotops("prune", "--yes")
        assert done.code == 0, done.err
        assert locks(light) == [] and other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_beside_a_living_lock_nothing_is_risked(light: LightHub) -> None:
    """One lock is dead and its number another program's, one lives: neither is touched."""
    with at_work(light) as dying:
        pid = dying.pid
    other = reused(pid)
    try:
        with at_work(light):
            before = locks(light)
            assert len(before) == 2
            done = light.iotops("prune", "--yes")
            assert done.code == 11, done.err + done.out
            assert locks(light) == before and other.poll() is None
            assert "next:" in done.err
    finally:
        other.kill()
        other.wait()
        for path in (light.repository / "locks").iterdir():
            path.unlink()


def test_the_lock_of_another_machine_is_never_removed(light: LightHub) -> None:
    need("unshare")
    change = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$0" "$@"')
    with at_work(light, *change):
        pass
    try:
        before = locks(light)
        assert len(before) == 1
        done = light.iotops("prune", "--yes")
        assert done.code == 11 and "elsewhere" in done.err, done.err
        assert locks(light) == before
    finally:
        for path in (light.repository / "locks").iterdir():
            path.unlink()


def test_a_killed_run_leaves_no_restic_behind(light: LightHub) -> None:
    """It would go on reading what the next run stages, and save a snapshot that nobody knows."""
    need("setpriv")
    big = light.root / "cold" / "big"
    big.write_bytes(os.urandom(30_000_000))
    try:
        before = light.restic("snapshots", "--json")
        run = Held(light, "backup")
        assert any(one.name == "save" for one in run.steps()), run.errors()
        until = time.monotonic() + 30
        while not (found := restics(light, "backup")):
            assert time.monotonic() < until
        os.kill(found[0], signal.SIGSTOP)  # it is in the middle, however small the data
        run.signal(signal.SIGKILL)
        run.end()
        os.kill(found[0], signal.SIGCONT)
        while restics(light):
            assert time.monotonic() < until
        assert light.restic("snapshots", "--json") == before
        resumed(light)
        assert locks(light) == []
    finally:
        big.unlink()


def restics(hub: LightHub, doing: str = "") -> list[int]:
    """The restic processes that work on the hub's repository."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            values = (path / "environ").read_bytes().split(b"\0")
            words = (path / "cmdline").read_bytes().split(b"\0")
            name = (path / "comm").read_text().strip()
        except OSError:
            continue
        if name == "restic" and f"RESTIC_REPOSITORY={hub.repository}".encode() in values:
            if not doing or doing.encode() in words:
                found.append(int(path.name))
    return found


# -- every kind of service ------------------------------------------------------------------------


def test_every_kind_takes_the_steps_that_the_matrix_ends(
    hub: HubUnderTest, light_hubs: list[LightHub]
) -> None:
    """The matrix runs on a light hub; here it is shown that no kind has a step of its own."""

    def steps(on: HubUnderTest, *argv: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        run = Held(on, *argv)
        for step in run.steps():
            found.setdefault(step.service.split("/")[0], set()).add(step.name)
        assert run.end() == 0, run.errors()
        return found

    for argv in (("backup",), RESTORE, ("undo", "--yes")):
        known = steps(light_hubs[1], *argv)
        every = set().union(*known.values())
        for service, names in steps(hub, *argv).items():
            assert names <= every, f"{argv[0]}: {service} has {sorted(names - every)}"
    assert hub.iotops("undo", "--discard", "--yes").code == 0
    docker("stop", light_hubs[1].container(STOPPED))


def test_a_backup_is_killed_in_the_capture_of_every_kind(hub: HubUnderTest) -> None:
    steps = Held(hub, "backup")
    captures = [one for one in steps.steps() if one.name == "capture"]
    assert steps.end() == 0
    before = hub.running()
    for capture in captures:
        run = Held(hub, "backup")
        assert run.until(capture)
        run.signal(signal.SIGKILL)
        run.end()
        assert hub.running() == before
    done = hub.iotops("backup", "--json")
    assert done.code == 0, done.err + done.out
    assert done.result()["outcome"] == "complete"


# -- a rehearsal ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "service", "left"), [("extract", "", 1), ("start", "cold", 1), ("clear", "cold", 3)]
)
def test_the_next_drill_clears_what_a_killed_one_left(
    light: LightHub, step: str, service: str, left: int
) -> None:
    """Its folder, its network and its container, whichever of them were there."""
    killed(light, step, service, "drill", "--service", "cold")
    assert len(left_behind(light)) >= left
    again = light.iotops("drill", "--service", "cold")
    assert again.code == 0, again.err + again.out
    assert left_behind(light) == [] and light.running() == RUNNING
