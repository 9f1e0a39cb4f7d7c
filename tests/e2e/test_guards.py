"""No bad backup becomes the newest good one: each guard on a whole hub, with real restic.

Whatever happens to the disk, the clock, the room or the files: either everything is captured, byte
for byte, or the run does not count, and `latest` still is the good one from before.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.guardhub import PLACES, GuardedHub, guarded_hub
from tests.support.hubs import docker
from tests.unit.test_staging import ACCESS_LIST, EXCHANGER

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def made() -> Iterator[GuardedHub]:
    need("docker")
    need("root")
    hub = guarded_hub()
    try:
        yield hub
    finally:
        if not os.environ.get("IOTOPS_TEST_KEEP"):
            hub.remove()


@pytest.fixture
def light(made: GuardedHub) -> Iterator[GuardedHub]:
    """The hub with fresh data and a complete backup of it; what a test left there is removed."""
    clean(made)
    made.seed()
    made.backup("--accept-shrink", "--accept-disk", "--accept-clock")
    yield made
    clean(made)


def clean(hub: GuardedHub) -> None:
    for place in hub.root.iterdir():
        if place.name in (".iotops", ".iotops-data-root", "lost+found"):
            continue
        inside = [*place.iterdir()] if place.name in PLACES and not place.is_symlink() else [place]
        for path in inside:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def not_counted(hub: GuardedHub) -> Iterator[None]:
    """What happens within does not become the newest good backup."""
    word = (hub.root / "store" / "word").read_text()
    good, complete = hub.known()["good"], hub.complete()
    yield
    assert hub.known()["good"] == good
    assert hub.complete() == complete
    status = hub.iotops("status", "--json").result()
    lasts = status["last"]
    assert isinstance(lasts, list)
    (last,) = [one for one in lasts if one["action"] == "backup"]
    assert last["good"] == good["backup"] and last["outcome"] in ("partial", "failed")
    latest = hub.latest()
    assert {(latest / place / "word").read_text() for place in ("store", "cold")} == {word}
    assert (latest / "other" / "attic" / "word").read_text() == word


def missing(result: dict[str, object]) -> dict[str, str]:
    found = result["missing"]
    assert isinstance(found, dict)
    return found


# -- the disk -------------------------------------------------------------------------------------


def test_an_unmounted_disk(light: GuardedHub) -> None:
    with not_counted(light):
        light.disk.detach()
        try:
            assert "is not a mount point" in light.refused().err
            assert not any(light.root.iterdir())
        finally:
            light.disk.attach()


def test_another_hubs_disk(light: GuardedHub) -> None:
    sentinel = light.root / ".iotops-data-root"
    before = sentinel.read_text()
    with not_counted(light):
        sentinel.write_text('{"hub": "0123456789abcdef", "name": "theirs"}')
        assert "another hub" in light.refused().err
        sentinel.write_text(before)


@contextmanager
def copied(hub: GuardedHub, uuid: str = "") -> Iterator[Path]:
    """A block by block copy of the disk as it is now, with another UUID if one is given."""
    copy = hub.base / "copy.ext4"
    subprocess.run(["fsfreeze", "--freeze", str(hub.root)], check=True)
    try:
        subprocess.run(["cp", "--sparse=always", str(hub.disk.image), str(copy)], check=True)
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(hub.root)], check=True)
    if uuid:
        subprocess.run(["e2fsck", "-fy", str(copy)], check=False, capture_output=True)
        subprocess.run(["tune2fs", "-U", uuid, str(copy)], check=True, capture_output=True)
    try:
        yield copy
    finally:
        copy.unlink()


@contextmanager
def swapped(hub: GuardedHub, image: Path) -> Iterator[None]:
    """Another disk lies where the hub's own was."""
    hub.disk.detach()
    subprocess.run(["mount", "-o", "loop", str(image), str(hub.root)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(hub.root)], check=True)
        hub.disk.attach()


@pytest.mark.parametrize("uuid", ["", "11111111-2222-4333-8444-555555555555"])
def test_an_older_copy_of_the_disk(light: GuardedHub, uuid: str) -> None:
    """It has the sentinel, the journal, even the UUID; but not the last good backup."""
    old = (light.root / "store" / "word").read_text()
    with copied(light, uuid) as copy:
        time.sleep(1.1)  # records have whole seconds
        light.seed()
        light.backup()
        with not_counted(light), swapped(light, copy):
            assert (light.root / "store" / "word").read_text() == old
            refused = light.refused()
            assert "does not know of the last good backup" in refused.err
            assert "--accept-disk" in refused.err
            assert "disk.older" in light.iotops("status", "--json").out
            assert "disk.older" in light.iotops("doctor", "--json").out
        with swapped(light, copy):  # unless its owner wants just that one
            result = light.backup("--accept-disk")
            assert (light.latest() / "store" / "word").read_text() == old
            warnings = result["warnings"]
            assert isinstance(warnings, list)
            assert [uuid in one for one in warnings] == ([True] if uuid else [])
            assert light.backup()["warnings"] == []  # it is this hub's disk now


