"""`iotops device`, as a person types it, on a hub with a real broker: also killed in the middle."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.contract.kind_mosquitto import Connected
from tests.support.hubs import docker
from tests.support.killmatrix import RUNNING, STOPPED, Held, LightHub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

REFUSED = 135
TEXTS = ["mosquitto/acl", "mosquitto/devices.toml"]


@pytest.fixture
def light(light_hubs: list[LightHub]) -> Iterator[LightHub]:
    """A light hub without devices; afterwards it has none again, and its containers run."""
    hub = light_hubs[0]
    docker("stop", hub.container(STOPPED))
    assert hub.running() == RUNNING
    yield hub
    assert hub.iotops("resume").code == 0
    if hub.iotops("device", "list", "--exit-code").code == 4 or "kitchen" in acl(hub):
        assert hub.iotops("device", "remove", "kitchen", "--yes").code == 0
    assert hub.running() == RUNNING


def acl(hub: LightHub) -> str:
    return (hub.folder / "mosquitto" / "acl").read_text()


def client(hub: LightHub, user: str, password: str) -> Connected:
    return Connected(hub.ports["mosquitto"], user, password)


def login(hub: LightHub, user: str, password: str) -> int | None:
    with client(hub, user, password) as one:
        return one.code


def arrives(hub: LightHub, user: str, password: str, topic: str) -> bool:
    """Publish retained as somebody, and see whether it stays: a refusal is silent."""
    with client(hub, user, password) as one:
        one.publish(topic, b"21.5", retain=True)
    return topic in retained(hub)


def retained(hub: LightHub) -> set[str]:
    with client(hub, "iotops", hub.env_value("MQTT_PASSWORD")) as one:
        one.subscribe("#", 0)
        one.publish("fence", b"here")
        one.turn_until(lambda: ("fence", False) in one.heard)
        return {topic for topic, kept in one.heard if kept}


def git(hub: LightHub, *argv: str) -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(hub.folder), *argv], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def files(hub: LightHub) -> dict[str, bytes]:
    """What a change exchanges, and the names of everything beside it."""
    folder = hub.folder / "mosquitto"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    secret = hub.root / "mqtt" / "secrets"
    return {**found, **{path.name: path.read_bytes() for path in secret.iterdir()}}


def as_in_a_unit(hub: LightHub, *argv: str) -> None:
    """Run a command that sees the hub folder read-only: it leaves the dead run alone."""
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        str(hub.folder),
        *hub._argv(argv, True),
    ]
    ended = subprocess.run(words, env=hub._env(None), capture_output=True, text=True, cwd=hub.base)
    assert ended.returncode == 1, ended.stderr
    assert "cannot be written from here" in ended.stderr and "iotops resume" in ended.stderr


def test_a_device_from_its_first_day_to_its_last(light: LightHub) -> None:
    hub = light
    others = hub.env_value("NODERED_MQTT_PASSWORD")
    done = hub.iotops("device", "add", "kitchen")
    assert done.code == 0, done.err
    first = done.out.splitlines()[-1]
    assert "shown only now" in done.out and first not in done.err
    assert git(hub, "show", "--name-only", "--format=%s", "HEAD") == [
        "Give a login to the device kitchen",
        "",
        *TEXTS,
    ]
    assert arrives(hub, "kitchen", first, "devices/kitchen/temperature")
    assert not arrives(hub, "kitchen", first, "devices/cellar/temperature")
    assert hub.iotops("device", "list", "--exit-code").code == 0

    rotated = hub.iotops("device", "rotate", "kitchen", "--quiet")
    (second,) = rotated.out.splitlines()
    assert login(hub, "kitchen", first) == REFUSED and login(hub, "kitchen", second) == 0
    assert git(hub, "status", "--porcelain", *TEXTS) == []

    assert hub.iotops("backup").code == 0
    removed = hub.iotops("device", "remove", "kitchen", "--yes", "--json").result()
    assert (removed["password"], removed["tested"], removed["commit"]) == (
        None,
        True,
        git(hub, "rev-parse", "HEAD")[0],
    )
    assert login(hub, "kitchen", second) == REFUSED and login(hub, "nodered", others) == 0
    assert "devices/kitchen/temperature" in retained(hub)

    # The password file is data and comes back; what Git says of rights does not, and that is told.
    assert hub.iotops("restore", "latest", "--service", "mosquitto", "--yes").code == 0
    assert login(hub, "kitchen", second) == 0
    listed = hub.iotops("device", "list", "--exit-code")
    assert listed.code == 4 and "not declared; next: iotops device remove kitchen" in listed.out
    assert hub.iotops("undo", "--yes").code == 0
    assert login(hub, "kitchen", second) == REFUSED

    journal = "".join(path.read_text() for path in (hub.own / "journal").glob("*.json"))
    kept = journal + "".join(path.read_text() for path in hub.state.glob("*.json"))
    assert first not in kept and second not in kept


def test_refusals_and_their_exit_codes(light: LightHub) -> None:
    hub, before = light, files(light)
    for argv, code, words in (
        (("add", "a:b"), 2, "cannot name a device"),
        (("add", "kitchen", "--prefix", "a/#"), 2, "cannot be its prefix"),
        (("add", "iotops"), 1, "the hub's own user"),
        (("add", "nodered"), 1, "rights of its own"),
        (("rotate", "nobody"), 1, "no declared device nobody"),
        (("remove", "nobody", "--yes"), 1, "no device nobody"),
        (("remove", "iotops", "--yes"), 1, "the hub's own user"),
        (("remove", "nobody"), 2, "--yes"),
    ):
        done = hub.iotops("device", *argv)
        assert (done.code, words in done.err) == (code, True), (argv, done.err)
        assert "next:" in done.err and "Traceback" not in done.err
    assert files(hub) == before and hub.running() == RUNNING


@pytest.mark.parametrize(
    ("step", "number", "kept"),
    [("swap", 1, False), ("swap", 3, False), ("login", 1, False), ("commit", 1, True)],
)
def test_killed_in_the_middle(light: LightHub, step: str, number: int, kept: bool) -> None:
    """All of it or nothing: taken back up to the login, finished from the commit on."""
    hub, before = light, files(light)
    run = Held(hub, "device", "add", "kitchen")
    assert any((one.name, one.number) == (step, number) for one in run.steps()), run.errors()
    run.signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    if not kept:
        assert hub.iotops("up").code == 1, "a dead run must be settled first"
    if step in ("login", "commit"):
        as_in_a_unit(hub, "backup")
    done = hub.iotops("resume")
    assert done.code == 0, done.err
    record = hub.record(run.runs[-1][1])
    assert record["outcome"] == ("complete" if kept else "failed")
    assert kept or record["hint"] == "run it again: iotops device add kitchen"
    assert hub.running() == RUNNING and not (hub.own / "tmp" / str(record["id"])).exists()
    assert login(hub, "nodered", hub.env_value("NODERED_MQTT_PASSWORD")) == 0
    after = files(hub)
    assert {*after} == {*before, *(["devices.toml"] if kept else [])}
    assert (after == before) is not kept
    listed = hub.iotops("device", "list", "--exit-code", "--json")
    assert listed.code == 0 and ("kitchen" in listed.out) is kept
