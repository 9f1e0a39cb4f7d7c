"""What Compose and the engine say is read the same from every version seen; nothing leaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from iotops.clients import composemodel
from iotops.clients.composemodel import Mount, Port
from iotops.errors import StackError

pytestmark = pytest.mark.unit

DECLARED: dict[str, object] = {
    "name": "hub",
    "networks": {"default": {"name": "hub_default", "ipam": {}}, "inside": None},
    "volumes": {"data": {"name": "hub_data"}},
    "services": {
        "a": {
            "image": "eclipse-mosquitto:2.0.22",
            "container_name": "broker",
            "user": "1883:1883",
            "restart": "unless-stopped",
            "environment": {"PW": "pa$$word$$$$", "N": None, "COUNT": 3, "ON": True},
            "healthcheck": {"test": ["CMD", "true"]},
            "ports": [
                {"mode": "ingress", "host_ip": "127.0.0.1", "target": 80, "published": "8080"},
                {"mode": "ingress", "host_ip": "0.0.0.0", "target": 81, "published": 8081},
                {"mode": "ingress", "target": 82, "protocol": "udp"},
                {"mode": "ingress", "target": 83, "published": "9000-9005", "protocol": "tcp"},
            ],
            "volumes": [
                {
                    "type": "bind",
                    "source": "/a",
                    "target": "/x",
                    "bind": {"create_host_path": True},
                },
                {"type": "bind", "source": "/b", "target": "/y", "read_only": True, "bind": {}},
                {"type": "bind", "source": "/c", "target": "/z"},
                {"type": "volume", "source": "data", "target": "/d", "volume": {}},
                {"type": "tmpfs", "target": "/t"},
            ],
        },
        "b": {"image": "x", "restart": "no", "healthcheck": {"disable": True}, "ports": None},
        "c": {"build": {"context": "."}, "healthcheck": {"test": ["NONE"]}},
    },
}


def test_a_service_as_declared() -> None:
    read = composemodel.model(DECLARED)
    assert read.project == "hub"
    assert read.networks == {"default": "hub_default", "inside": "inside"}
    one = read.services["a"]
    assert (one.name, one.image, one.container_name) == ("a", "eclipse-mosquitto:2.0.22", "broker")
    assert (one.user, one.restart, one.has_health_check) == ("1883:1883", "unless-stopped", True)
    assert one.environment == {"PW": "pa$word$$", "COUNT": "3", "ON": "true"}
    assert one.ports == (
        Port("127.0.0.1", 8080, 80, "tcp"),
        Port("", 8081, 81, "tcp"),
        Port("", 0, 82, "udp"),
        Port("", 0, 83, "tcp"),
    )
    assert one.mounts == (
        Mount(Path("/a"), "/x", "bind", False, True),
        Mount(Path("/b"), "/y", "bind", True, False),
        Mount(Path("/c"), "/z", "bind", False, True),
        Mount(None, "/d", "volume", False, False, "hub_data"),
        Mount(None, "/t", "tmpfs", False, False),
    )
    assert "pa$word" not in repr(read)


def test_what_a_service_depends_on() -> None:
    after = {
        "db": {"condition": "service_healthy", "restart": True, "required": True},
        "log": {"condition": "service_started", "required": False},
    }
    read = composemodel.model({"name": "x", "services": {"a": {"depends_on": after}, "b": {}}})
    assert (read.services["a"].after, read.services["a"].follows) == (("db", "log"), ("db",))
    assert (read.services["b"].after, read.services["b"].follows) == ((), ())
    joined = {"network_mode": "service:vpn", "pid": "host", "ipc": "service:db"}
    read = composemodel.model({"name": "x", "services": {"a": joined}})
    assert read.services["a"].joins == ("vpn", "db")


def test_no_health_check_and_no_restart_have_more_than_one_spelling() -> None:
    services = composemodel.model(DECLARED).services
    assert not services["b"].has_health_check
    assert not services["c"].has_health_check
    assert services["b"].restart == services["c"].restart == ""
    assert services["c"].image == ""


@pytest.mark.parametrize("document", [None, [], {}, {"services": None}, {"services": []}, "x"])
def test_something_else_than_a_project(document: object) -> None:
    with pytest.raises(StackError, match="no services"):
        composemodel.model(document)


def test_a_container_as_inspected() -> None:
    image: dict[str, object] = {
        "Os": "linux",
        "Architecture": "arm64",
        "Variant": "v8",
        "RepoDigests": ["eclipse-mosquitto@sha256:aa"],
    }
    document: dict[str, object] = {
        "Id": "c1",
        "Name": "/hub-a-1",
        "RestartCount": 2,
        "Image": "sha256:i",
        "State": {
            "Status": "running",
            "ExitCode": 0,
            "OOMKilled": True,
            "StartedAt": "2026-01-01T00:00:00Z",
            "Health": {"Status": "starting"},
        },
        "Config": {
            "Image": "eclipse-mosquitto:2.0.22",
            "Labels": {"com.docker.compose.service": "a"},
        },
        "HostConfig": {"Binds": ["/a:/x:rw", "data:/d"]},
        "Mounts": [
            {"Type": "volume", "Name": "data", "Source": "/v/data", "Destination": "/d"},
            {"Type": "bind", "Source": "/a", "Destination": "/x", "RW": True},
            {"Type": "bind", "Source": "/b", "Destination": "/y", "RW": False},
        ],
    }
    one = composemodel.container(document, image)
    assert (one.service, one.name, one.id) == ("a", "hub-a-1", "c1")
    assert (one.state, one.health, one.restart_count, one.oom_killed) == (
        "running",
        "starting",
        2,
        True,
    )
    assert one.platform == "linux/arm64/v8"
    assert one.digests == ("eclipse-mosquitto@sha256:aa",)
    assert one.mounts == (
        Mount(None, "/d", "volume", False, False, "data"),
        Mount(Path("/a"), "/x", "bind", False, True),
        Mount(Path("/b"), "/y", "bind", True, False),
    )
    removed = composemodel.container(document, {})
    assert (removed.platform, removed.digests, removed.image_id) == ("", (), "sha256:i")


def test_json_comes_whole_or_line_by_line() -> None:
    assert composemodel.decode('[{"a": 1}]', "x") == [{"a": 1}]
    assert composemodel.decode('{"a": 1}\n{"a": 2}\n', "x") == [{"a": 1}, {"a": 2}]
    assert composemodel.decode("", "x") == []
    with pytest.raises(StackError, match="looking: the answer is not JSON"):
        composemodel.decode("<html>", "looking")


@pytest.mark.parametrize(
    "said",
    [
        'failed to read /hub/.env: line 2: unexpected character "\'" in variable name "s3cret"',
        'failed to read /hub/.env: line 2: unterminated quoted value "s3cret',
        "Invalid hostPort: s3cret-value",
        'time="x" level=warning msg="The \\"s3cret\\" variable is not set."\nboom',
    ],
)
def test_words_of_compose_are_repeated_without_values(said: str) -> None:
    hidden = composemodel.values_of("A=1\nPW='s3cret-value'\n")
    words = composemodel.reason(said, hidden)
    assert "s3cret" not in words
    assert words != "it gave no reason"


def test_paths_stay_readable_unless_their_name_says_secret() -> None:
    text = 'DATA=/mnt/iot-data\nTOKEN=/abcd==\nexport PASS="pa$$ss word" # x\n#OLD=commented\n'
    values = composemodel.values_of(text)
    assert "/mnt/iot-data" not in values
    assert {"/abcd==", "pa$ss word"} <= set(values)
    assert "commented" not in values


def test_progress_is_no_reason() -> None:
    said = " Network x_default  Created\n Container x-a-1  Starting\nError response: no\n"
    assert composemodel.reason(said) == "Error response: no"
    assert composemodel.reason(" Container x-a-1  Started\n") == "it gave no reason"


def test_what_a_project_needs_of_this_machine() -> None:
    document: dict[str, object] = {
        "name": "hub",
        "secrets": {"s": {"name": "hub_s", "file": "/hub/s"}, "e": {"environment": "X"}},
        "configs": {"c": {"file": "/hub/c"}},
        "services": {
            "a": {"build": {"context": "/hub/a"}, "profiles": ["x", "y"], "network_mode": "host"},
            "b": {"image": "x", "build": {"context": "https://example.org/x.git"}},
        },
    }
    read = composemodel.model(document)
    assert read.files == (Path("/hub/s"), Path("/hub/c"))
    a, b = read.services["a"], read.services["b"]
    assert (a.build, a.profiles) == (Path("/hub/a"), ("x", "y"))
    assert (b.build, b.profiles) == (None, ())


def test_where_a_path_of_a_container_lies_on_this_machine() -> None:
    mounts = [
        {"type": "bind", "source": "/srv/conf", "target": "/etc/x"},
        {"type": "bind", "source": "/srv/one.conf", "target": "/etc/x/one.conf"},
        {"type": "volume", "source": "v", "target": "/v"},
    ]
    read = composemodel.model({"services": {"a": {"volumes": mounts}}}).services["a"]
    assert composemodel.inside_here(read, "/etc/x/two.conf") == Path("/srv/conf/two.conf")
    assert composemodel.inside_here(read, "/etc/x/one.conf") == Path("/srv/one.conf")
    assert (
        composemodel.inside_here(read, "/v/file") is None
        and composemodel.inside_here(read, "/elsewhere") is None
    )


def test_files_given_by_secrets_and_configs() -> None:
    document = {
        "services": {
            "a": {
                "image": "x",
                "secrets": [{"source": "users", "target": "/run/secrets/users"}, {"source": "env"}],
                "configs": [{"source": "conf", "target": "/mosquitto/config/mosquitto.conf"}],
            },
            "b": {"image": "x"},
        },
        "secrets": {"users": {"file": "/hub/passwd"}, "env": {"environment": "SECRET"}},
        "configs": {"conf": {"file": "/hub/mosquitto.conf"}},
    }
    read = composemodel.elsewhere(composemodel.model(document), {Path("/hub"): Path("/view")})
    assert [(str(one.source), one.target) for one in read.services["a"].given] == [
        ("/view/passwd", "/run/secrets/users"),
        ("/view/mosquitto.conf", "/mosquitto/config/mosquitto.conf"),
    ]
    assert read.services["b"].given == ()
    inside = composemodel.inside_here(read.services["a"], "/mosquitto/config/mosquitto.conf")
    assert inside == Path("/view/mosquitto.conf")
