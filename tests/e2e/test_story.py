"""Backup, loss, restore and undo on a whole hub, judged by independent clients."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iotops.demo import judges
from tests.e2e.test_faults import (
    edited,
    foreign,
    ids,
    newest_complete,
    refused,
    restic,
    started_at,
)
from tests.support.clients import (
    backed_up,
    deploy,
    flows_revision,
    points,
    publish,
    retained,
    write_point,
)
from tests.support.fullhub import seeded
from tests.support.hubs import HubUnderTest, docker
from tests.support.lab import lab

pytestmark = pytest.mark.e2e


# -- the case that matters ------------------------------------------------------------------------


def test_a_lost_disk_comes_back(hub: HubUnderTest) -> None:
    """Unmounted, formatted, mounted: nothing but the repository is left of the data.

    The answers from before are held by clients that share no code with the captures: every series
    and its sums, the deleted one, tokens, logins, retained messages, the revision with its
    credentials, dashboards.
    """
    word = secrets.token_hex(8)
    publish(hub, "story/retained", word)
    write_point(hub, 1)
    write_point_count = points(hub)
    keys = seeded(hub)
    (hub.root / "notes").mkdir(exist_ok=True)
    (hub.root / "notes" / "wiring.txt").write_text(word)
    before = judges.look(keys)
    assert judges.broken(before) == []
    credentials = before["nodered"]["credentials"]
    assert isinstance(credentials, dict) and all(credentials.values())
    assert before["influxdb"]["deleted series"] == "0 points"
    made = backed_up(hub)
    for name in sorted(hub.running()):
        docker("kill", hub.container(name))
    hub.disk.lose()
    assert sorted(path.name for path in hub.root.iterdir()) == ["lost+found"]
    without = hub.iotops("restore", "latest", "--yes")
    assert without.code == 1 and "--claim-disk" in without.err
    assert sorted(path.name for path in hub.root.iterdir()) == ["lost+found"]
    done = hub.iotops("restore", "latest", "--claim-disk", "--yes", "--json")
    assert done.code == 0, done.err + done.out
    assert done.result()["snapshot"] == made["snapshot"]
    after = judges.look(keys)
    for service, answers in before.items():
        for question, answer in answers.items():
            assert after[service][question] == answer, f"{service}: {question}"
    assert retained(hub, "story/retained") == word
    assert points(hub) == write_point_count
    assert (hub.root / "notes" / "wiring.txt").read_text() == word
    assert (hub.root / "mqtt" / "secrets" / "passwd").stat().st_uid == 1883
    assert hub.iotops("up").code == 0
    deploy(hub, "Heating")  # other tests expect flows without credentials
    assert backed_up(hub, "--accept-shrink")["outcome"] == "complete"


def test_a_token_that_was_rotated_since_does_not_spoil_a_restore(hub: HubUnderTest) -> None:
    """Node-RED's token is configuration of its container, InfluxDB's is in its data."""
    backed_up(hub)
    env = hub.folder / ".env"
    before, old = env.read_text(), hub.env_value("NODERED_TOKEN")
    env.write_text(before.replace(old, secrets.token_hex(24)))
    try:
        assert hub.iotops("up").code == 0
        done = hub.iotops("restore", "latest", "--service", "nodered", "--yes", "--json")
        assert done.code == 0, done.err + done.out
        assert ".env differs from the snapshot's in NODERED_TOKEN" in done.out
        assert old not in done.out + done.err
    finally:
        env.write_text(before)
        assert hub.iotops("up").code == 0
        assert hub.iotops("undo", "--discard", "--yes").code == 0


def test_one_service_is_restored_and_undone(hub: HubUnderTest) -> None:
    publish(hub, "story/state", "old")
    revision = flows_revision(hub)
    backed_up(hub)
    publish(hub, "story/state", "new")
    others = {name: at for name, at in started_at(hub).items() if name != "mosquitto"}
    done = hub.iotops("restore", "latest", "--service", "mosquitto", "--yes")
    assert done.code == 0, done.err
    assert retained(hub, "story/state") == "old"
    status = hub.iotops("status", "--json").result()
    old_data = status["old_data"]
    assert isinstance(old_data, int) and old_data > 0
    undone = hub.iotops("undo", "--yes")
    assert undone.code == 0, undone.err
    assert retained(hub, "story/state") == "new"
    assert {n: at for n, at in started_at(hub).items() if n != "mosquitto"} == others
    assert flows_revision(hub) == revision
    again = hub.iotops("undo", "--yes")
    assert again.code == 1 and "no restore to undo" in again.err
    assert hub.iotops("undo", "--discard", "--yes").code == 0
    assert not any((hub.root / ".iotops" / "replaced").iterdir())


def test_at_picks_the_newest_before(hub: HubUnderTest) -> None:
    publish(hub, "story/at", "first")
    first = backed_up(hub)
    time.sleep(1.1)  # restic's times have to differ by more than the second that --at is told in
    between = datetime.now(UTC).isoformat(timespec="seconds")
    time.sleep(1.1)
    publish(hub, "story/at", "second")
    second = backed_up(hub)
    plan = hub.iotops("restore", "latest", "--at", between, "--dry-run", "--json").result()
    assert plan["snapshot"] == first["snapshot"] != second["snapshot"]


def test_dry_run_shows_the_plan_and_changes_nothing(hub: HubUnderTest) -> None:
    before = started_at(hub)
    runs = sorted((hub.root / ".iotops" / "journal").iterdir())
    done = hub.iotops("restore", "latest", "--dry-run", "--json")
    assert done.code == 0, done.err
    steps = done.result()["steps"]
    assert isinstance(steps, list)
    kinds = [step["kind"] for step in steps]
    assert kinds[:2] == ["extract", "check"] and "swap" in kinds and kinds.count("verify") == 4
    assert started_at(hub) == before
    assert sorted((hub.root / ".iotops" / "journal").iterdir()) == runs


def test_without_a_terminal_and_yes_nothing_is_restored(hub: HubUnderTest) -> None:
    before = started_at(hub)
    done = hub.iotops("restore", "latest")
    assert done.code == 2 and "--yes" in done.err
    assert started_at(hub) == before


def test_into_only_extracts(hub: HubUnderTest, tmp_path: Path) -> None:
    before = started_at(hub)
    target = tmp_path / "out"
    done = hub.iotops("restore", "latest", "--into", str(target), "--json")
    assert done.code == 0, done.err + done.out
    assert (target / "influxdb" / "influxd.bolt").is_file()
    assert (target / "hub" / ".env").read_bytes() == (hub.folder / ".env").read_bytes()
    assert (target / "manifest.json").is_file()
    one = tmp_path / "one"
    assert hub.iotops("restore", "latest", "--into", str(one), "--service", "grafana").code == 0
    assert {path.name for path in one.iterdir()} == {"grafana", "manifest.json"}
    again = hub.iotops("restore", "latest", "--into", str(one))
    assert again.code == 2 and "not empty" in again.err
    assert started_at(hub) == before


# -- what is not believed -------------------------------------------------------------------------


@contextmanager
def tampered(hub: HubUnderTest, tmp_path: Path) -> Iterator[Path]:
    """Extract the newest snapshot with the bare restic, to be changed and saved again."""
    restic(hub, "restore", newest_complete(hub), "--target", str(tmp_path / "t"))
    yield tmp_path / "t"


def saved_again(hub: HubUnderTest, folder: Path) -> str:
    """Save a changed snapshot under a host name of its own, so that `latest` never means it."""
    return foreign(hub, folder)


def test_a_changed_file_is_found_before_anything_stops(hub: HubUnderTest, tmp_path: Path) -> None:
    with tampered(hub, tmp_path) as folder:
        (folder / "mqtt" / "secrets" / "passwd").write_text("intruder:$7$101$YWJj$YWJj\n")
        made = saved_again(hub, folder)
    refused(hub, 1, "restore", made, "--yes", says="secrets/passwd", hint="iotops snapshots")
    assert not any((hub.root / ".iotops" / "tmp").iterdir())


def test_a_wrong_owner_is_found_before_anything_stops(hub: HubUnderTest, tmp_path: Path) -> None:
    with tampered(hub, tmp_path) as folder:
        os.chown(folder / "influxdb" / "influxd.bolt", 0, 0)
        made = saved_again(hub, folder)
    refused(hub, 1, "restore", made, "--yes", says="owner 0:0", hint="iotops snapshots")


def test_a_file_too_many_is_found_before_anything_stops(hub: HubUnderTest, tmp_path: Path) -> None:
    with tampered(hub, tmp_path) as folder:
        (folder / "nodered" / "planted.js").write_text("1")
        made = saved_again(hub, folder)
    refused(hub, 1, "restore", made, "--yes", says="planted.js", hint="iotops snapshots")


def test_another_image_stops_the_plan(hub: HubUnderTest, tmp_path: Path) -> None:
    with tampered(hub, tmp_path) as folder:
        manifest = json.loads((folder / "manifest.json").read_text())
        for service in manifest["services"]:
            if service["name"] == "mosquitto":
                service["image"]["id"] = "sha256:" + "0" * 64
                service["image"]["digests"] = []
        (folder / "manifest.json").write_text(json.dumps(manifest))
        made = saved_again(hub, folder)
    refused(hub, 1, "restore", made, "--yes", says="another image", hint="--image current")
    plan = hub.iotops("restore", made, "--image", "current", "--dry-run")
    assert plan.code == 0, plan.err


def test_without_the_npm_registry_the_hint_brings_the_others_back(
    hub: HubUnderTest, tmp_path: Path
) -> None:
    with tampered(hub, tmp_path) as folder:
        package = folder / "nodered" / "package.json"
        state = package.stat()
        document = json.loads(package.read_text())
        document["dependencies"] = {"node-red-contrib-none": "1.0.0"}
        package.write_text(json.dumps(document))
        os.utime(package, ns=(state.st_atime_ns, state.st_mtime_ns))
        manifest = json.loads((folder / "manifest.json").read_text())
        (service,) = [one for one in manifest["services"] if one["name"] == "nodered"]
        (entry,) = [one for one in service["artifacts"] if one["path"] == "nodered/package.json"]
        entry["size"] = package.stat().st_size
        entry["sha256"] = hashlib.sha256(package.read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        made = saved_again(hub, folder)
    nowhere = '[services.nodered]\nnpm_registry = "http://127.0.0.1:9"\n'
    with edited(hub.folder / "iotops.toml", "[services.nodered]\n", nowhere):
        others = f"the others meanwhile: iotops restore {made[:8]} --service mosquitto"
        refused(hub, 1, "restore", made, "--yes", says="palette", hint=others)


# -- coverage -------------------------------------------------------------------------------------


def test_a_foreign_container_is_copied_cold_and_started_again(hub: HubUnderTest) -> None:
    """A fifth container of the Compose file, that no setting names."""
    override = hub.folder / "docker-compose.override.yaml"
    before = override.read_text() if override.exists() else "services:\n"
    folder = hub.root / "extra"
    folder.mkdir()
    (folder / "state.bin").write_bytes(os.urandom(2000))
    image = lab().images["mosquitto"].reference
    override.write_text(
        before
        + f"""
  extra:
    image: {image}
    entrypoint: ["sleep", "infinity"]
    init: true
    volumes:
      - {{type: bind, source: "{folder}", target: /state, bind: {{create_host_path: false}}}}
