"""The first machine burned: another one, which shares nothing with it, brings the hub back.

Only the repository and what stands on the kit come over. What the second machine cannot see is
asserted. Both run at the end, which is what must not go unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.e2e.test_newcard import history, tree
from tests.support.clients import (
    backed_up,
    flows_revision,
    points,
    publish,
    retained,
)
from tests.support.fullhub import full_hub
from tests.support.hubs import HubUnderTest, docker
from tests.support.machine import ENGINE, ENGINES_OWN, NAME, HubThere, SecondMachine

pytestmark = pytest.mark.e2e


@pytest.fixture
def first() -> Iterator[HubUnderTest]:
    """A hub of four servers, with content in each service, flows in Git and one backup."""
    for program in ("unshare", "nsenter", "dockerd", "mkfs.ext4"):
        need(program)
    with full_hub("iotops-first-", "moved") as hub:
        backed_up(hub)
        yield hub


@pytest.fixture
def second(first: HubUnderTest) -> Iterator[SecondMachine]:
    """The other machine, with the servers' images and nothing else."""
    machine = SecondMachine(first)
    try:
        machine.start()
        machine.load(
            sorted(
                {
                    docker("inspect", "-f", "{{.Config.Image}}", one).strip()
                    for one in map(first.container, first.running())
                }
            )
        )
        yield machine
    finally:
        machine.remove()


def from_the_kit(hub: HubUnderTest) -> str:
    """Make the kit, and copy from its page the lines that a person would type."""
    page = hub.base / "page"
    made = hub.iotops("kit", "--output", str(page))
    assert made.code == 0, made.err
    lines = re.findall(r"(?m)^\s*(RESTIC_\w+=\S+)\s*$", (page / "kit.txt").read_text())
    assert [line.partition("=")[0] for line in lines] == ["RESTIC_REPOSITORY", "RESTIC_PASSWORD"]
    return "\n".join(lines) + "\n"


def nothing_is_shared(first: HubUnderTest, second: SecondMachine) -> None:
    """Assert that the first hub's files, records and engine cannot be reached from there."""
    assert first.env_value("MQTT_PASSWORD")
    lost = [first.folder / ".env", first.folder / "iotops.toml", first.password_file]
    lost += [
        *first.state.glob("*.json"),
        first.root / ".iotops-data-root",
        first.base / "page" / "kit.txt",
    ]
    for path in lost:
        assert path.read_bytes() and second.run("cat", str(path)).returncode != 0, path
    for folder in filter(Path.is_dir, map(Path, ENGINE)):
        assert {*second.run("ls", "-A", str(folder)).stdout.split()} <= ENGINES_OWN, folder
    there = second.run("find", str(first.root), "-mindepth", "1")
    assert there.stdout.split() == [str(first.root / "lost+found")]
    assert second.run("docker", "-H", "unix:///run/docker.sock", "version").returncode != 0
    assert second.docker("ps", "-aq") == "" and second.docker("volume", "ls", "-q") == ""
    assert second.run("hostname").stdout.strip() == NAME


def test_another_machine_has_the_kit_only(first: HubUnderTest, second: SecondMachine) -> None:
    """The case: two commands bring the hub back; then both machines are told of each other."""
    typed = from_the_kit(first)
    nothing_is_shared(first, second)
    there = HubThere(first, second)

    made = there.iotops(
        *("init", "--from-repository", "-", str(first.folder), "--json"),
        *("--password-file", str(first.password_file)),
        hub=False,
        stdin=typed,
    )
    assert made.code == 0, made.err + made.out
    missing = made.result()["missing"]
    assert isinstance(missing, list)
    assert {one["subject"] for one in missing} - {"addresses"} == {"host name"}, "all else is there"
    assert f"is {NAME}" in missing[0]["message"]
    assert tree(there.folder) == tree(first.folder)
    for branch in ("main", "flows"):
        assert history(there.folder, branch) == history(first.folder, branch)

    restored = there.iotops("restore", "latest", "--claim-disk", "--yes")
    assert restored.code == 0, restored.err + restored.out
    assert f"is {NAME}" in restored.out + restored.err, "told once more, and not changed"
    assert second.run("hostname").stdout.strip() == NAME
    with second.network():
        assert retained(there, "house/lamp") == "on"
        assert points(there) == 1
        revision = flows_revision(there)
        publish(there, "house/lamp", "off")
    assert revision == flows_revision(first)
    assert retained(first, "house/lamp") == "on", "the first one goes on by itself"

    assert "another machine" not in first.iotops("doctor").out
    backed_up(there)
    told = first.iotops("doctor")
    assert f"was made by {NAME}" in told.out, told.out + told.err
    assert f"was made by {NAME}" in first.iotops("backup").out
