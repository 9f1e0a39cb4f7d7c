"""Repositories that were harmed, held or are not where they should be: every call tells, at once.

Beside `tests/clients/test_restic.py`, which goes the good way. Each test harms a copy.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from iotops.clients.restic import Repository, RepositoryAccess
from iotops.errors import Locked, RepositoryDamaged, RepositoryMissing, WrongPassword
from tests.conftest import need
from tests.support.lab import lab
from tests.support.resticbench import environment, hurry

pytestmark = pytest.mark.clients

VERSIONS = sorted(lab().restic) or ["none"]
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Harmed:
    """A copy of a repository that holds one snapshot of `source`."""

    access: RepositoryAccess
    source: Path
    snapshot: str

    @property
    def repository(self) -> Repository:
        return Repository(self.access)

    @property
    def folder(self) -> Path:
        return Path(self.access.url)

    def files(self, part: str) -> list[Path]:
        """Give the repository's files of one kind."""
        return [path for path in (self.folder / part).rglob("*") if path.is_file()]

    def calls(self, target: Path) -> dict[str, Callable[[], object]]:
        """Give every call of a run by its name."""
        made = self.repository
        return {
            "id": made.id,
            "snapshots": made.snapshots,
            "save": lambda: made.save(self.source, host="hub", tags=("iotops",)),
            "dump": lambda: made.dump(self.snapshot, "/file"),
            "restore": lambda: made.restore(self.snapshot, target),
            "forget": lambda: made.forget([self.snapshot]),
        }


@pytest.fixture(scope="module", params=VERSIONS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Harmed:
    version = str(request.param)
    need("restic")
    folder = tmp_path_factory.mktemp(f"restic-{version}")
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "source").mkdir()
    (folder / "source" / "file").write_bytes(os.urandom(50_000))
    access = RepositoryAccess(
        url=str(folder / "repository"),
        password_file=folder / "password",
        cache=folder / "cache",
        tmp=folder,
        program=str(lab().restic[version]),
    )
    Repository(access).init()
    hurry(folder / "repository", PASSWORD)
    saved = Repository(access).save(folder / "source", host="hub", tags=("iotops",))
    return Harmed(access, folder / "source", saved.snapshot)


@pytest.fixture
def harmed(sound: Harmed, tmp_path: Path) -> Harmed:
    """The copy, with a cache of its own: the old one would hide the damage."""
    shutil.copytree(sound.folder, tmp_path / "copied")
    for path in (tmp_path / "copied").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    access = replace(sound.access, url=str(tmp_path / "copied"), cache=tmp_path / "cache")
    return replace(sound, access=access)


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def awaited(what: Callable[[], bool], *, limit: float = 20) -> bool:
    """Wait until something holds."""
    until = time.monotonic() + limit
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("size", [0, 10, 50])
def test_a_cut_off_config(harmed: Harmed, size: int) -> None:
    os.truncate(harmed.folder / "config", size)
    with pytest.raises(RepositoryDamaged) as caught:
        harmed.repository.id()
    assert "aside" in caught.value.hint
    assert "/cobra" not in caught.value.message
    assert ".go" not in caught.value.message


def test_lost_data(harmed: Harmed, tmp_path: Path) -> None:
    # Before 0.17 restic tries for a quarter of an hour to read a lost pack; a lost index is told.
    old = harmed.repository.version() < (0, 17, 0)
    for path in harmed.files("index" if old else "data"):
        path.unlink()
    for name in ("dump", "restore"):
        with pytest.raises(RepositoryDamaged):
            harmed.calls(tmp_path / "out")[name]()


def test_a_changed_index(harmed: Harmed, tmp_path: Path) -> None:
    for path in harmed.files("index"):
        flip(path)
    for name in ("save", "dump", "restore"):
        with pytest.raises(RepositoryDamaged):
            harmed.calls(tmp_path / "out")[name]()


def test_a_new_file_of_the_same_size_and_time_is_read_again(harmed: Harmed, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(harmed.source, source)
    first = harmed.repository.save(source, host="hub", tags=())
    before, fresh = (source / "file").stat(), source / ".new"
    fresh.write_bytes(os.urandom(before.st_size))
    data = fresh.read_bytes()
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(source / "file")
    second = harmed.repository.save(source, host="hub", tags=())
    assert second.files_changed == 1
    assert harmed.repository.dump(second.snapshot, "/file") == data
    assert harmed.repository.dump(first.snapshot, "/file") != data


def test_the_other_versions_find_the_parent(harmed: Harmed) -> None:
    for version, program in lab().restic.items():
        repository = Repository(replace(harmed.access, program=str(program)))
        saved = repository.save(harmed.source, host="hub", tags=("iotops",))
        assert (saved.files, saved.files_unmodified) == (1, 1), version


def test_every_call_tells_of_an_exclusive_lock(harmed: Harmed, tmp_path: Path) -> None:
    locks = harmed.folder / "locks"
    values = environment(harmed.folder, harmed.access.password_file, tmp_path)
    said, saying = os.pipe()
    holder = subprocess.Popen(
        [harmed.access.program, "--no-cache", "check", "--read-data"],
        env=values,
        stdin=subprocess.DEVNULL,
        stdout=saying,
        stderr=saying,
    )
    os.close(saying)
    try:
        with os.fdopen(said, "rb") as pipe:
            heard = b""
            # Said after the lock has been made and looked at.
            while b"load" not in heard:
                part = os.read(pipe.fileno(), 4096)
                assert part, heard
                heard += part
            holder.send_signal(signal.SIGSTOP)
            assert list(locks.iterdir()), "it had ended before it was stopped"
            for name, call in harmed.calls(tmp_path / "out").items():
                with pytest.raises(Locked) as caught:
                    call()
                assert int(caught.value.exit) == 11, name
                assert f"PID {holder.pid}" in caught.value.message, name
    finally:
        holder.kill()
        holder.wait(timeout=30)
    assert harmed.files("snapshots")


def test_every_call_tells_of_a_wrong_password(harmed: Harmed, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple\n")
    other = replace(harmed, access=replace(harmed.access, password_file=wrong))
    for name, call in other.calls(tmp_path / "out").items():
        with pytest.raises(WrongPassword) as caught:
            call()
        assert int(caught.value.exit) == 12, name
        assert "battery" not in caught.value.message


@pytest.mark.parametrize("there", [True, False])
def test_no_call_makes_a_missing_repository(harmed: Harmed, tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "nowhere"
    if there:
        folder.mkdir()
    other = replace(harmed, access=replace(harmed.access, url=str(folder)))
    for name, call in other.calls(tmp_path / "out").items():
        with pytest.raises(RepositoryMissing) as caught:
            call()
        assert int(caught.value.exit) == 10, name
        assert folder.exists() == there, name
        assert not there or not list(folder.iterdir()), name
