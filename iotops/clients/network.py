"""This machine's addresses: which ones others reach it at, and whether it has a given one.

Read from the kernel; no program is started. Not here: which ports containers open
(`composemodel.py`), and any firewall.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

OWN = ("lo", "docker", "br-", "veth", "virbr", "cni", "flannel")
"""Beginnings of the names of interfaces that lead nowhere outside of this machine."""
SIOCGIFADDR = 0x8915
"""Asks for the first IPv4 address of an interface (netdevice(7))."""
GLOBAL = "00"
"""The scope of an IPv6 address that others can reach, in /proc/net/if_inet6."""


def addresses() -> tuple[str, ...]:
    """Give the addresses that others reach this machine at, sorted.

    Of an interface with several IPv4 addresses it is the first. Addresses of IPv6 that change by
    themselves (privacy) cannot be told from the others, so only unique local ones (fd00::/8) are
    given.
    """
    names = [name for _, name in socket.if_nameindex() if not name.startswith(OWN)]
    found = {*_ipv4(names), *_ipv6(names)}
    return tuple(sorted(found))


def has(address: str) -> bool:
    """Tell whether this machine has an address, by asking for a port of it as Docker would.

    True also where it cannot be known.
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError:
        return True  # no address; Docker says so itself
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _ipv4(names: list[str]) -> set[str]:
    found: set[str] = set()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            for name in names:
                request = struct.pack("256s", name.encode()[:15])
                try:
                    answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, request)
                except OSError:
                    continue  # it has none
                found.add(socket.inet_ntoa(answer[20:24]))
    except OSError:
        pass
    return found


def _ipv6(names: list[str]) -> set[str]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return set()
    found: set[str] = set()
    for line in lines:
        number, _, _, scope, _, name = line.split()
        address = ipaddress.IPv6Address(int(number, 16))
        if name in names and scope == GLOBAL and address.is_private:
            found.add(str(address))
    return found
