"""What is read out of a trial: a broker's words, node's answer; and never a value with it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from iotops.clients import mosquittotrial, noderedtrial
from iotops.clients.composemodel import Port, ServiceModel, published

pytestmark = pytest.mark.unit

MODEL = ServiceModel("nodered", "nodered/node-red:4.1", "", (), (), {}, "", True, "")

# As 2.0.21 and 2.1.2 wrote them.
LOGS = {
    '1795791974: Error: Unknown configuration variable "hunter2".\n'
    "1795791974: Error found at /mosquitto/config/mosquitto.conf:2.\n": (
        'Unknown configuration variable "..."; Error found at /mosquitto/config/mosquitto.conf:2'
    ),
    "1795791983: Error: Unknown configuration variable 'hunter2'.\n"
    "1795791983: Error found at /c/mosquitto.conf:2.\n"
    "1795791983: mosquitto version 2.1.2 terminating\n": (
        "Unknown configuration variable '...'; Error found at /c/mosquitto.conf:2"
    ),
    '1795791976: Error: Invalid line in acl_file "/c/acl": hunter2.\n'
    '1795791976: Error opening acl file "/c/acl".\n': (
        'Invalid line in acl_file "/c/acl"; Error opening acl file "/c/acl"'
    ),
    '1795791985: password-file: Error: Unable to open pwfile "/c/nope".\n': (
        'Unable to open pwfile "/c/nope"'
    ),
    "1795791976: Error: Invalid password hash for user hunter2, removing entry.\n": (
        "Invalid password hash for user ..."
    ),
    "1795791975: Opening ipv4 listen socket on port 1883.\n"
    "1795791975: Error: Address already in use\n": "Address already in use",
    "1795791976: Warning: File /c/acl has world readable permissions. Error ahead.\n": "",
}


@pytest.mark.parametrize(("log", "words"), LOGS.items())
def test_a_brokers_words(log: str, words: str) -> None:
    assert mosquittotrial.words(log) == words


@pytest.mark.parametrize(
    ("lines", "port"),
    [
        ([("listener", "1883")], "1883"),
        ([("port", "1884")], "1884"),
        ([("listener", "8883"), ("certfile", "/c"), ("listener", "1883 0.0.0.0")], "1883"),
        ([("listener", "9001"), ("protocol", "websockets")], ""),
        ([("listener", "1883 192.168.1.5")], ""),
        ([("listener", "0 /run/mosquitto.sock")], ""),
        ([("allow_anonymous", "true")], ""),
    ],
)
def test_the_port_that_can_be_asked(lines: list[tuple[str, str]], port: str) -> None:
    assert mosquittotrial.port(lines) == port


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ((), "/data/settings.js"),
        (("--settings", "/config/settings.js"), "/config/settings.js"),
        (("-s", "/a.js", "flows.json"), "/a.js"),
        (("--settings=/b.js",), "/b.js"),
        (("--settings",), "/data/settings.js"),
    ],
)
def test_which_settings_are_loaded(command: tuple[str, ...], path: str) -> None:
    assert noderedtrial.path_of(replace(MODEL, command=command)) == path


def test_settings_that_were_loaded() -> None:
    told = {"object": True, "admin": True, "port": "1880", "secret": "hunter2"}
    read = noderedtrial.read("/s.js", json.dumps(told))
    assert (read.failure, read.admin, read.port, read.plain) == ("", True, 1880, False)
    assert read.secret is not None and read.secret.reveal() == "hunter2"
    assert "hunter2" not in repr(read)
    assert noderedtrial.read("/s.js", '{"object": true, "secret": false}').plain
    none = noderedtrial.read("/s.js", '{"object": true}')
    assert (none.secret, none.plain, none.admin, none.port) == (None, False, False, 0)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"failed": True, "kind": "SyntaxError", "line": 3}, "/s.js, line 3: it is not JavaScript"),
        ({"failed": True, "kind": "ReferenceError"}, "/s.js: it uses a name that is not defined"),
        ({"failed": True, "kind": "Error", "words": "X is not set"}, "/s.js: X is not set"),
        ({"failed": True, "code": "MODULE_NOT_FOUND"}, "is not there"),
        ({"object": False}, "/s.js exports no object"),
        ([], "cannot be read"),
    ],
)
def test_settings_that_were_not(told: object, words: str) -> None:
    assert words in noderedtrial.read("/s.js", json.dumps(told)).failure


def test_published_ports_as_the_engine_lists_them() -> None:
    text = "0.0.0.0:1883->1883/tcp, [::]:1883->1883/tcp, :::53->53/udp, 127.0.0.1:80-81->90-91/tcp"
    assert published(text + ", 9001/tcp") == (
        Port("", 1883, 1883, "tcp"),
        Port("", 1883, 1883, "tcp"),
        Port("", 53, 53, "udp"),
        Port("127.0.0.1", 80, 90, "tcp"),
        Port("127.0.0.1", 81, 91, "tcp"),
    )
    assert published("") == ()
