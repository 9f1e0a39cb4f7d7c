"""What a restore does when it is not easy: shared folders, failing services, missing parts.

On a hub of sleeping containers (`tests/support/plainhub.py`): nothing here depends on what a server
makes of its data. Every test begins with all containers up and "today" in every folder, while the
good snapshot says "snapshot".
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops.demo.ground import free_port
from tests.conftest import need
from tests.e2e.test_faults import edited
from tests.support.disk import Disk
from tests.support.hubs import Ended, docker
from tests.support.killmatrix import Held
from tests.support.lab import lab
from tests.support.plainhub import ALL, WORDS, PlainHub, plain_hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def made() -> Iterator[PlainHub]:
    """One hub for all tests of this file."""
    for what in ("docker", "compose", "root", "restic", "image base"):
        need(what)
    hub = plain_hub()
    try:
        yield hub
    finally:
        if not os.environ.get("IOTOPS_TEST_KEEP"):
            hub.remove()


@pytest.fixture
def hub(made: PlainHub) -> Iterator[PlainHub]:
    """The hub, with "today" in every folder; put together again after each test."""
    made.lay_out("today")
    yield made
    if os.path.ismount(made.root) and made.running() == ALL:
        made.iotops("undo", "--discard", "--yes")
        return
    for name in sorted(made.running()):  # whatever the test has left
        docker("rm", "-f", made.container(name))
    if not os.path.ismount(made.root):
        made.disk.attach()
    if not (made.root / ".iotops-data-root").exists():
        made.iotops("restore", made.good, "--claim-disk", "--yes")
    made.iotops("resume")
    made.lay_out("today")
    up = made.iotops("up")
    assert up.code == 0, up.err
    made.iotops("undo", "--discard", "--yes")


def restored(hub: PlainHub, *argv: str) -> Ended:
    return hub.iotops("restore", *argv, "--yes", "--json")


def last(hub: PlainHub, action: str) -> dict[str, object]:
    """Read the newest record of an action."""
    path = max(
        (hub.own / "journal").glob(f"*-{action}-*.json"), key=lambda one: one.stat().st_mtime
    )
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


def settled(hub: PlainHub, kept: int = 0) -> None:
    """A failed run has left nothing behind, and nothing open."""
    record = last(hub, "restore")
    assert (record["outcome"], record["swaps"], record["stopped"]) == ("failed", [], [])
    assert not any((hub.own / "tmp").iterdir())
    assert len([*(hub.own / "replaced").iterdir()]) == kept
    assert "nothing to do" in hub.iotops("resume").out


def started(hub: PlainHub, name: str) -> str:
    return docker("inspect", "-f", "{{.State.StartedAt}}", hub.container(name))


# -- a new disk -----------------------------------------------------------------------------------


def test_everything_comes_back_on_a_new_disk(hub: PlainHub) -> None:
    """A container that mounts two more folders than its own, and one that keeps no data."""
    hub.lose()
    done = restored(hub, hub.good, "--claim-disk")
    assert done.code == 0, done.err + done.out
    assert hub.words() == {"snapshot"} and hub.running() == ALL
    above, inner = (hub.root / "apps").stat(), (hub.root / "apps" / "app").stat()
    assert (above.st_uid, above.st_gid, above.st_mode & 0o7777) == (1000, 1001, 0o750)
    assert (inner.st_uid, inner.st_gid) == (1002, 1003)


def test_a_container_without_data_that_does_not_start_is_told(hub: PlainHub) -> None:
    compose = hub.folder / "docker-compose.yaml"
    hub.lose()
    broken = "    image: iotops-lab/none:0\n    pull_policy: never\n    volumes: []"
    with edited(compose, "    volumes: []", broken):
        done = restored(hub, hub.good, "--claim-disk")
    assert done.code == 3, done.err + done.out
    assert "container.down" in done.out and last(hub, "restore")["outcome"] == "partial"

    assert hub.running() == ALL - {"proxy"}


def test_a_service_that_the_snapshot_does_not_know_makes_it_partial(hub: PlainHub) -> None:
    hub.lose()
    mount = f'{{type: bind, source: "{hub.root}/late", target: /state}}'
    late = f"\n  late:\n    <<: *sleeper\n    volumes:\n      - {mount}\n"
    compose = hub.folder / "docker-compose.yaml"
    before, settings = compose.read_text(), hub.settings.read_text()
    compose.write_text(before + late)
    hub.settings.write_text(settings + '\n[services.late]\nkind = "files"\n')
    try:
        plan = hub.iotops("restore", hub.good, "--claim-disk", "--dry-run")
        assert "late: the snapshot knows no such service" in plan.out
        done = restored(hub, hub.good, "--claim-disk")
    finally:
        compose.write_text(before)
        hub.settings.write_text(settings)
    assert done.code == 3, done.err + done.out
    assert "service.not-in-snapshot" in done.out
    assert hub.words() == {"snapshot"} and hub.running() == ALL


@pytest.mark.parametrize("containers", ["removed", "running"])
def test_a_second_service_that_does_not_come_up_bricks_nothing(
    hub: PlainHub, containers: str
) -> None:
    """On a new disk: there is no old data that could run again."""
    bad = hub.marked("bad")
    if containers == "removed":
        hub.lose()
        other = None
    else:  # the old disk died under them, and hangs on in their mounts
        hub.disk.detach()
        other = Disk(hub.base / "new.ext4", hub.root)
    try:
        done = restored(hub, bad, "--claim-disk")
        assert done.code == 1, done.err + done.out
        assert "two did not come up: ended with exit code 3" in done.err
        settled(hub)
        assert not any((hub.root / name).exists() for name in ("one", "two", "share"))
        again = restored(hub, hub.good)
        assert again.code == 0, again.err + again.out
        assert hub.words() == {"snapshot"} and hub.running() == ALL
    finally:
        if other is not None:
            for name in sorted(hub.running()):
                docker("rm", "-f", hub.container(name))
            other.remove()
            hub.disk.attach()


def test_a_repository_that_is_not_there_leaves_the_disk_unclaimed(hub: PlainHub) -> None:
    hub.lose()
    (state,) = hub.state.glob("*.json")
    recorded = json.loads(state.read_text())["repository"]
    with edited(state, recorded, "f" * 64):
        text = json.loads(state.read_text())
        text["snapshot"] = ""
        state.write_text(json.dumps(text))
        done = restored(hub, hub.good, "--claim-disk")
    assert done.code == 1 and "this hub recorded" in done.err
    assert sorted(path.name for path in hub.root.iterdir()) == ["lost+found"]


# -- the old disk ---------------------------------------------------------------------------------


def test_a_second_service_that_does_not_come_up_puts_everything_back(hub: PlainHub) -> None:
    bad = hub.marked("bad")
    hub.lay_out("today")
    app = started(hub, "app")
    done = restored(hub, bad)
    assert done.code == 1, done.err + done.out
    assert "two did not come up: ended with exit code 3" in done.err
    settled(hub)
    assert hub.words() == {"today"} and hub.running() == ALL
    assert started(hub, "app") == app  # its turn had not come
    again = restored(hub, hub.good)
    assert again.code == 0, again.err
    assert hub.words() == {"snapshot"} and hub.running() == ALL


def test_where_putting_back_fails_too_both_are_told(hub: PlainHub) -> None:
    """Somebody removed another folder meanwhile: the record stays open, and `resume` goes on."""
    bad = hub.marked("bad")
    hub.lay_out("today")
    run = hub.start("restore", bad, "--yes", "--json")
    run.wait_for("step_started", step="stop", service="two")
    hub.outside.rmdir()
    ended = run.end()
    assert ended.code == 1 and "two did not come up: ended with exit code 3" in ended.err
    assert "did not start again: one" in ended.err and "iotops resume" in ended.err
    assert hub.words() == {"today"} and hub.running() == ALL - {"one"}
    assert hub.iotops("resume").code == 1
    hub.outside.mkdir()
    assert hub.iotops("resume").code == 0
    assert hub.running() == ALL
    settled(hub)


def test_a_restored_service_that_clears_out_its_data_is_found(hub: PlainHub) -> None:
    wiping = hub.marked("wipe")
    hub.lay_out("today")
    done = restored(hub, wiping)
    assert done.code == 1, done.err + done.out
    assert "files that were put back are gone" in done.err and "iotops undo" in done.err
    assert last(hub, "restore")["outcome"] == "failed"
    back = hub.iotops("undo", "--yes")
    assert back.code == 0, back.err
    assert hub.words() == {"today"} and hub.running() == ALL


def test_a_partial_snapshot_is_restored_in_part(hub: PlainHub) -> None:
    data, aside = hub.root / "apps/app/data", hub.base / "aside"
    hub.write("marked")
    shutil.move(data, aside)
    try:
        made = hub.iotops("backup", "--json")
        assert made.code == 3, made.err
    finally:
        shutil.move(aside, data)
    hub.write("today")
    done = restored(hub, str(made.result()["snapshot"]))
    assert done.code == 3, done.err + done.out
    assert "service.missing" in done.out and last(hub, "restore")["outcome"] == "partial"
    words = [(folder / "word").read_text() for folder in (hub.root / "two", data)]
    assert words == ["marked", "today"]


def test_what_mounts_a_service_from_above_is_stopped_for_it(hub: PlainHub) -> None:
    """Its program has files open below: a copy would not be cold, an exchange not be seen."""
    before = started(hub, "app")
    made = hub.iotops("backup", "--json").result()
    services = made["services"]
    assert isinstance(services, dict) and services["app"]["stopped_seconds"] > 0
    between = started(hub, "app")
    assert between != before
    done = restored(hub, hub.good, "--service", "app")
    assert done.code == 0, done.err
    assert started(hub, "app") != between


# -- which snapshot -------------------------------------------------------------------------------


def test_a_snapshot_that_does_not_count_is_never_latest(hub: PlainHub, tmp_path: Path) -> None:
    """restic could not read a staged file, and the repository does not forget (append-only)."""
    real = lab().restic[max(lab().restic)]
    fake = tmp_path / "restic"
    fake.write_text(
        f'#!/bin/sh\ncase " $* " in\n*" backup "*) {real} "$@"; exit 3;;\n'
        f'*" forget "*) echo "Fatal: 403 Forbidden" >&2; exit 1;;\nesac\nexec {real} "$@"\n'
    )
    fake.chmod(0o755)
    hub.write("snapshot")
    good = hub.backed_up()
    done = hub.iotops("backup", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.code == 1 and "does not count" in done.err, done.err
    listed = json.loads(hub.iotops("snapshots", "--json").out)
    # It was tried twice: what restic lost in the repository would have been mended by the first.
    told = ["complete", "does not count", "does not count"]
    assert [one["outcome"] for one in listed[-3:]] == told
    plan = hub.iotops("restore", "latest", "--dry-run", "--json").result()
    assert plan["snapshot"] == good
    with edited(
        hub.settings, SERVICE, f"[retention]\nkeep_daily = 1\nkeep_at_least = 1\n\n{SERVICE}"
    ):
        gone = hub.iotops("retention", "--apply", "--yes")
        assert gone.code == 0, gone.err
    left = [one["id"] for one in json.loads(hub.iotops("snapshots", "--json").out)]
    assert good in left and not {one["id"] for one in listed[-2:]} & {*left}
    hub.good = good  # the one from before is forgotten


SERVICE = "[services.one]"


# -- what is told, and asked ----------------------------------------------------------------------


def test_the_plan_is_told_to_machines_before_it_is_applied(hub: PlainHub) -> None:
    done = restored(hub, hub.good)
    assert done.code == 0, done.err
    kinds = [str(line["message_type"]) for line in done.lines()]
    assert kinds[0] == "plan" and kinds[-1] == "result"
    steps = done.lines()[0]["steps"]
    assert isinstance(steps, list) and steps[0]["kind"] == "extract"


def test_a_question_is_never_asked_unseen(hub: PlainHub) -> None:
    """`--quiet` on a terminal: what the question is about is shown all the same."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"n\n")
        done = subprocess.run(
            hub._argv(("restore", hub.good, "--quiet"), True),
            env=hub._env(None),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=hub.base,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode != 0 and "Apply this plan?" in done.stderr
    assert "swap" in done.stderr and done.stdout == ""
    assert hub.words() == {"today"}


def test_without_root_the_hint_is_the_same_command_with_sudo(tmp_path: Path) -> None:
    argv = ["restore", "latest", "--service", "a b", "--yes", "--hub", str(tmp_path)]
    code = (
        "import os, shlex, sys\nfrom iotops.cli import main, render\n"
        f"sys.argv = ['iotops', *{argv!r}]\n"
        "import iotops.cli.backups\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert done.returncode == 2, done.stderr
    assert f"sudo iotops restore latest --service 'a b' --yes --hub {tmp_path}" in done.stderr


# -- what of this machine does not fit ------------------------------------------------------------


def published(hub: PlainHub, *ports: str) -> str:
    """Give the Compose file with ports of `two`; its container is left as it is."""
    listed = ", ".join(f'"{one}"' for one in ports)
    text = hub.compose.replace("  two:\n", f"  two:\n    ports: [{listed}]\n", 1)
    assert text != hub.compose
    return text


def test_a_port_more_open_than_recorded_is_told_until_it_is_accepted(hub: PlainHub) -> None:
    compose = hub.folder / "docker-compose.yaml"
    number = free_port()
    compose.write_text(published(hub, f"127.0.0.1:{number}:80"))
    try:
        good = hub.backed_up()
        hub.write("today")
        compose.write_text(published(hub, f"{number}:80"))
        says = f"port {number} for 80/tcp at every address is published"
        plan = hub.iotops("restore", good, "--dry-run")
        assert plan.code == 0 and says in plan.out and "--accept-ports" in plan.out
        done = restored(hub, good)
        assert done.code == 3 and says in done.out, done.err
        assert last(hub, "restore")["outcome"] == "partial"
        done = restored(hub, good, "--accept-ports")
        assert done.code == 0 and "which is accepted" in done.out, done.err
    finally:
        compose.write_text(hub.compose)


def test_an_address_that_is_gone_stops_nothing(hub: PlainHub) -> None:
    compose = hub.folder / "docker-compose.yaml"
    before = started(hub, "two")
    compose.write_text(published(hub, "192.0.2.7:8080:80"))
    try:
        done = restored(hub, hub.good)
    finally:
        compose.write_text(hub.compose)
    assert done.code == 1 and "192.0.2.7" in done.err and "today's address" in done.err
    assert started(hub, "two") == before and hub.words() == {"today"}


def test_nothing_of_a_stack_that_ran_before_the_restore_is_mixed_in(hub: PlainHub) -> None:
    """The stack was started once on the fresh machine: what it made is put aside whole."""
    for name in ("one", "two", "apps/app/data", "share"):
        (hub.root / name / "made-at-the-first-start").write_text("a key of its own")
    done = restored(hub, hub.good)
    assert done.code == 0, done.err
    assert hub.words() == {"snapshot"}
    assert not [*hub.root.glob("[!.]*/**/made-at-the-first-start")]
    assert hub.iotops("undo", "--yes").code == 0
    assert (hub.root / "two" / "made-at-the-first-start").is_file()


def test_everything_comes_back_at_another_data_root(hub: PlainHub) -> None:
    """The disk of the new machine is mounted elsewhere: settings and Compose file say where."""
    hub.lose()
    compose, root = hub.folder / "docker-compose.yaml", hub.base / "elsewhere"
    other = Disk(hub.base / "elsewhere.ext4", root, size=200 << 20)
    try:
        with edited(hub.settings, f'root = "{hub.root}"', f'root = "{root}"'):
            done = restored(hub, hub.good, "--claim-disk")
            assert done.code == 1 and "it would not see it" in done.err, done.err
            assert not (root / ".iotops-data-root").exists()
            with edited(compose, f"{hub.root}/", f"{root}/"):
                done = restored(hub, hub.good, "--claim-disk")
        assert done.code == 0, done.err + done.out
        assert f"the data root was {hub.root} and is {root}" in done.out
        assert {(root / name / "word").read_text() for name in WORDS} == {"snapshot"}
        assert hub.running() == ALL
    finally:
        for name in sorted(hub.running()):
            docker("rm", "-f", hub.container(name))
        other.remove()


# -- only extract ---------------------------------------------------------------------------------


def test_into_a_disk_that_was_just_mounted(hub: PlainHub, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "usb.ext4", tmp_path / "usb", size=200 << 20)
    try:
        done = hub.iotops("restore", hub.good, "--into", str(disk.mount))
        assert done.code == 0, done.err
        assert (disk.mount / "one" / "word").read_text() == "snapshot"
        again = hub.iotops("restore", hub.good, "--into", str(disk.mount))
        assert again.code == 2 and "not empty" in again.err
    finally:
        disk.remove()


def test_into_a_folder_whose_parent_is_missing(hub: PlainHub, tmp_path: Path) -> None:
    target = tmp_path / "none" / "out"
    done = hub.iotops("restore", hub.good, "--into", str(target))
    assert done.code == 2 and "does not exist" in done.err and "mkdir -p" in done.err
    assert not target.parent.exists()


# -- undo -----------------------------------------------------------------------------------------


def test_undo_names_what_it_swaps_back(hub: PlainHub) -> None:
    assert restored(hub, hub.good).code == 0
    run = str(last(hub, "restore")["id"])
    done = hub.iotops("undo", "--yes")
    assert done.code == 0, done.err
    assert f"restore {run}, " in done.out and "app, one, other/share, two" in done.out
    assert hub.words() == {"today"}


def test_an_earlier_restore_is_undone_only_by_name(hub: PlainHub) -> None:
    assert restored(hub, hub.good).code == 0
    first = str(last(hub, "restore")["id"])
    hub.write("between")
    assert restored(hub, hub.good).code == 0
    assert hub.iotops("undo", "--yes").code == 0
    assert hub.words() == {"between"}
    again = hub.iotops("undo", "--yes")
    assert again.code == 1 and "undone already" in again.err
    assert f"next:  an earlier one: iotops undo --run {first}" in again.err
    assert hub.words() == {"between"}
    named = hub.iotops("undo", "--run", first, "--yes")
    assert named.code == 0, named.err
    assert hub.words() == {"today"}


def test_a_restore_of_weeks_ago_is_undone_only_by_name(hub: PlainHub) -> None:
    assert restored(hub, hub.good).code == 0
    record = last(hub, "restore")
    path = hub.own / "journal" / f"{record['id']}.json"
    path.write_text(json.dumps({**record, "ended": "2026-01-01T00:00:00+00:00"}))
    done = hub.iotops("undo", "--yes")
    assert done.code == 1 and "days old" in done.err
    assert f"iotops undo --run {record['id']}" in done.err
    assert hub.words() == {"snapshot"}
    assert hub.iotops("undo", "--run", str(record["id"]), "--yes").code == 0


def test_an_undo_that_fails_leaves_what_was_restored(hub: PlainHub) -> None:
    (hub.root / "two" / "bad").write_text("")  # today's data would not come up again
    assert restored(hub, hub.good).code == 0
    aside = hub.own / "replaced" / str(last(hub, "restore")["id"])
    done = hub.iotops("undo", "--yes")
    assert done.code == 1 and "two did not come up" in done.err, done.err
    assert hub.words() == {"snapshot"} and hub.running() == ALL
    (aside / "two" / "bad").unlink()
    again = hub.iotops("undo", "--yes")
    assert again.code == 0, again.err
    assert hub.words() == {"today"} and hub.running() == ALL


def test_status_does_not_walk_through_what_was_put_aside(hub: PlainHub) -> None:
    assert restored(hub, hub.good).code == 0
    run = str(last(hub, "restore")["id"])
    size = hub.iotops("status", "--json").result()["old_data"]
    assert isinstance(size, int) and size > 0
    shutil.rmtree(hub.own / "replaced" / run / "one")
    assert hub.iotops("status", "--json").result()["old_data"] == size
    assert hub.iotops("undo", "--discard", "--yes").code == 0


def test_an_undo_after_a_restore_that_died_in_its_swap(hub: PlainHub) -> None:
    """It takes back that one, and never the restore before it."""
    assert restored(hub, hub.good).code == 0
    hub.write("between")
    run = Held(hub, "restore", hub.good, "--yes")
    assert any(one.name == "swap" for one in run.steps()), run.errors()
    run.signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    died = run.runs[-1][1]
    done = hub.iotops("undo", "--yes")
    assert done.code == 0, done.err
    assert f"restore {died}, died in step" in done.out
    assert hub.words() == {"between"} and hub.running() == ALL
    settled(hub, kept=1)


def test_old_data_goes_with_a_complete_backup_after_the_days(hub: PlainHub) -> None:
    assert restored(hub, hub.good).code == 0
    record = last(hub, "restore")
    kept = hub.own / "replaced" / str(record["id"])
    assert f"old data of {record['id']}: " in hub.iotops("status").out
    hub.backed_up()
    assert kept.is_dir(), "it is of today"
    path = hub.own / "journal" / f"{record['id']}.json"
    ended = (datetime.now(UTC) - timedelta(days=7, minutes=1)).isoformat()
    path.write_text(json.dumps({**json.loads(path.read_text()), "ended": ended}))
    (hub.root / "two").rename(hub.root / "away")
    partial = hub.iotops("backup")
    (hub.root / "away").rename(hub.root / "two")
    assert partial.code in (1, 3) and kept.is_dir(), partial.out
    done = hub.iotops("backup", "--json")
    assert done.code == 0, done.err
    gone = done.result()["discarded"]
    assert isinstance(gone, list) and not kept.exists()
    assert [one["run"] for one in gone] == [record["id"]]
    assert hub.iotops("status", "--json").result()["aside"] == []
