"""Copies to further repositories: folders, SFTP, an append-only REST server, S3; away and hanging.

The servers are real and on this machine. What arrived is read by the bare restic, with the copy's
own password.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from tests.conftest import need
from tests.support.hubs import Ended
from tests.support.lighthub import ENDS, HUB, ONE, LightHub, words
from tests.support.resticbench import leave_exclusive_lock
from tests.support.servers import S3, Rest, Server, Sftp, Silent

pytestmark = pytest.mark.clients

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
AnyServer = TypeVar("AnyServer", bound=Server)


def started(server: AnyServer) -> Iterator[AnyServer]:
    """Run a server for a test."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def sftp(tmp_path: Path) -> Iterator[Sftp]:
    need("sshd")
    need("root")
    yield from started(Sftp(tmp_path / "sftp"))


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[Rest]:
    need("rclone")
    yield from started(Rest(tmp_path / "rest"))


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    need("moto_server")
    yield from started(S3(tmp_path / "s3"))


def listed(hub: LightHub, at: str | Path, password: Path) -> list[dict[str, object]]:
    """List what is in a copy, by the bare restic."""
    text = hub.restic("snapshots", "--json", "--no-lock", at=at, password=password)
    found = sorted(json.loads(text) or [], key=lambda one: str(one["time"]))
    assert all(isinstance(one, dict) for one in found)
    return found


def originals(hub: LightHub, name: str) -> list[str]:
    """Give the ids that the snapshots of a copy in a folder have in the first repository."""
    found = listed(hub, hub.base / name, hub.base / f"password-{name}")
    return [str(one.get("original")) for one in found]


def standing(hub: LightHub, name: str) -> dict[str, str]:
    """Give what the state file says of a copy."""
    copies = hub.state()["copies"]
    assert isinstance(copies, dict)
    found = copies[name]
    assert isinstance(found, dict)
    return found


def copies_of(done: Ended) -> dict[str, dict[str, object]]:
    """Give what a command's result says of the copies, by name."""
    found = done.result()["copies"]
    assert isinstance(found, list)
    return {one["name"]: one for one in found}


# -- what a copy is -------------------------------------------------------------------------------


def test_a_backup_copies_its_own_snapshot_and_no_other(hub: LightHub) -> None:
    (before,) = hub.ids()
    password = hub.copy("disk")
    assert password.read_text() != hub.password_file.read_text()
    assert password.stat().st_mode & 0o777 == 0o600
    chunkers = {
        json.loads(hub.restic("cat", "config", at=at, password=word))["chunker_polynomial"]
        for at, word in ((hub.repository, hub.password_file), (hub.base / "disk", password))
    }
    assert len(chunkers) == 1
    words(hub.iotops("status"), "disk", "never tried", "next: try it: iotops copy disk")
    done = hub.iotops("backup", "--json")
    assert done.code == 0, done.err
    second = str(done.result()["snapshot"])
    assert originals(hub, "disk") == [second]
    (there,) = hub.ids(hub.base / "disk", password)
    assert copies_of(done)["disk"]["snapshots"] == {second: there}
    assert standing(hub, "disk")["snapshot"] == there
    # What was forgotten there does not come back; what the first one forgot stays there.
    hub.restic("forget", there, at=hub.base / "disk", password=password)
    third = str(hub.good("backup")["snapshot"])
    assert originals(hub, "disk") == [third]
    hub.restic("forget", third)
    hub.good("backup")
    assert third in originals(hub, "disk") and before not in originals(hub, "disk")
    found = hub.iotops("status", "--json").result()["copies"]
    assert isinstance(found, list)
    assert (found[0]["name"], found[0]["outcome"]) == ("disk", "complete")
    listing = hub.iotops("snapshots", "--from", "disk")
    assert listing.code == 0
    words(listing, there_now(hub, "disk")[:8], "complete")
    assert hub.iotops("doctor", "--json").code == 0


def there_now(hub: LightHub, name: str) -> str:
    return hub.ids(hub.base / name, hub.base / f"password-{name}")[-1]


