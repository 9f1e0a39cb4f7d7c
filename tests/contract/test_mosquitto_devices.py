"""Devices of the broker, on real brokers of every line: let in, kept apart, renewed, taken away.

The hub here is one service of `kind_mosquitto` with a hub's settings around it. Everything asked of
the broker is asked by a client of our own.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotops import devices, disk
from iotops.actions import devices as action
from iotops.actions import resume, sync
from iotops.clients import mosquittousers
from iotops.clients.git import init_repository
from iotops.config import Secret
from iotops.errors import Conflict, GuardError, Interrupted, Locked, SettingsError, StackError
from iotops.events import Event, Noted, StepStarted
from iotops.hub import Hub
from iotops.journal import stamp
from tests.conftest import need
from tests.contract.bench import Bench
from tests.contract.kind_mosquitto import Connected, Kind
from tests.support.lab import lab, lines_of

pytestmark = pytest.mark.contract

LINES = ("mosquitto", *lines_of("mosquitto"))
REFUSED = 135


class Broker:
    """A broker with a hub around it."""

    def __init__(self, line: str, base: Path) -> None:
        self.bench = Bench(Kind, lab().images[line], base)
        self.bench.prepare()
        assert isinstance(self.bench.kind, Kind)
        self.kind = self.bench.kind
        self.folder = self.bench.ground.hub
        self.acl = self.folder / "mosquitto" / "acl"
        self.declaration = self.folder / devices.FILE
        self.passwords = self.bench.ground.folder / "secrets" / "passwd"
        (self.folder / "docker-compose.yaml").write_text((self.folder / "compose.json").read_text())
        port = self.bench.ground.port(1883)
        (self.folder / "iotops.toml").write_text(
            f'[hub]\nid = "0123456789abcdef"\nname = "bench"\nowner = "root"\n'
            f'[data]\nroot = "{self.bench.data}"\nkind = "folder"\n'
            f'[services.mosquitto]\nkind = "mosquitto"\nfolder = "mosquitto"\nport = {port}\n'
            f'[paths]\nstate = "{base}/state"\nrun = "{base}/run"\n'
        )
        (self.bench.data / disk.SENTINEL).write_text(json.dumps({"hub": "0123456789abcdef"}))
        self.said: list[Event] = []

    @property
    def hub(self) -> Hub:
        """The hub, opened anew as each command does."""
        return Hub.open(self.folder)

    def add(self, name: str, prefix: str = "", commands: str = "") -> str:
        """Add a device; gives its password."""
        done = action.add(self.hub, name, prefix, commands, self.said.append)
        assert done.password is not None
        return done.password.reveal()

    def client(self, user: str, password: str, session: str = "") -> Connected:
        return Connected(self.bench.ground.port(1883), user, password, session)

    def files(self) -> dict[Path, tuple[bytes, int, int]]:
        """Every file of the hub folder, and the password file: content, owner, mode."""
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return {
            path: (path.read_bytes(), path.stat().st_uid, path.stat().st_mode)
            for path in (*found, self.passwords)
        }

    def left(self) -> list[Path]:
        """What a run may not leave behind."""
        own = self.bench.data / ".iotops"
        return [*self.folder.rglob(".iotops-new-*"), *(own / "tmp").iterdir()]

    def running(self) -> bool:
        return self.bench.stack.containers()["mosquitto"].state == "running"


@pytest.fixture(params=LINES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """A broker that runs, on every line."""
    for part in ("docker", "compose", "root", f"image {request.param}"):
        need(part)
    made = Broker(request.param, tmp_path)
    try:
        made.bench.up()
        yield made
    finally:
        made.bench.end()


def heard(broker: Broker, client: Connected, topic: str) -> bool:
    """Publish as a client, and tell whether it arrived: a fence of iotops' own comes after it."""
    fence = f"fence/{secrets.token_hex(6)}"
    with broker.kind._client("iotops") as listener:
        listener.subscribe("#", 0)
        client.publish(topic, b"x")
        with broker.kind._client("iotops") as fencer:
            fencer.publish(fence, b"")
        listener.turn_until(lambda: (fence, False) in listener.heard)
        return (topic, False) in listener.heard


def reads(broker: Broker, client: Connected, topic: str) -> bool:
    """Tell whether the device kitchen, subscribed to everything, gets a topic.

    A command of its own, sent later, comes after it.
    """
    fence = f"commands/kitchen/{secrets.token_hex(6)}"
    client.subscribe("#", 0)
    with broker.kind._client("iotops") as other:
        other.publish(topic, b"x")
        other.publish(fence, b"")
    client.turn_until(lambda: (fence, False) in client.heard)
    return (topic, False) in client.heard


