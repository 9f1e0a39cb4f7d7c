"""The Docker Engine and Compose: used when they are there, made when they are not.

Where no service manager runs, ``dockerd`` is started by hand, detached from the caller, and
recorded with its process id and start time, so that exactly this one can be ended later.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.lab import debian
from tests.lab.places import cache, engine_record
from tests.lab.shell import LabError, answer, is_root, read_json, run, say, write_json

PLUGINS = Path("/usr/local/lib/docker/cli-plugins")
START_LIMIT = 60.0
STOP_LIMIT = 60.0


def engine_version() -> str | None:
    """The version of the engine that answers now."""
    found = answer(["docker", "version", "--format", "{{.Server.Version}}"])
    return found or None


def compose_version() -> str | None:
    """The version of ``docker compose``; None where it is missing or older than 2."""
    found = (answer(["docker", "compose", "version", "--short"]) or "").removeprefix("v")
    major = found.partition(".")[0]
    return found if major.isdigit() and int(major) >= 2 else None


def start() -> tuple[str, bool]:
    """Make an engine answer. Returns its version and whether it was started here."""
    found = engine_version()
    if found:
        return found, False
    if os.environ.get("DOCKER_HOST"):
        raise LabError("DOCKER_HOST is set, but no engine answers there")
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        debian.install(["docker.io", "iptables", "ca-certificates"])
        found = engine_version()
        if found:
            return found, False
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", "docker"])
        return _wait(None), False
    if not is_root():
        raise LabError("no Docker engine answers, and starting one needs root")
    return _start_by_hand(), True


def _start_by_hand() -> str:
    log = cache() / "logs" / "dockerd.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"starting dockerd (log: {log})")
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            cwd="/",
        )
    record = {"pid": process.pid, "started": _start_time(process.pid)}
    write_json(engine_record(), record)
    return _wait(process)


def _wait(process: subprocess.Popen[bytes] | None) -> str:
    until = time.monotonic() + START_LIMIT
    while time.monotonic() < until:
        found = engine_version()
        if found:
            return found
        if process is not None and process.poll() is not None:
            raise LabError(f"dockerd ended at once; see {cache() / 'logs' / 'dockerd.log'}")
        time.sleep(0.2)
    raise LabError(f"no Docker engine answered within {START_LIMIT:.0f} s")


def _start_time(pid: int) -> str:
    """When a process began, in the kernel's ticks: tells it from a later one of the same id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    return fields[19] if name == "dockerd" and fields[0] != "Z" else ""


def started_pid() -> int | None:
    """The process id of the ``dockerd`` the lab started, while that very one still runs."""
    record = read_json(engine_record())
    pid, began = record.get("pid"), record.get("started")
    if isinstance(pid, int) and began and _start_time(pid) == began:
        return pid
    return None


def stop() -> bool:
    """End the ``dockerd`` the lab started (it ends its containers); False if there is none."""
    pid = started_pid()
    if pid is None:
        engine_record().unlink(missing_ok=True)
        return False
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + STOP_LIMIT
    while time.monotonic() < until:
        if started_pid() is None:
            engine_record().unlink(missing_ok=True)
            return True
        time.sleep(0.1)
    raise LabError(f"dockerd (process {pid}) did not end within {STOP_LIMIT:.0f} s")


def compose() -> str:
    """Make ``docker compose`` answer with version 2 or later, and return the version."""
    found = compose_version()
    if found:
        return found
    folder = cache() / "compose"
    program = _unpacked(folder)
    if program is None:
        debian.Suite("trixie").unpack("docker-compose", folder)
        program = _unpacked(folder)
    if program is None:
        raise LabError("Debian's docker-compose package holds no CLI plugin")
    place = PLUGINS if is_root() else Path.home() / ".docker" / "cli-plugins"
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / f".docker-compose.{os.getpid()}"
    shutil.copy2(program, fresh)
    fresh.chmod(0o755)
    fresh.replace(place / "docker-compose")
    found = compose_version()
    if not found:
        raise LabError(f"docker compose does not answer with the plugin in {place}")
    return found


def _unpacked(folder: Path) -> Path | None:
    for path in sorted(folder.rglob("docker-compose")):
        if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK):
            return path
    return None
