"""Mosquitto's own promises, beyond those of every kind, on real brokers of every line.

What a line does by itself (which files end it, which hashes it reads) is shown here too: the
product's findings are about exactly that. The default configuration of the official 2.1 image is
not: a hub always mounts its own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from iotops.actions import plausible
from iotops.errors import CaptureError, GuardError, LoadError
from iotops.model import HostRecord, Manifest, Mode, Outcome, ServiceRecord, Severity
from iotops.services.mosquitto import Mosquitto
from tests.conftest import need
from tests.contract.bench import Bench
from tests.contract.kind_mosquitto import RETAINED, DynamicKind, Kind, SqliteKind, until
from tests.support.lab import lab, lines_of

pytestmark = pytest.mark.contract

LINES = ("mosquitto", *lines_of("mosquitto"))
NEWER = "mosquitto-2.1"

Make = Callable[[type[Kind], str], Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make benches of one way to set a broker up, on one line; they are removed at the end."""
    benches: list[Bench] = []

    def one(way: type[Kind], line: str) -> Bench:
        for part in ("docker", "compose", "root", f"image {line}"):
            need(part)
        benches.append(Bench(way, lab().images[line], tmp_path / str(len(benches))))
        benches[-1].prepare()
        return benches[-1]

    yield one
    for bench in benches:
        bench.end()


@pytest.fixture(params=LINES)
def bench(request: pytest.FixtureRequest, make: Make) -> Bench:
    """A broker with its own database and a password file, on every line."""
    return make(Kind, request.param)


@pytest.fixture(params=LINES)
def dynamic(request: pytest.FixtureRequest, make: Make) -> Bench:
    """A broker with dynamic security, on every line, with two clients."""
    bench = make(DynamicKind, request.param)
    bench.up()
    ways(bench).dynsec("createClient", "sensor", "-p", kind(bench).passwords["sensor"])
    return bench


@pytest.fixture
def sqlite(make: Make) -> Bench:
    """A broker of 2.1 that keeps its messages by the SQLite plugin."""
    return make(SqliteKind, NEWER)


def ways(bench: Bench) -> DynamicKind:
    assert isinstance(bench.kind, DynamicKind)
    return bench.kind


def newer(bench: Bench) -> bool:
    """Whether the broker is of 2.1; the image's name says so, built or official."""
    return "2.1" in bench.ground.image


def ended(bench: Bench) -> bool:
    """Whether the broker has left."""
    return bench.stack.containers()["mosquitto"].state == "exited"


def codes(bench: Bench, tree: Path | None = None) -> list[tuple[str, Severity]]:
    """What is found in a folder, by default the live one."""
    service = bench.service()
    assert isinstance(service, Mosquitto)
    found = service.judge_users(tree or bench.ground.folder)
    return [(one.code, one.severity) for one in found]


def extracted(bench: Bench) -> Path:
    """A copy of the capture, as an extraction would make it."""
    folder = bench.data / "extracted"
    shutil.copytree(bench.staged, folder, symlinks=True)
    return folder


def kind(bench: Bench) -> Kind:
    assert isinstance(bench.kind, Kind)
    return bench.kind


def configure(bench: Bench, old: str, new: str) -> None:
    path = bench.ground.hub / "mosquitto" / "mosquitto.conf"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def reached(bench: Bench) -> None:
    """Wait for the broker itself, whatever the product thinks of it."""
    ends = time.monotonic() + 30
    while kind(bench)._login("iotops", "whatever") is None:
        assert time.monotonic() < ends, bench.logs()
        time.sleep(0.1)


def test_an_open_broker_is_never_ready(bench: Bench) -> None:
    configure(bench, "allow_anonymous false\n", "allow_anonymous true\n")
    bench.stack.create()
    reached(bench)
    state = bench.service().ready()
    assert (state.ok, state.final) == (False, True) and "anybody" in state.reason
    assert [finding.code for finding in bench.service().preflight()] == ["mosquitto.login"]


def test_an_open_broker_that_is_meant_is_ready_and_told(bench: Bench) -> None:
    configure(bench, "allow_anonymous false\n", "allow_anonymous true\n")
    bench.stack.create()
    reached(bench)
    strict = bench.service()
    assert isinstance(strict, Mosquitto)
    options = replace(strict.options, anonymous=True, username="")
    service = Mosquitto(strict.place, options)
    assert service.ready().ok
    assert [finding.code for finding in service.preflight()] == ["mosquitto.open"]


