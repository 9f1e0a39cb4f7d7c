"""The bench on which one kind is tested: a Compose project of one service, and what a hub does.

Capturing, putting in place and waiting follow the actions' order on the product's own parts
(staging, stack, kind); planting and comparing files share nothing with them.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import random
import secrets
import shutil
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iotops import services
from iotops.clients.compose import ComposeStack
from iotops.clients.staging import Staged, Staging
from iotops.config import Secret
from iotops.model import Mode, ServiceRecord
from iotops.services.base import Place, Service
from tests.contract.protocol import Ground, KindUnderTest
from tests.support.lab import Image

PATIENCE = 120.0
"""Seconds that a server may take until the product calls it ready."""
FOLDERS = 60
"""Folders of a service into which files are planted; of more, a random choice."""

HOSTILE = (
    b" spaces ",
    b"-rf",
    b"new\nline",
    b"back\\slash \\x41",
    b"quote\"'$(date)`",
    b"not utf-8 \xff\xfe",
    "ünïcode 漢字 😀".encode(),
    b"*[a-z]?.bin",
    b".hidden",
    b"...",
    "漢".encode() * 85,
    b"query?x=1#part%2e",
    b".txt.iotops-new",
    b"export.txt",
    b"x" * 200 + b".db-wal",
)

CERTIFICATE = """-----BEGIN CERTIFICATE-----
{body}
-----END CERTIFICATE-----
"""


@dataclass(frozen=True)
class Seen:
    """How a file, folder or link looked: content (hash, target, rows) and what is around it."""

    content: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int


class Bench:
    """One kind in its container, from the first start to the end."""

    def __init__(self, kind: type[KindUnderTest[Any]], image: Image, root: Path) -> None:
        name = kind.kind
        self.project = f"iotops-contract-{name}-{secrets.token_hex(4)}"
        self._ports: dict[int, int] = {}
        self.data = root / "data"
        self.ground = Ground(
            folder=self.data / name,
            hub=root / "hub",
            tmp=root / "tmp",
            image=image.reference,
            stand_in=image.stand_in,
            port=self._port,
            container=f"{self.project}-1",
        )
        for folder in (self.ground.hub, self.ground.tmp, self.data / ".iotops" / "tmp"):
            folder.mkdir(parents=True)
        self.staged = self.data / ".iotops" / "staging" / name
        self.kind = kind(self.ground)
        self.stack = ComposeStack(
            self.ground.hub, files=[self.ground.hub / "compose.json"], project=self.project
        )
        self.random = random.Random(seed := secrets.randbits(32))
        print(f"planting with seed {seed}")

    def _port(self, number: int) -> int:
        if number not in self._ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._ports[number] = int(probe.getsockname()[1])
        return self._ports[number]

    # -- running it -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Write what must be there before the first start."""
        self.kind.prepare()
        table = {**self.kind.compose(), "container_name": self.ground.container}
        document = {"name": self.project, "services": {self.kind.kind: table}}
        (self.ground.hub / "compose.json").write_text(json.dumps(document, indent=1))
        lines = [f"{name}='{value}'\n" for name, value in self.kind.env().items()]
        (self.ground.hub / ".env").write_text("".join(lines))

    def service(self) -> Service:
        """The product's kind, bound to this container; a new one for every look."""
        place = Place(
            name=self.kind.kind,
            container=self.kind.kind,
            folder=self.ground.folder,
            hub=self.ground.hub,
            tmp=self.data / ".iotops" / "tmp",
            stack=self.stack,
            secret=self._secret,
        )
        return services.kind(self.kind.kind)(place, self.kind.options())

    def _secret(self, name: str) -> Secret | None:
        value = self.kind.env().get(name)
        return None if value is None else Secret(value)

    def up(self) -> None:
        """Create and start the container, and wait until the product calls it ready."""
        self.stack.create()
        self.await_ready()

    def await_ready(self) -> None:
        """Wait for `ready()`; what is final or takes too long fails with the last reason."""
        ends = time.monotonic() + PATIENCE
        service = self.service()
        while not (state := service.ready()).ok:
            if state.final or time.monotonic() > ends:
                raise AssertionError(f"not ready: {state.reason}\n{self.logs()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the container as an action does."""
        self.stack.stop([self.kind.kind], grace=30)

    def start(self) -> None:
        """Start the stopped container."""
        self.stack.start([self.kind.kind])

    def started_at(self) -> str:
        """When the container was started, and how often it was restarted, as the engine says."""
        asked = subprocess.run(
            [
                *("docker", "inspect", "--format", "{{.State.StartedAt}} {{.RestartCount}}"),
                self.ground.container,
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        return asked.stdout.strip()

    def logs(self) -> str:
        """The container's last words, for the message of a failure."""
        asked = subprocess.run(
            ["docker", "logs", "--tail", "30", self.ground.container],
            check=False,
            capture_output=True,
            text=True,
        )
        return asked.stdout + asked.stderr

    def end(self) -> None:
        """Remove the container and its network, whatever state they are in."""
        subprocess.run(
            ["docker", "rm", "--force", "--volumes", self.ground.container],
            check=False,
            capture_output=True,
        )
        subprocess.run(
            ["docker", "network", "rm", f"{self.project}_default"],
            check=False,
            capture_output=True,
        )

    # -- capture and load, in the actions' order --------------------------------------------------

    def capture(self, previous: ServiceRecord | None = None) -> ServiceRecord:
        """Capture into the staging folder; a cold kind is stopped meanwhile."""
        service = self.service()
        name = self.kind.kind
        staging = Staging(
            self.ground.folder,
            self.staged,
            prefix=name,
            excludes=service.excludes,
            known={one.path: one for one in previous.artifacts} if previous else {},
            memory=self.data / ".iotops" / f"{name}.json",
        )
        cold = service.mode is Mode.COLD
        if cold:
            self.stop()
        captured = service.capture(staging, previous)
        staged: Staged = staging.finish()
        if cold:
            self.start()
            self.await_ready()
        return ServiceRecord(
            name=name,
            kind=name,
            container=name,
            folder=name,
            mode=service.mode,
            version=captured.version,
            counts=captured.counts,
            facts=captured.facts,
            artifacts=staged.artifacts,
            left_out=staged.left_out,
            warnings=(*captured.warnings, *staged.warnings),
            extra=captured.extra,
        )

    def wipe(self) -> None:
        """Lose the data; the folder itself too, as on a fresh disk."""
        shutil.rmtree(self.ground.folder)

    def put_back(self, record: ServiceRecord) -> tuple[str, ...]:
        """Extract (here: copy) the staged folder, have it prepared, and rename it into place."""
        extracted = self.data / ".iotops" / "extracted"
        subprocess.run(["cp", "-a", "--", str(self.staged), str(extracted)], check=True)
        live = self.ground.folder if self.ground.folder.is_dir() else None
        notes = self.service().load(extracted, record, live)
        extracted.rename(self.ground.folder)
        return notes

    # -- files that nobody knows ------------------------------------------------------------------

    def plant(self) -> dict[str, Seen]:
        """Put unknown files of many sorts into every folder of the service.

        Returns:
            How each looked, by its path relative to the service's folder.
        """
        folders = [relative for relative in self._folders() if self.kind.plantable(relative)]
        assert folders, "not one folder to plant into"
        chosen = folders[:1] + self.random.sample(folders[1:], min(len(folders) - 1, FOLDERS))
        planted: list[Path] = []
        for relative in chosen:
            planted += self._plant_into(self.ground.folder / relative, full=relative == chosen[0])
        for path in planted:
            self._dress(path)
        # From the deepest up: giving a file its looks changes the time of its folder.
        return {
            os.fsdecode(os.path.relpath(path, self.ground.folder)): look(path)
            for path in sorted(planted, reverse=True)
        }

    def _folders(self) -> list[str]:
        found = [""]
        for top, folders, _ in os.walk(self.ground.folder):
            found += [os.path.relpath(Path(top) / one, self.ground.folder) for one in folders]
        return sorted(found)

    def _plant_into(self, folder: Path, *, full: bool) -> Iterator[Path]:
        tag = secrets.token_hex(4)
        yield self._file(folder / f"{tag}.bin", self.random.randbytes(self.random.randrange(9000)))
        certificate = CERTIFICATE.format(body=secrets.token_hex(300))
        yield self._file(folder / f"{tag}.pem", certificate.encode())
        yield self._sqlite(folder / f"{tag}.sqlite", "DELETE")
        if not full:
            return
        yield self._sqlite(folder / f"{tag}-wal.db", "WAL")
        for name in HOSTILE:
            yield self._file(folder / os.fsdecode(name), self.random.randbytes(50))
        inner = folder / f"{tag} folder\n\\x"
        (inner / "empty").mkdir(parents=True)
        yield self._file(inner / "file", b"")
        yield self._sqlite(inner / "d", "DELETE")
        for link, target in (("dangling", "nowhere/at all"), ("passwd", "/etc/passwd")):
            (inner / link).symlink_to(target)
            yield inner / link
        yield inner / "empty"
        yield inner

    def _file(self, path: Path, content: bytes) -> Path:
        path.write_bytes(content)
        return path

    def _sqlite(self, path: Path, mode: str) -> Path:
        with closing(sqlite3.connect(path)) as link:
            link.execute(f"PRAGMA journal_mode={mode}")
            link.execute("CREATE TABLE kept (n INTEGER, what BLOB)")
            rows = [(n, self.random.randbytes(99)) for n in range(200)]
            link.executemany("INSERT INTO kept VALUES (?, ?)", rows)
            link.commit()
        return path

    def _dress(self, path: Path) -> None:
        """Give odd owners, modes and times; a folder stays one that a server can pass."""
        if os.geteuid() == 0:
            os.lchown(path, self.random.randrange(70_000), self.random.randrange(70_000))
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else self.random.choice((0o600, 0o644, 0o4755, 0)))
        then = self.random.randrange(10**18, 17 * 10**17)
        os.utime(path, ns=(then, then), follow_symlinks=False)

    def excluded(self, relative: str) -> bool:
        """Tell whether one of the kind's exclude rules names a path or a folder above it."""
        parts = relative.split("/")
        return any(
            rule_names(rule.pattern, "/".join(parts[:depth]), depth < len(parts))
            for rule in self.service().excludes
            for depth in range(1, len(parts) + 1)
        )

    def moves(self, relative: str) -> bool:
        """Tell whether the running server changes a file by itself, as its kind says."""
        return any(fnmatch.fnmatchcase(relative, pattern) for pattern in self.kind.moving)

    def hashes(self, folder: Path) -> dict[str, str]:
        """Hash every regular file below a folder that the server leaves alone."""
        found = {}
        for top, _, names in os.walk(folder):
            for name in names:
                path = Path(top) / name
                relative = os.path.relpath(path, folder)
                if path.is_symlink() or not path.is_file() or self.moves(relative):
                    continue
                found[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def rule_names(pattern: str, relative: str, folder: bool) -> bool:
    """What `model.Exclude` says of its patterns, written down once more."""
    if pattern.endswith("/") and not folder:
        return False
    pattern = pattern.rstrip("/")
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(relative.split("/")[-1], pattern[3:])
    return relative.count("/") == pattern.count("/") and fnmatch.fnmatchcase(relative, pattern)


def look(path: Path) -> Seen:
    """Look at a file, folder or link without following it. A database is its rows."""
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        content = f"-> {os.readlink(path)}"  # noqa: PTH115 - the bytes as they are
    elif stat.S_ISDIR(state.st_mode):
        content = "folder"
    else:
        data = path.read_bytes()
        content = hashlib.sha256(data).hexdigest()
        if data.startswith(b"SQLite format 3\x00"):
            content = table(path)
    return Seen(
        content, stat.S_IMODE(state.st_mode), (state.st_uid, state.st_gid), state.st_mtime_ns
    )


def table(path: Path) -> str:
    """Hash the rows of a planted database, read from a copy so that nothing is left beside it."""
    copy = Path(shutil.copy(path, f"/tmp/{secrets.token_hex(8)}"))
    try:
        with closing(sqlite3.connect(copy)) as link:
            assert link.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows = link.execute("SELECT * FROM kept ORDER BY n").fetchall()
    finally:
        for one in copy.parent.glob(f"{copy.name}*"):
            one.unlink()
    return f"{len(rows)} rows, {hashlib.sha256(repr(rows).encode()).hexdigest()}"


def differences(planted: Mapping[str, Seen], folder: Path, *, content_only: bool) -> list[str]:
    """Compare planted files with what lies there now, one sentence per difference."""
    found = []
    for relative, before in planted.items():
        path = folder / relative
        if not path.exists() and not path.is_symlink():
            found.append(f"{relative!r} is gone")
            continue
        now = look(path)
        if content_only:
            now = Seen(now.content, before.mode, before.owner, before.mtime_ns)
        if now != before:
            found.append(f"{relative!r} was {before}, is {now}")
    return found
