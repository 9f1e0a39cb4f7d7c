"""InfluxDB after a restore: nothing lost in any window, whatever went on during the capture."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from iotops.model import Severity
from tests.support.influxbench import Bench, Made
from tests.support.influxd import Influxd, Starter, at, write_weeks

pytestmark = pytest.mark.contract


def errors(bench: Bench, made: Made) -> list[str]:
    """Give what the product calls an error after a restore."""
    found = bench.service().verify(made.record)
    return [one.message for one in found if one.severity is Severity.ERROR]


def restored(bench: Bench, made: Made, root: Path, start: Starter) -> tuple[Influxd, Bench]:
    """Put a capture back, start it, and give the server and the product's service for it."""
    bench.put_into(root / "influxdb", made)
    server = start(root / "influxdb", setup=False)
    return server, Bench(root, server.url, server.token)


# -- a loss that hides behind a gain -------------------------------------------------------------


def test_a_week_lost_is_found_although_another_gained_as_many_points(
    tmp_path: Path, server: Influxd, bench: Bench, start: Starter
) -> None:
    write_weeks(server.client, weeks=4, points=500)
    made = bench.capture()
    copy, judge = restored(bench, made, tmp_path / "copy", start)
    assert list(judge.service().verify(made.record)) == []
    copy.stop()
    lost = sorted(copy.folder.rglob("*.tsm"))[-1]  # of the last shard made: the earliest week
    lost.unlink()
    copy.start()
    whole = made.captured.counts["points/iot/climate"]
    gone = whole - copy.client.count("iot")
    assert gone == 1000
    now = int(time.time())
    copy.client.write("iot", [f"climate,room=new n={i}i {now - 90 - i}" for i in range(gone)])
    assert copy.client.count("iot") == whole
    found = errors(judge, made)
    assert len(found) == 1
    assert f"points/iot/climate: {whole} recorded, {whole} found, fewer from 20" in found[0]
    assert "1000 recorded, 0 found" in found[0]
    # It is the windows that tell: a record without them sees nothing.
    old = replace(made.record, extra="")
    assert list(judge.service().verify(old)) == []


def test_what_retention_may_have_removed_is_a_warning_window_by_window(
    server: Influxd, bench: Bench
) -> None:
    client, now = server.client, int(time.time())
    org = client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]
    rule = {"type": "expire", "everySeconds": 4 * 3600, "shardGroupDurationSeconds": 3600}
    document = {"orgID": org, "name": "short", "retentionRules": [rule]}
    bucket = client.json("POST", "/api/v2/buckets", document)["id"]
    client.write("short", [f"m v={i} {now - 60 - i * 300}" for i in range(36)])
    made = bench.capture()
    assert list(bench.service().verify(made.record)) == []
    rule["everySeconds"] = 3600
    client.call("PATCH", f"/api/v2/buckets/{bucket}", {"retentionRules": [rule]})
    hour = now - now % 3600 - 3600
    for start, wanted in ((hour - 3600, Severity.WARNING), (hour, Severity.ERROR)):
        client.delete("short", at(start), at(start + 3600), '_measurement="m"')
        found = list(bench.service().verify(made.record))
        assert [one.severity for one in found] == [wanted]
        assert f"fewer from {at(hour - 3600)} to {at(hour)}" in found[0].message
