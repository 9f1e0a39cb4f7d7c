"""The door to Docker, with a real engine and Compose, on tiny projects of their own names."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from iotops.clients import enginelook
from iotops.clients.compose import ComposeStack, Mount, Port
from iotops.demo.ground import free_port
from iotops.errors import ProgramMissing, StackError, TimedOut
from tests.conftest import need
from tests.support.composed import Scratch, docker

pytestmark = pytest.mark.clients

SLEEPER = """
  {name}:
    image: IMAGE
    command: ["sleep", "600"]
    stop_signal: SIGKILL
"""

HEALTHY = """
    healthcheck: {test: ["CMD", "true"], interval: 200ms}
"""


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    need("docker")
    need("compose")
    need("image base")
    folder = tmp_path / "hub"
    folder.mkdir()
    project = Scratch(folder)
    try:
        yield project
    finally:
        project.remove()


def sleeper(name: str) -> str:
    return SLEEPER.format(name=name)


def await_that(true: Callable[[], bool], what: str, limit: float = 30) -> None:
    until = time.monotonic() + limit
    while not true():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.05)


# ---- the project as declared -----------------------------------------------------------------


def test_the_model_is_what_compose_understands(scratch: Scratch) -> None:
    scratch.write(
        sleeper("a")
        + """
    container_name: broker-x
    user: "1883:1883"
    restart: unless-stopped
    environment: {PW: "${PW:?set it}", RAW: "x$$y"}
    ports: ["127.0.0.1:18095:80", "18096:81/udp"]
    volumes:
      - ./short:/short
      - type: bind
        source: ./safe
        target: /safe
        read_only: true
        bind: {create_host_path: false}
      - data:/data
