"""What differs between this machine and the one of a snapshot: told with the commands.

Nothing of a host is ever applied by a restore: a firewall or an address that was right there can
lock its owner out here. A snapshot is not trusted: what it says is quoted in commands. Not here:
the facts themselves (`parts.py`), and what must fit before a restore may begin (`fitting.py`).
"""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from iotops.actions import parts
from iotops.clients import files, network
from iotops.model import Finding, Manifest, Severity

CODE = "machine.differs"

TAKE_OUT = "iotops restore latest --into DIR --path host"
"""Takes the host's files out of the newest snapshot, to look at."""

FILES = {
    "the firewall's rules": (
        tuple(name for name in parts.HOST_FILES if "ufw" in name),
        f"compare with `sudo ufw status verbose`: {TAKE_OUT}; allow ssh first; Docker's published"
        " ports pass UFW by",
    ),
    "Docker's settings": (
        ("/etc/docker/daemon.json",),
        f"compare: {TAKE_OUT}; after a change: sudo systemctl restart docker",
    ),
}
"""Files that are compared as they are, by what they hold; and what to do."""


def differences(made: Manifest, there: Path, root: Path) -> Iterator[Finding]:
    """Compare this machine with a snapshot's.

    Args:
        made: the manifest. there: the part `host`, extracted; what it has not is not compared.
        root: today's data root.
    """
    facts = _facts(there)
    yield from _machine(made)
    yield from _names(made, facts)
    yield from _addresses(made)
    yield from _disk(made, facts, root)
    for what, (names, hint) in FILES.items():
        if differ := [name for name in names if _differs(there, name)]:
            yield _told("files", f"{what} are other than then: {', '.join(differ)}", hint)
    yield from _packages(facts)


def _machine(made: Manifest) -> Iterator[Finding]:
    now = os.uname().machine
    if made.host.machine and made.host.machine != now:
        yield _told(
            "machine",
            f"the processor was {made.host.machine} and is {now}: images and the palette"
            " are of another kind",
            "restore with: --image current",
        )


def _names(made: Manifest, facts: Mapping[str, object]) -> Iterator[Finding]:
    if (name := made.host.name) and name != socket.gethostname():
        yield _told(
            "host name",
            f"the host name was {name} and is {socket.gethostname()}",
            f"sudo hostnamectl set-hostname {shlex.quote(name)}",
        )
    zone, here = str(facts.get("localtime") or ""), os.path.realpath("/etc/localtime")
    _, _, plain = zone.partition("zoneinfo/")
    if plain and zone != here:
        yield _told(
            "time zone",
            f"the time zone was {plain}",
            f"sudo timedatectl set-timezone {shlex.quote(plain)}",
        )


def _addresses(made: Manifest) -> Iterator[Finding]:
    gone = [address for address in made.host.addresses if not network.has(address)]
    if gone:
        now = ", ".join(network.addresses()) or "none"
        yield _told(
            "addresses",
            f"the addresses {', '.join(gone)} are not here any more; now: {now}",
            "devices, flows and data sources that name them need the new one: give this machine the"
            " old one in the router (DHCP reservation), or use names",
        )


def _disk(made: Manifest, facts: Mapping[str, object], root: Path) -> Iterator[Finding]:
    if made.root and made.root != str(root):
        yield _told(
            "data root",
            f"the data root was {made.root} and is {root}",
            "see that the Compose file mounts it: iotops doctor",
        )
    line = str(facts.get("mount line") or "")
    if line and not parts.mount_line(root):
        yield _told(
            "fstab",
            f"/etc/fstab has no line for {root}; it was: {line}",
            f"add one, with the UUID of today's disk: findmnt -no UUID {root}",
        )


def _packages(facts: Mapping[str, object]) -> Iterator[Finding]:
    then, here = facts.get("packages"), parts.packages()
    if not isinstance(then, dict) or not here:
        return
    # Docker comes from Debian or from Docker itself, under other names.
    asked = [name for name in parts.PACKAGES if not name.startswith(("docker", "containerd"))]
    gone = sorted(name for name in asked if name in then and name not in here)
    if gone:
        yield _told(
            "packages",
            f"not installed, and were then: {', '.join(gone)}",
            f"sudo apt-get install {' '.join(gone)}",
        )


def _differs(there: Path, name: str) -> bool:
    """Whether a file that was captured is another one here; what was not there is no matter."""
    then = _held(there / "files" / name.lstrip("/"))
    if then is None:
        return False
    try:
        return Path(name).read_bytes() != then
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _held(path: Path) -> bytes | None:
    """Read an extracted file; a link is not followed: it could lead to what never ends."""
    if not files.is_regular(path):
        return None
    try:
        return path.read_bytes()
    except OSError:
        return None


def _facts(there: Path) -> Mapping[str, object]:
    try:
        document: object = json.loads(_held(there / "facts.json") or b"")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _told(subject: str, message: str, hint: str) -> Finding:
    return Finding(CODE, Severity.INFO, subject, message, hint)
