"""Whether this machine fits a snapshot, looked at before anything stops.

Images, servers, mounts, addresses and keys are asked here; what they mean for a restore is decided
in `plan.py`. Not here: what is different on this machine and does no harm (`hostdiff.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from iotops.actions import ports
from iotops.actions.plan import HubFacts, Server, same_image
from iotops.clients import network
from iotops.clients.compose import Container, Mount
from iotops.hub import Hub
from iotops.model import Finding, Manifest, Severity
from iotops.services.base import Service


def look(
    hub: Hub, made: Manifest, facts: HubFacts, containers: Mapping[str, Container]
) -> HubFacts:
    """Add what only the snapshot makes worth asking.

    Args:
        facts: of the hub, whatever the snapshot is. containers: by Compose service.
    """
    published = ports.today(hub.model, containers)
    held = {
        service: record
        for service in hub.services
        if (record := made.service(service.name)) is not None and not record.error
    }
    return replace(
        facts,
        ports=published,
        absent=frozenset(one for one in ports.bound(published) if not network.has(one)),
        addresses=network.addresses(),
        servers={
            service.name: Server(service.would_run(), service.older)
            for service, record in held.items()
            if record.version and not same_image(facts, record)
        },
        unfit={
            service.name: (
                *_elsewhere(hub, made, service, _mounts(hub, service, containers)),
                *service.unfit(record),
            )
            for service, record in held.items()
        },
    )


def _mounts(hub: Hub, service: Service, containers: Mapping[str, Container]) -> tuple[Mount, ...]:
    """Give what its container mounts; one that is there is started as it is."""
    name = service.place.container
    if (container := containers.get(name)) is not None:
        return container.mounts
    declared = hub.model.services.get(name)
    return declared.mounts if declared is not None else ()


def _elsewhere(
    hub: Hub, made: Manifest, service: Service, mounts: Sequence[Mount]
) -> Iterator[Finding]:
    """Find a container that would not see the folder which is put back for it.

    The data root may be another one than then: the Compose file has to say so, too.
    """
    root, folder = hub.root.resolve(), service.place.folder.resolve()
    then = Path(made.root).resolve() if made.root else root
    sources = [
        (mount, mount.source.resolve())
        for mount in mounts
        if mount.source is not None and mount.target not in service.fleeting
    ]
    seen = any(_around(source, folder) for _, source in sources)
    for mount, source in sources:
        if _around(source, folder) or source.is_relative_to(root):
            continue
        old = then != root and source.is_relative_to(then)
        if old or (not seen and mount.target in service.targets):
            yield Finding(
                "mount.elsewhere",
                Severity.ERROR,
                service.name,
                f"its container mounts {mount.source} at {mount.target}, and its data is put back"
                f" to {service.place.folder}: it would not see it",
                f"write the data root {hub.root} into the mounts of the Compose file, then:"
                f" iotops up {service.name}; or mount the disk where it was, and say so in"
                " iotops.toml (data.root)",
            )


def _around(source: Path, folder: Path) -> bool:
    return source.is_relative_to(folder) or folder.is_relative_to(source)
