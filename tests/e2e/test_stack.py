"""`up`, `down`, `ps` and `logs` with real containers: what does not stay up is found out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from iotops import disk
from tests.conftest import need
from tests.e2e.test_faults import edited, refused
from tests.support.composed import Scratch
from tests.support.hubs import Ended, HubUnderTest, docker

pytestmark = pytest.mark.e2e

SLEEP = "trap 'exit 0' TERM; sleep 600 & wait"


class Small:
    """A hub whose containers run a line of shell: `one` keeps data, `proxy` keeps none."""

    def __init__(self, base: Path, *, one: str = SLEEP, proxy: str = SLEEP) -> None:
        self.base, self.folder, self.root = base, base / "hub", base / "data"
        self.folder.mkdir()
        (self.root / "one").mkdir(parents=True)
        (self.root / "one" / "kept").write_text("kept")
        hub_id = "0123456789abcdef"
        (self.folder / "iotops.toml").write_text(
            f'[hub]\nid = "{hub_id}"\nname = "small"\nowner = "root"\n'
            f'[data]\nroot = "{self.root}"\nkind = "folder"\n'
            f'[paths]\nstate = "{base}/state"\nrun = "{base}/run"\n'
        )
        (self.root / disk.SENTINEL).write_text(json.dumps({"hub": hub_id}))
        self.project = Scratch(self.folder)
        mount = f"{{type: bind, source: {self.root}/one, target: /data}}"
        words = {
            name: json.dumps(["sh", "-c", line]) for name, line in (("one", one), ("proxy", proxy))
        }
        self.project.write(
            f"  one:\n    image: IMAGE\n    command: {words['one']}\n    restart: always\n"
            f"    volumes: [{mount}]\n"
            f"  proxy:\n    image: IMAGE\n    command: {words['proxy']}\n    restart: always\n"
            ""
        )
        self.child: subprocess.Popen[str] | None = None

    def start(self, *argv: str) -> None:
        """Start one command."""
        self.child = subprocess.Popen(
            [sys.executable, "-m", "iotops", *argv, "--hub", str(self.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.fspath(Path.cwd())},
            cwd=self.base,
        )

    def end(self) -> Ended:
        """Wait for the end of the command that was started."""
        assert self.child is not None
        out, err = self.child.communicate(timeout=120)
        assert "Traceback" not in err, err
        return Ended(self.child.returncode, out, err)

    def iotops(self, *argv: str) -> Ended:
        """Run one command to its end."""
        self.start(*argv)
        return self.end()


@dataclass(frozen=True)
class Brought:
    """Three hubs, and how `iotops up` ended on each of them."""

    good: Small
    falls: Small
    loops: Small
    ended: dict[str, Ended]


@pytest.fixture(scope="module")
def brought() -> Iterator[Brought]:
    """Bring three small stacks up at the same time: each look takes ten seconds."""
    need("docker")
    need("compose")
    with tempfile.TemporaryDirectory(prefix="iotops-small-", dir="/var/tmp") as folder:
        base = Path(folder)
        for name in ("good", "falls", "loops"):
            (base / name).mkdir()
        small = {
            "good": Small(base / "good", one=f"echo first; echo second; {SLEEP}"),
            # Runs when it is asked for the first time, and ends before it is looked at again.
            "falls": Small(
                base / "falls", one="echo reading settings; sleep 3; echo broken; exit 7"
            ),
            "loops": Small(base / "loops", proxy="echo no such option; exit 3"),
        }
        try:
            for one in small.values():
                one.start("up")
            ended = {name: one.end() for name, one in small.items()}
            yield Brought(small["good"], small["falls"], small["loops"], ended)
        finally:
            for one in small.values():
                one.project.remove()


def test_a_container_that_goes_down_after_it_came_up_fails_up(brought: Brought) -> None:
    done = brought.ended["falls"]
    assert done.code == 1
    assert "one did not come up: came up and went down again" in done.err
    assert "| broken" in done.err  # the last lines of its log
    assert "next:" in done.err and "iotops up one" in done.err


def test_a_looping_container_without_data_fails_up(brought: Brought) -> None:
    done = brought.ended["loops"]
    assert done.code == 1
    assert "proxy did not come up: does not stay up" in done.err and "exit code 3" in done.err
    assert "| no such option" in done.err and "iotops up" in done.err


def test_up_ps_logs_and_down(brought: Brought) -> None:
    hub, done = brought.good, brought.ended["good"]
    assert done.code == 0, done.err
    assert len(hub.project.ids()) == 2

    listed = json.loads(hub.iotops("ps", "--json").out)
    seen = {one["service"]: (one["state"], one["restarts"]) for one in listed}
    assert seen == {"one": ("running", 0), "proxy": ("running", 0)}
    table = hub.iotops("ps")
    assert table.code == 0 and "proxy" in table.out and "running" in table.out

    shown = hub.iotops("logs", "one", "--lines", "1")
    assert (shown.code, shown.out.split()) == (0, ["second"])
    as_json = json.loads(hub.iotops("logs", "one", "--json").out)
    assert as_json == {"service": "one", "lines": ["first", "second"]}
    unknown = hub.iotops("logs", "two")
    assert unknown.code == 2 and "no service 'two'" in unknown.err and "one of: one" in unknown.err

    down = hub.iotops("down")
    assert down.code == 0, down.err
    assert hub.project.ids() == [] and (hub.root / "one" / "kept").read_text() == "kept"
    assert "the data stays" in down.out
    empty = hub.iotops("ps")
    assert empty.code == 0 and "iotops up" in empty.out
    assert hub.iotops("down").code == 0  # nothing to do is no failure


# -- Node-RED says what its health check does not -------------------------------------------------


def flows(hub: HubUnderTest, new: list[dict[str, object]] | None = None) -> list[dict[str, object]]:
    """Give Node-RED's flows with their credentials' nodes, or deploy others."""
    body = None if new is None else json.dumps({"flows": new}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{hub.ports['nodered']}/flows",
        data=body,
        headers={
            "Authorization": f"Bearer {hub.env_value('NODERED_TOKEN')}",
            "Node-RED-API-Version": "v2",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = json.load(answer).get("flows", [])
        assert isinstance(found, list)
        return found


@contextmanager
def deployed(hub: HubUnderTest, *nodes: dict[str, object]) -> Iterator[None]:
    """Add nodes for a while."""
    before = flows(hub)
    flows(hub, [*before, *nodes])
    try:
        yield
    finally:
        flows(hub, before)


def test_a_missing_palette_fails_up(hub: HubUnderTest) -> None:
    tab: dict[str, object] = {"id": "feed00000000aaaa", "type": "tab", "label": "Palette"}
    node = {
        "id": "feed00000000bbbb",
        "type": "no-such-node",
        "z": tab["id"],
        "x": 1,
        "y": 1,
        "wires": [],
    }
    with deployed(hub, tab, node):
        refused(
            hub, 1, "up", says="node types are missing (no-such-node)", hint="iotops up nodered"
        )


def test_a_wrong_credential_secret_fails_up(hub: HubUnderTest) -> None:
    broker: dict[str, object] = {
        "id": "feed00000000cccc",
        "type": "mqtt-broker",
        "name": "kept",
        "broker": "127.0.0.1",
        "port": "1",
        "autoConnect": False,
        "credentials": {"user": "u", "password": "p"},
    }
    right = hub.env_value("NODERED_CREDENTIAL_SECRET")
    with deployed(hub, broker):
        with edited(hub.folder / ".env", right, "another-secret"):
            done = hub.iotops("up", "nodered")
            assert done.code == 1, done.out
            assert "nodered did not come up" in done.err
            assert "credentials cannot be decrypted" in done.err and "next:" in done.err
            assert right not in done.err + done.out and "another-secret" not in done.err
        again = hub.iotops("up", "nodered")
        assert again.code == 0, again.err


# -- tokens and addresses -------------------------------------------------------------------------


def test_grafana_got_a_token_of_its_own_that_only_reads(hub: HubUnderTest) -> None:
    token, operator = (
        hub.env_value("GRAFANA_INFLUXDB_TOKEN"),
        hub.env_value("INFLUXDB_OPERATOR_TOKEN"),
    )
    assert token and token != operator
    assert (hub.folder / ".env").stat().st_mode & 0o777 == 0o600
    environment = docker("exec", hub.container("grafana"), "env").splitlines()
    assert f"INFLUXDB_TOKEN={token}" in environment
    assert operator not in "\n".join(environment)

    def ask(path: str, body: bytes, kind: str) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{hub.ports['influxdb']}{path}",
            data=body,
            headers={"Authorization": f"Token {token}", "Content-Type": kind},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    query = json.dumps({"query": 'from(bucket: "iot") |> range(start: -1m)'}).encode()
    assert ask("/api/v2/query?org=home", query, "application/json") == 200
    assert ask("/api/v2/write?org=home&bucket=iot", b"x value=1", "text/plain") == 403


def test_doctor_names_tokens_that_are_not_accepted(hub: HubUnderTest) -> None:
    assert hub.iotops("doctor").code == 0
    env = hub.folder / ".env"
    names = ("INFLUXDB_OPERATOR_TOKEN", "NODERED_TOKEN", "GRAFANA_INFLUXDB_TOKEN")
    values = [hub.env_value(name) for name in names]
    with edited(env, values[0], "wrong-operator"), edited(env, values[1], "wrong-nodered"):
        done = hub.iotops("doctor", "--json")
    findings = done.result()["findings"]
    assert isinstance(findings, list)
    bad = {one["code"]: one["hint"] for one in findings if one["severity"] == "error"}
    assert done.code == 1 and set(bad) == {"influxdb.token", "nodered.token"} and all(bad.values())
    with edited(env, values[2], "of-another-snapshot"):
        done = hub.iotops("doctor", "--json")
    found = {one["code"] for one in done.result()["findings"]}  # type: ignore[attr-defined]
    assert done.code == 0 and "influxdb.reader" in found  # a warning: the hub itself is well
    assert not any(value in done.out for value in values)


def test_a_port_that_listens_at_one_address_is_asked_there(hub: HubUnderTest) -> None:
    """As `.env` advises: one address of the machine's own, and the same in iotops.toml."""
    env, settings = hub.folder / ".env", hub.folder / "iotops.toml"
    listen = edited(env, "MQTT_ADDRESS='0.0.0.0'", "MQTT_ADDRESS='127.0.0.2'")
    ask = edited(settings, 'host = "127.0.0.1"', 'host = "127.0.0.2"')
    with listen, ask:
        done = hub.iotops("up", "mosquitto")
        assert done.code == 0, done.err
        assert docker("port", hub.container("mosquitto")).split()[-1].startswith("127.0.0.2:")
    assert hub.iotops("up", "mosquitto").code == 0
