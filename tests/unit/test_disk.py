"""The data root: real mounts, real file systems; every answer of the guard."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iotops import disk
from iotops.clients import files
from iotops.errors import GuardError
from iotops.model import Severity
from tests.conftest import need
from tests.support.disk import Disk

pytestmark = pytest.mark.unit

HUB, OTHER = "0123456789abcdef", "fedcba9876543210"


def run(*argv: str | Path) -> str:
    """Run a program that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def codes(root: Path, kind: disk.Kind = "folder", hub: str = HUB, uuid: str = "") -> list[str]:
    """The codes of all findings, in order."""
    return [finding.code for finding in disk.inspect(root, kind, hub, uuid)]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount things at folders below tmp_path; all of it is unmounted afterwards, newest first."""
    need("root")
    done: list[Path] = []

    def act(name: str, *argv: str | Path) -> Path:
        point = tmp_path / name
        point.mkdir(exist_ok=True)
        run("mount", *(argv or ("-t", "tmpfs", "none")), point)
        done.append(point)
        return point

    yield act
    for point in reversed(done):
        run("umount", "-l", point)


@pytest.fixture
def claimed(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    disk.claim(root, "folder", HUB, "home")
    return root


# ---- mount points ------------------------------------------------------------------------------


def test_a_plain_folder_is_no_mount_point(tmp_path: Path) -> None:
    assert not disk.is_mount_point(tmp_path)
    assert disk.is_mount_point(Path("/"))
    assert disk.is_mount_point(Path("/proc"))


def test_a_mounted_file_system_is_a_mount_point(mount: Callable[..., Path]) -> None:
    point = mount("with a blank and \\ and ö")
    assert disk.is_mount_point(point)
    (point / "inside").mkdir()
    assert not disk.is_mount_point(point / "inside")


def test_a_link_to_a_mount_point_counts(mount: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(mount("real"))
    assert disk.is_mount_point(tmp_path / "link")


def test_a_bind_mount_of_another_folder_counts(mount: Callable[..., Path], tmp_path: Path) -> None:
    """Of the same file system too: comparing device numbers with the parent would not see it."""
    (tmp_path / "source").mkdir()
    point = mount("target", "--bind", tmp_path / "source")
    assert point.stat().st_dev == tmp_path.stat().st_dev
    assert disk.is_mount_point(point)


def test_a_folder_bound_onto_itself_does_not_count(
    mount: Callable[..., Path], tmp_path: Path
) -> None:
    """systemd does that to a plain folder named by ReadWritePaths=."""
    (tmp_path / "data").mkdir()
    point = mount("data", "--bind", tmp_path / "data")
    assert not disk.is_mount_point(point)


def test_a_real_mount_bound_onto_itself_counts(mount: Callable[..., Path], tmp_path: Path) -> None:
    mount("data")
    assert disk.is_mount_point(mount("data", "--bind", tmp_path / "data"))


# ---- judging -----------------------------------------------------------------------------------


def test_a_missing_folder_is_told_and_not_made(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for kind in ("mount", "folder"):
        (found,) = disk.inspect(root, kind, HUB)
        assert found.code == "mount.missing"
        assert found.severity is Severity.ERROR
        with pytest.raises(GuardError):
            disk.claim(root, kind, HUB, "home")
    assert not root.exists()


def test_a_file_is_no_data_root(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert codes(tmp_path / "data") == ["mount.missing"]


def test_an_unmounted_disk_is_told(claimed: Path) -> None:
    """Even where a sentinel lies on the SD card beneath the mount point."""
    assert codes(claimed, "folder") == []
    assert codes(claimed, "mount") == ["mount.absent"]
    with pytest.raises(GuardError, match="not a mount point") as caught:
        disk.require(claimed, "mount", HUB)
    assert "mount" in caught.value.hint


def test_an_empty_disk_can_be_claimed(mount: Callable[..., Path]) -> None:
    root = mount("data")
    (root / "lost+found").mkdir()
    (found,) = disk.inspect(root, "mount", HUB)
    assert found.code == "mount.unclaimed"
    assert "iotops init --claim-disk" in found.hint
    assert "iotops restore latest --claim-disk" in found.hint
    assert disk.claimable(root, "mount")
    disk.claim(root, "mount", HUB, "home")
    disk.require(root, "mount", HUB)
    assert not disk.claimable(root, "mount")


def test_another_hubs_disk_is_refused(claimed: Path) -> None:
    before = (claimed / disk.SENTINEL).read_bytes()
    assert codes(claimed, hub=OTHER) == ["mount.foreign"]
    with pytest.raises(GuardError, match=HUB):
        disk.claim(claimed, "folder", OTHER, "other")
    assert not disk.claimable(claimed, "folder")
    assert (claimed / disk.SENTINEL).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"hub": 7}', b'{"hub": ""}', b"\xff\xfe"])
def test_a_damaged_sentinel_belongs_to_nobody(claimed: Path, content: bytes) -> None:
    (claimed / disk.SENTINEL).write_bytes(content)
    assert codes(claimed) == ["mount.foreign"]
    assert codes(claimed, hub="") == ["mount.foreign"]
    with pytest.raises(GuardError):
        disk.claim(claimed, "folder", HUB, "home")


def test_data_without_a_sentinel_is_refused(claimed: Path) -> None:
    (claimed / disk.SENTINEL).unlink()
    (claimed / "influxdb").mkdir()
    assert codes(claimed) == ["mount.data-without-sentinel"]
    with pytest.raises(GuardError):
        disk.claim(claimed, "folder", HUB, "home")
    assert not (claimed / disk.SENTINEL).exists()


def test_records_of_a_hub_are_data(claimed: Path) -> None:
    """A disk whose sentinel was lost but which holds old data of a restore is not empty."""
    (claimed / disk.SENTINEL).unlink()
    (disk.layout(claimed).replaced / "old").write_text("x")
    assert codes(claimed) == ["mount.data-without-sentinel"]


def test_a_claim_cut_short_can_be_repeated(claimed: Path) -> None:
    (claimed / disk.SENTINEL).rename(claimed / f"{files.TEMPORARY}0123456789abcdef")
    disk.layout(claimed).cache.rmdir()
    assert disk.claimable(claimed, "folder")
    disk.claim(claimed, "folder", HUB, "home")
    assert codes(claimed) == []
    assert disk.layout(claimed).cache.is_dir()


def test_a_read_only_disk_is_refused(mount: Callable[..., Path]) -> None:
    root = mount("data")
    disk.claim(root, "mount", HUB, "home")
    run("mount", "-o", "remount,ro", root)
    assert codes(root, "mount") == ["mount.readonly"]
    with pytest.raises(GuardError, match="read-only"):
        disk.claim(root, "mount", HUB, "home")


def test_a_folder_that_may_not_be_read_is_a_finding(claimed: Path) -> None:
    """`iotops status` is also called by people who are not root."""
    need("root")
    claimed.chmod(0o700)
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        os.setresuid(12345, 12345, 12345)
        good = codes(claimed) == ["mount.unreadable"]
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- claiming ----------------------------------------------------------------------------------


def test_a_claim_makes_the_layout(claimed: Path) -> None:
    document = json.loads((claimed / disk.SENTINEL).read_text())
    assert document["hub"] == HUB
    assert document["name"] == "home"
    assert document["created"].endswith("+00:00")
    places = disk.layout(claimed)
    modes = {
        places.folder: 0o711,
        places.staging: 0o700,
        places.replaced: 0o700,
        places.journal: 0o2750,
        places.cache: 0o700,
        places.tmp: 0o700,
    }
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in modes} == modes
    assert {path.name for path in places.folder.iterdir()} == {
        "staging",
        "replaced",
        "journal",
        "restic-cache",
        "tmp",
    }


def test_records_belong_to_the_owners_group(tmp_path: Path) -> None:
    need("root")
    disk.claim(tmp_path, "folder", HUB, "home", group=12346)
    record = disk.layout(tmp_path).journal / "record.json"
    record.write_text("{}")
    assert record.stat().st_gid == 12346


def test_a_claimed_root_gets_what_is_missing_and_keeps_its_sentinel(claimed: Path) -> None:
    before = (claimed / disk.SENTINEL).stat()
    disk.layout(claimed).tmp.rmdir()
    disk.claim(claimed, "folder", HUB, "home")
    assert disk.layout(claimed).tmp.is_dir()
    assert (claimed / disk.SENTINEL).stat().st_ino == before.st_ino


# ---- identity ----------------------------------------------------------------------------------


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Disk]:
    need("root")
    made = Disk(tmp_path / "disk.img", tmp_path / "mounted", 16 << 20)
    yield made
    made.remove()


def test_the_identity_is_the_file_systems_uuid(ext4: Disk) -> None:
    wanted = run("blkid", "-o", "value", "-s", "UUID", ext4.image).strip()
    found = disk.identity(ext4.mount)
    assert found in (wanted, "")  # "" on a kernel before 6.9 where udev does not run
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 9):
        assert found == wanted


def test_another_file_system_than_recorded_is_a_warning(ext4: Disk) -> None:
    disk.claim(ext4.mount, "mount", HUB, "home")
    here = disk.identity(ext4.mount)
    if not here:
        pytest.skip("this kernel does not tell the UUID")
    assert codes(ext4.mount, "mount", uuid=here) == []
    (found,) = disk.inspect(ext4.mount, "mount", HUB, "00000000-1111-2222-3333-444444444444")
    assert (found.code, found.severity) == ("mount.other-filesystem", Severity.WARNING)
    disk.require(ext4.mount, "mount", HUB, "00000000-1111-2222-3333-444444444444")


def test_a_lost_disk_is_empty_and_another_one(ext4: Disk) -> None:
    disk.claim(ext4.mount, "mount", HUB, "home")
    before = disk.identity(ext4.mount)
    ext4.lose()
    assert codes(ext4.mount, "mount", uuid=before)[0] == "mount.unclaimed"
    assert disk.claimable(ext4.mount, "mount")


def test_the_identity_of_what_has_none_is_empty(tmp_path: Path) -> None:
    assert disk.identity(Path("/proc")) == ""
    assert disk.identity(tmp_path / "missing") == ""
