"""No bad backup becomes the newest good one: what only the real servers can do to it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.test_faults import edited, newest_complete
from tests.support.clients import backed_up, deploy
from tests.support.cutter import cutter
from tests.support.hubs import HubUnderTest, docker

pytestmark = pytest.mark.e2e

METADATA = "/api/v2/backup/metadata"


@contextmanager
def not_counted(hub: HubUnderTest, service: str) -> Iterator[None]:
    """The backups within are partial for want of one service, and none of them is the good one."""
    good, newest = known(hub)["good"], newest_complete(hub)
    yield
    assert known(hub)["good"] == good and newest_complete(hub) == newest
    plan = hub.iotops("restore", "latest", "--dry-run", "--json").result()
    assert plan["snapshot"] == newest
    found = plan["findings"]
    assert isinstance(found, list)
    assert not any(one["code"] == "service.missing" for one in found)
    assert not (hub.root / ".iotops" / "staging" / service).exists()  # nothing half of it


def known(hub: HubUnderTest) -> dict[str, object]:
    (path,) = hub.state.glob("*.json")
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


def refused(hub: HubUnderTest, service: str, says: str) -> None:
    """Make a backup that lacks exactly this service, for this reason."""
    done = hub.iotops("backup", "--json")
    assert done.code == 3, done.err + done.out
    missing = done.result()["missing"]
    assert isinstance(missing, dict) and set(missing) == {service}
    assert says in missing[service], missing


def influx(hub: HubUnderTest, method: str, path: str, document: object) -> dict[str, object]:
    """Ask InfluxDB by ourselves; a text is sent as it is."""
    body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['influxdb']}/api/v2{path}",
        data=body,
        method=method,
        headers={"Authorization": f"Token {hub.env_value('INFLUXDB_OPERATOR_TOKEN')}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read()
    found = json.loads(text) if text else {}
    assert isinstance(found, dict)
    return found


def flows(hub: HubUnderTest, number: int) -> None:
    """Deploy a tab with so many comments; 0 = no flows at all."""
    tab = {
        "id": "c1b2c3d4e5f60718",
        "type": "tab",
        "label": "Guards",
        "disabled": False,
        "info": "",
    }
    nodes = [
        {"id": f"d1b2c3d4e5f6{n:04x}", "type": "comment", "z": tab["id"], "name": str(n)}
        | {"info": "", "x": 100, "y": 80, "wires": []}
        for n in range(number)
    ]
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['nodered']}/flows",
        data=json.dumps({"flows": [tab, *nodes] if number else []}).encode(),
        headers={
            "Authorization": f"Bearer {hub.env_value('NODERED_TOKEN')}",
            "Node-RED-API-Version": "v2",
            "Content-Type": "application/json",
        },
    )
    urllib.request.urlopen(request, timeout=20).close()


def test_flows_that_became_few_or_empty(hub: HubUnderTest) -> None:
    flows(hub, 40)
    backed_up(hub, "--accept-shrink")
    with not_counted(hub, "nodered"):
        flows(hub, 15)
        refused(hub, "nodered", "nodes fell from")
        flows(hub, 0)
        refused(hub, "nodered", "fell from")
    deploy(hub, "After the guards")
    backed_up(hub, "--accept-shrink")
    backed_up(hub)


def test_points_that_became_few(hub: HubUnderTest) -> None:
    org = influx_org(hub)
    bucket = influx(hub, "POST", "/buckets", {"orgID": org, "name": "guards", "retentionRules": []})
    # More than what earlier tests left in other buckets, so that half of all goes.
    lines = "\n".join(f"m value={n}i {1_700_000_000 + n}" for n in range(200_000))
    influx(hub, "POST", "/write?org=home&bucket=guards&precision=s", lines)
    backed_up(hub)
    with not_counted(hub, "influxdb"):
        influx(hub, "DELETE", f"/buckets/{bucket['id']}", {})
        refused(hub, "influxdb", "points fell from")
    backed_up(hub, "--accept-shrink")
    backed_up(hub)


def influx_org(hub: HubUnderTest) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['influxdb']}/api/v2/orgs?org=home",
        headers={"Authorization": f"Token {hub.env_value('INFLUXDB_OPERATOR_TOKEN')}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(json.load(answer)["orgs"][0]["id"])


@pytest.mark.parametrize("politely", [True, False])
def test_a_dump_cut_short(hub: HubUnderTest, politely: bool) -> None:
    """A proxy that breaks off, and one that ends the half as if it were whole."""
    port = hub.ports["influxdb"]
    backed_up(hub)
    with not_counted(hub, "influxdb"), cutter(port, METADATA, politely=politely) as server:
        settings: Path = hub.folder / "iotops.toml"
        with edited(settings, f"http://127.0.0.1:{port}", server.url):
            refused(hub, "influxdb", "")
        assert server.cut > 0
    backed_up(hub)


def test_a_service_that_is_down(hub: HubUnderTest) -> None:
    backed_up(hub)
    with not_counted(hub, "influxdb"):
        docker("stop", hub.container("influxdb"))
        try:
            refused(hub, "influxdb", "")
            assert "influxdb" not in hub.running()  # what its owner stopped stays stopped
        finally:
            docker("start", hub.container("influxdb"))
            assert hub.iotops("up").code == 0
    backed_up(hub)


def test_a_stopped_node_red_is_captured_from_its_files(hub: HubUnderTest, tmp_path: Path) -> None:
    """Its files say all that its server would: complete, with a warning, and really in there."""
    deploy(hub, "Written before the stop")
    docker("stop", hub.container("nodered"))
    try:
        services = backed_up(hub)["services"]
        assert isinstance(services, dict)
        assert "does not run" in services["nodered"]["warnings"][0]
    finally:
        docker("start", hub.container("nodered"))
        assert hub.iotops("up").code == 0
    target = tmp_path / "out"
    done = hub.iotops("restore", "latest", "--into", str(target), "--service", "nodered")
    assert done.code == 0, done.err
    assert "Written before the stop" in (target / "nodered" / "flows.json").read_text()
