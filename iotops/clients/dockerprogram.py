"""The `docker` program: found, run with a small environment, and its failures told apart.

Children get no more of the caller's environment than Docker needs, since a variable of the shell
would beat the same name in `.env`. Used by `compose.py` and `composeproject.py` only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from iotops.clients import process
from iotops.clients.composemodel import reason
from iotops.errors import IotopsError, ProgramMissing, StackError

KEPT = (
    *("PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "SSH_AUTH_SOCK"),
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"),
    *("DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_DEFAULT_PLATFORM"),
)
"""What Docker's programs need of our environment. By name and not as `DOCKER_*`: InfluxDB's
own settings are called `DOCKER_INFLUXDB_...`, and those belong to `.env`."""

OLDEST_API = (1, 41)
"""Engine 20.10, the oldest that the tests run against."""

INSTALL_DOCKER = "apt-get install docker.io, or Docker's own packages: docs.docker.com/engine"
INSTALL_COMPOSE = (
    "apt-get install docker-compose-v2 (Ubuntu), docker-compose (Debian 13) or "
    "docker-compose-plugin (Docker's own packages)"
)


def run(
    *argv: str,
    doing: str,
    stdin: str | None = None,
    limit: float = 60,
    extra: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    ladder: Sequence[tuple[int, float]] = process.LADDER,
) -> process.Result:
    """Run the docker program, whatever its exit code.

    Args:
        argv: its arguments; never a secret among them.
        doing: what for, for the message of a failure.
        stdin: text for its standard input.
        limit: seconds.
        extra: variables on top of what Docker needs; they may be secrets.
        cwd: the folder to run in; None = the root folder.
        ladder: as `process.run`.

    Raises:
        ProgramMissing: it is not installed.
        TimedOut: the limit was passed.
    """
    program = process.find("docker", hint=INSTALL_DOCKER)
    return process.run(
        [program, *argv],
        env={**environment(), **(extra or {})},
        cwd=cwd or Path("/"),
        stdin=stdin,
        limit=limit,
        ok=None,
        doing=doing,
        ladder=ladder,
    )


def must(*argv: str, doing: str) -> process.Result:
    """Run the docker program, which must succeed.

    Raises:
        StackError: it did not, with its words.
    """
    ended = run(*argv, doing=doing)
    if ended.code != 0:
        refuse_silence(ended, doing)
        raise StackError(f"{doing}: {reason(ended.err)}")
    return ended


def environment() -> dict[str, str]:
    """Keep of our environment what Docker's programs need."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    # A system unit has no HOME, where the plugins and the chosen context are looked for.
    if "HOME" not in kept:
        with suppress(RuntimeError):  # a user without an account
            kept["HOME"] = str(Path.home())
    return kept


def refuse_silence(ended: process.Result, doing: str) -> None:
    """Tell an engine that does not answer, or not to us, from any other failure.

    Raises:
        StackError: it is one of the two.
    """
    if re.search(r"permission denied.*(docker|daemon|socket)", ended.err, re.IGNORECASE):
        raise StackError(
            f"{doing}: this user may not talk to the Docker engine",
            hint="run iotops with sudo, or as a member of the group docker",
        )
    if re.search(r"cannot connect to the docker daemon|error during connect", ended.err, re.I):
        raise silent_engine(doing)


def refuse_missing_compose(ended: process.Result) -> None:
    """Tell a missing plugin from a failure of Compose.

    Raises:
        ProgramMissing: the docker program does not know `compose`.
    """
    if re.search(r"is not a docker command|unknown (shorthand flag|flag|command)", ended.err):
        compose_version()


def silent_engine(doing: str) -> StackError:
    """Give the error for an engine that does not answer."""
    where = os.environ.get("DOCKER_HOST", "")
    return StackError(
        f"{doing}: the Docker engine does not answer" + (f" at {where}" if where else ""),
        hint="see that DOCKER_HOST is right and the engine there runs"
        if where
        else "start it: systemctl start docker",
    )


def require() -> tuple[str, str]:
    """See that Docker and Compose are there, new enough, and answer.

    Returns:
        The versions of the engine and of Compose.

    Raises:
        ProgramMissing: one is missing or too old; the hint names the package.
        StackError: the engine does not answer.
    """
    compose = compose_version()
    version, api = engine_version()
    parts = tuple(int(part) for part in re.findall(r"\d+", api)[:2])
    if parts < OLDEST_API:
        raise ProgramMissing(
            f"Docker Engine {version} is too old: 20.10 or newer is needed", hint=INSTALL_DOCKER
        )
    return version, compose


def engine_version() -> tuple[str, str]:
    """Give the engine's version and the version of its API.

    Raises:
        StackError: it does not answer.
    """
    form = "{{.Server.Version}} {{.Server.APIVersion}}"
    ended = must("version", "--format", form, doing="asking the Docker engine for its version")
    version, _, api = ended.out.strip().partition(" ")
    return version, api


def compose_version() -> str:
    """Give the version of Compose; read leniently: `2.26.1-4`, `v2.24.6`, `5.0.1` were seen.

    Raises:
        ProgramMissing: it is missing or older than 2; the hint names the packages.
    """
    ended = run("compose", "version", "--short", doing="asking Docker Compose for its version")
    found = re.search(r"(\d+)\.\d+\S*", ended.out)
    if ended.code == 0 and found and int(found.group(1)) >= 2:
        return found.group(0)
    if ended.code == 0 and found:
        what = f"Docker Compose {found.group(0)} is too old"
    elif (old := _version_one()) is not None:
        what = f"only docker-compose {old} is installed"
    else:
        what = "Docker Compose is not installed (docker compose does not answer)"
    raise ProgramMissing(f"{what}: version 2 or newer is needed", hint=INSTALL_COMPOSE)


def _version_one() -> str | None:
    try:
        ended = process.run(
            ["docker-compose", "version", "--short"], env=environment(), limit=30, ok=None
        )
    except IotopsError:
        return None
    found = re.search(r"\d+\.\d+\S*", ended.out)
    return found.group(0) if found else None
