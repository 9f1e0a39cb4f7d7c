"""The demo's own clients: plain HTTP and MQTT, nothing that the product uses.

They raise the product's error classes, so that a failure reads like any other. Not here: what is
asked, and what an answer means.
"""

from __future__ import annotations

import csv
import io
import json
import queue
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from iotops.errors import Refused, ServerError, Unreachable

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

T = TypeVar("T")

ANSWER_LIMIT = 30.0
"""Seconds for one answer."""
ARRIVAL_LIMIT = 60.0
"""Seconds for something that takes its way through several services."""


def wait_until(check: Callable[[], bool], what: str, limit: float = ARRIVAL_LIMIT) -> None:
    """Wait for a condition.

    Raises:
        ServerError: it was not met within the limit (seconds).
    """
    ends = time.monotonic() + limit
    while not check():
        if time.monotonic() > ends:
            raise ServerError(f"waited {limit:.0f} s in vain: {what}")
        time.sleep(0.1)


class Web:
    """Plain HTTP to one server.

    Args:
        name: for messages.
        url: its address.
        authorization: value of the header; empty = none is sent. Never shown.
    """

    def __init__(self, name: str, url: str, authorization: str = "") -> None:
        self.name = name
        self.url = url
        self._authorization = authorization

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        """Make one request.

        Args:
            body: text is sent as it is, everything else as JSON; None = nothing.

        Raises:
            Unreachable: no answer. Refused: 401 or 403. ServerError: any other refusal.
        """
        data = None
        sent = dict(headers or {})
        if body is not None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            kind = "text/plain; charset=utf-8" if isinstance(body, str) else "application/json"
            sent.setdefault("Content-Type", kind)
        if self._authorization:
            sent["Authorization"] = self._authorization
        address = self.url + path + ("?" + urlencode(query) if query else "")
        request = urllib.request.Request(address, data=data, method=method, headers=sent)
        what = f"{self.name}: {method} {path}"
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_LIMIT) as answer:
                found: bytes = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read(300).decode("utf-8", "replace").strip()
            kind_of = Refused if error.code in (401, 403) else ServerError
            raise kind_of(f"{what}: {error.code} {said}") from error
        except OSError as error:  # URLError among them
            raise Unreachable(f"{what}: {error}") from error
        return found

    def json(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> object:
        """Make one request and decode its answer; raises as `call`."""
        raw = self.call(method, path, body, headers=headers, query=query)
        try:
            found: object = json.loads(raw) if raw else None
        except ValueError as error:
            raise ServerError(f"{self.name}: {method} {path}: the answer is not JSON") from error
        return found

    def wait(self, path: str) -> None:
        """Wait until it answers at all."""

        def answers() -> bool:
            try:
                self.call("GET", path)
            except ServerError:
                return False
            return True

        wait_until(answers, f"{self.name} does not answer at {self.url}")


def table(value: object) -> dict[str, object]:
    """Give a JSON object, or an empty one."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> Iterator[dict[str, object]]:
    """Yield the objects of a JSON array."""
    for one in value if isinstance(value, list) else ():
        yield table(one)


class Influx(Web):
    """InfluxDB's API with one token."""

    def __init__(self, url: str, token: str, org: str) -> None:
        super().__init__("InfluxDB", url, f"Token {token}")
        self.org = org

    def flux(self, query: str) -> list[dict[str, str]]:
        """Run a query and give its rows, whatever the tables."""
        body = {"query": query, "dialect": {"annotations": []}}
        answer = self.call("POST", "/api/v2/query", body, query={"org": self.org}).decode()
        found: list[dict[str, str]] = []
        for block in answer.replace("\r\n", "\n").split("\n\n"):
            found += csv.DictReader(io.StringIO(block))
        return found


class NodeRed(Web):
    """Node-RED's admin API, logged in with name and password."""

    def __init__(self, url: str, password: str) -> None:
        super().__init__("Node-RED", url)
        login = {
            "client_id": "node-red-admin",
            "grant_type": "password",
            "scope": "*",
            "username": "admin",
            "password": password,
        }
        token = table(self.json("POST", "/auth/token", login)).get("access_token")
        self._authorization = f"Bearer {token}"


class Mqtt:
    """One MQTT connection on loopback.

    Args:
        user: empty = anonymous.

    Raises (on entering):
        Refused: the broker does not accept the login. Unreachable: no answer.
    """

    def __init__(self, port: int, user: str = "", password: str = "") -> None:
        self.port = port
        self.user = user
        self._password = password
        self._client: Client | None = None
        self._codes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[MQTTMessage] = queue.SimpleQueue()

    def __enter__(self) -> Mqtt:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        name = f"demo-{secrets.token_hex(6)}"
        # Without it a refused login waits a second for its next try.
        client = Client(CallbackAPIVersion.VERSION2, name, reconnect_on_failure=False)
        if self.user:
            client.username_pw_set(self.user, self._password)
        client.on_connect = lambda _client, _data, _flags, code, _properties: self._codes.put(
            "refused" if code.is_failure else ""
        )
        client.on_message = lambda _client, _data, message: self._messages.put(message)
        self._client = client
        who = f"the broker, as {self.user or 'nobody'}"
        try:
            client.connect("127.0.0.1", self.port, keepalive=30)
            client.loop_start()
            answer = self._codes.get(timeout=ANSWER_LIMIT)
        except (OSError, queue.Empty) as error:
            self.close()
            raise Unreachable(f"{who}: {error or 'no answer'}") from error
        if answer:
            self.close()
            raise Refused(f"{who}: the login is refused")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None

    def publish(self, topic: str, payload: str, *, retain: bool = False) -> None:
        """Publish one message and wait until the broker has taken it."""
        assert self._client is not None
        sent = self._client.publish(topic, payload, qos=1, retain=retain)
        try:
            sent.wait_for_publish(ANSWER_LIMIT)
        except (RuntimeError, ValueError) as error:
            raise ServerError(f"the broker does not take messages from {self.user}") from error

    def retained(self) -> dict[str, str]:
        """Read every retained message that this user may read: payload by topic.

        A message of our own, sent after the subscription, comes behind the retained ones.
        """
        assert self._client is not None
        mark = f"demo/{secrets.token_hex(6)}"
        self._client.subscribe("#", qos=1)
        self.publish(mark, "end")
        found: dict[str, str] = {}
        while True:
            try:
                message = self._messages.get(timeout=ANSWER_LIMIT)
            except queue.Empty as error:
                raise ServerError("the broker does not deliver messages") from error
            if message.topic == mark:
                return found
            if message.retain:
                found[message.topic] = message.payload.decode("utf-8", "replace")
