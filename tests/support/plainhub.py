"""A hub without real servers, for the order and the failures of a restore.

Its containers sleep; what makes restores hard is in how they mount: one mounts a folder that
belongs to nobody and the folder of another service, one keeps its data below what it mounts, one
mounts nothing. A file in its folder makes the service `two` fail, or clear out its folder, when it
starts. Not here: any assertion.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.support.hubs import HubUnderTest, docker, made_hub
from tests.support.lab import lab
from tests.support.resticbench import hurry

COMPOSE = """
name: {project}
services:
  one: &sleeper
    image: {image}
    entrypoint: ["sleep", "infinity"]
    init: true
    volumes:
      - {{type: bind, source: "{root}/one", target: /state, bind: {{create_host_path: false}}}}
      - {{type: bind, source: "{root}/share", target: /share, bind: {{create_host_path: false}}}}
      - {{type: bind, source: "{root}/two", target: /two, bind: {{create_host_path: false}}}}
      - {{type: bind, source: "{outside}", target: /out, bind: {{create_host_path: false}}}}
  two:
    <<: *sleeper
    entrypoint:
      - sh
      - -c
      - |
        sleep 0.3
        test ! -e /state/bad || exit 3
        test ! -e /state/wipe || rm -rf /state/files
        touch /ready
        exec sleep infinity
    healthcheck: {{test: ["CMD", "test", "-e", "/ready"], interval: 300ms, retries: 20}}
    volumes:
      - {{type: bind, source: "{root}/two", target: /state, bind: {{create_host_path: false}}}}
  app:
    <<: *sleeper
    volumes:
      - {{type: bind, source: "{root}/apps/app", target: /app, bind: {{create_host_path: false}}}}
  proxy:
    <<: *sleeper
    volumes: []
"""
SERVICES = """
[services.one]
kind = "files"

[services.two]
kind = "files"
hot = true

[services.app]
kind = "files"
folder = "apps/app/data"
"""
WORDS = ("one", "two", "apps/app/data", "share")
"""Folders with a word of ours: of the three services, and of nobody."""
ALL = frozenset({"one", "two", "app", "proxy"})


class PlainHub(HubUnderTest):
    """The hub described above.

    Attributes:
        good: a complete snapshot in which every word is "snapshot".
    """

    good = ""

    def make(self) -> None:
        """Create it, bring it up, and make one backup."""
        super().make()
        self.outside.mkdir()
        hurry(self.repository, self.password_file.read_text().strip())
        values = {
            "project": self.project,
            "image": lab().images["base"].reference,
            "root": self.root,
            "outside": self.outside,
        }
        (self.folder / "docker-compose.override.yaml").unlink(missing_ok=True)
        self.compose = COMPOSE.format(**values)
        (self.folder / "docker-compose.yaml").write_text(self.compose)
        self.settings = self.folder / "iotops.toml"
        text = re.sub(r"(?ms)^\[services\..*?(?=^\[(?!services)|\Z)", "", self.settings.read_text())
        self.settings.write_text(text + SERVICES)
        for path in sorted(self.root.iterdir()):
            if path.name in ("mqtt", "nodered", "influxdb", "grafana"):
                docker_free(path)
        self.lay_out("snapshot")
        up = self.iotops("up")
        assert up.code == 0, up.err + up.out
        self.good = self.backed_up()

    def lay_out(self, word: str) -> None:
        """Make the folders, as they are at the start of each test."""
        for name in WORDS:
            files = self.root / name / "files"
            files.mkdir(parents=True, exist_ok=True)
            for number in range(3):
                (files / f"file{number}").write_text(f"{name} {number}")
        for name in ("bad", "wipe"):
            (self.root / "two" / name).unlink(missing_ok=True)
        os.chown(self.root / "apps", 1000, 1001)
        (self.root / "apps").chmod(0o750)
        os.chown(self.root / "apps" / "app", 1002, 1003)
        self.write(word)

    def write(self, word: str) -> None:
        """Write a word into each of the folders."""
        for name in WORDS:
            (self.root / name / "word").write_text(word)

    def words(self) -> set[str]:
        """Read the words of the folders; more than one means neither old nor new."""
        return {(self.root / name / "word").read_text() for name in WORDS}

    def backed_up(self) -> str:
        """Make a complete backup and give its snapshot."""
        done = self.iotops("backup", "--json")
        assert done.code == 0, done.err + done.out
        return str(done.result()["snapshot"])

    def marked(self, name: str) -> str:
        """Make a snapshot in which the folder of `two` holds a file that does harm at its start."""
        self.write("marked")
        (self.root / "two" / name).write_text("")
        made = self.backed_up()
        (self.root / "two" / name).unlink()
        return made

    def lose(self) -> None:
        """Lose the disk and all containers: a new, empty one is mounted."""
        for name in sorted(ALL | self.running()):
            if found := self.container(name):
                docker("rm", "-f", found)
        self.disk.lose()

    @property
    def outside(self) -> Path:
        """A folder that is not on the data root, and that `one` mounts."""
        return self.base / "outside"

    @property
    def own(self) -> Path:
        """iotops' own folder."""
        return self.root / ".iotops"


def docker_free(path: Path) -> None:
    """Remove the empty folders that `init` made for services which this hub has not."""
    for inner in sorted(path.rglob("*"), reverse=True):
        if inner.is_dir():
            inner.rmdir()
        else:
            inner.unlink()
    path.rmdir()


def plain_hub() -> PlainHub:
    """Make such a hub in a folder of its own."""
    return made_hub(PlainHub, "iotops-plain-")
