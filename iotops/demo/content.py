"""What the demo hub holds: sensors, a flow, weeks of history, a deleted series, dashboards.

Every part asserts that it really is there before the story goes on: a judge of an empty hub would
be pleased with anything. Not here: the order of things (`story.py`), and judging (`judges.py`).
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from iotops.actions import hubfiles
from iotops.demo.wire import Influx, Mqtt, NodeRed, Web, rows, table, wait_until
from iotops.errors import ServerError

SENSORS: Mapping[str, tuple[str, ...]] = {
    "kitchen": ("temperature", "humidity"),
    "cellar": ("temperature", "humidity"),
    "greenhouse": ("temperature", "humidity", "soil"),
}
"""Devices that publish, each with a broker user of its own, and what they measure."""

REMOVED = "attic"
"""A device whose history was deleted; it must stay deleted."""

WEEKS = 5
STEP = 600
"""Seconds between two points of the history."""
SHARDS = 4
"""InfluxDB's shards of this bucket span a week each; fewer than these would prove little."""
FAR = "2200-01-01T00:00:00Z"

BROKER, WRITER = "demo-broker", "demo-writer"
"""Ids of the two nodes that hold credentials."""

FUNCTION = """\
const [, device, , quantity] = msg.topic.split("/");
const { value, time } = msg.payload;
msg.payload = `climate,device=${device} ${quantity}=${Number(value)} ${time}`;
return msg;"""

EDITED = """\
// A sensor that lost its probe sends no number.
const [, device, , quantity] = msg.topic.split("/");
const { value, time } = msg.payload;
if (!Number.isFinite(value)) {
    node.warn(`${device} sends no number for ${quantity}`);
    return null;
}
msg.payload = `climate,device=${device} ${quantity}=${value} ${time}`;
return msg;"""


@dataclass(frozen=True)
class Keys:
    """Addresses and secrets as the hub's clients hold them. Never shown.

    Attributes:
        broker: its port. influxdb, nodered, grafana: base URLs.
        users: broker user -> password, of people, Node-RED and devices.
        operator, reader, writer: InfluxDB tokens; the last two only for the one bucket.
        admin: passwords of the user "admin" by service.
    """

    broker: int
    influxdb: str
    nodered: str
    grafana: str
    org: str
    bucket: str
    users: Mapping[str, str]
    operator: str
    admin: Mapping[str, str]
    reader: str = ""
    writer: str = ""


def add_devices(password_file: Path) -> dict[str, str]:
    """Give each sensor a user of the broker.

    Args:
        password_file: Mosquitto's, of a broker that does not run yet; owner and mode stay.

    Returns:
        Passwords by user.
    """
    made = {device: secrets.token_urlsafe(18) for device in SENSORS}
    with password_file.open("a") as file:
        file.writelines(hubfiles.mosquitto_line(user, word) for user, word in made.items())
    return made


def make_tokens(keys: Keys) -> tuple[str, str]:
    """Make a token that may only read the bucket, and one that may only write to it."""
    server = Influx(keys.influxdb, keys.operator, keys.org)
    found = table(server.json("GET", "/api/v2/buckets", query={"name": keys.bucket}))
    bucket = next(rows(found.get("buckets")), {})
    made = []
    for action in ("read", "write"):
        resource = {"type": "buckets", "id": bucket.get("id"), "orgID": bucket.get("orgID")}
        document = {
            "orgID": bucket.get("orgID"),
            "description": f"demo: {action}",
            "permissions": [{"action": action, "resource": resource}],
        }
        token = table(server.json("POST", "/api/v2/authorizations", document)).get("token")
        if not isinstance(token, str) or not token:
            raise ServerError("InfluxDB: it made a token without a value")
        made.append(token)
    return made[0], made[1]


# ---- Node-RED -----------------------------------------------------------------------------------


