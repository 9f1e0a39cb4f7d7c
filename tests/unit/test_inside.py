"""Looking inside: what a snapshot holds, and how two captures differ in the owner's words."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iotops import flowdoc
from iotops.actions import inside
from iotops.actions.compare import _folders, _hub_files
from iotops.errors import FlowsError, UsageError
from iotops.model import (
    Artifact,
    Difference,
    HostRecord,
    Manifest,
    Mode,
    Outcome,
    PartRecord,
    ServiceRecord,
)
from iotops.services import kind

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FILES = {
    "nodered": None,
    "nodered/flows.json": 100,
    "nodered/lib": None,
    "nodered/lib/flows": None,
    "nodered/lib/flows/one.json": 7,
    "nodered-two/x": 1,
}


def artifact(path: str, size: int | None, sha: str = "a") -> Artifact:
    mtime = int(NOW.timestamp()) * 10**9
    if size is None:
        return Artifact(path, "directory", 0, 0o755, 0, 0, mtime)
    return Artifact(path, "file", size, 0o644, 0, 0, mtime, sha256=sha)


def record(name: str, **more: object) -> ServiceRecord:
    return ServiceRecord(name, name, name, name, Mode.HOT, **more)  # type: ignore[arg-type]


def made(**more: object) -> Manifest:
    held = record(
        "nodered",
        counts={"flow_nodes": 12},
        artifacts=tuple(artifact(path, size) for path, size in FILES.items()),
    )
    influx = record("influxdb", counts={"buckets": 2, "points/a/t": 40, "points/b/t/x": 2})
    failed = record("grafana", error="it was down")
    link = Artifact("hub/link", "symlink", 0, 0o777, 0, 0, 0, target="../x")
    return Manifest(
        1,
        "hub",
        "home",
        "run",
        HostRecord("pi", "aarch64", "test"),
        {},
        NOW,
        NOW,
        Outcome.PARTIAL,
        services=(held, influx, failed),
        parts=(PartRecord("hub", (artifact("hub/iotops.toml", 50), link)),),
        **more,  # type: ignore[arg-type]
    )


# -- one snapshot ---------------------------------------------------------------------------------


def test_a_snapshot_in_a_few_numbers() -> None:
    held = inside.summary(made())
    assert (held.files, held.bytes) == (4, 158)
    assert {one.name: dict(one.counts) for one in held.parts} == {
        "nodered": {"flow_nodes": 12},
        "influxdb": {"buckets": 2, "points": 42},
        "grafana": {},
        "hub": {},
    }
    assert {one.name: one.error for one in held.parts if one.error} == {"grafana": "it was down"}


def listed(path: str, *, deep: bool = False) -> dict[str, tuple[str, int, int]]:
    found = inside.entries(made(), path, deep=deep)
    return {one.path: (one.type, one.files, one.bytes) for one in found}


def test_the_top_is_listed_with_all_below_it() -> None:
    assert listed("") == {
        "hub": ("directory", 1, 50),
        "nodered": ("directory", 2, 107),
        "nodered-two": ("directory", 1, 1),
    }


@pytest.mark.parametrize("path", ["nodered", "nodered/", "/nodered", "./nodered//"])
def test_one_level_is_listed(path: str) -> None:
    assert listed(path) == {
        "nodered/flows.json": ("file", 1, 100),
        "nodered/lib": ("directory", 1, 7),
    }


def test_everything_below_is_listed() -> None:
    assert list(listed("nodered", deep=True)) == [
        "nodered/flows.json",
        "nodered/lib",
        "nodered/lib/flows",
        "nodered/lib/flows/one.json",
    ]


def test_a_file_gives_itself_and_a_link_its_target() -> None:
    (one,) = inside.entries(made(), "nodered/flows.json")
    assert (one.type, one.bytes, one.changed) == ("file", 100, NOW.isoformat())
    (link,) = inside.entries(made(), "hub/link")
    assert (link.type, link.target) == ("symlink", "../x")


@pytest.mark.parametrize("path", ["node", "nodered/flows", "nodered/../hub", "none"])
def test_what_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="holds no"):
        inside.entries(made(), path)


# -- files of two ---------------------------------------------------------------------------------


def test_files_are_summed_by_folder_and_the_hubs_are_named() -> None:
    was = {one.path: one for one in made().artifacts()}
    now = dict(was)
    del now["nodered/lib/flows/one.json"]
    now["nodered/flows.json"] = artifact("nodered/flows.json", 120, "b")
    now["hub/new"] = artifact("hub/new", 9)
    now["hub/.git/index"] = artifact("hub/.git/index", 9)
    changed = ["nodered/lib/flows/one.json", "nodered/flows.json", "hub/new", "hub/.git/index"]
    found = {one.folder: one for one in _folders(was, now, changed)}
    assert set(found) == {"hub", "hub/.git", "nodered", "nodered/lib"}
    assert (found["nodered"].changed, found["nodered"].bytes) == (1, 120)
    assert (found["nodered/lib"].removed, found["nodered/lib"].freed) == (1, 7)
    assert list(_hub_files(was, now, changed)) == [Difference("hub file", "added", "new")]


# -- the kinds' own words -------------------------------------------------------------------------


def told(
    name: str,
    was: Path,
    now: Path,
    old: ServiceRecord | None = None,
    new: ServiceRecord | None = None,
) -> list[tuple[str, str, str, str]]:
    found = kind(name).differences(old or record(name), new or record(name), was, now)
    return [(one.what, one.change, one.name, one.detail) for one in found]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("was", "now"):
        (tmp_path / name).mkdir()
    return tmp_path / "was", tmp_path / "now"


Nodes = list[dict[str, object]]


def flows(folder: Path, nodes: Nodes) -> ServiceRecord:
    (folder / "flows.json").write_text(json.dumps(nodes))
    (folder / "other.json").write_text("{}")
    return record("nodered", facts={"rev": flowdoc.revision(nodes)})


def test_flows_are_told_by_tab_and_node(pair: tuple[Path, Path]) -> None:
    tab: dict[str, object] = {"id": "t1", "type": "tab", "label": "Heating"}
    node: dict[str, object] = {
        "id": "n1",
        "z": "t1",
        "type": "function",
        "name": "calc",
        "func": "1",
        "x": 1,
    }
    old = flows(pair[0], [tab, node])
    new = flows(pair[1], [tab, {**node, "func": "2"}, {"id": "t2", "type": "tab", "label": "New"}])
    assert told("nodered", *pair, old, new) == [
        ("flow", "changed", "Heating", "1 function changed"),
        ("flow", "added", "New", "0 nodes"),
    ]
    first = next(iter(kind("nodered").differences(old, new, *pair)))
    assert first.parts == ("function calc changed: func",)
    drawn = flows(pair[1], [tab, {**node, "x": 2}])
    assert told("nodered", *pair, old, drawn) == [
        ("flow", "changed", "Heating", "drawn elsewhere only")
    ]
    assert told("nodered", *pair, old, old) == []
    (pair[1] / "flows.json").unlink()
    with pytest.raises(FlowsError, match="no flow file"):
        told("nodered", *pair, old, new)


def test_users_are_told_by_name_and_no_hash_is(pair: tuple[Path, Path]) -> None:
    for folder in pair:
        (folder / "secrets").mkdir()
    (pair[0] / "secrets/passwd").write_text("anna:$7$101$aa$bb\nben:$7$101$cc$dd\nold:$6$ee$ff\n")
    (pair[1] / "secrets/passwd").write_text(
        "# x\nben:$7$101$cc$dd\nanna:$7$101$aa$gg\nnew:$7$1$h$i\n"
    )
    clients = [{"username": "dyn", "encoded_password": "$7$1$s$t"}]
    (pair[1] / "dynamic-security.json").write_text(json.dumps({"clients": clients}))
    found = told("mosquitto", *pair)
    assert sorted(found) == [
        ("user", "added", "dyn", ""),
        ("user", "added", "new", ""),
        ("user", "changed", "anna", ""),
        ("user", "removed", "old", ""),
    ]
    assert "$" not in str(found)


def database(folder: Path, rows: Mapping[str, tuple[str, int]], logins: tuple[str, ...]) -> None:
    with closing(sqlite3.connect(folder / "grafana.db")) as db:
        db.execute("CREATE TABLE dashboard (uid, title, version, updated, is_folder)")
        db.execute("CREATE TABLE user (login, is_service_account)")
        for uid, (title, version) in rows.items():
            db.execute("INSERT INTO dashboard VALUES (?,?,?,'',0)", (uid, title, version))
        for login in logins:
            db.execute("INSERT INTO user VALUES (?, 0)", (login,))
        db.execute("INSERT INTO user VALUES ('sa-robot', 1)")
        db.commit()


def test_dashboards_and_users_of_grafana_are_told(pair: tuple[Path, Path]) -> None:
    database(pair[0], {"a": ("Rooms", 1), "b": ("Gone", 1), "c": ("Same", 1)}, ("admin",))
    database(pair[1], {"a": ("Rooms", 2), "c": ("Same", 1), "d": ("New", 1)}, ("admin", "eva"))
    assert told("grafana", *pair) == [
        ("dashboard", "changed", "Rooms", ""),
        ("dashboard", "added", "New", ""),
        ("dashboard", "removed", "Gone", ""),
        ("user", "added", "eva", ""),
    ]


def test_dashboards_that_lie_in_the_export_only_are_told(pair: tuple[Path, Path]) -> None:
    for folder, title in zip(pair, ("Old name", "New name"), strict=True):
        database(folder, {}, ("admin",))
        (folder / "export/dashboards").mkdir(parents=True)
        document = {"dashboard": {"title": title, "panels": []}}
        (folder / "export/dashboards/a.json").write_text(json.dumps(document))
    noted = record("grafana", extra=json.dumps({"export": "export"}))
    assert told("grafana", *pair, noted, noted) == [
        ("dashboard", "changed", "New name", "was called Old name")
    ]


def test_buckets_and_points_are_told_by_the_records(tmp_path: Path) -> None:
    old = record("influxdb", counts={"points/home/t": 1000, "points/home/h": 5, "points/old/t": 3})
    new = record("influxdb", counts={"points/home/t": 2234, "points/home/h": 5, "points/n/t": 1})
    found = list(kind("influxdb").differences(old, new, tmp_path, tmp_path))
    assert [(one.change, one.name, one.detail, one.parts) for one in found] == [
        ("changed", "home", "+1,234 points, now 2,239", ("t +1,234",)),
        ("removed", "old", "3 points", ("t -3",)),
        ("added", "n", "1 point", ("t +1",)),
    ]
