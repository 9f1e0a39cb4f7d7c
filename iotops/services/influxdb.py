"""InfluxDB 2: a hot capture by hard links, an offline restore by putting files back.

A TSM file never changes, so a hard link is a consistent copy that costs no bytes; what the server
still holds in memory is flushed into such files first. Tokens, tasks and the list of shards come
through the backup API, asked for *after* the links are made: so they know every shard that was
linked, whatever was created meanwhile. On another file system than the data's the shards are
downloaded instead, into the same layout. Put back, the files are all a server needs: it makes its
indexes anew, and keeps deletions and tokens, which the restore API does not.

A point here is one field's value at one time. The recorded numbers are the ones a query would
give for the captured files (`clients/influxengine.py`), up to the moment the capture began.

Not here: the capture itself (`clients/influxcapture.py`), requests (`clients/influxapi.py`), the
formats (`clients/tsm.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from iotops.clients import files
from iotops.clients.influxapi import (
    Bucket,
    InfluxApi,
    flux_time,
    nanoseconds,
    version_of,
)
from iotops.clients.influxcapture import (
    KV,
    NOT_HERE,
    OLDEST,
    SQL,
    UPGRADE,
    Capture,
    add,
    check_sqlite,
    doubtful,
    elsewhere,
    no_folder,
    not_here,
    odd,
    oddities,
    too_old,
)
from iotops.clients.influxengine import Engine, Ledger
from iotops.clients.influxshards import (
    is_tombstone,
    staged_path,
)
from iotops.clients.influxwindows import Fewer, batches, fewer
from iotops.clients.staging import Staging
from iotops.clients.tsm import TsmError, check_bolt
from iotops.config import Secret, ServerAddress
from iotops.errors import CaptureError, IotopsError, LoadError, Refused, ServerError
from iotops.model import (
    Captured,
    Difference,
    Exclude,
    Facts,
    Finding,
    Mode,
    Readiness,
    ServiceRecord,
    Severity,
)
from iotops.services.base import BaseOptions, Service, moved_url

Lost = tuple[Bucket, Fewer]


@dataclass(frozen=True, kw_only=True)
class InfluxdbOptions(BaseOptions):
    """Settings of an InfluxDB service.

    Attributes:
        url: its address on this machine.
        token_env: name in `.env` of an operator token.
        reader_token_env: name in `.env` of a token that only reads, for Grafana; `iotops up` makes
            one while the value is empty. Empty = none is made.
    """

    kind: str = "influxdb"
    url: ServerAddress = "http://127.0.0.1:8086"
    token_env: str = "INFLUXDB_OPERATOR_TOKEN"
    reader_token_env: str = ""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        version: of the server. counts: as a capture records them.
        files: names of what was written. bytes: their size.
        shards: shards that have a file.
        tombstones: files of deletions not carried out yet; the vendor's restore drops them.
    """

    version: str
    counts: Mapping[str, int]
    files: tuple[str, ...]
    bytes: int
    shards: int
    tombstones: int
    warnings: tuple[str, ...]


