"""The data root: whether it is the right disk, and how an empty one becomes this hub's.

A hub that starts, backs up or restores while its SSD is not mounted works on the SD card beneath
and looks healthy; so nothing is done before the data root is a mount point that carries this
hub's sentinel. A folder is judged by looking only: nothing here runs a program, and a data root
of kind "mount" is never created. Not here: who asks before a disk is claimed (`actions/`), and the
services' own folders.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from iotops.clients import files
from iotops.errors import GuardError
from iotops.model import Finding, Severity

SENTINEL = ".iotops-data-root"
"""File at the top of a data root that names the hub it belongs to."""

FOLDER = ".iotops"
"""iotops' own folder at the top of a data root."""

Kind = Literal["mount", "folder"]

UNCLAIMED = ("mount.unclaimed", "mount.data-without-sentinel")
"""Codes of findings about a data root of no hub: an empty one, and one with data."""

GET_UUID = 0x80111500
"""`FS_IOC_GETFSUUID` of Linux 6.9 (include/uapi/linux/fs.h): one byte length, 16 bytes UUID."""


@dataclass(frozen=True)
class Layout:
    """iotops' own places on a data root, all in its folder `.iotops`.

    Attributes:
        folder: that folder. staging: what the next snapshot is made of. replaced: data that a
            restore put aside. journal: records of runs. cache: restic's. tmp: scratch.
    """

    folder: Path
    staging: Path
    replaced: Path
    journal: Path
    cache: Path
    tmp: Path


_MODES = {
    "folder": 0o711,  # passable, so that the journal in it can be read; not listable
    "staging": 0o700,
    "replaced": 0o700,
    "journal": 0o2750,  # set-group-id: records written by root belong to the owner's group too
    "cache": 0o700,
    "tmp": 0o700,
}


def layout(root: Path) -> Layout:
    """Give the places on a data root; nothing is created."""
    own = root / FOLDER
    return Layout(
        folder=own,
        staging=own / "staging",
        replaced=own / "replaced",
        journal=own / "journal",
        cache=own / "restic-cache",
        tmp=own / "tmp",
    )


# ---- judging ------------------------------------------------------------------------------------


def inspect(root: Path, kind: Kind, hub_id: str, recorded_uuid: str = "") -> tuple[Finding, ...]:
    """Judge whether a folder is this hub's data root.

    Args:
        kind: "mount" = it must be a mount point; "folder" = a plain folder will do.
        hub_id: whose it must be.
        recorded_uuid: of the file system it was last seen on; empty = not known.

    Returns:
        Findings about `root`; none = all is well. Codes: `mount.missing`, `mount.unreadable`,
        `mount.absent`, `mount.unclaimed`, `mount.foreign`, `mount.data-without-sentinel`,
        `mount.readonly` (errors), `mount.other-filesystem` (warning).
    """
    try:
        return tuple(_inspect(root, kind, hub_id, recorded_uuid))
    except PermissionError:
        return (
            _error(root, "mount.unreadable", "may not be read by this user", "sudo iotops status"),
        )
    except OSError as error:  # a dying disk answers with EIO
        text = f"cannot be read: {error.strerror}"
        return (_error(root, "mount.unreadable", text, "look at the disk: sudo dmesg"),)


def require(root: Path, kind: Kind, hub_id: str, recorded_uuid: str = "") -> None:
    """Refuse to go on unless a folder is this hub's data root; see `inspect`.

    Raises:
        GuardError: with the findings' text and the first one's hint.
    """
    _refuse(inspect(root, kind, hub_id, recorded_uuid))


def claimable(root: Path, kind: Kind) -> bool:
    """Tell whether a folder may become a hub's data root: right kind, no sentinel, no data."""
    found = inspect(root, kind, "")
    bad = [finding.code for finding in found if finding.severity is Severity.ERROR]
    return bad == ["mount.unclaimed"]


