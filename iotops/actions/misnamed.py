"""A service whose container is none of the hub's, while its server runs under another name.

Then the captures take a running server for one that is down, and save what it wrote last. A server
that stands still is no fault: its files are its state. Not here: what follows from it (a refused
candidate, a partial backup, a finding of the doctor).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iotops.clients.compose import Container, ServiceModel
from iotops.clients.composemodel import UP, Mount
from iotops.hub import image_name
from iotops.model import Finding, Severity
from iotops.services.base import Service

CODE = "service.container"


def running(
    service: Service,
    services: Sequence[Service],
    declared: Mapping[str, ServiceModel],
    containers: Mapping[str, Container],
) -> Finding | None:
    """Find the running container that a service of a known server means, and does not name.

    Args:
        services: all of the hub. declared: what Compose declares. containers: of the project.
    """
    if not lost(service, declared) or service.place.container in containers:
        return None
    up = {name: (one.image, one.mounts) for name, one in containers.items() if one.state in UP}
    return _finding(service, _meant(service, services, up), "runs")


def declared_otherwise(
    service: Service, services: Sequence[Service], declared: Mapping[str, ServiceModel]
) -> Finding | None:
    """Find that Compose has no container for a service of a known server.

    Args:
        services: all of the hub. declared: what Compose declares.
    """
    if not lost(service, declared):
        return None
    there = {name: (one.image, one.mounts) for name, one in declared.items()}
    return _finding(service, _meant(service, services, there), "is declared")


def lost(service: Service, declared: Mapping[str, ServiceModel]) -> bool:
    """Whether a service is of a known server, and Compose does not know its container.

    A folder of files needs no container.
    """
    return bool(service.images) and service.place.container not in declared


def _meant(
    service: Service,
    services: Sequence[Service],
    there: Mapping[str, tuple[str, Sequence[Mount]]],
) -> str:
    """Give the first container that no service has, of the kind's image or with its data."""
    named = {one.place.container for one in services}
    for name, (image, mounts) in sorted(there.items()):
        holds = any(
            mount.target in service.targets
            and mount.source is not None
            and mount.source.is_relative_to(service.place.folder)
            for mount in mounts
        )
        if name not in named and (holds or image_name(image) in service.images):
            return name
    return ""


def _finding(service: Service, other: str, how: str) -> Finding | None:
    if not other:
        return None
    name, container = service.name, service.place.container
    return Finding(
        CODE,
        Severity.ERROR,
        name,
        f"Compose has no container {container}, and what {how} as {other} belongs to no service:"
        f" {name} would be taken for a {service.kind} that is down",
        f'name it in iotops.toml: container = "{other}" below [services.{name}], or call the table'
        f" [services.{other}]",
    )