def flow(keys: Keys, *, edited: bool) -> list[dict[str, object]]:
    """Give the flow from the sensors to InfluxDB, without any credential in it."""
    place = {"z": "demo-climate", "y": 100}
    url = f"http://influxdb:8086/api/v2/write?org={keys.org}&bucket={keys.bucket}&precision=ms"
    nodes: list[dict[str, object]] = [
        {"id": "demo-climate", "type": "tab", "label": "Climate", "disabled": False, "info": ""},
        {
            **{"id": BROKER, "type": "mqtt-broker", "name": "hub", "broker": "mosquitto"},
            **{"port": 1883, "clientid": "", "autoConnect": True, "usetls": False},
            **{"protocolVersion": 4, "keepalive": 60, "cleansession": True},
        },
        {
            **{"id": "demo-readings", "type": "mqtt in", **place, "name": "readings", "x": 110},
            **{"topic": "devices/+/reading/+", "qos": "1", "datatype": "json", "nl": False},
            **{"rap": True, "rh": 0, "inputs": 0, "broker": BROKER, "wires": [["demo-line"]]},
        },
        {
            **{"id": "demo-line", "type": "function", **place, "name": "line protocol", "x": 290},
            **{"func": EDITED if edited else FUNCTION, "outputs": 1, "timeout": 0, "noerr": 0},
            **{"initialize": "", "finalize": "", "libs": [], "wires": [[WRITER]]},
        },
        {
            **{"id": WRITER, "type": "http request", **place, "name": "InfluxDB", "x": 470},
            **{"method": "POST", "ret": "txt", "paytoqs": "ignore", "url": url, "tls": ""},
            **{"persist": False, "proxy": "", "insecureHTTPParser": False, "senderr": True},
            **{"authType": "bearer", "headers": [], "wires": [[]]},
        },
    ]
    if edited:
        caught = {"id": "demo-catch", "type": "catch", **place, "name": "refused points"}
        nodes.append({**caught, "x": 470, "y": 180, "scope": [WRITER], "wires": [[]]})
    return nodes


def deploy(keys: Keys, *, edited: bool = False) -> str:
    """Deploy the flow, the first time with its credentials.

    Returns:
        Node-RED's revision of it.
    """
    nodes = flow(keys, edited=edited)
    if not edited:
        given: dict[str, object] = {
            BROKER: {"user": "nodered", "password": keys.users["nodered"]},
            WRITER: {"user": "", "password": keys.writer},
        }
        nodes = [
            {**node, "credentials": given[str(node["id"])]} if node["id"] in given else node
            for node in nodes
        ]
    server = NodeRed(keys.nodered, keys.admin["nodered"])
    headers = {"Node-RED-API-Version": "v2"}
    return str(table(server.json("POST", "/flows", {"flows": nodes}, headers=headers))["rev"])


# ---- sensors ------------------------------------------------------------------------------------


