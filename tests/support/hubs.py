"""A whole hub for the e2e tier: disk, repository, Compose project, and the command line.

The product is driven as a person drives it: `python -m iotops ...` in a process of its own. What
is seen of the services is seen by independent clients (`tests/support/clients.py`). Not here: any
assertion.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from iotops.demo.ground import free_port
from tests.support.disk import Disk
from tests.support.lab import lab

PORTS = {"mosquitto": 1883, "nodered": 1880, "influxdb": 8086, "grafana": 3000}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def lines(self) -> list[dict[str, object]]:
        """Give the JSON lines of standard output."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]

    def result(self) -> dict[str, object]:
        """Give the last JSON line of type `result`, or the whole document."""
        try:
            document = json.loads(self.out)
        except ValueError:
            results = [line for line in self.lines() if line.get("message_type") == "result"]
            return results[-1]
        assert isinstance(document, dict)
        return document


class HubUnderTest:
    """One hub in a temporary folder, on a loop-mounted disk.

    Attributes:
        folder: the hub folder. root: the data root (mount point). ports: by service.
    """

    def __init__(self, base: Path, *, disk_size: int = 900 << 20) -> None:
        self.base = base
        self.folder = base / "hub"
        self.root = base / "data"
        self.repository = base / "repository"
        self.password_file = base / "secrets" / "restic-password"
        self.state = base / "state"
        self.run_folder = base / "run"
        self.project = f"iotops-test-{secrets.token_hex(4)}"
        self.ports = {name: free_port() for name in PORTS}
        self.disk = Disk(base / "disk.ext4", self.root, disk_size)

    def make(self) -> None:
        """Create the hub and its repository by `iotops init`."""
        override = lab().override
        argv = [
            "init",
            str(self.folder),
            "--name",
            "test-hub",
            "--owner",
            "root",
            "--project",
            self.project,
            "--data-root",
            str(self.root),
            "--claim-disk",
            "--repository",
            str(self.repository),
            "--password-file",
            str(self.password_file),
            "--state",
            str(self.state),
            "--run",
            str(self.run_folder),
        ]
        for name, port in self.ports.items():
            argv += ["--port", f"{name}={port}"]
        if override is not None:
            argv += ["--override", str(override)]
        done = self.iotops(*argv, hub=False)
        assert done.code == 0, done.err + done.out

    def iotops(
        self,
        *argv: str,
        hub: bool = True,
        env: Mapping[str, str] | None = None,
        limit: float = 300,
        stdin: str | None = None,
    ) -> Ended:
        """Run one command to its end."""
        done = subprocess.run(
            self._argv(argv, hub),
            env=self._env(env),
            capture_output=True,
            text=True,
            timeout=limit,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            cwd=self.base,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> Running:
        """Start one command as the leader of its own process group."""
        child = subprocess.Popen(
            self._argv(argv, True),
            env=self._env(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=self.base,
        )
        return Running(child)

    def _argv(self, argv: tuple[str, ...], hub: bool) -> list[str]:
        tail = ["--hub", str(self.folder)] if hub else []
        return [sys.executable, "-m", "iotops", *argv, *tail]

    def _env(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.fspath(Path.cwd()), **(env or {})}

    def env_value(self, name: str) -> str:
        """Give a value of the hub's `.env`, read by ourselves."""
        for line in (self.folder / ".env").read_text().splitlines():
            key, _, value = line.partition("=")
            if key.strip() == name:
                return value.strip().strip("'\"")
        raise KeyError(name)

    def container(self, service: str) -> str:
        """Give the id of a service's container, or ''."""
        return docker(
            "ps",
            "-aq",
            "--filter",
            f"label=com.docker.compose.project={self.project}",
            "--filter",
            f"label=com.docker.compose.service={service}",
        ).strip()

    def running(self) -> frozenset[str]:
        """Give the names of the services whose container runs."""
        text = docker(
            "ps",
            "--filter",
            f"label=com.docker.compose.project={self.project}",
            "--format",
            '{{.Label "com.docker.compose.service"}}',
        )
        return frozenset(text.split())

    def remove(self) -> None:
        """End everything of this hub, by its own project name."""
        for name in docker(
            "ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}"
        ).split():
            docker("rm", "-f", "-v", name)
        for name in docker(
            "network", "ls", "-q", "--filter", f"label=com.docker.compose.project={self.project}"
        ).split():
            docker("network", "rm", name)
        self.disk.remove()
        shutil.rmtree(self.base, ignore_errors=True)


H = TypeVar("H", bound=HubUnderTest)


def made_hub(kind: type[H], prefix: str) -> H:
    """Make a hub of that kind in a folder of its own; what cannot be made whole is removed.

    Args:
        kind: is made of its folder alone. prefix: of the folder's name.
    """
    hub = kind(Path(tempfile.mkdtemp(prefix=prefix, dir="/var/tmp")))
    try:
        hub.make()
    except BaseException:
        hub.remove()
        raise
    return hub


class Running:
    """A command that goes on."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child

    def wait_for(self, kind: str, **fields: str) -> dict[str, object]:
        """Read JSON lines until one of that `message_type` and with those fields comes."""
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if event.get("message_type") == kind and all(
                event.get(name) == value for name, value in fields.items()
            ):
                assert isinstance(event, dict)
                return event
        raise AssertionError(f"ended without {kind} {fields}: {self.end().err}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.child.pid, number)

    def end(self, limit: float = 120) -> Ended:
        """Wait for the end."""
        out, err = self.child.communicate(timeout=limit)
        return Ended(self.child.returncode, out, err)


def docker(*argv: str) -> str:
    """Run the docker program and give its output."""
    done = subprocess.run(["docker", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {argv}: {done.stderr}"
    return done.stdout
