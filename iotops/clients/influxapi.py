"""One InfluxDB 2 server, asked by name for what a backup needs.

Every answer is checked before it becomes a value; the rights that are missing are named. Not
here: the streams' inner structure (`influxstreams.py`), the order of a capture and what is good
enough (`services/influxdb.py`).

Routes and fields as in influxdb v2.9.1, `http/` and `v1/services/`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from iotops.clients.http import JsonClient, Revealing
from iotops.clients.influxstreams import save_parts, unpack_shard
from iotops.clients.influxwindows import Batch
from iotops.errors import Refused, ServerError

FAR_FUTURE = "2200-01-01T00:00:00Z"
"""No file is changed later than this: a shard asked for with it is flushed and not sent."""

EARLIEST_TIME = "1677-09-21T00:12:43.145224194Z"
"""The earliest time that InfluxDB takes."""

_PAGE = 100
_SAMPLE = re.compile(
    r'(storage_tsm_files_total|storage_cache_inuse_bytes)\{(?:[^}]*,)?id="(\d+)"[^}]*\} (\S+)'
)


@dataclass(frozen=True)
class ShardState:
    """What the server says of one open shard: number of TSM files, bytes in its cache."""

    files: int
    cached: int


@dataclass(frozen=True)
class Metrics:
    """The server's own numbers.

    Attributes:
        version: of the server, as its header says.
        shards: every open shard by id; None when the server is set not to tell.
    """

    version: str
    shards: Mapping[int, ShardState] | None


@dataclass(frozen=True)
class Group:
    """A shard group: its only shard's id, its time (first ns, ns after the last), whether it is
    deleted.
    """

    shard: int
    start: int
    end: int
    deleted: bool


@dataclass(frozen=True)
class Bucket:
    """A bucket.

    Attributes:
        retention: seconds; 0 = for ever.
        groups: its shard groups, where the backup's metadata told of them.
    """

    id: str
    name: str
    org: str
    retention: int
    groups: tuple[Group, ...] = ()

    @property
    def system(self) -> bool:
        """Whether it is the server's own diary: such buckets change without anybody writing."""
        return self.name.startswith("_")


@dataclass(frozen=True)
class Listing:
    """The buckets with their shards, and the JSON in which the server told of them."""

    buckets: tuple[Bucket, ...]
    text: bytes


