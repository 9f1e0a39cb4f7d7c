"""A project that runs already becomes a hub: nothing of it is changed, and it comes back."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Iterator

import pytest

from tests.conftest import need
from tests.support.adopthub import AdoptHub
from tests.support.hubs import Ended, docker, made_hub
from tests.support.resticbench import hurry

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def made() -> Iterator[AdoptHub]:
    need("docker")
    need("root")
    need("image mosquitto")
    hub = made_hub(AdoptHub, "iotops-adopt-")
    try:
        yield hub
    finally:
        if not os.environ.get("IOTOPS_TEST_KEEP"):
            hub.remove()


def adopt(hub: AdoptHub, *more: str) -> Ended:
    places = ("--state", str(hub.state), "--run", str(hub.run_folder))
    data = ("--data-root", str(hub.root))
    done = hub.iotops("init", "--adopt", str(hub.folder), *data, *places, *more, hub=False)
    assert "Traceback" not in done.err, done.err
    return done


def codes(done: Ended) -> set[str]:
    found = done.result()["findings"]
    assert isinstance(found, list)
    return {one["code"] for one in found}


def test_a_running_project_becomes_a_hub_and_comes_back(made: AdoptHub) -> None:
    tree, containers = made.tree(), made.containers()
    shown = adopt(made, "--dry-run")
    assert shown.code == 3 and "nothing was written" in shown.out
    assert (made.tree(), made.containers()) == (tree, containers) and not made.state.exists()

    done = adopt(made, "--json")
    assert done.code == 3, done.err + done.out
    assert codes(done) == {
        "volume.outside",
        "mount.file",
        "mosquitto.login",
        "git.missing",
        "mount.data-without-sentinel",
    }
    settings = made.folder / "iotops.toml"
    now = made.tree()
    now.pop(str(settings))
    assert (now, made.containers()) == (tree, containers) and not made.state.exists()
    assert set(tomllib.loads(settings.read_text())["services"]) == {"broker", "notes", "store"}

    again = adopt(made)
    assert again.code == 1 and "is there already" in again.err
    unclaimed = made.iotops("backup")
    assert unclaimed.code == 1 and "iotops init --claim-data" in unclaimed.err

    nobody = made.iotops("init", "--claim-data")
    assert nobody.code == 2 and "--yes" in nobody.err
    claimed = made.iotops("init", "--claim-data", "--yes")
    assert claimed.code == 0 and "mosquitto" in claimed.out, claimed.err
    owned = {path: state for path, state in made.tree().items() if ".iotops" not in path}
    owned.pop(str(settings))
    assert (owned, made.containers()) == (tree, containers)

    init = ("--repository", str(made.repository), "--password-file", str(made.password_file))
    assert made.iotops("init", *init).code == 0
    hurry(made.repository, made.password_file.read_text().strip())
    partial = made.iotops("backup", "--json")
    assert partial.code == 3 and list(missing(partial)) == ["volumes"], partial.out

    # The way out that the finding tells.
    project = made.folder / "docker-compose.yml"
    volume = f"{made.project}_kept"
    made.compose("stop", "loose")
    place = docker("volume", "inspect", "-f", "{{.Mountpoint}}", volume).strip()
    subprocess.run(["cp", "-a", f"{place}/.", f"{made.root}/{volume}"], check=True)
    text = project.read_text().replace("kept:/state", f"{made.root}/{volume}:/state")
    project.write_text(text)
    made.compose("up", "--detach", "loose")
    whole = made.iotops("backup", "--json")
    assert whole.code == 0, whole.err + whole.out
    doctor = made.iotops("doctor", "--json")
    assert doctor.code == 0, doctor.out

    made.lose()
    back = made.iotops("restore", "latest", "--claim-disk", "--yes")
    assert back.code == 0, back.err + back.out
    assert made.retained("home/lamp") == "on"
    for name in ("store", "notes"):
        assert (made.root / "apps" / name / "word").read_text() == f"the word of {name}\n"
    assert (made.root / volume / "kept").read_text() == "1\n"
    assert made.running() == {"broker", "store", "notes", "loose"}


def missing(done: Ended) -> dict[str, str]:
    found = done.result()["missing"]
    assert isinstance(found, dict)
    return found
