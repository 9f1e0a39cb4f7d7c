"""Grafana's own promises, beyond those of every kind. Where it runs on a stand-in, the ids say so.

The stand-in writes all the time: each row names the one before, so that a torn copy shows.
"""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from iotops.model import Severity
from tests.conftest import need
from tests.contract import kind_grafana
from tests.contract.bench import Bench
from tests.contract.protocol import Ground
from tests.contract.test_kinds import Case
from tests.support.lab import lab

pytestmark = pytest.mark.contract


class Busy(kind_grafana.Kind):
    """A Grafana that commits some hundred times a second, with or without WAL."""

    wal = "false"

    def compose(self) -> Mapping[str, object]:
        table = dict(super().compose())
        environment = table["environment"]
        assert isinstance(environment, dict)
        more = {"STANDIN_WRITES_PER_SECOND": "400", "GF_DATABASE_WAL": self.wal}
        return {**table, "environment": {**environment, **more}}


class BusyWal(Busy):
    wal = "true"


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    for part in ("docker", "compose", "root", "image grafana"):
        need(part)
    made = Bench(request.param, lab().images["grafana"], tmp_path)
    try:
        made.prepare()
        made.up()
        yield made
    finally:
        made.end()


def on(*kinds: type[kind_grafana.Kind]) -> pytest.MarkDecorator:
    server = Case("grafana", "grafana")
    names = [f"{kind.__name__}-{server}" for kind in kinds]
    return pytest.mark.parametrize("bench", kinds, ids=names, indirect=True)


def chain(database: Path) -> int:
    """Walk the stand-in's rows; a gap or a disagreement is a torn copy."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as link:
        assert link.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = link.execute("SELECT id, stamp, previous FROM session_log ORDER BY id").fetchall()
        last = link.execute("SELECT last_id, last_stamp FROM session_state").fetchone()
    for before, after in pairwise(rows):
        assert after[0] == before[0] + 1 and after[2] == before[1]
    assert last == (rows[-1][0], rows[-1][1])
    return int(rows[-1][0])


@on(Busy, BusyWal)
def test_the_copy_is_whole_under_load(bench: Bench) -> None:
    record, reached = None, 0
    for _ in range(12):
        record = bench.capture(record)
        now = chain(bench.staged / "grafana.db")
        assert now > reached, "the server writes on, and each copy is a newer one"
        reached = now
        assert not list(bench.staged.glob("grafana.db-*"))


@on(kind_grafana.Kind)
def test_the_export_is_for_people_stable_and_never_put_back(bench: Bench) -> None:
    bench.kind.seed()
    record = bench.capture()
    export = bench.staged / "export"
    boards = sorted(path.name for path in (export / "dashboards").iterdir())
    assert boards == [f"board-{number}.json" for number in range(7)]
    board = json.loads((export / "dashboards/board-1.json").read_text())
    assert board["folderUid"] == "cellar" and board["dashboard"]["title"] == "Raum 1 — Übersicht"
    assert not {"id", "version", "iteration"} & board["dashboard"].keys()
    sources = json.loads((export / "datasources.json").read_text())
    assert [one["uid"] for one in sources] == ["influx"] and "s3cret" not in str(sources)
    assert len(json.loads((export / "folders.json").read_text())) == 2
    assert json.loads((export / "alert-rules.json").read_text())["groups"][0]["name"] == "warnings"
    assert record.counts == {
        "dashboards": 7,
        "folders": 2,
        "datasources": 1,
        "alert_rules": 1,
        "users": 1,
    }

    inodes = {path: path.stat().st_ino for path in export.rglob("*.json")}
    again = bench.capture(record)
    assert {path: path.stat().st_ino for path in export.rglob("*.json")} == inodes
    assert again.counts == record.counts

    bench.stop()
    bench.wipe()
    bench.put_back(again)
    left = {path.name for path in bench.ground.folder.iterdir()}
    assert left == {"grafana.db", "plugins"}
    state = (bench.ground.folder / "grafana.db").stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (472, 0, 0o640)


@on(kind_grafana.Kind)
def test_a_folder_named_export_of_the_owner_comes_back(bench: Bench) -> None:
    bench.kind.seed()
    (bench.ground.folder / "export").mkdir()
    (bench.ground.folder / "export/mine.json").write_text("{}")
    record = bench.capture()
    assert (bench.staged / "export-by-iotops/folders.json").is_file()
    bench.stop()
    bench.wipe()
    bench.put_back(record)
    assert (bench.ground.folder / "export/mine.json").read_text() == "{}"
    assert not (bench.ground.folder / "export-by-iotops").exists()


@on(kind_grafana.Kind)
def test_a_refused_token_spoils_the_export_and_not_the_capture(bench: Bench) -> None:
    answers = bench.kind.seed()
    assert list(bench.service().preflight()) == []
    tokens = dict(bench.kind.env())
    assert isinstance(bench.kind, kind_grafana.Kind)
    bench.kind._env["GRAFANA_TOKEN"] = "glsa_gone"
    assert [finding.code for finding in bench.service().preflight()] == ["grafana.token"]
    record = bench.capture()
    assert not (bench.staged / "export").exists()
    assert any("does not accept our token" in warning for warning in record.warnings)
    assert record.counts["dashboards"] == 7
    bench.kind._env.update(tokens)
    assert bench.kind.check(answers) == []


@on(kind_grafana.Kind)
def test_a_lost_dashboard_is_found_by_verify(bench: Bench) -> None:
    bench.kind.seed()
    record = bench.capture()
    assert list(bench.service().verify(record)) == []
    bench.kind.sabotage()
    found = list(bench.service().verify(record))
    assert [(one.code, one.severity) for one in found] == [("counts.differ", Severity.ERROR)]
    assert "dashboards: 7 recorded, 6 found" in found[0].message


class Keyed(kind_grafana.Kind):
    """A Grafana with a secret key of its own, as the built-in template has it."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._env["GRAFANA_SECRET_KEY"] = "the first key"

    def compose(self) -> Mapping[str, object]:
        table = dict(super().compose())
        environment = table["environment"]
        assert isinstance(environment, dict)
        more = {"GF_SECURITY_SECRET_KEY": "${GRAFANA_SECRET_KEY}"}
        return {**table, "environment": {**environment, **more}}


