"""Images: the official one where it is there or can be pulled, else a build of the same server.

A build takes its payload (Debian packages, Node-RED's tree, influxd) from the cache and needs no
network itself. What it was built from is written on the image as a label: an image whose label
matches is used, any other is built anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from tests.lab import debian, programs
from tests.lab.places import IMAGE_SOURCES, LAB_REPOSITORY, LINES, OFFICIAL, STAND_INS, cache
from tests.lab.shell import (
    LabError,
    answer,
    digest,
    read_json,
    remove,
    run,
    say,
    timed,
    write_json,
)

SUITE = "trixie"
LABEL = "iotops.lab.sources"
#: Seconds a registry has to begin to answer, and seconds a pull that has begun may take.
PULL_BEGIN = 15.0
PULL_LIMIT = 1200.0

#: Debian packages each image gets on top of the base image.
PACKAGES: dict[str, list[str]] = {
    "mosquitto": ["mosquitto", "mosquitto-clients", "wget", "procps"],
    "nodered": ["nodejs", "curl", "ca-certificates", "tzdata", "git", "openssl"],
    "influxdb": ["curl", "ca-certificates", "tzdata"],
    "grafana": ["python3", "python3-yaml", "curl", "ca-certificates", "tzdata"],
}


class Image(TypedDict):
    """One image as tests see it in ``lab.json``."""

    reference: str
    official: bool
    version: str
    stand_in: bool


def _sources(name: str) -> str:
    """The fingerprint of everything in the repository that decides what an image holds."""
    if name == "base":
        return digest(Path("/nonexistent"), SUITE, "minbase", 2)
    if name in LINES:
        line = LINES[name]
        return digest(IMAGE_SOURCES / name, _sources(line.server), line.suite, line.release)
    facts: list[object] = [_sources("base"), PACKAGES[name]]
    if name == "nodered":
        facts.append(programs.NODERED)
    if name == "influxdb":
        facts.append(programs.INFLUXD)
    return digest(IMAGE_SOURCES / name, *facts)


def _built(name: str) -> str | None:
    """The reference of a build from exactly the present sources, if the engine has one."""
    form = "{{.Repository}}:{{.Tag}}"
    label = f"label={LABEL}={_sources(name)}"
    listed = answer(["docker", "image", "ls", "--filter", label, "--format", form]) or ""
    wanted = f"{LAB_REPOSITORY[name]}:"
    for reference in listed.splitlines():
        if reference.startswith(wanted) and "<none>" not in reference:
            return reference
    return None


def _described(name: str, reference: str, official: bool) -> Image:
    version = reference.rpartition(":")[2]
    stand_in = name in STAND_INS and not official
    return Image(reference=reference, official=official, version=version, stand_in=stand_in)


def get(name: str, refresh: bool = False) -> Image:
    """One server's image, by the cheapest way that works."""
    if name != "base":
        official = LINES[name].official if name in LINES else OFFICIAL[name]
        if answer(["docker", "image", "inspect", "--format", "{{.Id}}", official]):
            return _described(name, official, True)
        built = None if refresh else _built(name)
        if built and _refused(official):
            return _described(name, built, False)
        if not (_refused(official) and not refresh) and _pull(official):
            return _described(name, official, True)
    built = _built(name)
    if built is None:
        with timed(f"building the image of {name}"):
            built = _build_base() if name == "base" else _build(name)
    return _described(name, built, False)


def _attempts() -> Path:
    return cache() / "pulls.json"


def _refused(reference: str) -> bool:
    return reference in read_json(_attempts())


def forget_refusals() -> None:
    """Let every official image be tried again."""
    _attempts().unlink(missing_ok=True)


def _pull(reference: str) -> bool:
    """Try to pull; a registry that does not begin to answer in time counts as not there."""
    say(f"trying to pull {reference}")
    process = subprocess.Popen(
        ["docker", "pull", reference],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines: list[str] = []

    # The first line only repeats the tag; a second one means that the registry has answered.
    reader = threading.Thread(target=_follow, args=(process, lines), daemon=True)
    reader.start()
    begin = time.monotonic()
    while process.poll() is None:
        limit = PULL_LIMIT if len(lines) > 1 else PULL_BEGIN
        if time.monotonic() - begin > limit:
            process.kill()
            process.wait()
            lines.append(f"no answer within {limit:.0f} s")
            break
        time.sleep(0.05)
    reader.join(2)
    if process.returncode == 0:
        return True
    reason = lines[-1].strip() if lines else f"docker pull ended with {process.returncode}"
    # The last part says why; the rest repeats addresses of this machine's network.
    reason = reason.rpartition(": ")[2]
    say(f"{reference} cannot be pulled: {reason}")
    known = read_json(_attempts())
    write_json(_attempts(), {**known, reference: reason})
    return False


def _follow(process: subprocess.Popen[str], lines: list[str]) -> None:
    if process.stdout is not None:
        for line in process.stdout:
            lines.append(line)


def _base_folder() -> Path:
    return cache() / "base" / SUITE


def _root_archive() -> Path:
    """The base image's root folder as an archive, and beside it its dpkg status."""
    archive = _base_folder() / "root.tar.gz"
    if archive.is_file():
        return archive
    if shutil.which("debootstrap") is None:
        debian.install(["debootstrap"])
    root = cache() / "build" / "root"
    remove(root)
    root.mkdir(parents=True)
    keyring = [f"--keyring={debian.KEYRING}"] if debian.KEYRING.exists() else []
    words = ["debootstrap", *keyring, "--variant=minbase", SUITE, str(root), debian.mirror()]
    run(words, log=cache() / "logs" / "debootstrap.log")
    # The image must not know where its packages came from.
    (root / "etc" / "apt" / "sources.list").unlink(missing_ok=True)
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        remove(root / folder)
        (root / folder / "partial").mkdir(parents=True)
    for log in (root / "var" / "log").rglob("*"):
        if log.is_file():
            log.unlink()
    _base_folder().mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / "var/lib/dpkg/status", _base_folder() / "status")
    fresh = archive.with_suffix(".new")
    run(["tar", "-C", root, "-I", "gzip -1", "-cf", fresh, "."])
    fresh.replace(archive)
    remove(root)
    return archive


