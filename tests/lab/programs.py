"""Programs that do not come as images: restic in several versions, influxd, Node-RED's tree, and
the servers that copies of a repository go to and images come from.

Each lands in a folder of the cache that is named after its version and is put there in one step,
so a run that was interrupted leaves nothing that looks finished.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from tests.lab import debian
from tests.lab.places import IMAGE_SOURCES, cache
from tests.lab.shell import LabError, answer, remove, run, timed

#: The restic matrix: the version each Debian release carries.
RESTIC = {"bookworm": "0.14", "trixie": "0.18", "sid": "0.19"}
RESTIC_CHOSEN = "0.18"

#: Programs the tests call by name, and the package each comes from.
HOST_TOOLS = {
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "losetup": "mount",
    "findmnt": "util-linux",
    "git": "git",
    "curl": "curl",
    "mosquitto_sub": "mosquitto-clients",
    "mosquitto_pub": "mosquitto-clients",
    "ssh-keygen": "openssh-client",
}

#: What prints the recovery kit and looks at the paper, and the package each comes from.
PAPER_TOOLS = {"chromium": "chromium", "pdftoppm": "poppler-utils", "zbarimg": "zbar-tools"}

#: Servers from Debian packages, unpacked and not installed: a machine gets no SSH server by tests.
SERVERS = {
    "sshd": ("openssh-server", "libwrap0"),
    "rclone": ("rclone",),
    "docker-registry": ("docker-registry",),
}
SERVERS_RELEASE = "bookworm"

MOTO = ("moto[s3]==5.2.5", "flask", "flask-cors")

INFLUXD = "2.9.1"
NODERED = "4.1.13"


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def host_tools() -> None:
    """Install the programs tests call by name, where they are missing."""
    missing = {package for program, package in HOST_TOOLS.items() if not _which(program)}
    if missing:
        debian.install(sorted(missing))


def tool(program: str, package: str) -> None:
    """Install one program, where it is missing; only the tests that name it need it."""
    if not _which(program):
        debian.install([package])


def restic_have() -> dict[str, str]:
    """The restic versions in the cache: full version to path of the program."""
    found = {}
    for program in sorted((cache() / "restic").glob("*/restic")):
        found[program.parent.name] = str(program)
    return found


def restic(release: str) -> None:
    """Fetch the restic of one Debian release, unless one of its version is there."""
    wanted = RESTIC[release]
    if any(version.startswith(f"{wanted}.") for version in restic_have()):
        return
    with timed(f"fetching restic {wanted}"):
        folder = cache() / "build" / f"restic-{release}"
        remove(folder)
        debian.Suite(release).unpack("restic", folder)
        program = folder / "usr" / "bin" / "restic"
        said = run([program, "version"])
        match = re.match(r"restic (\d+\.\d+\.\d+)", said)
        if not match:
            raise LabError(f"restic of {release} answered: {said[:80]!r}")
        place = cache() / "restic" / match[1]
        place.mkdir(parents=True, exist_ok=True)
        program.replace(place / "restic")
        remove(folder)
        if not match[1].startswith(f"{wanted}."):
            raise LabError(f"{release} now carries restic {match[1]}, not {wanted}")


def restic_chosen() -> str | None:
    """The program the tests run by default."""
    have = restic_have()
    for version, path in have.items():
        if version.startswith(f"{RESTIC_CHOSEN}."):
            return path
    return have[max(have)] if have else None


def servers_folder() -> Path:
    """Where the servers lie."""
    return cache() / "servers"


def server(name: str) -> str:
    """Give a server of `SERVERS`: the machine's own, else unpacked from its packages, once."""
    installed = _which(name)
    if installed:
        return installed
    place = servers_folder() / name
    program = place / name
    if not program.is_file():
        with timed(f"fetching {name}"):
            fresh = cache() / "build" / name
            remove(fresh)
            for package in SERVERS[name]:
                debian.Suite(SERVERS_RELEASE).unpack(package, fresh)
            found = next(fresh.glob(f"usr/*bin/{name}"), None)
            if found is None:
                raise LabError(f"{SERVERS_RELEASE} has no {name} in {SERVERS[name][0]}")
            inside = place / found.relative_to(fresh)
            libraries = ":".join(
                str(place / path.relative_to(fresh)) for path in fresh.glob("**/*-linux-gnu*")
            )
            lines = [
                "#!/bin/sh",
                f"export LD_LIBRARY_PATH='{libraries}'",
                f"exec '{inside}' \"$@\"",
            ]
            (fresh / name).write_text("\n".join(lines) + "\n")
            (fresh / name).chmod(0o755)
            place.parent.mkdir(parents=True, exist_ok=True)
            remove(place)
            fresh.replace(place)
    return str(program)