@ONE
def test_the_hub_comes_back_from_a_copy_when_the_first_one_is_lost(hub: LightHub) -> None:
    password = hub.copy("disk")
    hub.good("backup")
    shutil.rmtree(hub.repository)
    wanted = (hub.notes / "one.txt").read_bytes()
    (hub.notes / "one.txt").write_text("overwritten by accident")
    lost = hub.iotops("restore", "latest", "--yes")
    assert lost.code == 10
    shown = hub.iotops("restore", "latest", "--from", "disk", "--dry-run")
    assert shown.code == 0, shown.err
    done = hub.iotops("restore", "latest", "--from", "disk", "--yes")
    assert done.code == 0, done.err + done.out
    assert (hub.notes / "one.txt").read_bytes() == wanted
    assert hub.iotops("restore", "--from", "tape", "--yes").code == 2
    # A new first one is begun; the copy goes on beside it.
    again = hub.iotops(
        *("init", "--repository", str(hub.base / "fresh"), "--password-file"),
        str(hub.password_file),
    )
    assert again.code == 0, again.err
    assert hub.good("backup")["outcome"] == "complete"
    assert len(hub.ids(hub.base / "disk", password)) == 2


@ONE
def test_a_partial_snapshot_is_copied_and_lets_nothing_be_forgotten(hub: LightHub) -> None:
    hub.copy("disk")
    hub.add("[repository.copies.retention]\nkeep_daily = 1\nkeep_at_least = 1\n")
    hub.good("backup")
    hub.add('[services.gone]\nkind = "files"\nfolder = "gone"\nhot = true\n')
    done = hub.iotops("backup", "--json")
    assert done.code == 3
    found = listed(hub, hub.base / "disk", hub.base / "password-disk")
    assert [("partial" in str(one["tags"])) for one in found] == [False, True]
    assert copies_of(done)["disk"]["forgotten"] == []


@ONE
def test_each_copy_has_its_own_retention_once_a_day(hub: LightHub) -> None:
    old = [hub.old(NOW - DAY * day) for day in (40, 41, 42)]
    hub.add("[retention]\nkeep_daily = 100\n")
    for name, keep in (("disk", 1), ("safe", 0)):
        hub.copy(name)
        if keep:
            hub.add(f"[repository.copies.retention]\nkeep_monthly = {keep}\nkeep_at_least = 1\n")
    copied = hub.iotops("copy", *(w for one in old for w in ("--snapshot", one)), "--json")
    assert copied.code == 0, copied.err
    # By the copy's own rules, at once: of the three the newest is the month's.
    assert originals(hub, "disk") == [old[0]]
    assert sorted(originals(hub, "safe")) == sorted(old)
    assert {*old} <= {*hub.ids()}
    shown = hub.good("retention", "--copy", "disk")["snapshots"]
    assert isinstance(shown, list) and [one["fate"] for one in shown] == ["stays"]
    # Not again on this day.
    done = hub.iotops("backup", "--json")
    assert done.code == 0 and copies_of(done)["disk"]["forgotten"] == []
    assert len(originals(hub, "disk")) == 2
    refused = hub.iotops("retention", "--copy", "disk", "--apply", "--yes")
    assert refused.code == 2


@ONE
def test_the_drilled_one_stays_in_a_copy_and_damage_stops_the_forgetting(hub: LightHub) -> None:
    drilled, other = hub.old(NOW - DAY * 60), hub.old(NOW - DAY * 61)
    hub.copy("disk")
    hub.iotops("copy", "--snapshot", drilled, "--snapshot", other)
    hub.add("[repository.copies.retention]\nkeep_daily = 1\nkeep_at_least = 1\n")
    state = hub.state()
    last = state["last"]
    assert isinstance(last, dict)
    last["drill"] = {"time": "2026-01-01T00:00:00+00:00", "outcome": "complete", "message": ""}
    last["drill"]["snapshot"] = drilled
    state["check"] = {"damaged": "2026-01-01T00:00:00+00:00", "scope": "all"}
    path = hub.base / "state" / f"{HUB}.json"
    path.write_text(json.dumps(state))
    done = hub.iotops("backup")
    assert done.code == 0  # the copy itself is good
    words(done, "no old snapshot was forgotten", "damaged")
    assert other in originals(hub, "disk")
    words(hub.iotops("status"), "iotops retention --copy disk")
    state = hub.state()
    state["check"] = {}
    copies = state["copies"]
    assert isinstance(copies, dict)
    copies["disk"]["retention"] = "2026-01-01"  # it is another day
    path.write_text(json.dumps(state))
    hub.good("backup")
    assert drilled in originals(hub, "disk") and other not in originals(hub, "disk")
    assert "warning" not in standing(hub, "disk")


