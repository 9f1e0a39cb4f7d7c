"""Node-RED beyond the shared suite: what it refuses, what it names, what comes back.

Every test runs a real Node-RED of every line in a container of its own project; one that is seeded
and not changed is shared by the tests that only look.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iotops.errors import CaptureError, LoadError, Refused, ServerError
from iotops.flowdoc import EMPTY_REVISION
from iotops.model import Captured, Mode, ServiceRecord, Severity
from tests.conftest import need
from tests.contract.kind_nodered import Answers
from tests.support import nodered
from tests.support.disk import chown_tree
from tests.support.lab import lab, lines_of
from tests.support.nodered import PALETTE, until
from tests.support.noderedbench import Bench

pytestmark = pytest.mark.contract


NEWER = "nodered-5.0"
LINES = ("nodered", *lines_of("nodered"))


@pytest.fixture(scope="module", params=LINES)
def line(request: pytest.FixtureRequest) -> str:
    """The image in the lab; each test runs on every line."""
    name: str = request.param
    for part in ("docker", "compose", "root", f"image {name}"):
        need(part)
    return name


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="iotops-nodered-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def make(base: Path, line: str, **environment: str) -> Bench:
    place = Path(tempfile.mkdtemp(dir=base))
    place.chmod(0o755)
    return Bench(place, lab().images[line].reference, **environment)


@dataclass
class Seeded:
    """A Node-RED with content that no test changes, and one capture of it."""

    bench: Bench
    answers: Answers
    staged: Path
    record: ServiceRecord


@pytest.fixture(scope="module")
def seeded(base: Path, line: str) -> Iterator[Seeded]:
    bench = make(base, line)
    try:
        bench.up()
        answers = bench.kind.seed()
        staging = bench.staging()
        captured = bench.service().capture(staging, None)
        yield Seeded(bench, answers, staging.folder, recorded(captured))
    finally:
        bench.down()


@pytest.fixture
def fresh(base: Path, line: str) -> Iterator[Bench]:
    """A Node-RED for one test alone, not started."""
    bench = make(base, line)
    yield bench
    bench.down()


def recorded(captured: Captured) -> ServiceRecord:
    return ServiceRecord(
        "nodered",
        "nodered",
        "nodered",
        "nodered",
        Mode.HOT,
        counts=captured.counts,
        facts=captured.facts,
        version=captured.version,
    )


def extracted(seeded: Seeded, name: str) -> Path:
    """A copy of the capture, as an extraction would put it beside the live folder."""
    folder = seeded.bench.base / "data" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeded.staged, folder, symlinks=True)
    chown_tree(folder, (1000, 1000))
    return folder


# --- asking ---------------------------------------------------------------------------------------


def test_a_whole_server_is_ready_and_counted(seeded: Seeded, line: str) -> None:
    service = seeded.bench.service()
    facts = service.probe()
    assert facts.reachable and facts.version.startswith("5.0." if line == NEWER else "4.1.")
    assert service.ready().ok
    wanted = {"flow_nodes": 14, "tabs": 2, "credential_nodes": 2, "palette_modules": 1}
    assert service.counts() == seeded.record.counts == wanted
    assert seeded.record.facts["rev"] == seeded.answers.revision
    assert list(service.preflight()) == list(service.verify(seeded.record)) == []


def test_a_refused_token_is_named_and_never_shown(seeded: Seeded) -> None:
    service = seeded.bench.service(NODERED_TOKEN="wrong-and-secret")
    state = service.ready()
    assert not state.ok and state.final and "refuses our token" in state.reason
    (finding,) = service.preflight()
    assert finding.severity is Severity.ERROR and "does not accept the token" in finding.message
    with pytest.raises(Refused, match="does not accept the token") as caught:
        service.capture(seeded.bench.staging("refused"), None)
    assert "wrong-and-secret" not in f"{state}{finding}{caught.value}{caught.value.hint}"


def test_a_missing_token_is_named(seeded: Seeded) -> None:
    service = seeded.bench.service(NODERED_TOKEN="")
    state = service.ready()
    assert not state.ok and state.final and "NODERED_TOKEN" in state.reason
    (finding,) = service.preflight()
    assert finding.code == "nodered.token" and finding.severity is Severity.ERROR


def test_a_missing_right_is_told_from_a_wrong_token(seeded: Seeded) -> None:
    narrow = seeded.bench.kind.env()["NARROW_TOKEN"]
    service = seeded.bench.service(NODERED_TOKEN=narrow)
    with pytest.raises(Refused, match=r"lacks the scope nodes\.read"):
        service.palette()
    assert "status.read" in service.ready().reason
    assert service.version() == ""
    assert [finding.severity for finding in service.preflight()] == [Severity.WARNING]
    staging = seeded.bench.staging("narrow")
    captured = service.capture(staging, None)
    assert "palette_modules" not in captured.counts
    assert any("nodes.read" in warning for warning in staging.warnings)


def test_an_open_server_is_known_by_its_login_scheme(fresh: Bench, line: str) -> None:
    """Not by `/auth/token`, which 5.x has in every case, nor by what it says to browsers."""
    settings = fresh.ground.hub / "nodered" / "settings.js"
    settings.write_text(settings.read_text().replace("adminAuth:", "notAdminAuth:"))
    fresh.up()
    with pytest.raises(urllib.error.HTTPError) as caught:
        fresh.client.call("POST", "/auth/token", {"client_id": "node-red-admin"})
    assert caught.value.code == (400 if line == NEWER else 404)
    with urllib.request.urlopen(fresh.kind.url + "/flows", timeout=30) as answer:
        allowed = answer.headers["Access-Control-Allow-Origin"]
    assert allowed == (None if line == NEWER else "*")
    service = fresh.service(NODERED_TOKEN="")
    assert service.ready().ok and service.probe().version == fresh.version()
    assert [finding.code for finding in service.preflight()] == ["nodered.open"]
    assert service.flows().revision == EMPTY_REVISION


def test_an_address_that_answers_html_is_named(seeded: Seeded) -> None:
    service = seeded.bench.service(url=seeded.bench.kind.url + "/no/admin/here")
    assert "an HTML page" in service.probe().detail
    assert "an HTML page" in service.ready().reason
    with pytest.raises(ServerError, match="an HTML page"):
        service.flows()


def test_a_missing_palette_is_named_although_the_health_check_is_green(fresh: Bench) -> None:
    fresh.up()
    fresh.kind.seed()
    fresh.stop()
    shutil.rmtree(fresh.folder / "node_modules")
    fresh.start()
    until(lambda: "stamp" in fresh.service().ready().reason, "the missing type")
    state = fresh.service().ready()
    assert not state.ok and state.final and "node types are missing (stamp)" in state.reason
    assert fresh.client.up()


def test_a_wrong_key_and_safe_mode_are_named(fresh: Bench) -> None:
    fresh.up()
    fresh.kind.seed()
    fresh.write({"NODERED_CREDENTIAL_SECRET": "another one"})
    fresh.up()
    until(lambda: fresh.service().ready().final, "the state")
    assert "credentials cannot be decrypted" in fresh.service().ready().reason
    fresh.write({"NODE_RED_ENABLE_SAFE_MODE": "true"})
    fresh.up()
    until(lambda: fresh.service().ready().final, "the state")
    assert "safe mode" in fresh.service().ready().reason


# --- capture --------------------------------------------------------------------------------------


def test_everything_but_the_named_excludes_is_captured(seeded: Seeded) -> None:
    live, staged = seeded.bench.folder, seeded.staged
    out = {path.relative_to(live).as_posix() for path in live.rglob("*") if path.is_file()} - {
        path.relative_to(staged).as_posix() for path in staged.rglob("*")
    }
    assert {path.split("/")[0] for path in out} <= {"node_modules", ".config.nodes.json.backup"}
    assert (staged / "context" / "heating" / "flow.json").is_file()


def test_a_second_capture_writes_no_file_again(seeded: Seeded) -> None:
    first = seeded.bench.staging("twice")
    seeded.bench.service().capture(first, None)
    before = {artifact.path: artifact for artifact in first.finish().artifacts}
    second = seeded.bench.staging("twice")
    seeded.bench.service().capture(second, seeded.record)
    assert {artifact.path: artifact for artifact in second.finish().artifacts} == before


def test_a_key_that_does_not_open_the_credentials_fails_the_capture(seeded: Seeded) -> None:
    service = seeded.bench.service(NODERED_CREDENTIAL_SECRET="wrong-and-secret")
    with pytest.raises(CaptureError, match="cannot be decrypted") as caught:
        service.capture(seeded.bench.staging("key"), None)
    assert "wrong-and-secret" not in caught.value.message + caught.value.hint
    assert "deploy" in caught.value.hint


def test_a_key_that_nobody_knows_is_a_warning(seeded: Seeded) -> None:
    staging = seeded.bench.staging("unknown")
    service = seeded.bench.service(NODERED_CREDENTIAL_SECRET="")
    captured = service.capture(staging, None)
    assert "credential_nodes" not in captured.counts
    assert any("not proven" in warning for warning in staging.warnings)


def opened(data: bytes, secret: str) -> dict[str, object]:
    """The test's own way to open credentials."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    sealed = json.loads(data)["$"]
    cipher = Cipher(
        algorithms.AES(hashlib.sha256(secret.encode()).digest()),
        modes.CTR(bytes.fromhex(sealed[:32])),
    )
    plain: dict[str, object] = json.loads(
        cipher.decryptor().update(base64.b64decode(sealed[32:])).decode()
    )
    return plain


