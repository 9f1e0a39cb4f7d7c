"""Brings the files of InfluxDB's shards into a staging folder: flush, then link or download.

A flush that did not happen is silent, a set of files can change while it is linked, and a link
that may not be made must not quietly become a download: what each of these needs is here. Not
here: whether the files are sound, and what else a snapshot holds (`services/influxdb.py`).
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from iotops.clients import files
from iotops.clients.influxapi import InfluxApi
from iotops.clients.influxengine import TOMBSTONE, TSM, Engine, Mark, Shard
from iotops.clients.staging import Staging
from iotops.errors import CaptureError, Refused, ServerError, Unreachable

TRIES = 6
PAUSE = 0.4
"""Seconds between attempts: a flush or a compaction that is in the way takes about a second."""

TRIES_IN_VAIN = 75
"""Attempts while a shard is answered with an error: on a busy Pi its deletion takes a while."""

T = TypeVar("T")


def patiently(act: Callable[[], T]) -> T:
    """Try a request again that failed inside the server (500: a shard just going away)."""
    for _ in range(2):
        try:
            return act()
        except Refused:
            raise
        except ServerError:
            time.sleep(PAUSE)
    return act()


def staged_path(shard: Shard, name: str = "") -> str:
    """Give the path of a shard's file, or of its folder, below the service's folder."""
    return f"engine/data/{shard.path}/{name}"


def is_shard_file(relative: str) -> bool:
    """Tell of a path whether it is a shard's file, which is linked or fetched, never copied."""
    parts = relative.split("/")
    return (
        len(parts) == 6
        and parts[:2] == ["engine", "data"]
        and (TSM.fullmatch(parts[5]) or TOMBSTONE.fullmatch(parts[5])) is not None
    )


def is_tombstone(name: str) -> bool:
    """Tell whether a shard's file holds deletions."""
    return TOMBSTONE.fullmatch(name) is not None


