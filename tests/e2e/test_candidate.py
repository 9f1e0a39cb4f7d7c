"""A candidate configuration on real servers: what is found, and that nothing of the hub is touched.

The hub is made and its broker runs; the other services need not. Every look compares the hub's
files and all its containers before and after.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from iotops.actions import candidate
from iotops.hub import Hub
from iotops.model import Finding, Severity
from tests.conftest import need
from tests.support import nodered
from tests.support.hubs import HubUnderTest, docker, made_hub

pytestmark = pytest.mark.e2e


class CandidateHub(HubUnderTest):
    """A hub of which only the broker runs."""

    def make(self) -> None:
        super().make()
        compose = ("compose", "--project-directory", str(self.folder))
        docker(*compose, "up", "--detach", "mosquitto")
        until(self.answers, "the broker")

    def answers(self) -> bool:
        """Whether the broker listens: its image's entrypoint has then set owners."""
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self.ports["mosquitto"]), 1) as connection,
        ):
            # Docker's own proxy takes a connection before anybody is behind it.
            connection.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00")
            return len(connection.recv(4)) == 4
        return False

    @property
    def tree(self) -> Path:
        """Where the candidate lies."""
        return self.base / "tree"

    def fresh(self) -> None:
        """Make the candidate the files of the last commit."""
        made = ["git", "-C", str(self.folder), "archive", "HEAD"]
        data = subprocess.run(made, check=True, capture_output=True).stdout
        subprocess.run(["rm", "-rf", str(self.tree)], check=True)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(self.tree, filter="data")

    def change(self, file: str, old: str, new: str) -> None:
        """Replace a text in a file of the candidate."""
        path = self.tree / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def examined(self) -> dict[str, Finding]:
        """Look at the candidate, see that the hub is as it was; the findings by their code."""
        before = self.looks()
        found = candidate.examine(Hub.open(self.folder), self.tree)
        assert self.looks() == before
        for name in ("NODERED_TOKEN", "MQTT_PASSWORD", "NODERED_CREDENTIAL_SECRET"):
            assert self.env_value(name) not in repr(found)
        assert all(one.hint for one in found if one.severity is Severity.ERROR)
        assert len({one.code for one in found}) == len(found), found
        return {one.code: one for one in found}

    def looks(self) -> list[str]:
        """Tell how every file of hub and data is, and which containers there are."""
        label = "label=com.docker.compose.project=" + self.project
        lines = docker(
            "ps", "-a", "--no-trunc", "--filter", label, "--format", "{{.ID}} {{.State}}"
        )
        told = [*lines.splitlines(), *self.scratch()]
        for top in (self.folder, self.root):
            for path in sorted(top.rglob("*")):
                if path != self.root / ".iotops" / "tmp":  # it has an own one made and removed
                    state = path.lstat()
                    content = path.read_bytes() if path.is_file() else b""
                    told.append(
                        f"{path} {state.st_mode} {state.st_uid} {state.st_mtime_ns}"
                        f" {hashlib.sha256(content).hexdigest()}"
                    )
        return told

    def scratch(self) -> list[str]:
        """List the containers of looks."""
        label = f"label=iotops.once={self.project}"
        return docker("ps", "-a", "--filter", label, "--format", "{{.ID}}").split()


@pytest.fixture(scope="module")
def made() -> Iterator[CandidateHub]:
    for what in ("docker", "compose", "root", "image mosquitto", "image nodered"):
        need(what)
    hub = made_hub(CandidateHub, "iotops-candidate-")
    try:
        yield hub
    finally:
        hub.remove()


@pytest.fixture
def hub(made: CandidateHub) -> CandidateHub:
    made.fresh()
    return made


def error(found: dict[str, Finding], code: str, *words: str) -> None:
    one = found.pop(code)
    assert one.severity is Severity.ERROR
    assert all(word in one.message for word in words), one


