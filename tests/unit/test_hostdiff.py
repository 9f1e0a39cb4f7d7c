"""What is other than on the machine of a snapshot: told with the command, and never changed."""

from __future__ import annotations

import json
import os
import shlex
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iotops.actions import hostdiff, parts
from iotops.actions.snapshot import host_record
from iotops.model import Finding, HostRecord, Manifest, Outcome, Severity

pytestmark = pytest.mark.unit

ROOT = Path("/mnt/nowhere-on-this-machine")


def made(host: HostRecord, root: str = str(ROOT)) -> Manifest:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    return Manifest(
        format=1,
        hub_id="0123456789abcdef",
        hub_name="h",
        run="20260301T120000Z-backup-aaaa",
        host=host,
        versions={},
        started=moment,
        ended=moment,
        outcome=Outcome.COMPLETE,
        root=root,
    )


def captured(folder: Path, **facts: object) -> Path:
    """The part `host` of this machine, as a backup writes it, with other facts."""
    there = folder / "host"
    there.mkdir()
    (there / "facts.json").write_text(json.dumps({**parts.host_facts(ROOT), **facts}))
    for name in parts.HOST_FILES:
        if os.path.isfile(name):  # noqa: PTH113 - read like the product does
            copy = there / "files" / name.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(Path(name).read_bytes())
    return there


def told(host: HostRecord, there: Path, root: str = str(ROOT)) -> dict[str, Finding]:
    return {one.subject: one for one in hostdiff.differences(made(host, root), there, ROOT)}


def test_the_same_machine_has_no_difference(tmp_path: Path) -> None:
    assert told(host_record(), captured(tmp_path)) == {}


def test_a_snapshot_of_an_earlier_iotops_has_less_to_compare(tmp_path: Path) -> None:
    old = HostRecord(socket.gethostname(), os.uname().machine, "Debian")
    assert told(old, tmp_path / "not captured", root="") == {}


def test_another_machine_is_told_by_name_with_the_commands(tmp_path: Path) -> None:
    there = captured(
        tmp_path,
        localtime="/usr/share/zoneinfo/Pacific/Chatham",
        packages={"ufw": "0.36", "restic": "0.14", "systemd": "252", "docker-ce": "5:27"},
        **{"mount line": "UUID=ab12 /mnt/iot-data ext4 nofail 0 2"},
    )
    for name, text in {
        "/etc/ufw/user.rules": "*filter",
        "/etc/ufw/user6.rules": "*filter",
        "/etc/docker/daemon.json": '{"iptables": false, "x": 1}',
    }.items():
        path = there / "files" / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    host = HostRecord("the-pi", "armv7l", "Raspbian", "ab", ("192.0.2.7", "127.0.0.1"))
    found = told(host, there, root="/mnt/iot-data")

    assert {one.severity for one in found.values()} == {Severity.INFO}
    assert found["machine"].message.startswith("the processor was armv7l")
    assert found["host name"].hint == "sudo hostnamectl set-hostname the-pi"
    assert found["time zone"].hint == "sudo timedatectl set-timezone Pacific/Chatham"
    assert "192.0.2.7 are not here any more" in found["addresses"].message
    assert "/mnt/iot-data" in found["data root"].message
    assert "UUID=ab12" in found["fstab"].message and "findmnt" in found["fstab"].hint
    assert "sudo apt-get install" in found["packages"].hint and "ufw" in found["packages"].hint
    assert "docker" not in found["packages"].hint, "it comes from two places under other names"
    files = [one for one in hostdiff.differences(made(host), there, ROOT) if one.subject == "files"]
    firewall, docker = files
    assert "/etc/ufw/user.rules, /etc/ufw/user6.rules" in firewall.message
    assert "--path host" in firewall.hint and "pass UFW by" in firewall.hint
    assert "/etc/docker/daemon.json" in docker.message and "restart docker" in docker.hint


def test_what_a_snapshot_says_is_quoted_in_commands(tmp_path: Path) -> None:
    evil = "x; rm -rf /"
    there = captured(
        tmp_path, localtime=f"/usr/share/zoneinfo/{evil}", packages={evil: "1", "ufw": "1"}
    )
    found = told(HostRecord(evil, os.uname().machine, "Debian"), there)
    assert shlex.split(found["host name"].hint)[-1] == evil
    assert shlex.split(found["time zone"].hint)[-1] == evil
    assert evil not in str(found.get("packages"))


def test_links_and_odd_facts_of_a_forged_snapshot_are_not_read(tmp_path: Path) -> None:
    """What a link leads to may be anything on this machine, also what never ends."""
    there = captured(tmp_path)
    rules = there / "files/etc/ufw/user.rules"
    rules.parent.mkdir(parents=True, exist_ok=True)
    rules.unlink(missing_ok=True)
    (tmp_path / "outside").write_text('{"localtime": "/usr/share/zoneinfo/Pacific/Chatham"}')
    rules.symlink_to(tmp_path / "outside")
    facts = there / "facts.json"
    facts.unlink()
    facts.symlink_to(tmp_path / "outside")
    assert told(host_record(), there) == {}
    facts.unlink()
    facts.write_text("[" * 200_000)
    assert told(host_record(), there) == {}
