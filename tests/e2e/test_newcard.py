"""The system disk is gone, and the data disk, too: what is left is the repository and the kit."""

from __future__ import annotations

import json
import shutil
import stat
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
from tests.support.fullhub import full_hub
from tests.support.hubs import Ended, HubUnderTest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def card() -> Iterator[HubUnderTest]:
    """A hub of its own, with content in every service, flows in Git and one backup."""
    with full_hub("iotops-card-", "card") as hub:
        backed_up(hub)
        yield hub


def tree(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Give every file below a folder: mode, owner and content; Git's own files change by use."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if ".git" in inside.parts or path.is_dir():
            continue
        state = path.lstat()
        data = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        found[str(inside)] = (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid, data)
    return found


def history(folder: Path, branch: str) -> str:
    """Give the commits of a branch."""
    argv = ["git", "-C", str(folder), "log", "--format=%H %s", branch, "--"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def new_card(hub: HubUnderTest, target: Path, typed: str, *more: str, at: str = "") -> Ended:
    return hub.iotops(
        *("init", "--from-repository", at or str(hub.repository), str(target), "--json"),
        *("--password-file", str(hub.base / "new" / "password")),
        *("--credentials-file", str(hub.base / "new" / "credentials")),
        *("--state", str(hub.base / "new-state"), *more),
        hub=False,
        stdin=typed,
    )


def test_nothing_but_the_kit(card: HubUnderTest, tmp_path: Path) -> None:
    """The case: hub folder, state, secrets and data are gone; two commands bring them back."""
    hub, password = card, card.password_file.read_text().strip()
    files, commits = tree(hub.folder), {b: history(hub.folder, b) for b in ("main", "flows")}
    revision = flows_revision(hub)
    token = hub.env_value("INFLUXDB_OPERATOR_TOKEN")

    down = hub.iotops("down")
    assert down.code == 0, down.err
    hub.disk.lose()
    for path in (hub.folder, hub.state, hub.run_folder, hub.password_file.parent):
        shutil.rmtree(path)

    typed = f"RESTIC_REPOSITORY={hub.repository}\nRESTIC_PASSWORD={password}\n"
    made = hub.iotops(
        *("init", "--from-repository", "-", str(hub.folder), "--json"),
        *("--password-file", str(hub.password_file)),
        hub=False,
        stdin=typed,
    )
    assert made.code == 0, made.err + made.out
    assert password not in made.out + made.err
    result = made.result()
    assert result["next"] == "iotops restore latest --claim-disk"
    missing = result["missing"]
    assert isinstance(missing, list)
    assert not [one for one in missing if one["code"] == "machine.lacks"]
    assert tree(hub.folder) == files
    assert {b: history(hub.folder, b) for b in ("main", "flows")} == commits
    assert history(hub.folder / "flows", "HEAD") == commits["flows"]
    assert stat.S_IMODE(hub.password_file.stat().st_mode) == 0o600

    restored = hub.iotops("restore", "latest", "--claim-disk", "--yes")
    assert restored.code == 0, restored.err + restored.out
    assert retained(hub, "house/lamp") == "on"
    assert points(hub) == 1 and hub.env_value("INFLUXDB_OPERATOR_TOKEN") == token
    assert flows_revision(hub) == revision
    again = hub.iotops("backup")
    assert again.code == 0, again.err
    pulled = hub.iotops("flows", "pull")
    assert pulled.code == 0, pulled.err


def test_what_is_there_is_not_overwritten(card: HubUnderTest, tmp_path: Path) -> None:
    password = card.password_file.read_text()
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    done = new_card(card, full, password)
    assert done.code == 1 and "not empty" in done.err and [*full.iterdir()] == [full / "mine"]
    other = card.base / "new" / "password"
    other.parent.mkdir(exist_ok=True)
    other.write_text("another\n")
    done = new_card(card, tmp_path / "hub", password)
    assert done.code == 1 and "holds something else" in done.err
    assert not (tmp_path / "hub").exists() and other.read_text() == "another\n"
    other.unlink()


@pytest.mark.parametrize(
    ("typed", "at", "code", "says"),
    [
        ("wrong\n", "", 12, "password"),
        ("", "", 2, "its password was not given"),
        ("RESTIC_PASSWORD=x\n", "-", 2, "address was not given"),
        ("x\n", "/nowhere/at/all", 10, "no repository"),
    ],
)
def test_what_is_typed_wrong_is_told(
    card: HubUnderTest, tmp_path: Path, typed: str, at: str, code: int, says: str
) -> None:
    done = new_card(card, tmp_path / "hub", typed, at=at)
    assert done.code == code and says in done.err, done.err
    assert not (tmp_path / "hub").exists() and "Traceback" not in done.err


def test_an_unknown_hub_lists_the_known_ones(card: HubUnderTest, tmp_path: Path) -> None:
    password = card.password_file.read_text()
    done = new_card(card, tmp_path / "hub", password, "--name", "other")
    assert done.code == 2 and "test-hub (" in done.err


def test_another_owner_gets_the_files_and_what_lacks_is_listed(
    card: HubUnderTest, tmp_path: Path
) -> None:
    """The owner of the snapshot has no account here; the disk is not mounted."""
    settings = card.folder / "iotops.toml"
    text = settings.read_text()
    settings.write_text(text.replace('owner = "root"', 'owner = "nobody-knows"'))
    try:
        backup = card.iotops("backup", "--json")
        assert backup.code in (0, 3), backup.err
    finally:
        settings.write_text(text)
    done = new_card(card, tmp_path / "hub", card.password_file.read_text())
    assert done.code == 0, done.err
    lacks = {one["subject"]: one for one in json.loads(done.out.splitlines()[-1])["missing"]}
    assert "useradd -m nobody-knows" in lacks["owner"]["hint"]
    card.iotops("backup")
