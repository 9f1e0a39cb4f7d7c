"""A hub as its owner wrote it, from adopting it to a device's login, by what iotops says itself."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator

import pytest

from tests.conftest import need
from tests.contract.kind_mosquitto import Connected
from tests.support.adopthub import PASSWORD, USER
from tests.support.hubs import Ended, docker, made_hub
from tests.support.ownhub import POINTS, OwnHub
from tests.support.resticbench import hurry

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SERVICES = {"broker", "influx", "nodered", "dashboards", "zigbee"}
REFUSED = 135
TOPIC = "devices/kitchen/temperature"


@pytest.fixture(scope="module")
def made() -> Iterator[OwnHub]:
    for what in ("docker", "root", "git"):
        need(what)
    for server in ("mosquitto", "influxdb", "nodered", "grafana"):
        need(f"image {server}")
    hub = made_hub(OwnHub, "iotops-own-")
    try:
        yield hub
    finally:
        if not os.environ.get("IOTOPS_TEST_KEEP"):
            hub.remove()


def test_a_hub_of_ones_own_is_adopted_and_lived_with(made: OwnHub) -> None:
    adopt(made)
    back_up(made)
    put_into_git(made)
    change_the_broker(made)
    password = live_with_devices(made)
    restore_the_broker(made, password)


def ask(hub: OwnHub, *argv: str, code: int = 0) -> Ended:
    """Run a command as its user; no secret of `.env` may be in what it says."""
    done = hub.iotops(*argv, hub="--adopt" not in argv)
    told = done.out + done.err
    assert done.code == code, (argv, done.err, done.out.splitlines()[-1:])
    assert "Traceback" not in told and hub.env_value("INFLUX_TOKEN") not in told
    assert "$haus24" not in told
    return done


def findings(done: Ended) -> dict[str, dict[str, str]]:
    found = done.result()["findings"]
    assert isinstance(found, list)
    return {one["code"]: one for one in found}


def hint(done: Ended) -> str:
    return done.err.split("next:")[1].strip()


def adopt(hub: OwnHub) -> None:
    """One file is written; nothing else is so much as touched."""
    before = hub.looks()
    places = ("--state", str(hub.state), "--run", str(hub.run_folder))
    data = ("--data-root", str(hub.root), "--json")
    done = ask(hub, "init", "--adopt", str(hub.folder), *data, *places, code=3)
    now = hub.looks()
    assert {*now} - {*before} == {str(hub.folder / "iotops.toml")} and not hub.state.exists()
    assert {path: now[path] for path in before if now[path] != before[path]} == {}
    assert {
        *("mount.in-hub", "volume.outside", "mount.file", "mosquitto.login", "profile.inactive"),
        *("git.missing", "mount.data-without-sentinel"),
    } == findings(done).keys()
    services = tomllib.loads((hub.folder / "iotops.toml").read_text())["services"]
    assert services.keys() == {"broker", "influx"}, "what the Compose file says is not repeated"
    assert services["influx"]["token_env"] == "INFLUX_TOKEN"

    status = ask(hub, "status", code=1)
    assert "iotops init --claim-data" in status.out and "free on the data root" not in status.out
    env = findings(ask(hub, "env", "check", "--json", code=1))
    assert (
        env.keys() == {"env.open", "env.dollar"} and "then write only" in env["env.dollar"]["hint"]
    )
    (hub.folder / ".env").chmod(0o600)


def back_up(hub: OwnHub) -> None:
    """What is not captured is said until it is; the way out is the one that is told."""
    ask(hub, "init", "--claim-data", "--yes")
    where = ("--repository", str(hub.repository), "--password-file", str(hub.password_file))
    ask(hub, "init", *where)
    hurry(hub.repository, hub.password_file.read_text().strip())
    partial = ask(hub, "backup", "--json", code=3).result()["missing"]
    assert isinstance(partial, dict) and partial.keys() == {"volumes", "folders"}
    assert "/nodered" in partial["folders"] and "dashboards" in partial["volumes"]
    told = findings(ask(hub, "doctor", "--json", code=1))
    for code in ("mount.in-hub", "volume.outside"):
        hub.follow(told[code]["hint"])
    assert len(hub.flows()) == 2  # it is asked once it answers again
    shrunk = ask(hub, "backup", "--json", code=3).result()["missing"]
    assert isinstance(shrunk, dict) and shrunk.keys() == {"hub"}  # what was moved is not there
    assert "iotops backup --accept-shrink" in shrunk["hub"]
    whole = ask(hub, "backup", "--json", "--accept-shrink").result()
    assert whole["services"].keys() == SERVICES, whole  # type: ignore[attr-defined]
    assert ask(hub, "doctor").code == 0 and hub.running() == SERVICES
    assert hub.points() == POINTS


def put_into_git(hub: OwnHub) -> None:
    """By the commands of the hint; the secrets stay out."""
    with (hub.folder / "iotops.toml").open("a") as file:
        file.write("\n[sync]\nwatch = 3\n")
    refused = ask(hub, "sync", "plan", code=1)
    assert "is not in Git" in refused.err
    hub.follow(hint(refused).removeprefix("put it there: ").partition("; then")[0])
    ask(hub, "sync", "adopt", "-m", "The hub as it is")
    assert set(hub.git("ls-files").split()) == {
        *("docker-compose.yml", "extras/compose.yaml", "mosquitto.conf"),
        *("iotops.toml", ".gitignore"),
    }
    plan = ask(hub, "sync", "plan", "--exit-code", "--json").result()
    assert plan["changes"] == []
    ask(hub, "sync", "apply", "--yes")


def change_the_broker(hub: OwnHub) -> None:
    """A commit reaches a file that is mounted by itself; a bad one never gets there."""
    conf, first, id_of = (hub.folder / "mosquitto.conf").read_text(), started(hub), hub.container
    broker = id_of("broker")
    good = conf + "max_inflight_messages 30\n"
    hub.edit("mosquitto.conf", good)
    hub.git("commit", "-qam", "More in flight")
    assert hub.seen_by_broker() == conf, "a file that takes its place is not seen"
    done = ask(hub, "sync", "apply", "--yes", "--json").result()
    assert done["services"] == {"broker": "restarted"}
    assert hub.seen_by_broker() == good and kept(hub) == {"home/lamp"}
    second = started(hub)
    assert (id_of("broker") == broker, first != second) == (True, True)

    hub.edit("mosquitto.conf", good + "no_such_option true\n")
    hub.git("commit", "-qam", "Break it")
    bad = ask(hub, "sync", "apply", "--yes", code=1)
    assert "is refused, nothing was touched: broker" in bad.err
    assert started(hub) == second and hub.seen_by_broker() == good
    hub.git("revert", "--no-edit", "HEAD")
    ask(hub, "sync", "plan", "--exit-code")


def live_with_devices(hub: OwnHub) -> str:
    """The rights that devices need come by an edit on the hub, which is found and adopted."""
    refused = ask(hub, "device", "add", "kitchen", code=1)
    place, line = hub.root / "broker/pwfile/acl", "acl_file /mosquitto/pwfile/acl"
    assert str(place) in refused.err and line in refused.err, refused.err
    place.write_text(f"user {USER}\ntopic readwrite #\n")
    hub.edit("mosquitto.conf", (hub.folder / "mosquitto.conf").read_text() + line + "\n")
    found = ask(hub, "sync", "apply", "--yes", code=4)
    assert "was edited on the hub" in found.err and "iotops sync adopt" in found.err
    ask(hub, "sync", "adopt", "-m", "Name the broker's rights")
    others = {name: started(hub, name) for name in ("influx", "nodered", "dashboards")}
    ask(hub, "sync", "apply", "--yes")

    first = ask(hub, "device", "add", "kitchen").out.splitlines()[-1]
    second = ask(hub, "device", "rotate", "kitchen", "--quiet").out.strip()
    assert login(hub, "kitchen", first) == REFUSED and login(hub, "", "") == REFUSED
    publish(hub, "kitchen", second, TOPIC)
    publish(hub, "kitchen", second, "home/heating")  # a refusal is silent
    publish(hub, USER, PASSWORD, "home/door")
    assert kept(hub) == {"home/lamp", "home/door", TOPIC}
    listed = ask(hub, "device", "list", "--exit-code", "--json").result()["devices"]
    assert isinstance(listed, list)
    assert {one["name"]: one["state"] for one in listed} == {"kitchen": "ok", USER: "by hand"}
    assert {name: started(hub, name) for name in others} == others
    ask(hub, "sync", "plan", "--exit-code")
    return second


def restore_the_broker(hub: OwnHub, password: str) -> None:
    """A restored broker knows the device and its rights; afterwards it can be removed."""
    ask(hub, "backup")
    publish(hub, USER, PASSWORD, "home/later")
    ask(hub, "restore", "latest", "--service", "broker", "--yes")
    assert kept(hub) == {"home/lamp", "home/door", TOPIC}
    publish(hub, "kitchen", password, "devices/kitchen/again")
    assert "devices/kitchen/again" in kept(hub)
    ask(hub, "device", "list", "--exit-code")
    ask(hub, "sync", "plan", "--exit-code")

    ask(hub, "device", "remove", "kitchen", "--yes")
    assert login(hub, "kitchen", password) == REFUSED and login(hub, USER, PASSWORD) == 0
    ask(hub, "device", "list", "--exit-code")
    assert hub.git("status", "--porcelain") == "" and hub.running() == SERVICES


def started(hub: OwnHub, service: str = "broker") -> str:
    return docker("inspect", "-f", "{{.State.StartedAt}}", hub.container(service)).strip()


def login(hub: OwnHub, user: str, password: str) -> int | None:
    with Connected(hub.ports["mosquitto"], user, password) as one:
        return one.code


def kept(hub: OwnHub) -> set[str]:
    """Give the topics that have a retained message."""
    with Connected(hub.ports["mosquitto"], USER, PASSWORD) as one:
        one.subscribe("#", 0)
        one.publish("fence", b"here")
        one.turn_until(lambda: ("fence", False) in one.heard)
        return {topic for topic, retained in one.heard if retained}


def publish(hub: OwnHub, user: str, password: str, topic: str) -> None:
    with Connected(hub.ports["mosquitto"], user, password) as one:
        assert one.code == 0
        one.publish(topic, b"21.5", retain=True)
