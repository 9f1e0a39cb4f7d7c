"""Config-sync and what a Compose file takes in: what the plan tells is what is made anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.e2e.test_sync import SyncHub
from tests.support.desk import git
from tests.support.hubs import docker
from tests.support.killmatrix import light_hub

pytestmark = pytest.mark.e2e

BASE = """services:
  base:
    image: {image}
    restart: unless-stopped
    stop_grace_period: {grace}s
"""
COLD = """  cold:
    extends: {{file: parts/base.yaml, service: base}}
    entrypoint: ["sleep", "infinity"]
    env_file: parts/cold.words
"""
SECRET = "long-and-hidden"


@pytest.fixture(scope="module")
def hub() -> Iterator[SyncHub]:
    """One hub for the story."""
    for what in ("docker", "compose", "root", "restic", "image mosquitto", "git"):
        need(what)
    made = light_hub()
    try:
        yield SyncHub(made)
    finally:
        made.remove()


def containers(hub: SyncHub) -> dict[str, str]:
    """The id of each service's container."""
    return {name: hub.hub.container(name) for name in ("mosquitto", "cold", "quiet")}


def looks(folder: Path) -> dict[str, tuple[int, int]]:
    """Whatever tells that something was written in a folder; Git's own part is left out."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
        if ".git" not in path.relative_to(folder).parts
    }


def plan(hub: SyncHub) -> dict[str, object]:
    """The plan, which writes nothing."""
    before = looks(hub.folder)
    done = hub.hub.iotops("sync", "plan", "--json")
    assert done.code == 0, done.err
    assert looks(hub.folder) == before
    assert SECRET not in done.out + done.err
    return done.result()


def told_and_done(hub: SyncHub, *paths: str) -> dict[str, object]:
    """Plan and apply; the services told are those made anew, and nothing is left to do."""
    told, before = plan(hub), containers(hub)
    done = hub.apply()
    assert done.code == 0, done.err + done.out
    now = containers(hub)
    assert told["services"] == {name: "recreate" for name in now if now[name] != before[name]}
    assert done.result()["services"] == dict.fromkeys(told["services"], "made anew")
    if told["services"]:
        assert done.result()["snapshot"]
    changes = told["changes"]
    assert isinstance(changes, list)
    for path in paths:
        assert [
            (one["service"], one["on_change"])
            for one in changes
            if one["path"] == path and one["on_change"] != "nothing"
        ] == [("cold", "recreate")]
    assert hub.hub.iotops("sync", "plan", "--exit-code").code == 0
    return told


def test_the_plan_tells_what_is_made_anew(hub: SyncHub) -> None:
    (hub.desk / "parts").mkdir()
    (hub.desk / "parts" / "cold.words").write_text("WORD=one\n")
    (hub.desk / "parts" / "base.yaml").write_text(BASE.format(image=hub.image, grace=1))
    hub.declare(COLD)
    told = told_and_done(hub)  # both files are new, and only Git has them
    assert told["services"] == {"cold": "recreate"}

    hub.commit("parts/cold.words", f"WORD=two\nAPI_TOKEN={SECRET}\n")
    told = told_and_done(hub, "parts/cold.words")
    assert "variable WORD has another value" in str(told["changes"])
    words = docker("inspect", "-f", "{{json .Config.Env}}", hub.hub.container("cold"))
    assert '"WORD=two"' in words and SECRET in words

    hub.commit("parts/base.yaml", BASE.format(image=hub.image, grace=2))
    told_and_done(hub, "parts/base.yaml")
    hub.commit("parts/cold.words", f"# the same\nWORD=two\nAPI_TOKEN={SECRET}\n")
    assert told_and_done(hub)["services"] == {}
    hub.commit("parts/nobodys.words", "WORD=three\n")
    assert told_and_done(hub)["services"] == {}


def test_a_file_that_compose_would_miss(hub: SyncHub) -> None:
    before, ids = hub.head(), containers(hub)
    git(hub.desk, "rm", "-q", "parts/cold.words")
    git(hub.desk, "commit", "-qm", "Remove what is still named")
    findings = plan(hub)["findings"]
    assert isinstance(findings, list)
    (message,) = [one["message"] for one in findings if one["code"] == "compose.broken"]
    assert f"{hub.folder.resolve()}/parts/cold.words" in message
    assert "iotops-sync-" not in str(findings)
    done = hub.apply()
    assert done.code == 4 and "cold.words" in done.err
    assert (hub.head(), containers(hub)) == (before, ids)
    git(hub.desk, "revert", "--no-edit", "HEAD")
    assert told_and_done(hub)["services"] == {}


def test_a_file_that_only_this_machine_has(hub: SyncHub) -> None:
    """It is read as it lies here; an edit of it is told as one of `.env` is."""
    hub.commit(".gitignore", (hub.desk / ".gitignore").read_text() + "/parts/own.env\n")
    assert told_and_done(hub)["services"] == {}
    (hub.folder / "parts" / "own.env").write_text("OWN=1\n")
    hub.declare(COLD.replace("parts/cold.words", "[parts/cold.words, parts/own.env]"))
    assert told_and_done(hub)["services"] == {"cold": "recreate"}
    hub.commit("note.md", "of nothing\n")
    assert told_and_done(hub)["services"] == {}
    (hub.folder / "parts" / "own.env").write_text("OWN=2\n")
    told = told_and_done(hub)
    assert "variable OWN has another value" in str(told["changes"])


def test_without_a_remote(hub: SyncHub) -> None:
    """The file is in place already, and Compose's hash of the files does not know it."""
    settings = hub.folder / "iotops.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("remote")]
    settings.write_text("\n".join(lines) + "\n")
    (hub.folder / "parts" / "cold.words").write_text("WORD=three\n")
    git(hub.folder, "commit", "-qam", "Say three, and follow nobody")
    told = told_and_done(hub, "parts/cold.words")
    assert told["services"] == {"cold": "recreate"}
