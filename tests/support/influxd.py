"""A real influxd for tests, and an independent client that speaks plain HTTP to it.

Nothing here is shared with the product: it is what tests seed, wreck and judge with. The server
runs as a program (fast, for single faults) on a free loopback port; a container for the shared
suite is made by the tests that need one.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from iotops.demo.ground import free_port

WEEK = 7 * 86400
Json = dict[str, Any]
"""A JSON object as the server gives it; tests look deep into it."""


class Client:
    """Plain HTTP to one InfluxDB; raises `urllib.error.HTTPError` for every refusal."""

    def __init__(self, url: str, token: str, org: str = "iot") -> None:
        self.url = url
        self.token = token
        self.org = org

    def call(
        self,
        method: str,
        path: str,
        body: object | None = None,
        kind: str = "application/json",
        **query: str,
    ) -> bytes:
        """Make one request and give the body of its answer; bytes are sent as they are."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        address = self.url + path + ("?" + urlencode(query) if query else "")
        request = urllib.request.Request(address, data=data, method=method)
        request.add_header("Authorization", f"Token {self.token}")
        if data is not None:
            request.add_header("Content-Type", kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: bytes = answer.read()
        return found

    def json(self, method: str, path: str, body: object | None = None, **query: str) -> Json:
        """Make one request and give its JSON object."""
        found: Json = json.loads(
            self.call(method, path, body, "application/json", **query) or b"{}"
        )
        return found

    def write(self, bucket: str, lines: Iterable[str], precision: str = "s") -> None:
        """Write lines of line protocol."""
        self.call(
            "POST",
            "/api/v2/write",
            "\n".join(lines).encode(),
            kind="text/plain",
            org=self.org,
            bucket=bucket,
            precision=precision,
        )

    def flux(self, query: str) -> list[dict[str, str]]:
        """Run a query and give its rows, whatever the tables."""
        body = self.call(
            "POST",
            "/api/v2/query",
            {"query": query, "dialect": {"annotations": []}},
            org=self.org,
        )
        rows: list[dict[str, str]] = []
        for block in body.decode().replace("\r\n", "\n").split("\n\n"):
            rows += csv.DictReader(io.StringIO(block))
        return rows

    def count(self, bucket: str, predicate: str = "true") -> int:
        """Count the field values of a bucket over all time."""
        rows = self.flux(
            f'from(bucket: "{bucket}") |> range(start: 1900-01-01T00:00:00Z, stop: '
            f"2200-01-01T00:00:00Z) |> filter(fn: (r) => {predicate}) |> count() |> group() "
            "|> sum()"
        )
        return sum(int(row["_value"]) for row in rows)

    def rows(self, bucket: str) -> list[tuple[str, ...]]:
        """Give every value of a bucket with its time, field and tags, in an order of its own."""
        found = self.flux(
            f'from(bucket: "{bucket}") |> range(start: 1900-01-01T00:00:00Z, stop: '
            '2200-01-01T00:00:00Z) |> drop(columns: ["_start", "_stop"])'
        )
        names = sorted({name for row in found for name in row} - {"", "table", "result"})
        return sorted(tuple(row.get(name) or "" for name in names) for row in found)

    def total(self, bucket: str, measurement: str, field: str) -> float:
        """Sum one field of a bucket over all time."""
        rows = self.flux(
            f'from(bucket: "{bucket}") |> range(start: 1900-01-01T00:00:00Z, stop: '
            f'2200-01-01T00:00:00Z) |> filter(fn: (r) => r._measurement == "{measurement}" and '
            f'r._field == "{field}") |> group() |> sum()'
        )
        return sum(float(row["_value"]) for row in rows)

    def delete(self, bucket: str, start: str, stop: str, predicate: str) -> None:
        """Delete the points of a range that fit a predicate."""
        self.call(
            "POST",
            "/api/v2/delete",
            {"start": start, "stop": stop, "predicate": predicate},
            org=self.org,
            bucket=bucket,
        )

    def shards(self, bucket: str) -> list[int]:
        """List the live shards of a bucket, from the backup's own manifest."""
        found = []
        for one in self.manifest():
            if one["bucketName"] == bucket:
                for policy in one["retentionPolicies"]:
                    for group in policy["shardGroups"]:
                        if "deletedAt" not in group:
                            found += [shard["id"] for shard in group["shards"]]
        return sorted(found)

    def manifest(self) -> list[Json]:
        """Give the bucket manifests of `/backup/metadata`."""
        body = self.call("GET", "/api/v2/backup/metadata")
        part = body[body.rindex(b"\r\n\r\n[") + 4 : body.rindex(b"\r\n--")]
        found: list[Json] = json.loads(part)
        return found

    def wait(self, limit: float = 60) -> None:
        """Wait until the server answers."""
        until = time.monotonic() + limit
        while True:
            try:
                self.call("GET", "/health")
                return
            except OSError:
                assert time.monotonic() < until, f"{self.url} does not answer"
                time.sleep(0.05)

    def flush(self) -> None:
        """Make the server write every shard's cache into a TSM file."""
        for one in self.manifest():
            for policy in one["retentionPolicies"]:
                for group in policy["shardGroups"]:
                    for shard in group["shards"]:
                        try:
                            self.call(
                                "GET",
                                f"/api/v2/backup/shards/{shard['id']}",
                                since="2200-01-01T00:00:00Z",
                            )
                        except urllib.error.HTTPError as error:
                            if error.code != 404:
                                raise


def take_program(image: str, name: str, target: Path) -> None:
    """Copy a program out of an image, wherever on its PATH it lies."""
    asked = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image]
    find = [*asked, "-c", f"readlink -f $(command -v {name})"]
    place = subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()
    create = ["docker", "create", "--network", "none", image]
    made = subprocess.run(create, check=True, capture_output=True, text=True).stdout.strip()
    try:
        copy = ["docker", "cp", f"{made}:{place}", str(target)]
        subprocess.run(copy, check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rm", "-v", made], check=True, capture_output=True)


@dataclass
class Influxd:
    """A real server run as a program on one data folder.

    Attributes:
        program: the influxd executable. folder: laid out as `/var/lib/influxdb2` is.
    """

    program: str
    folder: Path
    token: str = "t" * 40
    org: str = "iot"
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url, self.token, self.org)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder.parent / f"{self.folder.name}.log").open("ab")
        self._process = subprocess.Popen(
            [
                self.program,
                "run",
                f"--bolt-path={self.folder}/influxd.bolt",
                f"--sqlite-path={self.folder}/influxd.sqlite",
                f"--engine-path={self.folder}/engine",
                f"--http-bind-address=127.0.0.1:{self.port}",
                "--reporting-disabled",
                *self.settings,
            ],
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder.parent), "TZ": "UTC"},
        )
        log.close()
        until = time.monotonic() + 60
        while True:
            try:
                self.client.call("GET", "/health")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"influxd did not start:\n{self.log()}") from None
                time.sleep(0.05)

    def log(self) -> str:
        """Give what the server has written."""
        return (self.folder.parent / f"{self.folder.name}.log").read_text(errors="replace")

    def setup(self) -> None:
        """Set up user, organisation, bucket `iot` and the operator token."""
        self.client.call(
            "POST",
            "/api/v2/setup",
            {
                "username": "admin",
                "password": "long-enough-1",
                "org": self.org,
                "bucket": "iot",
                "retentionPeriodSeconds": 0,
                "token": self.token,
            },
        )

    def stop(self, sign: int = signal.SIGTERM) -> None:
        """End the server and wait for it."""
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait(60)
            self._process = None


Starter = Callable[..., Influxd]
"""Starts a server on a folder; the fixture of that name ends it with the test."""


def write_weeks(client: Client, weeks: int = 5, points: int = 2000, room: str = "bath") -> None:
    """Write a week's worth of points into each of the last weeks, and have them flushed."""
    now = int(time.time())
    for end in (now - 60 - week * WEEK for week in range(weeks)):
        client.write(
            "iot",
            [
                f"climate,room={room} temperature={i % 97 / 7},n={i}i {end - i * 37}"
                for i in range(points)
            ],
        )
    client.flush()


def at(seconds: float) -> str:
    """Write seconds since 1970 as the server takes a time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
