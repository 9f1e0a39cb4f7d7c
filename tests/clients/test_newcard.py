"""A new system card whose users have other numbers, and whose owner may not be there at all.

With real restic, and the hub folder as its repository holds it.
"""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.hubs import Ended
from tests.support.lighthub import ONE, LightHub

pytestmark = pytest.mark.clients

THEN = 4711
"""The owner's number on the old machine; here it is nobody's, or somebody else's."""


def moved(hub: LightHub, owner: str, target: Path) -> dict[str, dict[str, str]]:
    """Back the hub up as one of an owner with that number, and bring its folder back elsewhere.

    Returns:
        What the new machine lacks or has otherwise, by subject.
    """
    need("root")
    text = hub.settings.read_text().replace('owner = "root"', f'owner = "{owner}"')
    hub.settings.write_text(text)
    (hub.folder / ".env").write_text("TOKEN=secret\n")
    (hub.folder / "mosquitto").mkdir()
    (hub.folder / "mosquitto" / "passwd").write_text("u:$7$x\n")
    for path in (hub.folder, *hub.folder.rglob("*")):
        os.lchown(path, THEN, THEN)
    os.chown(hub.folder / "mosquitto" / "passwd", 1883, 1883)
    hub.good("backup")
    done = hub.iotops(
        *("init", "--from-repository", str(hub.repository), str(target), "--json"),
        *("--password-file", str(hub.base / "new-password")),
        *("--state", str(hub.base / "new-state")),
        stdin=hub.password_file.read_text(),
    )
    assert done.code == 0, done.err
    document = json.loads(done.out.splitlines()[-1])
    return {one["subject"]: one for one in document["missing"]}


def owners(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [folder, *(one for one in folder.rglob("*") if ".git" not in one.parts)]
    found = {path.relative_to(folder).as_posix(): path.lstat() for path in paths}
    return {name: (state.st_uid, state.st_gid) for name, state in found.items()}


@ONE
def test_the_folder_goes_to_the_owner_whatever_number_he_has_here(
    hub: LightHub, tmp_path: Path
) -> None:
    entry = pwd.getpwnam("daemon")
    lacks = moved(hub, "daemon", tmp_path / "card")
    found = owners(tmp_path / "card")
    assert found.pop("mosquitto/passwd") == (1883, 1883), "a container's user has the same number"
    assert set(found.values()) == {(entry.pw_uid, entry.pw_gid)} and ".env" in found
    assert "owner" not in lacks


@ONE
def test_without_its_owner_nobody_else_gets_the_secrets(hub: LightHub, tmp_path: Path) -> None:
    """His old number may be another user's here: until he is made, the files are root's."""
    lacks = moved(hub, "nobody-knows", tmp_path / "card")
    found = owners(tmp_path / "card")
    assert found.pop("mosquitto/passwd") == (1883, 1883)
    assert set(found.values()) == {(0, 0)}
    assert (tmp_path / "card" / ".env").stat().st_mode & 0o077 == 0
    assert "useradd -m nobody-knows" in lacks["owner"]["hint"]
    assert f"chown -R --from=root nobody-knows: {tmp_path}/card" in lacks["owner"]["hint"]


@ONE
def test_where_the_data_root_goes_is_said(hub: LightHub, tmp_path: Path) -> None:
    """The old place is not mounted here: another one has to be named in two files."""
    text = hub.settings.read_text()
    root = hub.base / "not-there"
    hub.good("backup")
    hub.settings.write_text(text.replace(f'root = "{hub.root}"', f'root = "{root}"'))
    hub.root.rename(root)
    hub.good("backup")
    root.rename(hub.root)
    done = hub.iotops(
        *("init", "--from-repository", str(hub.repository), str(tmp_path / "card"), "--json"),
        *("--password-file", str(hub.base / "new-password")),
        *("--state", str(hub.base / "new-state")),
        stdin=hub.password_file.read_text(),
    )
    assert done.code == 0, done.err
    document = json.loads(done.out.splitlines()[-1])
    (mount,) = [one for one in document["missing"] if one["code"].startswith("mount.")]
    assert str(root) in mount["message"]
    assert "data.root" in mount["hint"] and "Compose file" in mount["hint"]


@ONE
@pytest.mark.parametrize("key", ["ssh_config", "credentials_file"])
def test_access_that_the_settings_look_for_is_said(hub: LightHub, tmp_path: Path, key: str) -> None:
    """The next command would refuse: the old machine had it in a file, and this one has not."""
    need("root")
    there, card = hub.base / key, tmp_path / "card"
    there.write_text("")
    there.chmod(0o600)
    text = hub.settings.read_text()
    hub.settings.write_text(text.replace("[repository]\n", f'[repository]\n{key} = "{there}"\n'))
    hub.good("backup")
    there.unlink()
    done = hub.iotops(
        *("init", "--from-repository", str(hub.repository), str(card), "--json"),
        *("--password-file", str(hub.base / "new-password")),
        *("--state", str(hub.base / "new-state")),
        stdin=hub.password_file.read_text(),
    )
    assert done.code == 0, done.err
    document = json.loads(done.out.splitlines()[-1])
    (lack,) = [one for one in document["missing"] if one["subject"] == "repository"]
    assert str(there) in lack["message"] and "iotops.toml" in lack["hint"]
    assert hub.iotops("snapshots", "--hub", str(card)).code == 2
    there.touch()
    assert hub.iotops("snapshots", "--hub", str(card)).code == 0


@ONE
def test_what_is_refused_before_anything_is_written(hub: LightHub, tmp_path: Path) -> None:
    need("root")
    hub.good("backup")
    password = tmp_path / "new-password"

    def start(target: Path, typed: str) -> Ended:
        return hub.iotops(
            *("init", "--from-repository", str(hub.repository), str(target)),
            *("--password-file", str(password), "--state", str(tmp_path / "state")),
            stdin=typed,
        )

    wrong = start(tmp_path / "card", "no such password")
    assert wrong.code == 12
    assert "type it as the kit has it" in wrong.err and "iotops.toml" not in wrong.err
    (tmp_path / "real").mkdir()
    for goal in ("real", "nowhere"):
        link = tmp_path / f"to-{goal}"
        link.symlink_to(tmp_path / goal)
        refused = start(link, hub.password_file.read_text())
        assert refused.code == 1
        assert "is a symbolic link" in refused.err and str(tmp_path / goal) in refused.err
    assert not password.exists() and not (tmp_path / "card").exists()
    assert not [*(tmp_path / "real").iterdir()]
