"""One capture of InfluxDB: shards flushed and linked, stores taken, everything checked and counted.

The order is what makes it consistent: the stores come after the links, so that they know every
shard that was linked. A backup and an export are both made of this. Not here: the service and its
settings, its verification and its way back (`services/influxdb.py`), requests (`influxapi.py`),
taking one shard (`influxshards.py`).
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from iotops.clients import files
from iotops.clients.influxapi import Bucket, InfluxApi, Metrics, version_of
from iotops.clients.influxengine import Engine, Ledger, Mark, Shard
from iotops.clients.influxshards import (
    PAUSE,
    TRIES,
    ShardTaker,
    is_shard_file,
    patiently,
    staged_path,
)
from iotops.clients.staging import Staging
from iotops.clients.tsm import TsmError, check_bolt
from iotops.errors import CaptureError
from iotops.model import Captured, ServiceRecord

KV, SQL = "influxd.bolt", "influxd.sqlite"
OLDEST = (2, 5, 0)
"""Before 2.5 the backup's list of buckets ends after 20 of them (influxdb #23783)."""
MADE = ("buckets", "tokens", "tasks", "dashboards", "users")
STALE = 3600.0
"""Seconds after which a snapshot folder was left behind and not just made."""

UPGRADE = "upgrade its image to 2.7 or newer (one minor version at a time is not needed)"
NOT_HERE = "mount the data folder at /var/lib/influxdb2, and name it in iotops.toml as `folder`"
_NO_ROOT = "run iotops as root: sudo"


def too_old(text: str) -> str:
    """Say that a version cannot be captured."""
    return f"InfluxDB {text} cannot be backed up; 2.5 is the oldest, and 3.x is another program"


def no_folder(folder: Path, error: OSError) -> str:
    """Say that the live folder cannot be looked at."""
    return f"InfluxDB's data is not readable in {folder}: {error.strerror}"


def not_here(folder: Path, shards: Sequence[int]) -> str:
    """Say that the server has its data somewhere else."""
    return f"InfluxDB has data in {len(shards)} shards that are not in {folder}: shard {shards[0]}"


def elsewhere(engine: Engine, metrics: Metrics, server: InfluxApi) -> list[int]:
    """List the shards that the server serves from some other folder than the one looked at.

    One that was deleted between two looks is in neither place a moment later.
    """
    for _ in range(TRIES):
        here = {shard.id for shard in engine.shards()}
        found = sorted(
            shard
            for shard, state in (metrics.shards or {}).items()
            if state.files and shard not in here
        )
        if not found:
            break
        time.sleep(PAUSE)
        metrics = server.metrics()
    return found


def doubtful(engine: Engine, shard: Shard, metrics: Metrics) -> bool:
    """Tell whether a shard must be asked for: only the server's own 404 proves it not open.

    The metrics list a shard that failed to open too; it then has no files in them.
    """
    state = (metrics.shards or {}).get(shard.id)
    if state is None:
        return engine.holds(shard)
    here = engine.files(shard)
    return (bool(here) and state.files == 0) or any(
        path.name.endswith(".bad") for path in engine.aside(shard)
    )


def odd(engine: Engine) -> list[Path]:
    """List what lies in shards' folders and should not."""
    return [path for shard in engine.shards() for path in engine.aside(shard)]


def oddities(paths: Sequence[Path]) -> Iterator[str]:
    """Say what files set aside and folders left behind mean."""
    bad = [path for path in paths if path.name.endswith(".bad")]
    if bad:
        yield (
            f"InfluxDB set {len(bad)} damaged files aside and does not serve their points: {bad[0]}"
        )
    stale = [path for path in paths if path.name.endswith(".tmp") and _age(path) > STALE]
    if stale:
        yield f"a snapshot folder was left behind and holds disk space: {stale[0]}"


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def add(counts: dict[str, int], key: str, number: int) -> None:
    """Add to a number that may not be there yet."""
    counts[key] = counts.get(key, 0) + number


def check_sqlite(path: Path) -> None:
    """Check a copied database that nothing else has open.

    Raises:
        CaptureError: it is damaged or no database.
    """
    try:
        if not files.is_sqlite(path):
            raise CaptureError(f"{path} is no SQLite database")
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            verdict = str(database.execute("PRAGMA integrity_check").fetchone()[0])
    except sqlite3.Error as error:
        raise CaptureError(f"the database {path} is damaged: {error}") from error
    if verdict != "ok":
        raise CaptureError(f"the database {path} is damaged: {verdict.splitlines()[0]}")


