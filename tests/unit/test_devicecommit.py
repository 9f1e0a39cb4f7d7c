"""The commit of a device's texts: what fails behind it takes nothing of it back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from iotops import devices
from iotops.actions.devices import _commit
from iotops.clients.mosquittousers import UserFiles
from iotops.events import Event, Noted
from tests.support.paperhub import PaperHub

pytestmark = pytest.mark.unit


def git(folder: Path, *argv: str) -> str:
    done = subprocess.run(["git", "-C", folder, *argv], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("broken", ["state", "remote"])
def test_what_fails_behind_the_commit_does_not_deny_it(tmp_path: Path, broken: str) -> None:
    paper = PaperHub(tmp_path)
    git(paper.folder, "init", "--quiet", "--initial-branch=main")
    (paper.folder / "mosquitto").mkdir()
    for name in (devices.FILE, "mosquitto/acl"):
        (paper.folder / name).write_text("# seen\n")
    paper.write('[sync]\nremote = "ssh://git@example.org/hub.git"\n')
    if broken == "state":
        (tmp_path / "state").write_text("no folder")
    else:
        (paper.folder / ".git" / "config.lock").touch()  # another Git writes there
    heard: list[Event] = []
    places = UserFiles(paper.root / "passwd", paper.folder / "mosquitto" / "acl")
    commit = _commit(paper.open(), places, "Give a login", heard.append)
    assert commit == git(paper.folder, "rev-parse", "HEAD")
    said = [(one.level, one.text) for one in heard if isinstance(one, Noted)]
    assert not any("not committed" in text for _, text in said)
    (warning,) = (text for level, text in said if level == "warning")
    assert f"committed as {commit[:8]}, but" in warning
    assert any("bring the commit to the remote" in text for _, text in said)
