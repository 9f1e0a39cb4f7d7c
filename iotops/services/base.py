"""The contract of a service kind: what one file under `services/` must bring.

An action owns order and policy: it stops, starts, hashes, times, writes the manifest and swaps
folders. A service owns content: it fills a staging folder from the live one, makes an extracted
folder ready to be the live one, and knows a few numbers that prove its data came back.

Not here: which kinds exist (`services/__init__.py`) and when anything is called (`actions/`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit, urlunsplit

from iotops.config import Secret
from iotops.model import (
    Captured,
    ConfigFile,
    Difference,
    Exclude,
    Facts,
    Finding,
    Mode,
    OnChange,
    Readiness,
    ServiceRecord,
    Severity,
)

if TYPE_CHECKING:  # not needed to read settings, and `status` must start quickly
    from iotops.clients.compose import Stack
    from iotops.clients.staging import Staging


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """What every kind's settings table may hold.

    Attributes:
        kind: the kind's name.
        container: its service in the Compose file; empty = the settings table's own name.
        folder: its folder below the data root; empty = the kind's usual one, else the table's name.
    """

    kind: str
    container: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Place:
    """Where a service lives.

    Attributes:
        name: the service's name in the settings. container: its Compose service.
        folder: its live data folder on this machine (absolute).
        hub: the hub folder. tmp: a folder for temporary files on the data root's file system.
        stack: the running containers.
        secret: gives the value of a name from `.env` or the environment, None when it has none.
        rehearsal: it is a copy in a drill, which may not act on the world nor reach out to it.
    """

    name: str
    container: str
    folder: Path
    hub: Path
    tmp: Path
    stack: Stack
    secret: Callable[[str], Secret | None]
    rehearsal: bool = False


def moved_url(url: str, address: str, port: Callable[[int], int]) -> str:
    """Give a server's URL at another address; see `Service.options_at`."""
    parts = urlsplit(url)
    known = parts.port or (443 if parts.scheme == "https" else 80)
    return urlunsplit(parts._replace(netloc=f"{address}:{port(known)}"))