def test_flows_and_credentials_fit_together_while_somebody_deploys(fresh: Bench) -> None:
    fresh.up()
    client, stop = fresh.client, threading.Event()

    def deploy() -> None:
        number = 0
        while not stop.wait(0.3):
            number += 1
            client.deploy(
                [
                    {
                        **{"id": f"b{number}-{k}", "type": "mqtt-broker", "name": "b"},
                        **{"broker": "127.0.0.1", "port": "1", "autoConnect": False},
                        "credentials": {"user": "u", "password": f"{number}"},
                    }
                    for k in range(40)
                ]
            )

    client.deploy(nodered.flows("1", "2"))
    thread = threading.Thread(target=deploy)
    thread.start()
    revisions = set()
    try:
        for attempt in range(12):
            staging = fresh.staging(f"busy{attempt}")
            captured = fresh.service().capture(staging, None)
            flows = (staging.folder / "flows.json").read_bytes()
            compact = json.dumps(json.loads(flows), separators=(",", ":"), ensure_ascii=False)
            if "1e-06" not in compact:  # Python writes this number of the seed in its own way
                assert hashlib.sha256(compact.encode()).hexdigest() == captured.facts["rev"]
            held = opened(
                (staging.folder / "flows_cred.json").read_bytes(),
                fresh.kind.env()["NODERED_CREDENTIAL_SECRET"],
            )
            wanted = {n["id"] for n in json.loads(flows) if n["type"] == "mqtt-broker"}
            assert wanted <= held.keys() <= {n["id"] for n in json.loads(flows)}
            revisions.add(captured.facts["rev"])
    finally:
        stop.set()
        thread.join()
    assert len(revisions) > 1