class Sensors:
    """The simulated devices.

    Attributes:
        sent: readings that were published, each with a time of its own.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.sent = 0
        self._began = self._last = int(time.time() * 1000)

    def announce(self) -> None:
        """Let every device leave its retained messages with the broker."""
        for device in SENSORS:
            about = {"device": device, "firmware": "2.4.1", "battery": 87 + len(device) % 10}
            with self._login(device) as link:
                link.publish(f"devices/{device}/status", "online", retain=True)
                link.publish(f"devices/{device}/info", json.dumps(about), retain=True)

    def publish(self, rounds: int) -> None:
        """Publish that many readings of every quantity, and wait until InfluxDB has all."""
        self._wait_for_the_flow()
        for device, quantities in SENSORS.items():
            with self._login(device) as link:
                for _ in range(rounds):
                    for quantity in quantities:
                        link.publish(*self._reading(device, quantity))
        what = "the sensors' points did not all arrive in InfluxDB"
        wait_until(lambda: self.arrived() >= self.sent, what)
        if (found := self.arrived()) != self.sent:
            raise ServerError(f"the sensors sent {self.sent} points, InfluxDB has {found}")

    def arrived(self) -> int:
        """Count the points of this run that InfluxDB has."""
        server = Influx(self.keys.influxdb, self.keys.reader, self.keys.org)
        return count(server, self.keys.bucket, 'r._measurement == "climate"', self._began // 1000)

    def _wait_for_the_flow(self) -> None:
        """Send one reading again and again until it comes through: the flow has then subscribed.

        The same point with the same time is one point, however often it is written.
        """
        topic, payload = self._reading("kitchen", "temperature")

        def came_through() -> bool:
            link.publish(topic, payload)
            return self.arrived() >= self.sent

        with self._login("kitchen") as link:
            wait_until(came_through, "the flow does not write to InfluxDB")

    def _reading(self, device: str, quantity: str) -> tuple[str, str]:
        now = self._last = max(self._last + 1, int(time.time() * 1000))
        self.sent += 1
        value = _value(device, quantity, now // 1000)
        return f"devices/{device}/reading/{quantity}", json.dumps({"value": value, "time": now})

    def _login(self, device: str) -> Mqtt:
        return Mqtt(self.keys.broker, device, self.keys.users[device])


def _value(device: str, quantity: str, second: int) -> float:
    middle = {"temperature": 18.0, "humidity": 55.0, "soil": 40.0}[quantity] + len(device) % 5
    return round(middle + 4 * math.sin(second * math.tau / 86400 + len(quantity)), 2)


# ---- InfluxDB -----------------------------------------------------------------------------------


def count(server: Influx, bucket: str, predicate: str, since: int = 0) -> int:
    """Count the points of a bucket that fit a Flux predicate, from a time (UTC seconds) on."""
    found = server.flux(
        f'from(bucket: "{bucket}") |> range(start: {since}, stop: {FAR})'
        f" |> filter(fn: (r) => {predicate}) |> group() |> count()"
    )
    return sum(int(row["_value"]) for row in found)


def write_history(keys: Keys) -> int:
    """Write weeks of points of all devices, the removed one among them; give the lines written."""
    server = Influx(keys.influxdb, keys.operator, keys.org)
    end = int(time.time()) - 3600
    lines = [
        f"climate,device={device} temperature={_value(device, 'temperature', second)},"
        f"humidity={_value(device, 'humidity', second)} {second}"
        for second in range(end - WEEKS * 7 * 86400, end, STEP)
        for device in (*SENSORS, REMOVED)
    ]
    for start in range(0, len(lines), 10_000):
        part = "\n".join(lines[start : start + 10_000])
        where = {"org": keys.org, "bucket": keys.bucket, "precision": "s"}
        server.call("POST", "/api/v2/write", part, query=where)
    return len(lines)


def delete_removed(keys: Keys, folder: Path) -> tuple[int, int]:
    """Delete the removed device's points after they lie in files.

    Args:
        folder: InfluxDB's, on the disk.

    Returns:
        Shards with files, and tombstone files beside them.

    Raises:
        ServerError: there are too few shards, no tombstone, or points are left.
    """
    server = Influx(keys.influxdb, keys.operator, keys.org)
    gone = f'r.device == "{REMOVED}"'
    if not count(server, keys.bucket, gone):
        raise ServerError("InfluxDB: the points that are to be deleted are not there")
    for shard in folder.glob("engine/data/*/autogen/*"):
        what = f"InfluxDB does not write shard {shard.name} to its files"
        wait_until(partial(_flushed, server, shard.name), what)
    document = {"start": "1970-01-01T00:00:00Z", "stop": FAR, "predicate": f'device="{REMOVED}"'}
    where = {"org": keys.org, "bucket": keys.bucket}
    server.call("POST", "/api/v2/delete", document, query=where)
    shards = {path.parent for path in folder.glob("engine/data/*/autogen/*/*.tsm")}
    tombstones = [*folder.glob("engine/data/*/autogen/*/*.tombstone")]
    if len(shards) < SHARDS or not tombstones:
        raise ServerError(
            f"InfluxDB: {len(shards)} shards and {len(tombstones)} tombstone files on the disk are"
            " too few to prove anything"
        )
    if left := count(server, keys.bucket, gone):
        raise ServerError(f"InfluxDB: {left} of the deleted points are still there")
    return len(shards), len(tombstones)


def _flushed(server: Influx, shard: str) -> bool:
    """Make a shard write what it holds in memory.

    Asking for what changed since the far future does that and sends nothing. A shard whose
    compaction is just beginning answers 500.
    """
    try:
        server.call("GET", f"/api/v2/backup/shards/{shard}", query={"since": FAR})
    except ServerError:
        return False
    return True


# ---- Grafana ------------------------------------------------------------------------------------


def make_dashboards(keys: Keys) -> int:
    """Make a folder with two dashboards, as a person would in the browser; give their number."""
    server = grafana(keys)
    server.json("POST", "/api/folders", {"uid": "demo", "title": "House"})
    for uid, title, quantity in (
        ("demo-climate", "Climate", "temperature"),
        ("demo-humidity", "Humidity", "humidity"),
    ):
        query = (
            f'from(bucket: "{keys.bucket}") |> range(start: v.timeRangeStart)'
            f' |> filter(fn: (r) => r._measurement == "climate" and r._field == "{quantity}")'
        )
        source = {"type": "influxdb", "uid": "influxdb"}
        panel = {
            **{"id": 1, "type": "timeseries", "title": title, "datasource": source},
            **{"gridPos": {"h": 9, "w": 24, "x": 0, "y": 0}},
            **{"targets": [{"refId": "A", "datasource": source, "query": query}]},
        }
        board = {"uid": uid, "title": title, "schemaVersion": 41, "panels": [panel]}
        document = {"dashboard": board, "folderUid": "demo", "overwrite": False}
        server.json("POST", "/api/dashboards/db", document)
    return 2


def grafana(keys: Keys) -> Web:
    """Open Grafana as its user "admin"."""
    import base64

    word = base64.b64encode(f"admin:{keys.admin['grafana']}".encode()).decode()
    return Web("Grafana", keys.grafana, f"Basic {word}")
