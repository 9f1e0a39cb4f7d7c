"""What lies in a Mosquitto folder: configuration, the database in both its formats, users.

Only files are looked at, never through a link, since a container wrote them; the broker is not
asked. Facts about Mosquitto 2.0.21 and 2.1.2. Not here: which of it is captured when
(`services/mosquitto.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from iotops.clients import files
from iotops.errors import CaptureError

MAGIC = b"\x00\xb5\x00mosquitto db"
"""How `mosquitto.db` begins; a CRC field and the version follow (upstream `persist.h`, 2.0)."""
VERSIONS = range(2, 7)
"""Versions of the file format that the 2.x brokers read; chunks are as below in 5 and 6."""
CHUNK_RETAINED = 4
"""Type of the chunk that stands for one retained message (`DB_CHUNK_RETAIN`)."""

SQLITE = "mosquitto.sqlite3"
"""What the plugin of 2.1 calls its database, below `persistence_location`."""
GENERATED = ".pw"
"""Ending of the file beside dynamic security's in which 2.1 leaves passwords of its own making."""

HASHED = re.compile(rb"[^:\r\n]+:\$(6|7)\$[^\s:]+")
LONG_SALT = 40
"""Characters of a base64 salt above which 2.0 refuses it: 2.0 writes 16, 2.1 writes 88."""


