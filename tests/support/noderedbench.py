"""One Node-RED in a Compose project of its own, and the product's service for it.

The container and its content are those of the contract suite (`kind_nodered.py`); here single
faults are tried out on it.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

from iotops.clients.compose import ComposeStack
from iotops.clients.staging import Staging
from iotops.config import Secret
from iotops.demo.ground import free_port
from iotops.services.base import Place
from iotops.services.nodered import NodeRed
from tests.contract.kind_nodered import Kind
from tests.contract.protocol import Ground
from tests.support.nodered import Client, until


class Bench:
    """A Node-RED with folders below `base`; `up` starts it, `down` removes it."""

    def __init__(self, base: Path, image: str, **environment: str) -> None:
        self.base = base
        self.project = f"iotops-test-{secrets.token_hex(4)}"
        self.port = free_port()
        self.ground = Ground(
            folder=base / "data" / "nodered",
            hub=base / "hub",
            tmp=base / "tmp",
            image=image,
            stand_in=False,
            port=lambda _: self.port,
            container=self.project,
        )
        for folder in (self.ground.hub, self.ground.tmp):
            folder.mkdir(parents=True, exist_ok=True)
        self.kind = Kind(self.ground)
        self.kind.prepare()
        self.write(environment)
        self.stack = ComposeStack(self.ground.hub)

    @property
    def folder(self) -> Path:
        """The live folder."""
        return self.ground.folder

    @property
    def client(self) -> Client:
        """The independent client with all rights."""
        return self.kind.client

    def version(self) -> str:
        """The version that the container's own package tells."""
        told = "process.stdout.write(require('node-red/package.json').version)"
        argv = ["docker", "exec", self.ground.container, "node", "-e", told]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def write(self, environment: Mapping[str, str]) -> None:
        """Write the Compose file and `.env`; the environment adds to the container's."""
        table = dict(self.kind.compose())
        inside = table["environment"]
        assert isinstance(inside, dict)
        table["environment"] = {**inside, **environment}
        table["container_name"] = self.ground.container
        document = {"name": self.project, "services": {"nodered": table}}
        (self.ground.hub / "compose.yaml").write_text(json.dumps(document))
        lines = [f"{name}={value}\n" for name, value in self.kind.env().items()]
        (self.ground.hub / ".env").write_text("".join(lines))

    def up(self) -> None:
        """Create the container as written and wait until its admin API answers."""
        self._docker("up", "--detach", "--force-recreate")
        until(self.client.up, "Node-RED")

    def stop(self) -> None:
        """Stop the container."""
        self._docker("stop")

    def start(self) -> None:
        """Start the container and wait until its admin API answers."""
        self._docker("start")
        until(self.client.up, "Node-RED")

    def down(self) -> None:
        """Remove the container, and end the registry."""
        self._docker("down", "--timeout", "5")
        self.kind.registry.stop()

    def service(self, *, url: str = "", registry: str = "", **env: str) -> NodeRed:
        """Give the product's service; `env` replaces values of `.env` (empty = not there)."""
        values = {**self.kind.env(), **env}
        place = Place(
            name="nodered",
            container="nodered",
            folder=self.folder,
            hub=self.ground.hub,
            tmp=self.ground.tmp,
            stack=self.stack,
            secret=lambda name: Secret(values[name]) if values.get(name) else None,
        )
        options = NodeRed.Options(
            kind="nodered",
            url=url or self.kind.url,
            npm_registry=registry or self.kind.registry.url,
        )
        return NodeRed(place, options)

    def staging(self, name: str = "staging") -> Staging:
        """Give a staging folder for the live folder."""
        return Staging(
            self.folder,
            self.base / name / "nodered",
            prefix="nodered",
            excludes=NodeRed.excludes,
            memory=self.base / f"{name}.json",
        )

    def _docker(self, *argv: str) -> None:
        command = ["docker", "compose", "--project-directory", str(self.ground.hub), *argv]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment())
        assert done.returncode == 0, done.stderr


def _environment() -> Mapping[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")}
