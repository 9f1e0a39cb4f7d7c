"""InfluxDB under test: weeks of points, a deletion that must hold, tokens, a task, dashboards."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, fields

from iotops.services.base import BaseOptions
from iotops.services.influxdb import InfluxdbOptions
from tests.contract.protocol import Ground, KindUnderTest
from tests.support.influxd import WEEK, Client

ORG = "iot"


@dataclass(frozen=True)
class Answers:
    """What an independent client saw, with the tokens that were valid then."""

    reader: str
    points: Mapping[str, int]
    sums: Mapping[str, float]
    deleted: int
    buckets: list[str]
    tasks: list[str]
    dashboards: list[str]
    users: list[str]
    tokens: list[str]
    read_by_reader: int


class Kind(KindUnderTest[Answers]):
    """InfluxDB as the image sets it up: hashed tokens, data of uid 1000."""

    kind = "influxdb"
    lab_image = "influxdb"
    moving = (
        "engine/wal/*",
        "engine/data/*/_series/*",
        "engine/data/*/index/*",
        "engine/data/*/fields.idx*",
        # Compaction may replace them between two looks, a task's run is noted in the store.
        "engine/data/*.tsm",
        "engine/data/*.tombstone",
        "engine/data/*.tmp",
        "engine/data/*.tmp/*",
        "influxd.bolt",
        "influxd.sqlite",
    )

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._env = {
            "INFLUXDB_OPERATOR_TOKEN": secrets.token_hex(20),
            "INFLUXDB_PASSWORD": secrets.token_hex(12),
        }

    @property
    def client(self) -> Client:
        """The independent client with operator rights."""
        address = f"http://127.0.0.1:{self.ground.port(8086)}"
        return Client(address, self._env["INFLUXDB_OPERATOR_TOKEN"], ORG)

    def prepare(self) -> None:
        self.ground.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self.ground.folder, 1000, 1000)

    def compose(self) -> Mapping[str, object]:
        return {
            "image": self.ground.image,
            "ports": [f"127.0.0.1:{self.ground.port(8086)}:8086"],
            "environment": {
                "DOCKER_INFLUXDB_INIT_MODE": "setup",
                "DOCKER_INFLUXDB_INIT_USERNAME": "admin",
                "DOCKER_INFLUXDB_INIT_PASSWORD": "${INFLUXDB_PASSWORD}",
                "DOCKER_INFLUXDB_INIT_ORG": ORG,
                "DOCKER_INFLUXDB_INIT_BUCKET": "sensors",
                "DOCKER_INFLUXDB_INIT_ADMIN_TOKEN": "${INFLUXDB_OPERATOR_TOKEN}",
                "INFLUXD_REPORTING_DISABLED": "true",
            },
            "volumes": [
                {
                    "type": "bind",
                    "source": str(self.ground.folder),
                    "target": "/var/lib/influxdb2",
                    "bind": {"create_host_path": False},
                }
            ],
        }

    def env(self) -> Mapping[str, str]:
        return self._env

    def options(self) -> BaseOptions:
        return InfluxdbOptions(
            kind="influxdb",
            container="influxdb",
            url=f"http://127.0.0.1:{self.ground.port(8086)}",
            token_env="INFLUXDB_OPERATOR_TOKEN",
        )

    def seed(self) -> Answers:
        client = self.client
        org = client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]
        month = {
            "orgID": org,
            "name": "month",
            "retentionRules": [{"type": "expire", "everySeconds": 30 * 86400}],
        }
        buckets = {
            one["name"]: one["id"] for one in client.json("GET", "/api/v2/buckets")["buckets"]
        }
        client.json("POST", "/api/v2/buckets", month)
        self._write(client)
        reader = client.json(
            "POST",
            "/api/v2/authorizations",
            {
                "orgID": org,
                "description": "grafana",
                "permissions": [
                    {
                        "action": "read",
                        "resource": {"type": "buckets", "id": buckets["sensors"], "orgID": org},
                    }
                ],
            },
        )["token"]
        task = (
            'option task = {name: "means", every: 1h}\n'
            'from(bucket: "sensors") |> range(start: -1h) |> mean() |> to(bucket: "month")'
        )
        client.json("POST", "/api/v2/tasks", {"orgID": org, "flux": task, "status": "inactive"})
        for name in ("heating", "garden"):
            client.json("POST", "/api/v2/dashboards", {"orgID": org, "name": name})
        client.json("POST", "/api/v2/users", {"name": "anna"})
        self._delete_after_a_flush(client)
        self._leave_points_in_memory(client)
        answers = self._look(reader)
        assert len(client.shards("sensors")) >= 4
        assert answers.deleted == 0 and answers.points["sensors"] == 18_050
        assert answers.read_by_reader == answers.points["sensors"]
        assert list(self.ground.folder.glob("engine/data/*/autogen/*/*.tombstone"))
        assert (answers.tasks, answers.dashboards) == (["means"], ["garden", "heating"])
        return answers

    def check(self, answers: Answers) -> list[str]:
        try:
            now = self._look(answers.reader)
        except urllib.error.HTTPError as error:
            return [f"a token from before is refused: {error}"]
        return [
            f"{field.name} is {getattr(now, field.name)!r}, was {getattr(answers, field.name)!r}"
            for field in fields(Answers)
            if getattr(now, field.name) != getattr(answers, field.name)
        ]

    def sabotage(self) -> None:
        """Lose one week: one TSM file goes while the server stands."""
        found = self.client.manifest()
        bucket = next(one["bucketID"] for one in found if one["bucketName"] == "sensors")
        subprocess.run(["docker", "stop", self.ground.container], check=True, capture_output=True)
        sorted(self.ground.folder.glob(f"engine/data/{bucket}/autogen/*/*.tsm"))[0].unlink()
        subprocess.run(["docker", "start", self.ground.container], check=True, capture_output=True)
        self.client.wait()

    def plantable(self, relative: str) -> bool:
        # The server makes these anew at each start; they are named by exclude rules.
        parts = relative.split("/")
        return "_series" not in parts and "index" not in parts

    def _write(self, client: Client) -> None:
        now = int(time.time())
        for week in range(5):
            start = now - 60 - week * WEEK
            client.write(
                "sensors",
                [
                    f"climate,room={room} temperature={18 + i % 60 / 10},humidity={40 + i % 30}i "
                    f"{start - i * 300}"
                    for i in range(600)
                    for room in ("attic", "bath", "cellar", "hall")
                ],
            )
        client.write(
            "month", [f"power,meter=main watts={i % 3000} {now - i * 900}" for i in range(900)]
        )
        client.flush()

    def _delete_after_a_flush(self, client: Client) -> None:
        """Delete a series that lies in files: a tombstone beside each, and no point of it left."""
        client.delete("sensors", "1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z", 'room="cellar"')
        assert list(self.ground.folder.glob("engine/data/*/autogen/*/*.tombstone"))

    def _leave_points_in_memory(self, client: Client) -> None:
        """Write points that no file holds when the capture begins."""
        now = int(time.time())
        client.write("sensors", [f"climate,room=hall temperature={i} {now - i}" for i in range(50)])

    def _look(self, reader: str) -> Answers:
        client = self.client

        def listed(key: str, name: str) -> list[str]:
            found = client.json("GET", f"/api/v2/{key}", limit="100")[key]
            return sorted(str(one.get(name)) for one in found)

        bystander = Client(client.url, reader, ORG)
        return Answers(
            reader=reader,
            points={bucket: client.count(bucket) for bucket in ("sensors", "month")},
            sums={
                field: round(client.total("sensors", "climate", field), 3)
                for field in ("temperature", "humidity")
            },
            deleted=client.count("sensors", 'r.room == "cellar"'),
            buckets=listed("buckets", "id"),
            tasks=listed("tasks", "name"),
            dashboards=listed("dashboards", "name"),
            users=listed("users", "name"),
            tokens=listed("authorizations", "id"),
            read_by_reader=bystander.count("sensors"),
        )
