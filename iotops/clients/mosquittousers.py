"""The users of a Mosquitto broker: its password file line by line, and its list of rights.

Lines of others are never touched. `mosquitto_passwd` of the broker's own image makes one line, in
a file that holds no other: given a file with a comment in it, 2.0.21 and 2.1.2 drop every user and
end with 0 (seen). Rights of devices stand in a marked block of the ACL file, which the broker reads
from top to bottom: lines below `user NAME` are that user's. Not here: which users there are
(`devices.py`), and when the files are exchanged (`actions/devices.py`).
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from iotops.clients import files
from iotops.clients.mosquittofolder import HASHED, Conf
from iotops.devices import Device
from iotops.errors import Conflict, GuardError, StackError

if TYPE_CHECKING:
    from iotops.clients.stack import Stack
    from iotops.config import Secret

BEGIN = "# >>> iotops devices: made from devices.toml, do not edit here; mark "
END = "# <<< iotops devices"
PROGRAM_LIMIT = 120.0
"""Seconds that one call of `mosquitto_passwd` may take, its container included."""
INSIDE = "/iotops"
"""Where its folder is mounted in the container of that call."""


@dataclass(frozen=True)
class UserFiles:
    """Where a broker's users and rights lie on this machine."""

    passwords: Path
    acl: Path


def places(conf: Conf | None, here: Callable[[str], Path | None], name: str) -> UserFiles:
    """Find a broker's password file and its list of rights, by its configuration.

    Args:
        here: gives the place on this machine of a path in the container; None = not mounted.
        name: the service's.

    Raises:
        GuardError: it does not keep its users in one file, and their rights in another.
    """
    if conf is None:
        raise GuardError(
            f"the configuration of {name} cannot be read", hint="look for it: iotops doctor"
        )
    if conf.dynamic_security:
        raise GuardError(
            f"the users of {name} are kept by dynamic security, and not in a password file",
            hint="make it a client there: mosquitto_ctrl dynsec createClient",
        )
    found: list[Path] = []
    for key, told in (("password_file", conf.password_files), ("acl_file", conf.acl_files)):
        one = [*dict.fromkeys(told)]
        path = here(one[0]) if len(one) == 1 else None
        if path is None:
            raise GuardError(
                f"mosquitto.conf of {name} must name one {key} in a mounted folder; it names"
                f" {', '.join(one) or 'none'}",
                hint=_hint(key, conf, here),
            )
        if not files.is_regular(path):
            raise GuardError(
                f"{path}, the {key} of {name}, is not there or is no file of its own",
                hint="put the file itself there; a link ends Mosquitto 2.1",
            )
        found.append(path)
    return UserFiles(*found)


def _hint(key: str, conf: Conf, here: Callable[[str], Path | None]) -> str:
    """Say what to write, with a folder that the container really has: not every hub mounts all."""
    beside = PurePosixPath(conf.password_files[0]).parent if conf.password_files else ""
    name, folders = "acl", ["/mosquitto/config", str(beside)]
    if key == "password_file":
        name, folders = "passwd", ["/mosquitto/secrets", "/mosquitto/config", conf.location]
    mounted = (one for one in folders if one and (path := here(one)) and path.is_dir())
    inside = PurePosixPath(next(mounted, folders[0])) / name
    line = f"in mosquitto.conf: {key} {inside}"
    if key == "password_file":
        return f"write, for example, {line}"
    return (
        "a user whom it does not name then has no rights; so write first, for each of today's, into"
        f" {here(str(inside)) or inside}: `user NAME`, and below it `topic readwrite #`; then"
        f" {line}; then restart the broker"
    )


# -- the password file -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Passwords:
    """The lines of a password file; comments and empty ones are kept."""

    lines: tuple[bytes, ...]

    def __repr__(self) -> str:
        """Name no hash."""
        return f"Passwords({len(self.names)} users)"

    @property
    def names(self) -> tuple[str, ...]:
        """The users, in the file's order."""
        found = (_user(line) for line in self.lines)
        return tuple(name for name in found if name is not None)

    def with_line(self, line: bytes) -> Passwords:
        """Give them with a user's new line, in the place of the old one where there is one."""
        name = _user(line)
        if name in self.names:
            return Passwords(tuple(line if _user(one) == name else one for one in self.lines))
        return Passwords((*self.lines, line))

    def without(self, name: str) -> Passwords:
        """Give them without a user."""
        return Passwords(tuple(one for one in self.lines if _user(one) != name))

    def content(self) -> bytes:
        """Give the file's content."""
        return b"".join(line + b"\n" for line in self.lines)


def passwords(data: bytes) -> Passwords:
    """Read a password file.

    Raises:
        GuardError: a line is none that every broker reads, or a user has two; the line is named by
            its number only.
    """
    lines = tuple(data.splitlines())
    told: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        name = _user(line)
        if name is None:
            continue
        if not HASHED.fullmatch(line):
            told.append(f"line {number} is no `user:hash`")
        elif name in seen:
            told.append(f"line {number} names a user again")
        seen.add(name)
    if told:
        raise GuardError(
            f"the broker's password file is not in order: {'; '.join(told)}",
            hint="correct it while the broker is stopped, or: iotops restore latest",
        )
    return Passwords(lines)