def test_a_deploy_that_has_written_only_the_credentials_is_waited_for(fresh: Bench) -> None:
    fresh.up()
    before = fresh.client.deploy(nodered.flows("1", "2"))
    flows, credentials = fresh.folder / "flows.json", fresh.folder / "flows_cred.json"
    until(flows.is_file, "the flow file")
    os.utime(flows, ns=(0, time.time_ns() - 10**9))
    os.utime(credentials)
    finish = threading.Timer(1.0, fresh.client.deploy, [nodered.flows("3", "4")[:-1]])
    finish.start()
    captured = fresh.service().capture(fresh.staging(), None)
    finish.join()
    assert captured.facts["rev"] == fresh.client.revision() != before


def test_a_lost_or_broken_flow_file_is_no_good_backup(fresh: Bench) -> None:
    fresh.up()
    empty = fresh.service().capture(fresh.staging("empty"), None)
    assert empty.facts["rev"] == EMPTY_REVISION and empty.counts["flow_nodes"] == 0
    fresh.kind.seed()
    good = recorded(fresh.service().capture(fresh.staging(), None))
    fresh.stop()
    flows = fresh.folder / "flows.json"
    flows.write_bytes(flows.read_bytes()[:100])
    fresh.start()
    assert fresh.client.revision() == nodered.EMPTY
    with pytest.raises(CaptureError, match=r"empty flow set because flows\.json cannot be read"):
        fresh.service().capture(fresh.staging("broken"), None)
    fresh.stop()
    flows.unlink()
    fresh.start()
    with pytest.raises(CaptureError, match="its flow file is missing") as caught:
        fresh.service().capture(fresh.staging("lost"), good)
    assert "iotops restore" in caught.value.hint