class Influxdb(Service):
    """One InfluxDB 2 server on this machine."""

    kind = "influxdb"
    images = ("influxdb",)
    targets = ("/var/lib/influxdb2",)
    port = 8086
    default_folder = "influxdb"
    fleeting = ("/etc/influxdb2",)  # logins of the influx program; made again at every setup
    capture_mode = Mode.HOT
    load_mode = Mode.COLD
    owner = (1000, 1000)
    secrets_in_data = True
    excludes = (
        Exclude("engine/wal/", "flushed into TSM files before these are linked"),
        Exclude("engine/data/*/_series/", "series file; the server makes it anew at start"),
        Exclude("engine/data/*/*/*/index/", "index; the server makes it anew at start"),
        Exclude("engine/data/*/*/*/fields.idx*", "field list; the server makes it anew at start"),
        Exclude("engine/data/*/*/*/*.tmp", "unfinished files of the server's own work"),
        Exclude("influxd.sqlite-*", "side files of a database that comes through the API"),
        Exclude("engine/replicationq/", "points waiting to be sent to other servers"),
    )
    older = (
        "it does not start on a store that a newer one has changed to its own form, from 2.8 on;"
        " `influxd downgrade` of the newer one changes it back"
    )
    quiet = {
        "INFLUXD_NO_TASKS": "true",
        # An old snapshot would lose what has expired since, half an hour after the start.
        "INFLUXD_STORAGE_RETENTION_CHECK_INTERVAL": "8760h",
        "INFLUXD_REPORTING_DISABLED": "true",
    }
    Options = InfluxdbOptions
    options: InfluxdbOptions

    def options_at(self, address: str, port: Callable[[int], int]) -> BaseOptions:
        """Give its options for the same server at another address; see `Service.options_at`."""
        return replace(self.options, url=moved_url(self.options.url, address, port))

    # -- the running server -------------------------------------------------------------------

    def probe(self) -> Facts:
        """Ask the server who it is. A server that is down is a fact, not an error."""
        with InfluxApi(self.options.url, None, quick=True) as server:
            try:
                return Facts(True, server.health().removeprefix("v"))
            except ServerError as error:
                return Facts(False, detail=error.message)

    def ready(self) -> Readiness:
        """Tell whether it takes queries and has opened every shard that lies on the disk."""
        token = self.place.secret(self.options.token_env)
        engine = Engine(self.place.folder / "engine")
        with InfluxApi(self.options.url, token, quick=True) as server:
            try:
                server.health()
                metrics = server.metrics()
                if metrics.shards is None:
                    return Readiness(True)
                closed = [
                    shard.path
                    for shard in engine.shards()
                    if doubtful(engine, shard, metrics) and not server.flush(shard.id)
                ]
            except FileNotFoundError:
                return Readiness(True)  # a server that has never been set up
            except ServerError as error:
                return Readiness(False, error.message)
        if closed:
            return Readiness(
                False, f"InfluxDB did not open {len(closed)} of its shards: {closed[0]}", final=True
            )
        return Readiness(True)

    def counts(self) -> Mapping[str, int]:
        """Ask the server for its points, buckets, tokens, tasks, dashboards and users."""
        return self._numbers(datetime.now(UTC))

    def _numbers(self, before: datetime) -> dict[str, int]:
        with self._server() as server:
            buckets = server.buckets()
            found = {"buckets": len(buckets), **server.tally()}
            for bucket in buckets:
                if not bucket.system:
                    for measurement, points in server.points(bucket, before).items():
                        add(found, f"points/{bucket.name}/{measurement}", points)
        return found

    def _lost(self, before: datetime, record: ServiceRecord) -> dict[str, list[Lost]]:
        """Find the windows with fewer points than were recorded, by the key of their count."""
        moment = nanoseconds(before.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        recorded = Ledger(record.extra).windows()
        lost: dict[str, list[Lost]] = {}
        with self._server() as server:
            for bucket in server.buckets():
                windows = recorded.get(bucket.id, [])
                if bucket.system or not windows:
                    continue
                seen: dict[tuple[str, int], int] = {}
                for batch in batches(windows, moment):
                    for place, points in server.points_by_window(bucket, batch).items():
                        seen[place] = seen.get(place, 0) + points
                for measurement, places in fewer(windows, seen).items():
                    key = f"points/{bucket.name}/{measurement}"
                    lost.setdefault(key, []).extend((bucket, place) for place in places)
        return lost

    def verify(self, record: ServiceRecord) -> Iterator[Finding]:
        """Compare the server with the record: points older than the capture, "at least".

        Points are compared in the time of every shard, so that a loss in one cannot hide behind a
        gain in another. Fewer is an error, unless the snapshot is so old that a bucket's retention
        may have removed them since. More is a warning: written late, or a deletion that did not
        hold.
        """
        moment = record.facts.get("points_before", "")
        before = datetime.fromisoformat(moment) if moment else datetime.now(UTC)
        actual, lost = self._numbers(before), self._lost(before, record)
        for key in sorted({*record.counts, *actual}):
            wanted, found = record.counts.get(key, 0), actual.get(key, 0)
            places = lost.get(key, [])
            if found == wanted and not places:
                continue
            text = f"{key}: {wanted} recorded, {found} found"
            if places:
                expired = all(_expired(bucket, place.end) for bucket, place in places)
                text += f", fewer {_when(places[0][1])}"
                text += f" and {len(places) - 1} more times" if len(places) > 1 else ""
            else:
                expired = _expiring(key, record.facts)
            fails = bool(places) or found < wanted
            if not fails:
                text += "; written late or by somebody else, or a deletion that did not hold"
            elif expired:
                text += "; the bucket's retention may have removed them since"
            severity = Severity.ERROR if fails and not expired else Severity.WARNING
            yield Finding("counts.differ", severity, self.name, text)

    def guarded(self, counts: Mapping[str, int], files: int, size: int) -> Mapping[str, int]:
        """Watch points and what people made; compaction halves files and bytes at any time."""
        points = sum(count for key, count in counts.items() if key.startswith("points/"))
        made = {key: count for key, count in counts.items() if not key.startswith("points/")}
        return {"points": points, **made}

    def preflight(self) -> Iterator[Finding]:
        """Yield what would spoil a capture: version, token, timeouts, secrets kept elsewhere."""
        try:
            with InfluxApi(self.options.url, None) as open_server:
                yield from self._judge_version(open_server.health())
                yield from self._judge_folder(open_server)
            with self._server() as server:
                yield from self._judge_settings(server.config())
            yield from self._judge_reader()
        except Refused as error:
            yield self._finding("token", Severity.ERROR, error.message, error.hint)
        except IotopsError as error:
            yield self._finding("down", Severity.ERROR, error.message, error.hint)

    def own_secrets(self) -> Mapping[str, Callable[[], Secret]]:
        """Name the token that only reads; see `Service.own_secrets`."""
        name = self.options.reader_token_env
        return {name: self._make_reader} if name else {}

    def _make_reader(self) -> Secret:
        with self._server() as server:
            return Secret(server.make_reader("made by iotops: reads all buckets"))

    def _judge_reader(self) -> Iterator[Finding]:
        """A token of another snapshot, or one deleted in InfluxDB, shows only empty panels."""
        name = self.options.reader_token_env
        token = self.place.secret(name) if name else None
        if not name:
            return
        if token is None or not token.reveal():
            yield self._finding(
                "reader",
                Severity.WARNING,
                f"{name} in .env is empty: Grafana cannot read InfluxDB",
                "it is made by: iotops up",
            )
            return
        with InfluxApi(self.options.url, token, quick=True) as server:
            if not server.reads():
                yield self._finding(
                    "reader",
                    Severity.WARNING,
                    f"InfluxDB does not know the token {name} of .env",
                    "empty its value in .env, then a new one is made by: iotops up",
                )

    def _finding(self, code: str, severity: Severity, text: str, hint: str = "") -> Finding:
        return Finding(f"influxdb.{code}", severity, self.name, text, hint)

    def _judge_version(self, text: str) -> Iterator[Finding]:
        version = version_of(text)
        if version is None:
            yield self._finding(
                "version", Severity.WARNING, f"InfluxDB does not say its version ({text!r})"
            )
        elif version < OLDEST or version[0] != 2:
            yield self._finding("version", Severity.ERROR, too_old(text), UPGRADE)

    def _judge_settings(self, config: Mapping[str, object]) -> Iterator[Finding]:
        for name in ("http-write-timeout", "http-read-timeout"):
            value = config.get(name, 0)
            if value not in (0, "0s"):
                yield self._finding(
                    "timeout",
                    Severity.WARNING,
                    f"InfluxDB's {name} is set; it cuts long answers of a backup",
                    f"remove {name} from its settings",
                )
        if config.get("secret-store", "bolt") != "bolt":
            yield self._finding(
                "vault",
                Severity.WARNING,
                "InfluxDB keeps its secrets in Vault: they are not in the backup",
                "back Vault up as well",
            )

    def _judge_folder(self, server: InfluxApi) -> Iterator[Finding]:
        engine = Engine(self.place.folder / "engine")
        try:
            away = elsewhere(engine, server.metrics(), server)
            strange = odd(engine)
        except OSError as error:
            yield self._finding(
                "folder", Severity.ERROR, no_folder(self.place.folder, error), NOT_HERE
            )
            return
        if away:
            yield self._finding(
                "folder", Severity.ERROR, not_here(self.place.folder, away), NOT_HERE
            )
        for text in oddities(strange):
            yield self._finding("engine", Severity.WARNING, text, "look into its log: iotops logs")

    def _server(self) -> InfluxApi:
        """Open the server with the operator token.

        Raises:
            Refused: there is none to open it with.
        """
        token = self.place.secret(self.options.token_env)
        if token is None or not token.reveal():
            raise Refused(
                f"there is no operator token for InfluxDB: {self.options.token_env} is not set",
                hint=f"write {self.options.token_env}=... into {self.place.hub / '.env'}",
            )
        return InfluxApi(self.options.url, token)

    # -- looking inside -------------------------------------------------------------------------

    @classmethod
    def differences(
        cls, old: ServiceRecord, new: ServiceRecord, was: Path, now: Path
    ) -> Iterator[Difference]:
        """Compare buckets, and the points in each, by the records alone."""
        before, after = _points(old), _points(new)
        for bucket in dict.fromkeys((*before, *after)):
            had, has = before.get(bucket, {}), after.get(bucket, {})
            total = sum(has.values()) - sum(had.values())
            parts = tuple(
                f"{name} {has.get(name, 0) - had.get(name, 0):+,}"
                for name in dict.fromkeys((*had, *has))
                if has.get(name) != had.get(name)
            )
            if bucket not in before or bucket not in after:
                change = "removed" if bucket not in after else "added"
                noun = "point" if abs(total) == 1 else "points"
                yield Difference("bucket", change, bucket, f"{abs(total):,} {noun}", parts)
            elif parts:
                words = f"{total:+,} points, now {sum(has.values()):,}"
                yield Difference("bucket", "changed", bucket, words, parts)

    # -- capture --------------------------------------------------------------------------------

    def capture(self, staging: Staging, previous: ServiceRecord | None) -> Captured:
        """Link (or download) every finished file, take the metadata, check and count what is new.

        Raises:
            CaptureError, ServerError: it could not be captured; the hint says what to do.
        """
        with self._server() as server:
            return Capture(server, staging, self.place.tmp, self.owner, previous).make()

    def export(self, staging: Staging, target: Path, moved: Callable[[int, int], None]) -> Exported:
        """Capture, and write a folder that the vendor's `influx restore` takes.

        Args:
            staging: an empty one of this export's own; the caller removes it.
            target: an empty folder.
            moved: called with the bytes written so far, and all there are.

        Raises:
            CaptureError, ServerError: it could not be captured. NoSpace: no room for it.
        """
        with self._server() as server:
            capture = Capture(server, staging, self.place.tmp, self.owner, None)
            captured = capture.take()
        shards = {
            shard: [staging.path(staged_path(shard, name)) for name in names]
            for shard, names in capture.linked.items()
            if names and shard not in capture.unknown
        }
        from iotops.clients.influxvendor import Source, write_folder

        source = Source(staging.path(KV), staging.path(SQL), capture.listing, shards)
        files.require_space(target, source.size, doing="this export")
        name = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        written = write_folder(target, name, source, moved)
        stones = [path for paths in shards.values() for path in paths if is_tombstone(path.name)]
        return Exported(
            captured.version,
            captured.counts,
            written,
            sum((target / one).stat().st_size for one in written),
            len(shards),
            len(stones),
            tuple(staging.warnings),
        )

    def load(self, folder: Path, record: ServiceRecord, live: Path | None) -> tuple[str, ...]:
        """Make an extracted folder fit for an offline start: whole, and nothing derived in it.

        Raises:
            LoadError: the store of tokens and shards is missing or damaged. An engine without it
                must never be started: the image would set it up anew and delete the engine.
        """
        try:
            check_bolt(folder / KV)
            check_sqlite(folder / SQL)
        except (TsmError, CaptureError) as error:
            raise LoadError(
                f"the captured InfluxDB cannot be started: {error.message}",
                hint="choose another snapshot: iotops snapshots",
            ) from error
        engine = folder / "engine"
        engine.mkdir(mode=0o700, exist_ok=True)
        files.remove_tree(engine / "wal")
        for pattern in ("data/*/_series", "data/*/*/*/index", "data/*/*/*/fields.idx*"):
            for path in engine.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    files.remove_tree(path)
                else:
                    path.unlink()
        self._give_to_server(folder)
        return ()

    def _give_to_server(self, folder: Path) -> None:
        """Give the server's own files that root owns to the user the image runs as.

        Recorded owners are right as they are; a capture by way of root's hands may not be.
        """
        top = folder.stat()
        owner = (top.st_uid, top.st_gid) if top.st_uid else self.owner
        engine = Engine(folder / "engine")
        data = engine.folder / "data"
        mine = {folder, folder / KV, folder / SQL, engine.folder, data}
        for shard in engine.shards() if data.is_dir() else ():
            place = data / shard.path
            mine |= {place, place.parent, place.parent.parent}
            mine |= {place / name for name in engine.files(shard)}
        for path in mine:
            if path.exists() and path.stat().st_uid == 0:
                if path.is_dir():
                    path.chmod(0o700)
                if os.geteuid() == 0:
                    os.chown(path, *owner)


def _points(record: ServiceRecord) -> dict[str, dict[str, int]]:
    """Give the points of a record: bucket -> measurement -> number."""
    found: dict[str, dict[str, int]] = {
        name.removeprefix("expires/"): {} for name in record.facts if name.startswith("expires/")
    }
    for key, number in record.counts.items():
        if key.startswith("points/"):
            bucket, _, measurement = key.removeprefix("points/").rpartition("/")
            found.setdefault(bucket, {})[measurement] = number
    return found


def _expired(bucket: Bucket, end: int) -> bool:
    """Tell whether retention has had the time to remove what ends at that moment (ns)."""
    return bool(bucket.retention) and end + bucket.retention * 10**9 < time.time_ns()


def _expiring(key: str, facts: Mapping[str, str]) -> bool:
    """Tell whether retention may have begun to remove a bucket's captured points."""
    return any(
        key.startswith(f"points/{name.removeprefix('expires/')}/")
        and nanoseconds(when) < time.time_ns()
        for name, when in facts.items()
        if name.startswith("expires/")
    )


def _when(place: Fewer) -> str:
    """Say what a window lost, with its time to the second."""
    return (
        f"from {flux_time(place.start)[:19]}Z to {flux_time(place.end)[:19]}Z:"
        f" {place.wanted} recorded, {place.found} found"
    )