def test_a_device_has_its_own_topics_and_no_others(broker: Broker) -> None:
    before = broker.files()
    with broker.kind._client("sensor") as sensor:
        sensor.publish("kept/one", b"here", retain=True)
    password = broker.add("kitchen")
    state = broker.passwords.lstat()
    assert (state.st_uid, state.st_gid, state.st_mode) == (1883, 1883, 0o100600)
    assert broker.passwords.read_bytes().startswith(before[broker.passwords][0])
    assert broker.acl.read_bytes().startswith(before[broker.acl][0]) and not broker.left()
    for text in (broker.declaration.read_text(), broker.acl.read_text(), repr(broker.said)):
        assert password not in text
    with broker.client("kitchen", password) as kitchen:
        assert kitchen.code == 0
        assert heard(broker, kitchen, "devices/kitchen/temperature")
        assert not heard(broker, kitchen, "devices/cellar/temperature")
        assert not heard(broker, kitchen, "commands/kitchen/on")
        assert reads(broker, kitchen, "commands/kitchen/on")
        assert not reads(broker, kitchen, "commands/cellar/on")
    assert broker.kind._login("kitchen", "wrong") == REFUSED
    assert broker.kind._logins() == {
        "iotops": 0,
        "sensor": 0,
        "sensor, wrong password": 135,
        "": 135,
    }
    assert broker.kind._retained() == {"kept/one": b"here"}

    done = action.rotate(broker.hub, "kitchen")
    assert done.password is not None and done.tested
    assert broker.kind._login("kitchen", password) == REFUSED
    assert broker.kind._login("kitchen", done.password.reveal()) == 0

    action.remove(broker.hub, "kitchen")
    assert broker.kind._login("kitchen", done.password.reveal()) == REFUSED
    assert broker.kind._retained() == {"kept/one": b"here"} and not broker.left()
    after = broker.files()
    assert after.pop(broker.declaration)[0].decode() == devices.HEAD
    assert after == before, "everything else is byte for byte as it was"


def test_comments_in_the_password_file_cost_nobody_his_login(broker: Broker) -> None:
    """Given such a file, `mosquitto_passwd` drops every user and ends with 0 (seen)."""
    data = b"# ours\n\n" + broker.passwords.read_bytes()
    broker.passwords.write_bytes(data)
    password = broker.add("kitchen", "home/kitchen", "cmnd/kitchen")
    assert broker.passwords.read_bytes().startswith(data)
    assert broker.kind._logins()["sensor"] == 0
    with broker.client("kitchen", password) as kitchen:
        assert heard(broker, kitchen, "home/kitchen/x")
        assert not heard(broker, kitchen, "devices/kitchen/x")


@pytest.mark.parametrize("bad", ["mosquitto.conf", "acl"])
def test_a_broker_that_would_not_start_again_is_not_stopped(broker: Broker, bad: str) -> None:
    """What is on the disk is wrong, and the running broker has not read it yet."""
    password = broker.add("kitchen")
    path = broker.folder / "mosquitto" / bad
    right = path.read_text()
    path.write_text("no_such_option hunter2\n" + right)
    before, started = broker.files(), broker.bench.started_at()
    changes = ((action.add, "cellar"), (action.rotate, "kitchen"), (action.remove, "kitchen"))
    for change, name in changes:
        with pytest.raises(GuardError, match="so nothing was changed: a broker") as raised:
            change(broker.hub, name)
        assert f"/mosquitto/config/{bad}" in raised.value.message and raised.value.hint
        assert "hunter2" not in raised.value.message
    assert broker.files() == before and not broker.left()
    assert broker.bench.started_at() == started and broker.kind._login("kitchen", password) == 0
    record = broker.hub.journal.last("device")
    assert record is not None and record.outcome == "complete", "nothing was begun"
    path.write_text(right)
    action.remove(broker.hub, "kitchen")
    assert broker.kind._login("kitchen", password) == REFUSED