class InfluxApi:
    """Talk to one server with an operator token.

    Args:
        url: its address.
        token: None = only what needs none.
        quick: give up at the first failure, for a look that may not take long.
    """

    def __init__(self, url: str, token: Revealing | None, *, quick: bool = False) -> None:
        timeout = (3.0, 10.0) if quick else (5.0, 600.0)
        self._http = JsonClient(
            url,
            name="InfluxDB",
            token=token,
            scheme="Token",
            timeout=timeout,
            tries=1 if quick else 3,
        )

    def __enter__(self) -> InfluxApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @contextmanager
    def _operator(self) -> Iterator[None]:
        """Say what a refusal means: InfluxDB answers 401 also to a token with too few rights."""
        try:
            yield
        except Refused as error:
            raise Refused(
                f"InfluxDB does not accept our token as an operator token: {error.message}",
                hint="make one with `influx auth create --operator` in its container and put it"
                " into .env; an all-access token of an organisation is not enough",
            ) from error

    def health(self) -> str:
        """Give the version of a server that is fit for work ("v2.9.1"; a bare build says "dev").

        Raises:
            Unreachable, ServerError: it is not there, not InfluxDB 2, or not fit.
        """
        document = self._http.get_json("/health")
        if not isinstance(document, dict) or document.get("status") != "pass":
            raise ServerError("InfluxDB says that it is not ready for queries and writes")
        return str(document.get("version", ""))

    def config(self) -> Mapping[str, object]:
        """Give the server's settings; only an operator token may read them."""
        with self._operator():
            document = self._http.get_json("/api/v2/config")
        table = document.get("config") if isinstance(document, dict) else None
        if not isinstance(table, dict):
            raise ServerError("InfluxDB's settings did not come as expected")
        return table

    def metrics(self) -> Metrics:
        """Give the open shards, in one request."""
        answer = self._http.get("/metrics", accept=(401, 403, 404))
        version = answer.headers.get("x-influxdb-version", "")
        if answer.status != 200:
            return Metrics(version, None)
        found: dict[int, dict[str, int]] = {}
        for sample in _SAMPLE.finditer(answer.body.decode("utf-8", "replace")):
            found.setdefault(int(sample[2]), {})[sample[1]] = int(float(sample[3]))
        shards = {
            shard: ShardState(
                values.get("storage_tsm_files_total", 0),
                values.get("storage_cache_inuse_bytes", 0),
            )
            for shard, values in found.items()
        }
        return Metrics(version, shards)

    def flush(self, shard: int) -> bool:
        """Make the server write a shard's cache into a TSM file.

        A flush that did not happen, because another one was under way, looks the same.

        Returns:
            Whether the server has that shard open (False = 404).
        """
        with self._operator():
            answer = self._http.get(
                f"/api/v2/backup/shards/{shard}",
                params={"since": FAR_FUTURE},
                headers={"Accept-Encoding": "identity"},
                accept=(404,),
            )
        return answer.status != 404

    def save_metadata(self, kv: Path, sql: Path) -> Listing:
        """Save the key-value and the SQL store, and give the buckets with their shards.

        Raises:
            StreamError: the answer was not whole.
        """
        listing = kv.with_name(kv.name + ".buckets")
        try:
            with self._operator(), self._http.stream("/api/v2/backup/metadata") as stream:
                save_parts(
                    stream.read,
                    stream.headers.get("content-type", ""),
                    {"kv": kv, "sql": sql, "buckets": listing},
                )
            text = listing.read_bytes()
            return Listing(read_buckets(text), text)
        finally:
            listing.unlink(missing_ok=True)

    def save_shard(self, shard: int, prefix: str, folder: Path) -> list[str] | None:
        """Download a shard's files into a folder.

        Returns:
            Their names; None when the server does not have that shard (404).

        Raises:
            StreamError: the tar was not whole.
        """
        path = f"/api/v2/backup/shards/{shard}"
        with self._operator(), self._http.stream(path, accept=(404,)) as stream:
            if stream.status == 404:
                return None
            return unpack_shard(stream.read, prefix, folder)

    def buckets(self) -> list[Bucket]:
        """List all buckets of all organisations, without their shards."""
        found = []
        for one in self._pages("buckets"):
            rules = one.get("retentionRules")
            rule = rules[0] if isinstance(rules, list) and rules else {}
            seconds = rule.get("everySeconds", 0) if isinstance(rule, dict) else 0
            found.append(
                Bucket(
                    str(one.get("id")),
                    str(one.get("name")),
                    str(one.get("orgID")),
                    seconds if isinstance(seconds, int) else 0,
                )
            )
        return found

    def tally(self) -> dict[str, int]:
        """Count what people made: tokens, tasks, dashboards, users."""
        return {
            "tokens": len(self._list("/api/v2/authorizations", "authorizations", {})),
            "tasks": self._tasks(),
            "dashboards": sum(1 for _ in self._pages("dashboards")),
            "users": sum(1 for _ in self._pages("users")),
        }

    def make_reader(self, note: str) -> str:
        """Make a token that reads all buckets of the only organisation, and nothing else.

        Args:
            note: what the list of tokens says about it.

        Returns:
            The token.

        Raises:
            ServerError: there is no organisation or more than one, or the answer is odd.
        """
        found = self._list("/api/v2/orgs", "orgs", {})
        if len(found) != 1:
            raise ServerError(
                f"InfluxDB has {len(found)} organisations: which one shall be read is not clear"
            )
        org = str(found[0].get("id"))
        reads = {"action": "read", "resource": {"type": "buckets", "orgID": org}}
        wanted = {"orgID": org, "description": note, "permissions": [reads]}
        with self._operator():
            made = self._http.post_json("/api/v2/authorizations", wanted)
        token = made.get("token") if isinstance(made, dict) else None
        if not isinstance(token, str) or not token:
            raise ServerError("InfluxDB made a token and did not tell it")
        return token

    def reads(self) -> bool:
        """Tell whether the token is known to the server and lists buckets."""
        return self._http.get("/api/v2/buckets", accept=(401, 403)).status == 200

    def points(self, bucket: Bucket, before: datetime) -> dict[str, int]:
        """Count a bucket's points by measurement; every field of a series counts for itself.

        Args:
            before: points at this time or later do not count.
        """
        stop = before.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        # count() right after range() is answered by the storage itself, one number per series.
        count = '|> count() |> group(columns: ["_measurement"])'
        found: dict[str, int] = {}
        for name, points, _ in self._count(bucket, EARLIEST_TIME, stop, count):
            found[name] = found.get(name, 0) + points
        return {name: points for name, points in found.items() if points}

    def points_by_window(self, bucket: Bucket, batch: Batch) -> dict[tuple[str, int], int]:
        """Count a bucket's points by measurement and window.

        Returns:
            Points by measurement and the first ns of their window (or of the batch, in a window
            that begins before it); no window without points.
        """
        count = (
            f"|> aggregateWindow(every: {batch.every}ns, offset: {batch.offset}ns, fn: count,"
            ' timeSrc: "_start", createEmpty: false) |> group(columns: ["_measurement", "_time"])'
        )
        found: dict[tuple[str, int], int] = {}
        start, stop = flux_time(batch.start), flux_time(batch.stop)
        for name, points, time in self._count(bucket, start, stop, count):
            key = name, nanoseconds(time)
            found[key] = found.get(key, 0) + points
        return found

    def _count(
        self, bucket: Bucket, start: str, stop: str, count: str
    ) -> list[tuple[str, int, str]]:
        """Count points: measurement, number, and the window's time where there are windows."""
        query = f'from(bucketID: "{bucket.id}") |> range(start: {start}, stop: {stop})'
        body = {
            "query": f"{query} {count} |> sum()",
            "type": "flux",
            "dialect": {"header": True, "annotations": []},
        }
        with self._operator():
            answer = self._http.post(
                "/api/v2/query",
                json.dumps(body).encode(),
                params={"orgID": bucket.org},
                headers={"Content-Type": "application/json", "Accept": "application/csv"},
            )
        return _read_counts(answer.body, bucket.name)

    def _list(self, path: str, key: str, query: Mapping[str, str]) -> list[dict[str, object]]:
        with self._operator():
            document = self._http.get_json(path, params=query)
        found = document.get(key) if isinstance(document, dict) else None
        if not isinstance(found, list):
            raise ServerError(f"InfluxDB's list of {key} did not come as expected")
        return [one for one in found if isinstance(one, dict)]

    def _pages(self, key: str) -> Iterator[dict[str, object]]:
        """Yield a whole list that is given in pages of at most 100."""
        offset = 0
        while True:
            query = {"limit": str(_PAGE), "offset": str(offset)}
            page = self._list(f"/api/v2/{key}", key, query)
            yield from page
            if len(page) < _PAGE:
                return
            offset += _PAGE

    def _tasks(self) -> int:
        """Count the tasks; their pages hold up to 500 and go on after an id."""
        count = 0
        query = {"limit": "500"}
        while page := self._list("/api/v2/tasks", "tasks", query):
            count += len(page)
            if len(page) < 500:
                break
            query["after"] = str(page[-1].get("id"))
        return count