def new_line(
    stack: Stack, container: str, folder: Path, owner: tuple[int, int], user: str, password: Secret
) -> bytes:
    """Have the broker's own image make a user's line.

    Args:
        container: whose image; the same one that reads the line later.
        folder: an empty folder of that owner, seen by the program and nobody else.
        owner: numeric user and group of the broker.

    Raises:
        StackError: the program failed, or made something else.
    """
    path = folder / "line"
    files.write(path, b"", mode=0o600, owner=owner)
    ended = stack.run_once(
        container,
        ["mosquitto_passwd", f"{INSIDE}/{path.name}", user],
        user=f"{owner[0]}:{owner[1]}",
        mounts=[(folder, INSIDE)],
        network=False,
        stdin=f"{password.reveal()}\n" * 2,
        limit=PROGRAM_LIMIT,
    )
    doing = f"making the password of {user} with mosquitto_passwd of {container}"
    if ended.code != 0:
        said = ended.err.replace(password.reveal(), "***").strip().splitlines()
        raise StackError(f"{doing}: exit {ended.code}: {said[-1] if said else 'no word'}")
    with files.open_plain(path) as descriptor:
        lines = os.read(descriptor, 1 << 16).splitlines()
    if len(lines) != 1 or not HASHED.fullmatch(lines[0]) or _user(lines[0]) != user:
        raise StackError(f"{doing}: it made {len(lines)} lines, and none that is `{user}:hash`")
    return lines[0]


def _user(line: bytes) -> str | None:
    """Give the user of a line; None = a comment or an empty one."""
    if not line.strip() or line.startswith(b"#"):
        return None
    return line.partition(b":")[0].decode("utf-8", "surrogateescape")


# -- the list of rights ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Acl:
    """A list of rights, taken apart at the block of the devices.

    Attributes:
        before, after: what people wrote. block: the lines between the marks; None = no block yet.
        mark: what the block was when it was written.
    """

    before: str
    block: str | None = None
    mark: str = ""
    after: str = ""

    @property
    def edited(self) -> bool:
        """Whether somebody has changed the block since it was written."""
        return self.block is not None and _mark(self.block) != self.mark

    @property
    def users(self) -> frozenset[str]:
        """Who has a section of their own outside of the block."""
        rest = f"{self.before}\n{self.after}"
        return frozenset(one.strip() for one in re.findall(r"(?m)^[ \t]*user[ \t]+(.*)$", rest))

    def refuse_edited(self, path: Path, devices: Mapping[str, Device]) -> None:
        """Refuse to write over what somebody wrote into the block, or below its last user.

        Raises:
            Conflict: with the difference.
        """
        if self.edited:
            wanted, there = rights(devices.values()), self.block or ""
            lines = difflib.unified_diff(
                wanted.splitlines(), there.splitlines(), "made from devices.toml", str(path), "", ""
            )
            shown = "\n".join(f"  | {line.rstrip()}" for line in lines)
            raise Conflict(
                f"the devices' block of {path} was edited by hand:\n{shown}",
                hint="move such lines above the block, or make the block as it was; then again",
            )
        for line in self.after.splitlines():
            word = line.split(maxsplit=1)[0] if line.split() else ""
            if word == "user":
                break
            if word == "topic":
                raise Conflict(
                    f"below the devices' block of {path} stands a line that the broker takes for"
                    f" the last device's:\n  | {line.strip()}",
                    hint="move it above the block, to the user that it is meant for; then again",
                )

    def with_devices(self, devices: Iterable[Device]) -> str:
        """Give the whole text with the devices' rights: in the block's place, else at the end."""
        made = rights(devices)
        if self.block is None:
            if not made:
                return self.before
            start = (
                self.before
                if self.before.endswith("\n") or not self.before
                else (f"{self.before}\n")
            )
            return f"{start}\n{_framed(made)}"
        if made:
            return f"{self.before}{_framed(made)}{self.after}"
        before = self.before.removesuffix("\n") if not self.after else self.before
        return before + self.after


def acl(text: str, path: Path) -> Acl:
    """Take a list of rights apart.

    Raises:
        Conflict: the marks of the block are not one pair.
    """
    lines = text.splitlines(keepends=True)
    begins = [number for number, line in enumerate(lines) if line.startswith(BEGIN.strip())]
    ends = [number for number, line in enumerate(lines) if line.startswith(END)]
    if not begins and not ends:
        return Acl(text)
    if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0]:
        raise Conflict(
            f"the marks of the devices' block in {path} are not one pair",
            hint=f"remove what is between `{BEGIN[:20]}` and `{END}`, with the marks; then again",
        )
    begin, end = begins[0], ends[0]
    return Acl(
        "".join(lines[:begin]),
        "".join(lines[begin + 1 : end]),
        lines[begin].strip().rpartition(" ")[2],
        "".join(lines[end + 1 :]),
    )


def rights(devices: Iterable[Device]) -> str:
    """Give the rights of devices as the broker reads them, ordered by name; empty = none."""
    return "".join(
        f"user {one.name}\ntopic readwrite {one.prefix}/#\ntopic read {one.commands}/#\n"
        for one in sorted(devices, key=lambda one: one.name)
    )


def _framed(made: str) -> str:
    return f"{BEGIN}{_mark(made)}\n{made}{END}\n"


def _mark(block: str) -> str:
    return hashlib.sha256(block.encode("utf-8", "surrogateescape")).hexdigest()[:16]
