"""Images of a commit against a real registry: fetched before anything is touched, or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from iotops.actions import candidate, syncapply
from iotops.actions.syncplan import File, SyncPlan
from iotops.errors import StackError
from iotops.hub import Hub
from iotops.model import Finding, OnChange, Severity
from tests.conftest import need
from tests.e2e.test_sync import GOOD, SyncHub
from tests.support.hubs import docker
from tests.support.killmatrix import light_hub
from tests.support.servers import Registry

pytestmark = pytest.mark.e2e


class PullingHub(SyncHub):
    """The hub, and the registry that its commits name images of."""

    registry: Registry
    image = ""

    def name(self, image: str) -> str:
        """Commit that `cold` runs an image of the registry; gives its name."""
        self.image = self.registry.name(image)
        self.declare(GOOD)
        return self.image

    def found(self) -> dict[str, Finding]:
        """Look at the desk's files; what is said of `cold`, by code."""
        before, tree = self.unchanged(), self.hub.base / "tree"
        shutil.copytree(self.desk, tree, ignore=shutil.ignore_patterns(".git"))
        try:
            found = candidate.examine(Hub.open(self.folder), tree)
        finally:
            shutil.rmtree(tree)
        assert self.unchanged() == before
        return {one.code: one for one in found if one.subject == "cold"}

    def unchanged(self) -> dict[str, object]:
        """Everything that a refused commit leaves as it was, containers and snapshots included."""
        snapshots = [str(one["id"]) for one in json.loads(self.hub.restic("snapshots", "--json"))]
        cold = self.hub.container("cold")
        return {**self.looks(), "broker": self.broker(), "snapshots": snapshots, "id": cold}


@pytest.fixture(scope="module")
def shared() -> Iterator[PullingHub]:
    for what in ("docker", "compose", "root", "restic", "image mosquitto", "git"):
        need(what)
    need("docker-registry")
    light = light_hub()
    registry = Registry(light.base / "registry")
    try:
        registry.start()
        hub = PullingHub(light)
        hub.registry = registry
        yield hub
    finally:
        light.remove()
        registry.stop()
        registry.forget()


@pytest.fixture
def hub(shared: PullingHub) -> Iterator[PullingHub]:
    """The shared hub; afterwards it is equal to the desk."""
    plain = shared.image
    yield shared
    shared.image = plain
    shared.mend()


def here(image: str) -> bool:
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_an_image_that_is_not_here_is_fetched_first(hub: PullingHub, by: str) -> None:
    digest = hub.registry.take(hub.image, f"{by}:1")
    name = hub.name(f"{by}:1" if by == "tag" else f"{by}@{digest}")
    assert not here(name)
    found = hub.found()
    assert [*found] == ["image.pull"] and found["image.pull"].severity is Severity.WARNING
    assert f"the image {name} is not here yet; it can be pulled" in found["image.pull"].message
    assert not here(name)  # to look loads nothing

    done = hub.apply()
    assert done.code == 0, done.err + done.out
    steps = [one["step"] for one in done.lines() if one["message_type"] == "step_started"]
    assert steps.index("pull") < steps.index("examine") < steps.index("recreate")
    assert not any("not here yet" in str(one) for one in done.lines())  # it was tried
    ran = docker("inspect", "--format", "{{.Config.Image}}", hub.hub.container("cold")).strip()
    assert ran == name
    left = json.loads(hub.hub.iotops("sync", "plan", "--json").out)
    assert left["changes"] == []
    assert "sync.stopped" in [one["code"] for one in left["findings"]]  # `quiet`, by its owner


@pytest.mark.parametrize("name", ["tag:none", "nothing:1", f"tag@sha256:{'0' * 64}"])
@pytest.mark.parametrize("more", [(), ("--without-backup",)])
def test_an_image_that_the_registry_does_not_have(
    hub: PullingHub, name: str, more: tuple[str, ...]
) -> None:
    before = hub.unchanged()
    full = hub.name(name)
    found = hub.found()
    assert [*found] == ["image.missing"] and found["image.missing"].severity is Severity.ERROR
    assert "its registry does not give it: manifest unknown" in found["image.missing"].message
    done = hub.apply(*more)
    assert done.code == 1
    assert f"fetching the image {full}: " in done.err and "manifest unknown" in done.err
    assert hub.unchanged() == before


@pytest.mark.parametrize("platforms", [("linux/s390x",), ("linux/s390x", "linux/ppc64le")])
def test_an_image_for_other_machines(hub: PullingHub, platforms: tuple[str, ...]) -> None:
    """Docker fetches the one with a single platform, and its containers do not start."""
    before = hub.unchanged()
    hub.registry.put("foreign:1", *platforms)
    name = hub.name("foreign:1")
    found = hub.found()
    assert [*found] == ["image.platform"] and found["image.platform"].severity is Severity.ERROR
    text = f"the image {name} exists for {', '.join(platforms)}; this machine is linux/"
    assert text in found["image.platform"].message
    done = hub.apply()
    assert done.code == 1 and text in done.err, done.err
    assert hub.unchanged() == before and not here(name)


def test_a_64_bit_pi_takes_images_for_32_bits(
    hub: PullingHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a builder says about an image is none of its platforms."""
    fake, real = hub.hub.base / "fake", shutil.which("docker")
    fake.mkdir()
    (fake / "docker").write_text(
        f'#!/bin/sh\ncase "$*" in *Server.Arch*) echo linux/arm64;; *) exec {real} "$@";; esac\n'
    )
    (fake / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    hub.registry.put("small:1", "linux/arm/v7", "linux/386", "unknown/unknown")
    hub.name("small:1")
    assert [*hub.found()] == ["image.pull"]
    hub.registry.put("other:1", "linux/386", "unknown/unknown")
    hub.name("other:1")
    assert "exists for linux/386; this machine is linux/arm64" in str(hub.found())


def test_a_registry_that_is_gone_when_it_is_applied(hub: PullingHub) -> None:
    hub.registry.take(hub.image, "late:1")
    name = hub.name("late:1")
    before, opened = hub.unchanged(), Hub.open(hub.folder)
    decided = syncapply.prepare(opened)
    hub.registry.stop()
    try:
        with pytest.raises(StackError, match=f"fetching the image {name}: .*refused"):
            syncapply.apply(opened, decided)
        assert hub.unchanged() == before
        assert [*hub.found()] == ["image.missing"]
    finally:
        hub.registry.start()
    done = hub.apply()
    assert done.code == 0, done.err + done.out


def test_only_images_of_services_that_are_made_anew_are_fetched(hub: PullingHub) -> None:
    hub.registry.take(hub.image, "unused:1")
    name = hub.name("unused:1")
    opened = Hub.open(hub.folder)
    compose = hub.desk / "docker-compose.yaml"
    wanted = {compose.name: File(compose.read_bytes())}
    for need_of_cold, fetched in ((OnChange.RESTART, False), (OnChange.RECREATE, True)):
        decided = SyncPlan("h", "t", "", (), {"cold": need_of_cold})
        syncapply.fetch_images(opened, decided, wanted, set())
        assert here(name) == fetched