# -- what goes wrong with one copy ----------------------------------------------------------------


@ONE
def test_a_copy_that_was_never_made_is_named_and_not_made(hub: LightHub) -> None:
    hub.add(
        f'[[repository.copies]]\nname = "disk"\nurl = "{hub.base}/disk"\n'
        f'password_file = "{hub.base}/password-disk"\n'
    )
    (hub.base / "password-disk").touch(0o600)
    (hub.base / "password-disk").write_text("long enough for a password\n")
    hub.copy("good")
    done = hub.iotops("backup", "--json")
    assert done.code == 3, done.err
    told = copies_of(done)
    assert told["disk"]["standing"] == "failed" and told["disk"]["exit"] == 10
    assert "iotops init --copy disk" in str(told["disk"]["hint"])
    assert told["good"]["standing"] == "complete"
    assert not (hub.base / "disk").exists()
    alone = hub.iotops("copy", "disk")
    assert alone.code == 10
    words(alone, "next: is its disk mounted? To make it: iotops init --copy disk")
    assert hub.state()["last"]["backup"]["outcome"] == "complete"  # type: ignore[index]
    words(hub.iotops("status"), "copy disk: opening the repository: there is no repository")
    # As the hint says: the settings name it already.
    assert hub.iotops("init", "--copy", "disk").code == 0
    assert hub.iotops("copy", "disk").code == 0


def another_password(hub: LightHub) -> Callable[[], None]:
    path = hub.base / "password-disk"
    before = path.read_text()
    path.write_text("another one\n")

    def back() -> None:
        path.write_text(before)

    return back


def another_repository(hub: LightHub) -> Callable[[], None]:
    """The disk of somebody else in the same place, with the same password."""
    aside = hub.base / "aside"
    (hub.base / "disk").rename(aside)
    hub.restic("init", at=hub.base / "disk", password=hub.base / "password-disk")

    def back() -> None:
        shutil.rmtree(hub.base / "disk")
        aside.rename(hub.base / "disk")

    return back


def another_manifest(hub: LightHub) -> Callable[[], None]:
    """A copy that does not give back what was copied."""
    program = hub.programs / "restic"
    program.unlink()
    program.write_text(
        '#!/bin/sh\ncase "$1 $RESTIC_REPOSITORY" in\n'
        f'"dump "*/disk) echo "{{}}";;\n*) exec {hub.restic_program} "$@";;\nesac\n'
    )
    program.chmod(0o755)

    def back() -> None:
        program.unlink()
        program.symlink_to(hub.restic_program)

    return back


def failing(hub: LightHub, said: str, code: int) -> Callable[[], None]:
    """A restic that cannot copy, and says so in its own words."""
    program = hub.programs / "restic"
    program.unlink()
    program.write_text(
        f'#!/bin/sh\n[ "$1" = copy ] && {{ echo "{said}" >&2; exit {code}; }}\n'
        f'exec {hub.restic_program} "$@"\n'
    )
    program.chmod(0o755)

    def back() -> None:
        program.unlink()
        program.symlink_to(hub.restic_program)

    return back


def no_space(hub: LightHub) -> Callable[[], None]:
    return failing(hub, "Fatal: no space left on device", 1)


def locked(hub: LightHub) -> Callable[[], None]:
    """A living restic of another machine has it."""
    return failing(hub, "repo already locked exclusively by PID 7 on nas by root", 11)


FAULTS = {
    "another password": (another_password, 12, "check the password_file of the copy disk"),
    "another repository": (another_repository, 1, "iotops init --copy disk --accept-repository"),
    "another manifest": (another_manifest, 1, "gives back another manifest"),
    "locked": (locked, 11, "locked by another restic"),
    "no space": (no_space, 1, "df -h"),
}


