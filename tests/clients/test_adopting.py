"""Looking at a project through the real Compose, and claiming its data; no container is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iotops import config, disk
from iotops.actions import adopting, claiming
from iotops.actions.adopting import Adoption, Wanted
from iotops.errors import GuardError, IotopsError, StackError, UsageError
from iotops.hub import Hub, options_of
from iotops.model import Severity
from tests.conftest import need
from tests.support.disk import Disk

pytestmark = pytest.mark.clients


class Project:
    """A project in a folder, with a data root beside it."""

    def __init__(self, base: Path) -> None:
        self.base, self.folder, self.root = base, base / "project", base / "data"
        self.folder.mkdir()
        (self.root / "web").mkdir(parents=True)
        (self.root / "web" / "word").write_text("a word")
        self.wanted = Wanted(
            data_root=self.root, data_kind="folder", state=base / "state", run=base / "run"
        )
        self.write("compose.yaml", "services:\n" + self.service("web"))
        self.write(".env", "")

    def service(self, name: str, more: str = "") -> str:
        mount = f"volumes: ['{self.root}/{name}:/d']"
        return f"  {name}:\n    image: mine/thing:1.2\n    {mount}\n{more}"

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def look(self) -> Adoption:
        return adopting.look(self.folder, self.wanted)

    def adopted(self) -> Hub:
        adopting.write(self.look())
        return Hub.open(self.folder)

    def refused(self, error: type[IotopsError], *says: str) -> None:
        before = sorted(self.base.rglob("*"))
        with pytest.raises(error) as caught:
            self.look()
        for word in says:
            assert word in f"{caught.value.message}; {caught.value.hint}"
        assert caught.value.hint
        assert sorted(self.base.rglob("*")) == before


@pytest.fixture
def project(tmp_path: Path) -> Project:
    need("docker")
    need("root")
    return Project(tmp_path)


def codes(adoption: Adoption) -> set[str]:
    return {one.code for one in adoption.findings}


USUAL = {"project.name", "git.missing", "mount.data-without-sentinel"}


def test_settings_are_written_once_for_the_folders_owner(project: Project) -> None:
    os.chown(project.folder, 1, 1)  # daemon
    found = project.look()
    assert codes(found) == USUAL and not found.partial and found.owner == "daemon"
    assert not (project.folder / config.FILE).exists()
    written = adopting.write(found)
    path = project.folder / config.FILE
    assert written.written == (path,) and path.stat().st_uid == 1
    settings = config.load(path, options_of)
    assert settings.hub.name == "project" and not settings.services
    project.refused(GuardError, "is there already", "iotops init --claim-data")
    with pytest.raises(GuardError, match="is there already"):
        adopting.write(found)


def test_values_that_are_missing_are_named_all_at_once(project: Project) -> None:
    needs = "    command: ['${ONE:?}', '${TWO:?say it}', '${THREE}', '${FOUR:-4}', '${FIVE}']\n"
    project.write("compose.yaml", "services:\n" + project.service("web", needs))
    project.write(".env", "FIVE=5\n")
    project.refused(StackError, "ONE, TWO", str(project.folder / ".env"))
    project.write(".env", "ONE=1\nTWO=2\nFIVE=5\n")
    (unset,) = [one for one in project.look().findings if one.code == "variable.unset"]
    assert " THREE," in unset.message and unset.severity is Severity.WARNING


def test_a_broken_project_is_told_in_composes_words(project: Project) -> None:
    project.write("compose.yaml", "services: {web: {imagee: x}}\n")
    project.refused(StackError, "imagee")


def test_parts_of_the_project_are_found_wherever_they_lie(project: Project) -> None:
    far = project.base / "far"
    far.mkdir()
    (far / "included.yaml").write_text("services:\n" + project.service("further"))
    (far / "extended.yaml").write_text("services: {base: {image: 'mine/base:1'}}\n")
    (far / "web.env").write_text("A=1\n")
    (far / "word").write_text("x")
    (project.root / "further").mkdir()
    project.write("near/more.yaml", "services:\n" + project.service("near"))
    project.write("near/near.env", "B=1\n")
    more = (
        "    extends: {file: ../far/extended.yaml, service: base}\n"
        "    env_file:\n      - near/near.env\n      - ../far/web.env\n"
        "    secrets: [s]\n    environment: {A: '1'}\n"
    )
    project.write(
        "compose.yaml",
        "name: mine\ninclude:\n  - near/more.yaml  # beside\n  - path: ../far/included.yaml\n"
        f"services:\n{project.service('web', more)}secrets: {{s: {{file: ../far/word}}}}\n",
    )
    found = project.look()
    outside = {one.subject for one in found.findings if one.code == "file.outside"}
    assert {Path(one).resolve() for one in outside} == {
        far / name for name in ("included.yaml", "extended.yaml", "web.env", "word")
    }
    assert {one.service for one in found.services if one.kind} == {"further", "near", "web"}
    assert found.partial and "project.name" not in codes(found)


def test_a_folder_with_the_name_of_a_part_of_every_snapshot(project: Project) -> None:
    """A backup would refuse it as a whole, so nothing is adopted until it has another name."""
    (project.root / "other").mkdir()
    project.write("compose.yaml", f"name: mine\nservices:\n{project.service('other')}")
    project.refused(UsageError, "'other' is the name of a part", "iotops init --adopt")


def test_where_there_is_nothing_to_adopt(project: Project) -> None:
    project.write(
        "compose.yaml",
        f"services: {{db: {{image: 'influxdb:2.9.1', volumes: ['{project.base}/x/db:"
        "/var/lib/influxdb2']}}\n",
    )
    (project.base / "x/db").mkdir(parents=True)
    project.refused(GuardError, "lies elsewhere", f"--data-root {project.base}/x")
    project.write("compose.yaml", "services: {web: {image: 'mine/thing:1.2'}}\n")
    project.refused(GuardError, "nothing would be captured", "--data-root DIR")
    (project.folder / "compose.yaml").unlink()
    project.refused(StackError, "docker-compose.yaml")


def test_a_project_with_all_data_in_its_own_folder_is_adopted_in_part(project: Project) -> None:
    (project.folder / "db").mkdir()
    project.write(
        "compose.yaml",
        "services: {db: {image: 'influxdb:2.9.1', volumes: ['./db:/var/lib/influxdb2']}}\n",
    )
    found = project.look()
    assert found.partial and "mount.in-hub" in codes(found)


@pytest.mark.parametrize("case", ["inside", "around", "missing", "unmounted", "foreign"])
def test_a_data_root_that_cannot_be(project: Project, case: str) -> None:
    inside = project.folder / "volumes"
    if case == "inside":
        inside.mkdir()
        project.wanted = Wanted(data_root=inside, data_kind="folder")
        project.refused(GuardError, "contain each other", "docker compose")
    elif case == "around":
        project.wanted = Wanted(data_root=project.base, data_kind="folder")
        project.refused(GuardError, "contain each other")
    elif case == "missing":
        project.wanted = Wanted(data_root=project.base / "none", data_kind="folder")
        project.refused(GuardError, "does not exist", "--data-root DIR")
    elif case == "unmounted":
        project.wanted = Wanted(data_root=project.root)
        project.refused(GuardError, "is not a mount point", "--data-kind folder")
    else:
        (project.root / disk.SENTINEL).write_text(json.dumps({"hub": "fedcba9876543210"}))
        project.refused(GuardError, "another hub", "iotops init --from-repository")


def test_an_owner_that_the_machine_does_not_know(project: Project) -> None:
    os.chown(project.folder, 54321, 54321)
    project.refused(UsageError, "54321", "--owner USER")


# -- claiming --------------------------------------------------------------------------------------


def test_data_is_claimed_and_not_touched(project: Project) -> None:
    hub = project.adopted()
    with pytest.raises(GuardError) as caught:
        hub.guard()
    assert "iotops init --claim-data" in caught.value.hint
    assert claiming.claimable(hub) == ("web",)
    before = (project.root / "web" / "word").stat()
    claiming.claim(hub)
    hub.guard()
    assert (project.root / "web" / "word").stat() == before
    assert hub.state.read().disk == disk.identity(project.root)
    with pytest.raises(GuardError, match="already"):
        claiming.claim(hub)


def test_data_of_another_hub_or_disk_is_not_claimed(project: Project) -> None:
    hub = project.adopted()
    sentinel = project.root / disk.SENTINEL
    sentinel.write_text(json.dumps({"hub": "fedcba9876543210"}))
    with pytest.raises(GuardError, match="another hub"):
        claiming.claim(hub)
    sentinel.unlink()
    hub.state.update(disk="another-file-system")
    with pytest.raises(GuardError, match="another disk") as caught:
        claiming.claim(hub)
    assert "--claim-disk" in caught.value.hint
    assert not sentinel.exists()
    hub.state.update(disk=disk.identity(project.root))  # the same one, whose sentinel was lost
    claiming.claim(hub)
    assert sentinel.exists()


def test_a_mounted_disk_with_data_is_claimed(project: Project) -> None:
    disk_of_mine = Disk(project.base / "disk.ext4", project.base / "mounted", 64 << 20)
    try:
        root = project.base / "mounted"
        (root / "web").mkdir()
        (root / "web" / "word").write_text("x")
        project.root = root
        project.wanted = Wanted(data_root=root, state=project.base / "state")
        project.write("compose.yaml", "services:\n" + project.service("web"))
        hub = project.adopted()
        assert claiming.claimable(hub) == ("web",)
        claiming.claim(hub)
        hub.guard()
        assert hub.state.read().disk == disk.identity(root) != ""
    finally:
        disk_of_mine.remove()


# -- the command -----------------------------------------------------------------------------------


def ran(project: Project, *argv: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "iotops", "init", *argv],
        env={**os.environ, "PYTHONPATH": os.fspath(Path.cwd())},
        cwd=project.folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_adopting_and_claiming_in_one(project: Project) -> None:
    places = ("--state", str(project.base / "state"), "--run", str(project.base / "run"))
    data = ("--data-root", str(project.root), "--data-kind", "folder")
    whole = ("--adopt", "--claim-data", "--json", *data, *places)  # in the current folder
    nobody = ran(project, *whole)
    assert nobody.returncode == 2 and "--yes" in nobody.stderr
    assert not (project.folder / config.FILE).exists()
    done = ran(project, *whole, "--yes")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    made = (project.folder / config.FILE, project.root / disk.SENTINEL, project.root / disk.FOLDER)
    assert result["written"] == [str(path) for path in made]
    assert result["partial"] is False and result["services"][0]["kind"] == "files"
    assert {one["code"] for one in result["findings"]} == USUAL - {*disk.UNCLAIMED}
    Hub.open(project.folder).guard()


@pytest.mark.parametrize(
    "argv",
    [
        ("--adopt", "--repository", "/b"),
        ("--adopt", "--claim-disk"),
        ("--adopt", "--port", "mosquitto=1884"),
        ("--dry-run",),
        ("--claim-data", "."),
    ],
)
def test_options_that_do_not_go_together(project: Project, argv: tuple[str, ...]) -> None:
    done = ran(project, *argv)
    assert done.returncode == 2 and "next:" in done.stderr
    assert not (project.folder / config.FILE).exists()
