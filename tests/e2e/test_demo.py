"""`iotops demo` on real servers: verified, found out by sabotage, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.fake import fake_program
from tests.support.hubs import docker
from tests.support.lab import lab

pytestmark = pytest.mark.e2e

SERVICES = ("mosquitto", "nodered", "influxdb", "grafana")

SAY = """\
container() {
    docker ps -aq --filter "label=com.docker.compose.project=$IOTOPS_DEMO_PROJECT" \\
        --filter "label=com.docker.compose.service=$1"
}
set -eu
"""

LOSE_A_FILE = """\
docker stop "$(container influxdb)"
cd "$IOTOPS_DEMO_ROOT/influxdb/engine/data"
big=$(find . -name '*.tsm' -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2)
test -n "$big"
rm "$big"
docker start "$(container influxdb)"
"""

CHANGE_A_PASSWORD = """\
cd "$IOTOPS_DEMO_ROOT/mqtt/secrets"
one=$(grep '^kitchen:' passwd | cut -d: -f2-)
other=$(grep '^cellar:' passwd | cut -d: -f2-)
test -n "$one" && test -n "$other" && test "$one" != "$other"
printf '%s\\n' "$(cat passwd)" | awk -F: -v hash="$other" \\
    '$1 == "cellar" { print } $1 == "greenhouse" { print $1 ":" hash } \\
     $1 != "cellar" && $1 != "greenhouse" { print }' > new
cat new > passwd
rm new
docker restart "$(container mosquitto)"
"""


@dataclass(frozen=True)
class Demo:
    """A place for demos, and a look at what they leave."""

    folder: Path
    path: str

    def argv(self, *words: str) -> list[str]:
        override = lab().override
        extra = ["--override", str(override)] if override is not None else []
        return [sys.executable, "-m", "iotops", "demo", *extra, *words]

    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": self.path,
            "PYTHONPATH": os.fspath(Path.cwd()),
            "IOTOPS_DEMO_DIR": str(self.folder),
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words),
            env=self.env(),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.folder.parent,
            timeout=400,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words),
            env=self.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=self.folder.parent,
        )

    def base(self) -> Path:
        """The folder of the demo that runs; its name is the Compose project's."""
        found = [path.parent for path in self.folder.glob("*/iotops-demo.json")]
        assert len(found) == 1
        return found[0]

    def traces(self) -> list[str]:
        """List what demos in this place have left: folders, mounts, loop devices, containers."""
        found = [str(path) for path in self.folder.iterdir()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [line for line in mounts if str(self.folder) in line]
        for device in Path("/sys/block").glob("loop*/loop"):
            # Another mount namespace, as other tests have, may hold a copy of the mount: the kernel
            # clears such a device with the last of them, but only if it was told to.
            with suppress(OSError):  # cleared while looked at
                ours = str(self.folder) in (device / "backing_file").read_text()
                if ours and (device / "autoclear").read_text().strip() != "1":
                    found.append(str(device))
        form = '{{.ID}} {{.Label "com.docker.compose.project.working_dir"}}'
        for line in docker("ps", "-a", "--format", form).splitlines():
            if str(self.folder) in line:
                found.append(line)
        return found


def left_of(project: str) -> list[str]:
    """List containers and networks of a Compose project."""
    label = f"label=com.docker.compose.project={project}"
    return (
        docker("ps", "-aq", "--filter", label).split()
        + docker("network", "ls", "-q", "--filter", label).split()
    )


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A place of its own; nothing may be left there, whatever the demo did."""
    for part in ("docker", "compose", "root", "restic", *(f"image {one}" for one in SERVICES)):
        need(part)
    folder = tmp_path / "demos"
    folder.mkdir()
    search = [str(lab().restic[max(lab().restic)].parent), os.environ["PATH"]]
    place = Demo(folder, os.pathsep.join(search))
    yield place
    assert place.traces() == []


def document(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The last line of standard output: the one document that machines read."""
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict) and found["message_type"] == "result", done.stderr
    return found


def outcomes(found: dict[str, object]) -> dict[str, str]:
    services = found["services"]
    assert isinstance(services, dict)
    return {name: one["outcome"] for name, one in services.items()}