@ONE
@pytest.mark.parametrize("fault", FAULTS)
def test_a_copy_that_fails_is_no_silent_success(hub: LightHub, fault: str) -> None:
    hub.copy("disk")
    hub.good("backup")
    harm, code, says = FAULTS[fault]
    back = harm(hub)
    done = hub.iotops("backup")
    assert done.code == 3, done.out + done.err
    words(done, "copy disk: ", says)
    alone = hub.iotops("copy", "disk", "--snapshot", hub.ids()[-1])
    assert alone.code == code, alone.out + alone.err
    status = hub.iotops("status")
    assert status.code == 1
    words(status, "copy disk: ", "next: try it: iotops copy disk")
    assert hub.state()["last"]["backup"]["outcome"] == "complete"  # type: ignore[index]
    back()
    assert hub.iotops("copy").code == 0
    assert hub.iotops("status").code == 0
    assert hub.ids()[-1] in originals(hub, "disk")


@ONE
def test_the_lock_of_a_dead_restic_is_no_obstacle_in_a_copy(hub: LightHub) -> None:
    password = hub.copy("disk")
    values = {
        "PATH": os.environ["PATH"],
        "HOME": str(hub.base),
        "RESTIC_REPOSITORY": str(hub.base / "disk"),
        "RESTIC_PASSWORD_FILE": str(password),
    }
    leave_exclusive_lock(hub.restic_program, values)
    assert [*(hub.base / "disk" / "locks").iterdir()]
    done = hub.iotops("backup")
    assert done.code == 0, done.out + done.err
    assert not [*(hub.base / "disk" / "locks").iterdir()]
    assert originals(hub, "disk") == [hub.ids()[-1]]


@ONE
def test_a_run_that_dies_while_it_copies_leaves_a_good_backup(hub: LightHub) -> None:
    hub.copy("disk")
    program, held = hub.programs / "restic", hub.base / "held"
    program.unlink()
    program.write_text(
        f'#!/bin/sh\n[ "$1" = copy ] && {{ touch {held}; exec sleep 600; }}\n'
        f'exec {hub.restic_program} "$@"\n'
    )
    program.chmod(0o755)
    child = subprocess.Popen(
        [sys.executable, "-m", "iotops", "backup", "--hub", str(hub.folder)],
        env=hub.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=hub.base,
    )
    try:
        until = time.monotonic() + 60
        while not held.exists():
            assert time.monotonic() < until and child.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(timeout=30)
    assert hub.state()["last"]["backup"]["outcome"] == "complete"  # type: ignore[index]
    status = hub.iotops("status")
    words(status, "died in step 'copy disk'", "iotops resume")
    assert status.code == 1
    program.unlink()
    program.symlink_to(hub.restic_program)
    assert hub.iotops("resume").code == 0
    words(hub.iotops("status"), "copy", "failed")
    assert hub.iotops("copy").code == 0
    assert originals(hub, "disk") == [hub.ids()[-1]]


# -- making one -----------------------------------------------------------------------------------


@ONE
def test_a_copy_is_made_by_its_command_only_and_never_over_another(hub: LightHub) -> None:
    def refused(*argv: str, code: int, says: str) -> None:
        before = hub.settings.read_text()
        password = hub.base / "p"
        done = hub.iotops("init", *argv, "--password-file", str(password))
        assert done.code == code, done.out + done.err
        words(done, says, "next:")
        assert hub.settings.read_text() == before

    refused("--copy", "disk", code=2, says="name no copy 'disk'")
    refused(
        *("--repository", str(hub.repository), "--copy", "disk"), code=2, says="a url of its own"
    )
    refused("--repository", f"{hub.root}/x", "--copy", "disk", code=1, says="that it protects")
    refused("--repository", f"{hub.base}/no/x", "--copy", "disk", code=2, says="does not exist")
    refused("--repository", "relative", "--copy", "disk", code=2, says="absolute path")
    refused("--repository", f"{hub.base}/x", "--append-only", code=2, says="--copy NAME")
    refused(
        *("--repository", "rest:http://iot:secret12@127.0.0.1:9/", "--copy", "disk"),
        code=2,
        says="holds a password",
    )
    hub.copy("disk")
    refused("--copy", "disk", code=1, says="already")
    refused("--repository", f"{hub.base}/y", "--copy", "disk", code=2, says="another address")
    # The first one under another name is no copy of itself.
    (hub.base / "alias").symlink_to(hub.repository)
    refused(
        *("--repository", f"{hub.base}/alias", "--copy", "alias", "--accept-repository"),
        code=2,
        says="password file",
    )
    shutil.copy(hub.password_file, hub.base / "p")
    refused(
        *("--repository", f"{hub.base}/alias", "--copy", "alias", "--accept-repository"),
        code=1,
        says="the hub's own repository",
    )
    taken = hub.iotops("init", "--copy", "disk", "--accept-repository")
    assert taken.code == 0, taken.err
    # Its disk is not mounted: no empty one is made on the mount point.
    (hub.base / "disk").rename(hub.base / "elsewhere")
    refused("--copy", "disk", code=1, says="not there now")
    assert not (hub.base / "disk").exists()
    anew = hub.iotops("init", "--copy", "disk", "--new-history")
    assert anew.code == 0, anew.err


