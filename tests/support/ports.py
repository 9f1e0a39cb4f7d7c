"""A loopback port for what a test starts, which no client's connection takes meanwhile.

Not here: who listens on it.
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path


def free_port() -> int:
    """Give a port that nobody listens on, below those that the kernel gives to connections.

    A container's port is free for seconds while it is stopped or made anew: one that the kernel
    had chosen could be a connection's by then.
    """
    span = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    while True:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", random.randrange(10_000, int(span.split()[0]))))
            return int(probe.getsockname()[1])