class Service(ABC):
    """One container's data. Subclasses declare the class attributes and fill in the methods."""

    kind: ClassVar[str]
    images: ClassVar[tuple[str, ...]] = ()
    """Image names (without registry and tag) by which a Compose service is taken for this kind."""
    targets: ClassVar[tuple[str, ...]] = ()
    """Mount targets in the container below which this kind's data lies."""
    port: ClassVar[int] = 0
    """Where the image's server listens in its container; 0 = it is asked at no port."""
    default_folder: ClassVar[str] = ""
    """Its folder below the data root in the built-in layout."""
    capture_mode: ClassVar[Mode] = Mode.HOT
    load_mode: ClassVar[Mode] = Mode.COLD
    owner: ClassVar[tuple[int, int]] = (0, 0)
    """Numeric user and group that the image's server runs as."""
    secrets_in_data: ClassVar[bool] = False
    """Whether its secrets in `.env` are known to its data (a token in a database): after a restore
    the snapshot's ones hold. Else they are configuration of the container, and today's hold."""
    excludes: ClassVar[tuple[Exclude, ...]] = ()
    quiet: ClassVar[Mapping[str, str]] = {}
    """Variables that keep the image's server from acting on the world in a drill."""
    fleeting: ClassVar[tuple[str, ...]] = ()
    """Mount targets in the container whose content nobody needs back, wherever it lies."""
    older: ClassVar[str] = ""
    """What a server makes of data that a newer one has written; told before such a restore."""
    config_files: ClassVar[tuple[ConfigFile, ...]] = ()
    Options: ClassVar[type[BaseOptions]] = BaseOptions

    def __init__(self, place: Place, options: BaseOptions) -> None:
        self.place = place
        self.options = options

    @property
    def name(self) -> str:
        """Its name in the settings."""
        return self.place.name

    @property
    def mode(self) -> Mode:
        """How it is captured here; a setting may decide otherwise than the kind."""
        return self.capture_mode

    def options_at(self, address: str, port: Callable[[int], int]) -> BaseOptions:
        """Give its options for the same server at another address.

        Args:
            address: of its container. port: the container's own port behind a published one.
        """
        return self.options

    @abstractmethod
    def probe(self) -> Facts:
        """Ask the server who it is. A server that is down is a fact, not an error."""

    @abstractmethod
    def ready(self) -> Readiness:
        """Tell whether the server really answers as its users need it; never waits itself."""

    @abstractmethod
    def capture(self, staging: Staging, previous: ServiceRecord | None) -> Captured:
        """Fill the staging folder with a consistent copy of everything but the excludes.

        Args:
            staging: where it goes; it also knows the live folder.
            previous: this service's record in the last manifest of this staging folder.

        Raises:
            CaptureError, ServerError: it could not be captured; the hint says what to do.
        """

    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """Ask the running server for the numbers that a restore is judged by."""

    def preflight(self) -> Iterator[Finding]:
        """Yield what would spoil a capture: rights of tokens, versions, odd settings."""
        yield from ()

    def would_run(self) -> str:
        """Give the version of the server that would run with restored data; empty = not known.

        The running one tells it, else its image's tag, where the image is one of the kind's own.
        """
        stack = self.place.stack
        container = stack.containers().get(self.place.container)
        if container is not None and container.state == "running":
            if told := self.probe().version:
                return told
        declared = stack.model().services.get(self.place.container)
        image = container.image if container else declared.image if declared else ""
        name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
        found = re.match(r"v?(\d+(?:\.\d+)*)", tag) if name in self.images else None
        return found[1] if found is not None else ""

    def unfit(self, record: ServiceRecord) -> Iterator[Finding]:
        """Yield what of this machine's configuration does not fit what would be restored.

        Nothing is stopped yet, and nothing extracted; of severity ERROR it refuses the restore.
        """
        yield from ()

    def load(self, folder: Path, record: ServiceRecord, live: Path | None) -> tuple[str, ...]:
        """Make an extracted folder ready to become the live one, before anything stops.

        Args:
            folder: the extracted folder; its files have been checked against the manifest.
            record: what the manifest says of it.
            live: today's live folder, for reading only (an equal palette may be taken over).

        Returns:
            Notes for the owner, for example what could not be prepared.

        Raises:
            LoadError: it cannot become the live folder.
        """
        return ()

    def verify(self, record: ServiceRecord) -> Iterator[Finding]:
        """Compare the running server with what the manifest recorded, after a restore.

        Yields:
            One finding of severity ERROR for every number that is not what it must be.
        """
        actual = self.counts()
        for key, wanted in record.counts.items():
            if actual.get(key) != wanted:
                yield Finding(
                    "counts.differ",
                    Severity.ERROR,
                    self.name,
                    f"{key}: {wanted} recorded, {actual.get(key, 'nothing')} found",
                )

    def guarded(self, counts: Mapping[str, int], files: int, size: int) -> Mapping[str, int]:
        """Choose the numbers whose fall under one half makes a capture suspicious.

        Args:
            counts: of the capture. files: captured files. size: their bytes.
        """
        return {"files": files, "bytes": size, **counts}

    def own_secrets(self) -> Mapping[str, Callable[[], Secret]]:
        """Name the secrets of `.env` that its running server makes for others, and how."""
        return {}

    @classmethod
    def telling(cls, path: str) -> bool:
        """Whether a captured file names what people made, so that `differences` must see it.

        Args:
            path: relative to the service's folder.
        """
        return False

    @classmethod
    def differences(
        cls, old: ServiceRecord, new: ServiceRecord, was: Path, now: Path
    ) -> Iterator[Difference]:
        """Yield how two captures of a service differ, in its owner's words.

        Nothing is asked of a server; a kind without words of its own yields nothing, and its
        counts are compared for it.

        Args:
            old, new: the records. was, now: folders that hold the `telling` files, if any does.

        Raises:
            IotopsError: a file of them cannot be read.
        """
        yield from ()

    def validate(self, tree: Path) -> Iterator[Finding]:
        """Yield what is wrong with a candidate configuration, tried on the image that would run.

        Called on a service whose `place` is that of the candidate: `place.hub` is `tree` and
        `place.stack.model()` its Compose file, while `place.folder` is the live one, for reading
        only. Nothing may be changed; containers are made by `run_once(..., declared=True)`, whose
        image is here.

        Args:
            tree: the candidate as the hub folder; the folder above it is for temporary files.

        Raises:
            IotopsError, OSError: it could not be tried.
        """
        yield from ()

    def reload(self) -> OnChange:
        """Make the running server take its new configuration; tell what is still needed."""
        return OnChange.RESTART


def compared(
    what: str,
    old: Mapping[str, tuple[str, object]],
    new: Mapping[str, tuple[str, object]],
) -> Iterator[Difference]:
    """Yield what became of things that have a key.

    Args:
        what: the owner's word for one of them.
        old, new: by key, the name and something that changes with the thing.
    """
    for key, (name, mark) in new.items():
        if key not in old:
            yield Difference(what, "added", name)
        elif old[key][0] != name:
            yield Difference(what, "changed", name, f"was called {old[key][0]}")
        elif old[key][1] != mark:
            yield Difference(what, "changed", name)
    for key, (name, _) in old.items():
        if key not in new:
            yield Difference(what, "removed", name)