"""
        + HEALTHY,
        rest="volumes: {data: {}}\n",
    )
    (scratch.folder / ".env").write_text("PW='pa$word'\n")
    model = scratch.stack().model()
    assert model.project == scratch.name
    assert model.networks == {"default": f"{scratch.name}_default"}
    one = model.services["a"]
    assert one.image == scratch.image
    assert (one.container_name, one.user, one.restart) == (
        "broker-x",
        "1883:1883",
        "unless-stopped",
    )
    assert one.environment == {"PW": "pa$word", "RAW": "x$y"}
    assert one.has_health_check
    assert one.ports == (Port("127.0.0.1", 18095, 80, "tcp"), Port("", 18096, 81, "udp"))
    assert one.mounts == (
        Mount(scratch.folder / "short", "/short", "bind", False, True),
        Mount(scratch.folder / "safe", "/safe", "bind", True, False),
        Mount(None, "/data", "volume", False, False, f"{scratch.name}_data"),
    )


def test_the_model_is_read_once(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    stack = scratch.stack()
    first = stack.model()
    scratch.write(sleeper("b"))
    assert stack.model() is first
    assert list(scratch.stack().model().services) == ["b"]


def test_the_override_file_counts_unless_files_are_named(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    scratch.write(sleeper("b"), file="docker-compose.override.yaml")
    assert list(scratch.stack().model().services) == ["a", "b"]
    alone = ComposeStack(scratch.folder, files=[scratch.folder / "docker-compose.yaml"])
    assert list(alone.model().services) == ["a"]


def test_the_shell_does_not_beat_the_env_file(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch.write(
        sleeper("a") + "    environment: {A: '${DOCKER_INFLUXDB_INIT_PASSWORD}', B: '${TZ}'}\n"
    )
    (scratch.folder / ".env").write_text("DOCKER_INFLUXDB_INIT_PASSWORD=right\nTZ=Europe/Berlin\n")
    monkeypatch.setenv("DOCKER_INFLUXDB_INIT_PASSWORD", "wrong")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "wrong")
    monkeypatch.setenv("COMPOSE_FILE", "/nowhere.yaml")
    monkeypatch.setenv("COMPOSE_PROFILES", "wrong")
    model = scratch.stack().model()
    assert model.project == scratch.name
    assert model.services["a"].environment == {"A": "right", "B": "Europe/Berlin"}
    given = ComposeStack(scratch.folder, environment={"TZ": "Asia/Tokyo"})
    assert given.model().services["a"].environment["B"] == "Asia/Tokyo"


@pytest.mark.parametrize(
    ("compose", "override", "env"),
    [
        ("name: plain-name", "", ""),
        ('name: "quoted"', "", ""),
        ("name: first", "name: second", ""),
        ("name: ${WHAT}", "", "WHAT=filled-in"),
        ("name: first", "", "COMPOSE_PROJECT_NAME=from-env"),
        ("", "", ""),
    ],
)
def test_the_project_name_is_found_as_compose_finds_it(
    scratch: Scratch, compose: str, override: str, env: str
) -> None:
    body = "\nservices: {a: {image: x}}\n"
    (scratch.folder / "docker-compose.yaml").write_text(compose + body)
    if override:
        (scratch.folder / "docker-compose.override.yaml").write_text(override + body)
    (scratch.folder / ".env").write_text(env + "\n")
    expected = scratch.stack().model().project
    assert scratch.stack().project == expected
    assert ComposeStack(scratch.folder, project="given").project == "given"
    assert ComposeStack(scratch.folder, project="given").model().project == "given"


# ---- what is wrong with a project ------------------------------------------------------------


def test_a_required_variable_is_named(scratch: Scratch) -> None:
    scratch.write(sleeper("a") + "    environment: {PW: '${PW:?set it in .env}'}\n")
    with pytest.raises(StackError, match=r"PW is missing a value: set it in \.env") as caught:
        scratch.stack().model()
    assert str(scratch.folder) in caught.value.message


def test_broken_yaml_is_told_with_its_line(scratch: Scratch) -> None:
    scratch.write(sleeper("a") + "   wrong: [indent\n")
    with pytest.raises(StackError, match="yaml: line"):
        scratch.stack().model()


def test_no_compose_file_is_not_the_one_above(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    inside = scratch.folder / "mosquitto"
    inside.mkdir()
    with pytest.raises(StackError, match=r"no docker-compose\.yaml in .*mosquitto"):
        ComposeStack(inside).model()
    with pytest.raises(StackError, match="does not exist"):
        ComposeStack(scratch.folder / "gone").model()
    with pytest.raises(StackError, match="there is no file"):
        ComposeStack(scratch.folder, files=[scratch.folder / "other.yaml"]).model()


@pytest.mark.parametrize(
    "env",
    [
        "PW='it''s-s3cret'\n",
        'PW="s3cret without end\n',
        "PW=s3cret-port\n",
        "s3cret here\nPW=80\n",
    ],
)
def test_no_failure_repeats_a_secret(scratch: Scratch, env: str) -> None:
    scratch.write(sleeper("a") + "    ports: ['${PW}:80']\n")
    (scratch.folder / ".env").write_text(env)
    with pytest.raises(StackError) as caught:
        scratch.stack().model()
    assert "s3cret" not in caught.value.message + caught.value.hint
    assert "without end" not in caught.value.message


# ---- up, and what may come in between --------------------------------------------------------


def test_up_waits_until_healthy_and_containers_tell(scratch: Scratch) -> None:
    (scratch.folder / "short").mkdir()
    port = free_port()
    scratch.write(
        sleeper("a")
        + HEALTHY
        + f"    ports: ['127.0.0.1:{port}:80']\n    volumes: ['./short:/short:ro']\n"
        + sleeper("b")
    )
    stack = scratch.stack()
    assert stack.containers() == {}
    stack.up(wait=60)
    found = stack.containers()
    assert list(found) == ["a", "b"]
    one = found["a"]
    assert (one.service, one.state, one.health, one.restart_count) == ("a", "running", "healthy", 0)
    assert found["b"].health == ""
    assert one.id in scratch.ids()
    assert one.name == f"{scratch.name}-a-1"
    assert one.image == scratch.image
    assert one.image_id == docker("image", "inspect", "-f", "{{.Id}}", scratch.image).strip()
    form = "{{.Os}}/{{.Architecture}}"
    assert one.platform.startswith(docker("image", "inspect", "-f", form, scratch.image).strip())
    assert one.started_at.startswith("20")
    assert one.mounts == (Mount(scratch.folder / "short", "/short", "bind", True, True),)
    stack.up(wait=60)
    assert stack.containers()["a"].id == one.id


def test_up_of_one_leaves_the_others(scratch: Scratch) -> None:
    scratch.write(sleeper("a") + sleeper("b"))
    stack = scratch.stack()
    stack.create(["a"])
    assert list(stack.containers()) == ["a"]


def test_an_unhealthy_service_is_named(scratch: Scratch) -> None:
    scratch.write(
        sleeper("well")
        + HEALTHY
        + sleeper("sick")
        + "    healthcheck: {test: ['CMD', 'false'], interval: 200ms, retries: 1}\n"
    )
    with pytest.raises(StackError, match="sick is unhealthy") as caught:
        scratch.stack().up(wait=60)
    assert caught.value.services == ("sick",)
    assert "logs sick" in caught.value.hint


def test_a_service_that_stays_starting_is_named(scratch: Scratch) -> None:
    scratch.write(
        sleeper("slow") + "    healthcheck: {test: ['CMD', 'false'], start_period: 300s}\n"
    )
    began = time.monotonic()
    with pytest.raises(StackError, match="slow is starting") as caught:
        scratch.stack().up(wait=1)
    assert caught.value.services == ("slow",)
    assert time.monotonic() - began < 30


def test_a_service_that_ends_is_named_with_its_code(scratch: Scratch) -> None:
    scratch.write("  short:\n    image: IMAGE\n    command: ['sh', '-c', 'exit 7']\n")
    with pytest.raises(StackError, match="short ended with exit code 7") as caught:
        scratch.stack().up(wait=30)
    assert caught.value.services == ("short",)
    assert scratch.stack().containers()["short"].exit_code == 7


def test_a_crash_loop_without_health_check_shows_in_its_restarts(scratch: Scratch) -> None:
    scratch.write(
        "  loop:\n    image: IMAGE\n    command: ['sh', '-c', 'exit 3']\n    restart: always\n"
    )
    stack = scratch.stack()
    with suppress(StackError):  # Compose alone calls it healthy; seen early enough, we do too
        stack.up(wait=30)
    await_that(lambda: stack.containers()["loop"].restart_count >= 2, "the loop to restart")
    with pytest.raises(StackError) as caught:
        for _ in range(20):  # between two restarts it runs for a moment
            stack.up(wait=30)
    assert caught.value.services == ("loop",)
    assert "exit code 3" in caught.value.message


def test_a_missing_bind_source_is_not_made(scratch: Scratch) -> None:
    scratch.write(
        sleeper("a")
        + "    volumes: [{type: bind, source: ./gone, target: /x, bind: {create_host_path: false}}]"
    )
    stack = scratch.stack()
    with pytest.raises(StackError, match="bind source path does not exist") as caught:
        stack.up(wait=30)
    assert caught.value.services == ("a",)
    assert not (scratch.folder / "gone").exists()


def test_what_the_model_calls_unsafe_really_makes_the_folder(scratch: Scratch) -> None:
    scratch.write(sleeper("a") + "    volumes: ['./gone:/x']\n")
    stack = scratch.stack()
    assert stack.model().services["a"].mounts[0].creates_host_path
    stack.up(wait=30)
    assert (scratch.folder / "gone").is_dir()


def test_down_keeps_volumes(scratch: Scratch) -> None:
    scratch.write(sleeper("a") + "    volumes: ['data:/data']\n", rest="volumes: {data: {}}\n")
    stack = scratch.stack()
    stack.up(wait=30)
    stack.execute("a", ["sh", "-c", "echo kept >/data/file"])
    stack.down()
    assert scratch.ids() == []
    stack.up(wait=30)
    assert stack.execute("a", ["cat", "/data/file"]).out == "kept\n"


# ---- stop and start --------------------------------------------------------------------------


def test_what_the_owner_stopped_stays_stopped(scratch: Scratch) -> None:
    scratch.write(sleeper("a") + sleeper("b") + sleeper("owners"))
    stack = scratch.stack()
    stack.up(wait=30)
    before = stack.containers()
    docker("stop", "--time", "0", before["owners"].id)
    stack.stop(["b", "a"], grace=1)
    assert {one.state for one in stack.containers().values()} == {"exited"}
    stack.stop(["a"], grace=1)
    stack.start(["a", "b"])
    stack.start(["a"])
    stack.restart(["b"], grace=1)
    stack.up(["a"], wait=30)
    after = stack.containers()
    assert {name: one.state for name, one in after.items()} == {
        "a": "running",
        "b": "running",
        "owners": "exited",
    }
    assert {one.id for one in after.values()} == {one.id for one in before.values()}
    assert after["b"].started_at > before["b"].started_at


def test_stop_and_start_work_with_a_broken_compose_file(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    scratch.stack().up(wait=30)
    scratch.write(sleeper("a") + "   wrong: [indent\n")
    stack = scratch.stack()
    stack.stop(["a"], grace=1)
    assert stack.containers()["a"].state == "exited"
    stack.start(["a"])
    assert stack.containers()["a"].state == "running"


def test_a_grace_is_kept_and_ends(scratch: Scratch) -> None:
    scratch.write(
        "  a:\n    image: IMAGE\n    command: ['sh', '-c', \"trap '' TERM; sleep 600\"]\n"
    )
    stack = scratch.stack()
    stack.up(wait=30)
    began = time.monotonic()
    stack.stop(["a"], grace=2)
    assert 1.5 < time.monotonic() - began < 8  # the engine's own patience is 10 s
    assert stack.containers()["a"].exit_code == 137


def test_a_service_without_container_cannot_be_started(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    with pytest.raises(StackError, match=r"the service a of .* has no container") as caught:
        scratch.stack().start(["a"])
    assert caught.value.services == ("a",)


def test_a_start_that_fails_names_the_service(scratch: Scratch) -> None:
    (scratch.folder / "data").mkdir()
    scratch.write(
        sleeper("a")
        + "    volumes: [{type: bind, source: ./data, target: /x, bind: {create_host_path: false}}]"
    )
    stack = scratch.stack()
    stack.up(wait=30)
    stack.stop(["a"], grace=1)
    (scratch.folder / "data").rmdir()
    with pytest.raises(StackError, match="starting a: ") as caught:
        stack.start(["a"])
    assert caught.value.services == ("a",)
    assert not (scratch.folder / "data").exists()


# ---- programs inside -------------------------------------------------------------------------


def test_execute_passes_input_streams_and_code(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    stack = scratch.stack()
    stack.up(wait=30)
    ended = stack.execute(
        "a",
        ["sh", "-c", "cat; echo $A-$HOME; id -u; echo trouble >&2; exit 9"],
        stdin="hallo\nÄ\n",
        user="1000:1000",
        environment={"A": "x y", "HOME": "/somewhere"},
    )
    assert ended.code == 9
    assert ended.out == "hallo\nÄ\nx y-/somewhere\n1000\n"
    assert ended.err == "trouble"
    big = "0123456789abcdef" * 65536
    assert stack.execute("a", ["sh", "-c", "wc -c; cat"], stdin=big).out.strip() == str(len(big))
    assert stack.execute("a", ["cat"]).out == ""
    assert stack.execute("a", ["no-such-program"]).code in (126, 127)


def test_values_of_variables_are_on_no_command_line(scratch: Scratch) -> None:
    shared = scratch.folder / "shared"
    shared.mkdir()
    scratch.write(sleeper("a") + "    volumes: ['./shared:/shared']\n")
    stack = scratch.stack()
    stack.up(wait=30)
    wait = "touch /shared/here; while [ ! -e /shared/go ]; do sleep 0.05; done; echo $PW"
    outs: list[str] = []

    def inside() -> None:
        outs.append(stack.execute("a", ["sh", "-c", wait], environment={"PW": "s3cret-1"}).out)

    def beside() -> None:
        outs.append(
            stack.run_once(
                "a",
                ["sh", "-c", wait],
                environment={"PW": "s3cret-2"},
                mounts=[(shared, "/shared")],
            ).out
        )

    for target in (inside, beside):
        worker = threading.Thread(target=target)
        worker.start()
        await_that((shared / "here").exists, "the program to run")
        seen = command_lines()
        (shared / "go").touch()
        worker.join(60)
        assert any("/shared/go" in line for line in seen)
        assert not [line for line in seen if "s3cret" in line]
        for name in ("here", "go"):
            (shared / name).unlink()
    assert outs == ["s3cret-1\n", "s3cret-2\n"]


def command_lines() -> list[str]:
    """Give the command lines of all processes of this machine, those in containers included."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def test_execute_needs_a_running_container(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    stack = scratch.stack()
    with pytest.raises(StackError, match="it does not run"):
        stack.execute("a", ["true"])
    stack.up(wait=30)
    stack.stop(["a"], grace=1)
    with pytest.raises(StackError, match="it does not run") as caught:
        stack.execute("a", ["true"])
    assert caught.value.services == ("a",)