def test_a_refused_or_missing_password_is_final_and_never_shown(bench: Bench) -> None:
    bench.up()
    right = kind(bench).passwords["iotops"]
    kind(bench).passwords["iotops"] = wrong = secrets.token_hex(9)
    state = bench.service().ready()
    assert (state.ok, state.final) == (False, True) and "iotops is refused" in state.reason
    assert wrong not in repr(state) + repr(bench.service().probe())
    kind(bench).passwords["iotops"] = right
    assert bench.service().ready().ok
    facts = bench.service().probe()
    assert facts.reachable and facts.version.startswith("2.")


def test_a_capture_holds_what_was_published_a_moment_ago(bench: Bench) -> None:
    """The broker's own autosave is half an hour away."""
    bench.up()
    kind(bench).seed()
    record = bench.capture()
    assert record.counts == {"retained": RETAINED, "users": 2}
    with kind(bench)._client("sensor") as client:
        client.publish("one/more", b"x", retain=True)
    again = bench.capture(record)
    assert again.counts["retained"] == RETAINED + 1
    assert list(bench.service().verify(again)) == []
    with kind(bench)._client("sensor") as client:
        client.publish("one/more", b"", retain=True)
    found = list(bench.service().verify(again))
    assert [(one.code, one.severity) for one in found] == [("counts.differ", Severity.ERROR)]


def test_a_crash_after_a_capture_is_still_healed_by_the_engine(bench: Bench) -> None:
    """A signal by Docker's own API would have marked the container as stopped by hand."""
    table = (bench.ground.hub / "compose.json").read_text()
    table = table.replace('"image"', '"restart": "unless-stopped", "image"', 1)
    (bench.ground.hub / "compose.json").write_text(table)
    bench.up()
    bench.capture()
    pid = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.Pid}}", bench.ground.container],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    os.kill(int(pid), 9)
    ends = time.monotonic() + 30
    while not bench.started_at().endswith(" 1"):
        assert time.monotonic() < ends, bench.logs()
        time.sleep(0.1)
    bench.await_ready()


def test_without_persistence_the_capture_says_so(bench: Bench) -> None:
    configure(bench, "persistence true", "persistence false")
    bench.up()
    record = bench.capture()
    assert record.counts == {"retained": 0, "users": 2}
    assert any("persistence is off" in warning for warning in record.warnings)
    (finding,) = bench.service().preflight()
    assert (finding.code, finding.severity) == ("mosquitto.persistence", Severity.WARNING)
    assert "retained messages" in finding.message and "persistence true" in finding.hint


def test_a_database_that_the_broker_does_not_renew_is_no_capture(bench: Bench) -> None:
    bench.up()
    kind(bench).seed()
    bench.capture()
    bench.stop()
    configure(bench, "persistence true", "persistence false")
    bench.start()
    bench.await_ready()
    with pytest.raises(CaptureError, match=r"did not write .* persistence is off"):
        bench.capture()
    if newer(bench):
        return  # the wait for a broker whose configuration is not known is long
    (bench.ground.hub / "mosquitto" / "mosquitto.conf").rename(bench.ground.hub / "elsewhere")
    with pytest.raises(CaptureError, match=r"did not write .* after SIGUSR1"):
        bench.capture()


def test_a_stopped_broker_is_captured_as_it_saved_itself(bench: Bench) -> None:
    bench.up()
    kind(bench).seed()
    bench.stop()
    record = bench.capture()
    assert record.counts == {"retained": RETAINED, "users": 2}
    assert any("does not run" in warning for warning in record.warnings)


def test_load_refuses_what_a_broker_stumbles_over(bench: Bench) -> None:
    bench.up()
    kind(bench).seed()
    record = bench.capture()
    extracted = bench.data / "extracted"
    shutil.copytree(bench.staged, extracted)
    service = bench.service()
    database = extracted / "data" / "mosquitto.db"
    whole = database.read_bytes()
    for broken in (whole[:-7], whole[:20], b"", b"x" + whole[1:]):
        database.write_bytes(broken)
        with pytest.raises(LoadError):
            service.load(extracted, record, None)
    database.write_bytes(whole)
    passwords = extracted / "secrets" / "passwd"
    good = passwords.read_bytes()
    passwords.write_bytes(b"iotops:plain text\n")
    with pytest.raises(LoadError, match="no user with a hashed password") as raised:
        service.load(extracted, record, None)
    assert "plain text" not in str(raised.value)
    passwords.write_bytes(good + b"sensor2:\n")
    if newer(bench):
        with pytest.raises(LoadError, match=r"1 of 3 lines.* does not start with it"):
            service.load(extracted, record, None)
    else:
        (note,) = service.load(extracted, record, None)
        assert "1 of 3 lines" in note and "2.1 does not start" in note


