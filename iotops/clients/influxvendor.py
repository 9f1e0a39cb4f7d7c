"""A folder that the vendor's own `influx restore` takes, written from checked files.

One manifest, one plain tar per shard, the key-value and the SQL store. Shard groups without a file
are left out of the manifest: a restore of a single bucket would make live groups of them that have
no shard, and every later write into their time would fail. Not here: where the files come from, and
whether they are sound (`services/influxdb.py`).

Form as in influx-cli v2.8.0, `clients/backup` and `clients/restore`: the reader takes every
`*.manifest` of a folder together, so there is exactly one; `compression` 0 is none.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from iotops.clients import files
from iotops.clients.influxengine import Shard
from iotops.errors import ServerError

MANIFEST_VERSION = 2
_FORMAT = tarfile.USTAR_FORMAT
_PLAIN = 0
"""The vendor's number for a file that is not compressed."""


@dataclass(frozen=True)
class Source:
    """What is written: the stores, the server's own list of buckets, and every shard's files.

    Attributes:
        listing: the JSON of the third part of `/backup/metadata`.
        shards: paths of the TSM files and tombstones; a shard without files has no entry.
    """

    kv: Path
    sql: Path
    listing: bytes
    shards: Mapping[Shard, Sequence[Path]]

    @property
    def size(self) -> int:
        """Bytes that the folder will take, nearly."""
        every = [self.kv, self.sql, *(path for paths in self.shards.values() for path in paths)]
        return len(self.listing) + sum(path.stat().st_size + 512 for path in every)


def write_folder(
    folder: Path, name: str, source: Source, moved: Callable[[int, int], None]
) -> tuple[str, ...]:
    """Write it all; the manifest comes last, so that half a folder is none for the vendor's tool.

    Args:
        folder: an empty folder.
        name: what every file's name begins with; the vendor's tool uses the UTC time.
        moved: called with the bytes written so far, and all there are.

    Returns:
        The names of the files.

    Raises:
        OSError: it cannot be written. ServerError: the list of buckets is not as expected.
    """
    total, done = source.size, 0
    kv = _copy(source.kv, folder / f"{name}.bolt")
    sql = _copy(source.sql, folder / f"{name}.sqlite")
    entries: dict[int, dict[str, object]] = {}
    for shard, paths in source.shards.items():
        target = folder / f"{name}.{shard.id}.tar"
        _write_tar(target, shard, paths)
        entries[shard.id] = _entry(target)
        done += target.stat().st_size
        moved(min(done, total), total)
    document = {
        "manifestVersion": MANIFEST_VERSION,
        "kv": _entry(kv),
        "sql": _entry(sql),
        "buckets": _buckets(source.listing, entries),
    }
    files.sync_filesystem(folder)
    manifest = folder / f"{name}.manifest"
    files.write(manifest, json.dumps(document, indent=2).encode() + b"\n", mode=0o600)
    moved(total, total)
    return tuple(sorted(path.name for path in folder.iterdir()))


def _create(target: Path) -> BinaryIO:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb")


def _copy(source: Path, target: Path) -> Path:
    with source.open("rb") as reader, _create(target) as writer:
        shutil.copyfileobj(reader, writer, files.CHUNK)
    return target


def _write_tar(target: Path, shard: Shard, paths: Sequence[Path]) -> None:
    """Write a shard's tar as the server does: plain ustar, names relative to `engine/data`."""
    with _create(target) as file, tarfile.open(fileobj=file, mode="w", format=_FORMAT) as tar:
        for path in sorted(paths):
            with path.open("rb") as reader:
                entry = tar.gettarinfo(arcname=f"{shard.path}/{path.name}", fileobj=reader)
                # Two links of one file would become a file and a reference to it.
                entry.type, entry.linkname = tarfile.REGTYPE, ""
                entry.size, entry.mtime = os.fstat(reader.fileno()).st_size, int(entry.mtime)
                entry.mode &= 0o777
                tar.addfile(entry, reader)


def _entry(path: Path) -> dict[str, object]:
    return {"fileName": path.name, "size": path.stat().st_size, "compression": _PLAIN}


def _buckets(listing: bytes, entries: Mapping[int, Mapping[str, object]]) -> list[object]:
    """Give the server's own list of buckets, with only the shard groups that have a file."""
    try:
        document: object = json.loads(listing)
        if not isinstance(document, list):
            raise TypeError("no list")
        for bucket in document:
            for policy in bucket["retentionPolicies"]:
                groups = [group for group in policy["shardGroups"] if "deletedAt" not in group]
                for group in groups:
                    group["shards"] = [
                        {**shard, **entries[int(shard["id"])]}
                        for shard in group["shards"]
                        if int(shard["id"]) in entries
                    ]
                policy["shardGroups"] = [group for group in groups if group["shards"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(f"InfluxDB's list of shards came in an unknown form: {error}") from error
    return document
