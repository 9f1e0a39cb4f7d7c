"""Independent clients of a hub's services: what its users do and see. None knows the product.

Not here: any assertion about the product, but that a backup is complete.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request

from tests.support.hubs import HubUnderTest


def publish(hub: HubUnderTest, topic: str, text: str) -> None:
    """Publish a retained message as the hub's own user."""
    _mosquitto(hub, "mosquitto_pub", "-q", "1", "-r", "-t", topic, "-m", text)


def retained(hub: HubUnderTest, topic: str) -> str:
    """Give a topic's retained message, '' when it has none."""
    done = _mosquitto(hub, "mosquitto_sub", "-t", topic, "-C", "1", "-W", "2", ok=(0, 27))
    return done.strip()


def _mosquitto(hub: HubUnderTest, program: str, *argv: str, ok: tuple[int, ...] = (0,)) -> str:
    login = ["-h", "127.0.0.1", "-p", str(hub.ports["mosquitto"]), "-u", "iotops"]
    login += ["-P", hub.env_value("MQTT_PASSWORD")]
    done = subprocess.run([program, *login, *argv], capture_output=True, text=True, check=False)
    assert done.returncode in ok, done.stderr
    return done.stdout


def write_point(hub: HubUnderTest, value: int) -> None:
    """Write one point into InfluxDB."""
    influx(hub, "/api/v2/write?org=home&bucket=iot&precision=s", f"story value={value}i".encode())


def points(hub: HubUnderTest) -> int:
    """Count the points of the story."""
    query = (
        'from(bucket:"iot") |> range(start:0) |> filter(fn:(r)=>r._measurement=="story")'
        " |> group() |> count()"
    )
    body = json.dumps({"query": query, "type": "flux"}).encode()
    rows = influx(hub, "/api/v2/query?org=home", body, "application/json").split()
    return int(rows[-1].rsplit(",", 1)[-1]) if rows else 0


def influx(hub: HubUnderTest, path: str, body: bytes, kind: str = "text/plain") -> str:
    """Post something to InfluxDB with the operator's token; give the answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['influxdb']}{path}",
        data=body,
        headers={
            "Authorization": f"Token {hub.env_value('INFLUXDB_OPERATOR_TOKEN')}",
            "Content-Type": kind,
        },
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def flows_revision(hub: HubUnderTest) -> str:
    """Give the revision of what Node-RED runs."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['nodered']}/flows",
        headers={
            "Authorization": f"Bearer {hub.env_value('NODERED_TOKEN')}",
            "Node-RED-API-Version": "v2",
        },
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["rev"])


def deploy(hub: HubUnderTest, label: str) -> str:
    """Deploy one small flow and give its revision."""
    flows = [
        {"id": "a1b2c3d4e5f60718", "type": "tab", "label": label, "disabled": False, "info": ""},
        {
            "id": "b1b2c3d4e5f60718",
            "type": "comment",
            "z": "a1b2c3d4e5f60718",
            "name": label,
            "info": "",
            "x": 100,
            "y": 80,
            "wires": [],
        },
    ]
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['nodered']}/flows",
        data=json.dumps({"flows": flows}).encode(),
        headers={
            "Authorization": f"Bearer {hub.env_value('NODERED_TOKEN')}",
            "Node-RED-API-Version": "v2",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["rev"])


def backed_up(hub: HubUnderTest, *argv: str) -> dict[str, object]:
    """Make a backup that must be complete; give its result."""
    done = hub.iotops("backup", "--json", *argv)
    assert done.code == 0, done.err + done.out
    return done.result()