def test_a_broker_that_does_not_come_up_gets_its_old_files_back(broker: Broker) -> None:
    """Somebody takes its port while it is stopped, and gives it free again."""
    before = broker.files()
    address = ("127.0.0.1", broker.bench.ground.port(1883))
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def steal(event: Event) -> None:
            broker.said.append(event)
            if not isinstance(event, StepStarted):
                return
            if event.step == "start" and thief.fileno() >= 0:
                thief.bind(address)
                thief.listen()
            elif event.step == "take-back":
                thief.close()

        with pytest.raises(StackError, match="did not start again: mosquitto"):
            action.add(broker.hub, "kitchen", report=steal)
    assert broker.files() == before and not broker.left()
    assert broker.kind._logins()["sensor"] == 0
    record = broker.hub.journal.last("device")
    assert record is not None and (record.outcome, record.swaps, record.stopped) == (
        "failed",
        (),
        (),
    )


def test_a_broker_that_does_not_know_the_new_password_gets_its_old_files_back(
    broker: Broker,
) -> None:
    """The Compose file names another folder than the one that the container was made with."""
    elsewhere = broker.bench.ground.folder / "elsewhere"
    elsewhere.mkdir()
    text = (broker.folder / "compose.json").read_text()
    folder = str(broker.passwords.parent)
    (broker.folder / "docker-compose.yaml").write_text(text.replace(folder, str(elsewhere)))
    (elsewhere / "passwd").write_bytes(broker.passwords.read_bytes())
    before = broker.files(), (elsewhere / "passwd").read_bytes()
    with pytest.raises(StackError, match="refuses kitchen with its new password"):
        broker.add("kitchen")
    assert (broker.files(), (elsewhere / "passwd").read_bytes()) == before and not broker.left()
    assert broker.running() and broker.kind._logins()["sensor"] == 0


def test_a_password_file_in_the_hub_folder_on_another_disk(broker: Broker) -> None:
    """No data folder of the broker's is exchanged then; it must be stopped all the same.

    And the hub folder has no `mosquitto/` yet, where the declaration belongs.
    """
    broker.bench.stop()
    there = (broker.folder / "mosquitto").rename(broker.folder / "other")
    for name in ("docker-compose.yaml", "compose.json"):
        text = (broker.folder / name).read_text()
        (broker.folder / name).write_text(text.replace(f'{broker.folder}/mosquitto"', f'{there}"'))
    broker.passwords = broker.passwords.rename(there / "passwd")
    conf = there / "mosquitto.conf"
    conf.write_text(conf.read_text().replace("/mosquitto/secrets/", "/mosquitto/config/"))
    broker.bench.up()
    tmp, since = broker.bench.data / ".iotops" / "tmp", broker.bench.started_at()
    tmp.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "iotops-test", tmp], check=True)
    try:
        password = broker.add("kitchen")
        assert broker.bench.started_at() != since
        assert broker.kind._login("kitchen", password) == 0
        assert "kitchen" in broker.declaration.read_text() and not broker.left()
    finally:
        subprocess.run(["umount", tmp], check=True)


def test_a_broker_that_was_stopped_stays_stopped(broker: Broker) -> None:
    broker.bench.stop()
    password = broker.add("kitchen")
    assert not broker.running()
    assert any(isinstance(one, Noted) and "stays so" in one.text for one in broker.said)
    broker.bench.start()
    broker.bench.await_ready()
    assert broker.kind._login("kitchen", password) == 0


def test_a_broker_that_is_not_well_is_left_alone(broker: Broker) -> None:
    right = broker.kind.passwords["iotops"]
    (broker.folder / ".env").write_text("MQTT_PASSWORD='wrong'\n")
    before, started = broker.files(), broker.bench.started_at()
    with pytest.raises(
        GuardError, match="not well, so nothing was changed: the login of user iotops"
    ):
        broker.add("kitchen")
    assert broker.files() == before and broker.bench.started_at() == started
    assert right not in repr(broker.said)


def test_an_edit_of_the_block_is_refused_before_anything_stops(broker: Broker) -> None:
    broker.add("kitchen")
    broker.acl.write_text(broker.acl.read_text().replace("read commands/", "readwrite commands/"))
    before, started = broker.files(), broker.bench.started_at()
    for change in (action.rotate, action.remove):
        with pytest.raises(Conflict, match=r"\+topic readwrite commands/kitchen/#"):
            change(broker.hub, "kitchen")
    assert action.listing(broker.hub).rights == "edited"
    assert broker.files() == before and broker.bench.started_at() == started


