"""The vendor's folder: which groups its manifest names, and a list in an unknown form."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from iotops.clients.influxengine import Shard
from iotops.clients.influxvendor import Source, write_folder
from iotops.errors import ServerError

pytestmark = pytest.mark.unit


def source(folder: Path, listing: object) -> Source:
    """Make a source with the two stores and one shard of two files."""
    for name in ("kv", "sql", "000000001-000000001.tsm", "000000001-000000001.tombstone"):
        (folder / name).write_text(name * 99)
    files = [folder / "000000001-000000001.tombstone", folder / "000000001-000000001.tsm"]
    shards = {Shard("b1", "autogen", 7): files}
    return Source(folder / "kv", folder / "sql", json.dumps(listing).encode(), shards)


def group(shard: int, **more: str) -> dict[str, object]:
    return {"id": shard, "shards": [{"id": shard, "shardOwners": []}], **more}


def test_only_groups_with_a_file_are_named(tmp_path: Path) -> None:
    groups = [group(7), group(8), group(9, deletedAt="2026-01-01T00:00:00Z")]
    policy = {"name": "autogen", "shardGroups": groups}
    made = source(tmp_path, [{"bucketName": "a", "retentionPolicies": [policy], "new": 1}])
    out = tmp_path / "out"
    out.mkdir()
    told: list[tuple[int, int]] = []
    names = write_folder(out, "T", made, lambda done, total: told.append((done, total)))
    assert names == ("T.7.tar", "T.bolt", "T.manifest", "T.sqlite")
    document = json.loads((out / "T.manifest").read_text())
    size = (out / "T.7.tar").stat().st_size
    (bucket,) = document["buckets"]
    assert bucket["new"] == 1  # what a later server adds is handed on
    assert bucket["retentionPolicies"][0]["shardGroups"] == [
        {
            "id": 7,
            "shards": [
                {"id": 7, "shardOwners": [], "fileName": "T.7.tar", "size": size, "compression": 0}
            ],
        }
    ]
    with tarfile.open(out / "T.7.tar") as tar:
        assert [(one.name, one.isreg()) for one in tar] == [
            ("b1/autogen/7/000000001-000000001.tombstone", True),
            ("b1/autogen/7/000000001-000000001.tsm", True),
        ]
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("listing", [{}, [{}], [{"retentionPolicies": [{"shardGroups": [{}]}]}]])
def test_a_list_in_an_unknown_form_is_the_servers_fault(tmp_path: Path, listing: object) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ServerError, match="unknown form"):
        write_folder(out, "T", source(tmp_path, listing), lambda done, total: None)
    assert not list(out.glob("*.manifest"))
