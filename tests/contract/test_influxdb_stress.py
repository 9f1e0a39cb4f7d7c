"""InfluxDB captured while everything moves: writes, deletes, compactions, shards that come and go.

Every capture is put back offline and judged by what was acknowledged before it began.
"""

from __future__ import annotations

import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iotops.model import Severity
from tests.support.influxbench import Bench, Made
from tests.support.influxd import WEEK, Client, Influxd, Starter, at, write_weeks

pytestmark = pytest.mark.contract

HOUR = 3600
CAPTURES = 6
RESTLESS = (
    "--storage-cache-snapshot-memory-size=16k",
    "--storage-compact-full-write-cold-duration=300ms",
    "--storage-retention-check-interval=200ms",
    "--storage-write-timeout=60s",
)
"""Flushes, full compactions and retention that happen all the time instead of within hours."""


class Moving:
    """What moves: each method does one small thing, and is called again until the end."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.org = client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]
        self.base = int(time.time()) * 10**9
        self.now = self.base // 10**9
        self.fading = self.bucket("fading")
        hours = [f"f v={i} {self.now - i * HOUR - 60}" for i in range(1, 60)]
        client.write("fading", hours)
        self.bucket("growing")
        self.written = self.grown = self.rounds = 0
        self.kept = 60
        self.errors: list[str] = []

    def bucket(self, name: str) -> str:
        """Make a bucket with a shard for every hour."""
        rule = {"type": "expire", "everySeconds": 0, "shardGroupDurationSeconds": HOUR}
        document = {"orgID": self.org, "name": name, "retentionRules": [rule]}
        return str(self.client.json("POST", "/api/v2/buckets", document)["id"])

    def write(self) -> None:
        """Acknowledge 200 more points of one long series."""
        first = self.written
        lines = [f"counter v={n}i {self.base + n * 10**6}" for n in range(first, first + 200)]
        self.client.write("iot", lines, "ns")
        self.written = first + 200

    def grow(self) -> None:
        """Acknowledge a point in a shard that was not there before."""
        time_of_it = self.now - 100 - self.grown * HOUR
        self.client.write("growing", [f"g v={self.grown}i {time_of_it}"])
        self.grown += 1

    def delete(self) -> None:
        """Delete some hours of an old week: tombstones, then a second for compacting them.

        Each delete puts off the compactions of all shards of its bucket.
        """
        hour = self.now - (self.rounds % 3 + 1) * WEEK - self.rounds * HOUR
        for part in range(4):
            start = hour + part * HOUR // 4
            self.client.delete("iot", at(start), at(start + HOUR // 4), 'room="bath"')
        self.rounds += 1

    def fade(self) -> None:
        """Let retention take the oldest shards of a bucket."""
        self.kept = max(2, self.kept - 3)
        rule = {"type": "expire", "everySeconds": self.kept * HOUR}
        path = f"/api/v2/buckets/{self.fading}"
        self.client.call("PATCH", path, {"retentionRules": [rule]})

    def come_and_go(self) -> None:
        """Make a bucket with a shard in it, and delete it."""
        bucket = self.bucket("passing")
        self.client.write("passing", ["p v=1"])
        self.client.call("DELETE", f"/api/v2/buckets/{bucket}")

    @contextmanager
    def all_the_time(self) -> Iterator[None]:
        """Do all of it in threads until the body ends."""
        stop = threading.Event()

        def again(act: Callable[[], None], pause: float) -> None:
            while not stop.wait(pause):  # everything at full speed would be a test of the server
                try:
                    act()
                except (OSError, urllib.error.HTTPError) as error:
                    self.errors.append(f"{act.__name__}: {error}")
                    return

        acts = {
            self.write: 0.02,
            self.grow: 0.2,
            self.delete: 1.4,
            self.fade: 0.2,
            self.come_and_go: 0.4,
        }
        threads = [threading.Thread(target=again, args=one) for one in acts.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)


def test_every_capture_while_all_moves_holds_what_was_acknowledged(
    elsewhere: Path, start: Starter
) -> None:
    # In memory, so that the disk's speed does not decide how much moves during a capture.
    server = start(elsewhere / "data" / "influxdb", *RESTLESS)
    bench = Bench(elsewhere / "data", server.url, server.token)
    client = server.client
    write_weeks(client, weeks=4)
    write_weeks(client, weeks=2, room="cellar")
    client.delete("iot", "1970-01-01T00:00:00Z", at(time.time() + 60), 'room="cellar"')
    moving = Moving(client)
    made: Made | None = None
    files: list[set[str]] = []
    with moving.all_the_time():
        for number in range(CAPTURES):
            floor = moving.written, moving.grown
            while moving.written < floor[0] + 600 or moving.grown < floor[1] + 3:
                assert not moving.errors, moving.errors
                time.sleep(0.005)
            floor = moving.written, moving.grown
            made = bench.capture(made)
            ceiling = moving.written + 200, moving.grown + 1
            files.append({path for path in made.hashes() if path.endswith(".tsm")})
            root = elsewhere / f"copy {number}"
            bench.put_into(root / "influxdb", made)
            judge(start(root / "influxdb", setup=False), root, made, floor, ceiling)
    assert not moving.errors, moving.errors
    # All of it did happen, between captures at least: files were merged, shards came and went.
    assert server.log().count("Compacting file") >= 4, "no compactions"
    shards = [{path.rsplit("/", 1)[0] for path in one} for one in files]
    assert files[0] - files[-1] and files[-1] - files[0]
    assert shards[0] - shards[-1] and shards[-1] - shards[0]
    assert moving.rounds >= 4 and moving.kept < 60


def judge(
    copy: Influxd, root: Path, made: Made, floor: tuple[int, int], ceiling: tuple[int, int]
) -> None:
    """Hold a started copy against what was acknowledged, and against the capture's own record."""
    try:
        found = copy.client.count("iot", 'r._measurement == "counter"')
        assert floor[0] <= found <= ceiling[0]
        last = copy.client.flux(
            'from(bucket: "iot") |> range(start: 2020-01-01T00:00:00Z, stop: 2200-01-01T00:00:00Z)'
            ' |> filter(fn: (r) => r._measurement == "counter") |> group() |> max()'
        )
        assert int(last[0]["_value"]) == found - 1, "a hole"
        assert floor[1] <= copy.client.count("growing") <= ceiling[1]
        # Deleted before anything moved. A delete that meets a flush may be lost by the server.
        assert copy.client.count("iot", 'r.room == "cellar"') == 0
        bench = Bench(root, copy.url, copy.token)
        assert bench.service().ready().ok
        severe = [
            one.message
            for one in bench.service().verify(made.record)
            if one.severity is Severity.ERROR
            # One that lives for milliseconds can be counted twice and captured not at all.
            and not one.message.startswith("buckets:")
        ]
        assert severe == []
    finally:
        copy.stop()