@on(Keyed)
def test_another_secret_key_is_found_although_it_calls_itself_healthy(bench: Bench) -> None:
    bench.kind.seed()
    record = bench.capture()
    print_ = record.facts["secret_key"]
    assert print_.startswith("scrypt1:") and "first" not in str(record.facts) + record.extra
    assert bench.capture(record).facts == record.facts, "an equal key is no change"
    assert list(bench.service().unfit(record)) == list(bench.service().verify(record)) == []

    bench.stop()
    bench.wipe()
    assert isinstance(bench.kind, Keyed)
    bench.kind._env["GRAFANA_SECRET_KEY"] = "another"
    (bench.ground.hub / ".env").write_text(
        "".join(f"{name}='{value}'\n" for name, value in bench.kind.env().items())
    )
    bench.stack = type(bench.stack)(
        bench.ground.hub, files=[bench.ground.hub / "compose.json"], project=bench.project
    )
    (told,) = bench.service().unfit(record)
    assert (told.code, told.severity) == ("grafana.key", Severity.WARNING)
    assert "--path hub/.env" in told.hint
    bench.put_back(record)
    bench.up()
    assert bench.service().ready().ok, "its own health says nothing of it"
    found = {one.code: one for one in bench.service().verify(record)}
    assert found["grafana.key"].severity is Severity.ERROR
    ill = found["grafana.source"]
    assert "InfluxDB does not work" in ill.message and "s3cret" not in ill.message
    assert "iotops doctor" in ill.hint
    assert "grafana.source" in {one.code for one in bench.service().preflight()}
    warned = bench.capture(record).warnings
    assert any("another one than at the last backup" in one for one in warned)


@on(kind_grafana.Kind)
def test_a_password_of_the_env_file_counts_only_when_the_database_is_made(bench: Bench) -> None:
    assert list(bench.service().preflight()) == []
    assert isinstance(bench.kind, kind_grafana.Kind)
    bench.kind._env["GRAFANA_ADMIN_PASSWORD"] = "changed in .env only"
    (refused,) = bench.service().preflight()
    assert refused.code == "grafana.token"
    assert "grafana cli admin reset-admin-password" in refused.hint


@on(kind_grafana.Kind)
def test_load_leaves_no_side_file_and_no_old_search_index(bench: Bench) -> None:
    """In a folder that somebody put together by hand, or an earlier capture held."""
    bench.kind.seed()
    record = bench.capture()
    for name in ("grafana.db-wal", "grafana.db-shm", "grafana.db-journal"):
        (bench.staged / name).write_bytes(b"of another database")
    (bench.staged / "unified-search" / "bleve").mkdir(parents=True)
    bench.stop()
    bench.wipe()
    bench.put_back(record)
    left = {path.name for path in bench.ground.folder.iterdir()}
    assert left == {"grafana.db", "plugins"}
    bench.start()
    bench.await_ready()
    assert list(bench.service().verify(record)) == []


@on(kind_grafana.Kind)
def test_plugins_for_another_processor_are_named(bench: Bench) -> None:
    bench.up()
    platform = bench.stack.containers()["grafana"].platform.split("/")[1]
    other = "arm64" if platform != "arm64" else "amd64"
    plugins = bench.ground.folder / "plugins"
    for plugin, made in {"foreign": [other], "both": [other, platform], "panel": []}.items():
        (plugins / plugin).mkdir()
        for processor in made:
            (plugins / plugin / f"gpx_{plugin}_linux_{processor}").write_bytes(b"program")
    record = bench.capture()
    (told,) = bench.service().unfit(record)
    assert told.code == "grafana.plugins" and told.message.endswith(f"than {platform}: foreign")
    assert "grafana cli plugins install" in told.hint
    bench.stack.down()  # a new machine has no container yet
    assert not bench.stack.containers()
    (told,) = bench.service().unfit(record)
    assert told.message.endswith(": foreign")


@on(kind_grafana.Kind)
def test_a_failing_database_is_not_ready(bench: Bench) -> None:
    """The database is damaged under the running server: health answers 503."""
    database = bench.ground.folder / "grafana.db"
    with database.open("r+b") as file:
        file.write(b"\x00" * 20000)
    address = f"http://127.0.0.1:{bench.ground.port(3000)}/api/health"
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(address, timeout=10)
    state = bench.service().ready()
    assert not state.ok and "database" in state.reason
    with pytest.raises(Exception, match="damaged"):
        bench.capture()
