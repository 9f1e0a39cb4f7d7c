"""InfluxDB with much of everything: buckets beyond every page, organisations, over 1,000 shards."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.influxbench import Bench, captured_by
from tests.support.influxd import Client, Influxd, Starter

pytestmark = pytest.mark.contract

HOUR = 3600
SHARDS = 1010
BUCKETS = 112
"""The API's pages hold 20 by default and 100 at most."""


def fill(server: Influxd) -> dict[str, int]:
    """Make two organisations with buckets of the same names, and one bucket of very many shards.

    Returns:
        Points by bucket and measurement, as a capture counts them.
    """
    client = server.client
    orgs = {"iot": client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]}
    orgs["other"] = client.json("POST", "/api/v2/orgs", {"name": "other"})["id"]
    for number in range(BUCKETS // 2):
        for name, org in orgs.items():
            document = {"orgID": org, "name": f"room {number:03d}"}
            client.json("POST", "/api/v2/buckets", document)
            inside = Client(client.url, client.token, name)
            inside.write(f"room {number:03d}", [f"m v={number},w=1i"])
    rule = {"type": "expire", "everySeconds": 0, "shardGroupDurationSeconds": HOUR}
    document = {"orgID": orgs["other"], "name": "hours", "retentionRules": [rule]}
    client.json("POST", "/api/v2/buckets", document)
    now = int(time.time())
    lines = [f"m,k=a v={i} {now - 60 - i * 3 * HOUR}" for i in range(SHARDS)]
    inside = Client(client.url, client.token, "other")
    for at in range(0, SHARDS, 50):  # a write may take ten seconds, and makes every shard's files
        inside.write("hours", lines[at : at + 50])
    return {f"points/room {n:03d}/m": 4 for n in range(BUCKETS // 2)} | {"points/hours/m": SHARDS}


def test_many_buckets_two_organisations_and_a_thousand_shards(
    elsewhere: Path, start: Starter
) -> None:
    # In memory: what takes long on a disk is making thousands of small files and their syncs.
    server = start(elsewhere / "data" / "influxdb")
    bench = Bench(elsewhere / "data", server.url, server.token)
    wanted = fill(server)
    first = captured_by(bench=bench, work=elsewhere / "first")
    # What a process of iotops takes in memory must not follow the number of shards.
    assert int(str(first["peak"])) < 100_000, "kB"
    made = bench.capture()
    assert made.staged.warnings == ()
    assert len([path for path in made.hashes() if path.endswith(".tsm")]) == SHARDS + BUCKETS
    points = {key: n for key, n in made.captured.counts.items() if key.startswith("points/")}
    assert points == wanted == {k: v for k, v in first["counts"].items() if k in points}  # type: ignore[attr-defined]
    assert made.captured.counts["buckets"] == BUCKETS + 1 + 1 + 2 * 2  # `iot`, and the server's own
    assert len(made.captured.extra) < 400 * (SHARDS + BUCKETS)
    server.stop()
    bench.put_into(elsewhere / "copy" / "influxdb", made)
    copy = start(elsewhere / "copy" / "influxdb", setup=False)
    judge = Bench(elsewhere / "copy", copy.url, copy.token)
    assert judge.service().ready().ok
    assert list(judge.service().verify(made.record)) == []
    inside = Client(copy.url, copy.token, "other")
    assert inside.count("hours") == SHARDS and inside.count("room 007") == 2
    assert copy.client.count("room 007") == 2