def _read_counts(body: bytes, bucket: str) -> list[tuple[str, int, str]]:
    """Read `_measurement`, `_value` and `_time`, if any, out of a query's CSV, whose tables are
    divided by empty lines.
    """
    found: list[tuple[str, int, str]] = []
    header: list[str] = []
    for row in csv.reader(io.StringIO(body.decode("utf-8", "replace"), newline="")):
        if not row:
            header = []
        elif not header:
            header = row
        else:
            values = dict(zip(header, row, strict=False))
            if "error" in values:
                raise ServerError(
                    f"counting the points of bucket {bucket} failed: {values['error'][:300]}"
                )
            name, value = values.get("_measurement"), values.get("_value", "")
            if name is None or not value.isdecimal():
                raise ServerError(f"InfluxDB's counts of bucket {bucket} came in an unknown form")
            found.append((name, int(value), values.get("_time", "")))
    return found


def read_buckets(body: bytes) -> tuple[Bucket, ...]:
    """Read the bucket manifests of `/backup/metadata`.

    Raises:
        ServerError: they are not in the form that v2.9.1 writes.
    """
    try:
        document: object = json.loads(body)
        if not isinstance(document, list):
            raise TypeError("no list")
        return tuple(_bucket(one) for one in document)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ServerError(f"InfluxDB's list of shards came in an unknown form: {error}") from error


def _bucket(table: dict[str, object]) -> Bucket:
    policies = table["retentionPolicies"]
    if not isinstance(policies, list):
        raise TypeError("no retention policies")
    groups = [
        Group(
            int(shard["id"]),
            nanoseconds(str(group["startTime"])),
            nanoseconds(str(group["endTime"])),
            "deletedAt" in group,
        )
        for policy in policies
        for group in policy["shardGroups"]
        for shard in group["shards"]
    ]
    retention = max((int(policy["duration"]) for policy in policies), default=0)
    return Bucket(
        str(table["bucketID"]),
        str(table["bucketName"]),
        str(table["organizationID"]),
        retention // 10**9,
        tuple(groups),
    )


def nanoseconds(text: str) -> int:
    """Read an RFC 3339 time in UTC, with up to nine digits after the point, as ns since 1970."""
    match = re.fullmatch(r"(.{19})(?:\.(\d{1,9}))?Z", text)
    if match is None:
        raise ValueError(f"{text} is no time")
    whole = datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    since = whole - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + int((match[2] or "").ljust(9, "0"))


def flux_time(moment: int) -> str:
    """Write ns since 1970 as Flux takes a time; not before the earliest that InfluxDB knows."""
    seconds, rest = divmod(moment, 10**9)
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return max(f"{when:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z", EARLIEST_TIME)


def version_of(text: str) -> tuple[int, int, int] | None:
    """Read "v2.9.1"; None for a build that does not know its version ("dev")."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None