@ONE
def test_without_records_a_copy_is_known_by_this_hubs_snapshots(hub: LightHub) -> None:
    """A new card: the state file is gone. Somebody else's repository is not taken for it."""
    hub.copy("disk")
    hub.good("backup")
    (hub.base / "state" / f"{HUB}.json").unlink()
    assert hub.iotops("copy").code == 0
    assert standing(hub, "disk")["repository"]
    (hub.base / "state" / f"{HUB}.json").unlink()
    another_repository(hub)
    done = hub.iotops("copy")
    assert done.code == 1
    words(done, "holds nothing of this hub", "--accept-repository")


# -- servers --------------------------------------------------------------------------------------


@ENDS
def test_sftp(hub: LightHub, sftp: Sftp) -> None:
    """With a key, known hosts and a port of its own; away it is 75, and is caught up by hand."""
    home = Path.home() / ".ssh"
    mine = sorted(home.iterdir()) if home.is_dir() else []
    password = hub.copy(
        "nas",
        f"sftp:nas:{sftp.store}/hub",
        *("--ssh-config", str(sftp.ssh_config)),
        hurried=sftp.store / "hub",
    )
    hub.copy("disk")
    done = hub.iotops("backup")
    assert done.code == 0, done.out + done.err
    assert hub.ids(sftp.store / "hub", password) and originals(hub, "disk")
    sftp.stop()
    away = [hub.iotops("backup", "--json") for _ in (1, 2)]
    assert [one.code for one in away] == [75, 75], away[0].err
    missed = [str(one.result()["snapshot"]) for one in away]
    assert copies_of(away[0])["nas"]["standing"] == "away"
    assert set(missed) <= set(originals(hub, "disk"))  # the other one was served
    assert set(missed) <= set(hub.ids())
    status = hub.iotops("status")
    assert status.code == 0  # a warning: away for a night is no failure yet
    words(status, "! copy nas: ", "does not answer")
    alone = hub.iotops("copy", "nas")
    assert alone.code == 75
    words(alone, "next: look at its server and the network, then: iotops copy nas")
    words(hub.iotops("doctor"), "copy nas: ", "does not answer")
    sftp.start()
    assert hub.iotops("copy").code == 0
    found = listed(hub, sftp.store / "hub", password)
    assert [one.get("original") for one in found][1:] == missed
    target = hub.base / "out"
    back = hub.iotops("restore", "latest", "--from", "nas", "--into", str(target))
    assert back.code == 0, back.err
    assert (target / "notes" / "one.txt").read_bytes() == (hub.notes / "one.txt").read_bytes()
    assert (sorted(home.iterdir()) if home.is_dir() else []) == mine


@ONE
def test_a_host_that_is_not_the_known_one_is_refused(hub: LightHub, sftp: Sftp) -> None:
    hub.copy("nas", f"sftp:nas:{sftp.store}/hub", "--ssh-config", str(sftp.ssh_config))
    known = sftp.base / "known_hosts"
    known.write_text(known.read_text().split()[0] + " ssh-ed25519 " + "A" * 68 + "\n")
    done = hub.iotops("copy")
    assert done.code == 1
    words(done, "does not accept our credential", "ssh_config, of the copy nas")
    assert hub.iotops("backup").code == 3