def test_a_server_that_does_not_run_is_captured_from_its_files(fresh: Bench) -> None:
    fresh.up()
    answers = fresh.kind.seed()
    fresh.stop()
    service = fresh.service()
    assert not service.probe().reachable and not service.ready().ok
    staging = fresh.staging()
    captured = service.capture(staging, None)
    assert captured.facts["rev"] == answers.revision
    assert captured.counts["credential_nodes"] == 2
    assert any("does not run" in warning for warning in staging.warnings)


def test_a_flow_file_in_a_folder_takes_its_credentials_along(base: Path, line: str) -> None:
    """4.x keeps the credentials in the user directory, 5.x beside the flows."""
    bench = make(base, line, FLOWS="house/flows.json")
    try:
        bench.up()
        bench.client.deploy(nodered.flows("1", "2"))
        until(lambda: (bench.folder / "house" / "flows.json").is_file(), "the flow file")
        where = "house/flows_cred.json" if line == NEWER else "flows_cred.json"
        until(lambda: (bench.folder / where).is_file(), "the credentials")
        service = bench.service()
        staging = bench.staging()
        record = recorded(service.capture(staging, None))
        assert record.facts["flow_file"] == "house/flows.json"
        assert record.facts["rev"] == bench.client.revision()
        assert record.counts["credential_nodes"] == service.counts()["credential_nodes"] == 2
        secret = bench.kind.env()["NODERED_CREDENTIAL_SECRET"]
        assert opened((staging.folder / where).read_bytes(), secret).keys() == {"heating", "broker"}
        assert service.load(staging.folder, record, None) == ()
        (staging.folder / where).write_text('{"$": "' + "0" * 32 + 'AAAA"}')
        with pytest.raises(LoadError, match="cannot be decrypted"):
            service.load(staging.folder, record, None)
        bench.stop()
        still = bench.service().capture(bench.staging("still"), record)
        assert still.facts["rev"] == record.facts["rev"] and still.counts["credential_nodes"] == 2
    finally:
        bench.down()


# --- load -----------------------------------------------------------------------------------------


def test_the_palette_is_rebuilt_by_npm_or_taken_over(seeded: Seeded) -> None:
    bench, service = seeded.bench, seeded.bench.service()
    bench.kind.registry.asked.clear()
    folder = extracted(seeded, "rebuilt")
    (note,) = service.load(folder, seeded.record, None)
    assert "npm ci" in note and "install scripts" in note
    assert any(path.endswith(".tgz") for path in bench.kind.registry.asked)
    module = folder / "node_modules" / PALETTE
    assert (module / "stamp.js").is_file()
    assert (module.stat().st_uid, module.stat().st_gid) == (1000, 1000)
    assert not (folder / ".npm").exists()

    bench.kind.registry.asked.clear()
    folder = extracted(seeded, "taken")
    (note,) = service.load(folder, seeded.record, bench.folder)
    assert "taken over" in note and bench.kind.registry.asked == []
    assert (folder / "node_modules" / PALETTE / "stamp.js").is_file()

    lock = json.loads((bench.folder / "package-lock.json").read_text())
    folder = extracted(seeded, "other")
    lock["packages"][""]["name"] = "another lock"
    (folder / "package-lock.json").write_text(json.dumps(lock))
    (note,) = service.load(folder, seeded.record, bench.folder)
    assert "npm ci" in note

    folder = extracted(seeded, "lockless")
    (folder / "package-lock.json").unlink()
    (note,) = service.load(folder, seeded.record, bench.folder)
    assert "npm install" in note


