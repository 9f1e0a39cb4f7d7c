"""`iotops export influx` on a whole hub, and the vendor's own tool on what it wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.hubs import HubUnderTest
from tests.support.influxd import Client, Influxd
from tests.support.lab import lab

pytestmark = pytest.mark.e2e


def test_the_folder_goes_to_another_server_by_the_vendors_tool(
    hub: HubUnderTest, tmp_path: Path
) -> None:
    need("influx")
    need("influxd")
    token = hub.env_value("INFLUXDB_OPERATOR_TOKEN")
    client = Client(f"http://127.0.0.1:{hub.ports['influxdb']}", token, "home")
    now = int(time.time())
    client.write("iot", [f"handed v={i} {now - 60 - i * 86400}" for i in range(60)])
    folder = hub.base / "for the vendor"
    done = hub.iotops("export", "influx", str(folder), "--json")
    assert done.code == 0, done.err + done.out
    result = done.result()
    assert result["folder"] == str(folder)
    assert not list((hub.root / ".iotops" / "tmp").iterdir())
    full = hub.iotops("export", "influx", str(folder))
    assert full.code == 2 and "not an empty folder" in full.err and "next:" in full.err
    assert folder.stat().st_mode & 0o777 == 0o700
    server = Influxd(str(lab().programs["influxd"]), tmp_path / "influxdb", token=token)
    server.start()
    try:
        server.setup()
        subprocess.run(
            [
                str(lab().programs["influx"]),
                *("restore", "--host", server.url, "--token", token, "--full"),
                *("--operator-token", token, str(folder)),
            ],
            check=True,
            capture_output=True,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
        fresh = Client(server.url, token, "home")
        predicate = 'r._measurement == "handed"'
        assert fresh.count("iot", predicate) == client.count("iot", predicate) == 60
    finally:
        server.stop()
    status = hub.iotops("status", "--json")
    assert status.code == 0, status.out


def test_an_interrupted_export_leaves_nothing(hub: HubUnderTest) -> None:
    folder = hub.base / "interrupted"
    folder.mkdir()
    running = hub.start("export", "influx", str(folder), "--json")
    running.wait_for("step_started", step="export")
    running.signal(signal.SIGINT)
    done = running.end()
    assert done.code in (0, 130), done.err  # it may have been through already
    assert (done.code == 0) == bool(list(folder.glob("*.manifest")))
    assert done.code == 0 or not list(folder.iterdir())
    assert not list((hub.root / ".iotops" / "tmp").iterdir())


def test_an_export_that_failed_leaves_nothing(hub: HubUnderTest) -> None:
    folder = hub.base / "never"
    env = hub.folder / ".env"
    before = env.read_text()
    token = hub.env_value("INFLUXDB_OPERATOR_TOKEN")
    env.write_text(before.replace(token, "wrong-token"))
    try:
        done = hub.iotops("export", "influx", str(folder))
    finally:
        env.write_text(before)
    assert done.code == 1 and "operator token" in done.err and "wrong-token" not in done.err
    assert not folder.exists() and "Traceback" not in done.err
    inside = hub.iotops("export", "influx", str(hub.root / "never"))
    assert inside.code == 2 and "goes into every backup" in inside.err
    assert not (hub.root / "never").exists()
    for service in ("nodered", "nothing"):
        done = hub.iotops("export", "influx", str(folder), "--service", service)
        assert done.code == 2 and "next:" in done.err and not folder.exists()
