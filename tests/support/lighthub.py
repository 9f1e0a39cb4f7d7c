"""A hub for questions about its repositories: real restic, no engine, one folder of files.

Its `docker` is a program that answers like an engine without containers: what is asked of these
hubs never depends on one. Everything else is the product as a person drives it. The repositories
open at once (`resticbench.hurry`), so that a dozen commands take seconds. Not here: any assertion
about the product.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.hubs import Ended
from tests.support.lab import lab
from tests.support.resticbench import environment, hurry

VERSIONS = sorted(lab().restic, key=lambda text: [int(part) for part in text.split(".")]) or ["-"]
ENDS = pytest.mark.parametrize("hub", sorted({VERSIONS[0], VERSIONS[-1]}), indirect=True)
ONE = pytest.mark.parametrize("hub", VERSIONS[-1:], indirect=True)
"""For what differs with old and new restics only, and for what is no matter of its version."""

HUB = "0123456789abcdef"
NAME = "light-hub"

DOCKER = """#!/bin/sh
# An engine that answers, and runs nothing.
case "$*" in
    *"compose version"*) echo 2.26.1 ;;
    *config*) echo '{"name": "light", "services": {}}' ;;
    version*) echo 26.1.5 1.45 ;;
    *) ;;
esac
"""


class LightHub:
    """One hub in a temporary folder.

    Args:
        base: a folder, made here. version: of restic.
        like: another one that is copied, repository and records included.

    Attributes:
        folder: the hub folder. notes: the service's folder. repository: the first repository.
    """

    def __init__(self, base: Path, version: str, *, like: LightHub | None = None) -> None:
        self.base = base
        self.version = version
        self.restic_program = lab().restic[version]
        self.folder, self.root = base / "hub", base / "data"
        self.notes = self.root / "notes"
        self.repository = base / "repository"
        self.password_file = base / "password"
        self.programs = base / "bin"
        self.settings = self.folder / "iotops.toml"
        if like is not None:
            shutil.copytree(like.base, base, symlinks=True)
            text = self.settings.read_text().replace(str(like.base), str(base))
            self.settings.write_text(text)
            return
        for path in (self.folder, self.notes, self.programs):
            path.mkdir(parents=True)
        (self.programs / "docker").write_text(DOCKER)
        (self.programs / "docker").chmod(0o755)
        (self.programs / "restic").symlink_to(self.restic_program)
        (self.folder / "docker-compose.yaml").write_text("name: light\nservices: {}\n")
        (self.folder / ".env").touch(0o600)
        (self.notes / "one.txt").write_text("first words\n" * 1000)
        self.settings.write_text(
            f'[hub]\nid = "{HUB}"\nname = "{NAME}"\nowner = "root"\n\n'
            f'[data]\nroot = "{self.root}"\nkind = "folder"\n\n'
            '[services.notes]\nkind = "files"\nfolder = "notes"\nhot = true\n\n'
            f'[paths]\nstate = "{base / "state"}"\nrun = "{base / "run"}"\n'
        )
        (self.root / ".iotops-data-root").write_text(json.dumps({"hub": HUB}))

    def make(self) -> None:
        """Make its first repository."""
        made = self.iotops(
            "init",
            *("--repository", str(self.repository)),
            *("--password-file", str(self.password_file)),
        )
        assert made.code == 0, made.err
        hurry(self.repository, self.password_file.read_text().strip())

    def iotops(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        limit: float = 120,
        stdin: str = "",
    ) -> Ended:
        """Run one command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "iotops", *argv, "--hub", str(self.folder)],
            env=self.environment(env),
            capture_output=True,
            text=True,
            timeout=limit,
            input=stdin,
            cwd=self.base,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def good(self, *argv: str) -> dict[str, object]:
        """Run a command that must succeed, and give its result."""
        done = self.iotops(*argv, "--json")
        assert done.code == 0, done.err + done.out
        return done.result()

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Give what a command of this hub runs with."""
        path = f"{self.programs}:{os.environ['PATH']}"
        return {**os.environ, "PYTHONPATH": os.fspath(Path.cwd()), "PATH": path, **(more or {})}

    def restic(
        self,
        *argv: str,
        at: Path | str | None = None,
        password: Path | None = None,
        program: Path | None = None,
    ) -> str:
        """Run the bare restic on the repository, or another one."""
        values = environment(Path(at or self.repository), password or self.password_file, self.base)
        values["RESTIC_REPOSITORY"] = str(at or self.repository)
        values["XDG_CACHE_HOME"] = str(self.base / "bare-cache")
        done = subprocess.run(
            [program or self.restic_program, *argv],
            env=values,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def old(self, when: datetime, outcome: str = "complete") -> str:
        """Put a snapshot of another day into the repository; gives its id."""
        staging = self.root / ".iotops" / "staging"
        assert (staging / "manifest.json").is_file(), "make one backup first"
        before = {*self.ids()}
        tags = [word for tag in ("iotops", HUB, outcome) for word in ("--tag", tag)]
        time = when.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        source = self.base / "old"
        source.mkdir(exist_ok=True)
        shutil.copy(staging / "manifest.json", source)
        done = subprocess.run(
            [str(self.restic_program), "backup", ".", "--host", NAME, *tags, "--time", time],
            env=environment(self.repository, self.password_file, self.base),
            cwd=source,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (made,) = {*self.ids()} - before
        return made

    def ids(self, at: Path | str | None = None, password: Path | None = None) -> list[str]:
        """List the snapshots of the repository, or another one, oldest first."""
        text = self.restic("snapshots", "--json", "--no-lock", at=at, password=password)
        found = sorted(json.loads(text) or [], key=lambda one: str(one["time"]))
        return [str(one["id"]) for one in found]

    def copy(
        self, name: str, url: str | Path = "", *more: str, hurried: Path | None = None
    ) -> Path:
        """Make a copy; gives the password file of it.

        Args:
            url: empty = a folder beside the repository. more: options of `init`.
            hurried: the folder of it, if it can be reached, to let it open at once.
        """
        where = url or self.base / name
        password = self.base / f"password-{name}"
        made = self.iotops(
            *("init", "--repository", str(where), "--copy", name),
            *("--password-file", str(password), *more),
        )
        assert made.code == 0, made.err
        folder = hurried or (self.base / name if not url else None)
        if folder is not None:
            hurry(folder, password.read_text().strip())
        return password

    def state(self) -> dict[str, object]:
        """Read the state file."""
        document = json.loads((self.base / "state" / f"{HUB}.json").read_text())
        assert isinstance(document, dict)
        return document

    def add(self, text: str) -> None:
        """Add lines to the settings."""
        self.settings.write_text(self.settings.read_text() + "\n" + text)

    def change(self, text: str) -> None:
        """Let the next backup have something new."""
        (self.notes / "two.txt").write_text(text)


def words(done: Ended, *wanted: str) -> None:
    """Find words in all that a command said."""
    said = done.out + done.err
    for one in wanted:
        assert one in said, f"{one!r} is missing in:\n{said}"