def _build_base() -> str:
    reference = f"{LAB_REPOSITORY['base']}:{SUITE}"
    change = f"LABEL {LABEL}={_sources('base')}"
    changes = ["--change", change, "--change", 'CMD ["/bin/sh"]']
    run(["docker", "import", *changes, _root_archive(), reference])
    return reference


def _debs(name: str) -> Path:
    """The Debian packages an image gets, from the cache or downloaded into it.

    A line of another release brings the libraries that the base image has in too old a version.
    """
    _root_archive()
    line = LINES.get(name)
    packages = PACKAGES[line.server if line else name]
    folder = cache() / "debs" / f"{name}-{digest(Path('/nonexistent'), packages)}"
    if not folder.is_dir():
        fresh = cache() / "build" / f"debs-{name}"
        remove(fresh)
        suite = debian.Suite(line.suite if line else SUITE)
        suite.download(packages, _base_folder() / "status", fresh)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh.replace(folder)
    return folder


def _mosquitto(context: Path, release: str) -> str:
    return debian.package_version(context / "debs", "mosquitto")


def _nodered(context: Path, release: str) -> str:
    tree, version = programs.nodered(release or programs.NODERED)
    _link(tree, context / "node-red")
    return version


def _influxdb(context: Path, release: str) -> str:
    place = programs.influxd()
    (context / "programs").mkdir()
    for name in ("influxd", "influx"):
        if (place / name).is_file():
            _copy_by_link(str(place / name), str(context / "programs" / name))
    return programs.INFLUXD


def _grafana(context: Path, release: str) -> str:
    return "1"


#: What each build needs beside its Debian packages, of the pinned release or of a line's own;
#: returns the version for the image's tag.
PAYLOAD: dict[str, Callable[[Path, str], str]] = {
    "mosquitto": _mosquitto,
    "nodered": _nodered,
    "influxdb": _influxdb,
    "grafana": _grafana,
}


def _copy_by_link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def _link(source: Path, target: Path) -> None:
    """A copy of a tree for a build context, without a second copy of its bytes."""
    shutil.copytree(source, target, symlinks=True, copy_function=_copy_by_link)


def _build(name: str) -> str:
    if _built("base") is None:
        _build_base()
    before = answer(["docker", "image", "ls", "-q", LAB_REPOSITORY[name]]) or ""
    (cache() / "build").mkdir(parents=True, exist_ok=True)
    line = LINES.get(name)
    server = line.server if line else name
    with tempfile.TemporaryDirectory(dir=cache() / "build", prefix=f"{name}-") as scratch:
        context = Path(scratch) / "context"
        ignored = shutil.ignore_patterns("module", "__pycache__")
        shutil.copytree(IMAGE_SOURCES / server, context, ignore=ignored)
        if line and (IMAGE_SOURCES / name).is_dir():
            shutil.copytree(IMAGE_SOURCES / name, context, dirs_exist_ok=True)
        _link(_debs(name), context / "debs")
        version = PAYLOAD[server](context, line.release if line else "")
        if line and not version.startswith(line.version):
            raise LabError(f"{line.suite} now carries {server} {version}, not {line.version}x")
        reference = f"{LAB_REPOSITORY[name]}:{version}"
        run(
            [
                "docker",
                "build",
                "--network=none",
                "--force-rm",
                f"--label={LABEL}={_sources(name)}",
                f"--label=iotops.lab.version={version}",
                f"--tag={reference}",
                context,
            ],
            env={"DOCKER_BUILDKIT": "0"},
            log=cache() / "logs" / f"image-{name}.log",
        )
    for old in set(before.split()) - {(answer(["docker", "image", "ls", "-q", reference]) or "")}:
        answer(["docker", "image", "rm", old])
    return reference