"""
    )
    try:
        up = hub.iotops("up")
        assert up.code == 0, up.err
        first = started_at(hub)
        result = backed_up(hub)
        services = result["services"]
        assert isinstance(services, dict)
        assert services["extra"]["stopped_seconds"] > 0
        assert {name: value["stopped_seconds"] for name, value in services.items()} == {
            **dict.fromkeys(("mosquitto", "nodered", "influxdb", "grafana"), 0.0),
            "extra": services["extra"]["stopped_seconds"],
        }
        now = started_at(hub)
        assert now.pop("extra") != first.pop("extra") and now == first
        docker("stop", hub.container("extra"))  # by its owner
        backed_up(hub)
        assert "extra" not in hub.running()
        listing = restic(hub, "ls", ids(hub)[-1])
        assert "/extra/state.bin" in listing
    finally:
        docker("rm", "-f", hub.container("extra"))
        override.write_text(before)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_an_emptied_folder_does_not_become_the_newest_good_backup(hub: HubUnderTest) -> None:
    folder = hub.root / "nodered" / "lib"
    folder.mkdir(exist_ok=True)
    for number in range(60):
        (folder / f"entry{number}.js").write_text(f"// {number}")
    backed_up(hub)
    for number in range(60):
        (folder / f"entry{number}.js").unlink()
    done = hub.iotops("backup", "--json")
    assert done.code == 3, done.err
    missing = done.result()["missing"]
    assert isinstance(missing, dict) and "fell from" in missing["nodered"]
    again = hub.iotops("backup", "--json")
    assert again.code == 3  # not forgiven by repeating it
    assert backed_up(hub, "--accept-shrink")["outcome"] == "complete"
    assert hub.iotops("backup").code == 0


def test_snapshots_are_listed(hub: HubUnderTest) -> None:
    found = json.loads(hub.iotops("snapshots", "--json").out)
    assert found and {one["outcome"] for one in found} <= {"complete", "partial"}
    assert found[-1]["id"] in ids(hub)


def test_doctor_finds_an_open_env_file(hub: HubUnderTest) -> None:
    assert hub.iotops("doctor").code == 0
    (hub.folder / ".env").chmod(0o644)
    try:
        done = hub.iotops("doctor", "--json")
        assert done.code == 1 and "env.open" in done.out
    finally:
        (hub.folder / ".env").chmod(0o600)
