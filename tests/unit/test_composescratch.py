"""A hub's project made harmless: what is taken over, moved, and left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from iotops.clients.composemodel import table
from iotops.clients.composescratch import NETWORK, harmless

pytestmark = pytest.mark.unit

ROOT, HUB = Path("/mnt/iot-data"), Path("/srv/hub")
MOVED = {ROOT: Path("/scratch/data"), HUB: Path("/scratch/hub")}


def bind(source: str, target: str, *, read_only: bool = False) -> dict[str, object]:
    return {"type": "bind", "source": source, "target": target, "read_only": read_only}


DOCUMENT = {
    "name": "hub",
    "services": {
        "web": {
            "image": "web:1",
            "command": ["serve", "--price", "5$$"],
            "container_name": "web",
            "environment": {"TOKEN": "a$$b", "TASKS": "on"},
            "ports": [{"target": 80, "published": "8080"}],
            "networks": {"hub": None},
            "depends_on": {"db": {}},
            "privileged": True,
            "devices": ["/dev/ttyUSB0:/dev/ttyUSB0"],
            "network_mode": "host",
            "restart": "unless-stopped",
            "healthcheck": {"test": ["CMD", "true"]},
            "volumes": [
                bind("/mnt/iot-data/web", "/data"),
                bind("/srv/hub/web", "/config", read_only=True),
                bind("/var/run/docker.sock", "/var/run/docker.sock"),
                bind("/etc/localtime", "/etc/localtime", read_only=True),
                {"type": "volume", "source": "cache", "target": "/cache"},
            ],
        }
    },
    "networks": {"hub": {}},
    "volumes": {"cache": {}},
}


def test_what_runs_a_service_is_kept_and_what_reaches_out_is_not() -> None:
    made = harmless(DOCUMENT, "drill-1", MOVED, {"web": {"TASKS": "off"}}, 1 << 20)
    web = table(made.document, "services", "web")
    assert web["image"] == "web:1" and web["command"] == ["serve", "--price", "5$$"]
    assert web["healthcheck"] == {"test": ["CMD", "true"]}
    assert web["environment"] == {"TOKEN": "a$$b", "TASKS": "off"}
    assert web["networks"] == [NETWORK] and web["restart"] == "no" and web["mem_limit"] == 1 << 20
    for name in ("ports", "container_name", "depends_on", "privileged", "devices", "network_mode"):
        assert name not in web
    assert table(made.document, "networks") == {NETWORK: {"internal": True}}
    assert made.document["name"] == "drill-1"


def test_folders_are_moved_and_the_hosts_own_are_left_out() -> None:
    made = harmless(DOCUMENT, "drill-1", MOVED, {}, 1 << 20)
    volumes = table(made.document, "services", "web")["volumes"]
    assert isinstance(volumes, list)
    assert [(one["source"], one["target"], one["read_only"]) for one in volumes] == [
        ("/scratch/data/web", "/data", False),
        ("/scratch/hub/web", "/config", True),
        ("/etc/localtime", "/etc/localtime", True),
    ]
    assert all(one["bind"] == {"create_host_path": False} for one in volumes)
    assert made.left_out == {
        "web": ("/var/run/docker.sock at /var/run/docker.sock", "cache at /cache")
    }
    assert Path("/scratch/data/web") in made.folders["web"]


def test_the_innermost_folder_decides() -> None:
    inside = {**MOVED, ROOT / "hub": Path("/scratch/inner")}
    document = {"services": {"a": {"volumes": [bind("/mnt/iot-data/hub/x", "/x")]}}}
    made = harmless(document, "d", inside, {}, 1)
    assert made.folders["a"] == (Path("/scratch/inner/x"),)
