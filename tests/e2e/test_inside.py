"""Looking inside the snapshots of a hub that ran on: what differs is what was done to it."""

from __future__ import annotations

import base64
import json
import secrets
import time
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.test_faults import hub_id, restic
from tests.support.clients import backed_up, deploy, influx, points, publish
from tests.support.hubs import HubUnderTest

pytestmark = pytest.mark.e2e


def make_dashboard(hub: HubUnderTest, title: str) -> None:
    login = base64.b64encode(f"admin:{hub.env_value('GRAFANA_ADMIN_PASSWORD')}".encode()).decode()
    document = {"dashboard": {"uid": title.lower(), "title": title, "panels": []}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['grafana']}/api/dashboards/db",
        data=json.dumps(document).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def write_points(hub: HubUnderTest, count: int) -> None:
    """Write points at times where nobody else has any."""
    start = time.time_ns()
    lines = "\n".join(f"story value=1i {start + number}" for number in range(count))
    influx(hub, "/api/v2/write?org=home&bucket=iot", lines.encode())


def things(found: dict[str, object]) -> dict[str, set[tuple[str, str, str]]]:
    services = found["services"]
    assert isinstance(services, list)
    return {
        one["name"]: {(thing["what"], thing["change"], thing["name"]) for thing in one["things"]}
        for one in services
    }


def test_two_snapshots_differ_by_what_was_done(hub: HubUnderTest) -> None:
    word = f"d{secrets.token_hex(4)}"
    deploy(hub, "Before")
    write_points(hub, 1)
    first = str(backed_up(hub)["snapshot"])
    passwd = hub.root / "mqtt/secrets/passwd"
    old_users = passwd.read_text()
    hashed = old_users.splitlines()[0].partition(":")[2]
    try:
        passwd.write_text(f"{old_users}{word}:{hashed}\n")
        (hub.folder / "notes.txt").write_text(word)
        deploy(hub, "After")
        make_dashboard(hub, word)
        before = points(hub)
        write_points(hub, 3)
        assert points(hub) - before == 3
        publish(hub, f"inside/{word}", "x")
        second = str(backed_up(hub)["snapshot"])
    finally:
        passwd.write_text(old_users)
        (hub.folder / "notes.txt").unlink(missing_ok=True)

    done = hub.iotops("diff", first, second, "--json", "--exit-code")
    assert done.code == 4, done.err
    found = json.loads(done.out)
    told = things(found)
    assert told["nodered"] == {("flow", "changed", "After")}
    assert told["grafana"] == {("dashboard", "added", word)}
    assert told["mosquitto"] == {("user", "added", word)}
    assert told["influxdb"] == {("bucket", "changed", "iot")}
    by_name = {one["name"]: one for one in found["services"]}
    (bucket,) = by_name["influxdb"]["things"]
    assert bucket["parts"] == ["story +3"] and bucket["detail"].startswith("+3 points")
    users = by_name["mosquitto"]["counts"]["users"]
    assert users[1] == users[0] + 1
    assert ("hub file", "added", "notes.txt") in {
        (one["what"], one["change"], one["name"]) for one in found["hub"]
    }
    folders = {one["folder"]: one for one in found["folders"]}
    assert folders["mqtt/secrets"]["changed"] == 1 and folders["hub"]["added"] == 1
    shown = hub.iotops("diff", first, second)
    assert shown.code == 0
    for line in (
        f"+ user {word}",
        f"+ dashboard {word}",
        "~ flow After",
        "~ bucket iot: +3 points",
    ):
        assert line in shown.out
    assert hashed not in done.out + shown.out
    assert not list((hub.root / ".iotops/tmp").glob("compare-*"))
    same = hub.iotops("diff", second, second, "--exit-code")
    assert same.code == 0 and "nothing differs" in same.out


def test_files_of_a_snapshot_are_listed_without_extracting_them(hub: HubUnderTest) -> None:
    top = json.loads(hub.iotops("ls", "--json").out)
    names = {one["path"] for one in top["entries"]}
    assert names >= {"hub", "host", "mqtt", "nodered", "influxdb", "grafana"}
    inner = json.loads(hub.iotops("ls", "latest", "mqtt", "-R", "--json").out)
    found = {one["path"]: one for one in inner["entries"]}
    held = restic(hub, "dump", inner["snapshot"], "/mqtt/secrets/passwd")
    assert found["mqtt/secrets/passwd"]["bytes"] == len(held.encode())
    missing = hub.iotops("ls", "latest", "mqtt/none")
    assert missing.code == 2 and "mqtt/none" in missing.err


def test_one_file_is_taken_out_as_it_was(hub: HubUnderTest, tmp_path: Path) -> None:
    target = tmp_path / "look"
    words = ("restore", "latest", "--into", str(target), "--json")
    path = "mqtt/secrets/passwd"
    done = hub.iotops(*words, "--path", path, "--path", "/hub/iotops.toml")
    assert done.code == 0, done.err
    files = {str(one.relative_to(target)) for one in target.rglob("*") if one.is_file()}
    assert files == {path, "hub/iotops.toml", "manifest.json"}
    snapshot = str(done.result()["snapshot"])
    assert (target / path).read_text() == restic(hub, "dump", snapshot, f"/{path}")
    assert (target / path).stat().st_uid == 1883
    nowhere = tmp_path / "nowhere"
    for wrong in ("mqtt/none", "", "../mqtt"):
        refused = hub.iotops("restore", "latest", "--into", str(nowhere), "--path", wrong)
        assert refused.code == 2 and "holds no" in refused.err and not nowhere.exists()
    alone = hub.iotops("restore", "latest", "--path", path)
    assert alone.code == 2 and "--into" in alone.err


def test_what_snapshots_hold_is_remembered_and_read_again(hub: HubUnderTest) -> None:
    made = str(backed_up(hub)["snapshot"])
    kept = hub.root / ".iotops/held" / f"{made}.json"
    listed = json.loads(hub.iotops("snapshots", "--json").out)
    held = listed[-1]["holds"]
    assert listed[-1]["id"] == made and held["files"] > 10
    counts = {one["name"]: one["counts"] for one in held["parts"]}
    assert counts["influxdb"]["points"] >= 1 and counts["mosquitto"]["users"] >= 1
    before = kept.read_bytes()
    kept.write_text("{")  # whatever is odd is as good as nothing
    stranger = kept.with_name("0" * 64 + ".json")
    stranger.write_bytes(before)
    plain = hub.iotops("snapshots")
    assert plain.out.splitlines()[-2].split()[-1] == "-" and "--details" in plain.out
    assert not stranger.exists()
    again = hub.iotops("snapshots", "--details")
    assert again.code == 0 and f"{counts['influxdb']['points']:,} points" in again.out
    assert json.loads(kept.read_bytes()) == json.loads(before)
    assert hub_id(hub) not in plain.out