@ENDS
def test_an_append_only_rest_server(hub: LightHub, rest: Rest) -> None:
    """Nothing is forgotten there, which is said and no failure; its login is in no address."""
    password = hub.copy(
        "far",
        rest.url,
        *("--credentials-file", str(rest.credentials), "--append-only"),
        hurried=rest.store / rest.user / "hub",
    )
    hub.add("[repository.copies.retention]\nkeep_daily = 1\nkeep_at_least = 1\n")
    assert "append_only = true" in hub.settings.read_text()
    first = hub.iotops("backup")
    second = hub.iotops("backup")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    words(second, "far: append-only: its old snapshots are not forgotten from here")
    folder = rest.store / rest.user / "hub"
    assert len(hub.ids(folder, password)) == 2
    assert rest.password not in first.out + first.err + hub.settings.read_text()
    words(hub.iotops("doctor"), "it is append-only")
    assert hub.iotops("status").code == 0
    if hub.version < "0.17":
        return  # it tries for most of a minute to remove something
    # Not declared: the copy is good, its retention is a warning that stays in sight.
    text = hub.settings.read_text()
    hub.settings.write_text(text.replace("append_only = true", "append_only = false"))
    done = hub.iotops("backup", "--json")
    assert done.code == 0, done.err
    warnings = copies_of(done)["far"]["warnings"]
    assert isinstance(warnings, list) and "no old snapshot was forgotten" in warnings[0]
    words(hub.iotops("status"), "copy far: no old snapshot was forgotten")
    assert len(hub.ids(folder, password)) == 3


@ONE
def test_a_refused_login_is_no_absence(hub: LightHub, rest: Rest) -> None:
    hub.copy("far", rest.url, "--credentials-file", str(rest.credentials))
    rest.credentials.write_text(rest.credentials.read_text().replace(rest.password, "wrong-one"))
    done = hub.iotops("backup")
    assert done.code == 3
    words(done, "does not accept our credential", "credentials_file")
    assert "wrong-one" not in done.out + done.err


@ONE
def test_s3(hub: LightHub, s3: S3) -> None:
    before = hub.settings.read_text()
    hub.copy("cloud", s3.url, "--credentials-file", str(s3.credentials))
    again = hub.iotops("init", "--copy", "cloud")
    assert again.code == 1
    words(again, "there is a repository at", "already")
    written = hub.settings.read_text()
    hub.settings.write_text(written.replace("hub-copies", "no-such-bucket") + "patience = 3\n")
    assert hub.iotops("copy", "cloud").code == 10  # no bucket is no absence
    assert written.startswith(before)
    hub.settings.write_text(written + "patience = 5\n")
    hub.add("[repository.copies.retention]\nkeep_daily = 1\nkeep_at_least = 1\n")
    hub.good("backup")
    done = hub.iotops("snapshots", "--from", "cloud", "--json")
    assert done.code == 0 and len(json.loads(done.out)) == 1
    target = hub.base / "out"
    assert hub.iotops("restore", "--from", "cloud", "--into", str(target)).code == 0
    assert (target / "notes" / "one.txt").read_bytes() == (hub.notes / "one.txt").read_bytes()
    s3.stop()
    # It refuses connections, and restic would try again for a quarter of an hour.
    away = hub.iotops("backup")
    assert away.code == 75, away.out + away.err
    words(away, "away: copy cloud: ")


@ENDS
def test_a_server_that_never_answers_is_away_and_the_run_ends(hub: LightHub, rest: Rest) -> None:
    hub.copy("far", rest.url, "--credentials-file", str(rest.credentials))
    silent = Silent()
    try:
        text = hub.settings.read_text().replace(f":{rest.port}/", f":{silent.port}/")
        hub.settings.write_text(text + "patience = 3\n")
        done = hub.iotops("backup", limit=60)
        assert done.code == 75, done.out + done.err
        words(done, "away: copy far: ", "3 s")
        assert hub.state()["last"]["backup"]["outcome"] == "complete"  # type: ignore[index]
    finally:
        silent.stop()