def test_execute_in_a_paused_container_is_an_error_not_a_result(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    stack = scratch.stack()
    stack.up(wait=30)
    docker("pause", stack.containers()["a"].id)
    with pytest.raises(StackError, match="paused"):
        stack.execute("a", ["true"])


def test_logs_are_the_last_lines_without_control_characters(scratch: Scratch) -> None:
    script = r"printf '1\n2\n\033[31mred\033[0m\007\n'; printf 'err\n' >&2; sleep 600"
    scratch.write(
        sleeper("a").replace(
            '["sleep", "600"]', f"['sh', '-c', \"{script}\"]".replace("\\", "\\\\")
        )
    )
    stack = scratch.stack()
    assert stack.logs("a") == ()
    stack.up(wait=30)
    await_that(lambda: len(stack.logs("a")) == 4, "four lines")
    assert set(stack.logs("a")) == {"1", "2", "red", "err"}
    assert len(stack.logs("a", 2)) == 2


def test_a_service_that_keeps_no_log(scratch: Scratch) -> None:
    scratch.write(sleeper("a") + "    logging: {driver: none}\n")
    stack = scratch.stack()
    stack.up(wait=30)
    assert stack.logs("a") == ()


# ---- one-shot containers ---------------------------------------------------------------------


def once(scratch: Scratch) -> list[str]:
    """Give the one-shot containers of this project that exist now."""
    label = f"label=iotops.once={scratch.name}"
    return docker("ps", "--all", "--quiet", "--filter", label).split()


def test_run_once_has_nothing_of_the_service_but_its_image(scratch: Scratch) -> None:
    given = scratch.folder / "given, with comma"
    given.mkdir()
    port = free_port()
    scratch.write(
        sleeper("a")
        + f"    ports: ['127.0.0.1:{port}:80']\n    volumes: ['data:/data']\n"
        + "    environment: {OF_SERVICE: '1'}\n",
        rest="volumes: {data: {}}\n",
    )
    stack = scratch.stack()
    stack.up(wait=30)
    ended = stack.run_once(
        "a",
        ["sh", "-c", "cat; ls -d /data; echo $OF_SERVICE$A; id -u; touch /in/made; exit 5"],
        stdin="fed\n",
        user=f"{os.getuid()}:{os.getgid()}",
        mounts=[(given, "/in")],
        environment={"A": "a"},
    )
    assert ended.code == 5
    assert ended.out == f"fed\na\n{os.getuid()}\n"
    assert "/data" in ended.err
    assert (given / "made").exists()
    assert once(scratch) == []
    assert set(stack.containers()) == {"a"}


def test_run_once_shows_without_letting_write(scratch: Scratch) -> None:
    (scratch.folder / "given").mkdir()
    (scratch.folder / "given" / "word").write_text("seen\n")
    scratch.write(sleeper("a"))
    ended = scratch.stack().run_once(
        "a",
        ["sh", "-c", "cat /in/word /one; echo x > /in/word; echo x > /one; touch /in/new"],
        shown=[(scratch.folder / "given", "/in"), (scratch.folder / "given" / "word", "/one")],
    )
    assert ended.out == "seen\nseen\n" and ended.code != 0
    assert (scratch.folder / "given" / "word").read_text() == "seen\n"
    assert [one.name for one in (scratch.folder / "given").iterdir()] == ["word"]


def test_run_once_takes_the_declared_image_and_pulls_none(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    scratch.stack().up(wait=30)
    scratch.write(sleeper("a").replace("IMAGE", "localhost:9/no/such:1"))
    stack = scratch.stack()
    assert stack.run_once("a", ["true"]).code == 0  # the one that its container runs
    with pytest.raises(StackError, match="No such image"):
        stack.run_once("a", ["true"], declared=True)
    assert once(scratch) == []


def test_run_once_without_network_reaches_nothing(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    stack = scratch.stack()
    look = ["sh", "-c", "ls /sys/class/net"]
    inside = stack.run_once("a", look, network=False)
    assert "eth0" not in inside.out.split()
    assert "eth0" in stack.run_once("a", look).out.split()
    assert scratch.ids() == []  # also works where the service has never been up


def test_run_once_leaves_nothing_when_it_cannot_start(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    stack = scratch.stack()
    with pytest.raises(StackError, match="no-such-program") as caught:
        stack.run_once("a", ["no-such-program"])
    assert "executable file not found" in caught.value.message
    with pytest.raises(StackError, match="bind source path does not exist"):
        stack.run_once("a", ["true"], mounts=[(scratch.folder / "gone", "/in")])
    assert not (scratch.folder / "gone").exists()
    with pytest.raises(StackError, match="no image for b"):
        stack.run_once("b", ["true"])
    assert once(scratch) == []


def test_run_once_ends_at_its_limit(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    began = time.monotonic()
    with pytest.raises(TimedOut, match="running sleep in a container of a's image"):
        scratch.stack().run_once("a", ["sleep", "600"], limit=2)
    assert time.monotonic() - began < 15
    assert once(scratch) == []


def test_run_once_is_removed_when_the_owner_interrupts(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))

    def interrupt() -> None:
        await_that(lambda: once(scratch) != [], "the container")
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        scratch.stack().run_once("a", ["sleep", "600"])
    watcher.join(60)
    assert once(scratch) == []


# ---- who mounts a folder ---------------------------------------------------------------------


def test_everyone_who_mounts_a_folder_is_found(scratch: Scratch) -> None:
    data = scratch.folder / "data"
    for name in ("mqtt/log", "other", "bound"):
        (data / name).mkdir(parents=True)
    beside = scratch.folder / "data2"
    beside.mkdir()
    scratch.write(
        sleeper("same")
        + "    volumes: ['.:/around', './data:/x', './data2:/y', '.:/zone']\n"
        + sleeper("below")
        + "    volumes: ['./data/mqtt/log:/x']\n"
        + sleeper("beside")
        + "    volumes: ['./data2:/x']\n"
        + sleeper("stopped")
        + "    volumes: ['./data:/x']\n"
        + sleeper("volume")
        + "    volumes: ['disguised:/x', 'plain:/y']\n",
        rest="volumes:\n  plain: {}\n  disguised:\n    driver: local\n"
        + f"    driver_opts: {{type: none, o: bind, device: '{data}/bound'}}\n",
    )
    stack = scratch.stack()
    stack.up(wait=30)
    stack.stop(["stopped"], grace=1)
    foreign = scratch.foreign("--volume", f"{data}/other:/x")
    around = scratch.foreign("--volume", f"{scratch.folder}:/x")
    found = {holder.service or holder.name: holder for holder in stack.mounting(data)}
    assert set(found) == {"same", "below", "volume", foreign, around}
    assert found["same"].name == f"{scratch.name}-same-1"
    assert found["same"].id == stack.containers()["same"].id
    assert found["below"].source == data / "mqtt" / "log"
    assert found[foreign].service == found[around].service == ""
    assert {name for name, holder in found.items() if holder.above} == {around}
    link = scratch.folder / "link"
    link.symlink_to(data / "mqtt")
    inside = {holder.service or holder.name for holder in stack.mounting(link)}
    assert inside == {"same", "below", around}


# ---- Docker itself ---------------------------------------------------------------------------


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_versions_are_those_of_the_programs(scratch: Scratch) -> None:
    stack = scratch.stack()
    stack.require()
    engine, compose = stack.versions()
    assert engine == docker("version", "--format", "{{.Server.Version}}").strip()
    assert compose in docker("compose", "version")


def test_docker_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask in (ComposeStack(tmp_path).require, ComposeStack(tmp_path).versions):
        with pytest.raises(ProgramMissing) as caught:
            ask()
        assert "apt-get install docker.io" in caught.value.hint


NOT_A_COMMAND = "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1"


@pytest.mark.parametrize(
    "says", [NOT_A_COMMAND, "echo 'unknown command: docker compose' >&2; exit 1"]
)
def test_compose_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    fake(tmp_path / "bin", "docker", says)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "docker-compose.yaml").write_text("services: {}\n")
    stack = ComposeStack(tmp_path)
    for ask in (stack.require, stack.model, stack.up, stack.down):
        with pytest.raises(ProgramMissing, match="Docker Compose is not installed") as caught:
            ask()
        for package in ("docker-compose-v2", "docker-compose-plugin", "docker-compose (Debian 13)"):
            assert package in caught.value.hint


def test_only_compose_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path / "bin", "docker", NOT_A_COMMAND)
    fake(tmp_path / "bin", "docker-compose", "echo 1.29.2")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ProgramMissing, match=r"only docker-compose 1\.29\.2") as caught:
        ComposeStack(tmp_path).require()
    assert "docker-compose-v2" in caught.value.hint


ANSWERS = """
case "$*" in
  *compose*version*) echo {compose} ;;
  *version*) echo {engine} ;;
esac
"""


@pytest.mark.parametrize("compose", ["2.26.1-4", "v2.24.6", "5.0.1", "5.5.0-desktop.1"])
def test_compose_versions_are_read_leniently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: str
) -> None:
    fake(tmp_path / "bin", "docker", ANSWERS.format(compose=compose, engine="'29.0.1 1.52'"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    stack = ComposeStack(tmp_path)
    stack.require()
    assert stack.versions() == ("29.0.1", compose.removeprefix("v"))


def test_versions_that_are_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    fake(tmp_path / "bin", "docker", ANSWERS.format(compose="2.26.1", engine="'19.03.8 1.40'"))
    with pytest.raises(ProgramMissing, match=r"Docker Engine 19\.03\.8 is too old"):
        ComposeStack(tmp_path).require()
    fake(tmp_path / "bin", "docker", ANSWERS.format(compose="1.29.2", engine="'29.0.1 1.52'"))
    with pytest.raises(ProgramMissing, match=r"Docker Compose 1\.29\.2 is too old"):
        ComposeStack(tmp_path).require()


def test_the_engine_does_not_answer(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch.write(sleeper("a"))
    away = f"unix://{scratch.folder}/away.sock"
    with monkeypatch.context() as patched:
        patched.setenv("DOCKER_HOST", away)
        stack = scratch.stack()
        for ask in (
            stack.require,
            stack.containers,
            stack.up,
            lambda: stack.stop(["a"]),
            lambda: stack.logs("a"),
            lambda: stack.mounting(scratch.folder),
            lambda: stack.execute("a", ["true"]),
        ):
            with pytest.raises(StackError, match="the Docker engine does not answer") as caught:
                ask()
            assert away in caught.value.message
            assert caught.value.hint


def test_an_engine_that_hangs_up_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "docker.sock"
    (tmp_path / "docker-compose.yaml").write_text("name: x\nservices: {a: {image: x}}\n")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{place}")
        with pytest.raises(StackError, match="the Docker engine does not answer"):
            ComposeStack(tmp_path).stop(["a"])
        server.shutdown(socket.SHUT_RDWR)


def test_no_right_to_talk_to_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "permission denied while trying to connect to the Docker daemon socket"
    fake(
        tmp_path / "bin",
        "docker",
        f'case "$*" in *compose*) echo 2.26.1 ;; *) echo "{says}" >&2; exit 1 ;; esac',
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(StackError, match="may not talk to the Docker engine") as caught:
        ComposeStack(tmp_path).require()
    assert "sudo" in caught.value.hint
    assert "group docker" in caught.value.hint


# ---- what a candidate is judged by -------------------------------------------------------------


def test_the_variables_of_the_files(scratch: Scratch) -> None:
    text = (
        sleeper("a") + "    environment: {A: '${A:?}', B: $B, C: '${C:-}', D: '${D-x}', E: $$E}\n"
    )
    scratch.write(text)
    (scratch.folder / "docker-compose.override.yaml").write_text(
        "services: {a: {environment: {F: '${F}'}}}\n"
    )
    found = {one.name: (one.required, one.has_default) for one in scratch.stack().variables()}
    assert found == {
        "A": (True, False),
        "B": (False, False),
        "C": (False, True),
        "D": (False, True),
        "F": (False, False),
    }


def test_a_registry_that_does_not_answer(scratch: Scratch) -> None:
    scratch.write(sleeper("a"))
    with pytest.raises(StackError, match="asking the registry for localhost:9/no/such:1"):
        scratch.stack().platforms("localhost:9/no/such:1")


def test_what_else_is_on_the_engine(scratch: Scratch) -> None:
    port = free_port()
    scratch.write(sleeper("a") + f"    ports: ['127.0.0.1:{port}:80']\n")
    assert enginelook.taken(Port("127.0.0.1", port, 80, "tcp")) == ""
    scratch.stack().up(wait=30)
    held = [one for one in enginelook.publishers() if one.port.published == port]
    assert [(one.project, one.service, one.port.host) for one in held] == [
        (scratch.name, "a", "127.0.0.1")
    ]
    assert "in use" in enginelook.taken(Port("127.0.0.1", port, 80, "tcp"))
    assert "assign" in enginelook.taken(Port("203.0.113.9", port, 80, "tcp"))
    here = enginelook.images_here([scratch.image, "localhost:9/no/such:1"])
    assert here == {scratch.image: enginelook.platform()}


def test_folders_of_the_host_in_other_places(scratch: Scratch, tmp_path: Path) -> None:
    scratch.write(sleeper("a") + f"    volumes: ['./conf:/c', '{tmp_path}/else:/e']\n")
    stack = ComposeStack(scratch.folder, moved={scratch.folder: tmp_path / "there"})
    sources = [one.source for one in stack.model().services["a"].mounts]
    assert sources == [tmp_path / "there" / "conf", tmp_path / "else"]


# ---- what a container was made of --------------------------------------------------------------


def test_a_container_against_its_declaration(scratch: Scratch) -> None:
    port = free_port()
    scratch.write(
        sleeper("plain")
        + f'    ports: ["127.0.0.1:{port}:80"]\n    environment: {{WORD: said}}\n'
        + sleeper("filed")
        + "    env_file: [more.env]\n"
        + sleeper("after")
        + "    depends_on: [plain]\n"
    )
    (scratch.folder / "more.env").write_text("MORE=1\n")
    stack = scratch.stack()
    stack.create()
    declared, there = stack.hashes(), stack.containers()
    assert declared["plain"] == there["plain"].config_hash
    assert declared["after"] == there["after"].config_hash
    assert declared["filed"] == there["filed"].config_hash
    (scratch.folder / "more.env").write_text("MORE=2\n")
    assert scratch.stack().hashes()["filed"] != declared["filed"] == stack.hashes()["filed"]
    (scratch.folder / "more.env").write_text("MORE=1\n")
    assert there["plain"].ports == (Port("127.0.0.1", port, 80, "tcp"),)
    assert there["plain"].environment["WORD"] == "said"
    assert "WORD" not in there["plain"].inherited
    image = stack.image_ids([scratch.image, "iotops-lab/none:1"])
    assert image == {scratch.image: there["plain"].image_id}

    file = scratch.folder / "docker-compose.yaml"
    text = file.read_text().replace("WORD: said", "WORD: other")
    candidate = scratch.folder / "candidate.yaml"
    candidate.write_text(text)
    apart = ComposeStack(scratch.folder, files=[candidate]).hashes()
    assert apart["plain"] != declared["plain"] and apart["after"] == declared["after"]

    file.write_text(text)
    changed = scratch.stack()
    assert changed.hashes() == apart
    changed.stop(["plain"], grace=0)
    changed.prepare(["plain"])
    made = changed.containers()
    assert made["plain"].state == "created" and made["plain"].config_hash == apart["plain"]
    assert made["after"].id == there["after"].id and made["after"].state == "running"
