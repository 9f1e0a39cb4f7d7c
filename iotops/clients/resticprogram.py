"""Running restic: what it needs to know, what it must not, and how its end is judged.

Everything that must hold for every single call stands here: addresses (they may hold a credential)
and passwords go by environment, inherited RESTIC_* variables are scrubbed, secrets never reach an
error. Not here: the calls themselves (`clients/restic.py`), what a failure means
(`clients/resticerrors.py`).
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from iotops.clients import process, resticerrors
from iotops.clients.resticanswers import Document, Progress, document
from iotops.errors import (
    IotopsError,
    ProgramMissing,
    RepositoryDamaged,
    TimedOut,
    WrongPassword,
)

Version = tuple[int, int, int]

MINIMUM: Version = (0, 14, 0)
PACKAGE = "apt-get install restic (0.14 or newer)"

SINCE: Mapping[str, Version] = {
    "full id in the backup summary": (0, 15, 0),
    "restore --sparse": (0, 15, 0),
    "restore --json": (0, 16, 0),
    "small memory by default": (0, 16, 0),
    "sftp.args": (0, 17, 0),
    "forget fails when it could not remove": (0, 19, 0),
}
"""Version differences that are acted on; the first and the last show in the answers themselves."""

OPEN_LIMIT = 120.0
QUICK_LIMIT = 600.0
LONG_LIMIT = 48 * 3600.0
STALL_LIMIT = 1800.0
"""Seconds: wall limits of opening, of short and of long calls, and of a long one's standstill."""

HANGING = re.compile(r"Save\(<(?!lock/)[^>]*>\) failed: ")
"""What restic says when it has given up on a file of the repository (a lock is tried again);
0.18.0 then may wait for ever for the workers that it has ended (seen on a full disk, in
`packerUploader.QueuePacker`)."""
END_LIMIT = 60.0
"""Seconds that restic may still take then: other uploads come to their end."""

LADDER = ((signal.SIGINT, 60.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))
"""restic removes its lock on SIGINT, in all versions; seconds to wait after each signal."""

UNHEARD_TRIES = 3
"""How often a call is made again where restic ended before it had heard why its ssh had."""

SSH = ("BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=30", "ServerAliveCountMax=4")
"""ssh asks nobody anything, and notices within minutes that the other end is gone."""

REST_LOGIN = ("RESTIC_REST_USERNAME", "RESTIC_REST_PASSWORD")
"""Known to restic since 0.16.1, and one for both ends of a copy: hence put into the address."""

KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = tuple(f"{name}_proxy" for name in ("http", "https", "no", "all"))
"""What restic may know of our environment."""

SMALL_MEMORY = {"GOGC": "20", "GOMAXPROCS": "1", "RESTIC_READ_CONCURRENCY": "1"}
"""The last one is known since 0.15; older ones read two files at a time, come what may."""

OURS = frozenset(
    f"RESTIC_{name}"
    for name in ("REPOSITORY", "REPOSITORY_FILE", "PASSWORD", "PASSWORD_FILE", "PASSWORD_COMMAND")
)
"""What credentials must not bring along: restic refuses two of a kind, or prefers the wrong one."""


@dataclass(frozen=True)
class RepositoryAccess:
    """What restic needs to reach a repository.

    Attributes:
        url: its address, as restic takes it; may hold a credential.
        password_file: holds the password.
        password_from: where it was taken from, for a hint; "" = as the settings say.
        cache, tmp: folders on the data disk; used where they can be, never made on another disk.
        environment: access credentials by the names that restic knows them by.
        program: restic, or a path to it.
        small_memory: trade time for memory.
        key: id of the key that the password opens, where it is known. restic tries all keys in
            turn, and each costs a derivation; a wrong one here costs one, and no more (seen).
        ssh_config: ssh's configuration file, for sftp: addresses; None = ssh's usual ones.
    """

    url: str = field(repr=False)
    password_file: Path
    cache: Path
    tmp: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    program: str = "restic"
    small_memory: bool = False
    password_from: str = ""
    key: str = ""
    ssh_config: Path | None = None

    @property
    def address(self) -> str:
        """The address for restic: a relative path made absolute, a REST server's login in it."""
        if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", self.url):
            return str(Path(self.url).absolute())  # `save` runs restic elsewhere
        user, password = (self.environment.get(name, "") for name in REST_LOGIN)
        found = re.fullmatch(r"(rest:https?://)([^/@]+)(/.*)?", self.url)
        if found is None or not user:
            return self.url
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"{found[1]}{login}@{found[2]}{found[3] or '/'}"

    @property
    def variables(self) -> dict[str, str]:
        """The credentials for restic's environment: without a second password, or a login that
        stands in the address."""
        left_out = {*OURS, *(REST_LOGIN if self.url.startswith("rest:") else ())}
        return {name: value for name, value in self.environment.items() if name not in left_out}