# -- what became less -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_an_emptied_folder(light: GuardedHub, place: str) -> None:
    part = "other" if place == "attic" else place
    with not_counted(light):
        for path in (light.root / place).iterdir():
            path.unlink()
        for _ in range(2):  # not forgiven by repeating it
            result = light.backup(code=3)
            assert set(missing(result)) == {part} and "fell from 21 to 0" in missing(result)[part]
    light.backup("--accept-shrink")
    light.backup()


def test_one_emptied_folder_among_others_that_belong_to_no_service(light: GuardedHub) -> None:
    """A nested disk that is not mounted, beside a big folder that hides its loss in the sum."""
    (light.root / "photos").mkdir()
    (light.root / "photos" / "one.jpg").write_bytes(os.urandom(2000))
    light.backup()
    with not_counted(light):
        (light.root / "photos" / "one.jpg").unlink()
        result = light.backup(code=3)
        assert "bytes of photos fell from 2000 to 0" in missing(result)["other"]
    (light.root / "photos").rmdir()  # removed by its owner, it is not missed
    light.backup()


@pytest.mark.parametrize("what", ["files", "bytes"])
def test_a_folder_that_fell_under_half(light: GuardedHub, what: str) -> None:
    folder = light.root / "store"
    many = [path for path in folder.iterdir() if path.name != "word"]

    def shrink(keep: int) -> None:
        for number, path in enumerate(many):
            if what == "bytes":
                path.write_bytes(os.urandom(keep * 50))
            elif number >= keep:
                path.unlink(missing_ok=True)

    with not_counted(light):
        shrink(8)
        result = light.backup(code=3)
        assert set(missing(result)) == {"store"} and f"{what} fell from" in missing(result)["store"]
        assert "--accept-shrink" in light.iotops("backup").out
    light.backup("--accept-shrink")
    shrink(6)
    light.backup()  # half of the new normal is what counts now
    with not_counted(light):
        shrink(2)
        assert set(missing(light.backup(code=3))) == {"store"}


def test_a_hub_folder_that_fell_under_half(light: GuardedHub) -> None:
    many = light.folder / "mosquitto" / "many"
    many.mkdir()
    for number in range(60):
        (many / f"{number}.conf").write_text("#\n" * 1000)
    try:
        light.backup()
        with not_counted(light):
            for path in many.iterdir():
                path.unlink()
            assert set(missing(light.backup(code=3))) == {"hub"}
    finally:
        shutil.rmtree(many)


# -- the clock and the room -----------------------------------------------------------------------


def test_a_clock_gone_back(light: GuardedHub) -> None:
    """To the state file it makes no difference which of the two times was wrong."""
    future = (datetime.now(UTC) + timedelta(days=2)).isoformat(timespec="seconds")
    light.claim_good(future)
    with not_counted(light):
        assert "the clock says" in light.refused().err
        kept = light.iotops("retention", "--apply", "--yes")
        assert kept.code == 1 and "clock" in kept.err
    light.backup("--accept-clock")
    assert light.known()["good"]["backup"] != future
    light.backup()


def test_no_space_for_staging(light: GuardedHub) -> None:
    """What is to be copied is larger than what is free."""
    with not_counted(light):
        with (light.root / "large").open("wb") as file:
            for _ in range(450):
                file.write(os.urandom(1 << 20))
        result = light.backup(code=3)
        assert set(missing(result)) == {"other"} and "No space left" in missing(result)["other"]
        (light.root / "large").unlink()
        free = os.statvfs(light.root)
        assert free.f_bavail * free.f_frsize > 700 << 20  # half a copy is not kept
    light.backup()


def test_a_full_disk_of_the_repository(light: GuardedHub) -> None:
    with not_counted(light):
        (light.root / "store" / "large").write_bytes(os.urandom(60 << 20))
        filler = light.repository_disk.mount / "filler"
        free = os.statvfs(filler.parent)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (30 << 20))
        assert "no space left" in light.refused().err.lower()
        filler.unlink()
    light.backup()