def test_the_hubs_own_files_are_good(hub: CandidateHub) -> None:
    assert hub.examined() == {}
    # Written and looked at by a unit with a strict umask: the modes of the hub folder count.
    for path in (hub.tree, *hub.tree.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    usual = os.umask(0o077)
    try:
        assert hub.examined() == {}
    finally:
        os.umask(usual)


def test_a_fault_in_every_services_files(hub: CandidateHub) -> None:
    hub.change("mosquitto/mosquitto.conf", "listener 1883", "listener 1883\nhunter2 x")
    # Where the Compose file names the hub folder itself, the candidate's files count all the same.
    hub.change("docker-compose.yaml", "source: ./mosquitto,", f"source: {hub.folder}/mosquitto,")
    hub.change("nodered/settings.js", "uiPort: 1880,", 'uiPort: 1880, x: "abc"hunter2",')
    hub.change("grafana/provisioning/datasources/influxdb.yaml", "uid: influxdb", "uid: [hunter2")
    found = hub.examined()
    assert "hunter2" not in repr(found)
    error(found, "mosquitto.conf", "mosquitto.conf:4")
    error(found, "nodered.settings", "/config/settings.js, line 31", "not JavaScript")
    error(found, "grafana.yaml", "datasources/influxdb.yaml")
    assert found == {}


def test_files_that_are_well_written_and_wrong(hub: CandidateHub) -> None:
    hub.change("mosquitto/mosquitto.conf", "allow_anonymous false", "allow_anonymous true")
    data = hub.root / "nodered"
    sealed = nodered.sealed({"n1": {"password": "x"}}, hub.env_value("NODERED_CREDENTIAL_SECRET"))
    (data / "flows_cred.json").write_text(json.dumps({"$": sealed}))
    (data / "flows.json").write_text("[]")
    try:
        found = hub.examined()
        error(found, "mosquitto.open", "without a password")
        assert found == {}  # what opens the credentials is good
        hub.change("nodered/settings.js", 'needed("NODERED_CREDENTIAL_SECRET")', '"another one"')
        found = hub.examined()
    finally:
        (data / "flows_cred.json").unlink()
        (data / "flows.json").unlink()
    error(found, "nodered.key", "next deploy would erase them")


def test_what_a_trial_must_not_leave_out(hub: CandidateHub) -> None:
    """A user whom the broker refuses, and settings that throw with a secret in their words."""
    hub.change("mosquitto/mosquitto.conf", "/mosquitto/secrets/passwd", "/mosquitto/config/users")
    (hub.tree / "mosquitto" / "users").write_text("")
    hub.change("nodered/settings.js", '"use strict";', "throw Error(process.env.NODERED_TOKEN);")
    found = hub.examined()
    error(found, "mosquitto.login", "user iotops")
    error(found, "nodered.settings", "line 3: ***")
    assert found == {}


def test_this_machine(hub: CandidateHub) -> None:
    """Ports, images and folders; a port that the hub's own broker holds is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        hub.change("docker-compose.yaml", "${NODERED_PORT:-1880}", str(taken))
        hub.change("docker-compose.yaml", f"{hub.root}/grafana", f"{hub.root}/gone")
        hub.change("docker-compose.yaml", "./grafana/provisioning", "./grafana/nowhere")
        hub.change(
            "docker-compose.yaml",
            "services:\n",
            "services:\n  more:\n    image: localhost:9/no/such:1\n",
        )
        before = hub.looks()
        found = candidate.examine(Hub.open(hub.folder), hub.tree)
        assert hub.looks() == before
    told = [(one.code, one.subject, one.severity) for one in found]
    assert told == [
        # The port's variable is used no more.
        ("env.unused", ".env", Severity.WARNING),
        ("image.missing", "more", Severity.ERROR),
        ("port.taken", "nodered", Severity.ERROR),
        ("mount.missing", "grafana", Severity.ERROR),
        ("mount.missing", "grafana", Severity.ERROR),
    ]
    assert str(taken) in found[2].message
    assert "the commit does not bring it" in found[3].message
    assert f"{hub.root}/gone" in found[4].message and "would not start" in found[4].message


def test_a_port_that_another_container_holds(hub: CandidateHub) -> None:
    image = docker("inspect", "--format", "{{.Image}}", hub.container("mosquitto")).strip()
    name = f"{hub.project}-foreign"
    label = f"com.docker.compose.project={hub.project}x"
    docker(
        *("run", "--detach", "--rm", "--name", name, "--label", label),
        *("--publish", f"127.0.0.1:{hub.ports['nodered']}:1", "--entrypoint", "sleep"),
        *(image, "600"),
    )
    try:
        found = hub.examined()
    finally:
        docker("rm", "--force", name)
    error(found, "port.taken", name)
    assert found == {}


def test_compose_and_env(hub: CandidateHub) -> None:
    hub.change("docker-compose.yaml", "NODERED_TOKEN: ${NODERED_TOKEN:?}", "X: ${NOBODYS:?}")
    error(found := hub.examined(), "env.unset", "NOBODYS")
    assert found == {}
    hub.fresh()
    hub.change("docker-compose.yaml", "healthcheck:", "healthchek:")
    error(found := hub.examined(), "candidate.compose", "healthchek", str(hub.folder))
    assert found == {}


def test_another_hub_and_another_project(hub: CandidateHub) -> None:
    hub.change("docker-compose.yaml", f'name: "{hub.project}"', f'name: "{hub.project}-2"')
    hub.change("iotops.toml", str(hub.root), "/mnt/elsewhere")
    found = hub.examined()
    error(found, "candidate.project", f"{hub.project}-2")
    error(found, "candidate.other", "data.root", "/mnt/elsewhere")


@pytest.mark.parametrize("key", ["state", "run"])
def test_other_places_outside_the_data_root(hub: CandidateHub, key: str) -> None:
    """Another state file knows no last good commit, and another lock keeps nobody out."""
    hub.change("iotops.toml", f'{key} = "{hub.base}/{key}"', f'{key} = "{hub.base}/elsewhere"')
    found = hub.examined()
    error(found, "candidate.other", f"paths.{key}", f"{hub.base}/elsewhere")
    assert found == {}


def test_a_service_whose_container_or_folder_is_not_there(hub: CandidateHub) -> None:
    hub.change("iotops.toml", "[services.mosquitto]", "[services.broker]")
    extra = '[services.extra]\nkind = "files"\nfolder = "extra"\n\n'
    hub.change("iotops.toml", "[services.broker]", extra + "[services.broker]")
    found = hub.examined()
    error(found, "service.container", "no container broker", "as mosquitto")
    error(found, "service.folder", f"{hub.root}/extra")
    assert found == {}
    hub.change("iotops.toml", "[services.broker]", '[services.broker]\ncontainer = "mosquitto"')
    (hub.root / "extra").mkdir()
    try:
        assert hub.examined() == {}
    finally:
        (hub.root / "extra").rmdir()


def test_settings_that_cannot_be_read(hub: CandidateHub) -> None:
    hub.change("iotops.toml", "[hub]", "[hub]\nnmae = 1")
    found = hub.examined()
    assert found["candidate.settings"].hint == "correct iotops.toml in the commit"
    error(found, "candidate.settings", "nmae")
    assert found == {}


def test_a_secret_among_the_files(hub: CandidateHub) -> None:
    (hub.tree / "notes.md").write_text(f"the token: {hub.env_value('NODERED_TOKEN')}\n")
    (hub.tree / "plain.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n")
    error(found := hub.examined(), "candidate.secret", "NODERED_TOKEN", "notes.md")
    error(found, "candidate.key", "plain.pem")
    assert found == {}
    (hub.tree / "notes.md").unlink()
    (hub.tree / "plain.pem").unlink()
    (hub.tree / ".env").write_text("A=1\n")
    error(found := hub.examined(), "git.secret", ".env")
    assert found == {}  # this machine's own .env counts


TOP_SECRET = "secrets: {users: {file: ./mosquitto/passwd}}\nservices:\n"


def test_users_beside_the_configuration(hub: CandidateHub) -> None:
    """A password file that is not in Git lies among the candidate's files for the trial."""
    own = hub.folder / "mosquitto" / "passwd"
    own.write_bytes((hub.root / "mqtt" / "secrets" / "passwd").read_bytes())
    os.chown(own, 1883, 1883)
    own.chmod(0o600)
    hub.change("mosquitto/mosquitto.conf", "/mosquitto/secrets/passwd", "/mosquitto/config/passwd")
    try:
        assert hub.examined() == {}
        # The same file as a secret of Compose.
        hub.change("mosquitto/mosquitto.conf", "/mosquitto/config/passwd", "/run/secrets/users")
        hub.change("docker-compose.yaml", "services:\n", TOP_SECRET)
        hub.change("docker-compose.yaml", "  mosquitto:\n", "  mosquitto:\n    secrets: [users]\n")
        assert hub.examined() == {}
    finally:
        own.unlink()


LOOK = """
import sys
from pathlib import Path
from iotops.actions import candidate
from iotops.hub import Hub
candidate.examine(Hub.open(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_a_look_that_is_killed_leaves_nothing(hub: CandidateHub) -> None:
    # Without a port to ask at, the trial's broker is watched for two seconds.
    hub.change("mosquitto/mosquitto.conf", "listener 1883", "listener 0 /tmp/socket")
    before = hub.looks()
    look = [sys.executable, "-c", LOOK, str(hub.folder), str(hub.tree)]
    env = {**os.environ, "PYTHONPATH": os.fspath(Path.cwd())}
    with subprocess.Popen(look, env=env) as child:
        until(lambda: bool(hub.scratch()), "a broker of the trial")
        child.send_signal(signal.SIGKILL)
    tmp = hub.root / ".iotops" / "tmp"
    (left,) = tmp.iterdir()
    until(lambda: not hub.scratch(), "the end of the trial's broker")
    os.utime(left, (0, 0))
    hub.fresh()
    candidate.examine(Hub.open(hub.folder), hub.tree)
    assert [*tmp.iterdir()] == [] and hub.looks() == before


def until(true: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("folder", ["broker", "mosquitto/own"])
def test_data_and_logs_in_the_hub_folder(hub: CandidateHub, folder: str) -> None:
    """The trial's broker writes into folders of its own there too, and not into the live ones."""
    top = hub.folder / folder
    for name in ("data", "log"):
        (top / name).mkdir(parents=True)
        os.chown(top / name, 1883, 1883)
        hub.change("docker-compose.yaml", f"{hub.root}/mqtt/{name}", f"./{folder}/{name}")
    (top / "data" / "other").write_text("here it is made in the view, too")
    conf = hub.tree / "mosquitto" / "mosquitto.conf"
    more = "log_dest file /mosquitto/log/all.log\npid_file /mosquitto/data/pid\n"
    conf.write_text(conf.read_text() + more)
    try:
        assert hub.examined() == {}
    finally:
        shutil.rmtree(top)
