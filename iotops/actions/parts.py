"""The parts of a snapshot that belong to no service: the hub folder, the host, everything else.

Host facts are for a person and for comparing on a new machine; they are never applied. No Git is
run here: `.git` is copied as files. Not here: the order of a backup (`backup.py`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from iotops.clients import network
from iotops.clients.staging import Staged, Staging
from iotops.disk import SENTINEL
from iotops.errors import CaptureError, IotopsError
from iotops.hub import Hub
from iotops.model import Exclude, PartRecord
from iotops.services.base import Service

HOST_FILES = (
    "/etc/fstab",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/timezone",
    "/etc/docker/daemon.json",
    "/etc/ufw/user.rules",
    "/etc/ufw/user6.rules",
    "/etc/ufw/after.rules",
    "/etc/ufw/after6.rules",
    "/etc/default/ufw",
    "/etc/ufw/ufw.conf",
)
PACKAGES = frozenset(
    {
        "containerd.io",
        "docker-ce",
        "docker-compose",
        "docker-compose-plugin",
        "docker-compose-v2",
        "docker.io",
        "git",
        "python3",
        "restic",
        "systemd",
        "ufw",
    }
)
"""Packages whose versions a new machine is compared with."""

# The names are refused for services: `config.RESERVED`.
EXCLUDES: Mapping[str, tuple[Exclude, ...]] = {
    "hub": (
        Exclude("**/.iotops-new-*", "a temporary file of an interrupted write"),
        Exclude("**/__pycache__/", "made again by itself"),
    ),
    "host": (),
    "other": (
        Exclude(".iotops/", "staging, journal and cache of iotops itself"),
        Exclude("lost+found/", "belongs to the file system"),
        Exclude(SENTINEL, "says which hub the disk belongs to; made when a disk is claimed"),
    ),
}


def staged_folder(root: Path, service: Service) -> str:
    """Give a service's path below the snapshot's root: the same as below the data root.

    Raises:
        CaptureError: it would collide with a part of the snapshot that is no service's.
    """
    inside = service.place.folder.relative_to(root).as_posix()
    if inside.split("/")[0] in EXCLUDES:
        raise CaptureError(
            f"the folder {inside!r} of {service.name} has the name of a part of every snapshot",
            hint="rename the folder in the Compose file and on the disk",
        )
    return inside


def stage_hub(hub: Hub, staging: Staging) -> PartRecord:
    """Copy the hub folder's files, `.env` and `.git` included."""
    try:
        staging.rest()
        return _part("hub", staging.finish())
    except (IotopsError, OSError) as error:
        return PartRecord("hub", error=str(error))


def stage_host(hub: Hub, staging: Staging) -> PartRecord:
    """Write down the facts that a new machine needs to be like this one."""
    document = json.dumps(host_facts(hub.root), indent=2, sort_keys=True)
    staging.put("facts.json", document.encode() + b"\n", mode=0o600)
    for name in HOST_FILES:
        try:
            data = Path(name).read_bytes()
        except OSError:
            continue  # a host without UFW or daemon.json is fine
        staging.put(f"files{name}", data, mode=0o600)
    return _part("host", staging.finish())


def host_facts(root: Path) -> dict[str, object]:
    """Give the facts of this host as a JSON document: names, addresses, mount line, packages."""
    return {
        "host name": socket.gethostname(),
        "machine": platform.machine(),
        "time zone": "/".join(time.tzname),
        "localtime": os.path.realpath("/etc/localtime"),
        "addresses": list(network.addresses()),
        "mount line": mount_line(root),
        "packages": packages(),
    }


def mount_line(root: Path) -> str:
    """Give the line of fstab(5) that mounts the data root; empty = there is none."""
    try:
        lines = Path("/etc/fstab").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.split()[1:2] == [str(root)]), "")


def packages() -> dict[str, str]:
    """Read versions from dpkg's own file: no program is started for it."""
    try:
        text = Path("/var/lib/dpkg/status").read_text(errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for block in text.split("\n\n"):
        name = re.search(r"^Package: (\S+)$", block, re.MULTILINE)
        if name is not None and name[1] in PACKAGES:
            version = re.search(r"^Version: (\S+)$", block, re.MULTILINE)
            if version is not None and "ok installed" in block:
                found[name[1]] = version[1]
    return found


def stage_other(hub: Hub, staging: Staging) -> PartRecord:
    """Copy every top-level entry of the data root that no service owns."""
    owned = {service.place.folder.relative_to(hub.root).as_posix() for service in hub.services}
    try:
        staging.rest(owned.__contains__)
        return _part("other", staging.finish())
    except (IotopsError, OSError) as error:
        return PartRecord("other", error=str(error))


def _part(name: str, staged: Staged) -> PartRecord:
    return PartRecord(name, staged.every, staged.left_out, staged.warnings)


def commits(folder: Path) -> dict[str, str]:
    """Read the commits of the branches `main` and `flows` from `.git` without running Git."""
    found: dict[str, str] = {}
    for branch in ("main", "flows"):
        try:
            found[branch] = (folder / ".git/refs/heads" / branch).read_text().strip()
        except OSError:
            packed = _packed(folder, branch)
            if packed:
                found[branch] = packed
    return found


def _packed(folder: Path, branch: str) -> str:
    try:
        lines = (folder / ".git/packed-refs").read_text().splitlines()
    except OSError:
        return ""
    ending = f" refs/heads/{branch}"
    return next((line.split()[0] for line in lines if line.endswith(ending)), "")
