"""A hub without any server, for the guards: two containers that only sleep over their folders.

What a guard must do is the same for every kind of service, and here a backup takes two seconds.
Not here: any assertion, but that the hub comes up.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path

from tests.support.disk import Disk
from tests.support.hubs import Ended, HubUnderTest, made_hub
from tests.support.lab import lab
from tests.support.resticbench import hurry

COMPOSE = """
name: {project}
services:
  store: &store
    image: {image}
    restart: unless-stopped
    entrypoint: ["sleep", "infinity"]
    init: true
    volumes:
      - {{type: bind, source: "{root}/store", target: /state, bind: {{create_host_path: false}}}}
  cold:
    <<: *store
    volumes:
      - {{type: bind, source: "{root}/cold", target: /state, bind: {{create_host_path: false}}}}
"""
SETTINGS = """
[services.store]
kind = "files"
hot = true

[retention]
keep_daily = 7
"""
PLACES = ("store", "cold", "attic")
"""Folders below the data root: of a service copied hot, of one copied cold, of none."""


class GuardedHub(HubUnderTest):
    """A hub whose repository lies on a small disk of its own; `template` is its Compose file."""

    template = COMPOSE

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.repository_disk = Disk(base / "repository.ext4", base / "far", size=400 << 20)
        self.repository = base / "far" / "repository"
        self._extracted = 0

    def make(self) -> None:
        """Create it and bring it up."""
        super().make()
        hurry(self.repository, self.password_file.read_text().strip())
        (self.folder / "docker-compose.override.yaml").unlink(missing_ok=True)
        self.compose("")
        settings = self.folder / "iotops.toml"
        text = re.sub(r"(?ms)^\[services\.\w+\].*?(?=^\[|\Z)", "", settings.read_text())
        settings.write_text(text + SETTINGS)
        for name in ("nodered", "influxdb", "grafana", "mqtt/data", "mqtt/log"):
            (self.root / name).rmdir()
        for path in (self.root / "mqtt/secrets").iterdir():
            path.unlink()
        (self.root / "mqtt/secrets").rmdir()
        (self.root / "mqtt").rmdir()
        self.seed()
        up = self.iotops("up")
        assert up.code == 0, up.err + up.out

    def compose(self, more: str, rest: str = "") -> None:
        """Write the Compose file, with more services, and with other top-level parts."""
        values = {
            "project": self.project,
            "image": lab().images["mosquitto"].reference,
            "root": self.root,
        }
        (self.folder / "docker-compose.yaml").write_text(
            (self.template + more + rest).format(**values)
        )

    def seed(self) -> str:
        """Fill the folders with a word of this moment and some files; give the word."""
        word = secrets.token_hex(8)
        for name in PLACES:
            place = self.root / name
            place.mkdir(exist_ok=True)
            (place / "word").write_text(word)
            for number in range(20):
                (place / f"file{number}").write_bytes(os.urandom(1000))
        return word

    def known(self) -> dict[str, dict[str, object]]:
        """Read the state file by ourselves."""
        (path,) = self.state.glob("*.json")
        document = json.loads(path.read_text())
        assert isinstance(document, dict)
        return document

    def claim_good(self, when: str) -> None:
        """Make the state file say that the last good backup ended at another time."""
        (path,) = self.state.glob("*.json")
        document = json.loads(path.read_text())
        document["good"]["backup"] = when
        path.write_text(json.dumps(document))

    def complete(self) -> list[str]:
        """List the complete snapshots as the command line shows them, oldest first."""
        found = json.loads(self.iotops("snapshots", "--json").out)
        return [one["id"] for one in found if one["outcome"] == "complete"]

    def latest(self, *argv: str) -> Path:
        """Extract the latest snapshot into a new folder and give it."""
        self._extracted += 1
        target = self.base / f"extracted{self._extracted}"
        done = self.iotops("restore", "latest", "--into", str(target), *argv)
        assert done.code == 0, done.err + done.out
        return target

    def manifest(self) -> dict[str, object]:
        """Read the manifest of the latest complete snapshot out of staging's last run."""
        document = json.loads((self.root / ".iotops" / "staging" / "manifest.json").read_bytes())
        assert isinstance(document, dict)
        return document

    def backup(self, *argv: str, code: int = 0) -> dict[str, object]:
        """Make a backup that must end with that code; give its result."""
        done = self.iotops("backup", "--json", *argv)
        assert done.code == code, done.err + done.out
        assert "Traceback" not in done.err
        return done.result()

    def refused(self, *argv: str) -> Ended:
        """Make a backup that must be refused with a next step."""
        done = self.iotops("backup", *argv)
        assert done.code == 1, done.err + done.out
        assert "next:" in done.err and "Traceback" not in done.err
        return done

    def remove(self) -> None:
        """End everything."""
        self.repository_disk.remove()
        super().remove()


def guarded_hub() -> GuardedHub:
    """Make one in a folder of its own."""
    return made_hub(GuardedHub, "iotops-guards-")
