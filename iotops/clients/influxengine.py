"""InfluxDB's engine folder, seen from outside: shards, their files, their write-ahead log.

Also the ledger: what is known of files that were checked in an earlier run, so that a run reads
new files only. A TSM file never changes, so one with the same size, time and inode is the same
one. Not here: asking the server anything, and what belongs into a snapshot
(`services/influxdb.py`).

Layout as in influxdb v2.9.1, `tsdb/store.go` and `tsdb/engine/tsm1/{file_store,wal}.go`:
`data/<bucket>/<policy>/<shard>/<generation>-<sequence>.tsm` and `wal/<bucket>/<policy>/<shard>/
_<segment>.wal`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iotops.clients.influxwindows import Window, apart
from iotops.clients.tsm import EARLIEST, check_tsm, surplus

TSM = re.compile(r"\d+-\d+\.tsm")
TOMBSTONE = re.compile(r"\d+-\d+\.tombstone")

Mark = tuple[int, int, int]
"""Size in bytes, time of last change in ns, inode: equal for a file that is still the same."""


@dataclass(frozen=True, order=True)
class Shard:
    """One shard's place below `data` and below `wal`."""

    bucket: str
    policy: str
    id: int

    @property
    def path(self) -> str:
        """Its path relative to `data`; the server names files in a shard's tar by it."""
        return f"{self.bucket}/{self.policy}/{self.id}"


class Engine:
    """An engine folder; all methods look at it anew.

    Args:
        folder: the folder that holds `data` and `wal`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shards(self) -> list[Shard]:
        """List the shards that have a folder under `data`, in order.

        Raises:
            OSError: there is no such folder, or it may not be read.
        """
        found = []
        for bucket in _folders(self.folder / "data"):
            for policy in _folders_if_there(bucket):
                if policy.name == "_series":  # the series file, cut into numbered folders as well
                    continue
                for shard in _folders_if_there(policy):
                    if shard.name.isdecimal():
                        found.append(Shard(bucket.name, policy.name, int(shard.name)))
        return sorted(found)

    def files(self, shard: Shard) -> dict[str, Mark]:
        """List a shard's TSM files and the tombstones that belong to one of them.

        A tombstone without its TSM file deletes nothing any more: the server removes the TSM file
        first. A shard that is gone has no files.
        """
        found: dict[str, Mark] = {}
        try:
            with os.scandir(self.folder / "data" / shard.path) as entries:
                for entry in entries:
                    if TSM.fullmatch(entry.name) or TOMBSTONE.fullmatch(entry.name):
                        state = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(state.st_mode):
                            found[entry.name] = (state.st_size, state.st_mtime_ns, state.st_ino)
        except FileNotFoundError:
            if (self.folder / "data" / shard.path).is_dir():
                return self.files(shard)  # a file went away between listing and looking at it
            return {}
        return {
            name: mark
            for name, mark in sorted(found.items())
            if name.removesuffix(".tombstone") == name
            or name.replace(".tombstone", ".tsm") in found
        }

    def unflushed(self, shard: Shard) -> dict[str, int]:
        """List a shard's write-ahead log segments that are not empty, with their sizes."""
        found: dict[str, int] = {}
        try:
            with os.scandir(self.folder / "wal" / shard.path) as entries:
                for entry in entries:
                    if entry.name.endswith(".wal") and (size := entry.stat().st_size) > 0:
                        found[entry.name] = size
        except FileNotFoundError:
            pass  # flushed or deleted meanwhile; what is left is seen at the next look
        return found

    def aside(self, shard: Shard) -> list[Path]:
        """List what lies in a shard's folder and should not: files that the server set aside as
        damaged (`.bad`), and folders of its own snapshots (`.tmp`).
        """
        try:
            with os.scandir(self.folder / "data" / shard.path) as entries:
                found = [entry for entry in entries if entry.name.endswith((".bad", ".tmp"))]
        except FileNotFoundError:
            return []  # retention took it away meanwhile
        return sorted(
            Path(entry.path)
            for entry in found
            if entry.name.endswith(".bad") or entry.is_dir(follow_symlinks=False)
        )

    def holds(self, shard: Shard) -> bool:
        """Tell whether a shard has points on the disk, in whatever state."""
        return bool(
            self.files(shard)
            or self.unflushed(shard)
            or any(path.name.endswith(".bad") for path in self.aside(shard))
        )


def _folders(folder: Path) -> list[Path]:
    """List the folders in a folder."""
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _folders_if_there(folder: Path) -> list[Path]:
    """List the folders in a folder; one that was deleted meanwhile has none."""
    try:
        return _folders(folder)
    except FileNotFoundError:
        return []


@dataclass
class _File:
    """What is known of one checked TSM file."""

    mark: Mark
    last: int
    points: dict[str, int]


@dataclass
class _Account:
    """What is known of one shard: its files, and the points in it when all was the same.

    `open`: some points were too late to count, so that the number depends on the time.
    `window`: the time that it is for, in ns; None where the server does not know it.
    """

    files: dict[str, _File] = field(default_factory=dict)
    stones: dict[str, Mark] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    open: bool = False
    window: tuple[int, int] | None = None