class ResticProgram:
    """restic, ready to work on one repository.

    Args:
        stall_limit: seconds that a long call may stand still.
        quick_limit: seconds that a short call may take.
        end_limit: seconds that a call may take to end when it has failed.
    """

    def __init__(
        self,
        access: RepositoryAccess,
        *,
        stall_limit: float = STALL_LIMIT,
        quick_limit: float = QUICK_LIMIT,
        end_limit: float = END_LIMIT,
    ) -> None:
        self.access = access
        self._stall_limit = stall_limit
        self._quick_limit = quick_limit
        self._last_words = process.LastWords(HANGING, end_limit)
        self._version: Version | None = None
        self.memory = 0
        """Most bytes that a call took so far."""

    def version(self) -> Version:
        """Give restic's version; it is asked once.

        Raises:
            ProgramMissing: it is not installed, or too old.
        """
        if self._version is None:
            program = process.find(self.access.program, hint=PACKAGE)
            text = process.run([program, "version"], env=self._environment(), limit=60).out
            match = re.search(r"restic v?(\d+)\.(\d+)(?:\.(\d+))?", text)
            if match is None:
                raise ProgramMissing(f"{program} does not say which restic it is", hint=PACKAGE)
            found = (int(match[1]), int(match[2]), int(match[3] or 0))
            if found < MINIMUM:
                shown = ".".join(map(str, found))
                raise ProgramMissing(f"restic {shown} is too old; 0.14 is needed", hint=PACKAGE)
            self._version = found
        return self._version

    def has(self, feature: str) -> bool:
        """Tell whether this restic has a feature of `SINCE`."""
        return self.version() >= SINCE[feature]

    def reading_from(self, source: RepositoryAccess) -> dict[str, str]:
        """Give what restic needs to read from a second repository.

        Raises:
            IotopsError: both need another value of the same variable.
        """
        _require_password(source.password_file)
        for name, value in source.variables.items():
            if self.access.variables.get(name, value) != value:
                raise IotopsError(
                    f"the two repositories need different values of {name},"
                    " and restic takes one for both",
                    hint="use another kind of address for one of them",
                )
        return {
            **source.variables,
            "RESTIC_FROM_REPOSITORY": source.address,
            "RESTIC_FROM_PASSWORD_FILE": str(source.password_file.absolute()),
        }

    def ssh_options(self, source: RepositoryAccess | None = None) -> list[str]:
        """Give restic's options for the ssh behind an sftp: address, of a second one too.

        Raises:
            IotopsError: both are sftp: addresses, and this restic cannot serve both.
        """
        both = [one for one in (self.access, source) if one is not None]
        ends = [one for one in both if one.url.startswith("sftp:")]
        if not ends:
            return []
        words = [_ssh_words(one) for one in ends]
        if self.has("sftp.args"):
            if words[0] != words[-1]:
                raise IotopsError(
                    "the two repositories name different ssh_config files,"
                    " and restic takes one for both",
                    hint="describe both hosts in one file, and name it for both",
                )
            return ["-o", f"sftp.args={shlex.join(words[0])}"]
        if len(ends) > 1:
            raise IotopsError(
                "restic before 0.17 cannot copy from one sftp: address to another",
                hint="install a newer restic, or use another kind of address for one of them",
            )
        host = _ssh_host(ends[0].url)
        return ["-o", f"sftp.command={shlex.join(['ssh', *words[0], *host, '-s', 'sftp'])}"]

    def _environment(self) -> dict[str, str]:
        """Make the whole environment of restic."""
        access = self.access
        names = (*KEPT, *PROXIES, *(name.upper() for name in PROXIES))
        values = {name: os.environ[name] for name in names if name in os.environ}
        values.setdefault("PATH", os.defpath)
        values["HOME"] = os.environ.get("HOME") or "/"
        if "HOME" not in os.environ:
            with suppress(RuntimeError):  # a user without an account
                values["HOME"] = str(Path.home())
        if self._version is not None and not self.has("small memory by default"):
            values["GOGC"] = "50"
        if access.small_memory:
            values |= SMALL_MEMORY
        if access.key:
            values["RESTIC_KEY_HINT"] = access.key
        return {
            **values,
            **access.variables,
            "RESTIC_REPOSITORY": access.address,
            "RESTIC_PASSWORD_FILE": str(access.password_file.absolute()),
            "RESTIC_CACHE_DIR": str(access.cache.absolute()),
            "RESTIC_PROGRESS_FPS": "2",
            # Packs are staged here: not in /tmp, which may be memory, unless nothing else is there.
            "TMPDIR": str(access.tmp.absolute()) if _writable(access.tmp) else "/tmp",
        }

    def _cleaner(self, extra: Mapping[str, str]) -> resticerrors.Clean:
        """Know all secrets of a call: credentials, and passwords inside of addresses."""
        added = {name: value for name, value in extra.items() if not name.startswith("RESTIC_FROM")}
        secrets = [*self.access.environment.values(), *added.values()]
        for url in (self.access.address, extra.get("RESTIC_FROM_REPOSITORY", "")):
            for part in re.findall(r"://[^/@:]*:([^/@]*)@", url):
                secrets += [part, unquote(part)]
        return resticerrors.cleaner(secrets)

    def run(
        self,
        argv: Sequence[str],
        *,
        doing: str,
        cwd: Path | None = None,
        hear: Callable[[Document], None] | None = None,
        read: Callable[[str], None] | None = None,
        ok: Sequence[int] = (0,),
        limit: float | None = None,
        silent: bool = False,
        quick: bool = False,
        source: RepositoryAccess | None = None,
    ) -> process.Result:
        """Run restic and judge its end.

        Args:
            hear: hears every JSON line; the call then is a long one, watched for a standstill.
            read: then hears every line as it is, too.
            silent: it says nothing while it works.
            quick: a short call all the same.
            source: a second repository, which it reads.
        """
        self.version()
        _require_password(self.access.password_file)
        extra = {} if source is None else self.reading_from(source)
        options = self.ssh_options(source)
        # On a disk that is not mounted the cache would be made below the empty mount point.
        cached = _writable(self.access.cache) or _writable(self.access.cache.parent)
        program = Path(process.find(self.access.program, hint=PACKAGE)).absolute()
        progress = Progress()
        clean = self._cleaner(extra)
        if hear is None or quick:
            limit = min(limit or QUICK_LIMIT, self._quick_limit)

        def line(text: str) -> bool:
            found = document(text)
            if found and hear is not None:
                hear(found)
            if read is not None:
                read(text)
            return progress.made(text, found)

        def once() -> process.Result:
            return process.run(
                [program, *argv, *options, *([] if cached else ["--no-cache"])],
                env={**self._environment(), **extra},
                cwd=cwd,
                on_line=line if hear is not None else None,
                limit=limit or LONG_LIMIT,
                quiet_limit=None if hear is None or silent else self._stall_limit,
                ok=None,
                doing=doing,
                ladder=LADDER,
                tied=True,  # a run after ours must not meet a restic that still reads staging
                last_words=self._last_words,
            )

        try:
            ended = once()
            for _ in range(UNHEARD_TRIES):
                if not resticerrors.ssh_unheard(ended.tail):
                    break
                ended = once()
            self.memory = max(self.memory, ended.memory)
        except TimedOut as late:
            tail = tuple(clean(one) for one in late.tail)
            if words := [one for one in tail if HANGING.search(one)]:
                raise resticerrors.classify(late.code, words, doing) from None
            found = resticerrors.unreachable(tail, doing)
            raise found or TimedOut(late.message, code=late.code, tail=tail) from None
        tail = tuple(clean(one) for one in ended.tail)
        if ended.code not in ok:
            # Its standard output may be a file of the snapshot, and tells no reasons.
            error = resticerrors.classify(ended.code, tail, doing)
            if isinstance(error, RepositoryDamaged):
                error.said = resticerrors.last_words(tail)
            if isinstance(error, WrongPassword) and self.access.password_from:
                error.hint = f"it was taken from {self.access.password_from}; " + error.hint
            raise error
        return replace(ended, tail=tail)


def _ssh_words(access: RepositoryAccess) -> list[str]:
    """Give ssh's own options for an address."""
    words = [] if access.ssh_config is None else ["-F", str(access.ssh_config.absolute())]
    return words + [word for option in SSH for word in ("-o", option)]


def _ssh_host(url: str) -> list[str]:
    """Give ssh's words for a host: of sftp://user@host:port/path, or sftp:user@host:path."""
    if url.startswith("sftp://"):
        parts = urlsplit(url)
        words = ["-p", str(parts.port)] if parts.port else []
        words += ["-l", unquote(parts.username)] if parts.username else []
        return [*words, parts.hostname or ""]
    user, _, host = url.removeprefix("sftp:").partition(":")[0].rpartition("@")
    return [*(["-l", user] if user else []), host]


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _require_password(path: Path) -> None:
    """Look at the password file before restic does: without it, it asks a terminal.

    Raises:
        WrongPassword: it cannot be read.
    """
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise WrongPassword(
            f"the password file {path} cannot be read: {error.strerror}",
            hint="put the repository's password there (mode 0600); your kit has it",
        ) from error