def test_a_palette_for_another_processor_is_never_taken_over(seeded: Seeded) -> None:
    """A disk moved to another machine: the lock is equal, and the modules do not load there."""
    bench, service = seeded.bench, seeded.bench.service()
    module = bench.folder / "node_modules" / PALETTE / "build" / "Release" / "native.node"
    module.parent.mkdir(parents=True)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little")
    try:
        module.write_bytes(head + (243).to_bytes(2, "little") + bytes(40))
        folder = extracted(seeded, "foreign")
        told, rebuilt = service.load(folder, seeded.record, bench.folder)
    finally:
        shutil.rmtree(module.parents[1])
    assert "for another processor than" in told and "native.node" in told
    assert "npm ci" in rebuilt
    assert not (folder / "node_modules" / PALETTE / "build").exists()


def test_a_registry_that_fails_stops_the_load_before_anything_stops(seeded: Seeded) -> None:
    folder = extracted(seeded, "offline")
    seeded.bench.kind.registry.down = True
    try:
        with pytest.raises(LoadError, match=r"palette of nodered failed.*503") as caught:
            seeded.bench.service().load(folder, seeded.record, None)
    finally:
        seeded.bench.kind.registry.down = False
    assert "npm_registry" in caught.value.hint
    assert not (folder / "node_modules").exists()
    assert seeded.bench.service().ready().ok


def test_a_wrong_key_stops_the_load(seeded: Seeded) -> None:
    folder = extracted(seeded, "wrongkey")
    service = seeded.bench.service(NODERED_CREDENTIAL_SECRET="another")
    with pytest.raises(LoadError, match="cannot be decrypted"):
        service.load(folder, seeded.record, seeded.bench.folder)


def test_a_stale_generated_key_is_told_before_the_start(seeded: Seeded) -> None:
    folder = extracted(seeded, "stale")
    runtime = folder / ".config.runtime.json"
    runtime.write_text(json.dumps({**json.loads(runtime.read_text()), "_credentialSecret": "x"}))
    notes = seeded.bench.service().load(folder, seeded.record, seeded.bench.folder)
    assert any("will try the generated key first" in note for note in notes)


def test_a_folder_with_a_generated_key_needs_no_other(base: Path, line: str) -> None:
    bench = make(base, line)
    # Without own secret Node-RED makes one and keeps it in its folder.
    settings = bench.ground.hub / "nodered" / "settings.js"
    settings.write_text(
        settings.read_text().replace("    credentialSecret: process.env.NODERED_CREDENTIAL_", "//")
    )
    try:
        bench.up()
        bench.client.deploy(nodered.flows("1", "2"))
        until(lambda: (bench.folder / "flows.json").is_file(), "the flow file")
        service = bench.service(NODERED_CREDENTIAL_SECRET="")
        captured = service.capture(bench.staging(), None)
        assert captured.facts["key"] == "the generated key"
        assert captured.counts["credential_nodes"] == 2
        assert "nodered.key" in {finding.code for finding in service.preflight()}
    finally:
        bench.down()


def test_a_candidates_settings_are_loaded_by_the_images_node(fresh: Bench) -> None:
    settings = fresh.ground.hub / "nodered" / "settings.js"
    good = settings.read_text()

    def tried(text: str) -> list[tuple[str, str]]:
        settings.write_text(text)
        return [(one.code, one.message) for one in fresh.service().validate(fresh.ground.hub)]

    assert tried(good) == []
    ((code, message),) = tried(good + 'module.exports.x = "a"hunter2";\n')
    assert code == "nodered.settings" and "not JavaScript" in message and "hunter2" not in message
    ((code, message),) = tried(good + 'require("no-such-module");\n')
    assert code == "nodered.settings" and "is not there" in message
    ((code, message),) = tried(good + "for (;;) { break }; hunter2();\n")
    assert code == "nodered.settings" and "not defined" in message and "hunter2" not in message
    ((code, _),) = tried(good + "delete module.exports.adminAuth;\n")
    assert code == "nodered.open"
    ((code, message),) = tried(good + 'require("fs").writeFileSync("/data/x", "");\n')
    assert code == "nodered.settings" and "read-only" in message
    assert not (fresh.ground.folder / "x").exists()
