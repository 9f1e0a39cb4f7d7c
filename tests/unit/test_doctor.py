"""What `doctor` finds: each finding once, told with the next thing to do, and gone when mended."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops.actions.doctor import STALE, examine
from iotops.model import Finding, Severity
from tests.support.paperhub import PaperHub

pytestmark = pytest.mark.unit

SERVICE = {"image": "mine/thing:1.2.3", "ports": [], "volumes": []}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperHub:
    made = PaperHub(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return made


def found(hub: PaperHub, code: str) -> list[Finding]:
    """The findings of one code, after a look at everything."""
    return [one for one in examine(hub.open()) if one.code == code]


def only(hub: PaperHub, code: str, severity: Severity, *says: str) -> Finding:
    (one,) = found(hub, code)
    assert one.severity is severity and one.hint
    for word in says:
        assert word in f"{one.subject}: {one.message}; {one.hint}"
    return one


def test_a_hub_without_a_fault_has_only_no_backup(hub: PaperHub) -> None:
    codes = {one.code for one in examine(hub.open())}
    assert codes == {"backup.never", "repository.repositorymissing"}


def test_a_missing_env_file(hub: PaperHub) -> None:
    (hub.folder / ".env").unlink()
    only(hub, "env.missing", Severity.ERROR, "iotops restore --into")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("PW=a$b", True),
        ("PW=a${b}", True),
        ('PW="a$b"', True),
        ("PW='a$b'", False),
        ("PW=a$$b", False),
        (r'PW="a\$b"', False),
        ("PW=ab # $c", False),
        ("# PW=a$b", False),
    ],
)
def test_a_value_that_compose_would_change(hub: PaperHub, line: str, named: bool) -> None:
    """After a restore by hand: a password with a dollar sign, not in single quotes."""
    (hub.folder / ".env").write_text(line + "\n")
    assert [one.subject for one in found(hub, "env.dollar")] == [".env"] * named
    if named:
        assert "a$b" not in only(hub, "env.dollar", Severity.WARNING, "PW", "PW='...'").message


@pytest.mark.parametrize(
    ("code", "name"),
    [("env.open", "hub/.env"), ("password.open", "password"), ("credentials.open", "credentials")],
)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602])
def test_secrets_that_others_can_read(hub: PaperHub, code: str, name: str, mode: int) -> None:
    path = hub.base / name
    path.chmod(mode)
    one = only(hub, code, Severity.ERROR, f"{mode:04o}")
    assert one.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    assert not found(hub, code)


@pytest.mark.parametrize(
    ("version", "old"), [("0.14.0", True), ("0.16.3", True), ("0.16.4", False), ("0.18.1", False)]
)
def test_an_old_restic(hub: PaperHub, version: str, old: bool) -> None:
    hub.restic(version)
    if old:
        only(hub, "restic.old", Severity.WARNING, version, "apt-get install restic")
    else:
        assert not found(hub, "restic.old")


def test_a_restic_that_is_too_old_is_an_error(hub: PaperHub) -> None:
    hub.restic("0.12.1")
    only(hub, "repository.programmissing", Severity.ERROR, "0.12.1", "apt-get install restic")
    assert not found(hub, "restic.old")


@pytest.mark.parametrize(
    ("image", "unpinned"),
    [
        ("mine/thing", True),
        ("mine/thing:latest", True),
        ("registry:5000/mine/thing", True),
        ("mine/thing:stable", True),
        ("mine/thing:1.2.3", False),
        ("registry:5000/mine/thing:1.2.3", False),
        ("mine/thing@sha256:" + "0" * 64, False),
    ],
)
def test_an_image_without_a_version(hub: PaperHub, image: str, unpinned: bool) -> None:
    hub.compose({"one": {**SERVICE, "image": image}})
    if unpinned:
        only(hub, "image.unpinned", Severity.WARNING, "one:", image, "Compose file")
    else:
        assert not found(hub, "image.unpinned")


def test_a_port_at_an_address_that_is_gone(hub: PaperHub) -> None:
    """The router has given this machine another one: at the next boot nothing listens there."""
    port = {"target": 1883, "published": "1883", "host_ip": "192.0.2.7"}
    hub.compose({"one": {**SERVICE, "ports": [port]}})
    only(hub, "address.absent", Severity.ERROR, "one:", "192.0.2.7", "today's address")
    hub.compose({"one": {**SERVICE, "ports": [{**port, "host_ip": "127.0.0.1"}]}})
    assert not found(hub, "address.absent")


@pytest.mark.parametrize(
    ("host", "open_"), [("0.0.0.0", True), ("", True), ("::", True), ("127.0.0.1", False)]
)
def test_a_port_for_every_network(hub: PaperHub, host: str, open_: bool) -> None:
    port = {"target": 80, "published": "8080", "host_ip": host}
    hub.compose({"one": {**SERVICE, "ports": [port]}})
    if open_:
        only(hub, "port.open", Severity.WARNING, "one:", "8080", '"127.0.0.1:8080:80"')
    else:
        assert not found(hub, "port.open")


def test_the_brokers_port_is_meant_to_be_open(hub: PaperHub) -> None:
    port = {"target": 1883, "published": "1883", "host_ip": "0.0.0.0"}
    hub.write('[services.mosquitto]\nkind = "mosquitto"\n')
    hub.compose({"mosquitto": {**SERVICE, "ports": [port]}, "b": {**SERVICE, "ports": [port]}})
    assert [one.subject for one in found(hub, "port.open")] == ["b"]


def test_an_operator_token_in_another_container(hub: PaperHub) -> None:
    hub.write(
        '[services.influx]\nkind = "influxdb"\nurl = "http://127.0.0.1:1"\ntoken_env = "OPERATOR"\n'
    )
    (hub.folder / ".env").write_text("OPERATOR='s3cr3tpw'\n")
    own = {**SERVICE, "environment": {"INIT_TOKEN": "s3cr3tpw"}}
    hub.compose({"influx": own, "grafana": {**SERVICE, "environment": {"READER": "another"}}})
    assert not found(hub, "token.shared")
    hub.compose({"influx": own, "grafana": {**SERVICE, "environment": {"TOKEN": "s3cr3tpw"}}})
    one = only(hub, "token.shared", Severity.WARNING, "grafana:", "TOKEN", "reader_token_env")
    assert "s3cr3tpw" not in repr(one)


def test_a_mount_that_would_be_made_on_the_card(hub: PaperHub) -> None:
    mount = {"type": "bind", "source": str(hub.root / "one"), "target": "/data"}
    (hub.root / "one").mkdir()
    hub.compose({"one": {**SERVICE, "volumes": [mount]}})
    only(hub, "mount.creates", Severity.WARNING, "one:", "create_host_path: false")
    hub.compose({"one": {**SERVICE, "volumes": [{**mount, "bind": {"create_host_path": False}}]}})
    assert not found(hub, "mount.creates")


@pytest.mark.parametrize(
    ("where", "code", "hint"),
    [
        ("hub/nodered", "mount.in-hub", "docker compose stop flows; sudo mv"),
        ("home/nodered", "mount.outside", "move it to"),
    ],
)
def test_a_servers_data_that_is_not_captured_as_its_kind(
    hub: PaperHub, where: str, code: str, hint: str
) -> None:
    """Adopting told it; it goes on being told, until it is moved or said to be unwanted."""
    source = hub.base / where
    source.mkdir(parents=True)
    mount = {"type": "bind", "source": str(source), "target": "/data"}
    image = {"image": "nodered/node-red:4.1.13", "ports": []}
    hub.compose({"flows": {**image, "volumes": [mount]}})
    only(hub, code, Severity.ERROR, "flows:", str(source), hint, f"{hub.root}/nodered")
    settings = hub.folder / "iotops.toml"
    text = settings.read_text()
    settings.write_text(text.replace("[data]", '[data]\nignore_volumes = ["flows:/data"]'))
    assert not [one for one in found(hub, code) if one.severity is Severity.ERROR]
    settings.write_text(text)
    hub.compose({"flows": {**image, "volumes": [{**mount, "read_only": True}]}})
    assert not found(hub, code)


def test_no_backup_yet_an_old_one_and_a_fresh_one(hub: PaperHub) -> None:
    only(hub, "backup.never", Severity.ERROR, "iotops backup")
    state, now = hub.open().state, datetime.now(UTC)
    state.update(good={"backup": (now - STALE - timedelta(minutes=1)).isoformat()})
    only(hub, "backup.stale", Severity.ERROR, "systemctl status iotops-backup")
    assert not found(hub, "backup.never")
    state.update(good={"backup": (now - STALE + timedelta(minutes=1)).isoformat()})
    assert not found(hub, "backup.stale") and not found(hub, "backup.never")


def test_a_run_that_died(hub: PaperHub) -> None:
    """Another process begins a run and ends without closing it."""
    code = (
        "from pathlib import Path; from iotops.hub import Hub\n"
        f"run = Hub.open(Path({str(hub.folder)!r})).journal.begin('backup')\n"
        "run.step('capture nodered'); run.note()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.cwd())
    only(hub, "run.dead", Severity.ERROR, "'capture nodered'", "iotops resume")


def test_a_service_that_does_not_answer(hub: PaperHub) -> None:
    hub.write('[services.influx]\nkind = "influxdb"\nurl = "http://127.0.0.1:1"\n')
    hub.compose({"influx": SERVICE})
    only(hub, "service.down", Severity.ERROR, "influx:", "iotops logs influx", "iotops up influx")


def test_a_service_whose_container_has_another_name(hub: PaperHub) -> None:
    hub.write('[services.broker]\nkind = "mosquitto"\n')
    hub.compose({"mosquitto": {**SERVICE, "image": "eclipse-mosquitto:2.0.22"}})
    only(hub, "service.container", Severity.ERROR, "broker:", "as mosquitto", '"mosquitto"')
    hub.write('[services.broker]\nkind = "mosquitto"\ncontainer = "mosquitto"\n')
    assert not found(hub, "service.container")
    hub.write('[services.broker]\nkind = "mosquitto"\n[services.mosquitto]\nkind = "files"\n')
    assert not found(hub, "service.container")  # somebody's already
    hub.write('[services.broker]\nkind = "mosquitto"\n')
    hub.compose({"own": {**SERVICE, "volumes": [bound(hub, "mqtt/data", "/mosquitto/data")]}})
    only(hub, "service.container", Severity.ERROR, "as own")


def bound(hub: PaperHub, folder: str, target: str) -> dict[str, str]:
    (hub.root / folder).mkdir(parents=True)
    return {"type": "bind", "source": str(hub.root / folder), "target": target}


def test_an_absent_data_root(hub: PaperHub) -> None:
    hub.root.rename(hub.base / "away")
    assert any(one.code.startswith("mount.") for one in examine(hub.open()))


def test_what_cannot_be_looked_at_is_told_and_the_rest_is_looked_at(hub: PaperHub) -> None:
    (hub.bin / "docker").write_text(
        '#!/bin/sh\ncase "$*" in *"compose version"*) echo 2.26.1; exit ;; esac\n'
        "echo Cannot connect to the Docker daemon at unix:///var/run/docker.sock >&2\nexit 1\n"
    )
    codes = {one.code for one in examine(hub.open())}
    assert {"stack.stackerror", "services.stackerror", "backup.never"} <= codes
