"""The nouns of iotops, as frozen values.

Everything that travels between floors is one of these. Not here: reading and writing any of them
(`manifest.py`, `journal.py`), and the settings (`config.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

MANIFEST_FORMAT = 1
"""Format number of `manifest.json`; a reader refuses a higher one."""


class Outcome(StrEnum):
    """How a run or a snapshot ended."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    FAILED = "failed"


class Mode(StrEnum):
    """Whether a service runs (hot) or is stopped (cold) while its data is copied or put back."""

    HOT = "hot"
    COLD = "cold"


class Severity(StrEnum):
    """How bad a finding is: an error refuses or fails, a warning is shown, info is told."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class OnChange(StrEnum):
    """What a service needs when its configuration changed; its declaration: a new container."""

    RELOAD = "reload"
    RESTART = "restart"
    RECREATE = "recreate"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Finding:
    """One judgement about the hub.

    Attributes:
        code: stable short name, for machines and tests, for example "mount.missing".
        subject: what it is about: a service, a path, "repository".
        hint: the next command to type or thing to do.
    """

    code: str
    severity: Severity
    subject: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Facts:
    """What `probe()` saw of a running service; a server that is down is a fact too."""

    reachable: bool
    version: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Readiness:
    """Whether a service really answers.

    Attributes:
        ok: it does.
        reason: what is not right yet.
        final: waiting longer is of no use (a missing palette, wrong credentials).
    """

    ok: bool
    reason: str = ""
    final: bool = False


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file of a service: its path in the hub folder and what a change needs."""

    path: str
    on_change: OnChange


@dataclass(frozen=True)
class Exclude:
    """A named rule for what a service's folder may leave out of a capture.

    Attributes:
        pattern: relative to the service's folder; "name/" is a folder at its top, "**/x" any x,
            wildcards as in fnmatch.
        reason: why nothing is lost without it.
    """

    pattern: str
    reason: str


@dataclass(frozen=True, slots=True)  # there may be a hundred thousand
class Artifact:
    """One captured file, folder or symbolic link.

    Attributes:
        path: relative to the snapshot's root, as text (see `files.path_text`).
        size: bytes; 0 for folders and links.
        mode: permission bits. uid, gid: numeric owner.
        mtime_ns: time of last change, nanoseconds since 1970 UTC.
        inode: of the staged file: a hash is taken over only when it is the same.
        sha256: of a file's content, hexadecimal; empty for folders and links.
        target: where a symbolic link points, as text.
        holes: bytes of the size that took no room, where the file is sparse.
    """

    path: str
    type: Literal["file", "directory", "symlink"]
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    inode: int = 0
    sha256: str = ""
    target: str = ""
    holes: int = 0

    @property
    def room(self) -> int:
        """Give the bytes that it takes on a disk which keeps its holes."""
        return max(0, self.size - self.holes)


@dataclass(frozen=True)
class LeftOut:
    """What one exclude rule left out: a number of files and their bytes."""

    pattern: str
    reason: str
    files: int
    bytes: int


@dataclass(frozen=True)
class ImageRecord:
    """The image a container ran: reference, id, registry digests, platform ("linux/arm64")."""

    reference: str = ""
    id: str = ""
    digests: tuple[str, ...] = ()
    platform: str = ""


@dataclass(frozen=True)
class Captured:
    """What a service tells about its own capture.

    Attributes:
        version: of the server.
        counts: few numbers that prove the data came back.
        facts: short texts that must be equal after a restore (a revision) or help to judge one.
        warnings: what is not as good as it should be.
        extra: what the kind wants to find again at its next capture; JSON text, never a secret.
    """

    version: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    extra: str = ""


