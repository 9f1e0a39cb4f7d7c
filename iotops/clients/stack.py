"""What actions and service kinds may ask of a hub's containers.

Only the protocol, so that a kind is bound to these words and not to Docker's client, which
`compose.py` is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from iotops.clients.composemodel import Container, Executed, Holder, Model, Variable, Volume
from iotops.model import ImageRecord

ENDING = ("timeout", "-s", "KILL", "45")
"""What a program is put behind that must end also when nobody is left to end its container:
seconds; every image of the hub has it."""


class Stack(Protocol):
    """The containers of a hub, as actions and service kinds use them."""

    def model(self) -> Model:
        """Read the Compose project with every variable filled in."""
        ...

    def variables(self) -> tuple[Variable, ...]:
        """List the variables that the Compose files name."""
        ...

    def containers(self) -> Mapping[str, Container]:
        """Look at all containers, running or not, by service name."""
        ...

    def up(self, services: Sequence[str] = (), *, wait: float = 120) -> None:
        """Create and start what is not as declared, and wait until it is healthy."""
        ...

    def create(self, services: Sequence[str] = (), *, alone: bool = False) -> None:
        """Create and start what is not as declared, without waiting."""
        ...

    def down(self) -> None:
        """Stop and remove the containers and networks; never a volume."""
        ...

    def stop(self, services: Sequence[str], grace: float = 60) -> None:
        """Stop services one after the other; their containers stay."""
        ...

    def start(self, services: Sequence[str]) -> None:
        """Start the stopped containers of services."""
        ...

    def restart(self, services: Sequence[str], grace: float = 60) -> None:
        """Stop and start the containers of services."""
        ...

    def execute(
        self,
        service: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        user: str = "",
        environment: Mapping[str, str] | None = None,
        limit: float = 300,
    ) -> Executed:
        """Run a program inside a service's running container."""
        ...

    def logs(self, service: str, lines: int = 20) -> tuple[str, ...]:
        """Give the last lines a service printed."""
        ...

    def run_once(
        self,
        service: str,
        argv: Sequence[str],
        *,
        user: str = "",
        mounts: Sequence[tuple[Path, str]] = (),
        network: bool = True,
        limit: float = 600,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
        shown: Sequence[tuple[Path, str]] = (),
        declared: bool = False,
    ) -> Executed:
        """Run a program in a container of its own, made from a service's image."""
        ...

    def platforms(self, image: str) -> tuple[str, ...]:
        """Ask an image's registry for which platforms it has the image."""
        ...

    def mounting(self, path: Path) -> tuple[Holder, ...]:
        """Find the running containers that mount a folder, one in it or one around it."""
        ...

    def volumes(self, names: Sequence[str]) -> Mapping[str, Volume]:
        """Look at volumes of the engine by name; those that do not exist are left out."""
        ...

    def images(self, references: Collection[str]) -> Mapping[str, ImageRecord]:
        """Look at images that are on this machine; those that are not are left out."""
        ...

    def versions(self) -> tuple[str, str]:
        """Give the versions of the engine and of Compose."""
        ...

    def require(self) -> None:
        """See that Docker and Compose are there, new enough, and answer."""
        ...
