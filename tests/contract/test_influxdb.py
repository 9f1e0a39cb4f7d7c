"""InfluxDB beyond the shared suite: what a capture reads, what it refuses, what comes back.

Every test runs a real influxd as a program on a folder of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from iotops.clients.influxapi import InfluxApi
from iotops.config import Secret
from iotops.errors import CaptureError, IotopsError, LoadError, Refused, ServerError, Unreachable
from iotops.model import Severity
from iotops.services.influxdb import Influxdb, InfluxdbOptions
from tests.support.influxbench import Bench, Made, captured_by
from tests.support.influxd import WEEK, Client, Influxd, Starter, at, write_weeks

pytestmark = pytest.mark.contract


def bytes_read() -> int:
    """Give how many bytes this process has read from anything so far."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])  # type: ignore[index]


def tsm_bytes(folder: Path) -> int:
    """Sum the sizes of the TSM files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.tsm"))


# -- what a capture costs ----------------------------------------------------------------------


def test_a_second_capture_reads_no_tsm_file_and_changes_nothing(
    server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client, weeks=4, points=60_000)
    first = bench.capture()
    stored = tsm_bytes(server.folder)
    inodes = {path: path.stat().st_ino for path in bench.staging_folder.rglob("*.*")}
    before = bytes_read()
    second = bench.capture(first)
    read = bytes_read() - before
    metadata = len(server.client.call("GET", "/api/v2/backup/metadata"))
    assert stored > 3 * metadata
    # The two stores are written, checked and compared; of the TSM files nothing is read.
    assert read < 6 * metadata < stored + 5 * metadata
    assert second.hashes() == first.hashes()
    assert {path: path.stat().st_ino for path in bench.staging_folder.rglob("*.*")} == inodes
    assert second.captured.extra == first.captured.extra
    assert second.captured.counts == first.captured.counts


def test_after_new_points_only_the_new_file_is_read(server: Influxd, bench: Bench) -> None:
    write_weeks(server.client, weeks=4, points=60_000)
    first = bench.capture()
    now = int(time.time())
    server.client.write("iot", [f"climate,room=new temperature={i} {now - i}" for i in range(500)])
    before = bytes_read()
    second = bench.capture(first)
    read = bytes_read() - before
    metadata = len(server.client.call("GET", "/api/v2/backup/metadata"))
    new = {path for path in second.hashes() if path.endswith(".tsm")} - set(first.hashes())
    assert len(new) == 1
    assert read < tsm_bytes(server.folder) / 20 + 6 * metadata
    points = "points/iot/climate"
    assert second.captured.counts[points] == first.captured.counts[points] + 500


def test_linked_files_cost_no_space_and_go_after_the_snapshot(
    server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client)
    made = bench.capture()
    staged = sorted(bench.staging_folder.rglob("*.tsm"))
    assert len(staged) >= 5
    for path in staged:
        live = server.folder / path.relative_to(bench.staging_folder)
        assert path.samefile(live) and path.stat().st_nlink == 2
    made.staging.drop_links()
    assert not list(bench.staging_folder.rglob("*.tsm"))
    assert len(list(server.folder.rglob("*.tsm"))) == len(staged)


# -- what is captured --------------------------------------------------------------------------


def test_counts_are_the_servers_own_also_after_rewriting_and_deleting(
    server: Influxd, bench: Bench
) -> None:
    client = server.client
    write_weeks(client)
    write_weeks(client, room="hall")
    now = int(time.time())
    client.write(
        "iot", [f"climate,room=bath temperature=1 {now - 60 - i * 37}" for i in range(700)]
    )
    client.flush()
    client.delete("iot", "1970-01-01T00:00:00Z", at(now - WEEK), 'room="hall"')
    client.write("iot", [f"future value=1 {now + day * 86400}" for day in range(1, 40)])
    assert list(server.folder.rglob("*.tombstone"))
    made = bench.capture()
    assert dict(made.captured.counts) == dict(bench.service().counts())
    assert "points/iot/future" not in made.captured.counts
    assert bench.capture(made).captured.counts == made.captured.counts
    assert list(bench.service().verify(made.record)) == []


def test_points_written_and_deleted_in_memory_leave_no_warning(
    server: Influxd, bench: Bench
) -> None:
    now = int(time.time())
    server.client.write("iot", [f"gone value={i} {now - i}" for i in range(100)])
    server.client.delete("iot", "1970-01-01T00:00:00Z", at(now + 10), '_measurement="gone"')
    assert any(path.stat().st_size for path in server.folder.rglob("*.wal"))
    made = bench.capture()
    assert made.staged.warnings == ()
    assert "points/iot/gone" not in made.captured.counts


def test_a_capture_under_writes_and_deletes_holds_all_that_was_acknowledged(
    tmp_path: Path, server: Influxd, bench: Bench, start: Starter
) -> None:
    client = server.client
    write_weeks(client, weeks=3)
    base = int(time.time()) * 10**9
    acknowledged = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        number = 0
        while not stop.is_set():
            lines = [f"counter value={n}i {base + n * 10**6}" for n in range(number, number + 200)]
            client.write("iot", lines, "ns")
            number += 200
            acknowledged = number
            if number % 1000 == 0:  # another hour of last week, so that files get tombstones
                hour = base // 10**9 - WEEK - number * 4
                client.delete("iot", at(hour), at(hour + 3600), 'room="bath"')

    writer = threading.Thread(target=write)
    writer.start()
    made: Made | None = None
    try:
        for _ in range(8):
            seen = acknowledged
            while acknowledged < seen + 1000:
                time.sleep(0.005)
            floor = acknowledged
            made = bench.capture(made)
    finally:
        stop.set()
        writer.join(60)
    assert made is not None
    bench.put_into(tmp_path / "copy" / "influxdb", made)
    copy = start(tmp_path / "copy" / "influxdb", setup=False)
    found = copy.client.count("iot", 'r._measurement == "counter"')
    assert floor <= found <= acknowledged
    numbers = copy.client.flux(
        'from(bucket: "iot") |> range(start: 2020-01-01T00:00:00Z, stop: 2200-01-01T00:00:00Z) '
        '|> filter(fn: (r) => r._measurement == "counter") |> group() |> max()'
    )
    assert int(numbers[0]["_value"]) == found - 1  # without a hole
    second = Bench(tmp_path / "copy", copy.url, copy.token)
    # A deletion that meets a flush can be lost by the server itself, in the live data as well.
    assert not [
        one for one in second.service().verify(made.record) if one.severity is Severity.ERROR
    ]
    assert made.captured.counts["points/iot/climate"] < 12_000


def test_what_is_no_ones_is_copied_and_what_is_derived_is_named(
    server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client, weeks=1)
    shard = next(server.folder.glob("engine/data/*/autogen/*"))
    for relative in ("cert.pem", "engine/note", f"{shard.relative_to(server.folder)}/x.tsm.bak"):
        (server.folder / relative).write_text(relative)
    (server.folder / "influxd.sqlite-journal").write_bytes(b"\0" * 512)
    (shard / "000000099-000000001.tombstone").write_bytes(b"")  # its TSM file is gone
    made = bench.capture()
    names = {path.removeprefix("influxdb/") for path in made.hashes()}
    assert {"cert.pem", "engine/note", "influxd.bolt", "influxd.sqlite"} <= names
    assert f"{shard.relative_to(server.folder)}/x.tsm.bak" in names
    assert not [name for name in names if re.search(r"journal|_series|/index/|/wal/|0099-", name)]
    assert {rule.pattern for rule in made.staged.left_out} >= {
        "engine/wal/",
        "engine/data/*/_series/",
        "influxd.sqlite-*",
    }


def test_files_that_the_server_does_not_know_are_kept_and_not_counted(
    server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client, weeks=1)
    shard = next(path.parent for path in server.folder.rglob("*.tsm"))
    for place in (shard.parent / "999", shard.parents[2] / "00000000000000ff" / "autogen" / "998"):
        place.mkdir(parents=True)
        for path in shard.glob("*.tsm"):
            (place / path.name).write_bytes(path.read_bytes())
    made = bench.capture()
    assert len(made.staged.warnings) == 2
    assert all("does not know it" in text for text in made.staged.warnings)
    assert dict(made.captured.counts) == dict(bench.service().counts())
    assert {"999", "998"} <= {path.split("/")[5] for path in made.hashes() if "/data/" in path}


def test_a_bucket_deleted_between_two_captures_leaves_nothing(
    server: Influxd, bench: Bench
) -> None:
    client = server.client
    write_weeks(client, weeks=2)
    org = client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]
    bucket = client.json("POST", "/api/v2/buckets", {"orgID": org, "name": "short"})["id"]
    client.write("short", ["m value=1"])
    first = bench.capture()
    assert first.captured.counts["points/short/m"] == 1
    client.call("DELETE", f"/api/v2/buckets/{bucket}")
    second = bench.capture(first)
    assert second.staged.warnings == () and "points/short/m" not in second.captured.counts
    assert not [path for path in second.hashes() if bucket in path]
    assert second.captured.counts["buckets"] == first.captured.counts["buckets"] - 1


# -- the other way: downloads ------------------------------------------------------------------


def test_downloads_give_the_same_files_as_links(
    tmp_path: Path, server: Influxd, bench: Bench, elsewhere: Path, start: Starter
) -> None:
    client = server.client
    write_weeks(client)
    client.delete("iot", "1970-01-01T00:00:00Z", at(int(time.time()) - WEEK), 'room="bath"')
    linked = bench.capture()
    assert any(path.endswith(".tombstone") for path in linked.hashes())
    other = Bench(bench.root, bench.url, bench.token, elsewhere)
    fetched = other.capture()
    assert fetched.hashes() == linked.hashes()
    assert fetched.captured.counts == linked.captured.counts
    assert all(path.stat().st_nlink == 1 for path in other.staging_folder.rglob("*.tsm"))
    assert {(one.path, one.mode, one.uid) for one in fetched.staged.artifacts} == {
        (one.path, one.mode, one.uid) for one in linked.staged.artifacts
    }
    rows = []
    for name, way, made in (("a", bench, linked), ("b", other, fetched)):
        way.put_into(tmp_path / name / "influxdb", made)
        copy = start(tmp_path / name / "influxdb", setup=False)
        again = Bench(tmp_path / name, copy.url, copy.token)
        assert again.service().ready().ok and list(again.service().verify(made.record)) == []
        rows.append(copy.client.rows("iot"))
    assert rows[0] == rows[1] == client.rows("iot") and len(rows[0]) > 3000


def test_a_second_download_fetches_only_what_changed(
    server: Influxd, bench: Bench, elsewhere: Path
) -> None:
    write_weeks(server.client, weeks=4, points=5000)
    other = Bench(bench.root, bench.url, bench.token, elsewhere)
    first = other.capture()
    inodes = {path: path.stat().st_ino for path in other.staging_folder.rglob("*.tsm")}
    now = int(time.time())
    server.client.write("iot", [f"climate,room=new n={i}i {now - i}" for i in range(50)])
    asked = len(server.log())
    second = other.capture(first)
    after = {path: path.stat().st_ino for path in other.staging_folder.rglob("*.tsm")}
    assert {path: after[path] for path in inodes} == inodes
    assert len(after) == len(inodes) + 1
    read = set(re.findall(r"/engine/data/(\S+)/\d+\.tmp/", server.log()[asked:]))
    new = next(path for path in after if path not in inodes)
    assert read == {str(new.parent.relative_to(other.staging_folder / "engine" / "data"))}
    points = "points/iot/climate"
    assert second.captured.counts[points] == first.captured.counts[points] + 50


# -- what is refused ---------------------------------------------------------------------------


def failure(bench: Bench, kind: type[IotopsError], previous: Made | None = None) -> IotopsError:
    """Give the error with which a capture ends; it says what to do."""
    with pytest.raises(kind) as caught:
        bench.capture(previous)
    assert caught.value.hint
    return caught.value


def test_a_shard_that_the_server_did_not_open_is_an_error(server: Influxd, bench: Bench) -> None:
    write_weeks(server.client)
    made = bench.capture()
    made.staging.drop_links()
    server.stop()
    victim = sorted(server.folder.rglob("*.tsm"))[2]
    data = bytearray(victim.read_bytes())
    data[0] ^= 0xFF
    victim.write_bytes(data)
    server.start()
    assert server.client.call("GET", "/health")
    assert victim.with_name(victim.name + ".bad").exists()
    ready = bench.service().ready()
    assert not ready.ok and ready.final and str(victim.parent.name) in ready.reason
    error = failure(bench, CaptureError, made)
    assert "not opened shard" in error.message and victim.parent.name in error.message


def test_a_block_that_rots_on_the_disk_is_found_when_it_is_new(
    server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client)
    victim = sorted(server.folder.rglob("*.tsm"))[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 1
    victim.write_bytes(data)
    error = failure(bench, CaptureError)
    assert victim.name in error.message and "checksum" in error.message


def test_a_shard_whose_files_vanished_is_told(server: Influxd, bench: Bench) -> None:
    write_weeks(server.client)
    made = bench.capture()
    made.staging.drop_links()
    server.stop()
    victim = sorted(server.folder.rglob("*.tsm"))[0]
    victim.unlink()
    server.start()
    warnings = bench.capture(made).staged.warnings
    assert len(warnings) == 1 and f"/{victim.parent.name} held points" in warnings[0]


def test_a_token_without_operator_rights_is_refused_by_name(server: Influxd, bench: Bench) -> None:
    org = server.client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]
    rights = [
        {"action": action, "resource": {"type": kind, "orgID": org}}
        for action in ("read", "write")
        for kind in ("buckets", "authorizations", "dashboards", "tasks")
    ]
    document = {"orgID": org, "permissions": rights}
    token = server.client.json("POST", "/api/v2/authorizations", document)["token"]
    for wrong in (token, "no-such-token", ""):
        poor = Bench(bench.root, bench.url, wrong)
        error = failure(poor, Refused)
        assert "operator token" in error.message and (not wrong or wrong not in error.message)
        findings = list(poor.service().preflight())
        assert [one.code for one in findings if one.severity is Severity.ERROR] == [
            "influxdb.token"
        ]
    assert list(bench.service().preflight()) == []


def test_a_reader_reads_all_buckets_and_can_do_nothing_else(server: Influxd, bench: Bench) -> None:
    values = {"TOKEN": Secret(bench.token)}
    place = replace(bench.service().place, secret=values.get)
    options = InfluxdbOptions(
        kind="influxdb", url=bench.url, token_env="TOKEN", reader_token_env="READER"
    )
    service = Influxdb(place, options)
    assert [one.code for one in service.preflight()] == ["influxdb.reader"]  # there is none yet
    ((name, make),) = service.own_secrets().items()
    values[name] = make()
    assert list(service.preflight()) == []

    reader = Client(bench.url, values["READER"].reveal(), server.client.org)
    server.client.write("iot", [f"seen value=1 {int(time.time())}"])
    assert reader.count("iot", 'r._measurement == "seen"') == 1
    for method, path, body in (
        ("POST", f"/api/v2/write?org={reader.org}&bucket=iot", b"x value=1"),
        ("GET", "/api/v2/config", None),
        ("GET", "/api/v2/backup/metadata", None),
        (
            "POST",
            f"/api/v2/delete?org={reader.org}&bucket=iot",
            {"start": "1970-01-01T00:00:00Z", "stop": "2100-01-01T00:00:00Z"},
        ),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            reader.call(method, path, body)
        assert caught.value.code in (401, 403), path
    assert reader.json("GET", "/api/v2/authorizations")["authorizations"] == []

    values["READER"] = Secret("of-another-snapshot")
    (found,) = service.preflight()
    assert found.code == "influxdb.reader" and "iotops up" in found.hint
    assert "of-another-snapshot" not in found.message + found.hint


def test_with_two_organisations_no_reader_is_guessed(server: Influxd, bench: Bench) -> None:
    server.client.json("POST", "/api/v2/orgs", {"name": "second"})
    api = InfluxApi(bench.url, Secret(bench.token))
    with api, pytest.raises(ServerError, match="2 organisations"):
        api.make_reader("x")


def test_a_server_that_is_down_is_a_fact_and_an_error(server: Influxd, bench: Bench) -> None:
    assert bench.service().probe().version == "2.9.1"
    assert bench.service().ready().ok
    server.stop()
    facts = bench.service().probe()
    assert not facts.reachable and "nothing answers" in facts.detail
    assert not bench.service().ready().ok
    assert [one.code for one in bench.service().preflight()] == ["influxdb.down"]
    failure(bench, Unreachable)


def test_data_that_is_not_in_the_folder_is_refused(
    tmp_path: Path, server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client, weeks=1)
    (tmp_path / "wrong" / "influxdb" / "engine" / "data").mkdir(parents=True)
    wrong = Bench(tmp_path / "wrong", bench.url, bench.token)
    assert "not in" in failure(wrong, CaptureError).message
    assert [one.code for one in wrong.service().preflight()] == ["influxdb.folder"]


def test_odd_settings_are_told_before_a_capture(tmp_path: Path, start: Starter) -> None:
    server = start(tmp_path / "data" / "influxdb", "--http-write-timeout=30s")
    bench = Bench(tmp_path / "data", server.url, server.token)
    write_weeks(server.client, weeks=1)
    shard = next(server.folder.glob("engine/data/*/autogen/*"))
    (shard / "7.tmp").mkdir()
    os.utime(shard / "7.tmp", (time.time() - 90_000,) * 2)
    found = {one.code: one.severity for one in bench.service().preflight()}
    assert found == {
        "influxdb.timeout": Severity.WARNING,
        "influxdb.engine": Severity.WARNING,
    }
    assert any("7.tmp" in text for text in bench.capture().staged.warnings)


def test_without_metrics_the_shards_are_asked_one_by_one(tmp_path: Path, start: Starter) -> None:
    server = start(tmp_path / "data" / "influxdb", "--metrics-disabled")
    bench = Bench(tmp_path / "data", server.url, server.token)
    write_weeks(server.client)
    made = bench.capture()
    assert made.captured.version == "2.9.1"
    assert dict(made.captured.counts) == dict(bench.service().counts())
    server.stop()
    victim = sorted(server.folder.rglob("*.tsm"))[0]
    victim.write_bytes(b"\0" + victim.read_bytes()[1:])
    server.start()
    assert "not opened" in failure(bench, CaptureError, made).message


# -- answers that break in the middle ----------------------------------------------------------


class Between(ThreadingHTTPServer):
    """Stands between the product and a real server, and spoils the answers it is told to spoil.

    Attributes:
        spoil: turns path and body of an answer into what is sent on.
        version: what the server says it is; empty = the truth.
        fails: tells of a path whether it is answered with an error of the server's own.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _HandOn)
        self.upstream = upstream
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.spoil: Callable[[str, bytes], bytes] = lambda path, body: body
        self.version = ""
        self.fails: Callable[[str], bool] = lambda path: False


