"""The units: systemd takes every line, they are hardened, and they guard the disk."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need

pytestmark = pytest.mark.unit

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
TIMERS = sorted(path.name for path in UNITS.glob("*.timer"))
PROGRAM = "/usr/local/bin/iotops"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units in a folder, with a program that exists, and what the machine would bring."""
    need("systemd-analyze")
    program = tmp_path / "iotops"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS.iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace(PROGRAM, str(program)))
    (tmp_path / r"mnt-iot\x2ddata.mount").write_text(
        "[Mount]\nWhat=/dev/disk/by-uuid/1234\nWhere=/mnt/iot-data\n"
    )
    (tmp_path / "docker.service").write_text(f"[Service]\nExecStart={program}\n")
    return tmp_path


def directives(name: str) -> dict[str, list[str]]:
    """A unit's directives; an own reading, since a key may stand more than once."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_the_units_are_there() -> None:
    timed = ["iotops-backup", "iotops-check", "iotops-drill", "iotops-flows", "iotops-prune"]
    timed.append("iotops-sync")
    plain = ["iotops-resume", "iotops-stack"]
    assert [f"{name}.service" for name in sorted(timed + plain)] == SERVICES
    assert [f"{name}.timer" for name in timed] == TIMERS


@pytest.mark.parametrize("name", [*SERVICES, *TIMERS])
def test_systemd_accepts_it(installed: Path, name: str) -> None:
    """An unknown key is only a warning with exit code 0: standard error must be empty too."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_check_sees_an_unknown_key(installed: Path) -> None:
    unit = installed / "iotops-backup.service"
    unit.write_text(unit.read_text().replace("KillMode=", "KilMode="))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "KilMode" in done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_hardened(installed: Path, name: str) -> None:
    """The score of `systemd-analyze security`, times ten; lower is better."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=30", installed / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


@pytest.mark.parametrize("name", SERVICES)
def test_it_guards_the_disk_and_ends_cleanly(name: str) -> None:
    unit = directives(name)
    assert unit["RequiresMountsFor"] == unit["AssertPathIsMountPoint"] == ["/mnt/iot-data"]
    assert not any(key.startswith("Condition") for key in unit)  # would skip in silence
    assert unit["KillSignal"] == ["SIGINT"]
    assert unit["KillMode"] == ["mixed"]
    assert "TimeoutStartSec" in unit  # a oneshot has none by default
    assert all(command.startswith(PROGRAM + " ") for command in unit["ExecStart"])
    # Processes started by hand must be seen: a record is judged by its process.
    assert "ProtectProc" not in unit
    # The whole data root, not folders of it: hard links across two mounts fail.
    (writable,) = unit["ReadWritePaths"]
    assert "-/mnt/iot-data" in writable.split()
    assert not any(path.startswith("-/mnt/iot-data/") for path in writable.split())


def test_what_each_one_needs_beyond_that() -> None:
    backup = directives("iotops-backup.service")
    (rights,) = backup["CapabilityBoundingSet"]
    assert {"CAP_FOWNER", "CAP_DAC_READ_SEARCH"} <= {*rights.split()}  # hard links, reading
    assert backup["LoadCredential"] == ["restic-password:/etc/iotops/restic-password"]
    assert directives("iotops-stack.service")["BindsTo"] == [r"mnt-iot\x2ddata.mount"]
    resume = directives("iotops-resume.service")
    assert "iotops-stack.service" in resume["Before"][0].split()
    assert resume["ExecStart"] == [f"{PROGRAM} resume"]
    timer = directives("iotops-backup.timer")
    assert timer["Persistent"] == ["true"]
    assert timer["FixedRandomDelay"] == ["true"]


def test_upkeep_waits_for_a_backup_that_runs_and_is_never_asked() -> None:
    """One run at a time has the hub's lock: another would end with 11."""
    check, prune = (directives(f"iotops-{name}.service") for name in ("check", "prune"))
    assert "iotops-backup.service" in " ".join(check["After"]).split()
    assert {"iotops-backup.service", "iotops-check.service"} <= {*" ".join(prune["After"]).split()}
    assert prune["ExecStart"] == [f"{PROGRAM} prune --yes"]
    assert check["ExecStart"] == [f"{PROGRAM} check"]
    for unit in (check, prune):  # damage, and a refusal, are failures that somebody must see
        assert "SuccessExitStatus" not in unit
        assert unit["LoadCredential"] == ["restic-password:/etc/iotops/restic-password"]


@pytest.mark.parametrize("name", [*SERVICES, *TIMERS])
def test_no_secret_by_environment_and_a_reason_beside_each_group(name: str) -> None:
    lines = (UNITS / name).read_text().splitlines()
    assert "EnvironmentFile" not in directives(name)
    bare = 0
    for line in lines:
        bare = 0 if not line or line.startswith(("#", "[")) else bare + 1
        assert bare <= 8, f"{name}: no reason near {line}"


@pytest.mark.parametrize("name", TIMERS)
def test_the_times_are_times(name: str) -> None:
    need("systemd-analyze")
    (when,) = directives(name)["OnCalendar"]
    done = subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, check=False)
    assert done.returncode == 0


def test_sync_may_write_the_hub_folder_and_runs_git_as_its_owner() -> None:
    """And so may what settles a sync that died."""
    for name in ("iotops-sync", "iotops-resume"):
        unit = directives(f"{name}.service")
        assert "-/etc/iotops/hub" in unit["ReadWritePaths"][0].split()
        rights = {*" ".join(unit["CapabilityBoundingSet"]).split()}
        assert {"CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_FSETID"} <= rights
        assert "RestrictSUIDSGID" not in unit
    sync = directives("iotops-sync.service")
    assert sync["LoadCredential"] == ["restic-password:/etc/iotops/restic-password"]
    assert sync["ExecStart"] == [f"{PROGRAM} sync apply --auto --quiet"]
    assert sync["SuccessExitStatus"] == ["75"]  # everything else somebody must see
    assert "iotops-backup.service" in " ".join(sync["After"]).split()
    timer = directives("iotops-sync.timer")
    assert timer["FixedRandomDelay"] == ["true"] and timer["RandomizedDelaySec"] == ["5min"]
