"""Data of the hub that a container keeps outside of the data root, hence outside of a snapshot.

A named volume of the Compose file, or one without a name that an image asks for where nothing is
mounted: Docker keeps both on the system's disk. And a folder elsewhere that a server of a known
kind has its data in: where it is copied at all, as in the hub folder, it is not as that kind. What
is not captured must not pass as captured, so a backup is partial until each is moved, or is named
in the settings as not wanted. Not here: capturing them; a folder below the data root is captured
without any setting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from iotops import services
from iotops.clients.compose import Container, Mount, Volume
from iotops.hub import Hub, kind_of
from iotops.model import Finding, PartRecord, Severity

VOLUMES, FOLDERS = "volumes", "folders"
"""Names of a snapshot's parts that are there only to say that they are missing."""
CODE = "volume.outside"


def uncaptured(hub: Hub, containers: Mapping[str, Container]) -> tuple[Finding, ...]:
    """Find the volumes that hold something, are no snapshot's part, and are not ignored.

    Args:
        containers: of the project, by service.

    Returns:
        One finding of severity ERROR for each volume, about the service that uses it.
    """
    used = [*_used(hub, containers)]
    if not used:
        return ()
    there = hub.stack.volumes(sorted({mount.name for _, mount in used}))
    found: dict[str, Finding] = {}
    for service, mount in used:
        volume = there.get(mount.name)
        if volume is not None and mount.name not in found and _holds_data(hub, volume):
            found[mount.name] = _finding(hub.root, service, mount, volume)
    return tuple(found.values())


def misplaced(hub: Hub) -> tuple[Finding, ...]:
    """Find servers of a known kind that are no service of the hub, since their data lies elsewhere.

    Returns:
        One finding of severity ERROR for each of their folders that no snapshot has as their kind.
    """
    return tuple(
        in_hub(hub.root, name, kind, mount.target, source)
        if source.is_relative_to(hub.folder)
        else outside_of(name, f"the folder {source}", mount.target, hub.root / source.name)
        for name, kind, mount, source in _misplaced(hub)
    )


def parts(hub: Hub, containers: Mapping[str, Container]) -> Iterator[PartRecord]:
    """Yield the records of what is not captured because of where it lies."""
    for name, found in ((VOLUMES, uncaptured(hub, containers)), (FOLDERS, misplaced(hub))):
        if found:
            text = "; ".join(one.message for one in found)
            yield PartRecord(name, error=f"{text} ({found[0].hint})")


def in_hub(root: Path, name: str, kind: str, target: str, source: Path) -> Finding:
    """Tell that a server of a known kind has its data in the hub folder."""
    return Finding(
        "mount.in-hub",
        Severity.ERROR,
        name,
        f"its data lies in the hub folder ({source}): it is copied as plain files while it"
        f" changes, not as {kind}, and no restore brings it back",
        moving(root, name, target, source),
    )


def moving(root: Path, name: str, target: str, source: Path) -> str:
    """Give the commands that move a service's folder to the data root."""
    goal = root / source.name
    return (
        f"docker compose stop {name}; sudo mv {source} {goal}; mount {goal}:{target}"
        f" instead; docker compose up -d {name}"
    )


def outside_of(name: str, what: str, target: str, goal: Path) -> Finding:
    """Tell that something mounted lies neither below the data root nor in the hub folder.

    Args:
        what: it is, with its path. goal: where it belongs.
    """
    return Finding(
        "mount.outside",
        Severity.ERROR,
        name,
        f"{what} ({target} in its container) is neither below the data root"
        " nor in the hub folder: it is not captured",
        f"move it to {goal} and mount it from there; then: docker compose up -d {name}",
    )


def _finding(root: Path, service: str, mount: Mount, volume: Volume) -> Finding:
    unnamed = len(mount.name) == 64 and all(letter in "0123456789abcdef" for letter in mount.name)
    name = f"{service}:{mount.target}" if unnamed else mount.name
    what = "a Docker volume without a name" if unnamed else f"the Docker volume {mount.name}"
    goal = root / (f"{service}-{Path(mount.target).name}" if unnamed else mount.name)
    return Finding(
        CODE,
        Severity.ERROR,
        service,
        f"{service} keeps {mount.target} in {what}, which is not below the data root and not"
        " captured",
        f"move it: docker compose stop {service}; sudo cp -a {volume.device or volume.mountpoint}/."
        f" {goal}; mount {goal}:{mount.target} in the Compose file instead; docker compose up -d"
        f' {service}. Or, if nobody needs it back: [data] ignore_volumes = ["{name}"]',
    )


def _used(hub: Hub, containers: Mapping[str, Container]) -> Iterator[tuple[str, Mount]]:
    """Yield every volume that a service mounts, and that matters, with the service's name."""
    ignored = frozenset(hub.settings.data.ignore_volumes)
    kinds = {service.place.container: service.kind for service in hub.services}
    for name in sorted({*hub.model.services, *containers}):
        model, container = hub.model.services.get(name), containers.get(name)
        mounts = [*(container.mounts if container else ()), *(model.mounts if model else ())]
        image = model.image if model else container.image if container else ""
        fleeting = _fleeting(kinds.get(name) or kind_of(image))
        for mount in mounts:
            if mount.kind != "volume" or not mount.name or mount.target in fleeting:
                continue
            if not ignored & {mount.name, f"{name}:{mount.target}"}:
                yield name, mount


def _misplaced(hub: Hub) -> Iterator[tuple[str, str, Mount, Path]]:
    """Yield name, kind, mount and folder of what `misplaced` tells."""
    known = {service.place.container for service in hub.services}
    for name, model in sorted(hub.model.services.items()):
        kind = kind_of(model.image)
        targets = services.kind(kind).targets if kind and name not in known else ()
        for mount in model.mounts:
            source, passing = mount.source, mount.target in _fleeting(kind)
            if source is None or mount.read_only or passing or mount.target not in targets:
                continue
            unwanted = f"{name}:{mount.target}" in hub.settings.data.ignore_volumes
            if not unwanted and not source.resolve().is_relative_to(hub.root.resolve()):
                yield name, kind, mount, source


def _fleeting(kind: str) -> tuple[str, ...]:
    return services.kind(kind).fleeting if kind else ()


def _holds_data(hub: Hub, volume: Volume) -> bool:
    """Tell whether a volume holds any file that no snapshot has."""
    if volume.in_memory:
        return False
    place = volume.device or volume.mountpoint
    if place.resolve().is_relative_to(hub.root.resolve()):
        return False  # captured with its folder
    if not os.access(place, os.R_OK | os.X_OK):
        return True  # nobody can know: better one finding too many
    return any(names for _, _, names in os.walk(place))


def outside(hub: Hub, name: str) -> Iterator[Finding]:
    """Yield a warning for every folder of the host that a service writes to elsewhere."""
    model = hub.model.services[name]
    places = (hub.root, hub.folder, *map(Path, ("/dev", "/proc", "/run", "/sys", "/tmp")))
    told = {mount for _, _, mount, _ in _misplaced(hub)}
    for mount in model.mounts:
        source = mount.source.resolve() if mount.source is not None else None
        if source is None or mount.read_only or not source.is_dir() or mount in told:
            continue
        if not any(source.is_relative_to(place.resolve()) for place in places):
            yield Finding(
                "mount.outside",
                Severity.WARNING,
                name,
                f"{mount.source} is neither below the data root nor in the hub folder:"
                " it is not captured",
                "move it below the data root, if it holds data",
            )
