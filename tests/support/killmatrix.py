"""A light hub, and a command that can be ended exactly in the step that is meant.

The steps are not written down here: they come from the program, by the `step_started` lines of an
undisturbed run. A step is held by its own output: standard output is a pipe of packets with room
for one, so the program cannot get further than the end of the step whose line has just been read.
Nothing in the product knows of this. Not here: what must hold afterwards
(`tests/e2e/test_kill_matrix.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.disk import Disk
from tests.support.hubs import HubUnderTest, docker, made_hub
from tests.support.lab import lab
from tests.support.resticbench import hurry

F_SETPIPE_SZ = 1031
"""fcntl(2); its name is in Python's module only since 3.10 on some systems."""

RUNNING = frozenset({"mosquitto", "cold"})
STOPPED = "quiet"
"""The container that its owner had stopped."""

COMPOSE = """
name: {project}
services:
  mosquitto:
    image: {image}
    restart: unless-stopped
    ports: ["127.0.0.1:{port}:1883"]
    volumes:
      - {{type: bind, source: ./mosquitto, target: /mosquitto/config, read_only: true}}
      - {{type: bind, source: "{root}/mqtt/data", target: /mosquitto/data}}
      - {{type: bind, source: "{root}/mqtt/log", target: /mosquitto/log}}
      - {{type: bind, source: "{root}/mqtt/secrets", target: /mosquitto/secrets}}
  cold: &cold
    image: {image}
    restart: unless-stopped
    entrypoint: ["sleep", "infinity"]
    init: true
    volumes:
      - {{type: bind, source: "{root}/cold", target: /state, bind: {{create_host_path: false}}}}
  quiet:
    <<: *cold
    volumes:
      - {{type: bind, source: "{root}/quiet", target: /state, bind: {{create_host_path: false}}}}
"""
RETENTION = """
[retention]
keep_daily = 1
keep_at_least = 2
"""
FOLDERS = ("cold", "quiet", "notes")
"""Folders with a word of ours: of a running service, of a stopped one, of no service."""