def identity(root: Path) -> str:
    """Give the UUID of the file system that holds a folder, in lower case; '' when unknown.

    Asks the kernel (6.9 and newer), else udev's database, else `/dev/disk/by-uuid`; so it also
    works where a sandbox hides the devices.
    """
    try:
        device = root.stat().st_dev
    except OSError:
        return ""
    return _kernel_uuid(root) or _udev_uuid(device) or _linked_uuid(device)


def is_mount_point(path: Path) -> bool:
    """Tell whether something else than the folder itself is mounted at a path.

    A bind mount of another folder counts, also one of the same file system. A folder bound onto
    itself does not: that is what systemd makes of `ReadWritePaths=` on a plain folder, so inside a
    hardened unit it says nothing about a disk. Neither does an automount point that is not mounted.
    """
    here = path.resolve()
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return here == Path("/") or here.stat().st_dev != here.parent.stat().st_dev
    mounts = {mount.id: mount for mount in map(_mount, lines)}
    at = [mount for mount in mounts.values() if mount.point == here]
    return any(
        mount.type != "autofs" and not _onto_itself(mount, mounts.get(mount.parent)) for mount in at
    )


def _inspect(root: Path, kind: Kind, hub_id: str, recorded_uuid: str) -> Iterator[Finding]:
    if not root.is_dir():
        todo = f"sudo mkdir {root}" if kind == "folder" else f"sudo mount {root} (and see fstab)"
        yield _error(root, "mount.missing", "does not exist or is no folder", todo)
        return
    if kind == "mount" and not is_mount_point(root):
        yield _error(
            root,
            "mount.absent",
            "is not a mount point: the disk is not mounted",
            f"sudo mount {root}; if it shall be a plain folder: [data] kind = folder",
        )
        return
    owner = _sentinel(root)
    if owner is None and _is_empty(root):
        yield _error(
            root,
            "mount.unclaimed",
            "is empty and belongs to no hub yet",
            "for a new hub: iotops init --claim-disk; for an old one:"
            " iotops restore latest --claim-disk",
        )
    elif owner is None:
        yield _error(
            root,
            "mount.data-without-sentinel",
            f"holds data but no {SENTINEL}: it may be another disk than this hub's",
            f"look at it: ls -la {root}; an empty disk can be claimed; if it is this hub's own"
            " data, from before iotops: iotops init --claim-data",
        )
    elif not owner:
        yield _error(
            root,
            "mount.foreign",
            f"belongs to nobody knows which hub: its {SENTINEL} is damaged",
            f"if it is this hub's disk, write the hub's id into it: {root}/{SENTINEL}",
        )
    elif owner != hub_id:
        yield _error(
            root,
            "mount.foreign",
            f"belongs to another hub ({owner})",
            "mount this hub's own disk, then look: iotops status",
        )
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        yield _error(
            root,
            "mount.readonly",
            "is mounted read-only: often the sign of a failing disk",
            f"sudo dmesg | tail; then: sudo mount -o remount,rw {root}",
        )
    present = identity(root)
    if recorded_uuid and present and present != recorded_uuid:
        yield Finding(
            "mount.other-filesystem",
            Severity.WARNING,
            str(root),
            f"{root} is the file system {present}, recorded was {recorded_uuid}",
            "expected after a change of disks; else mount the right one",
        )


def _error(root: Path, code: str, text: str, hint: str) -> Finding:
    return Finding(code, Severity.ERROR, str(root), f"the data root {root} {text}", hint)


def _refuse(findings: Sequence[Finding]) -> None:
    bad = [finding for finding in findings if finding.severity is Severity.ERROR]
    if bad:
        raise GuardError("; ".join(finding.message for finding in bad), hint=bad[0].hint)


def _sentinel(root: Path) -> str | None:
    """The id in a data root's sentinel; None = there is none, '' = it is damaged."""
    path = root / SENTINEL
    if not os.path.lexists(path):
        return None
    try:
        document: object = json.loads(path.read_bytes())
    except ValueError:
        return ""
    found = document.get("hub") if isinstance(document, dict) else None
    return found if isinstance(found, str) else ""


