"""Where the demo hub lives: a temporary folder, a disk of its own that can be lost, free ports.

Everything here is removed again in every case; what would be left after a kill -9 can be removed
by the marker file that stands in the folder from the first moment. Not here: what the hub does.
"""

from __future__ import annotations

import json
import os
import random
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from iotops import signals
from iotops.clients import dockerprogram, files, process
from iotops.errors import IotopsError, ProgramFailed, UsageError

ENVIRONMENT = "IOTOPS_DEMO_DIR"
USUAL = "/var/tmp"
MARKER = "iotops-demo.json"
DISK_SIZE = 2 << 30
"""Bytes of the disk; a sparse file, so only what is written takes room."""
SERVICES = ("mosquitto", "nodered", "influxdb", "grafana")


@dataclass(frozen=True)
class Ground:
    """The places of one demo.

    Attributes:
        base: holds everything else.
        loop: the data root is a loop-mounted file system, not a plain folder.
        why_folder: why it is a plain folder.
    """

    base: Path
    loop: bool = False
    why_folder: str = ""

    @property
    def project(self) -> str:
        """The Compose project's name: the folder's, whose letters are fit for that."""
        return self.base.name

    @property
    def hub(self) -> Path:
        """The hub folder."""
        return self.base / "hub"

    @property
    def root(self) -> Path:
        """The data root."""
        return self.base / "iot-data"

    @property
    def image(self) -> Path:
        """The file that the disk is."""
        return self.base / "disk.ext4"

    @property
    def repository(self) -> Path:
        """The restic repository; on another disk than the data in real life."""
        return self.base / "backup-disk" / "repository"

    @property
    def password_file(self) -> Path:
        """The repository's password."""
        return self.base / "secrets" / "restic-password"

    @property
    def state(self) -> Path:
        """Where the state file goes."""
        return self.base / "state"

    @property
    def run(self) -> Path:
        """Where the lock goes."""
        return self.base / "run"


@contextmanager
def prepared(*, keep: bool) -> Iterator[Ground]:
    """Make the places, and remove them with everything the demo started, whatever happens.

    Args:
        keep: leave it all, also when the body fails.

    Raises:
        UsageError: the folder for it cannot be used.
    """
    ground: Ground | None = None
    try:
        with signals.shield():
            ground = _make()
        ground = _with_disk(ground)
        _mark(ground)
        yield ground
    except BaseException as error:
        if ground is not None and not keep:
            try:
                _remove_shielded(ground)
            except IotopsError as trouble:
                raise ProgramFailed(f"{error}; {trouble}", hint=trouble.hint) from error
        raise
    if not keep:
        _remove_shielded(ground)


def _remove_shielded(ground: Ground) -> None:
    with signals.shield():
        remove(ground)


def _make() -> Ground:
    parent = Path(os.environ.get(ENVIRONMENT) or USUAL)
    try:
        base = Path(tempfile.mkdtemp(prefix="iotops-demo-", dir=parent.absolute()))
    except OSError as error:
        raise UsageError(
            f"no folder can be made in {parent}: {error.strerror}",
            hint=f"name another place: {ENVIRONMENT}=DIR",
        ) from error
    ground = Ground(base)
    base.chmod(0o755)  # the hub folder in it belongs to another user
    _mark(ground)
    for path in (ground.root, ground.password_file.parent, ground.repository.parent):
        path.mkdir(mode=0o700)
    ground.root.chmod(0o755)
    return ground


def _mark(ground: Ground) -> None:
    text = json.dumps({"demo": ground.project, "base": str(ground.base), "loop": ground.loop})
    files.write(ground.base / MARKER, text.encode(), mode=0o644)


def _with_disk(ground: Ground) -> Ground:
    """Mount a file system of its own at the data root, where the machine can do that."""
    try:
        _new_disk(ground)
    except (IotopsError, OSError) as error:
        ground.image.unlink(missing_ok=True)
        return Ground(ground.base, False, str(error))
    return Ground(ground.base, True)


