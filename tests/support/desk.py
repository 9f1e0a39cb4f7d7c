"""The clone at somebody's desk that a hub follows by config-sync: commits are made there.

For any kind of hub under test. Not here: any assertion, but that the hub can be taken into Git.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Generic, TypeVar

from tests.support.hubs import Ended, HubUnderTest

H = TypeVar("H", bound=HubUnderTest)


def git(folder: Path, *argv: str) -> str:
    """Run Git there, as somebody; give what it prints."""
    who = [word for pair in ("user.name=a", "user.email=a@b") for word in ("-c", pair)]
    done = subprocess.run(
        ["git", "-C", folder, *who, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Desk(Generic[H]):
    """A hub and the clone that it follows; made, the hub is equal to it.

    Attributes:
        hub, folder: the hub, and its hub folder. desk: the clone.
    """

    def __init__(self, hub: H, *, watch: int) -> None:
        self.hub = hub
        self.folder = hub.folder
        self.desk = hub.base / "desk"
        self.watch = watch
        with (hub.folder / "iotops.toml").open("a") as file:
            file.write(f'\n[sync]\nremote = "{self.desk}"\nwatch = {watch}\n')
        adopted = hub.iotops("sync", "adopt")
        assert adopted.code == 0, adopted.err + adopted.out
        git(hub.base, "clone", "-q", str(hub.folder), str(self.desk))
        applied = hub.iotops("sync", "apply", "--yes")
        assert applied.code == 0, applied.err + applied.out

    def commit(self, path: str, text: str) -> str:
        """Commit a file's new content at the desk."""
        (self.desk / path).parent.mkdir(exist_ok=True)
        (self.desk / path).write_text(text)
        git(self.desk, "add", "-A")
        git(self.desk, "commit", "-qm", f"Change {path}")
        return git(self.desk, "rev-parse", "HEAD")

    def watch_long(self) -> None:
        """Let the next commit be watched long: to fail by itself may take a while."""
        settings = self.desk / "iotops.toml"
        text = settings.read_text()
        settings.write_text(text.replace(f"watch = {self.watch}\n", "watch = 60\n"))

    def apply(self, *more: str) -> Ended:
        """Apply what the desk has."""
        done = self.hub.iotops("sync", "apply", "--yes", "--json", *more)
        assert "Traceback" not in done.err, done.err
        return done

    def head(self) -> str:
        """Give the commit that the hub folder is at."""
        return git(self.folder, "rev-parse", "HEAD")

    def edits(self) -> str:
        """Give what is not as committed in the hub folder, and the id of its files."""
        return git(self.folder, "status", "--short") + git(self.folder, "write-tree")

    def sync_state(self) -> dict[str, str]:
        """Give what the state file knows."""
        (path,) = self.hub.state.glob("*.json")
        return dict(json.loads(path.read_text())["sync"])

    def back(self) -> None:
        """Let the desk go back to what the hub is at, by a commit."""
        git(self.desk, "fetch", "-q", str(self.folder), "main")
        git(self.desk, "read-tree", "-u", "--reset", "FETCH_HEAD")
        git(self.desk, "commit", "-q", "--allow-empty", "-m", "Mend it")

    def mend(self) -> None:
        """Let the desk go back to what the hub is at, and apply that."""
        self.back()
        done = self.apply()
        assert done.code == 0, done.err + done.out