# -- files that move ------------------------------------------------------------------------------

RESTLESS = """
import itertools, os, sys
for number in itertools.count():
    for place in sys.argv[1:]:
        path = f"{place}/restless{number % 50}"
        with open(path, "wb") as file:
            file.write(b"gone soon")
        with open(f"{place}/growing.log", "ab") as file:
            file.write(b"line %08d\\n" % number)
        os.makedirs(f"{place}/short/lived", exist_ok=True)
        os.rename(f"{place}/short", f"{place}/renamed")
        os.rmdir(f"{place}/renamed/lived")
        os.rmdir(f"{place}/renamed")
        os.unlink(path)
    if number == 100:
        print("there", flush=True)
"""


@contextmanager
def busy(program: str, *argv: str) -> Iterator[None]:
    """A program that changes things all the time; it ends with the block."""
    with subprocess.Popen([sys.executable, "-c", program, *argv], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"there\n"
        try:
            yield
            assert child.poll() is None, "it ended early"
        finally:
            child.kill()


def test_files_that_vanish_and_grow_during_the_capture(light: GuardedHub) -> None:
    places = [light.root / "store", light.root / "attic"]
    with busy(RESTLESS, *map(str, places)):
        for _ in range(3):
            light.backup()
    latest = light.latest()
    for live, held in zip(places, (latest / "store", latest / "other/attic"), strict=True):
        log = (held / "growing.log").read_bytes()
        assert log and (live / "growing.log").read_bytes().startswith(log)
        for number in range(20):
            name = f"file{number}"
            assert (held / name).read_bytes() == (live / name).read_bytes()
    for place in places:
        shutil.rmtree(place / "renamed", ignore_errors=True)


def test_a_folder_exchanged_for_a_link_all_the_time(light: GuardedHub) -> None:
    outside = light.base / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not yours")
    place = light.root / "attic"
    (place / "x").mkdir()
    (place / "x" / "secret").write_text("mine")
    (place / "y").symlink_to(outside)
    try:
        with busy(EXCHANGER, str(place / "x"), str(place / "y")):
            for _ in range(3):
                done = light.iotops("backup", "--json")
                assert done.code in (0, 3), done.err  # refused is fine, followed is not
                staged = light.root / ".iotops/staging/other"
                for path in staged.rglob("secret"):
                    assert path.read_text() == "mine"
    finally:
        shutil.rmtree(outside)


# -- names and kinds of files ---------------------------------------------------------------------

NAMES = (
    b"new\nline",
    b"not utf-8 \xff\xfe",
    b"a" * 255,
    "漢".encode() * 85,
    b"-rf",
    b"--",
    b"*",
    b"[a-z]?{x,y}",
    b"trailing  ",
    b" leading",
    b"back\\slash \\x41 \\n",
    b"quote\"'$(date)`;&",
    b"\x01\x7f\x1b[31m",
    b"...",
    b"manifest.json",
    b".iotops-new-x",
)


def content(folder: Path) -> dict[bytes, bytes]:
    """Every file below a folder by its name relative to it, as bytes."""
    found = {}
    for top, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            path = top + b"/" + name
            found[os.path.relpath(path, os.fsencode(folder))] = Path(os.fsdecode(path)).read_bytes()
    return found


def on_top(root: Path) -> dict[bytes, bytes]:
    """The files at the top of the data root."""
    return {os.fsencode(one.name): one.read_bytes() for one in root.iterdir() if one.is_file()}


@pytest.mark.parametrize("place", ["store", "attic"])
def test_hostile_names(light: GuardedHub, place: str) -> None:
    for folder in (b"", b"sub", b"two\nlines \xff", b"-"):
        base = light.root / place / os.fsdecode(folder)
        base.mkdir(exist_ok=True)
        for name in NAMES:
            (base / os.fsdecode(name)).write_bytes(os.urandom(50))
    if place == "attic":  # and at the top of the data root
        for name in (b"top\nline", b"top \xff", b"-t", b"*"):
            (light.root / os.fsdecode(name)).write_bytes(os.urandom(50))
    wanted = content(light.root / place)
    light.backup()
    latest = light.latest()
    held = latest / place if place == "store" else latest / "other" / place
    assert content(held) == wanted
    if place == "store":
        shutil.rmtree(light.root / "store" / "sub")
        done = light.iotops("restore", "latest", "--service", "store", "--yes")
        assert done.code == 0, done.err
        assert content(light.root / "store") == wanted
        return
    top = {
        os.fsencode(path.name): path.read_bytes() for path in light.root.glob("*") if path.is_file()
    }
    for path in light.root.iterdir():
        if path.is_file() and path.name != ".iotops-data-root":
            path.unlink()
    done = light.iotops("restore", "latest", "--yes")
    assert done.code == 0, done.err
    back = {
        os.fsencode(path.name): path.read_bytes() for path in light.root.glob("*") if path.is_file()
    }
    assert back == top and content(light.root / place) == wanted


def test_a_hole_larger_than_the_disk(light: GuardedHub) -> None:
    """Neither its copy nor its restore may fill the disk."""
    path = light.root / "store" / "sparse"
    with path.open("wb") as file:
        file.truncate(2 << 30)
        file.seek(1 << 30)
        file.write(b"an island")
    light.backup()
    staged = light.root / ".iotops/staging/store/sparse"
    assert staged.stat().st_blocks * 512 < 1 << 20
    done = light.iotops("restore", "latest", "--service", "store", "--yes")
    assert done.code == 0, done.err
    assert path.stat().st_size == 2 << 30 and path.stat().st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        file.seek(1 << 30)
        assert file.read(10) == b"an island\0"


def test_a_large_file_costs_no_memory(light: GuardedHub) -> None:
    with (light.root / "store" / "large").open("wb") as file:
        for _ in range(150):
            file.write(os.urandom(1 << 20))
    run = light.start("backup", "--json")
    run.wait_for("step_finished", step="save")  # all that is large has been handled
    status = Path(f"/proc/{run.child.pid}/status").read_text()
    assert run.end().code == 0
    (peak,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    assert int(peak) < 100 << 10  # kilobytes


def test_sockets_pipes_and_devices_are_named_as_left_out(light: GuardedHub) -> None:
    for place in ("store", "attic"):
        folder = light.root / place
        os.mkfifo(folder / "pipe")
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(folder / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(folder)  # the path of a socket may have 107 bytes
            server.bind("socket")
            os.chdir(here)
    light.backup()
    document = light.manifest()
    services, parts = document["services"], document["parts"]
    assert isinstance(services, list) and isinstance(parts, list)
    for record in (*services, *parts):
        if record["name"] in ("store", "other"):
            rules = {one["pattern"]: one["files"] for one in record["left_out"]}
            assert rules["(sockets, pipes, devices)"] == 4
    assert (light.latest("--service", "store") / "store/word").is_file()


def test_hard_links_have_the_right_content(light: GuardedHub) -> None:
    for place in ("store", "attic"):
        folder = light.root / place
        (folder / "one").write_text("first")
        (folder / "two").hardlink_to(folder / "one")
        (folder / "three").hardlink_to(light.root / "attic" / "word")  # across services
    light.backup()
    (light.root / "store" / "two").write_text("second")  # both names have it
    time.sleep(0.1)
    (light.root / "attic" / "two").unlink()  # now they are two files
    (light.root / "attic" / "two").write_text("third")
    light.backup()
    latest = light.latest()
    assert [(latest / "store" / name).read_text() for name in ("one", "two")] == ["second"] * 2
    attic = latest / "other/attic"
    assert [(attic / name).read_text() for name in ("one", "two")] == ["first", "third"]
    word = (light.root / "attic" / "word").read_text()
    assert (attic / "three").read_text() == (latest / "store/three").read_text() == word


def test_extended_attributes_and_access_lists(light: GuardedHub) -> None:
    folder = light.root / "store"
    (folder / "inner").mkdir()
    for path in (folder, folder / "inner", folder / "file1"):
        os.setxattr(path, "user.iotops", b"kept \x00\xff")
    os.setxattr(folder / "file1", "system.posix_acl_access", ACCESS_LIST)
    os.setxattr(folder / "inner", "system.posix_acl_default", ACCESS_LIST)
    light.backup()
    done = light.iotops("restore", "latest", "--service", "store", "--yes")
    assert done.code == 0, done.err
    for path in (folder, folder / "inner", folder / "file1"):
        assert os.getxattr(path, "user.iotops") == b"kept \x00\xff"
    assert os.getxattr(folder / "file1", "system.posix_acl_access") == ACCESS_LIST
    assert os.getxattr(folder / "inner", "system.posix_acl_default") == ACCESS_LIST
    os.removexattr(folder, "user.iotops")


# -- planted links --------------------------------------------------------------------------------


def test_planted_links_are_kept_as_links_and_followed_by_nobody(light: GuardedHub) -> None:
    outside = light.base / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text("not yours")
    (outside / "secret").chmod(0o600)
    os.chown(outside / "secret", 1, 1)
    links = {
        "store/out": str(outside),
        "store/secret": str(outside / "secret"),
        "store/shadow": "/etc/shadow",
        "store/self": "self",
        "attic/up": "../../../../../etc",
        "top": str(outside),
        "round": "round",
    }
    for name, target in links.items():
        (light.root / name).symlink_to(target)
    before = {path: path.stat() for path in (outside, outside / "secret")}
    try:
        light.backup()
        latest = light.latest()
        for name, target in links.items():
            held = latest / name if name.startswith("store/") else latest / "other" / name
            assert held.readlink() == Path(target)
        assert b"not yours" not in content_of_files(latest)
        for name in links:
            (light.root / name).unlink()
        done = light.iotops("restore", "latest", "--yes")
        assert done.code == 0, done.err
        assert {name: str((light.root / name).readlink()) for name in links} == links
        for path, state in before.items():
            now = path.stat()
            assert (now.st_uid, now.st_gid, now.st_mode) == (
                state.st_uid,
                state.st_gid,
                state.st_mode,
            )
            assert now.st_ctime_ns == state.st_ctime_ns
    finally:
        shutil.rmtree(outside)


def content_of_files(folder: Path) -> bytes:
    found = []
    for top, _, names in os.walk(folder):
        for name in names:
            if not (path := Path(top) / name).is_symlink():
                found.append(path.read_bytes())
    return b"\n".join(found)


def test_a_services_folder_that_became_a_link(light: GuardedHub) -> None:
    outside = light.base / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not yours")
    folder, aside = light.root / "store", light.base / "aside"
    word = (folder / "word").read_text()
    try:
        with not_counted(light):
            shutil.copytree(folder, aside)
            shutil.rmtree(folder)
            folder.symlink_to(outside)
            result = light.backup(code=3)
            assert set(missing(result)) == {"store"} and "symbolic link" in missing(result)["store"]
            assert not (light.root / ".iotops/staging/store").exists()
        done = light.iotops("restore", "latest", "--service", "store", "--yes")
        assert done.code == 0, done.err
        assert not folder.is_symlink() and (folder / "word").read_text() == word
        assert [path.name for path in outside.iterdir()] == ["secret"]
        light.backup()
    finally:
        if folder.is_symlink():
            folder.unlink()
            folder.mkdir()
        shutil.rmtree(outside)
        shutil.rmtree(aside, ignore_errors=True)


# -- volumes --------------------------------------------------------------------------------------

VOLUME = """
  keeper:
    image: {image}
    entrypoint: ["sleep", "infinity"]
    init: true
    volumes:
      - keeping:/var/lib/keeper
      - {{type: tmpfs, target: /scratch}}
"""
VOLUMES = """
volumes:
  keeping: {{}}
"""


def test_volumes_beside_the_data_root(light: GuardedHub) -> None:
    settings = light.folder / "iotops.toml"
    text = settings.read_text()
    named = f"{light.project}_keeping"
    light.compose(VOLUME, VOLUMES)
    try:
        assert light.iotops("up").code == 0
        light.backup()  # nothing in it yet: nothing is missing
        with not_counted(light):
            docker("exec", light.container("keeper"), "sh", "-c", "echo 1 >/var/lib/keeper/data")
            result = light.backup(code=3)
            assert set(missing(result)) == {"volumes"}
            assert named in missing(result)["volumes"] and "keeper" in missing(result)["volumes"]
            doctor = light.iotops("doctor", "--json")
            assert doctor.code == 1 and "volume.outside" in doctor.out
        # An image asks for a volume of its own where nothing is mounted.
        docker("exec", light.container("keeper"), "sh", "-c", "echo 1 >/mosquitto/data/kept.db")
        docker("exec", light.container("keeper"), "sh", "-c", "echo 1 >/mosquitto/log/noise")
        with not_counted(light):
            settings.write_text(text.replace("[data]", f'[data]\nignore_volumes = ["{named}"]'))
            result = light.backup(code=3)
            assert "keeper:/mosquitto/data" in missing(result)["volumes"]
            assert named not in missing(result)["volumes"]
            assert "/mosquitto/log" not in missing(result)["volumes"]
        settings.write_text(
            text.replace(
                "[data]", f'[data]\nignore_volumes = ["{named}", "keeper:/mosquitto/data"]'
            )
        )
        light.backup()
        assert "volume.outside" not in light.iotops("doctor", "--json").out
    finally:
        settings.write_text(text)
        light.compose("")
        docker("rm", "--force", "--volumes", light.container("keeper"))
        docker("volume", "rm", named)
