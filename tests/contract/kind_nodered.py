"""Node-RED under test: real flows, encrypted credentials, a palette module, file context."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass

from iotops.services.base import BaseOptions
from iotops.services.nodered import NodeRed
from tests.contract.protocol import Ground, KindUnderTest
from tests.support import nodered
from tests.support.nodered import PALETTE, PALETTE_VERSION, Client, until
from tests.support.npm_registry import Registry


@dataclass(frozen=True)
class Answers:
    """What independent clients saw: raw hash of the flows, opened credentials, modules, probe."""

    revision: str
    credentials: object
    modules: Mapping[str, str]
    probe: object


class Kind(KindUnderTest[Answers]):
    """Node-RED with a palette from the test's own npm registry."""

    kind = "nodered"
    lab_image = "nodered"

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._env = {
            "NODERED_TOKEN": secrets.token_hex(16),
            "SEED_TOKEN": secrets.token_hex(16),
            "NARROW_TOKEN": secrets.token_hex(16),
            "NODERED_CREDENTIAL_SECRET": secrets.token_hex(16),
        }
        self.pin = secrets.token_hex(8)
        self.password = secrets.token_hex(8)
        self.registry = Registry()
        nodered.publish_palette(self.registry)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.ground.port(1880)}"

    @property
    def client(self) -> Client:
        """The independent client with all rights."""
        return Client(self.url, self._env["SEED_TOKEN"])

    def prepare(self) -> None:
        self.ground.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self.ground.folder, 1000, 1000)
        nodered.settings_folder(self.ground.hub / "nodered")

    def compose(self) -> Mapping[str, object]:
        return {
            "image": self.ground.image,
            "command": ["--settings", "/config/settings.js"],
            "ports": [f"127.0.0.1:{self.ground.port(1880)}:1880"],
            "environment": {name: f"${{{name}}}" for name in self._env},
            "healthcheck": {
                "test": nodered.HEALTH,
                "interval": "2s",
                "timeout": "5s",
                "retries": 30,
            },
            "volumes": [
                _bind(str(self.ground.folder), "/data"),
                _bind(str(self.ground.hub / "nodered"), "/config", read_only=True),
            ],
        }

    def env(self) -> Mapping[str, str]:
        return self._env

    def options(self) -> BaseOptions:
        return NodeRed.Options(
            kind="nodered", container="nodered", url=self.url, npm_registry=self.registry.url
        )

    def seed(self) -> Answers:
        nodered.npm_install(self.ground.container, self.registry, f"{PALETTE}@{PALETTE_VERSION}")
        self._restart()
        client = self.client
        assert client.modules() == {PALETTE: PALETTE_VERSION}
        client.deploy(nodered.flows(self.pin, self.password))
        until(lambda: self._get("/set?value=21.5") == b"ok", "the flows")
        until(self._context_on_disk, "the context on the disk")
        answers = self._look()
        assert answers.probe == {"pin": self.pin, "stamp": PALETTE_VERSION, "setpoint": "21.5"}
        assert answers.credentials == {
            "heating": {"PIN": self.pin},
            "broker": {"user": "nodered", "password": self.password},
        }
        assert len(client.nodes()) == 14
        return answers

    def check(self, answers: Answers) -> list[str]:
        now = self._look()
        return [
            f"{what} is {getattr(now, what)!r}, was {getattr(answers, what)!r}"
            for what in ("revision", "credentials", "modules", "probe")
            if getattr(now, what) != getattr(answers, what)
        ]

    def sabotage(self) -> None:
        """Lose the credentials: the flows keep their revision and run, the health is green."""
        subprocess.run(["docker", "stop", self.ground.container], check=True, capture_output=True)
        (self.ground.folder / "flows_cred.json").unlink()
        subprocess.run(["docker", "start", self.ground.container], check=True, capture_output=True)
        until(self.client.up, "Node-RED")

    def plantable(self, relative: str) -> bool:
        # Node-RED deletes folders of nodes that are gone from its context store at each deploy.
        return relative.split("/")[0] != "context"

    def _look(self) -> Answers:
        client = self.client
        return Answers(
            client.revision(),
            nodered.decrypted(self.ground.container),
            client.modules(),
            self._probe(),
        )

    def _probe(self) -> object:
        found: object = json.loads(self._get("/probe") or b"null")
        return found

    def _get(self, path: str) -> bytes | None:
        """Ask one of the flows' own routes; None = it is not there."""
        try:
            return self.client.call("GET", path)
        except urllib.error.URLError:
            return None

    def _context_on_disk(self) -> bool:
        path = self.ground.folder / "context" / "heating" / "flow.json"
        return path.is_file() and "21.5" in path.read_text()

    def _restart(self) -> None:
        subprocess.run(
            ["docker", "restart", self.ground.container], check=True, capture_output=True
        )
        until(self.client.up, "Node-RED")


def _bind(source: str, target: str, *, read_only: bool = False) -> Mapping[str, object]:
    return {
        "type": "bind",
        "source": source,
        "target": target,
        "read_only": read_only,
        "bind": {"create_host_path": False},
    }
