"""Bad input and bad luck on a whole hub: a clear error, the next step, nothing changed or lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.fake import fake_program
from tests.support.hubs import HubUnderTest, docker
from tests.support.lab import lab

pytestmark = pytest.mark.e2e


# -- helpers --------------------------------------------------------------------------------------


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """Change a file for a while."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    try:
        yield
    finally:
        path.write_text(before)


def restic(hub: HubUnderTest, *argv: str, cwd: Path | None = None) -> str:
    """Run the bare restic on the hub's repository."""
    program = str(lab().restic[max(lab().restic)])
    done = subprocess.run(
        [program, "-r", str(hub.repository), "--password-file", str(hub.password_file), *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(hub.base), "XDG_CACHE_HOME": str(hub.base)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ids(hub: HubUnderTest) -> list[str]:
    """List all snapshot ids of the repository, oldest first."""
    found = json.loads(restic(hub, "snapshots", "--json", "--no-lock"))
    return [one["id"] for one in found]


def hub_id(hub: HubUnderTest) -> str:
    """Read the hub's id from its settings."""
    for line in (hub.folder / "iotops.toml").read_text().splitlines():
        if line.startswith("id = "):
            return line.split('"')[1]
    raise AssertionError("no id")


def started_at(hub: HubUnderTest) -> dict[str, str]:
    """When each container was started: equal = it was never stopped."""
    return {
        name: docker("inspect", "-f", "{{.State.StartedAt}}", hub.container(name)).strip()
        for name in sorted(hub.running())
    }


def refused(hub: HubUnderTest, code: int, *argv: str, says: str, hint: str) -> None:
    """Run a command that must fail: code, words, next step; no traceback, no container touched."""
    before = started_at(hub)
    done = hub.iotops(*argv)
    assert done.code == code, done.err + done.out
    assert says in done.err, done.err
    assert "next:" in done.err and hint in done.err, done.err
    assert "Traceback" not in done.err
    assert started_at(hub) == before


# -- the disk -------------------------------------------------------------------------------------


def test_backup_refuses_an_unmounted_disk(hub: HubUnderTest) -> None:
    hub.disk.detach()
    try:
        before = len(ids(hub))
        refused(hub, 1, "backup", says="is not a mount point", hint="mount")
        assert len(ids(hub)) == before
        assert not any(hub.root.iterdir())  # nothing was created under the mount point
        status = hub.iotops("status", "--json")
        assert status.code == 1
        assert "mount.absent" in status.out
    finally:
        hub.disk.attach()


def test_backup_refuses_a_missing_data_root(hub: HubUnderTest) -> None:
    with edited(hub.folder / "iotops.toml", str(hub.root), str(hub.base / "nowhere")):
        refused(hub, 1, "backup", says="does not exist", hint="mount")
        assert not (hub.base / "nowhere").exists()


def test_backup_refuses_another_hubs_disk(hub: HubUnderTest) -> None:
    with edited(hub.root / ".iotops-data-root", hub_id(hub), "0123456789abcdef"):
        refused(hub, 1, "backup", says="another hub", hint="iotops")


def test_up_refuses_an_unmounted_disk(hub: HubUnderTest) -> None:
    hub.disk.detach()
    try:
        refused(hub, 1, "up", says="is not a mount point", hint="mount")
        refused(hub, 1, "restore", "latest", "--yes", says="is not a mount point", hint="mount")
        assert not any(hub.root.iterdir())
    finally:
        hub.disk.attach()


# -- the repository -------------------------------------------------------------------------------


def test_a_missing_repository_is_never_created(hub: HubUnderTest) -> None:
    aside = hub.base / "repository-aside"
    hub.repository.rename(aside)
    try:
        refused(hub, 10, "backup", says="no repository", hint="iotops init --repository")
        assert not hub.repository.exists()
    finally:
        aside.rename(hub.repository)


def test_another_repository_is_not_ours(hub: HubUnderTest) -> None:
    aside = hub.base / "repository-aside"
    hub.repository.rename(aside)
    try:
        restic(hub, "init")
        refused(hub, 1, "backup", says="this hub recorded", hint="repository.url")
        assert ids(hub) == []
    finally:
        shutil.rmtree(hub.repository)
        aside.rename(hub.repository)


def test_wrong_password_is_12(hub: HubUnderTest) -> None:
    with edited(hub.password_file, hub.password_file.read_text(), "not the password\n"):
        hint = "check repository.password_file in iotops.toml"
        refused(hub, 12, "backup", says="does not open with this password", hint=hint)


def test_a_units_credential_that_is_wrong_is_named(hub: HubUnderTest, tmp_path: Path) -> None:
    """As of a second hub: the unit loads the usual file, the settings name another one."""
    (tmp_path / "restic-password").write_text("of another hub\n")
    done = hub.iotops("backup", env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert done.code == 12
    assert f"systemd's credential {tmp_path}/restic-password" in done.err
    assert "LoadCredential=" in done.err and "repository.password_file" in done.err


def test_a_locked_repository_is_11(hub: HubUnderTest) -> None:
    """An exclusive lock held by a living restic: `check` stopped in the middle."""
    program = str(lab().restic[max(lab().restic)])
    env = {"PATH": os.environ["PATH"], "HOME": str(hub.base), "XDG_CACHE_HOME": str(hub.base)}
    argv = [program, "-r", str(hub.repository), "--password-file", str(hub.password_file)]
    child = subprocess.Popen([*argv, "check", "--read-data"], env=env, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        # A shorter name is that of a file which is still being written.
        while not any(len(one.name) == 64 for one in (hub.repository / "locks").iterdir()):
            assert time.monotonic() < deadline and child.poll() is None
        child.send_signal(signal.SIGSTOP)
        refused(hub, 11, "backup", says="locked", hint="wait until it has ended")
    finally:
        child.kill()
        child.wait()
        for lock in (hub.repository / "locks").iterdir():
            lock.unlink()


# -- programs -------------------------------------------------------------------------------------


def test_restic_missing_names_the_package(hub: HubUnderTest, tmp_path: Path) -> None:
    path = without(tmp_path, "restic")
    done = hub.iotops("backup", env={"PATH": path})
    assert done.code == 1 and "restic" in done.err and "apt-get install restic" in done.err


def test_restic_too_old_names_the_package(hub: HubUnderTest, tmp_path: Path) -> None:
    fake_program(tmp_path / "restic", out="restic 0.12.1 compiled with go1.16.6 on linux/amd64")
    done = hub.iotops("backup", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.code == 1 and "0.12.1" in done.err and "restic" in done.err


def test_docker_missing_names_the_package(hub: HubUnderTest, tmp_path: Path) -> None:
    path = without(tmp_path, "docker")
    done = hub.iotops("up", env={"PATH": path})
    assert done.code == 1 and "docker" in done.err and "apt-get install" in done.err


def test_compose_missing_names_the_package(hub: HubUnderTest, tmp_path: Path) -> None:
    fake_program(tmp_path / "docker", err="docker: 'compose' is not a docker command.", code=1)
    done = hub.iotops("up", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.code == 1 and "docker-compose" in done.err
    assert "Traceback" not in done.err


def without(tmp_path: Path, program: str) -> str:
    """Give a PATH on which everything is but one program."""
    folder = tmp_path / "path"
    folder.mkdir()
    for part in reversed(os.environ["PATH"].split(":")):
        if not Path(part).is_dir():
            continue
        for entry in Path(part).iterdir():
            link = folder / entry.name
            if entry.name != program:
                link.unlink(missing_ok=True)
                link.symlink_to(entry)
    return str(folder)


# -- containers -----------------------------------------------------------------------------------


def test_a_crash_looping_container_fails_up_with_its_log(hub: HubUnderTest) -> None:
    conf = hub.folder / "mosquitto" / "mosquitto.conf"
    with edited(conf, "listener", "no_such_option yes\nlistener"):
        docker("restart", hub.container("mosquitto"))
        done = hub.iotops("up")
        assert done.code == 1
        assert "mosquitto did not come up" in done.err
        assert "no_such_option" in done.err  # the last log lines
        assert "next:" in done.err
    docker("restart", hub.container("mosquitto"))
    assert hub.iotops("up").code == 0


def test_one_service_down_makes_a_partial_backup(hub: HubUnderTest) -> None:
    docker("stop", hub.container("influxdb"))
    try:
        done = hub.iotops("backup", "--json")
        assert done.code == 3, done.err
        result = done.result()
        assert result["outcome"] == "partial"
        missing = result["missing"]
        assert isinstance(missing, dict) and set(missing) == {"influxdb"}
        assert "influxdb" not in hub.running()  # what the owner stopped stays stopped
        manifest = json.loads(restic(hub, "dump", str(result["snapshot"]), "/manifest.json"))
        assert manifest["outcome"] == "partial"
    finally:
        docker("start", hub.container("influxdb"))
        assert hub.iotops("up").code == 0


# -- snapshots and manifests ----------------------------------------------------------------------


def test_an_unknown_snapshot_is_refused(hub: HubUnderTest) -> None:
    refused(hub, 1, "restore", "0000dead", "--yes", says="0000dead", hint="iotops snapshots")


def test_a_snapshot_without_a_manifest_is_refused(hub: HubUnderTest, tmp_path: Path) -> None:
    made = foreign_snapshot(hub, tmp_path, None)
    refused(hub, 1, "restore", made, "--yes", says="manifest", hint="iotops snapshots")


def test_a_damaged_manifest_is_refused(hub: HubUnderTest, tmp_path: Path) -> None:
    made = foreign_snapshot(hub, tmp_path, '{"format": 1, "hub_id":')
    refused(hub, 1, "restore", made, "--yes", says="damaged", hint="iotops snapshots")


def test_a_manifest_of_a_newer_format_is_refused(hub: HubUnderTest, tmp_path: Path) -> None:
    made = foreign_snapshot(hub, tmp_path, '{"format": 99}')
    refused(hub, 1, "restore", made, "--yes", says="format 99", hint="iotops version")


def test_another_hubs_snapshot_is_refused(hub: HubUnderTest, tmp_path: Path) -> None:
    own = json.loads(restic(hub, "dump", newest_complete(hub), "/manifest.json"))
    own["hub_id"] = "0123456789abcdef"
    made = foreign_snapshot(hub, tmp_path, json.dumps(own))
    refused(hub, 1, "restore", made, "--yes", says="is of the hub", hint="iotops snapshots")


def newest_complete(hub: HubUnderTest) -> str:
    found = json.loads(restic(hub, "snapshots", "--json", "--no-lock", "--tag", "complete"))
    return str(found[-1]["id"])


def foreign_snapshot(hub: HubUnderTest, tmp_path: Path, manifest: str | None) -> str:
    """Put a snapshot beside the hub's own, with a manifest of our choice, and give its id.

    Its host is another one, so that `latest` never means it.
    """
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "something").write_text("data")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    return foreign(hub, folder)


def foreign(hub: HubUnderTest, folder: Path) -> str:
    """Save a folder with the bare restic under another host's name, and give the snapshot's id."""
    argv = ["backup", ".", "--tag", "iotops,foreign", "--host", "elsewhere", "--json"]
    out = restic(hub, *argv, cwd=folder)
    return str(json.loads(out.splitlines()[-1])["snapshot_id"])


def test_no_space_for_the_extraction(hub: HubUnderTest) -> None:
    filler = hub.root / "filler"
    free = os.statvfs(hub.root)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (4 << 20))
    try:
        refused(hub, 1, "restore", "latest", "--yes", says="free", hint="room")
    finally:
        filler.unlink()


# -- signals and dead runs ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_backup_ends_it_cleanly(hub: HubUnderTest, number: signal.Signals) -> None:
    before, known = started_at(hub), ids(hub)
    run = hub.start("backup", "--json")
    run.wait_for("step_started", step="save")
    run.signal(number)
    ended = run.end()
    assert ended.code == 130, ended.err
    assert started_at(hub) == before
    assert last_run(hub, "backup")["outcome"] == "interrupted"
    assert len(ids(hub)) in (len(known), len(known) + 1)
    assert hub.iotops("backup").code == 0


def test_a_signal_does_not_wait_for_a_repository_that_hangs(
    hub: HubUnderTest, tmp_path: Path
) -> None:
    """The first call of restic runs beside the captures, and a signal ends it, too."""
    program = tmp_path / "restic"
    real = lab().restic[max(lab().restic)]
    program.write_text(
        f'#!/bin/sh\n[ "$1" = version ] && exec {real} version\n'
        f"trap 'touch {tmp_path}/ended; exit 130' INT; touch {tmp_path}/hangs\n"
        "while :; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    run = hub.start("backup", "--json", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    run.wait_for("step_finished", step="capture", service="other")
    assert (tmp_path / "hangs").exists()
    run.signal(signal.SIGINT)
    assert run.end(limit=60).code == 130
    assert (tmp_path / "ended").exists()
    assert last_run(hub, "backup")["outcome"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_restore_before_the_swap(hub: HubUnderTest, number: signal.Signals) -> None:
    before = started_at(hub)
    run = hub.start("restore", "latest", "--yes", "--json")
    run.wait_for("step_started", step="check")
    run.signal(number)
    assert run.end().code == 130
    assert started_at(hub) == before
    assert last_run(hub, "restore")["outcome"] == "interrupted"
    assert not any((hub.root / ".iotops" / "tmp").iterdir())


def test_a_dead_runs_stopped_containers_are_started_by_resume(hub: HubUnderTest) -> None:
    """kill -9 while a restore has the broker stopped: `up` refuses, `resume` puts it right."""
    mounted = (hub.root / "mqtt").stat().st_ino
    run = hub.start("restore", "latest", "--service", "mosquitto", "--yes", "--json")
    run.wait_for("step_finished", step="stop", service="mosquitto")
    run.signal(signal.SIGKILL)
    run.end()
    refused_up = hub.iotops("up")
    assert refused_up.code == 1 and "iotops resume" in refused_up.err
    done = hub.iotops("resume")
    assert done.code == 0, done.err
    assert "mosquitto" in hub.running()
    assert last_run(hub, "restore")["outcome"] == "failed"
    assert (hub.root / "mqtt").stat().st_ino == mounted  # the old folder is live again
    assert hub.iotops("up").code == 0


def test_a_second_backup_at_the_same_time_is_11(hub: HubUnderTest) -> None:
    run = hub.start("backup", "--json")
    run.wait_for("step_started", step="guard")
    second = hub.iotops("backup")
    assert second.code == 11 and "another iotops" in second.err
    assert run.end().code == 0


def last_run(hub: HubUnderTest, action: str) -> dict[str, object]:
    found = sorted((hub.root / ".iotops" / "journal").glob(f"*-{action}-*.json"))
    document = json.loads(found[-1].read_text())
    assert isinstance(document, dict)
    return document