def _new_disk(ground: Ground) -> None:
    """Make a new file with an empty file system and mount it; an old file is another disk."""
    ground.image.unlink(missing_ok=True)
    with ground.image.open("wb") as file:
        file.truncate(DISK_SIZE)
    process.run(
        ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", ground.image],
        doing="making a file system",
    )
    process.run(
        ["mount", "-o", "loop", ground.image, ground.root], doing="mounting a file as a disk"
    )


# ---- the disaster -------------------------------------------------------------------------------


def lose_disk(ground: Ground) -> None:
    """Kill everything at once and lose the whole data root, sentinel and all.

    The containers stay, as on a machine whose disk died; a new, empty disk is in its place.
    """
    if running := _ids(ground, "ps"):
        dockerprogram.must("kill", *running, doing="killing the containers")
    if not ground.loop:
        files.remove_tree(ground.root)
        ground.root.mkdir(mode=0o755)
        return
    _unmount(ground)
    _new_disk(ground)
    if any(path.name != "lost+found" for path in ground.root.iterdir()):
        raise ProgramFailed("the new disk is not empty")


# ---- removal ------------------------------------------------------------------------------------


def remove(ground: Ground) -> None:
    """Remove containers, networks, the mount, its loop device and the folder.

    Raises:
        IotopsError: something would not go; the rest is gone all the same.
    """
    troubles: list[str] = []
    for step in (_remove_containers, _unmount, _remove_folder):
        try:
            step(ground)
        except (IotopsError, OSError) as error:
            troubles.append(str(error))
    if troubles:
        raise ProgramFailed(
            f"the demo in {ground.base} could not be removed: {'; '.join(troubles)}",
            hint=f"sudo iotops demo --remove {ground.base}",
        )


def _remove_containers(ground: Ground) -> None:
    if found := _ids(ground, "ps", "--all"):
        dockerprogram.must("rm", "--force", "--volumes", *found, doing="removing the containers")
    if found := _ids(ground, "network", "ls"):
        dockerprogram.must("network", "rm", *found, doing="removing the network")


def _ids(ground: Ground, *words: str) -> list[str]:
    label = f"label=com.docker.compose.project={ground.project}"
    doing = "looking for the demo's containers"
    return dockerprogram.must(*words, "--quiet", "--filter", label, doing=doing).out.split()


def _unmount(ground: Ground) -> None:
    if not ground.root.is_mount():
        return
    try:
        process.run(["umount", ground.root], doing="unmounting the disk")
    except ProgramFailed:
        # Somebody looks at it: it goes as soon as the last one leaves.
        process.run(["umount", "--lazy", ground.root], doing="unmounting the disk")


def _remove_folder(ground: Ground) -> None:
    if ground.root.is_mount():
        return  # never empty a disk that would not go
    files.remove_tree(ground.base)


def find(base: Path) -> Ground:
    """Recognise what an earlier demo left.

    Raises:
        UsageError: the folder is none of a demo.
    """
    found: object = None
    with suppress(OSError, ValueError):
        found = json.loads((base / MARKER).read_bytes())
    if not isinstance(found, dict) or found.get("base") != str(base.absolute()):
        raise UsageError(f"{base} holds no demo", hint="sudo iotops demo --remove DIR")
    return Ground(base.absolute(), found.get("loop") is True)


# ---- ports --------------------------------------------------------------------------------------


def free_ports() -> Mapping[str, int]:
    """Choose a free loopback port for each service, all different."""
    found: set[int] = set()
    while len(found) < len(SERVICES):
        found.add(free_port())
    return dict(zip(SERVICES, found, strict=True))


def free_port() -> int:
    """Give a free loopback port, below those that the kernel gives to connections.

    A container's port is free for seconds while it is restored or made anew: one that the kernel
    had chosen could be some connection's by then.
    """
    span = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    while True:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", random.randrange(10_000, int(span.split()[0]))))
            return int(probe.getsockname()[1])