def test_what_was_declared_by_hand_gets_its_login_by_rotate(broker: Broker) -> None:
    broker.declaration.write_text("[devices.kitchen]\n")
    found = action.listing(broker.hub)
    assert found.rights == "stale" and found.drifted
    assert {one.name: one.state for one in found.devices}["kitchen"] == "no password"
    done = action.rotate(broker.hub, "kitchen")
    assert done.password is not None
    with broker.client("kitchen", done.password.reveal()) as kitchen:
        assert heard(broker, kitchen, "devices/kitchen/x")
    assert not action.listing(broker.hub).drifted
    broker.declaration.write_text("[devices.kitchen]\ncolour = 3\n")
    with pytest.raises(SettingsError, match="colour"):
        action.rotate(broker.hub, "kitchen")


def test_the_two_texts_are_committed_and_nothing_else(broker: Broker) -> None:
    tree = init_repository(broker.folder, (0, 0))
    tree.commit_all("All of it")
    broker.hub.state.update(sync={"commit": tree.head() or "", "applied": stamp()})
    (broker.folder / "mine").write_text("not yet\n")
    (broker.folder / "iotops.toml").write_text((broker.folder / "iotops.toml").read_text() + "#\n")
    done = action.add(broker.hub, "kitchen")
    (commit, _) = tree.log()
    assert (commit.id, commit.subject) == (done.commit, "Give a login to the device kitchen")
    assert [one.path for one in tree.status()] == ["iotops.toml", "mine"]
    decided = sync.look(broker.hub)
    assert {one.path for one in decided.changes} == {"iotops.toml", "mine"}, "nothing of ours"
    hook = broker.folder / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    refused = action.add(broker.hub, "cellar", report=broker.said.append)
    assert refused.commit == "" and refused.password is not None
    assert any(isinstance(one, Noted) and "not committed" in one.text for one in broker.said)
    assert broker.kind._login("cellar", refused.password.reveal()) == 0


def test_the_image_makes_the_line_and_the_password_is_in_no_process_list(broker: Broker) -> None:
    password = f"never-on-a-command-line-{secrets.token_hex(8)}"
    seen: list[bytes] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(path.read_bytes())
                except OSError:
                    continue
            time.sleep(0.01)

    folder = broker.bench.data / ".iotops" / "tmp" / "seen"
    folder.mkdir()
    os.chown(folder, 1883, 1883)
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        line = mosquittousers.new_line(
            broker.bench.stack, "mosquitto", folder, (1883, 1883), "kitchen", Secret(password)
        )
    finally:
        done.set()
        watcher.join()
    assert line.startswith(b"kitchen:$7$")
    assert any(b"mosquitto_passwd" in one for one in seen), "the look was long enough"
    assert not any(password.encode() in one for one in seen)


def test_a_program_that_fails_is_told_without_the_password(broker: Broker) -> None:
    """It may not write where it must."""
    password = Secret(secrets.token_hex(9))
    folder = broker.bench.data / ".iotops" / "tmp" / "seen"
    folder.mkdir(mode=0o700)
    with pytest.raises(StackError, match=r"the password of kitchen .* exit 1") as raised:
        mosquittousers.new_line(
            broker.bench.stack, "mosquitto", folder, (1883, 1883), "kitchen", password
        )
    assert password.reveal() not in str(raised.value)


@pytest.mark.parametrize("broker", LINES[:1], indirect=True)
def test_whatever_ends_it_everything_is_as_it_was(broker: Broker) -> None:
    """Each step is interrupted in its turn; the steps are those of an undisturbed run."""
    broker.add("kitchen")
    action.remove(broker.hub, "kitchen")
    broker.declaration.unlink()
    before = broker.files()
    steps = [one.step for one in broker.said if isinstance(one, StepStarted)]
    chosen = steps[: steps.index("login") + 1]
    assert {"password", "try", "write", "stop", "swap", "start", "ready", "login"} <= {*chosen}
    for number, name in enumerate(chosen):
        begun: list[str] = []

        def end(event: Event, number: int = number, begun: list[str] = begun) -> None:
            if isinstance(event, StepStarted):
                begun.append(event.step)
                if len(begun) == number + 1:
                    raise Interrupted

        with pytest.raises(Interrupted):
            action.add(broker.hub, "kitchen", report=end)
        assert begun[number] == name and broker.files() == before and not broker.left(), name
        assert broker.kind._logins()["sensor"] == 0


def test_two_at_once(broker: Broker) -> None:
    with broker.hub.locked("backup"), pytest.raises(Locked, match="iotops backup"):
        broker.add("kitchen")
    assert not broker.declaration.exists()
    assert resume.resume(broker.hub) == ()
