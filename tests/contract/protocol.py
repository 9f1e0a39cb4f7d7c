"""What a service kind must bring to be tested: one `kind_<name>.py` beside this file.

`kind_<name>.py` defines a class `Kind(KindUnderTest[...])`, and may define further ones, named in
`KINDS`, for other ways to set the server up. Each runs on every line of its server that the lab has
(`tests/lab/places.py`). The suite (`test_kinds.py`) does
everything that is the same for all: it writes the Compose project, starts and stops it, plants
files nobody knows, captures, wrecks, puts the capture in place. A kind says how its container
looks, fills it with content by clients of its own, and later tells what those clients find missing.

A kind under test shares no code with the capture it judges: from `iotops.services.<name>` it may
import the class and its options, nothing that reads or writes data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from iotops.services.base import BaseOptions

Answers = TypeVar("Answers")
"""What independent clients saw before the disaster; each kind has its own type."""


@dataclass(frozen=True)
class Ground:
    """Where one test of one kind works.

    Attributes:
        folder: the service's live data folder on this machine; mount it, or folders below it,
            into the container. It is wiped by the suite.
        hub: the hub folder; `compose.json` and `.env` are written there by the suite, mounted
            configuration by the kind. It survives the disaster.
        tmp: for anything else.
        image: the image reference for this kind, official or built by the lab.
        stand_in: that image is no real server.
        port: gives a free loopback port for a port of the container; the same one at each call
            with the same number, so that the address stays equal over restarts.
        container: the name of the container (`docker exec NAME ...` for the kind's own clients).
    """

    folder: Path
    hub: Path
    tmp: Path
    image: str
    stand_in: bool
    port: Callable[[int], int]
    container: str


class KindUnderTest(ABC, Generic[Answers]):
    """One kind, with its real server in a container.

    Order of calls: `prepare`, `compose`, `env`, (start, wait for the product's `ready()`), `seed`,
    (plant, capture, stop, wipe, put back, start, wait), `check`, `sabotage`, `check`.
    Independent clients talk to `127.0.0.1:{ground.port(...)}` or by `docker exec`.
    """

    kind: ClassVar[str]
    """The kind's name: the file's name under `iotops/services/`."""
    lab_image: ClassVar[str]
    """The image's name in the lab: "mosquitto", "nodered", "influxdb", "grafana" or "base"."""
    variant: ClassVar[str] = ""
    """What a further class of the same file tries: a second way to set up the same server."""
    lines: ClassVar[tuple[str, ...] | None] = None
    """The images it runs on; None = `lab_image` and every further line of that server."""
    moving: ClassVar[tuple[str, ...]] = ()
    """Paths relative to the folder (as in fnmatch, `*` also matches `/`) whose content the running
    server changes by itself: excepted from "a second capture gives the same hashes" and from "the
    live files are untouched". Everything else is compared."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    @abstractmethod
    def prepare(self) -> None:
        """Make what must exist before the first start: the folder and its folders with their
        owners, configuration files in the hub folder, a password file."""

    @abstractmethod
    def compose(self) -> Mapping[str, object]:
        """Give the service's table of the Compose file: image, volumes, user, environment,
        `ports: ["127.0.0.1:{port}:1883"]`... The suite adds nothing but the container's name;
        `${NAME}` comes from `env()`."""

    def env(self) -> Mapping[str, str]:
        """Give the values of `.env`; also what `Place.secret` gives to the product's service."""
        return {}

    @abstractmethod
    def options(self) -> BaseOptions:
        """Give the product's options for this container; `container` is the kind's name."""

    @abstractmethod
    def seed(self) -> Answers:
        """Put real content into the running server, assert that it holds what it promises, and
        give what independent clients see of it. Secrets made here (a token) may be given to the
        product afterwards through `env()`: the suite asks for it again after `seed`."""

    @abstractmethod
    def check(self, answers: Answers) -> list[str]:
        """Compare the running server with the answers from before, by the same clients.

        Returns:
            One sentence per difference; empty = all of it is back.
        """

    @abstractmethod
    def sabotage(self) -> None:
        """Change one thing that `check` must find; the container runs and may be stopped and
        started within (`docker stop`, `docker start`)."""

    def plantable(self, relative: str) -> bool:
        """Tell whether unknown files may be planted into a folder ("" = the folder itself).

        Say no only where a file would break the server itself, with the reason in a comment.
        """
        return True
