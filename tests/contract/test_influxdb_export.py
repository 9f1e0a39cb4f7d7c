"""A folder for the vendor's own tool: the real `influx restore` takes it, and what it keeps."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from iotops.clients.staging import Staging
from iotops.errors import IotopsError
from iotops.services.influxdb import Exported
from tests.conftest import need
from tests.support.influxbench import Bench
from tests.support.influxd import WEEK, Influxd, Starter, at, write_weeks
from tests.support.lab import lab

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def influx() -> str:
    """The vendor's command line, built by the lab."""
    need("influx")
    return str(lab().programs.get("influx", "influx"))


def restore(influx: str, server: Influxd, folder: Path, *more: str) -> str:
    """Run the vendor's restore and give what it says."""
    done = subprocess.run(
        [influx, "restore", "--host", server.url, "--token", server.token, *more, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(folder.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def export(bench: Bench, folder: Path) -> Exported:
    """Export with the product's service, as the action does."""
    folder.mkdir()
    work = bench.work / "export"
    service = bench.service()
    staging = Staging(
        bench.root / "influxdb", work / "staging", prefix="influxdb", memory=work / "memory"
    )
    told: list[tuple[int, int]] = []
    made = service.export(staging, folder, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0 and told == sorted(told)
    return made


def add_bucket(server: Influxd, name: str, **rule: int) -> None:
    """Make a bucket."""
    org = server.client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]
    rules = [{"type": "expire", **rule}] if rule else []
    document = {"orgID": org, "name": name, "retentionRules": rules}
    server.client.json("POST", "/api/v2/buckets", document)


def test_the_vendors_full_restore_takes_it_and_counts_are_equal(
    tmp_path: Path, server: Influxd, bench: Bench, start: Starter, influx: str
) -> None:
    client = server.client
    write_weeks(client, weeks=4, points=800)
    for number in range(3):
        add_bucket(server, f"room {number}", everySeconds=400 * 86400)
        client.write(f"room {number}", [f"m,n={number} v={i}" for i in range(7)])
    add_bucket(server, "empty")
    folder = tmp_path / "out"
    made = export(bench, folder)
    assert made.tombstones == 0 and made.warnings == () and made.shards == 7
    assert dict(made.counts) == dict(bench.service().counts())
    target = start(tmp_path / "fresh" / "influxdb")
    restore(influx, target, folder, "--full", "--operator-token", server.token)
    fresh = Bench(tmp_path / "fresh", target.url, server.token)
    assert dict(fresh.service().counts()) == dict(made.counts)
    assert target.client.rows("iot") == client.rows("iot")


def test_the_vendors_restore_of_one_bucket_leaves_a_bucket_that_can_be_written(
    tmp_path: Path, start: Starter, influx: str
) -> None:
    """Groups made ahead of time have no shard yet; with them in the list writes would fail."""
    ahead = (
        "--storage-shard-precreator-check-interval=200ms",
        "--storage-shard-precreator-advance-period=2h",
    )
    server = start(tmp_path / "data" / "influxdb", *ahead)
    bench = Bench(tmp_path / "data", server.url, server.token)
    add_bucket(server, "hourly", everySeconds=86400, shardGroupDurationSeconds=3600)
    server.client.write("hourly", ["m v=1"])
    until = time.monotonic() + 20
    while len(server.client.shards("hourly")) < 2:
        assert time.monotonic() < until, "nothing was created ahead of time"
        time.sleep(0.05)
    folder = tmp_path / "out"
    made = export(bench, folder)
    assert made.shards == 1 and made.warnings == ()
    assert bench.capture().staged.warnings == ()  # the server's 404 for them is no damage
    target = start(tmp_path / "fresh" / "influxdb")
    said = restore(influx, target, folder, "--bucket", "hourly", "--org", "iot")
    assert target.client.count("hourly") == 1, said
    now = int(time.time())
    target.client.write("hourly", [f"m v=2 {now + 3600}", f"m v=3 {now + 1}"])
    assert target.client.count("hourly") == 3


def test_the_folder_is_as_the_vendors_own_and_deletions_are_told(
    tmp_path: Path, server: Influxd, bench: Bench, start: Starter, influx: str
) -> None:
    client = server.client
    write_weeks(client, weeks=3, points=300)
    write_weeks(client, weeks=3, points=300, room="attic")
    client.delete("iot", "1970-01-01T00:00:00Z", at(time.time() - WEEK), 'room="attic"')
    kept = client.count("iot")
    folder = tmp_path / "out"
    made = export(bench, folder)
    assert made.tombstones == 2
    assert made.counts["points/iot/climate"] == kept
    manifests = list(folder.glob("*.manifest"))
    assert len(manifests) == 1
    document = json.loads(manifests[0].read_text())
    assert document["manifestVersion"] == 2
    entries = [document["kv"], document["sql"]]
    for bucket in document["buckets"]:
        for policy in bucket["retentionPolicies"]:
            for group in policy["shardGroups"]:
                assert len(group["shards"]) == 1
                entries += group["shards"]
    assert {one["fileName"] for one in entries} | {manifests[0].name} == set(made.files)
    for one in entries:
        path = folder / one["fileName"]
        assert (one["size"], one["compression"]) == (path.stat().st_size, 0)
        assert path.stat().st_mode & 0o777 == 0o600
    names: list[str] = []
    for path in folder.glob("*.tar"):
        with tarfile.open(path, "r:") as tar:
            names += tar.getnames()
    live = server.folder / "engine" / "data"
    assert names and all((live / name).is_file() for name in names)
    # What the warning says is so: the vendor's restore brings the deleted points back.
    target = start(tmp_path / "fresh" / "influxdb")
    restore(influx, target, folder, "--full", "--operator-token", server.token)
    assert target.client.count("iot") == kept + 2 * 2 * 300


def test_damage_is_found_before_it_is_handed_out(
    tmp_path: Path, server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client, weeks=2)
    victim = sorted(server.folder.rglob("*.tsm"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 1
    victim.write_bytes(data)
    with pytest.raises(IotopsError, match="checksum"):
        export(bench, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
