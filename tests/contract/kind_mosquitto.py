"""Mosquitto under test: users, retained messages, a persistent session with a waiting message.

Three ways to set it up: its own database and a password file; users kept by dynamic security; and
messages kept by the SQLite plugin of 2.1.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from iotops.services.base import BaseOptions
from iotops.services.mosquitto import MosquittoOptions
from tests.contract.protocol import Ground, KindUnderTest

RETAINED = 250
VALVE = "garden-valve"
CONFIGURATION = """\
listener 1883
allow_anonymous false
password_file /mosquitto/secrets/passwd
acl_file /mosquitto/config/acl
persistence true
persistence_location /mosquitto/data/
log_dest file /mosquitto/log/mosquitto.log
"""
ACL = """\
user iotops
topic readwrite #
topic read $SYS/#
user sensor
topic readwrite #
"""


DYNAMIC = """\
listener 1883
allow_anonymous false
plugin {plugin}
plugin_opt_config_file /mosquitto/{file}
persistence true
persistence_location /mosquitto/data/
log_dest file /mosquitto/log/mosquitto.log
"""
SQLITE = """\
listener 1883
allow_anonymous false
password_file /mosquitto/secrets/passwd
acl_file /mosquitto/config/acl
persistence_location /mosquitto/data/
plugin {plugin}
plugin_opt_flush_period 1
listener 9883
protocol http_api
"""


@cache
def plugin(image: str, name: str) -> str:
    """Where an image has one of the broker's plugins: Debian's packages keep them elsewhere."""
    places = f"/usr/lib/mosquitto_{name}.so /usr/lib/*/mosquitto/mosquitto_{name}.so"
    places += f" /usr/lib/*/mosquitto_{name}.so"
    asked = subprocess.run(
        [
            *("docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image),
            *("-c", f"ls {places} 2>/dev/null"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout, f"{image} has no plugin {name}"
    return asked.stdout.split()[0]


@dataclass(frozen=True)
class Answers:
    """What an independent client saw: retained payloads by topic, and who is let in."""

    retained: Mapping[str, bytes]
    logins: Mapping[str, int | None]
    waiting: bytes | None


class Kind(KindUnderTest[Answers]):
    """A broker with two users, each with a password that only this test knows."""

    kind = "mosquitto"
    lab_image = "mosquitto"
    moving: ClassVar[tuple[str, ...]] = ("log/*", "data/mosquitto.db")

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.passwords = {"iotops": secrets.token_hex(12), "sensor": secrets.token_hex(12)}

    def prepare(self) -> None:
        folder = self.ground.folder
        for name in ("data", "log", "secrets"):
            (folder / name).mkdir(parents=True)
        config = self.ground.hub / "mosquitto"
        config.mkdir()
        (config / "mosquitto.conf").write_text(self.configuration())
        (config / "acl").write_text(ACL)
        self.make_users()
        for path in (folder / "data", folder / "log", *folder.glob("secrets/*")):
            os.chown(path, 1883, 1883)
        os.chown(folder / "secrets", 1883, 1883)

    def configuration(self) -> str:
        """What stands in `mosquitto.conf`."""
        return CONFIGURATION

    def make_users(self) -> None:
        """Make the users that must be there before the first start."""
        for user, password in self.passwords.items():
            self._passwd(user, password)

    def compose(self) -> Mapping[str, object]:
        folder = self.ground.folder
        places = {
            self.ground.hub / "mosquitto": "/mosquitto/config",
            folder / "data": "/mosquitto/data",
            folder / "log": "/mosquitto/log",
            folder / "secrets": "/mosquitto/secrets",
        }
        return {
            "image": self.ground.image,
            "ports": [f"127.0.0.1:{self.ground.port(1883)}:1883"],
            "volumes": [
                {
                    "type": "bind",
                    "source": str(source),
                    "target": target,
                    "bind": {"create_host_path": False},
                }
                for source, target in places.items()
            ],
        }

    def env(self) -> Mapping[str, str]:
        return {"MQTT_PASSWORD": self.passwords["iotops"]}

    def options(self) -> BaseOptions:
        return MosquittoOptions(container="mosquitto", port=self.ground.port(1883))

    def seed(self) -> Answers:
        # A session that outlives its connection, and a message that waits for it.
        with self._client("sensor", VALVE) as valve:
            valve.subscribe("valve/garden", 1)
        with self._client("sensor") as client:
            for number in range(RETAINED):
                topic, payload = f"home/room {number}/température", secrets.token_bytes(40)
                client.publish(topic, payload, retain=True)
            client.publish("gone/again", b"x", retain=True)
            client.publish("gone/again", b"", retain=True)
            client.publish("valve/garden", b"open")
        answers = Answers(self._retained(), self._logins(), self._waiting())
        assert answers.waiting == b"open"
        assert len(answers.retained) == RETAINED
        assert answers.logins == {"iotops": 0, "sensor": 0, "sensor, wrong password": 135, "": 135}
        return answers

    def check(self, answers: Answers) -> list[str]:
        found: list[str] = []
        logins = self._logins()
        if logins != answers.logins:
            return [f"logins answer {logins}, answered {answers.logins}"]
        retained = self._retained()
        for topic, payload in answers.retained.items():
            if retained.get(topic) != payload:
                found.append(f"the retained message of {topic} is {retained.get(topic)!r}")
        if extra := retained.keys() - answers.retained.keys():
            found.append(f"retained that was not: {sorted(extra)[:3]}")
        if (waiting := self._waiting()) != answers.waiting:
            found.append(f"the message that waited for the valve is {waiting!r}")
        return found

    def sabotage(self) -> None:
        """Give one user another password: all messages are there, one login is not."""
        subprocess.run(["docker", "stop", self.ground.container], check=True, capture_output=True)
        self._passwd("sensor", "another")
        os.chown(self.ground.folder / "secrets" / "passwd", 1883, 1883)
        subprocess.run(["docker", "start", self.ground.container], check=True, capture_output=True)
        until(lambda: self._login("iotops", self.passwords["iotops"]) is not None)

    def _passwd(self, user: str, password: str) -> None:
        """Set a password with the image's own program; it goes by standard input."""
        folder = self.ground.folder / "secrets"
        (folder / "passwd").touch(mode=0o600)
        subprocess.run(
            [
                *("docker", "run", "--rm", "--interactive", "--network", "none"),
                *("--volume", f"{folder}:/secrets", "--entrypoint", "mosquitto_passwd"),
                *(self.ground.image, "/secrets/passwd", user),
            ],
            input=f"{password}\n{password}\n",
            text=True,
            check=True,
            capture_output=True,
        )

    def _client(self, user: str, session: str = "") -> Connected:
        return Connected(self.ground.port(1883), user, self.passwords[user], session)

    def _login(self, user: str, password: str) -> int | None:
        """The reason code of a login: 0 = let in, 135 = not authorised; None = nobody there."""
        try:
            with Connected(self.ground.port(1883), user, password) as client:
                return client.code
        except OSError:
            return None

    def _logins(self) -> dict[str, int | None]:
        return {
            **{user: self._login(user, password) for user, password in self.passwords.items()},
            "sensor, wrong password": self._login("sensor", "wrong"),
            "": self._login("", ""),
        }

    def _retained(self) -> dict[str, bytes]:
        """Everything retained: what comes before our own message, published after subscribing."""
        fence = f"fence/{secrets.token_hex(8)}"
        with self._client("iotops") as client:
            client.subscribe("#", 0)
            client.publish(fence, b"here", retain=False)
            client.turn_until(lambda: (fence, False) in client.heard)
            return {
                topic: payload for (topic, retained), payload in client.heard.items() if retained
            }

    def _waiting(self) -> bytes | None:
        """The message that waits for the valve; it is not acknowledged and so waits on."""
        with self._client("sensor", VALVE) as client:
            if not client.known:
                return None
            client.turn_until(lambda: ("valve/garden", False) in client.heard)
            return client.heard["valve/garden", False]


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the broker does."""
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


class DynamicKind(Kind):
    """Users, a group and a role kept by the dynamic security plugin, made by `mosquitto_ctrl`."""

    variant = "dynamic-security"
    file = "secrets/dynamic-security.json"

    def configuration(self) -> str:
        made = plugin(self.ground.image, "dynamic_security")
        return DYNAMIC.format(plugin=made, file=self.file)

    def make_users(self) -> None:
        """Make the file with its administrator, which is also who iotops logs in as."""
        path = self.ground.folder / self.file
        subprocess.run(
            [
                *("docker", "run", "--rm", "--interactive", "--network", "none"),
                *("--volume", f"{path.parent}:/secrets", "--entrypoint", "mosquitto_ctrl"),
                *(self.ground.image, "dynsec", "init", f"/secrets/{path.name}", "iotops"),
            ],
            input="{0}\n{0}\n".format(self.passwords["iotops"]),
            text=True,
            check=True,
            capture_output=True,
        )
        os.chown(path, 1883, 1883)

    def seed(self) -> Answers:
        self.dynsec("createRole", "devices")
        for access in ("publishClientSend", "publishClientReceive", "subscribePattern"):
            self.dynsec("addRoleACL", "devices", access, "#", "allow", "1")
        self.dynsec("createGroup", "house")
        self.dynsec("addGroupRole", "house", "devices")
        self.dynsec("createClient", "sensor", "-p", self.passwords["sensor"])
        for user in self.passwords:
            self.dynsec("addGroupClient", "house", user)
        answers = super().seed()
        self.described = self._describe()
        assert all(word in self.described for word in ("sensor", "house", "devices", "subscribe"))
        return answers

    def check(self, answers: Answers) -> list[str]:
        found = super().check(answers)
        if not found and (now := self._describe()) != self.described:
            found.append(f"dynamic security tells {now!r}, told {self.described!r}")
        return found

    def sabotage(self) -> None:
        """Give one client another password: messages, groups and roles are there."""
        self.dynsec("setClientPassword", "sensor", "another")

    def dynsec(self, *words: str) -> str:
        """Ask the running broker's plugin by the image's own program."""
        asked = subprocess.run(
            [
                *("docker", "exec", self.ground.container, "mosquitto_ctrl"),
                *("-u", "iotops", "-P", self.passwords["iotops"], "dynsec", *words),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked.returncode == 0 and "rror" not in asked.stdout + asked.stderr, asked
        return asked.stdout

    def _describe(self) -> str:
        return "".join(
            self.dynsec(*words)
            for words in (
                ("getClient", "sensor"),
                ("getGroup", "house"),
                ("getRole", "devices"),
                ("getDefaultACLAccess",),
            )
        )


class DynamicInDataKind(DynamicKind):
    """The same where many people keep it: beside the database."""

    variant = "dynamic-security-in-data"
    lines = ("mosquitto-2.1",)
    file = "data/dynamic-security.json"


class SqliteKind(Kind):
    """Messages kept by the SQLite plugin of 2.1, and its HTTP API open beside the MQTT listener."""

    variant = "sqlite"
    lines = ("mosquitto-2.1",)
    moving = ("data/mosquitto.sqlite3*",)

    def configuration(self) -> str:
        return SQLITE.format(plugin=plugin(self.ground.image, "persist_sqlite"))

    def seed(self) -> Answers:
        answers = super().seed()
        until(lambda: self.stored("retains") == RETAINED and self.stored("client_msgs") == 1)
        return answers

    def stored(self, table: str) -> int:
        """Count the rows that the plugin has committed to a table."""
        database = self.ground.folder / "data" / "mosquitto.sqlite3"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as link:
            found: int = link.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return found


KINDS = (Kind, DynamicKind, DynamicInDataKind, SqliteKind)


class Connected:
    """An MQTT client that acknowledges nothing, turned by hand.

    Attributes:
        code: how the login was answered. known: the broker remembered the session.
        heard: payloads by topic and retain flag.
    """

    def __init__(self, port: int, user: str, password: str, session: str = "") -> None:
        self.code: int | None = None
        self.known = False
        self.heard: dict[tuple[str, bool], bytes] = {}
        self._done: set[int | None] = set()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=session,
            clean_session=not session,
            manual_ack=True,
        )
        if user:
            self._client.username_pw_set(user, password)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_publish = lambda client, data, mid, reason, more: self._done.add(mid)
        self._client.on_subscribe = lambda client, data, mid, reason, more: self._done.add(mid)
        self._client.connect("127.0.0.1", port)
        self.turn_until(lambda: self.code is not None)

    def __enter__(self) -> Connected:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Publish once for certain."""
        mid = self._client.publish(topic, payload, qos=1, retain=retain).mid
        self.turn_until(lambda: mid in self._done)

    def subscribe(self, topic: str, qos: int) -> None:
        """Subscribe and wait for the broker's word."""
        _, mid = self._client.subscribe(topic, qos)
        self.turn_until(lambda: mid in self._done)

    def turn_until(self, done: Callable[[], bool]) -> None:
        """Do the client's work until something has happened."""
        ends = time.monotonic() + 20
        while not done():
            if self._client.loop(0.5) != mqtt.MQTT_ERR_SUCCESS and not done():
                raise ConnectionError("the broker hung up")
            assert time.monotonic() < ends, "the broker did not answer"

    def _on_connect(
        self,
        client: mqtt.Client,
        data: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        more: object,
    ) -> None:
        self.code, self.known = reason.value, flags.session_present

    def _on_message(self, client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        self.heard[message.topic, message.retain] = bytes(message.payload)