def test_the_demo_is_verified(demo: Demo) -> None:
    began = time.monotonic()
    done = demo.run("--json")
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr + done.stdout
    found = document(done)
    assert found["outcome"] == "verified"
    assert outcomes(found) == dict.fromkeys(SERVICES, "verified")
    checks = {
        check: one
        for service in found["services"].values()  # type: ignore[attr-defined]
        for check, one in service["checks"].items()
    }
    assert all(one["equal"] is True for one in checks.values())
    assert {"points", "deleted series", "logins", "strangers", "retained"} <= checks.keys()
    assert {"revision", "credentials", "fresh message", "dashboards"} <= checks.keys()
    assert found["disk"] == "loop"
    assert isinstance(found["rto_seconds"], float) and 0 < found["rto_seconds"] < took
    assert found["images"] == {name: lab().images[name].reference for name in SERVICES}
    assert found["stand_ins"] == [name for name in SERVICES if lab().images[name].stand_in]
    assert found["bytes"]["restored"] > 100_000  # type: ignore[index]
    assert left_of(str(found["project"])) == []


@pytest.mark.parametrize(
    ("harm", "named"), [(LOSE_A_FILE, "influxdb"), (CHANGE_A_PASSWORD, "mosquitto")]
)
def test_sabotage_is_found_out(demo: Demo, tmp_path: Path, harm: str, named: str) -> None:
    program = tmp_path / "sabotage"
    program.write_text("#!/bin/sh\n" + SAY + harm)
    program.chmod(0o755)
    done = demo.run("--json", "--before-judging", str(program))
    assert done.returncode == 1, done.stderr + done.stdout
    found = document(done)
    assert found["outcome"] == "failed"
    assert "error" not in found, found["error"]  # it came to its end, and judged
    services = outcomes(found)
    assert services[named] == "failed"
    assert {name for name, outcome in services.items() if outcome == "failed"} == {named}
    assert f"{named}: " in json.loads(done.stderr.splitlines()[-1])["message"]


def test_a_plain_folder_serves_where_no_disk_can_be_mounted(demo: Demo, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    fake_program(programs / "mount", err="mount: failed to set up loop device", code=32)
    without = Demo(demo.folder, os.pathsep.join([str(programs), demo.path]))
    done = without.run()
    assert done.returncode == 0, done.stderr + done.stdout
    assert "only a folder" in done.stdout and "failed to set up loop device" in done.stdout
    assert "verified: data root (a plain folder) lost" in done.stdout
    assert ("grafana (stand-in)" in done.stdout) == lab().images["grafana"].stand_in


@pytest.mark.parametrize(
    ("step", "service", "sent"),
    [("ready", "nodered", signal.SIGINT), ("extract", "", signal.SIGTERM)],
)
def test_an_interruption_leaves_nothing(
    demo: Demo, step: str, service: str, sent: signal.Signals
) -> None:
    child = demo.start("--json")
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if event["message_type"] == "step_started":
            if (event["step"], event["service"]) == (step, service):
                break
    else:
        raise AssertionError(child.communicate()[1])
    project = demo.base().name
    assert left_of(project)
    os.killpg(child.pid, sent)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "Traceback" not in err and json.loads(err.splitlines()[-1])["code"] == 130
    assert left_of(project) == []


def test_a_failure_leaves_nothing_and_says_what(demo: Demo, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    fake_program(programs / "restic", out="restic 0.13.1 compiled with go1.18 on linux/amd64")
    without = Demo(demo.folder, os.pathsep.join([str(programs), demo.path]))
    done = without.run("--json")
    assert done.returncode == 1
    assert document(done)["outcome"] == "failed"
    assert "restic" in json.loads(done.stderr.splitlines()[-1])["message"]


def test_a_kept_demo_can_be_removed_later(demo: Demo) -> None:
    """What a kept demo, or one that was killed with -9, leaves is removed by its folder."""
    child = demo.start("--json")
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["message_type"] == "step_started" and '"ready"' in line:
            break
    base = demo.base()
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    assert left_of(base.name) and base.is_dir()
    again = [sys.executable, "-m", "iotops", "demo", "--remove"]
    ordinary = demo.folder.parent
    refused = subprocess.run([*again, ordinary], capture_output=True, text=True, env=demo.env())
    assert refused.returncode == 2 and "holds no demo" in refused.stderr
    done = subprocess.run([*again, base], capture_output=True, text=True, env=demo.env())
    assert done.returncode == 0, done.stderr
    assert left_of(base.name) == []


def test_without_root_nothing_changes(demo: Demo) -> None:
    demo.folder.chmod(0o777)
    # The interpreter may lie where only root can read: what is needed is loaded before.
    code = (
        "import os, shlex, sys; from iotops.cli import main, render\n"
        "sys.argv = ['/opt/bin/iotops', 'demo', '--json', '--keep']\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=demo.env(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    said = json.loads(done.stderr.splitlines()[-1])
    assert "needs root" in said["message"] and "nothing was changed" in said["message"]
    assert said["hint"] == "sudo /opt/bin/iotops demo --json --keep"
    assert done.stdout == ""
