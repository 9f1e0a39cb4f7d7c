"""Rehearsed restores on a whole hub: what they prove, what they refuse, what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_faults import refused, restic, started_at
from tests.e2e.test_story import saved_again, tampered
from tests.support.clients import backed_up, deploy
from tests.support.hubs import HubUnderTest, docker

pytestmark = pytest.mark.e2e


def left_behind(hub: HubUnderTest) -> list[str]:
    """List containers, networks and folders of drills that are still there."""
    found = [path.name for path in (hub.root / ".iotops" / "tmp").iterdir()]
    for what in ("container ls --all", "network ls"):
        rows = docker(*what.split(), "--format", '{{.Label "com.docker.compose.project"}}')
        found += [row for row in rows.split() if row.startswith("iotops-drill-")]
    return found


def state(hub: HubUnderTest) -> dict[str, dict[str, Any]]:
    """Read the state file, which answers without the disk."""
    found: dict[str, dict[str, Any]] = json.loads(next(hub.state.glob("*.json")).read_text())
    return found


def drills(hub: HubUnderTest) -> list[dict[str, object]]:
    """Give the ledger."""
    done = hub.iotops("drill", "--list", "--json")
    assert done.code == 0, done.err
    entries = json.loads(done.out)
    assert isinstance(entries, list)
    return entries


def test_a_drill_compares_every_service_and_leaves_nothing(hub: HubUnderTest) -> None:
    deploy(hub, "drilled")
    snapshot = backed_up(hub)["snapshot"]
    before = started_at(hub)
    done = hub.iotops("drill", "--json")
    assert done.code == 0, done.err + done.out
    result = done.result()
    assert result["outcome"] == "complete" and result["snapshot"] == snapshot
    services = result["services"]
    assert isinstance(services, list)
    assert {one["service"] for one in services} == {"mosquitto", "nodered", "influxdb", "grafana"}
    for one in services:
        assert one["compared"] > 0 and one["seconds"] > 0 and one["memory"] > 0, one
        assert not [f for f in one["findings"] if f["severity"] == "error"]
    assert started_at(hub) == before, "the hub itself is not touched"
    assert left_behind(hub) == []
    entry = drills(hub)[-1]
    assert entry["outcome"] == "complete" and entry["snapshot"] == snapshot
    assert float(str(entry["rto_seconds"])) > 0 and int(str(entry["disk"])) > 0
    assert int(str(entry["restic_memory"])) == result["restic_memory"]
    assert int(str(entry["restic_memory"])) > 20_000_000
    assert int(str(entry["compared"])) == sum(one["compared"] for one in services)
    lines = entry["services"]
    assert isinstance(lines, dict) and "retained" in lines["mosquitto"]
    assert state(hub)["last"]["drill"]["outcome"] == "complete"


def test_one_service_is_rehearsed_alone_and_is_no_whole_drill(hub: HubUnderTest) -> None:
    good = state(hub)["good"].get("drill")
    done = hub.iotops("drill", "--service", "mosquitto", "--json")
    assert done.code == 0, done.err
    services = done.result()["services"]
    assert isinstance(services, list) and [one["service"] for one in services] == ["mosquitto"]
    assert state(hub)["good"].get("drill") == good
    refused(hub, 2, "drill", "--service", "nothing", says="no service 'nothing'", hint="one of")


@pytest.mark.parametrize(
    ("service", "count"),
    [("influxdb", "tokens"), ("nodered", "flow_nodes"), ("mosquitto", "users")],
)
def test_a_number_that_differs_fails_the_drill(
    hub: HubUnderTest, tmp_path: Path, service: str, count: str
) -> None:
    with tampered(hub, tmp_path) as folder:
        manifest = json.loads((folder / "manifest.json").read_text())
        record = next(one for one in manifest["services"] if one["name"] == service)
        record["counts"][count] += 1
        (folder / "manifest.json").write_text(json.dumps(manifest))
        made = saved_again(hub, folder)
    done = hub.iotops("drill", made, "--service", service, "--json")
    assert done.code == 1, done.out
    assert done.result()["outcome"] == "failed"
    assert drills(hub)[-1]["outcome"] == "failed" and count in str(drills(hub)[-1]["message"])
    assert left_behind(hub) == []


def test_a_drill_that_compared_nothing_fails(hub: HubUnderTest, tmp_path: Path) -> None:
    with tampered(hub, tmp_path) as folder:
        manifest = json.loads((folder / "manifest.json").read_text())
        for one in manifest["services"]:
            if one["name"] == "grafana":
                one["counts"] = {}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        made = saved_again(hub, folder)
    done = hub.iotops("drill", made, "--service", "grafana", "--json")
    assert done.code == 1, done.out
    assert "nothing was compared" in str(drills(hub)[-1]["message"])


def test_a_damaged_file_fails_its_service_and_the_others_go_on(
    hub: HubUnderTest, tmp_path: Path
) -> None:
    with tampered(hub, tmp_path) as folder:
        (folder / "mqtt" / "secrets" / "passwd").write_text("intruder:$7$101$YWJj$YWJj\n")
        made = saved_again(hub, folder)
    done = hub.iotops("drill", made, "--service", "mosquitto", "--service", "grafana", "--json")
    assert done.code == 1, done.out
    lines = drills(hub)[-1]["services"]
    assert isinstance(lines, dict)
    assert "secrets/passwd" in lines["mosquitto"] and "as recorded" in lines["grafana"]


def test_an_old_newest_snapshot_proves_nothing(hub: HubUnderTest, tmp_path: Path) -> None:
    old = datetime.now(UTC) - timedelta(days=3)
    everything = json.loads(restic(hub, "snapshots", "--json"))
    tags = next(one["tags"] for one in everything if "complete" in one["tags"])
    # A repository whose newest complete snapshot is three days old.
    other = tmp_path / "repository"
    settings = hub.folder / "iotops.toml"
    text = settings.read_text()
    with tampered(hub, tmp_path) as folder:
        restic(hub, "-r", str(other), "init")
        restic(
            hub,
            *("-r", str(other), "backup", ".", "--host", "test-hub", "--tag", ",".join(tags)),
            *("--time", f"{old:%Y-%m-%d %H:%M:%S}"),
            cwd=folder,
        )
    try:
        settings.write_text(text.replace(str(hub.repository), str(other)))
        refused(hub, 1, "drill", says="proves nothing about today", hint="iotops backup")
    finally:
        settings.write_text(text)


def test_without_room_a_drill_is_skipped(hub: HubUnderTest) -> None:
    filler = hub.root / ".iotops" / "filler"
    state = os.statvfs(hub.root)
    os.close(os.open(filler, os.O_CREAT | os.O_WRONLY))
    try:
        size = state.f_bavail * state.f_frsize - (100 << 20)
        descriptor = os.open(filler, os.O_WRONLY)
        os.posix_fallocate(descriptor, 0, size)
        os.close(descriptor)
        refused(hub, 75, "drill", says="MB are free", hint="df -h")
    finally:
        filler.unlink()


def test_what_a_killed_drill_left_is_removed(hub: HubUnderTest) -> None:
    running = hub.start("drill", "--service", "nodered", "--json")
    running.wait_for("step_started", step="wait", service="nodered")
    running.signal(signal.SIGKILL)
    running.end()
    assert len(left_behind(hub)) >= 3, "container, network and folder were there"
    resumed = hub.iotops("resume")
    assert resumed.code == 0, resumed.err
    assert left_behind(hub) == []
    assert drills(hub)[-1]["outcome"] == "failed"
    assert hub.iotops("drill", "--service", "mosquitto").code == 0


def reaches(container: str, address: str) -> bool:
    """Tell whether a container gets a connection to the hub's InfluxDB."""
    command = f"exec 3<>/dev/tcp/{address}/8086"
    argv = ["docker", "exec", container, "timeout", "3", "bash", "-c", command]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_a_drill_acts_on_nothing(hub: HubUnderTest) -> None:
    """Looked at while it stands still: no way out, no port, no task, no flow."""
    inspected = json.loads(docker("inspect", hub.container("influxdb")))[0]
    (network,) = inspected["NetworkSettings"]["Networks"].values()
    other = network["IPAddress"]
    assert reaches(hub.container("nodered"), other), "the hub's own containers do reach it"
    running = hub.start("drill", "--service", "nodered", "--service", "influxdb", "--json")
    seen: dict[str, dict[str, object]] = {}
    for service in ("nodered", "influxdb"):
        running.wait_for("step_started", step="wait", service=service)
        os.kill(running.child.pid, signal.SIGSTOP)
        try:
            ids = docker(
                *("ps", "--filter", f"label=com.docker.compose.service={service}"),
                *("--filter", "label=com.docker.compose.project"),
                *("--format", '{{.ID}} {{.Label "com.docker.compose.project"}}'),
            )
            one = next(
                line.split()[0] for line in ids.splitlines() if "iotops-drill-" in line.split()[-1]
            )
            seen[service] = json.loads(docker("inspect", one))[0]
            assert not reaches(one, other), "nothing leads out"
        finally:
            os.kill(running.child.pid, signal.SIGCONT)
    assert running.end().code == 0
    for document in seen.values():
        host, settings = document["HostConfig"], document["NetworkSettings"]
        assert isinstance(host, dict) and isinstance(settings, dict)
        assert not host["PortBindings"] and host["RestartPolicy"]["Name"] in ("", "no")
        assert host["Memory"] == 1 << 30
        assert all(
            str(bind).startswith(str(hub.root / ".iotops/tmp")) for bind in host["Binds"] or []
        )
    variables = {name: str(document["Config"]) for name, document in seen.items()}
    assert "NODE_RED_ENABLE_SAFE_MODE=true" in variables["nodered"]
    assert "INFLUXD_NO_TASKS=true" in variables["influxdb"]
