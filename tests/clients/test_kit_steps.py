"""The steps of the kit's page, typed in their order on a machine that has lost everything.

The hub has real repositories and no engine (`tests/support/lighthub.py`); what is typed comes off
the page, and nothing else of the old machine is there.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from iotops.actions.kitpage import Access, Ground, steps
from tests.conftest import need
from tests.support.lighthub import HUB, ONE, LightHub

pytestmark = pytest.mark.clients


def box(page: str, number: int) -> str:
    """Copy the lines of one box, as a person would."""
    found = re.findall(r"(?:^    \w+=.*\n)+", page, re.MULTILINE)
    return "".join(line.strip() + "\n" for line in found[number].splitlines())


def type_in(hub: LightHub, commands: tuple[str, ...]) -> None:
    """Type the lines of a step; `sudo` is no more than what it runs here."""
    values = {**hub.environment(), "HOME": str(hub.base / "root")}
    for command in commands:
        argv = ["bash", "-c", command]
        done = subprocess.run(argv, env=values, cwd=hub.base, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@ONE
@pytest.mark.parametrize("copy", ["", "disk"])
def test_the_page_brings_the_hub_back(hub: LightHub, copy: str) -> None:
    need("root")
    hub.copy("disk")
    hub.good("backup")
    notes, settings = (hub.notes / "one.txt").read_bytes(), hub.settings.read_bytes()
    assert hub.iotops("kit", "--output", str(hub.base / "paper")).code == 0
    page = (hub.base / "paper/kit.txt").read_text()
    for path in (hub.folder, hub.base / "state", hub.root):
        shutil.rmtree(path)
    for path in (hub.password_file, hub.base / "password-disk"):
        path.unlink()
    if copy:
        shutil.rmtree(hub.repository)

    for folder in (hub.root, hub.base / "root"):
        folder.mkdir()
    program(hub.programs / "sudo", 'exec "$@"')
    program(hub.programs / "iotops", f'exec {sys.executable} -m iotops "$@"')
    ground = Ground(
        HUB, "root", hub.folder, hub.root, False, hub.base / "etc/hub", hub.base / "root"
    )
    files = {"": hub.password_file, "disk": hub.base / "password-disk"}
    accesses = [Access("", "", {}, copy=name, password_file=file) for name, file in files.items()]
    _, _, write, bring, restore, other, after = steps(ground, accesses)
    assert write.commands[0].startswith("sudo install")
    type_in(hub, write.commands[:1])
    typed = hub.base / "root/kit.env"
    assert stat.S_IMODE(typed.stat().st_mode) == 0o600
    typed.write_text(box(page, 1 if copy else 0))
    lines = other.commands if copy else (*bring.commands, *restore.commands)
    *before, last = lines
    type_in(hub, tuple(before))
    assert hub.settings.read_bytes() == settings
    assert (hub.base / "etc/hub").readlink() == hub.folder
    word = re.findall(r"RESTIC_PASSWORD=(\S+)", page)[0]
    assert files[copy].read_text() == word + "\n"
    assert stat.S_IMODE(files[copy].stat().st_mode) == 0o600
    # The hub's own folder is not at the usual link, and nobody is there to say yes.
    type_in(hub, (f"{last} --hub {hub.folder} --yes",))
    assert (hub.notes / "one.txt").read_bytes() == notes
    type_in(hub, (f"iotops status --hub {hub.folder}", after.commands[-1]))
    assert not typed.exists()