class _HandOn(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._hand_on(None)

    def do_POST(self) -> None:
        self._hand_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _hand_on(self, data: bytes | None) -> None:
        between = self.server
        assert isinstance(between, Between)
        if between.fails(self.path):
            self.send_response(500)
            self.send_header("Content-Length", str(len(ERROR)))
            self.end_headers()
            self.wfile.write(ERROR)
            return
        request = Request(between.upstream + self.path, data=data)
        for name in ("Authorization", "Content-Type", "Accept"):
            if name in self.headers:
                request.add_header(name, self.headers[name])
        with urlopen(request) as answer:
            body = between.spoil(self.path, answer.read())
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            version = between.version or answer.headers["X-Influxdb-Version"]
            self.send_header("X-Influxdb-Version", version)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        # The chunks end as they should: no HTTP client can see that something is missing.
        self.wfile.write((b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def between(server: Influxd) -> Iterator[Between]:
    """A server between the product and the real one."""
    listener = Between(server.url)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    yield listener
    listener.shutdown()
    thread.join()
    listener.server_close()


ERROR = b'{"code":"internal error","message":"disk quota exceeded"}'


@pytest.mark.parametrize("kept", [0, 40, 5000, -200, -3])
def test_metadata_that_is_cut_short_is_refused(bench: Bench, between: Between, kept: int) -> None:
    def spoil(path: str, body: bytes) -> bytes:
        return body[:kept] + ERROR if "metadata" in path else body

    first = bench.capture()
    between.spoil = spoil
    broken = Bench(bench.root, between.url, bench.token)
    assert "quota exceeded" in failure(broken, ServerError, first).message
    assert not list((bench.work / "tmp").iterdir())
    between.spoil = lambda path, body: body
    assert broken.capture(first).hashes() == first.hashes()


def test_a_shard_deleted_between_two_looks_is_not_missed(bench: Bench, between: Between) -> None:
    gone = [b'storage_tsm_files_total{bucket="b",id="999",path="p"} 1\n']

    def spoil(path: str, body: bytes) -> bytes:
        return body + gone.pop() if path == "/metrics" and gone else body

    between.spoil = spoil
    other = Bench(bench.root, between.url, bench.token)
    assert other.capture().staged.warnings == () and not gone


def test_a_shard_that_is_just_being_deleted_does_not_end_the_capture(
    server: Influxd, bench: Bench, between: Between
) -> None:
    """The server answers 500 for it until its files are gone; for one that stays it is an error."""
    client = server.client
    org = client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]
    bucket = client.json("POST", "/api/v2/buckets", {"orgID": org, "name": "passing"})["id"]
    client.write("passing", ["m value=1"])
    shard = client.shards("passing")[0]
    asked: list[str] = []

    def fails(path: str) -> bool:
        if f"/shards/{shard}?" not in path:
            return False
        asked.append(path)
        if len(asked) == 4:
            client.call("DELETE", f"/api/v2/buckets/{bucket}")
        return True

    between.fails = fails
    other = Bench(bench.root, between.url, bench.token)
    made = other.capture()
    assert made.staged.warnings == () and "points/passing/m" not in made.captured.counts
    assert len(asked) >= 4
    client.write("iot", ["m value=1"])
    shard = client.shards("iot")[0]
    asked += ["more"] * 4
    assert "quota exceeded" in failure(other, ServerError, made).message


def test_what_is_made_during_the_capture_is_counted_as_it_was_captured(
    tmp_path: Path, server: Influxd, bench: Bench, between: Between, start: Starter
) -> None:
    """The store comes in one request and the numbers in others: they must be of one moment."""
    org = server.client.json("GET", "/api/v2/orgs")["orgs"][0]["id"]
    names = iter(("cellar", "attic"))

    def spoil(path: str, body: bytes) -> bytes:
        if "metadata" in path and (name := next(names, None)):  # after the store was read
            server.client.json("POST", "/api/v2/buckets", {"orgID": org, "name": name})
            server.client.json("POST", "/api/v2/users", {"name": name})
            server.client.write(name, ["late v=1"])
        return body

    between.spoil = spoil
    made = Bench(bench.root, between.url, bench.token).capture()
    assert made.staged.warnings == ()
    assert (made.captured.counts["users"], made.captured.counts["buckets"]) == (3, 5)
    bench.put_into(tmp_path / "copy" / "influxdb", made)
    copy = start(tmp_path / "copy" / "influxdb", setup=False)
    again = Bench(tmp_path / "copy", copy.url, copy.token)
    assert list(again.service().verify(made.record)) == []


@pytest.mark.parametrize("kept", [0, 300, 700, 5000, -1024, -512, -1])
def test_a_shard_that_is_cut_short_is_refused(
    server: Influxd, bench: Bench, between: Between, elsewhere: Path, kept: int
) -> None:
    write_weeks(server.client, weeks=1)

    def spoil(path: str, body: bytes) -> bytes:
        return body[:kept] + ERROR if "/shards/" in path and "since" not in path else body

    between.spoil = spoil
    broken = Bench(bench.root, between.url, bench.token, elsewhere)
    error = failure(broken, ServerError)
    assert "shard" in error.message and "quota exceeded" in error.message
    assert not list((elsewhere / "tmp").iterdir())


def test_a_store_with_a_page_too_few_is_refused(bench: Bench, between: Between) -> None:
    def spoil(path: str, body: bytes) -> bytes:
        if "metadata" not in path:
            return body
        start = body.index(b"\r\n\r\n") + 4
        return body[: start + 8192] + body[start + 12288 :]

    between.spoil = spoil
    broken = Bench(bench.root, between.url, bench.token)
    with pytest.raises(CaptureError, match="count of pages"):
        broken.capture()


@pytest.mark.parametrize(
    ("version", "refused"), [("v2.4.1", True), ("v3.0.0", True), ("dev", False)]
)
def test_old_and_foreign_servers_are_refused_and_bare_builds_are_not(
    bench: Bench, between: Between, version: str, refused: bool
) -> None:
    between.version = version
    other = Bench(bench.root, between.url, bench.token)
    if refused:
        assert version in failure(other, CaptureError).message
    else:
        assert any("version" in text for text in other.capture().staged.warnings)


# -- links that may not be made ----------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="takes rights away, which only root has")
def test_not_being_allowed_to_link_is_an_error_not_a_download(
    server: Influxd, bench: Bench
) -> None:
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("this kernel lets everybody link everything")
    write_weeks(server.client, weeks=1)
    for path in server.folder.rglob("*.tsm"):
        os.chown(path, 1000, 1000)
    less = ("setpriv", "--bounding-set=-fowner,-dac_override", "--inh-caps=-fowner,-dac_override")
    made = captured_by(*less, bench=bench, work=bench.work)
    assert "may not be linked" in str(made["error"]) and "CAP_FOWNER" in str(made["hint"])
    assert "counts" in captured_by(bench=bench, work=bench.work)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes rights away, which only root has")
@pytest.mark.parametrize("right", ["fowner", "dac_override"])
def test_one_of_the_two_rights_is_enough_to_link(server: Influxd, bench: Bench, right: str) -> None:
    write_weeks(server.client, weeks=1)
    for path in server.folder.rglob("*.tsm"):
        os.chown(path, 1000, 1000)
        path.chmod(0o600)
    less = ("setpriv", f"--bounding-set=-{right}", f"--inh-caps=-{right}")
    made = captured_by(*less, bench=bench, work=bench.work)
    assert made.get("counts") == dict(bench.service().counts()), made
    staged = list(bench.staging_folder.rglob("*.tsm"))
    assert staged and all(path.stat().st_nlink == 2 for path in staged)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes rights away, which only root has")
def test_a_folder_that_may_not_be_read_is_an_error(server: Influxd, bench: Bench) -> None:
    write_weeks(server.client, weeks=1)
    engine = server.folder / "engine"
    os.chown(engine, 1000, 1000)
    engine.chmod(0o700)
    rights = "-dac_override,-dac_read_search,-fowner"
    less = ("setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}")
    made = captured_by(*less, bench=bench, work=bench.work)
    assert "not readable" in str(made["error"]) and "sudo" in str(made["hint"])


def test_a_server_whose_folder_is_not_on_this_machine_is_an_error(
    tmp_path: Path, server: Influxd, bench: Bench
) -> None:
    """Its points would have to be fetched whole every night, and could not be put back offline."""
    write_weeks(server.client, weeks=1)
    (tmp_path / "other" / "influxdb").mkdir(parents=True)
    other = Bench(tmp_path / "other", bench.url, bench.token)
    error = failure(other, CaptureError)
    assert "not readable" in error.message and "/var/lib/influxdb2" in error.hint
    assert [one.code for one in other.service().preflight()] == ["influxdb.folder"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts something, which only root may")
def test_a_bind_mount_between_data_and_staging_is_named(server: Influxd, bench: Bench) -> None:
    write_weeks(server.client, weeks=1)
    bench.work.mkdir()
    script = 'mount --bind "$0" "$0" && exec "$@"'
    mounted = ("unshare", "--mount", "sh", "-c", script, str(bench.work))
    made = captured_by(*mounted, bench=bench, work=bench.work)
    assert "bind mount" in str(made["error"]) and "data root" in str(made["hint"])


# -- back again --------------------------------------------------------------------------------


def test_an_engine_without_its_store_is_never_made_ready(
    tmp_path: Path, server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client, weeks=1)
    made = bench.capture()
    for spoil in (
        lambda path: (path / "influxd.bolt").unlink(),
        lambda path: os.truncate(path / "influxd.bolt", 8192),
        lambda path: (path / "influxd.sqlite").write_bytes(b"SQLite format 3\0" + bytes(4000)),
        lambda path: (path / "influxd.sqlite").unlink(),
    ):
        target = tmp_path / "extracted"
        subprocess.run(["cp", "-a", str(bench.staging_folder), str(target)], check=True)
        spoil(target)
        with pytest.raises(LoadError, match="cannot be started") as caught:
            bench.service().load(target, made.record, None)
        assert "snapshots" in caught.value.hint
        subprocess.run(["rm", "-rf", str(target)], check=True)


def test_derived_files_are_taken_out_before_a_start(
    tmp_path: Path, server: Influxd, bench: Bench
) -> None:
    write_weeks(server.client, weeks=1)
    made = bench.capture()
    target = tmp_path / "extracted"
    subprocess.run(["cp", "-a", str(bench.staging_folder), str(target)], check=True)
    shard = next(target.glob("engine/data/*/autogen/*"))
    for folder in (shard / "index" / "0", shard.parent.parent / "_series", target / "engine/wal/x"):
        folder.mkdir(parents=True)
        (folder / "old").write_text("stale")
    (shard / "fields.idx").write_text("stale")
    (target / "engine" / "mine").write_text("kept")
    bench.service().load(target, made.record, None)
    assert not list(target.rglob("old")) and not list(target.rglob("fields.idx"))
    assert (target / "engine" / "mine").exists() and list(target.rglob("*.tsm"))


def test_fewer_points_fail_and_more_are_told(server: Influxd, bench: Bench) -> None:
    write_weeks(server.client)
    record = bench.capture().record
    points = "points/iot/climate"

    def judged(counts: dict[str, int], **facts: str) -> list[tuple[Severity, str]]:
        changed = replace(
            record, counts={**record.counts, **counts}, facts={**record.facts, **facts}
        )
        found = list(bench.service().verify(changed))
        return [(one.severity, one.message.split(":")[0]) for one in found]

    assert judged({}) == []
    wanted = record.counts[points]
    assert judged({points: wanted + 1}) == [(Severity.ERROR, points)]
    assert judged({points: wanted - 1}) == [(Severity.WARNING, points)]
    assert judged({"tokens": 2, "points/iot/lost": 7}) == [
        (Severity.ERROR, "points/iot/lost"),
        (Severity.ERROR, "tokens"),
    ]
    past, future = "2020-01-01T00:00:00Z", "2190-01-01T00:00:00Z"
    assert judged({points: wanted + 1}, **{"expires/iot": past}) == [(Severity.WARNING, points)]
    assert judged({points: wanted + 1}, **{"expires/iot": future}) == [(Severity.ERROR, points)]
    # What is written from now on lies after the capture and is nobody's loss or gain.
    server.client.write("iot", [f"climate,room=later n=1i {int(time.time()) + 2}"])
    assert judged({}) == []