class LightHub(HubUnderTest):
    """A hub of one real server, a service that is copied cold, and one that its owner stopped.

    Attributes:
        repository_disk: the repository lies on a disk of its own.
    """

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.repository_disk = Disk(base / "repository.ext4", base / "far", size=96 << 20)
        self.repository = base / "far" / "repository"

    def make(self) -> None:
        """Create it, bring it up, stop what its owner stops, and make one backup."""
        super().make()
        hurry(self.repository, self.password_file.read_text().strip())
        values = {
            "project": self.project,
            "image": lab().images["mosquitto"].reference,
            "port": self.ports["mosquitto"],
            "root": self.root,
        }
        (self.folder / "docker-compose.override.yaml").unlink(missing_ok=True)
        (self.folder / "docker-compose.yaml").write_text(COMPOSE.format(**values))
        settings = self.folder / "iotops.toml"
        text = re.sub(
            r"(?ms)^\[services\.(nodered|influxdb|grafana)\].*?(?=^\[)",
            "",
            settings.read_text() + "\n[end]\n",
        )
        settings.write_text(text.replace("\n[end]\n", RETENTION))
        for name in ("nodered", "influxdb", "grafana"):
            if (self.root / name).is_dir():
                (self.root / name).rmdir()
        for name in FOLDERS:
            (self.root / name / "deep").mkdir(parents=True)
            (self.root / name / "deep" / "file").write_bytes(os.urandom(3000))
        self.write("snapshot")
        up = self.iotops("up")
        assert up.code == 0, up.err + up.out
        docker("stop", self.container(STOPPED))
        first = self.iotops("backup", "--json")
        assert first.code == 0, first.err + first.out

    def write(self, word: str) -> None:
        """Write a word into each of the folders."""
        for name in FOLDERS:
            (self.root / name / "word").write_text(word)

    def words(self) -> set[str]:
        """Read the words of the folders; more than one means neither old nor new."""
        return {(self.root / name / "word").read_text() for name in FOLDERS}

    def record(self, run: str) -> dict[str, object]:
        """Read a run's record."""
        document = json.loads((self.own / "journal" / f"{run}.json").read_text())
        assert isinstance(document, dict)
        return document

    def known(self) -> dict[str, dict[str, dict[str, str]]]:
        """Read the state file."""
        (path,) = self.state.glob("*.json")
        document = json.loads(path.read_text())
        assert isinstance(document, dict)
        return document

    def a_day_passes(self) -> None:
        """Let the retention be due again."""
        (path,) = self.state.glob("*.json")
        document = json.loads(path.read_text())
        document["last"].pop("retention", None)
        path.write_text(json.dumps(document))

    @property
    def own(self) -> Path:
        """iotops' own folder."""
        return self.root / ".iotops"

    def restic(self, *argv: str) -> str:
        """Run the bare restic on the repository, without a lock."""
        program = str(lab().restic[max(lab().restic)])
        words = [program, "-r", str(self.repository), "--password-file", str(self.password_file)]
        done = subprocess.run(
            [*words, *argv, "--no-lock", "--no-cache"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def remove(self) -> None:
        """End everything."""
        self.repository_disk.remove()
        super().remove()


def light_hub() -> LightHub:
    """Make a light hub in a folder of its own."""
    return made_hub(LightHub, "iotops-kill-")


@dataclass(frozen=True, order=True)
class Step:
    """A step of a command, as the program names it.

    Attributes:
        run: the action whose record is open. number: which one, of several with the same name.
    """

    run: str
    name: str
    service: str
    number: int

    def __str__(self) -> str:
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.name} {self.service}".strip() + again


class Held:
    """A command that goes no further than one event ahead of its reader."""

    def __init__(self, hub: HubUnderTest, *argv: str) -> None:
        reading, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        fcntl.fcntl(reading, F_SETPIPE_SZ, 4096)
        self._pipe = reading
        self._rest = b""
        self._seen: dict[tuple[str, str, str], int] = {}
        self.runs: list[tuple[str, str]] = []
        self.err = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as we are
        self.out: list[dict[str, object]] = []
        self.child = subprocess.Popen(
            hub._argv((*argv, "--json"), True),
            env=hub._env(None),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=self.err,
            start_new_session=True,
            cwd=hub.base,
        )
        os.close(writing)

    def steps(self) -> Iterator[Step]:
        """Yield each step as it begins, to the end."""
        for event in self._events():
            self.out.append(event)
            if event["message_type"] == "run_started":
                self.runs.append((str(event["action"]), str(event["run"])))
            if event["message_type"] == "step_started":
                action = self.runs[-1][0] if self.runs else ""
                what = (action, str(event["step"]), str(event["service"]))
                self._seen[what] = self._seen.get(what, 0) + 1
                yield Step(*what, self._seen[what])

    def _events(self) -> Iterator[dict[str, object]]:
        while packet := os.read(self._pipe, 1 << 16):
            *lines, self._rest = (self._rest + packet).split(b"\n")
            for line in lines:
                if line.startswith(b"{"):
                    yield json.loads(line)

    def until(self, wanted: Step) -> bool:
        """Read up to a step; False = it ended without it."""
        return any(one == wanted for one in self.steps())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, as a terminal does."""
        os.killpg(self.child.pid, number)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold it still."""
        self.child.send_signal(
            signal.SIGSTOP
        )  # not the group: a child between fork and exec is in it
        os.waitid(os.P_PID, self.child.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            self.child.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Read to the end; give its exit code, negative for a signal."""
        for _ in self.steps():
            pass
        os.close(self._pipe)
        return self.child.wait(timeout=120)

    def errors(self) -> str:
        """Give what it said on standard error."""
        self.err.seek(0)
        return self.err.read()

    def result(self) -> dict[str, object]:
        """Give its last word."""
        found = [one for one in self.out if one.get("message_type") == "result"]
        return found[-1] if found else {}
