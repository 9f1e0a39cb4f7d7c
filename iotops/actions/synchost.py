"""Pieces of the host beside the hub folder: the installed units, and what mounts the data root.

They are compared and told with the command, never written: config-sync follows Git in the hub
folder only, and root's folders are not that. Not here: what a snapshot recorded of its host
(`hostdiff.py`), and the decision about files and containers (`syncplan.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iotops.actions import parts
from iotops.actions.hubfiles import shipped
from iotops.actions.syncdiff import shown
from iotops.actions.syncplan import Change, ChangeKind, File
from iotops.hub import Hub
from iotops.model import Finding, OnChange, Severity

UNITS = Path("/etc/systemd/system")
"""Where the owner installs units; systemd.unit(5)."""


def look(hub: Hub) -> tuple[tuple[Change, ...], tuple[Finding, ...]]:
    """Compare this machine's pieces with what the settings and this version say."""
    data = hub.settings.data
    mounted = mount(data.root, UNITS) if data.kind == "mount" else ()
    return tuple(units(UNITS)), tuple(mounted)


def units(folder: Path) -> Iterator[Change]:
    """Yield the installed units of iotops that are not as this version has them.

    Drop-ins are the owner's, and so is which units are installed at all.
    """
    for path in sorted(folder.glob("iotops-*")):
        if path.suffix not in (".service", ".timer") or not path.is_file():
            continue
        try:
            wanted = File(shipped(f"systemd/{path.name}").encode())
            present = File(path.read_bytes())
        except OSError:
            continue  # one of the owner's own, or gone meanwhile
        if present != wanted:
            text = shown(path.name, present, wanted, ())
            yield Change(str(path), ChangeKind.HOST, text, "", OnChange.NOTHING, present.mark)


def mount(root: Path, folder: Path) -> Iterator[Finding]:
    """Yield that nothing mounts the data root at boot, although the settings say it is a mount.

    Args:
        folder: where mount units may be installed, which are an alternative to fstab(5).
    """
    wanted, found = f"Where={root}", [one for one in folder.glob("*.mount") if one.is_file()]
    if any(wanted in one.read_text(errors="replace").split() for one in found):
        return
    if parts.mount_line(root):
        return
    yield Finding(
        "host.mount",
        Severity.WARNING,
        "/etc/fstab",
        f"nothing mounts {root} at boot: /etc/fstab has no line for it",
        f"add one, with the UUID of the disk: findmnt -no UUID {root}",
    )
