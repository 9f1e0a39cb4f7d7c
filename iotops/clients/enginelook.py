"""What else is on the engine of this machine: images that are here, ports that are taken.

By the docker program alone, so that a fresh process answers quickly. Nothing is changed, nothing is
pulled. Not here: the containers of a project (`compose.py`), and what follows from an answer.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Mapping

from iotops.clients import dockerprogram
from iotops.clients.composemodel import Port, Publisher, decode, published, rows, word

_FORM = "\t".join(
    (
        "{{.Names}}",
        '{{.Label "com.docker.compose.project"}}',
        '{{.Label "com.docker.compose.service"}}',
        "{{.Ports}}",
    )
)


def images_here(references: Collection[str]) -> Mapping[str, str]:
    """Tell which images the engine has.

    Args:
        references: as Compose files name them.

    Returns:
        By reference, the platform of the image, for example "linux/arm64"; one that is not here
        is left out.

    Raises:
        StackError: the engine does not answer.
    """
    found: dict[str, str] = {}
    for reference in sorted(references):
        doing = f"looking for the image {reference}"
        ended = dockerprogram.run("image", "inspect", reference, doing=doing)
        dockerprogram.refuse_silence(ended, doing)
        for one in rows(decode(ended.out.strip() or "[]", doing)):
            found[reference] = f"{word(one.get('Os'))}/{word(one.get('Architecture'))}"
    return found


def platform() -> str:
    """Give what the engine runs, for example "linux/arm64".

    Raises:
        StackError: it does not answer.
    """
    doing = "asking the Docker engine for its platform"
    form = "{{.Server.Os}}/{{.Server.Arch}}"
    return dockerprogram.must("version", "--format", form, doing=doing).out.strip()


def publishers() -> tuple[Publisher, ...]:
    """List the ports of this machine that running containers hold, of every project.

    Raises:
        StackError: the engine does not answer.
    """
    listed = dockerprogram.must("ps", "--format", _FORM, doing="looking at published ports").out
    found: list[Publisher] = []
    for line in listed.splitlines():
        name, project, service, ports = [*line.split("\t"), "", "", ""][:4]
        found += [Publisher(name, project, service, port) for port in published(ports)]
    return tuple(found)


def taken(port: Port) -> str:
    """Try whether a program of this machine holds a port: it is taken and given back at once.

    Returns:
        Empty = it is free, or only root could tell; else the reason in the system's words.
    """
    family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    try:
        with socket.socket(family, kind) as probe:
            if kind is socket.SOCK_STREAM:  # as a server does: one that has just ended is no matter
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((port.host, port.published))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT):
            return ""
        return error.strerror or str(error)
    return ""


def on_this_machine() -> bool:
    """Whether the engine is this machine's, so that ports and paths can be looked at here."""
    where = os.environ.get("DOCKER_HOST", "")
    return not where or where.startswith("unix://")
