"""A whole Compose project of somebody else's making, with the four servers as people mount them.

Beside what `adopthub.py` has: all of broker, time series, flows and dashboards under names of the
owner's choosing; a configuration mounted as a single file and a broker without an ACL; one data
folder beside the Compose file while the others lie on the disk; dashboards in a named volume; a
profile that is not active; and a password with a `$` in `.env`. No iotops has seen it. Not here:
any assertion about the product.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request

from tests.support.adopthub import AdoptHub
from tests.support.hubs import docker
from tests.support.lab import lab

COMPOSE = """\
name: {project}
include:
  - extras/compose.yaml

x-usual: &usual
  restart: unless-stopped
  environment: &clock
    TZ: Europe/Berlin

services:
  broker:
    <<: *usual
    image: {mosquitto}
    container_name: {project}-mqtt
    ports: ["127.0.0.1:{mqtt}:1883"]
    volumes:
      - ./mosquitto.conf:/mosquitto/config/mosquitto.conf
      - {root}/broker/data:/mosquitto/data
      - {root}/broker/pwfile:/mosquitto/pwfile
  influx:
    <<: *usual
    image: {influxdb}
    container_name: {project}-influx
    ports: ["127.0.0.1:{influx}:8086"]
    environment:
      <<: *clock
      DOCKER_INFLUXDB_INIT_MODE: setup
      DOCKER_INFLUXDB_INIT_USERNAME: me
      DOCKER_INFLUXDB_INIT_PASSWORD: ${{INFLUX_PASSWORD}}
      DOCKER_INFLUXDB_INIT_ADMIN_TOKEN: ${{INFLUX_TOKEN}}
      DOCKER_INFLUXDB_INIT_ORG: home
      DOCKER_INFLUXDB_INIT_BUCKET: house
      INFLUXD_REPORTING_DISABLED: "true"
    volumes: ["{root}/influx:/var/lib/influxdb2"]
  nodered:
    <<: *usual
    image: {nodered}
    ports: ["127.0.0.1:{red}:1880"]
    depends_on: [broker]
    volumes: ["./nodered:/data"]
  dashboards:
    <<: *usual
    image: {grafana}
    ports: ["127.0.0.1:{grafana_port}:3000"]
    volumes: ["dashboards:/var/lib/grafana"]
  console:
    image: {base}
    profiles: [debug]
    init: true
    command: ["sleep", "infinity"]
volumes:
  dashboards: {{}}
"""
EXTRAS = """\
services:
  zigbee:
    image: {base}
    restart: unless-stopped
    init: true
    command: ["sleep", "infinity"]
    volumes: ["{root}/zigbee:/app/data"]
