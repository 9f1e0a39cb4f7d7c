"""The ports that containers publish: as a snapshot records them, and where one is more open today.

Docker's published ports pass a firewall like UFW by, so what the Compose file says is what is
open. A restore neither opens nor closes any: it compares. Not here: whether a port ought to be open
at all (`doctor.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence

from iotops.clients.compose import Container, Model
from iotops.model import Finding, PublishedPort, Severity

OPENED = "port.opened"
"""A published port that is more open than the recorded one."""

Ports = Mapping[str, tuple[PublishedPort, ...]]
"""By Compose service."""

HOST = PublishedPort("", 0, 0, "host")
"""What stands for all ports of a container that has the machine's own network."""


def published(model: Model) -> dict[str, tuple[PublishedPort, ...]]:
    """Give what the Compose file publishes; services that publish nothing are named, too."""
    return {
        name: (HOST,)
        if one.network_mode == "host"
        else tuple(PublishedPort(p.host, p.published, p.target, p.protocol) for p in one.ports)
        for name, one in model.services.items()
    }


def today(
    model: Model, containers: Mapping[str, Container]
) -> dict[str, tuple[PublishedPort, ...]]:
    """Give what is published now: as the Compose file says, and as containers were made.

    A container that is there is started as it is, whatever the file has said since.
    """
    found = published(model)
    for name, one in containers.items():
        real = [PublishedPort(p.host, p.published, p.target, p.protocol) for p in one.ports]
        if name in found:
            found[name] = tuple(dict.fromkeys((*found[name], *real)))
    return found


def opened(
    recorded: Ports, now: Ports, services: Collection[str], *, accepted: bool
) -> Iterator[Finding]:
    """Yield a finding for every port that is more open than recorded, or was not there.

    Another number for the same port of the container is not more open; another address is, unless
    only this machine reaches it.

    Args:
        services: the Compose services to look at. accepted: the owner has looked at them.
    """
    for name in sorted(services):
        before = recorded.get(name, ())
        for one in now.get(name, ()):
            if any(_covers(other, one) for other in before):
                continue
            was = [_words(other) for other in before if _same_port(other, one)]
            then = f"recorded was {', '.join(was)}" if was else "recorded was none"
            yield Finding(
                OPENED,
                Severity.INFO if accepted else Severity.WARNING,
                name,
                f"{_words(one)} is published, {then}: more open than when the snapshot was made"
                + (", which is accepted" if accepted else ""),
                ""
                if accepted
                else "close it in the Compose file or .env, then: iotops up; or accept it:"
                " --accept-ports",
            )


def absent(now: Ports, addresses: Collection[str], here: Sequence[str]) -> Iterator[Finding]:
    """Yield an error for every port that is to listen at an address this machine does not have.

    Its container could not start. Only of the services given in `now`.

    Args:
        addresses: those that this machine does not have. here: those that it has.
    """
    for name, each in sorted(now.items()):
        for one in each:
            if one.address in addresses:
                have = f" (this machine has {', '.join(here)})" if here else ""
                yield Finding(
                    "address.absent",
                    Severity.ERROR,
                    name,
                    f"port {one.port} is to listen at {one.address}, which this machine does not"
                    f" have{have}: its container could not start",
                    "write today's address into .env or the Compose file (then, where its container"
                    f" is there already: iotops up {name}), or give this machine the old one",
                )


def bound(now: Ports) -> frozenset[str]:
    """Give the addresses, other than this machine's own loopback, that ports are bound to."""
    found = {one.address for each in now.values() for one in each if one.address}
    return frozenset(address for address in found if not _loopback(address))


def _covers(before: PublishedPort, now: PublishedPort) -> bool:
    if before.protocol == "host":
        return True
    if not _same_port(before, now):
        return False
    return before.address in ("", now.address) or _loopback(now.address)


def _same_port(one: PublishedPort, other: PublishedPort) -> bool:
    return (one.target, one.protocol) == (other.target, other.protocol)


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _words(one: PublishedPort) -> str:
    if one.protocol == "host":
        return "every port (network_mode: host)"
    where = f"at {one.address}" if one.address else "at every address"
    number = f"{one.port or 'any number'} for {one.target}/{one.protocol}"
    return f"port {number} {where}"
