"""What `docs/how-to/restore-without-iotops.md` says is done by a shell, word for word.

The data disk is lost and the hub folder spoilt; then the page's own blocks run in their order, with
this hub's places for the ones that the page names. iotops is asked again only when all is back.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import (
    backed_up,
    flows_revision,
    points,
    retained,
)
from tests.support.fullhub import LAMP, full_hub
from tests.support.hubs import HubUnderTest

pytestmark = pytest.mark.e2e

PAGE = Path("docs/how-to/restore-without-iotops.md").resolve()
LINES_OF_NPM = 2
"""The palette's command, the last of its block; the page says that a hub without one leaves it."""


@pytest.fixture
def lost() -> Iterator[HubUnderTest]:
    """A hub of its own, to be lost; its retained message is a word of this moment."""
    with full_hub("iotops-plain-", "plain", lamp=secrets.token_hex(8)) as hub:
        yield hub


def blocks(hub: HubUnderTest, snapshot: Path) -> list[str]:
    """Give the page's shell blocks with this hub's own places."""
    places = {
        "/mnt/backup/iot-hub": hub.repository,
        "/etc/iotops/restic-password": hub.password_file,
        "--host iot-hub": "--host test-hub",
        "/tmp/snapshot": snapshot,
        "/srv/iot-hub": hub.folder,
        "/mnt/iot-data": hub.root,
    }
    found = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for said, here in places.items():
        assert any(said in block for block in found), said
        found = [block.replace(said, str(here)) for block in found]
    return found


def test_the_page_brings_a_lost_hub_back(lost: HubUnderTest, tmp_path: Path) -> None:
    hub, word = lost, retained(lost, LAMP)
    (hub.root / "notes").mkdir()
    (hub.root / "notes" / "wiring.txt").write_text(word)
    backed_up(hub)
    revision, settings = flows_revision(hub), (hub.folder / "iotops.toml").read_text()
    (hub.folder / "iotops.toml").write_text("spoilt")

    take, put, made_again, start = blocks(hub, tmp_path / "snapshot")
    first, *rest = put.splitlines(keepends=True)
    assert first.rstrip().endswith("down")
    if not (hub.root / "nodered" / "package-lock.json").exists():
        lines = made_again.splitlines(keepends=True)
        assert "npm" in lines[-LINES_OF_NPM]
        made_again = "".join(lines[:-LINES_OF_NPM])
    shell(hub, first)
    hub.disk.lose()
    shell(hub, "set -e\n" + "\n".join([take, "".join(rest), made_again, start]))

    assert (hub.folder / "iotops.toml").read_text() == settings
    (identity,) = re.findall(r'^id = "(\w+)"', settings, re.MULTILINE)
    (hub.root / ".iotops-data-root").write_text(json.dumps({"hub": identity}))
    up = hub.iotops("up")
    assert up.code == 0, up.err + up.out
    assert retained(hub, LAMP) == word
    assert points(hub) == 1
    assert flows_revision(hub) == revision
    assert (hub.root / "notes" / "wiring.txt").read_text() == word
    assert backed_up(hub, "--accept-disk")["outcome"] == "complete"


def shell(hub: HubUnderTest, text: str) -> None:
    """Run what a person would paste."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "TMPDIR": str(hub.base)}
    done = subprocess.run(["sh", "-c", text], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
