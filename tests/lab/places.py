"""Where the lab keeps things, and which servers it stands in for.

Everything the lab downloads or builds lies in one cache folder outside the checkout, so that a
fresh clone starts with what an older one made. Nothing in here touches the disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
IMAGE_SOURCES = HERE / "images"

#: What the product's Compose template pins. The lab uses these wherever they can be had.
OFFICIAL: dict[str, str] = {
    "mosquitto": "eclipse-mosquitto:2.0.22",
    "nodered": "nodered/node-red:4.1.13-22",
    "influxdb": "influxdb:2.9.1",
    "grafana": "grafana/grafana:12.4.0",
}


@dataclass(frozen=True)
class Line:
    """A further release line of a server, tested beside the one that the template pins.

    Attributes:
        server: which server: its folder of sources, packages and payload are used. What differs
            lies in a folder named after the line, which is laid over the server's.
        official: the line's official image.
        suite: the Debian release that carries the line's packages, on top of the base image.
        version: how its version begins; a release that has moved on is not taken for the line.
        release: what a registry of the server's own is asked for; empty = the suite has it.
    """

    server: str
    official: str
    suite: str
    version: str
    release: str = ""


#: By name of the lab's image. One row is all that a further line needs.
LINES: dict[str, Line] = {
    "mosquitto-2.1": Line("mosquitto", "eclipse-mosquitto:2.1.2-alpine", "sid", "2.1."),
    "nodered-5.0": Line("nodered", "nodered/node-red:5.0", "sid", "5.0.", release="5.0.7"),
}

#: Names of the images the lab builds. Never an official name: a stand-in must be seen as one.
LAB_REPOSITORY: dict[str, str] = {
    "base": "iotops-lab/base",
    "mosquitto": "iotops-lab/mosquitto",
    "nodered": "iotops-lab/nodered",
    "influxdb": "iotops-lab/influxdb",
    "grafana": "iotops-lab/grafana-standin",
    **{name: f"iotops-lab/{name}" for name in LINES},
}

#: Lab images that are not the real server at all.
STAND_INS = frozenset({"grafana"})


def cache() -> Path:
    """The lab's cache folder (``IOTOPS_LAB_CACHE``, else below the user's cache folder)."""
    named = os.environ.get("IOTOPS_LAB_CACHE")
    if named:
        return Path(named).resolve()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "iotops-lab"


def lab_file() -> Path:
    """The description of the lab that tests read."""
    return cache() / "lab.json"


def override_file() -> Path:
    """The Compose override that brings the lab's own images to a hub folder."""
    return cache() / "compose.override.yaml"


def engine_record() -> Path:
    """Which ``dockerd`` the lab started itself."""
    return cache() / "dockerd.json"