class Ledger:
    """Counts the points of shards, and remembers, so that only new files are read.

    Args:
        text: what `text()` gave at the last run; anything else begins anew.
    """

    def __init__(self, text: str = "") -> None:
        self._old = _parse(text)
        self._new: dict[str, _Account] = {}
        self.read = 0

    def account(
        self,
        shard: Shard,
        folder: Path,
        marks: Mapping[str, Mark],
        before: int,
        window: tuple[int, int] | None = None,
    ) -> dict[str, int]:
        """Check a shard's new files and count its points as a query would.

        Args:
            folder: where the files are read: the staged ones.
            marks: the shard's TSM files and tombstones with their marks in the live folder.
            before: points at this time (ns) or later do not count.
            window: the shard's time: its first ns and the ns after its last.

        Returns:
            Points by measurement: distinct times of every series field, deleted ones left out.

        Raises:
            TsmError: a file is damaged.
        """
        old = self._old.get(shard.path, _Account())
        stones = {name: mark for name, mark in marks.items() if TOMBSTONE.fullmatch(name)}
        now = _Account(stones=stones, window=window)
        for name, mark in marks.items():
            if name in now.stones:
                continue
            known = old.files.get(name)
            if known is None or known.mark != mark:
                inventory = check_tsm(folder / name)
                self.read += inventory.size
                known = _File(mark, inventory.last, inventory.by_measurement())
            now.files[name] = known
        same = (
            not old.open
            and now.stones == old.stones
            and {n: f.mark for n, f in now.files.items()}
            == {n: f.mark for n, f in old.files.items()}
        )
        if same:
            now.points = old.points
        else:
            self._count(now, folder, before)
        self._new[shard.path] = now
        return now.points

    def _count(self, account: _Account, folder: Path, before: int) -> None:
        """Fill in the points of a shard whose files have been checked."""
        last = max((file.last for file in account.files.values()), default=EARLIEST)
        account.open = last >= before
        for file in account.files.values():
            for measurement, points in file.points.items():
                account.points[measurement] = account.points.get(measurement, 0) + points
        if len(account.files) > 1 or account.stones or account.open:
            pairs = [
                (folder / name, folder / stone if stone in account.stones else None)
                for name in account.files
                for stone in (name.replace(".tsm", ".tombstone"),)
            ]
            for measurement, points in surplus(pairs, before).items():
                account.points[measurement] -= points
        account.points = {name: points for name, points in account.points.items() if points}

    def held(self, shard: Shard) -> bool:
        """Tell whether the last run found TSM files in a shard."""
        return bool(self._old.get(shard.path, _Account()).files)

    def windows(self) -> dict[str, list[Window]]:
        """Give what the last run counted in every shard's time, by the id of the bucket."""
        found: dict[str, list[Window]] = {}
        for path, account in self._old.items():
            if account.window is not None and account.points:
                bucket = path.partition("/")[0]
                found.setdefault(bucket, []).append(Window(*account.window, account.points))
        return {bucket: apart(windows) for bucket, windows in found.items()}

    def text(self) -> str:
        """Give what the next run needs, as JSON text; the same for the same files."""
        names = sorted(
            {
                name
                for account in self._new.values()
                for points in (account.points, *(f.points for f in account.files.values()))
                for name in points
            }
        )
        number = {name: at for at, name in enumerate(names)}

        def packed(points: Mapping[str, int]) -> list[int]:
            return [part for name in sorted(points) for part in (number[name], points[name])]

        shards = {
            path: {
                "files": {
                    name: [*file.mark, file.last, *packed(file.points)]
                    for name, file in account.files.items()
                },
                "stones": account.stones,
                "points": packed(account.points),
                "open": account.open,
                **({"window": account.window} if account.window is not None else {}),
            }
            for path, account in sorted(self._new.items())
        }
        return json.dumps({"format": 1, "names": names, "shards": shards}, separators=(",", ":"))


def _window(pair: list[int] | None) -> tuple[int, int] | None:
    """Read a shard's time; a ledger of an older iotops has none."""
    if pair is None:
        return None
    start, end = int(pair[0]), int(pair[1])
    if start >= end:
        raise ValueError("a window that ends before it begins")
    return start, end


def _parse(text: str) -> dict[str, _Account]:
    """Read a ledger; one that is not exactly ours is as good as none."""
    try:
        document: object = json.loads(text)
        if not isinstance(document, dict) or document["format"] != 1:
            return {}
        names: list[str] = document["names"]

        def points(packed: list[int]) -> dict[str, int]:
            return {names[at]: count for at, count in zip(packed[::2], packed[1::2], strict=True)}

        return {
            path: _Account(
                {
                    name: _File((at[0], at[1], at[2]), at[3], points(at[4:]))
                    for name, at in table["files"].items()
                },
                {name: (at[0], at[1], at[2]) for name, at in table["stones"].items()},
                points(table["points"]),
                bool(table["open"]),
                _window(table.get("window")),
            )
            for path, table in document["shards"].items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}