def _is_empty(root: Path) -> bool:
    """Whether there is nothing but `lost+found` and what a claim cut short by power leaves."""
    ours = {"lost+found", FOLDER}
    if any(
        entry.name not in ours and not entry.name.startswith(files.TEMPORARY)
        for entry in root.iterdir()
    ):
        return False
    return not any(names for _, _, names in os.walk(root / FOLDER))


# ---- claiming -----------------------------------------------------------------------------------


def claim(
    root: Path,
    kind: Kind,
    hub_id: str,
    name: str,
    group: int | None = None,
    *,
    with_data: bool = False,
) -> None:
    """Make an empty data root this hub's: its sentinel and iotops' own folders.

    A root that is this hub's already only gets the folders that are missing.

    Args:
        name: the hub's, for people who read the sentinel.
        group: numeric group that may read the journal, the owner's; None = leave it.
        with_data: its owner says that the data on it is this hub's; nothing of it is touched.

    Raises:
        GuardError: it is not there, not mounted, read-only, another hub's, or holds data.
    """
    found = inspect(root, kind, hub_id)
    allowed = UNCLAIMED if with_data else UNCLAIMED[:1]
    _refuse([finding for finding in found if finding.code not in allowed])
    places = layout(root)
    for field in fields(places):
        _make(getattr(places, field.name), _MODES[field.name])
    if group is not None and os.geteuid() == 0:
        os.chown(places.journal, -1, group)
        places.journal.chmod(_MODES["journal"])  # a change of group may clear set-group-id
    if found:
        text = json.dumps(
            {
                "hub": hub_id,
                "name": name,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            indent=1,
        )
        # Last: a root with a sentinel is complete, one without can be claimed again.
        files.write(root / SENTINEL, text.encode() + b"\n", mode=0o644)


def _make(folder: Path, mode: int) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700)
        folder.chmod(mode)  # whatever the umask


# ---- mounts and file systems --------------------------------------------------------------------


@dataclass(frozen=True)
class _Mount:
    """A line of mountinfo: `inside` is the folder of the file system that is mounted."""

    id: str
    parent: str
    device: str
    inside: str
    point: Path
    type: str


def _mount(line: str) -> _Mount:
    words = line.split(" ")
    rest = words[words.index("-", 6) + 1 :]
    return _Mount(words[0], words[1], words[2], _plain(words[3]), Path(_plain(words[4])), rest[0])


def _plain(text: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _onto_itself(mount: _Mount, parent: _Mount | None) -> bool:
    """Whether a mount shows what its parent mount has at that place anyway."""
    if parent is None or mount.device != parent.device:
        return False
    if not mount.point.is_relative_to(parent.point):
        return False
    within = Path(parent.inside) / mount.point.relative_to(parent.point)
    return Path(mount.inside) == within


def _kernel_uuid(folder: Path) -> str:
    answer = bytearray(17)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.ioctl(descriptor, GET_UUID, answer)
    except OSError:
        return ""  # an older kernel, or a file system without a UUID
    finally:
        os.close(descriptor)
    found = uuid.UUID(bytes=bytes(answer[1:17]))
    return str(found) if answer[0] == 16 and found.int else ""


def _udev_uuid(device: int) -> str:
    path = Path(f"/run/udev/data/b{os.major(device)}:{os.minor(device)}")
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = (line.partition("=")[2] for line in lines if line.startswith("E:ID_FS_UUID="))
    return next(found, "").lower()


def _linked_uuid(device: int) -> str:
    try:
        links = [*Path("/dev/disk/by-uuid").iterdir()]
    except OSError:
        return ""
    for link in links:
        try:
            if link.stat().st_rdev == device:
                return link.name.lower()
        except OSError:
            continue
    return ""
