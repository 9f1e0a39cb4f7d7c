"""A Compose project of somebody else's making, that runs and holds data, for adopting.

Services have names of their own, and one a `container_name`; an anchor with a merge key, a profile
that `.env` makes active, an `include`, a configuration mounted as a single file, and a named
volume. No iotops has seen it. Not here: any assertion about the product.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from tests.support.hubs import HubUnderTest, docker
from tests.support.lab import lab

COMPOSE = """
name: {project}
include:
  - extra/notes.yaml
x-usual: &usual
  restart: unless-stopped
services:
  broker:
    <<: *usual
    image: {mosquitto}
    container_name: {project}-mqtt-of-mine
    ports: ["127.0.0.1:{port}:1883"]
    volumes:
      - ./mosquitto.conf:/mosquitto/config/mosquitto.conf:ro
      - ./passwd:/mosquitto/config/passwd:ro
      - {root}/mosquitto/data:/mosquitto/data
      - {root}/mosquitto/log:/mosquitto/log
  store:
    <<: *usual
    image: {base}
    init: true
    command: ["sleep", "infinity"]
    profiles: [more]
    volumes: ["{root}/apps/store:/state"]
  loose:
    <<: *usual
    image: {base}
    init: true
    command: ["sleep", "infinity"]
    volumes: ["kept:/state"]
volumes:
  kept: {{}}
"""
INCLUDED = """
services:
  notes:
    image: {base}
    restart: unless-stopped
    init: true
    command: ["sleep", "infinity"]
    volumes: ["{root}/apps/notes:/state"]
"""
CONF = """
listener 1883
allow_anonymous false
password_file /mosquitto/config/passwd
persistence true
persistence_location /mosquitto/data/
"""
USER, PASSWORD = "sensor", "a-password-of-devices"


class AdoptHub(HubUnderTest):
    """The project described above, up and with data."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, disk_size=400 << 20)

    def make(self) -> None:
        """Write it, start it, fill it."""
        values = {
            "project": self.project,
            "root": self.root,
            "port": self.ports["mosquitto"],
            "mosquitto": lab().images["mosquitto"].reference,
            "base": lab().images["base"].reference,
        }
        (self.folder / "extra").mkdir(parents=True)
        (self.folder / "docker-compose.yml").write_text(COMPOSE.format(**values))
        (self.folder / "extra/notes.yaml").write_text(INCLUDED.format(**values))
        (self.folder / "mosquitto.conf").write_text(CONF)
        (self.folder / ".env").write_text("COMPOSE_PROFILES=more\n")
        (self.folder / ".env").chmod(0o600)
        self._users()
        for name in ("mosquitto/data", "mosquitto/log", "apps/store", "apps/notes"):
            (self.root / name).mkdir(parents=True)
        for name in ("data", "log"):
            os.chown(self.root / "mosquitto" / name, 1883, 1883)
        for name in ("store", "notes"):
            (self.root / "apps" / name / "word").write_text(f"the word of {name}\n")
        self.compose("up", "--detach")
        self.publish("home/lamp", "on")
        docker("exec", self.container("loose"), "sh", "-c", "echo 1 > /state/kept")

    def compose(self, *argv: str) -> None:
        """Run Compose as the owner does, in the project's folder."""
        done = subprocess.run(
            ["docker", "compose", *argv], cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def _users(self) -> None:
        image = lab().images["mosquitto"].reference
        passwd = self.folder / "passwd"
        program = ["--network", "none", "--entrypoint", "mosquitto_passwd"]
        program += ["-v", f"{self.folder}:/h", image]
        docker("run", "--rm", *program, "-c", "-b", "/h/passwd", USER, PASSWORD)
        os.chown(passwd, 1883, 1883)
        passwd.chmod(0o600)

    def publish(self, topic: str, text: str) -> None:
        """Leave a retained message; waits until the broker takes it."""
        login = f"-u {USER} -P {PASSWORD} -t {topic}"
        told = f"mosquitto_pub {login} -r -q 1 -m {text} 2>/dev/null"
        tries = f"for i in $(seq 150); do {told} && exit 0; sleep 0.2; done; exit 1"
        docker("exec", self.container("broker"), "sh", "-c", tries)

    def retained(self, topic: str) -> str:
        """Read a retained message, empty when there is none."""
        login = f"-u {USER} -P {PASSWORD} -t {topic}"
        asked = f"mosquitto_sub {login} -C 1 -W 5 || true"
        return docker("exec", self.container("broker"), "sh", "-c", asked).strip()

    def tree(self) -> dict[str, tuple[object, ...]]:
        """Everything that the owner has on this machine: each path with content and rights."""
        found: dict[str, tuple[object, ...]] = {}
        for top in (self.folder, self.root):
            for path in (top, *sorted(top.rglob("*"))):
                state = path.lstat()
                digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                found[str(path)] = (state.st_mode, state.st_uid, state.st_gid, digest)
        return found

    def containers(self) -> list[str]:
        """Every container of the project as it is: its id and since when it runs."""
        label = f"label=com.docker.compose.project={self.project}"
        ids = docker("ps", "-aq", "--no-trunc", "--filter", label).split()
        return sorted(docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}}", *ids).splitlines())

    def lose(self) -> None:
        """Lose the disk and all containers: a new, empty one is mounted."""
        self.compose("down")
        self.disk.lose()

    def remove(self) -> None:
        """End everything of this project, its volume too."""
        label = f"label=com.docker.compose.project={self.project}"
        if ids := docker("ps", "-aq", "--filter", label).split():
            docker("rm", "-f", "-v", *ids)
        if names := docker("volume", "ls", "-q", "--filter", label).split():
            docker("volume", "rm", *names)
        super().remove()