@dataclass(frozen=True)
class ServiceRecord:
    """A service's part of a manifest.

    Attributes:
        name: in the settings. kind: its file under `services/`. container: Compose service.
        folder: below the data root and below the snapshot's root.
        seconds: the capture took. stopped_seconds: the container stood still; 0 for hot.
        error: why it was not captured; empty when it was. hint: what to do about it.
    """

    name: str
    kind: str
    container: str
    folder: str
    mode: Mode
    image: ImageRecord = ImageRecord()
    version: str = ""
    seconds: float = 0.0
    stopped_seconds: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    extra: str = ""
    error: str = ""
    hint: str = ""


@dataclass(frozen=True)
class HostRecord:
    """The machine a snapshot was made on; `addresses` are those that others reach it at."""

    name: str
    machine: str
    system: str
    machine_id: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedPort:
    """A port of a container that this machine opens.

    Attributes:
        address: where it listens; empty = at every one.
        port: on this machine; 0 = chosen anew at each start.
        target: the container's own port.
        protocol: "tcp" or "udp"; "host" = it shares the machine's network, hence opens all of its.
    """

    address: str
    port: int
    target: int
    protocol: str


@dataclass(frozen=True)
class PartRecord:
    """A part of the snapshot that belongs to no service: "hub", "host" or "other"."""

    name: str
    artifacts: tuple[Artifact, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Manifest:
    """The record inside every snapshot, written last. Times are UTC.

    Attributes:
        root: the data root's path. ports: by Compose service; None = not recorded (both are
            missing in snapshots of an earlier iotops).
    """

    format: int
    hub_id: str
    hub_name: str
    run: str
    host: HostRecord
    versions: Mapping[str, str]
    started: datetime
    ended: datetime
    outcome: Outcome
    commits: Mapping[str, str] = field(default_factory=dict)
    services: tuple[ServiceRecord, ...] = ()
    parts: tuple[PartRecord, ...] = ()
    root: str = ""
    ports: Mapping[str, tuple[PublishedPort, ...]] | None = None

    def artifacts(self) -> tuple[Artifact, ...]:
        """Give the artifacts of all services and parts."""
        held = [artifact for record in self.services for artifact in record.artifacts]
        held += [artifact for part in self.parts for artifact in part.artifacts]
        return tuple(held)

    def missing(self) -> dict[str, str]:
        """Give why, by name, of every service and part that was not captured."""
        found = {record.name: record.error for record in self.services if record.error}
        return found | {part.name: part.error for part in self.parts if part.error}

    def service(self, name: str) -> ServiceRecord | None:
        """Give the record of the service of that name, if there is one."""
        return next((record for record in self.services if record.name == name), None)


@dataclass(frozen=True)
class Accepted:
    """What a backup shall go on in spite of, because its owner has looked.

    Attributes:
        shrink: a source became empty or fell under half. disk: the disk does not know of the last
            good backup. clock: it stands before the last good backup, whose time was wrong.
    """

    shrink: bool = False
    disk: bool = False
    clock: bool = False


@dataclass(frozen=True)
class Difference:
    """What became of one thing that an owner knows by its name, between two snapshots.

    Attributes:
        what: a word of the owner: "dashboard", "tab", "user", "bucket", "points".
        change: "added", "removed" or "changed".
        name: its title or name; never a secret.
        detail: how much or in which way, in a few words; may be empty.
        parts: the same in detail, a line each.
    """

    what: str
    change: str
    name: str
    detail: str = ""
    parts: tuple[str, ...] = ()


class StepKind(StrEnum):
    """What a step of a restore does; in this order."""

    CLAIM = "claim"
    EXTRACT = "extract"
    CHECK = "check"
    STOP = "stop"
    SWAP = "swap"
    START = "start"
    WAIT = "wait"
    VERIFY = "verify"


@dataclass(frozen=True)
class Step:
    """One step of a plan: what, to which service, whether it destroys or replaces, and why."""

    kind: StepKind
    service: str
    destructive: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a restore will do, decided before anything is touched."""

    snapshot: str
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether an error among the findings forbids going on."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)