# -- configuration ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conf:
    """The few lines of a configuration that say where a broker keeps its data.

    Every path is one of the container; empty = not given.

    Attributes:
        persistence: the broker's own database is on. sqlite: the plugin of 2.1 keeps it instead.
        location: folder of the database. file: name of the broker's own.
        password_files, acl_files: of the broker and of the plugins.
        dynamic_security: that plugin's file.
        anonymous: a listener lets in anybody without a password.
    """

    persistence: bool = False
    sqlite: bool = False
    location: str = ""
    file: str = "mosquitto.db"
    password_files: tuple[str, ...] = ()
    dynamic_security: str = ""
    anonymous: bool = False
    acl_files: tuple[str, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether retained messages outlive the broker."""
        return self.persistence or self.sqlite

    def below(self, name: str) -> str:
        """Give the path of a file in the database's folder."""
        return f"{self.location.rstrip('/')}/{name}" if self.location else name


def configuration(path: Path, there: Callable[[str], Path | None]) -> Conf | None:
    """Read a `mosquitto.conf` and what it includes.

    Args:
        path: where it lies on this machine.
        there: gives the place on this machine of a path in the container; None = not mounted.

    Returns:
        None = it cannot be read, so nothing is known.
    """
    try:
        lines = [*directives(path, there)]
    except OSError:
        return None
    told: dict[str, str] = {}
    passwords: list[str] = []
    rights: list[str] = []
    plugin = dynamic = ""
    sqlite = False
    for key, value in lines:
        told[key] = value
        if key in ("plugin", "global_plugin", "plugin_load", "auth_plugin"):
            plugin = value
            sqlite |= "persist_sqlite" in plugin
        elif key == "password_file" or (key == "plugin_opt_password_file" and value):
            passwords.append(value)
        elif key == "acl_file" or (key == "plugin_opt_acl_file" and value):
            rights.append(value)
        elif key in ("plugin_opt_config_file", "auth_opt_config_file"):
            if "dynamic_security" in plugin:
                dynamic = value
    return Conf(
        persistence=told.get("persistence", "").lower() in ("true", "1"),
        sqlite=sqlite,
        location=told.get("persistence_location", ""),
        file=told.get("persistence_file", "mosquitto.db"),
        password_files=tuple(passwords),
        dynamic_security=dynamic,
        anonymous=any(
            value.lower() in ("true", "1")
            for key, value in lines
            if key in ("allow_anonymous", "listener_allow_anonymous")
        ),
        acl_files=tuple(rights),
    )


def directives(path: Path, there: Callable[[str], Path | None]) -> Iterator[tuple[str, str]]:
    """Give the directives in the order in which the broker reads them.

    Args:
        path, there: as `configuration`.

    Raises:
        OSError: a file cannot be read.
    """
    for line in path.read_text("utf-8", "replace").splitlines():
        key, _, value = line.strip().partition(" ")
        value = value.strip()
        if not key or key.startswith("#"):
            continue
        folder = there(value) if key == "include_dir" else None
        if folder is None:
            yield key, value
            continue
        for included in sorted(folder.glob("*.conf")):
            yield from directives(included, lambda _: None)  # an included file includes no other


# -- databases -------------------------------------------------------------------------------------


def retained(path: Path, what: str) -> int:
    """Walk a `mosquitto.db` from chunk to chunk and count its retained messages.

    The layout is upstream's `persist.h` (2.0): 15 bytes of magic, CRC, version, then chunks of
    type and length in network order. A file that is cut short does not end with a chunk.

    Raises:
        CaptureError: it is not whole, or of a format that is not known.
    """
    with files.open_plain(path) as descriptor:
        size = os.fstat(descriptor).st_size
        head = os.pread(descriptor, len(MAGIC) + 8, 0)
        if len(head) < len(MAGIC) + 8 or not head.startswith(MAGIC):
            raise CaptureError(f"{what} does not begin as mosquitto.db does")
        (version,) = struct.unpack(">I", head[-4:])
        if version not in VERSIONS:
            raise CaptureError(
                f"{what} has format {version}, which this iotops does not know",
                hint="update iotops",
            )
        position, found = len(head), 0
        while position < size:
            start = os.pread(descriptor, 8, position)
            if len(start) < 8:
                break
            kind, length = struct.unpack(">II", start)
            found += kind == CHUNK_RETAINED
            position += 8 + length
        if position != size:
            raise CaptureError(f"{what} is cut short at {size} bytes")
    return found


def sqlite_retained(path: Path, what: str) -> int:
    """Count the retained messages of a database of the SQLite plugin that nobody has open.

    Raises:
        CaptureError: it is damaged, or no such database.
    """
    with files.open_plain(path):  # refuses links and anything but a regular file
        uri = f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1"
        try:
            with closing(sqlite3.connect(uri, uri=True)) as link:
                (verdict,) = link.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise CaptureError(f"{what} is damaged: {verdict}")
                (number,) = link.execute("SELECT count(*) FROM retains").fetchone()
        except sqlite3.Error as error:
            raise CaptureError(f"{what} cannot be read: {error}") from error
    return int(number)


# -- users -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Users:
    """The users of one file, as far as a restore is judged by them; no name, no hash.

    Attributes:
        number: of them. good: with a hash that some 2.x broker reads.
        newer: of these, with a hash that 2.0 does not read.
        own: not made by the broker itself with a password of its own.
    """

    number: int
    good: int
    newer: int
    own: int


def password_file(path: Path) -> Users:
    """Look at a password file; lines of comment are no users."""
    with files.open_plain(path) as descriptor:
        data = os.read(descriptor, 4 << 20)
    lines = [line for line in data.splitlines() if line.strip() and not line.startswith(b"#")]
    good = [line for line in lines if HASHED.fullmatch(line.strip())]
    newer = sum(_newer(line.decode("utf-8", "replace")) for line in good)
    return Users(len(lines), len(good), newer, len(lines))


def dynamic_security(path: Path) -> Users:
    """Look at the file of the dynamic security plugin.

    2.0 keeps password, salt and iterations apart; 2.1 writes one `encoded_password`, which 2.0
    passes over without a word, and so lets nobody in.

    Raises:
        CaptureError: it is none: a broker then runs and refuses everybody.
    """
    with files.open_plain(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        data = file.read()
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{path.name} is not JSON: {error}") from error
    listed = document.get("clients") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise CaptureError(f"{path.name} has no list of clients: it is not dynamic security's")
    clients = [one for one in listed if isinstance(one, dict)]
    encoded = [one for one in clients if isinstance(one.get("encoded_password"), str)]
    made = _generated(path.with_name(path.name + GENERATED))
    own = sum(one.get("username") not in made for one in clients)
    good = sum("encoded_password" in one or "password" in one for one in clients)
    return Users(len(clients), good, len(encoded), own)


def names(folder: Path) -> dict[str, tuple[str, object]]:
    """Name the users of all password files and of dynamic security below a folder.

    Returns:
        By user, the name and a print of the stored password; never the hash itself.
    """
    found: dict[str, tuple[str, object]] = {}
    for path in sorted(path for path in folder.rglob("*") if files.is_regular(path)):
        with files.open_plain(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
            data = file.read(4 << 20)
        if path.suffix == ".json":
            try:
                document: object = json.loads(data)
            except (ValueError, RecursionError):
                continue
            listed = document.get("clients") if isinstance(document, dict) else None
            for one in listed if isinstance(listed, list) else ():
                if isinstance(one, dict) and isinstance(one.get("username"), str):
                    secret = [one.get(key) for key in ("encoded_password", "password", "salt")]
                    found[one["username"]] = (one["username"], _print(json.dumps(secret).encode()))
            continue
        for line in data.splitlines():
            if HASHED.fullmatch(line.strip()):
                name = line.partition(b":")[0].decode("utf-8", "replace")
                found[name] = (name, _print(line))
    return found


def _print(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _generated(path: Path) -> frozenset[str]:
    """The names in a file of generated passwords: one name and one password in a line."""
    if not files.is_regular(path):
        return frozenset()
    with files.open_plain(path) as descriptor:
        text = os.read(descriptor, 1 << 16).decode("utf-8", "replace")
    return frozenset(line.partition(" ")[0] for line in text.splitlines() if " " in line)


def _newer(line: str) -> bool:
    """Whether 2.0 refuses a hash: `$7$`, and a salt longer than it can decode."""
    parts = line.split("$")
    return len(parts) > 3 and parts[1] == "7" and len(parts[-2]) > LONG_SALT