def moto() -> str:
    """Install moto's S3 server in an environment of its own, once: 140 MB that no test imports."""
    place = servers_folder() / f"moto-{MOTO[0].rpartition('=')[2]}"
    program = place / "bin" / "moto_server"
    if not (place / "complete").is_file():
        with timed("installing moto's server"):
            remove(place)
            log = cache() / "logs" / "moto.log"
            place.parent.mkdir(parents=True, exist_ok=True)
            run([sys.executable, "-m", "venv", str(place)], log=log)
            words = ["--quiet", "--disable-pip-version-check"]
            run([str(place / "bin" / "python"), "-m", "pip", "install", *words, *MOTO], log=log)
            (place / "complete").touch()
    return str(program)


def influxd_folder() -> Path:
    """Where the built InfluxDB programs lie (also ``influx``, where it could be built)."""
    return cache() / "influxd" / f"{INFLUXD}-{platform.machine()}"


def influxd() -> Path:
    """Build InfluxDB's server and its command line from their Go modules, once."""
    place = influxd_folder()
    if (place / "influxd").is_file():
        return place
    for program in ("go", "cargo", "gcc", "pkg-config"):
        if shutil.which(program) is None:
            raise LabError(f"InfluxDB cannot be built here: {program} is missing")
    build = cache() / "build" / "influxd"
    output, source = build / "bin", build / "source"
    for folder in (output, source):
        folder.mkdir(parents=True, exist_ok=True)
    for file in (IMAGE_SOURCES / "influxdb" / "module").iterdir():
        shutil.copyfile(file, source / file.name.removesuffix(".txt"))
    log = cache() / "logs" / "influxd.log"
    go = {
        "GOFLAGS": "-mod=mod -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOMODCACHE": str(build / "modules"),
        "GOCACHE": str(build / "objects"),
        "CGO_ENABLED": "1",
        "PKG_CONFIG": str(output / "pkg-config"),
        "RUSTFLAGS": "--cap-lints allow",
    }
    # The module names a toolchain of its own, which rustup would want to download.
    active = answer(["rustup", "show", "active-toolchain"])
    if active:
        go["RUSTUP_TOOLCHAIN"] = active.split()[0]

    def build_one(name: str, package: str, *more: str) -> None:
        command = ["go", "build", "-o", str(output / name), *more, package]
        run(command, cwd=source, env=go, log=log, timeout=3000)

    with timed(f"building influxd {INFLUXD} from its Go module (minutes, once)"):
        run(["go", "mod", "tidy"], cwd=source, env=go, log=log)
        build_one("pkg-config", "github.com/influxdata/pkg-config")
        build_one(
            "influxd",
            "github.com/influxdata/influxdb/v2/cmd/influxd",
            "-tags",
            "sqlite_foreign_keys,sqlite_json",
            "-ldflags",
            f"-s -w -X main.version=v{INFLUXD}",
        )
    with timed("building the influx command line"):
        try:
            build_one(
                "influx",
                "github.com/influxdata/influx-cli/v2/cmd/influx",
                "-ldflags",
                "-s -w -X main.version=lab",
            )
        except LabError as error:
            (output / "influx.reason").write_text(str(error))
    fresh = place.with_name(f"{place.name}.new")
    remove(fresh)
    fresh.mkdir(parents=True)
    for name in ("influxd", "influx", "influx.reason"):
        if (output / name).is_file():
            (output / name).replace(fresh / name)
    fresh.replace(place)
    remove(build)
    return place


def nodered(release: str = NODERED) -> tuple[Path, str]:
    """Install a release of Node-RED with the host's npm, once.

    Returns:
        The installed tree, with an npm for its image, and the exact version.
    """
    place = cache() / "nodered" / release
    about = place / "node_modules" / "node-red" / "package.json"
    if not about.is_file():
        if shutil.which("npm") is None:
            debian.install(["nodejs", "npm"])
        fresh = cache() / "build" / f"nodered-{release}"
        remove(fresh)
        fresh.mkdir(parents=True)
        shutil.copyfile(IMAGE_SOURCES / "nodered" / "package.json", fresh / "package.json")
        words = ["--omit=dev", "--no-audit", "--no-fund", "--no-package-lock", "--no-save"]
        with timed(f"installing Node-RED {release} with npm"):
            log = cache() / "logs" / "npm.log"
            run(["npm", "install", *words, f"node-red@{release}"], cwd=fresh, log=log)
            npm = fresh / "npm"
            npm.mkdir()
            (npm / "package.json").write_text("{}\n")
            run(["npm", "install", *words, "npm@10"], cwd=npm, log=log)
        place.parent.mkdir(parents=True, exist_ok=True)
        remove(place)
        fresh.replace(place)
    return place, str(json.loads(about.read_text())["version"])