def test_load_makes_owners_modes_and_the_log_folder_right(bench: Bench) -> None:
    """What a restore without root leaves: everything root's, and open."""
    bench.up()
    kind(bench).seed()
    record = bench.capture()
    extracted = bench.data / "extracted"
    shutil.copytree(bench.staged, extracted)
    for path in (extracted, *extracted.rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert bench.service().load(extracted, record, None) == ()
    for name, mode in (
        ("data", 0o755),
        ("data/mosquitto.db", 0o600),
        ("log", 0o755),
        ("secrets", 0o755),
        ("secrets/passwd", 0o600),
    ):
        state = (extracted / name).stat()
        assert (name, state.st_uid, state.st_gid, state.st_mode & 0o777) == (name, 1883, 1883, mode)
    assert list((extracted / "log").iterdir()) == []


# --- users of a password file, line by line -------------------------------------------------------


def test_the_hashes_of_a_line_are_its_own(bench: Bench) -> None:
    """What the finding about a downgrade goes by."""
    (line, _) = (bench.ground.folder / "secrets" / "passwd").read_text().splitlines()
    _, kind_of_hash, rounds, salt, _ = line.replace(":", "").split("$")
    assert (kind_of_hash, rounds, len(salt)) == (
        ("7", "1000", 88) if newer(bench) else ("7", "101", 16)
    )


def test_a_malformed_line_ends_the_newer_line_only(bench: Bench) -> None:
    bench.up()
    assert codes(bench) == []
    passwords = bench.ground.folder / "secrets" / "passwd"
    passwords.write_bytes(passwords.read_bytes() + b"half a line:\n")
    grave = Severity.ERROR if newer(bench) else Severity.WARNING
    assert codes(bench) == [("mosquitto.users", grave)]
    assert ("mosquitto.users", grave) in [(f.code, f.severity) for f in bench.service().preflight()]
    bench.stack.execute("mosquitto", ["sh", "-c", "kill -HUP 1"])
    if newer(bench):
        until(lambda: ended(bench))
        assert codes(bench) == [("mosquitto.users", grave)], "the image is asked instead"
        bench.start()
        until(lambda: ended(bench))
    else:
        bench.stop()
        bench.start()
        bench.await_ready()


def test_a_linked_password_file_ends_the_newer_line_only(bench: Bench) -> None:
    folder = bench.ground.folder / "secrets"
    (folder / "passwd").rename(folder / "real")
    (folder / "passwd").symlink_to("real")
    bench.stack.create()
    if newer(bench):
        until(lambda: ended(bench))
    else:
        bench.await_ready()
    assert codes(bench) == [("mosquitto.users", Severity.WARNING)]


def test_passwords_of_a_newer_line_are_told_before_everybody_is_refused(make: Make) -> None:
    """A restore of what 2.1 has written onto the image of 2.0."""
    old, new = make(Kind, "mosquitto"), make(Kind, NEWER)
    kind(old).passwords = kind(new).passwords
    passwords = old.ground.folder / "secrets" / "passwd"
    before = passwords.read_bytes()
    shutil.copy2(new.ground.folder / "secrets" / "passwd", passwords)
    wanted = [("mosquitto.downgrade", Severity.ERROR)]
    assert codes(old) == wanted, "nothing runs: the image is asked"
    old.stack.create()
    reached(old)
    assert kind(old)._logins() == dict.fromkeys(kind(old)._logins(), 135), "2.0 refuses everybody"
    assert codes(old) == wanted
    assert codes(new, old.ground.folder) == [], "2.1 reads its own"
    with pytest.raises(LoadError, match=r"2 of 2 passwords .* the broker 2\.0.* refuses") as caught:
        old.service().load(old.ground.folder, blank(old), None)
    assert "image" in caught.value.hint
    passwords.write_bytes(
        before + passwords.read_bytes().splitlines()[0].replace(b"iotops", b"new")
    )
    assert codes(old) == [("mosquitto.downgrade", Severity.WARNING)], "one of three"
    (note,) = old.service().load(old.ground.folder, blank(old), None)
    assert "1 of 3 passwords" in note


def test_a_hub_moves_to_the_newer_line_with_all_it_has(make: Make) -> None:
    """Captured under 2.0, put back under 2.1: database and hashes are read."""
    bench = make(Kind, "mosquitto")
    need(f"image {NEWER}")
    bench.up()
    answers = kind(bench).seed()
    record = bench.capture()
    bench.stop()
    compose = bench.ground.hub / "compose.json"
    text = compose.read_text()
    compose.write_text(text.replace(bench.ground.image, lab().images[NEWER].reference))
    bench.wipe()
    assert bench.put_back(record) == ()
    bench.stack = type(bench.stack)(bench.ground.hub, files=[compose], project=bench.project)
    bench.up()
    assert bench.service().probe().version.startswith("2.1")
    assert kind(bench).check(answers) == [] and list(bench.service().verify(record)) == []


def test_the_version_that_would_run_is_known_before_anything_runs(bench: Bench) -> None:
    """A tag may say too little: then the image itself is asked, which starts no broker."""
    wanted = "2.1" if newer(bench) else "2.0"
    assert bench.service().would_run().startswith(wanted)
    compose = bench.ground.hub / "compose.json"
    text = compose.read_text()
    moved = f"iotops-lab/{bench.project}/mosquitto:2"
    subprocess.run(["docker", "tag", bench.ground.image, moved], check=True)
    try:
        compose.write_text(text.replace(bench.ground.image, moved))
        bench.stack = type(bench.stack)(bench.ground.hub, files=[compose], project=bench.project)
        assert bench.service().would_run().startswith(wanted), "the tag says 2 only"
    finally:
        compose.write_text(text)
        subprocess.run(["docker", "rmi", moved], check=True, capture_output=True)
    bench.stack = type(bench.stack)(bench.ground.hub, files=[compose], project=bench.project)
    bench.up()
    assert bench.service().would_run().startswith(wanted), "the running one tells it"


def blank(bench: Bench) -> ServiceRecord:
    return ServiceRecord("mosquitto", "mosquitto", "mosquitto", "mosquitto", Mode.HOT)


# --- dynamic security -----------------------------------------------------------------------------


def test_clients_of_dynamic_security_are_counted(dynamic: Bench) -> None:
    record = dynamic.capture()
    assert record.counts == {"retained": 0, "users": 2, "dynsec_clients": 2}
    assert list(dynamic.service().verify(record)) == []
    assert list(dynamic.service().preflight()) == []
    ways(dynamic).dynsec("deleteClient", "sensor")
    found = [one.message for one in dynamic.service().verify(record)]
    assert found == ["users: 2 recorded, 1 found", "dynsec_clients: 2 recorded, 1 found"]


def test_a_broken_dynamic_security_is_refused_everywhere(dynamic: Bench) -> None:
    """A broker of either line runs with it, and lets nobody in."""
    record = dynamic.capture()
    tree = extracted(dynamic)
    dynamic.stop()
    path = dynamic.ground.folder / ways(dynamic).file
    for broken in (path.read_bytes()[:-30], b"[]", b""):
        path.write_bytes(broken)
        shutil.copy2(path, tree / ways(dynamic).file)
        assert codes(dynamic) == codes(dynamic, tree) == [("mosquitto.users", Severity.ERROR)]
        with pytest.raises(LoadError, match="refuses everybody"):
            dynamic.service().load(tree, record, None)
        with pytest.raises(CaptureError, match=r"dynamic-security\.json"):
            dynamic.capture(record)
    dynamic.start()
    reached(dynamic)
    assert kind(dynamic)._logins() == dict.fromkeys(kind(dynamic)._logins(), 135)
    assert not dynamic.service().ready().ok


def test_a_lost_dynamic_security_is_never_a_good_backup(dynamic: Bench) -> None:
    """2.0 refuses everybody; 2.1 makes new users in silence, once."""
    record = dynamic.capture()
    dynamic.stop()
    path = dynamic.ground.folder / ways(dynamic).file
    path.unlink()
    dynamic.start()
    reached(dynamic)
    assert kind(dynamic)._logins() == dict.fromkeys(kind(dynamic)._logins(), 135)
    if newer(dynamic):
        names = {client["username"] for client in json.loads(path.read_text())["clients"]}
        assert names == {"admin", "democlient"}
        with pytest.raises(CaptureError, match=r"made .* anew, with passwords") as caught:
            dynamic.capture(record)
        assert "iotops restore" in caught.value.hint
        unguarded = dynamic.capture()
        assert unguarded.counts == {"retained": 0, "users": 2, "dynsec_clients": 0}
        shrunken(dynamic, record, unguarded, "dynsec_clients fell from 2 to 0")
        found = [one.code for one in dynamic.service().preflight()]
        assert found == ["mosquitto.login", "mosquitto.generated"]
        dynamic.stop()
        path.unlink()  # the generated passwords stay: now it makes no users at all
        dynamic.start()
        reached(dynamic)
        assert not path.exists()
    with pytest.raises(CaptureError, match=r"names for dynamic security, is not there"):
        dynamic.capture(record)
    unguarded = dynamic.capture()
    assert unguarded.counts == {"retained": 0, "users": 0}
    shrunken(dynamic, record, unguarded, "fell from")
    found = [one.code for one in dynamic.service().preflight()]
    assert found[:1] == ["mosquitto.login"]
    assert ("mosquitto.users" in found) == (not newer(dynamic))


def shrunken(bench: Bench, good: ServiceRecord, now: ServiceRecord, told: str) -> None:
    """The guard that remembers beyond one run refuses it too."""
    memory = bench.data / "memory"
    memory.mkdir(exist_ok=True)
    service = bench.service()
    plausible.remember(memory, manifest_of(good), [service])
    plausible.refuse_shrunken(memory, service, good)
    with pytest.raises(GuardError, match=told):
        plausible.refuse_shrunken(memory, service, now)


def manifest_of(record: ServiceRecord) -> Manifest:
    now = datetime.now(UTC)
    host = HostRecord("test", "x86_64", "Linux")
    return Manifest(
        1, "id", "test", "run", host, {}, now, now, Outcome.COMPLETE, services=(record,)
    )


def test_dynamic_security_of_a_newer_line_is_told_under_the_older(make: Make) -> None:
    old, new = make(DynamicKind, "mosquitto"), make(DynamicKind, NEWER)
    kind(old).passwords = kind(new).passwords
    place = ways(old).file
    shutil.copy2(new.ground.folder / place, old.ground.folder / place)
    old.stack.create()
    reached(old)
    assert kind(old)._login("iotops", kind(old).passwords["iotops"]) == 135
    assert codes(old) == [("mosquitto.downgrade", Severity.ERROR)]
    assert codes(new, old.ground.folder) == []
    with pytest.raises(LoadError, match="refuses these users"):
        old.service().load(old.ground.folder, blank(old), None)


# --- messages kept by the SQLite plugin -----------------------------------------------------------


def reaches(sent: list[int], goal: int) -> bool:
    return sent[0] > goal


def whole(database: Path) -> int:
    """Walk a copied database; a retained topic without its message is a torn copy."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as link:
        assert link.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        lost = "SELECT count(*) FROM retains WHERE store_id NOT IN (SELECT store_id FROM base_msgs)"
        assert link.execute(lost).fetchone() == (0,)
        found: int = link.execute("SELECT count(*) FROM retains").fetchone()[0]
    return found


def test_a_capture_of_sqlite_is_whole_while_the_broker_writes(sqlite: Bench) -> None:
    configure(sqlite, "plugin_opt_flush_period 1\n", "plugin_opt_flush_period 0\n")
    sqlite.up()
    stop, sent = threading.Event(), [0]

    def publish() -> None:
        with kind(sqlite)._client("sensor") as client:
            while not stop.is_set():
                client.publish(f"busy/{sent[0]}", secrets.token_bytes(2000), retain=True)
                sent[0] += 1

    thread = threading.Thread(target=publish)
    thread.start()
    found = []
    record = None
    try:
        until(lambda: sent[0] > 20)
        for _ in range(8):
            goal = sent[0] + 20
            record = sqlite.capture(record)
            database = sqlite.staged / "data" / "mosquitto.sqlite3"
            assert record.counts["retained"] == whole(database) <= sent[0] + 1
            assert {one.name for one in database.parent.iterdir()} == {database.name}
            found.append(record.counts["retained"])
            until(partial(reaches, sent, goal))
    finally:
        stop.set()
        thread.join()
    assert found == sorted(found) and found[-1] > found[0], "the broker went on writing"


def test_load_takes_sqlite_whole_and_without_old_side_files(sqlite: Bench) -> None:
    sqlite.up()
    kind(sqlite).seed()
    record = sqlite.capture()
    assert record.counts == {"retained": RETAINED, "users": 2}
    assert list(sqlite.service().verify(record)) == []
    tree = extracted(sqlite)
    database = tree / "data" / "mosquitto.sqlite3"
    for ending in ("-wal", "-shm"):
        (tree / "data" / f"mosquitto.sqlite3{ending}").write_bytes(b"of another time")
    os.chown(database, 0, 0)
    assert sqlite.service().load(tree, record, None) == ()
    assert {one.name for one in (tree / "data").iterdir()} == {database.name}
    assert (database.stat().st_uid, database.stat().st_gid) == (1883, 1883)
    good = database.read_bytes()
    # The last one is still counted: only a look at every page finds it.
    hole = good[: len(good) // 2] + b"\xff" * 9000 + good[len(good) // 2 + 9000 :]
    for broken in (good[:5000], b"", b"x" * 4096, hole):
        database.write_bytes(broken)
        with pytest.raises(LoadError, match="the captured database"):
            sqlite.service().load(tree, record, None)


def test_a_lost_message_and_a_lost_database_of_sqlite_are_found(sqlite: Bench) -> None:
    sqlite.up()
    kind(sqlite).seed()
    record = sqlite.capture()
    with kind(sqlite)._client("sensor") as client:
        client.publish("home/room 1/température", b"", retain=True)
    judge = kind(sqlite)
    assert isinstance(judge, SqliteKind)
    until(lambda: judge.stored("retains") == RETAINED - 1)
    found = [one.message for one in sqlite.service().verify(record)]
    assert found == [f"retained: {RETAINED} recorded, {RETAINED - 1} found"]
    sqlite.stop()
    for path in (sqlite.ground.folder / "data").iterdir():
        path.unlink()
    with pytest.raises(CaptureError, match=r"mosquitto\.sqlite3, which is not there"):
        sqlite.capture(record)


def test_sqlite_is_taken_although_an_old_database_of_the_broker_lies_there(make: Make) -> None:
    """A hub that went over to the plugin; the old file is one among others."""
    bench = make(SqliteKind, NEWER)
    old = bench.ground.folder / "data" / "mosquitto.db"
    old.write_bytes(b"of before")
    bench.up()
    kind(bench).seed()
    assert bench.capture().counts["retained"] == RETAINED
    bench.stop()
    record = bench.capture()
    assert record.counts["retained"] == RETAINED
    assert any("does not run" in warning for warning in record.warnings)
    assert (bench.staged / "data" / "mosquitto.db").read_bytes() == b"of before"
    assert bench.service().load(extracted(bench), record, None) == ()


# -- a candidate -----------------------------------------------------------------------------------


def tried(bench: Bench) -> list[tuple[str, str]]:
    return [(one.code, one.message) for one in bench.service().validate(bench.ground.hub)]


def test_a_candidate_is_tried_beside_the_running_broker(bench: Bench) -> None:
    bench.up()
    kind(bench).seed()
    bench.service().counts()  # has the broker save
    database = bench.ground.folder / "data" / "mosquitto.db"
    before = database.read_bytes(), database.stat().st_ino
    assert tried(bench) == []
    configure(bench, "listener 1883\n", "listener 1883\nhunter2 x\n")
    ((code, message),) = tried(bench)
    assert code == "mosquitto.conf" and "mosquitto.conf:2" in message and "hunter2" not in message
    configure(bench, "hunter2 x\n", "")
    configure(bench, "/mosquitto/secrets/passwd", "/mosquitto/secrets/nope")
    ((code, message),) = tried(bench)  # it says why in the file that is its log
    assert code == "mosquitto.conf" and "/mosquitto/secrets/nope" in message
    assert (database.read_bytes(), database.stat().st_ino) == before
    assert bench.service().ready().ok


def test_a_candidate_that_forgets_the_users(bench: Bench) -> None:
    configure(bench, "password_file /mosquitto/secrets/passwd\n", "")
    assert [code for code, _ in tried(bench)] == ["mosquitto.login"]
    configure(bench, "allow_anonymous false", "allow_anonymous true")
    assert "mosquitto.open" in [code for code, _ in tried(bench)]


def test_a_candidate_with_dynamic_security(dynamic: Bench) -> None:
    file = next(dynamic.ground.folder.rglob("dynamic-security.json"))
    before = file.read_bytes()
    assert tried(dynamic) == []
    assert file.read_bytes() == before
