"""A tiny Compose project of its own name in a temporary folder, removed in every case."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from iotops.clients import process
from iotops.clients.compose import ComposeStack
from tests.support.lab import lab


class Scratch:
    """A project folder, and Docker's view of it by the bare program.

    Attributes:
        folder: with the Compose file. name: the project's. image: the lab's base image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"iotops-scratch-{secrets.token_hex(6)}"
        self.image = lab().images["base"].reference
        self._foreign: list[str] = []

    def write(self, services: str, *, rest: str = "", file: str = "docker-compose.yaml") -> None:
        """Write the Compose file; `IMAGE` stands for the base image, services are indented."""
        text = f"name: {self.name}\nservices:\n{services}\n{rest}"
        (self.folder / file).write_text(text.replace("IMAGE", self.image))

    def stack(self) -> ComposeStack:
        """Open the project anew, as another process would."""
        return ComposeStack(self.folder)

    def foreign(self, *options: str, argv: Sequence[str] = ("sleep", "600")) -> str:
        """Start a container that belongs to no project; give its name."""
        name = f"{self.name}-foreign-{len(self._foreign)}"
        self._foreign.append(name)
        docker("run", "--detach", "--name", name, *options, self.image, *argv)
        return name

    def ids(self) -> list[str]:
        """Give the ids of the project's containers, running or not."""
        return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", self._label).split()

    def remove(self) -> None:
        """Remove the containers, networks and volumes of this project, and the foreign ones."""
        if self._foreign:
            docker("rm", "--force", "--volumes", *self._foreign)
        once = f"label=iotops.once={self.name}"  # left over only where the test failed
        left = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", once).split()
        if ids := [*self.ids(), *left]:
            docker("rm", "--force", "--volumes", *ids)
        for kind in ("network", "volume"):
            if found := docker(kind, "ls", "--quiet", "--filter", self._label).split():
                docker(kind, "rm", *found)

    @property
    def _label(self) -> str:
        return f"label=com.docker.compose.project={self.name}"


def docker(*argv: str) -> str:
    """Run the bare docker program and give its output."""
    return process.run(["docker", *argv], limit=60).out
