"""Two machines that run under one hub's id are found, whoever of them looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.lighthub import ONE, LightHub, words

NAMED = 'hostname another-machine && exec "$0" "$@"'


@pytest.fixture
def twin(hub: LightHub, tmp_path: Path) -> LightHub:
    """The same hub on a copied card: disk, state and records of its own, the same repository."""
    made = LightHub(tmp_path / "twin", hub.version, like=hub)
    text = made.settings.read_text()
    made.settings.write_text(text.replace(str(made.repository), str(hub.repository)))
    return made


@ONE
def test_a_copied_card_is_found_by_both(hub: LightHub, twin: LightHub) -> None:
    """Host name and machine id are the same; each tells of the other, and the backup is good."""
    assert "another machine" not in twin.iotops("doctor").out
    twin.change("written on the copy")
    first = twin.good("backup")
    assert first["warnings"] == []
    told = hub.iotops("doctor")
    words(
        told, "another machine makes snapshots", str(first["snapshot"])[:8], "copy of this system"
    )

    done = hub.iotops("backup")
    assert done.code == 0, done.err
    words(done, "another machine makes snapshots", "iotops down")
    assert "another machine" not in hub.iotops("doctor").out, "it has the newest one now"
    words(twin.iotops("doctor"), "another machine makes snapshots")


@ONE
def test_both_machines_are_named(hub: LightHub, twin: LightHub) -> None:
    need("root")
    argv = ["unshare", "--uts", "sh", "-c", NAMED, sys.executable, "-m", "iotops", "backup"]
    done = subprocess.run(
        [*argv, "--hub", str(twin.folder)],
        env=twin.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    words(hub.iotops("doctor"), "by another-machine, and this is " + here)


@ONE
def test_the_other_ones_retention_does_not_hide_it(hub: LightHub, twin: LightHub) -> None:
    """This machine's last snapshot was removed by the other, which goes on."""
    (own,) = hub.ids()
    twin.change("written on the copy")
    twin.good("backup")
    hub.restic("forget", own)
    words(hub.iotops("doctor"), "another machine makes snapshots")


@ONE
def test_a_snapshot_whose_run_was_killed_is_this_machines_own(hub: LightHub) -> None:
    """The state file does not know it, the journal does."""
    state = next((hub.base / "state").glob("*.json"))
    before = state.read_bytes()
    hub.change("more")
    hub.good("backup")
    state.write_bytes(before)
    assert "another machine" not in hub.iotops("doctor").out
    assert hub.good("backup")["warnings"] == []
