"""Config-sync and what depends on what it touches, by the real Compose.

`app` is to be restarted with `store`, whose folder it reads when it starts; `beside` shares its
network; `middle` and `front` only depend on what is before them. What Compose does on its own
differs between its versions; what must hold here does not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import pytest

from tests.conftest import need
from tests.support.desk import Desk
from tests.support.guardhub import GuardedHub
from tests.support.hubs import docker, made_hub

pytestmark = pytest.mark.e2e

COMPOSE = """
name: {project}
x-sleeper: &sleeper
  image: {image}
  restart: unless-stopped
  entrypoint: ["sleep", "infinity"]
  init: true
services:
  store:
    <<: *sleeper
    healthcheck: {{test: ["CMD", "test", "-e", "/state/word"], interval: 200ms}}
    volumes:
      - {{type: bind, source: "{root}/store", target: /state}}
  cold:
    <<: *sleeper
    volumes:
      - {{type: bind, source: "{root}/cold", target: /state}}
  app:
    <<: *sleeper
    entrypoint:
      - sh
      - -c
      - if [ -e /store/bad ]; then cat /store/bad >> /state/word; exit 5; fi; exec sleep infinity
    depends_on: {{store: {{condition: service_healthy, restart: true}}}}
    volumes:
      - {{type: bind, source: "{root}/attic", target: /state}}
      - {{type: bind, source: "{root}/store", target: /store, read_only: true}}
  beside:
    <<: *sleeper
    network_mode: "service:store"
  middle:
    <<: *sleeper
    depends_on: [store]
  front:
    <<: *sleeper
    depends_on: [middle]
"""
NEW = '    environment: {NEW: "1"}\n'
SPOILS = """    entrypoint: ["sh", "-c", "echo spoilt > /state/bad; exec sleep infinity"]
"""
ALL = {"store", "cold", "app", "beside", "middle", "front"}


class DependentHub(GuardedHub):
    """The hub of two folders, with services that depend on one."""

    template = COMPOSE


class Follower(Desk[DependentHub]):
    """The hub and its desk."""

    def declare(self, **more: str) -> str:
        """Commit lines that are added to services."""
        path = self.desk / "docker-compose.yaml"
        text = path.read_text()
        for service, lines in more.items():
            head = f"  {service}:\n    <<: *sleeper\n"
            assert head in text
            text = text.replace(head, head + lines)
        return self.commit(path.name, text)

    def facts(self, service: str, what: str = "{{.Id}} {{.State.StartedAt}}") -> str:
        """Ask the engine about a service's container."""
        return docker("inspect", "-f", what, self.hub.container(service)).strip()

    def started(self, service: str) -> str:
        """Give when a service's container was started."""
        return self.facts(service, "{{.State.StartedAt}}")

    def joined(self) -> None:
        """See that what shares a network does so with the container that runs now."""
        mode = self.facts("beside", "{{.HostConfig.NetworkMode}}")
        assert mode == f"container:{self.facts('store', '{{.Id}}')}"

    def looks(self) -> dict[str, object]:
        """Everything that must be as it was after a return; no container's id."""
        data = {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for name in ("store", "attic", "cold")
            for path in sorted((self.hub.root / name).iterdir())
        }
        made = "{{.Image}} {{json .Config.Entrypoint}} {{json .Config.Env}}"
        return {
            "data": data,
            "files": self.edits(),
            "head": self.head(),
            "running": {one: self.facts(one, made) for one in sorted(self.hub.running())},
        }


@pytest.fixture(scope="module")
def shared() -> Iterator[Follower]:
    """One hub for all tests here."""
    for what in ("docker", "compose", "root", "restic", "image mosquitto", "git"):
        need(what)
    hub = made_hub(DependentHub, "iotops-follow-")
    try:
        yield Follower(hub, watch=2)
    finally:
        hub.remove()


@pytest.fixture
def hub(shared: Follower) -> Iterator[Follower]:
    """The shared hub; afterwards it is equal to the desk, and all runs."""
    assert shared.hub.running() == ALL
    yield shared
    shared.mend()
    assert shared.hub.running() == ALL


def test_what_follows_is_restarted_after_what_it_follows(hub: Follower) -> None:
    others = {name: hub.facts(name) for name in ("middle", "front")}
    store, app = hub.facts("store"), hub.facts("app", "{{.Id}}")
    hub.declare(store=NEW)
    plan = hub.hub.iotops("sync", "plan")
    assert "it is to be restarted with store" in plan.out, plan.out
    done = hub.apply()
    assert done.code == 0, done.err + done.out
    made = {"store": "made anew", "beside": "made anew", "app": "restarted"}
    assert done.result()["services"] == made
    assert hub.facts("store") != store and hub.facts("app", "{{.Id}}") == app
    assert hub.started("app") > hub.started("store")
    hub.joined()
    assert {name: hub.facts(name) for name in others} == others
    assert hub.hub.iotops("sync", "plan", "--exit-code").code == 0


def test_what_depends_on_it_is_watched_and_returned(hub: Follower) -> None:
    """What was touched itself is well; what was restarted with it is not.

    Compose 2.26 makes `middle` anew, too, since it lies between two that are; a return that only
    lets it create them would leave it without being started.
    """
    before, app = hub.looks(), hub.facts("app", "{{.Id}}")
    bad = hub.declare(store=SPOILS, front=NEW)
    done = hub.apply()
    assert done.code == 1, done.out
    assert f"the commit {bad[:8]} was returned from: app did not come up" in done.err, done.err
    (names,) = re.findall("the data of (.*) is that of the snapshot", done.err)
    assert {*names.split(", ")} == {"app", "store"}
    assert "not well either" not in done.err, done.err
    assert hub.looks() == before and hub.facts("app", "{{.Id}}") == app
    hub.joined()
    (spoilt,) = hub.hub.root.glob(".iotops/replaced/*-sync-*/attic/word")
    assert spoilt.read_text().endswith("spoilt\n")
