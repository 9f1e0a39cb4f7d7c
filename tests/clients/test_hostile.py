"""Snapshots that lie, restored as root: refused before anything is touched, and nothing outside is.

Each is made with the real restic out of a good snapshot that was changed by hand, as somebody could
who has the repository's password. Real restics of every version take them out again.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.lighthub import HUB, NAME, ONE, LightHub
from tests.support.resticbench import environment

pytestmark = pytest.mark.clients

Document = dict[str, list[dict[str, list[dict[str, object]]]]]
"""The manifest, as far as it is forged."""


class Forger:
    """A snapshot laid out in a folder, to be changed and then put into the repository."""

    def __init__(self, hub: LightHub) -> None:
        self.hub = hub
        self.tree = hub.base / "forged"
        self.outside = hub.base / "outside"
        self.outside.mkdir()
        (self.outside / "mine").write_text("untouched")
        hub.restic("restore", "latest", "--target", str(self.tree))
        self.manifest: Document = json.loads((self.tree / "manifest.json").read_text())
        (self.service,) = self.manifest["services"]
        self.parts = {str(one["name"]): one["artifacts"] for one in self.manifest["parts"]}

    def claim(self, path: str, **more: object) -> None:
        """Have the manifest say that there is one more file."""
        like = next(one for one in self.service["artifacts"] if one["type"] == "file")
        self.service["artifacts"].append({**like, "path": path, **more})

    def save(self) -> str:
        """Put it into the repository as a complete snapshot of this hub."""
        (self.tree / "manifest.json").write_text(json.dumps(self.manifest))
        before = {*self.hub.ids()}
        tags = [word for tag in ("iotops", HUB, "complete") for word in ("--tag", tag)]
        subprocess.run(
            [str(self.hub.restic_program), "backup", ".", "--host", NAME, *tags],
            env=environment(self.hub.repository, self.hub.password_file, self.hub.base),
            cwd=self.tree,
            capture_output=True,
            check=True,
        )
        (made,) = {*self.hub.ids()} - before
        return made


def climbs(forger: Forger) -> None:
    forger.claim("notes/../../outside/mine")


def starts_at_the_root(forger: Forger) -> None:
    forger.claim(str(forger.outside / "mine"))


def claims_another_folder(forger: Forger) -> None:
    forger.claim("hub/.env")


def links_out_of_the_tree(forger: Forger) -> None:
    """A link where the manifest speaks of a folder: what lies behind it must not count."""
    (forger.tree / "notes" / "sub").symlink_to(forger.outside)
    forger.claim("notes/sub/mine", sha256=sha256(b"untouched").hexdigest(), size=9)


def is_a_link_itself(forger: Forger) -> None:
    for path in (forger.tree / "notes").iterdir():
        path.unlink()
    (forger.tree / "notes").rmdir()
    (forger.tree / "notes").symlink_to(forger.outside)


def has_a_set_uid_program(forger: Forger) -> None:
    program = forger.tree / "notes" / "program"
    program.write_bytes(b"#!/bin/sh\n")
    program.chmod(0o4755)
    digest = sha256(b"#!/bin/sh\n").hexdigest()
    forger.claim("notes/program", sha256=digest, size=10, mode=0o4755)


def has_a_device(forger: Forger) -> None:
    os.mknod(forger.tree / "notes" / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 200))


def has_a_file_too_many(forger: Forger) -> None:
    (forger.tree / "notes" / "stranger").write_text("x")


def lies_about_a_content(forger: Forger) -> None:
    (forger.tree / "notes" / "one.txt").write_text("other words\n" * 1000)


def lies_about_an_owner(forger: Forger) -> None:
    os.chown(forger.tree / "notes" / "one.txt", 12345, 12345)


def is_of_two_minds(forger: Forger) -> None:
    forger.service["artifacts"].append(dict(forger.service["artifacts"][-1]))


FORGERIES: tuple[tuple[Callable[[Forger], None], str], ...] = (
    (climbs, "outside of its part"),
    (starts_at_the_root, "outside of its part"),
    (claims_another_folder, "outside of its part"),
    (links_out_of_the_tree, "not in the manifest|behind a link"),
    (is_a_link_itself, "is a symbolic link|no directory"),
    (has_a_set_uid_program, "set-uid"),
    (has_a_device, "not in the manifest"),
    (has_a_file_too_many, "stranger is not in the manifest"),
    (lies_about_a_content, "other content than recorded"),
    (lies_about_an_owner, "owner 12345:12345"),
    (is_of_two_minds, "claimed twice"),
)


Seen = dict[str, tuple[object, ...]]


def seen(*folders: Path) -> Seen:
    """Everything in some folders, iotops' own left out: type, mode, owner, content."""
    found: dict[str, tuple[object, ...]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if ".iotops" in path.parts:
                continue
            state = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(state.st_mode) else b""
            found[str(path)] = (state.st_mode, state.st_uid, state.st_gid, content)
    return found


def forged(hub: LightHub, forge: Callable[[Forger], None]) -> tuple[str, Forger, Seen]:
    """Save a forged snapshot; give its id, who forged it, and what is there before it is used."""
    forger = Forger(hub)
    forge(forger)
    made = forger.save()
    return made, forger, seen(hub.root, hub.folder, forger.outside)


@pytest.mark.parametrize(("forge", "says"), FORGERIES)
def test_a_forged_snapshot_touches_nothing(
    hub: LightHub, forge: Callable[[Forger], None], says: str, tmp_path: Path
) -> None:
    need("root")
    made, forger, before = forged(hub, forge)
    done = hub.iotops("restore", made, "--yes")
    assert done.code == 1 and "next:" in done.err, done.err + done.out
    assert re.search(says, done.err + done.out), done.err + done.out
    assert seen(hub.root, hub.folder, forger.outside) == before
    left = [path for path in (hub.root / ".iotops" / "replaced").rglob("*") if path.is_file()]
    assert not left
    target = tmp_path / "out"
    into = hub.iotops("restore", made, "--into", str(target))
    assert into.code == 1, into.err + into.out
    assert seen(forger.outside) == {k: v for k, v in before.items() if "/outside/" in k}


@ONE
@pytest.mark.parametrize(("forge", "says"), FORGERIES)
def test_a_forged_snapshot_fails_its_drill(
    hub: LightHub, forge: Callable[[Forger], None], says: str
) -> None:
    need("root")
    made, forger, before = forged(hub, forge)
    done = hub.iotops("drill", made)
    assert done.code == 1 and re.search(says, done.err + done.out), done.err + done.out
    assert seen(hub.root, hub.folder, forger.outside) == before
    assert not [*(hub.root / ".iotops" / "tmp").iterdir()]


CARD_FORGERIES: tuple[tuple[str, str], ...] = (
    ("climbs", "outside of its part"),
    ("link", "behind a link|not in the manifest"),
    ("set-uid", "set-uid"),
    ("stranger", "stranger is not in the manifest"),
    ("content", "other content than recorded"),
)


@ONE
@pytest.mark.parametrize(("what", "says"), CARD_FORGERIES)
def test_a_new_card_takes_nothing_forged(
    hub: LightHub, tmp_path: Path, what: str, says: str
) -> None:
    need("root")
    forger = Forger(hub)
    artifacts = forger.parts["hub"]
    like = next(one for one in artifacts if one["type"] == "file")
    folder, mine = forger.tree / "hub", sha256(b"untouched").hexdigest()
    if what == "climbs":
        artifacts.append({**like, "path": "hub/../../outside/mine"})
    elif what == "link":
        (folder / "sub").symlink_to(forger.outside)
        artifacts.append({**like, "path": "hub/sub/mine", "sha256": mine, "size": 9})
    elif what == "content":
        (forger.tree / str(like["path"])).write_text("other words")
    else:
        (folder / "stranger").write_bytes(b"untouched")
    if what == "set-uid":
        (folder / "stranger").chmod(0o4755)
        more = {"sha256": mine, "size": 9, "mode": 0o4755}
        artifacts.append({**like, "path": "hub/stranger", **more})
    forger.save()
    before, card = seen(forger.outside), tmp_path / "card"
    done = hub.iotops(
        *("init", "--from-repository", str(hub.repository), str(card)),
        *("--password-file", str(tmp_path / "new-password")),
        *("--state", str(tmp_path / "new-state")),
        stdin=hub.password_file.read_text(),
    )
    assert done.code == 1 and re.search(says, done.err + done.out), done.err + done.out
    assert "next:" in done.err and not card.exists()
    assert not (tmp_path / "new-password").exists()
    assert seen(forger.outside) == before


@ONE
@pytest.mark.parametrize("name", ["hub", "other"])
def test_a_set_uid_program_among_what_is_no_services(
    hub: LightHub, name: str, tmp_path: Path
) -> None:
    need("root")
    forger = Forger(hub)
    program = forger.tree / name / "program"
    program.parent.mkdir(exist_ok=True)
    program.write_bytes(b"#!/bin/sh\n")
    program.chmod(0o4755)
    like = next(one for one in forger.service["artifacts"] if one["type"] == "file")
    digest = sha256(b"#!/bin/sh\n").hexdigest()
    claim = {**like, "path": f"{name}/program", "sha256": digest, "size": 10, "mode": 0o4755}
    forger.parts[name].append(claim)
    made = forger.save()
    target = tmp_path / "out"
    into = hub.iotops("restore", made, "--into", str(target))
    assert into.code == 1 and f"{name}/program has the set-uid" in into.err + into.out
    before = seen(hub.root, hub.folder)
    done = hub.iotops("restore", made, "--yes")
    assert done.code == 1 and f"{name}/program has the set-uid" in done.err, done.err + done.out
    assert seen(hub.root, hub.folder) == before


def test_what_was_not_forged_is_restored(hub: LightHub) -> None:
    """The same way about it, with nothing changed, ends well: the others fail for their reason."""
    made = Forger(hub).save()
    (hub.notes / "one.txt").write_text("spoilt")
    done = hub.iotops("restore", made, "--yes")
    assert done.code == 0, done.err + done.out
    assert (hub.notes / "one.txt").read_text() == "first words\n" * 1000


@ONE
def test_the_last_manifest_of_another_layout_is_still_known(hub: LightHub) -> None:
    """As one that an older version wrote: what is unchanged is not copied again."""
    hub.good("backup")  # the file had only just been written at the first one
    staged = hub.root / ".iotops" / "staging"
    before = (staged / "notes" / "one.txt").stat().st_ino
    document = json.loads((staged / "manifest.json").read_text())
    (service,) = document["services"]
    (artifact,) = (one for one in service["artifacts"] if one["path"] == "notes/one.txt")
    artifact["sha256"] = "0" * 64  # by which it is seen that it was taken over, not worked out
    (staged / "manifest.json").write_text(json.dumps(document, indent=2) + "\n")
    hub.good("backup")
    after = json.loads((staged / "manifest.json").read_text())["services"][0]["artifacts"]
    assert [one["sha256"] for one in after if one["path"] == "notes/one.txt"] == ["0" * 64]
    assert (staged / "notes" / "one.txt").stat().st_ino == before


@ONE
def test_a_folder_whose_name_cannot_be_written_down_is_no_good_backup(hub: LightHub) -> None:
    hub.notes.rename(hub.root / "no\\tes")
    text = hub.settings.read_text()
    hub.settings.write_text(text.replace('folder = "notes"', "folder = 'no\\tes'"))
    done = hub.iotops("backup")
    assert done.code == 3 and "has a backslash in it" in done.out + done.err