"""
CONF = """\
listener 1883
allow_anonymous false
password_file /mosquitto/pwfile/users
persistence true
persistence_location /mosquitto/data/
"""
ENV = """\
INFLUX_PASSWORD=sommerregen$haus24
INFLUX_TOKEN=a-token-of-the-owner-0123456789
"""
FLOWS = [
    {"id": "a1b2c3d4e5f60718", "type": "tab", "label": "House", "disabled": False, "info": ""},
    {"id": "b1b2c3d4e5f60718", "type": "comment", "z": "a1b2c3d4e5f60718", "name": "of mine",
     "info": "", "x": 100, "y": 80, "wires": []},
]  # fmt: skip
POINTS = 40


class OwnHub(AdoptHub):
    """The project described above, up and with data."""

    def make(self) -> None:
        """Write it, start it, fill it."""
        images = {name: lab().images[name].reference for name in (*self.ports, "base")}
        ports = self.ports
        values = {
            **images,
            "project": self.project,
            "root": self.root,
            "mqtt": ports["mosquitto"],
            "influx": ports["influxdb"],
            "red": ports["nodered"],
            "grafana_port": ports["grafana"],
        }
        (self.folder / "extras").mkdir(parents=True)
        (self.folder / "docker-compose.yml").write_text(COMPOSE.format(**values))
        (self.folder / "extras/compose.yaml").write_text(EXTRAS.format(**values))
        (self.folder / "mosquitto.conf").write_text(CONF)
        (self.folder / ".env").write_text(ENV)
        (self.folder / "nodered").mkdir()
        (self.folder / "nodered/flows.json").write_text(json.dumps(FLOWS))
        for path in (self.folder / "nodered", self.folder / "nodered/flows.json"):
            os.chown(path, 1000, 1000)
        self._users()
        (self.root / "broker/pwfile").mkdir(parents=True)
        shutil.move(self.folder / "passwd", self.root / "broker/pwfile/users")
        for name in ("broker/data", "influx", "zigbee"):
            (self.root / name).mkdir(parents=True)
        os.chown(self.root / "broker/data", 1883, 1883)
        (self.root / "zigbee/devices.yaml").write_text("the devices of the house\n")
        self.compose("up", "--detach")
        self.publish("home/lamp", "on")
        self.write_points()
        self.flows()

    def write_points(self) -> None:
        """Write points into the time series, once it takes them."""
        lines = "\n".join(f"room,place=hall t={n}i {1767225600 + n * 60}" for n in range(POINTS))
        until = time.monotonic() + 60
        while True:
            try:
                self.influx("/api/v2/write?org=home&bucket=house&precision=s", lines)
                return
            except OSError:
                assert time.monotonic() < until, "the time series takes no points"
                time.sleep(0.2)

    def points(self) -> int:
        """Count the points of the time series."""
        query = 'from(bucket:"house") |> range(start:0) |> group() |> count()'
        body = json.dumps({"query": query, "type": "flux"})
        rows = self.influx("/api/v2/query?org=home", body, "application/json").split()
        return int(rows[-1].rsplit(",", 1)[-1]) if rows else 0

    def influx(self, path: str, body: str, kind: str = "text/plain") -> str:
        """Ask the time series something with the owner's token."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports['influxdb']}{path}",
            data=body.encode(),
            headers={
                "Authorization": f"Token {self.env_value('INFLUX_TOKEN')}",
                "Content-Type": kind,
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())

    def flows(self) -> list[object]:
        """Give the flows that Node-RED runs, once it answers."""
        until = time.monotonic() + 60
        while True:
            try:
                url = f"http://127.0.0.1:{self.ports['nodered']}/flows"
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return list(json.load(answer))
            except OSError:
                assert time.monotonic() < until, "Node-RED does not answer"
                time.sleep(0.2)

    def seen_by_broker(self) -> str:
        """Read the configuration as the broker's container sees it."""
        path = "/mosquitto/config/mosquitto.conf"
        return docker("exec", self.container("broker"), "cat", path)

    def edit(self, name: str, text: str) -> None:
        """Write a file of the project as an editor does: a new one takes the old one's place."""
        new = self.folder / f"{name}.swp"
        new.write_text(text)
        new.rename(self.folder / name)

    def git(self, *argv: str) -> str:
        """Run Git in the project's folder as the owner does."""
        who = ["-c", "user.name=me", "-c", "user.email=me@home"]
        done = subprocess.run(
            ["git", "-C", str(self.folder), *who, *argv], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def follow(self, hint: str) -> None:
        """Do what a hint says: its commands as they stand there, its mounts by an editor."""
        for word in hint.partition(". Or")[0].split("; "):
            if mount := re.match(r"mount (\S+):(/\S+) ", word):
                project = self.folder / "docker-compose.yml"
                text = re.sub(rf"[^\"]+:{mount[2]}\"", f'{mount[0][6:-1]}"', project.read_text())
                project.write_text(text)
            else:
                command = word.removeprefix("move it: ").removeprefix("sudo ")
                done = subprocess.run(
                    ["sh", "-ec", command], cwd=self.folder, capture_output=True, text=True
                )
                assert done.returncode == 0, (command, done.stderr)

    def looks(self) -> dict[str, object]:
        """Everything that is the owner's, but what the time series itself goes on writing.

        Of a file of the project also when it was last changed; of a container since when it runs.
        """
        found: dict[str, object] = {
            path: state
            for path, state in self.tree().items()
            if not path.startswith(str(self.root / "influx"))
        }
        for path in self.folder.rglob("*"):
            if path.is_file():
                found[str(path)] = (found[str(path)], path.lstat().st_mtime_ns)
        return {**found, "containers": self.containers()}