class ShardTaker:
    """Takes shards, one after the other.

    Args:
        server: the server that writes them.
        engine: its live engine folder.
        staging: where the files go.
        tmp: a folder for downloads, on the staging folder's file system.

    Attributes:
        closed: shards that the server said it does not have open.
    """

    def __init__(self, server: InfluxApi, engine: Engine, staging: Staging, tmp: Path) -> None:
        self._server = server
        self._engine = engine
        self._staging = staging
        self._tmp = tmp
        self._download = False
        self.closed: set[Shard] = set()

    def flush(self, shards: Sequence[Shard]) -> None:
        """Have the caches of these shards written, and make sure that it was really done.

        A flush that met another one is silent, and a log can stay non-empty for ever (points
        deleted before a flush): a shard is drained when every segment seen before is gone, or
        its cache is empty. A shard that is just being deleted is answered with an error, until its
        files are gone.

        Raises:
            ServerError: a shard that stays could not be asked for.
        """
        failed: dict[Shard, ServerError] = {}
        waiting = {shard: set(self._engine.unflushed(shard)) for shard in shards}
        for attempt in range(TRIES_IN_VAIN):
            if attempt >= TRIES and not failed:
                break
            if attempt:
                time.sleep(PAUSE)
            for shard in list(failed if attempt >= TRIES else waiting):
                try:
                    opened = self._server.flush(shard.id)
                except (Refused, Unreachable):
                    raise
                except ServerError as error:
                    failed[shard] = error
                    continue
                failed.pop(shard, None)
                if not opened:
                    self.closed.add(shard)  # judged when the list of shards is known
                    del waiting[shard]
            waiting = {
                shard: segments
                for shard, segments in waiting.items()
                if segments & set(self._engine.unflushed(shard))
            }
            failed = {shard: error for shard, error in failed.items() if shard in waiting}
            if waiting:
                states = self._server.metrics().shards or {}
                for shard in list(waiting):
                    if shard not in failed and shard.id in states and states[shard.id].cached == 0:
                        del waiting[shard]
            if not waiting:
                return
        for shard in waiting:
            if shard in failed:
                raise ServerError(
                    failed[shard].message, hint="look into its log: iotops logs influxdb"
                ) from failed[shard]
            self._staging.warn(
                f"shard {shard.path} could not be flushed: its newest points, still in the"
                " write-ahead log, are not in this snapshot"
            )

    def take(self, shard: Shard) -> list[str]:
        """Stage a shard's files and give their names.

        Raises:
            CaptureError: they may not be linked, or kept changing, or did not all arrive.
            ServerError: a download failed.
        """
        if not self._download:
            try:
                return self._link(shard)
            except OSError as error:
                self._judge_link(error)
                self._download = True
        return self._fetch(shard)

    def _link(self, shard: Shard) -> list[str]:
        """Link a shard's files: list, link, list again, until nothing changed in between."""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE)
            before = self._engine.files(shard)
            for name in before:
                try:
                    self._staging.link(staged_path(shard, name))
                except FileNotFoundError:
                    break  # compacted away meanwhile
            else:
                if before == self._engine.files(shard):
                    return list(before)
            for name in before:
                self._staging.forget(staged_path(shard, name))
        raise CaptureError(
            f"the files of shard {shard.path} kept changing while they were linked",
            hint="try again when InfluxDB is less busy: iotops backup",
        )

    def _judge_link(self, error: OSError) -> None:
        """Go on to downloading where links cannot be; refuse where they only may not be.

        Raises:
            CaptureError: the data's own file system, and no right to link on it.
        """
        live, staged = self._staging.source, self._staging.folder
        same = (live / "engine" / "data").stat().st_dev == staged.stat().st_dev
        if not same and error.errno == errno.EXDEV:
            return
        if error.errno == errno.EXDEV:
            raise CaptureError(
                f"InfluxDB's files in {live} cannot be linked into {staged}: between them lies a"
                " bind mount",
                hint="give the unit the data root as one writable path, not folders in it",
            ) from error
        if error.errno in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK):
            if not _can_link(staged):
                return  # a file system that knows no hard links
            raise CaptureError(
                f"InfluxDB's files in {live} may not be linked: {error.strerror}",
                hint="run iotops as root (sudo); a unit needs CAP_FOWNER and CAP_DAC_OVERRIDE",
            ) from error
        raise CaptureError(
            f"InfluxDB's files in {live} cannot be linked: {error.strerror or error}"
        ) from error

    def _fetch(self, shard: Shard) -> list[str]:
        """Download a shard, unless the staged files are still what the folder lists."""
        listed = self._engine.files(shard)
        if self._staged_equals(shard, listed):  # an empty shard is staged already, too
            for name in listed:
                self._staging.keep(staged_path(shard, name))
            return list(listed)
        size = sum(mark[0] for mark in listed.values())
        files.require_space(self._tmp, size, doing=f"the download of shard {shard.path}")
        for _ in range(TRIES):
            before = self._engine.files(shard)
            with tempfile.TemporaryDirectory(dir=self._tmp, prefix="influxdb-") as name:
                folder = Path(name)
                found = patiently(partial(self._get, shard, folder))
                if found is None:
                    self.closed.add(shard)
                    return []
                after = self._engine.files(shard)
                if set(found) >= {one for one in before if before[one] == after.get(one)}:
                    for one in found:
                        self._staging.adopt(staged_path(shard, one), folder / one)
                    return found
            time.sleep(PAUSE)
        raise CaptureError(
            f"InfluxDB did not send all files of shard {shard.path}",
            hint="look into its log: iotops logs influxdb",
        )

    def _get(self, shard: Shard, folder: Path) -> list[str] | None:
        for left in folder.iterdir():
            left.unlink()
        return self._server.save_shard(shard.id, shard.path + "/", folder)

    def _staged_equals(self, shard: Shard, listed: Mapping[str, Mark]) -> bool:
        """Compare with what an earlier download staged; a tar knows whole seconds only.

        What is staged beyond the list goes when the staging is finished: nobody keeps it.
        """
        for name, mark in listed.items():
            relative = staged_path(shard, name)
            if not self._staging.has(relative):
                return False
            state = self._staging.path(relative).stat()
            if state.st_size != mark[0] or abs(state.st_mtime_ns - mark[1]) > 10**9:
                return False
        return True


def _can_link(folder: Path) -> bool:
    """Find out whether a folder's file system knows hard links at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".link-") as name:
        first = Path(name) / "one"
        first.touch()
        try:
            os.link(first, Path(name) / "two")
        except OSError:
            return False
    return True