class Capture:
    """One capture while it is made."""

    def __init__(
        self,
        server: InfluxApi,
        staging: Staging,
        tmp: Path,
        owner: tuple[int, int],
        previous: ServiceRecord | None,
    ) -> None:
        self.server = server
        self.staging = staging
        self.tmp = tmp
        self.owner = owner
        self.previous = previous
        self.engine = Engine(staging.source / "engine")
        self.ledger = Ledger(previous.extra if previous is not None else "")
        # What is counted later over the API ends here; it knows microseconds in a query.
        self.began = time.time_ns() // 1000 * 1000
        self.linked: dict[Shard, list[str]] = {}
        self.closed: set[Shard] = set()
        self.unknown: set[Shard] = set()
        self.listing = b""

    def make(self) -> Captured:
        """Do it all, in order."""
        captured = self.take()
        self.staging.rest(skip=is_shard_file)
        for text in oddities(odd(self.engine)):
            self.staging.warn(text)
        return captured

    def take(self) -> Captured:
        """Stage shards and stores, and count; other files are not looked at."""
        metrics = self.server.metrics()
        version = metrics.version or self.server.health()
        self._check_version(version)
        shards = self._shards(metrics)
        taker = ShardTaker(self.server, self.engine, self.staging, self.tmp)
        taker.flush([shard for shard in shards if self.engine.unflushed(shard)])
        for shard in shards:
            self.linked[shard] = taker.take(shard)
        self.closed = taker.closed
        buckets, made = self._take_fitting_metadata()
        self._settle(buckets, metrics)
        counts = made | self._count(buckets)
        moment = datetime.fromtimestamp(self.began // 1000 / 1e6, UTC)
        return Captured(
            version=version.removeprefix("v"),
            counts=counts,
            facts={"points_before": moment.isoformat(), **self._expiries(buckets)},
            extra=self.ledger.text(),
        )

    def _check_version(self, text: str) -> None:
        version = version_of(text)
        if version is None:
            self.staging.warn(f"InfluxDB does not say its version ({text!r})")
        elif version < OLDEST or version[0] != 2:
            raise CaptureError(too_old(text), hint=UPGRADE)

    def _shards(self, metrics: Metrics) -> list[Shard]:
        """List the shards on the disk, which must be the ones that the server serves."""
        try:
            shards = self.engine.shards()
        except FileNotFoundError as error:
            if metrics.shards is not None and not any(s.files for s in metrics.shards.values()):
                return []  # a server that nothing was ever written to
            raise CaptureError(no_folder(self.staging.source, error), hint=NOT_HERE) from error
        except OSError as error:
            raise CaptureError(no_folder(self.staging.source, error), hint=_NO_ROOT) from error
        if away := elsewhere(self.engine, metrics, self.server):
            raise CaptureError(not_here(self.staging.source, away), hint=NOT_HERE)
        return shards

    # -- what the server knows ------------------------------------------------------------------

    def _take_fitting_metadata(self) -> tuple[tuple[Bucket, ...], dict[str, int]]:
        """Stage the stores, with counts of what people made that fit them.

        Both come in requests of their own, and somebody may make a token in between: counts fit
        when they are the same before and after, or as the last run left them. A store that has not
        changed since keeps that run's.
        """
        buckets, changed = self._take_metadata()
        old = self.previous.counts if self.previous is not None else {}
        made = {key: old[key] for key in MADE if key in old}
        if not changed and len(made) == len(MADE):
            return buckets, made
        for _ in range(TRIES):
            before, made = made, {"buckets": len(self.server.buckets()), **self.server.tally()}
            if made == before:
                return buckets, made
            buckets, _ = self._take_metadata()
        self.staging.warn(
            "InfluxDB's buckets, tokens, tasks, dashboards or users kept changing during the"
            " capture: their recorded numbers may not be the captured ones"
        )
        return buckets, made

    def _take_metadata(self) -> tuple[tuple[Bucket, ...], bool]:
        """Stage the key-value and the SQL store; an unchanged one keeps its staged file.

        Returns:
            The buckets with their shards, and whether the key-value store is a new one.
        """
        tmp = self.tmp
        with tempfile.TemporaryDirectory(dir=tmp, prefix="influxdb-") as name:
            kv, sql = Path(name) / KV, Path(name) / SQL
            listing = patiently(lambda: self.server.save_metadata(kv, sql))
            try:
                check_bolt(kv)
            except TsmError as error:
                raise CaptureError(f"InfluxDB's store did not come whole: {error}") from error
            check_sqlite(sql)
            changed = False
            for path in (kv, sql):
                self._look_like_live(path)
                changed |= self.staging.adopt(path.name, path) and path is kv
        self.listing = listing.text
        return listing.buckets, changed

    def _look_like_live(self, path: Path) -> None:
        """Give a copy the mode and owner of the live file that it stands for."""
        mode, owner = 0o600, self.owner
        try:
            state = self.staging.live(path.name).stat()
            mode, owner = state.st_mode & 0o777, (state.st_uid, state.st_gid)
        except FileNotFoundError:
            pass  # a server with its stores elsewhere; they are put back where the image has them
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, *owner)

    def _settle(self, buckets: Sequence[Bucket], metrics: Metrics) -> None:
        """Hold the files taken against the server's list of shards.

        Raises:
            CaptureError: the server has not opened a shard that has files or a log.
        """
        groups = {group.shard: group for bucket in buckets for group in bucket.groups}
        for shard, names in list(self.linked.items()):
            group = groups.get(shard.id)
            if group is not None and not group.deleted:
                unsure = shard in self.closed or doubtful(self.engine, shard, metrics)
                if unsure and self.engine.holds(shard) and not self._open(shard):
                    raise CaptureError(
                        f"InfluxDB has not opened shard {shard.path}, although it has data: it is"
                        " damaged",
                        hint="see why in its log (iotops logs influxdb), repair it, or bring the"
                        " shard back from an older snapshot",
                    )
            elif group is not None or not self.engine.files(shard):
                for name in names:  # deleted while we worked, by retention or with its bucket
                    self.staging.forget(staged_path(shard, name))
                del self.linked[shard]
            elif names:
                self.unknown.add(shard)
                self.staging.warn(
                    f"shard {shard.path} has files but the server does not know it; its files are"
                    " kept, its points are not counted"
                )
        self._miss(groups, buckets)

    def _open(self, shard: Shard) -> bool:
        """Ask for one shard: only the server's own 404 proves that it does not serve it."""
        return patiently(partial(self.server.flush, shard.id))

    def _miss(self, groups: Collection[int], buckets: Sequence[Bucket]) -> None:
        """Warn of shards that the server still lists and whose files are gone."""
        taken = {shard.id for shard, names in self.linked.items() if names}
        for bucket in buckets:
            for group in bucket.groups:
                shard = Shard(bucket.id, "autogen", group.shard)
                if not group.deleted and group.shard not in taken and self.ledger.held(shard):
                    self.staging.warn(
                        f"shard {shard.path} held points at the last backup and has no files now"
                    )

    # -- what is in it --------------------------------------------------------------------------

    def _count(self, buckets: Sequence[Bucket]) -> dict[str, int]:
        """Check new files and count all points."""
        known = {bucket.id: bucket for bucket in buckets}
        groups = {group.shard: group for bucket in buckets for group in bucket.groups}
        found: dict[str, int] = {}
        for shard, names in self.linked.items():
            folder = self.staging.path(staged_path(shard))
            marks: dict[str, Mark] = {}
            for name in names:
                state = (folder / name).stat()
                marks[name] = (state.st_size, state.st_mtime_ns, state.st_ino)
            group = groups.get(shard.id) if shard not in self.unknown else None
            window = (group.start, group.end) if group is not None else None
            try:
                points = self.ledger.account(shard, folder, marks, self.began, window)
            except TsmError as error:
                raise CaptureError(
                    f"a file of InfluxDB is damaged: {error.message}", hint=error.hint
                ) from error
            bucket = known.get(shard.bucket)
            if bucket is not None and not bucket.system and shard not in self.unknown:
                for measurement, count in points.items():
                    add(found, f"points/{bucket.name}/{measurement}", count)
        return found

    def _expiries(self, buckets: Sequence[Bucket]) -> dict[str, str]:
        """Say when retention begins to remove captured points, for each bucket that has one."""
        taken = {shard.id for shard, names in self.linked.items() if names}
        found: dict[str, str] = {}
        for bucket in buckets:
            ends = [group.end for group in bucket.groups if group.shard in taken]
            if bucket.retention and ends and not bucket.system:
                moment = datetime.fromtimestamp(min(ends) / 1e9 + bucket.retention, UTC)
                text, key = moment.strftime("%Y-%m-%dT%H:%M:%SZ"), f"expires/{bucket.name}"
                found[key] = min(text, found.get(key, text))  # organisations may share a name
        return found
