"""Making a hub: real Git, real Compose, real disks, real restic; nothing half-made stays."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from iotops import config, disk
from iotops.actions import hubfiles, setup
from iotops.actions.setup import Choices
from iotops.errors import (
    GitError,
    GuardError,
    IotopsError,
    ProgramMissing,
    RepositoryMissing,
    SettingsError,
    UsageError,
    WrongPassword,
)
from iotops.hub import Hub
from tests.conftest import need
from tests.support.disk import Disk
from tests.support.fake import fake_program
from tests.support.lab import lab

pytestmark = pytest.mark.clients

OWNER = "nobody"
"""A user that every machine has and that is not root."""


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    need("root")
    need("git")
    folder = Path(tempfile.mkdtemp(prefix="iotops-setup-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ssd(base: Path) -> Iterator[Disk]:
    made = Disk(base / "disk.img", base / "data", 16 << 20)
    yield made
    made.remove()


@pytest.fixture
def plain(base: Path) -> Choices:
    """Choices for a hub with a plain folder, which is not there yet."""
    return Choices(
        name="home",
        owner=OWNER,
        data_root=base / "data",
        data_kind="folder",
        state=base / "state",
        run=base / "run",
    )


@pytest.fixture
def hub(base: Path, plain: Choices) -> Hub:
    setup.init(base / "hub", plain)
    return Hub.open(base / "hub")


@pytest.fixture
def restic(monkeypatch: pytest.MonkeyPatch) -> Path:
    """restic on PATH: the newest that the lab has."""
    need("restic")
    program = lab().restic[max(lab().restic)]
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def owner_of(path: Path) -> tuple[int, int, int]:
    """Numeric user and group, and the mode."""
    state = path.lstat()
    return state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)


def git(folder: Path, *words: str) -> str:
    """Git as the hub's owner types it."""
    entry = pwd.getpwnam(OWNER)
    done = subprocess.run(
        ["git", "-C", folder, *words],
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compose(folder: Path) -> subprocess.CompletedProcess[str]:
    """The real `docker compose config` on a hub folder; no engine is asked."""
    need("docker")
    return subprocess.run(
        ["docker", "compose", "config", "--format", "json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root")},
        capture_output=True,
        text=True,
        check=False,
    )


# ---- what is made -------------------------------------------------------------------------------


def test_a_hub_on_an_empty_disk(base: Path, plain: Choices, ssd: Disk) -> None:
    folder = base / "hub"
    choices = replace(plain, data_kind="mount", claim_disk=True)
    made = setup.init(folder, choices)

    uid, gid = pwd.getpwnam(OWNER).pw_uid, pwd.getpwnam(OWNER).pw_gid
    assert owner_of(folder / ".env") == (uid, gid, 0o600)
    for name in ("docker-compose.yaml", "iotops.toml", "mosquitto/acl", "nodered/settings.js"):
        assert owner_of(folder / name) == (uid, gid, 0o644), name
    for name in (".", "mosquitto", "grafana/provisioning"):
        assert owner_of(folder / name) == (uid, gid, 0o755), name
    for path in folder.rglob("*"):
        assert owner_of(path)[:2] == (uid, gid), path

    disk.require(ssd.mount, "mount", made.hub_id)
    for name, (owner, mode) in setup.DATA_FOLDERS.items():
        assert owner_of(ssd.mount / name) == (*owner, mode), name
    assert owner_of(ssd.mount / "mqtt/secrets/passwd") == (1883, 1883, 0o600)
    assert owner_of(disk.layout(ssd.mount).journal) == (0, gid, 0o2750)

    hub = Hub.open(folder)
    assert (hub.id, hub.name, hub.root) == (made.hub_id, "home", ssd.mount)
    assert (hub.state.read().disk, hub.state.read().folder) == (
        disk.identity(ssd.mount),
        str(folder),
    )
    hub.guard()
    assert all(path.exists() for path in made.paths)


def test_it_says_what_it_made_and_no_secret(base: Path, plain: Choices) -> None:
    made = setup.init(base / "hub", plain)
    text = "\n".join(setup.told(made))
    for line in (base / "hub" / ".env").read_text().splitlines():
        name, _, value = line.partition("=")
        if name in hubfiles.SECRETS:
            assert value.strip("'") not in text
    assert str(base / "hub" / "iotops.toml") in text
    assert f"iotops up --hub {base}/hub" in text


def test_git_has_two_branches_without_secrets(hub: Hub) -> None:
    committed = git(hub.folder, "ls-tree", "-r", "--name-only", "main").split()
    assert committed == sorted(name for name in hubfiles.render(_facts(), {}) if name != ".env")
    assert git(hub.folder, "status", "--short") == ""
    assert git(hub.folder, "branch", "--show-current") == "main\n"
    assert git(hub.folder / "flows", "branch", "--show-current") == "flows\n"
    assert git(hub.folder / "flows", "ls-files") == ""
    related = subprocess.run(
        ["git", "-c", f"safe.directory={hub.folder}", "merge-base", "main", "flows"],
        cwd=hub.folder,
        capture_output=True,
        check=False,
    )
    assert related.returncode == 1  # no common history


def _facts() -> dict[str, str]:
    names = ["ID", "NAME", "OWNER", "ROOT", "KIND", "PROJECT", "TZ"]
    names += ["MQTT_ADDRESS", "WEB_ADDRESS", "MQTT_HOST", "WEB_HOST"]
    return {name: "x" for name in (*names, *hubfiles.SECRETS)}


def test_settings_given_to_init_are_in_the_first_commit(base: Path, plain: Choices) -> None:
    override = base / "override.yaml"
    override.write_text("services: {}\n")
    choices = replace(
        plain,
        repository="sftp:box:/hub",
        password_file=base / "pw",
        credentials_file=base / "key",
        override=override,
    )
    setup.init(base / "hub", choices)
    hub = Hub.open(base / "hub")
    assert hub.settings.repository is not None
    assert hub.settings.repository.url == "sftp:box:/hub"
    assert hub.settings.repository.credentials_file == base / "key"
    assert hub.settings.paths.state == base / "state"
    assert git(hub.folder, "status", "--short") == ""
    assert (hub.folder / setup.OVERRIDE).read_text() == "services: {}\n"
    assert setup.OVERRIDE not in git(hub.folder, "ls-files").split()
    assert not (base / "pw").exists()  # only written down


@pytest.mark.parametrize(
    ("mqtt", "web", "host", "url"),
    [
        ("0.0.0.0", "127.0.0.1", "127.0.0.1", "http://127.0.0.1"),
        ("192.168.1.10", "0.0.0.0", "192.168.1.10", "http://127.0.0.1"),
        ("[fd00::1]", "[fd00::1]", "fd00::1", "http://[fd00::1]"),
    ],
)
def test_iotops_asks_where_the_ports_listen(
    base: Path, plain: Choices, mqtt: str, web: str, host: str, url: str
) -> None:
    setup.init(base / "hub", replace(plain, mqtt_address=mqtt, web_address=web))
    services = Hub.open(base / "hub").settings.services
    assert getattr(services["mosquitto"], "host", "") == host
    assert getattr(services["nodered"], "url", "") == f"{url}:1880"
    assert getattr(services["grafana"], "url", "") == f"{url}:3000"
    assert getattr(services["influxdb"], "url", "") == "http://127.0.0.1:8086"
    env = (base / "hub" / ".env").read_text()
    assert f"MQTT_ADDRESS='{mqtt}'" in env and f"WEB_ADDRESS='{web}'" in env


def test_whatever_the_umask_containers_can_read_their_configuration(
    base: Path, plain: Choices
) -> None:
    before = os.umask(0o077)
    try:
        setup.init(base / "deep" / "hub", plain)
    finally:
        os.umask(before)
    assert owner_of(base / "deep" / "hub" / "nodered" / "settings.js")[2] == 0o644
    for name in ("deep", "deep/hub", "deep/hub/nodered", "deep/hub/grafana/provisioning", "data"):
        assert owner_of(base / name)[2] == 0o755, name


def test_the_owner_is_who_calls_sudo_else_the_folders(
    base: Path, plain: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", OWNER)
    assert setup.init(base / "one", replace(plain, owner="")).owner == OWNER
    monkeypatch.delenv("SUDO_USER")
    (base / "two").mkdir()
    shutil.chown(base / "two", OWNER)
    other = replace(plain, owner="", data_root=base / "data-two")
    assert setup.init(base / "two", other).owner == OWNER


# ---- Compose ------------------------------------------------------------------------------------


def test_compose_accepts_the_template(base: Path, plain: Choices) -> None:
    choices = replace(plain, project="second", ports={"influxdb": 28086, "nodered": 21880})
    setup.init(base / "hub", choices)
    done = compose(base / "hub")
    assert (done.returncode, done.stderr) == (0, "")
    model = json.loads(done.stdout)
    assert model["name"] == "second"
    services = model["services"]
    assert {name: one["image"] for name, one in services.items()} == {
        "mosquitto": "eclipse-mosquitto:2.0.22",
        "nodered": "nodered/node-red:4.1.13-22",
        "influxdb": "influxdb:2.9.1",
        "grafana": "grafana/grafana:12.4.0",
    }
    ports = {
        name: [(port["host_ip"], int(port["published"]), port["target"]) for port in one["ports"]]
        for name, one in services.items()
    }
    assert ports == {
        "mosquitto": [("0.0.0.0", 1883, 1883)],
        "nodered": [("127.0.0.1", 21880, 1880)],
        "influxdb": [("127.0.0.1", 28086, 8086)],
        "grafana": [("127.0.0.1", 3000, 3000)],
    }
    for name, one in services.items():
        assert one["restart"] == "unless-stopped", name
        assert one["logging"]["options"]["max-size"] == "10m", name
        assert one["healthcheck"]["test"], name
        assert one["stop_grace_period"], name
        assert [*one["networks"]] == ["hub"], name


def test_every_mount_is_a_folder_that_is_never_created(hub: Hub) -> None:
    services = json.loads(compose(hub.folder).stdout)["services"]
    seen: dict[str, str] = {}
    for name, one in services.items():
        for mount in one["volumes"]:
            assert mount["type"] == "bind", name
            assert not mount.get("bind", {}).get("create_host_path"), mount
            assert Path(mount["source"]).is_dir(), mount
            in_hub = Path(mount["source"]).is_relative_to(hub.folder)
            assert mount.get("read_only", False) is in_hub, mount
            seen[mount["target"]] = mount["source"]
    data = hub.root
    assert seen == {
        "/mosquitto/config": f"{hub.folder}/mosquitto",
        "/mosquitto/data": f"{data}/mqtt/data",
        "/mosquitto/log": f"{data}/mqtt/log",
        "/mosquitto/secrets": f"{data}/mqtt/secrets",
        "/config": f"{hub.folder}/nodered",
        "/data": f"{data}/nodered",
        "/var/lib/influxdb2": f"{data}/influxdb",
        "/etc/grafana/provisioning": f"{hub.folder}/grafana/provisioning",
        "/var/lib/grafana": f"{data}/grafana",
    }


@pytest.mark.parametrize("name", hubfiles.SECRETS)
def test_compose_refuses_to_start_without_a_secret(hub: Hub, name: str) -> None:
    """Except the broker's own password, which only its password file holds."""
    env = hub.folder / ".env"
    lines = [line for line in env.read_text().splitlines() if not line.startswith(f"{name}=")]
    env.write_text("\n".join(lines) + "\n")
    done = compose(hub.folder)
    if name == "MQTT_PASSWORD":
        assert done.returncode == 0
    else:
        assert done.returncode != 0
        assert name in done.stderr


def test_compose_finds_odd_places(base: Path, plain: Choices) -> None:
    root = base / 'da ta: "$HOME" #1'
    setup.init(base / "hub $x", replace(plain, data_root=root))
    done = compose(base / "hub $x")
    assert done.returncode == 0, done.stderr
    mounts = json.loads(done.stdout)["services"]["nodered"]["volumes"]
    # Compose doubles every literal dollar sign in what it prints.
    assert [mount["source"].replace("$$", "$") for mount in mounts] == [
        f"{base}/hub $x/nodered",
        f"{root}/nodered",
    ]


# ---- refusals: nothing is made ------------------------------------------------------------------


def refused(
    base: Path, choices: Choices, error: type[IotopsError], says: str, *, folder: str = "hub"
) -> IotopsError:
    """A refusal names the reason and the next step, and changes nothing at all."""
    before = sorted(path for path in base.rglob("*"))
    with pytest.raises(error, match=says) as caught:
        setup.init(base / folder, choices)
    assert caught.value.hint
    assert sorted(path for path in base.rglob("*")) == before
    return caught.value


def test_a_folder_in_use_is_refused(base: Path, plain: Choices) -> None:
    (base / "hub").mkdir()
    (base / "hub" / "mine").write_text("x")
    refused(base, plain, GuardError, "not an empty folder")
    refused(base, plain, GuardError, "not an empty folder", folder="hub/mine")


def test_an_empty_disk_is_not_taken_unasked(base: Path, plain: Choices, ssd: Disk) -> None:
    choices = replace(plain, data_kind="mount")
    found = refused(base, choices, GuardError, "belongs to no hub yet")
    assert "--claim-disk" in found.hint


def test_an_unmounted_or_missing_disk_is_refused(base: Path, plain: Choices) -> None:
    choices = replace(plain, data_kind="mount", claim_disk=True)
    refused(base, choices, GuardError, "does not exist")
    (base / "data").mkdir()
    refused(base, choices, GuardError, "not a mount point")


def test_a_disk_with_data_is_refused(base: Path, plain: Choices, ssd: Disk) -> None:
    choices = replace(plain, data_kind="mount", claim_disk=True)
    (ssd.mount / "photos").mkdir()
    refused(base, choices, GuardError, "holds data")
    (ssd.mount / "photos").rmdir()
    disk.claim(ssd.mount, "mount", "0123456789abcdef", "another")
    refused(base, choices, GuardError, "another hub")


def test_a_plain_folder_with_data_is_refused(base: Path, plain: Choices) -> None:
    (base / "data" / "x").mkdir(parents=True)
    refused(base, plain, GuardError, "holds data")


def test_impossible_choices_are_refused(base: Path, plain: Choices) -> None:
    no_project = replace(plain, project="Not So")
    refused(base, no_project, UsageError, "cannot name a Compose project")
    refused(base, replace(plain, name="a/b"), UsageError, "hub.name")
    refused(base, replace(plain, owner="nobody-at-all"), UsageError, "no user 'nobody-at-all'")
    refused(base, replace(plain, ports={"x": 1}), UsageError, "no service 'x'")
    refused(base, replace(plain, data_root=Path("data")), UsageError, "absolute")
    refused(base, replace(plain, data_root=base / "hub/x"), UsageError, "contain each other")
    refused(base, replace(plain, data_root=base), UsageError, "contain each other")
    refused(base, replace(plain, override=base / "none"), UsageError, "cannot be read")
    refused(base, replace(plain, web_address="all"), UsageError, "no address")


def test_without_root_it_says_so(base: Path, plain: Choices) -> None:
    base.chmod(0o777)
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        code = 1
        try:
            os.setresuid(12345, 12345, 12345)
            setup.init(base / "hub", plain)
        except UsageError as error:
            code = 0 if error.hint.startswith("sudo iotops init") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not (base / "hub").exists()


# ---- failures: nothing half-made stays ----------------------------------------------------------


def test_a_failing_git_leaves_nothing(
    base: Path, plain: Choices, ssd: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program(tmp_path / "git", err="fatal: no", code=128)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    choices = replace(plain, data_kind="mount", claim_disk=True)
    with pytest.raises(GitError):
        setup.init(base / "hub", choices)
    assert not (base / "hub").exists()
    assert disk.claimable(ssd.mount, "mount")
    assert [path.name for path in ssd.mount.iterdir()] == ["lost+found"]


def test_without_git_nothing_is_made(
    base: Path, plain: Choices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "hub").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissing, match="git") as caught:
        setup.init(base / "hub", plain)
    assert "apt-get install git" in caught.value.hint
    assert [*(base / "hub").iterdir()] == []  # it was there before, and is again empty
    assert not (base / "data").exists()


def test_a_failure_at_the_very_end_takes_everything_back(
    base: Path, plain: Choices, ssd: Disk
) -> None:
    (base / "state").write_text("a file where the folder should be")
    choices = replace(plain, data_kind="mount", claim_disk=True)
    with pytest.raises(IotopsError, match="removed again"):
        setup.init(base / "hub", choices)
    assert not (base / "hub").exists()
    assert [path.name for path in ssd.mount.iterdir()] == ["lost+found"]
    (base / "state").unlink()
    setup.init(base / "hub", choices)


def test_a_full_disk_takes_everything_back(base: Path, plain: Choices, ssd: Disk) -> None:
    """Real ENOSPC: no inode is left for the data folders."""
    filler = ssd.mount / "lost+found"
    made = 0
    try:
        while True:
            (filler / str(made)).write_text("")
            made += 1
    except OSError:
        pass
    for number in range(8):
        (filler / str(number)).unlink()
    with pytest.raises(IotopsError, match="No space left"):
        setup.init(base / "hub", replace(plain, data_kind="mount", claim_disk=True))
    assert not (base / "hub").exists()
    assert [path.name for path in ssd.mount.iterdir()] == ["lost+found"]


# ---- the hook -----------------------------------------------------------------------------------


def test_the_hook_asks_iotops_about_every_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path
) -> None:
    asked = base / "asked"
    asked.touch()
    asked.chmod(0o666)
    bin_folder = base / "bin"
    bin_folder.mkdir()
    program = bin_folder / "iotops"
    program.write_text(f'#!/bin/sh\necho "$@" >{asked}\ntr "\\0" "\\n" >>{asked}\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    shutil.copy(hub.folder / ".env", hub.folder / "copy of env")
    shutil.chown(hub.folder / "copy of env", OWNER)
    git(hub.folder, "add", "copy of env")
    with pytest.raises(AssertionError):
        git(hub.folder, *_ME, "commit", "-m", "x")
    assert asked.read_text() == "hook pre-commit\ncopy of env\n"
    program.write_text("#!/bin/sh\nexit 0\n")
    git(hub.folder, *_ME, "commit", "-m", "x")


def test_a_commit_goes_through_where_its_user_cannot_run_iotops(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, base: Path
) -> None:
    bin_folder = base / "bin"
    bin_folder.mkdir()
    (bin_folder / "iotops").write_text("#!/nowhere/python\n")
    (bin_folder / "iotops").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    (hub.folder / "notes").touch()
    shutil.chown(hub.folder / "notes", OWNER)
    git(hub.folder, "add", "notes")
    git(hub.folder, *_ME, "commit", "-m", "x")


_ME = ("-c", "user.name=x", "-c", "user.email=x@example.org")


def test_the_real_hook_keeps_env_out_and_lets_the_rest_in(
    base: Path, plain: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is root's here: other users may not reach the program under test."""
    program = Path(sys.executable).parent / "iotops"
    assert program.is_file()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    setup.init(base / "hub", replace(plain, owner="root"))

    def commit(*paths: str) -> subprocess.CompletedProcess[str]:
        subprocess.run(["git", "-C", base / "hub", "add", "-f", *paths], check=True)
        return subprocess.run(
            ["git", "-C", base / "hub", *_ME, "commit", "-m", "x"],
            capture_output=True,
            text=True,
            check=False,
        )

    (base / "hub" / "README.md").write_text("mine\n")
    refused_one = commit(".env", "README.md")
    assert refused_one.returncode != 0
    assert ".env holds secrets" in refused_one.stdout + refused_one.stderr
    subprocess.run(["git", "-C", base / "hub", "rm", "-q", "--cached", ".env"], check=True)
    done = commit("README.md")
    assert done.returncode == 0, done.stderr


def test_the_flows_worktree_has_the_hook_too(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    program = hub.folder / "flows" / "iotops"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    git(hub.folder / "flows", "add", "iotops")
    with pytest.raises(AssertionError):
        git(hub.folder / "flows", *_ME, "commit", "-m", "x")


# ---- repository ---------------------------------------------------------------------------------


def test_a_repository_is_made_and_named(hub: Hub, base: Path, restic: Path) -> None:
    url, password = str(base / "repository"), base / "secrets" / "password"
    made = setup.init_repository(hub, url=url, password_file=password)
    assert made.password_made
    assert owner_of(password) == (0, 0, 0o600)
    assert password.read_text().strip() not in "\n".join(setup.told(made)) + repr(made)
    assert str(password) in "\n".join(setup.told(made))
    env = {"PATH": os.environ["PATH"], "HOME": str(base), "XDG_CACHE_HOME": str(base / "cache")}
    seen = subprocess.run(
        [restic, "-r", url, "--password-file", password, "cat", "config"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(seen.stdout)["id"] == made.id
    after = Hub.open(hub.folder)
    assert after.settings.repository is not None
    assert after.settings.repository.url == url
    assert after.state.read().repository == made.id
    assert owner_of(hub.folder / "iotops.toml")[0] == pwd.getpwnam(OWNER).pw_uid
    assert git(hub.folder, "status", "--short") == " M iotops.toml\n"
    assert any("commit" in note for note in made.notes)


def test_an_existing_repository_is_refused_and_can_be_accepted(
    hub: Hub, base: Path, restic: Path
) -> None:
    url, password = str(base / "repository"), base / "password"
    first = setup.init_repository(hub, url=url, password_file=password)
    with pytest.raises(GuardError, match="already") as caught:
        setup.init_repository(hub, url=url, password_file=password)
    assert "--accept-repository" in caught.value.hint
    other = base / "other-password"
    with pytest.raises(GuardError, match="already"):
        setup.init_repository(hub, url=url, password_file=other)
    assert not other.exists()  # the one made for the attempt opens nothing
    other.write_text("wrong\n")
    other.chmod(0o600)
    with pytest.raises(WrongPassword):
        setup.init_repository(hub, url=url, password_file=other)
    assert other.read_text() == "wrong\n"
    again = setup.init_repository(hub, url=url, password_file=password, accept=True)
    assert (again.id, again.accepted, again.password_made) == (first.id, True, False)
    assert again.notes == ()  # the settings name it already


def test_no_new_history_begins_where_the_hubs_own_repository_was(
    hub: Hub, base: Path, restic: Path
) -> None:
    """A disk that is not mounted leaves its mount point, on the SD card."""
    url, password = base / "disk" / "repository", base / "password"
    url.parent.mkdir()
    first = setup.init_repository(hub, url=str(url), password_file=password)
    url.rename(base / "elsewhere")
    again = Hub.open(hub.folder)
    with pytest.raises(GuardError, match=f"id {first.id[:10]}.*not there now") as caught:
        setup.init_repository(again, url=str(url), password_file=password)
    assert "mount its disk" in caught.value.hint and "--new-history" in caught.value.hint
    with pytest.raises(GuardError, match="not there now"):  # the same place, written otherwise
        setup.init_repository(again, url=f"{url.parent}/./repository/", password_file=password)
    password.rename(base / "aside")  # then restic could not even look
    with pytest.raises(GuardError, match=r"its password file .* is not there"):
        setup.init_repository(again, url=str(url), password_file=password)
    assert not password.exists()
    (base / "aside").rename(password)
    assert not url.exists() and again.state.read().repository == first.id
    other = setup.init_repository(again, url=str(url), password_file=password, new_history=True)
    assert other.id != first.id and again.state.read().repository == other.id
    # Another address is no slip: the hub moves.
    setup.init_repository(again, url=str(base / "bigger"), password_file=password)


def test_accepting_makes_nothing(hub: Hub, base: Path, restic: Path) -> None:
    url, password = str(base / "repository"), base / "password"
    with pytest.raises(UsageError, match="password file"):
        setup.init_repository(hub, url=url, password_file=password, accept=True)
    assert not password.exists()
    password.write_text("mine\n")
    password.chmod(0o600)
    with pytest.raises(RepositoryMissing):
        setup.init_repository(hub, url=url, password_file=password, accept=True)
    assert not Path(url).exists()


def test_a_password_that_is_there_is_kept(hub: Hub, base: Path, restic: Path) -> None:
    password = base / "password"
    password.write_text("mine\n")
    password.chmod(0o600)
    made = setup.init_repository(hub, url=str(base / "repository"), password_file=password)
    assert not made.password_made
    assert password.read_text() == "mine\n"


@pytest.mark.parametrize("prefix", ["", "local:", "link"])
def test_a_repository_on_the_disk_it_protects_is_refused(
    hub: Hub, base: Path, restic: Path, prefix: str
) -> None:
    inside = hub.root / "repository"
    (base / "link").symlink_to(hub.root)
    url = str(base / "link" / "repository") if prefix == "link" else f"{prefix}{inside}"
    with pytest.raises(GuardError, match="the disk that it protects"):
        setup.init_repository(hub, url=url, password_file=base / "password")
    assert not inside.exists()
    assert not (base / "password").exists()


def test_without_restic_no_password_is_made(
    hub: Hub, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissing, match="restic"):
        setup.init_repository(hub, url=str(base / "r"), password_file=base / "password")
    assert not (base / "password").exists()


@pytest.mark.parametrize("url", ["no-such-kind:x", "{base}/missing/x", "{base}/file/x"])
def test_a_repository_that_cannot_be_made_leaves_the_settings_alone(
    hub: Hub, base: Path, restic: Path, url: str
) -> None:
    (base / "file").write_text("")
    before = (hub.folder / "iotops.toml").read_bytes()
    with pytest.raises(IotopsError):
        setup.init_repository(hub, url=url.format(base=base), password_file=base / "password")
    assert (hub.folder / "iotops.toml").read_bytes() == before
    assert not (base / "missing").exists()


@pytest.mark.parametrize(
    "url", ["rest:http://u:s3cr3tpw@127.0.0.1:1/x", "backups/hub", "local:backups/hub"]
)
def test_an_address_that_git_must_not_hold_makes_nothing(hub: Hub, base: Path, url: str) -> None:
    before = (hub.folder / "iotops.toml").read_bytes()
    with pytest.raises(SettingsError, match=r"repository\.url") as caught:
        setup.init_repository(hub, url=url, password_file=base / "password")
    assert "s3cr3tpw" not in f"{caught.value} {caught.value.hint}"
    assert (hub.folder / "iotops.toml").read_bytes() == before
    assert not (base / "password").exists() and not Path("backups").exists()
    with pytest.raises(UsageError, match=r"repository\.url") as also:
        setup.init(
            base / "second",
            Choices(owner="root", data_root=base / "d2", data_kind="folder", repository=url),
        )
    assert "s3cr3tpw" not in f"{also.value} {also.value.hint}"
    assert not (base / "second").exists()


@pytest.mark.parametrize("which", ["password", "credentials"])
def test_a_secret_file_that_others_can_read_is_refused(
    hub: Hub, base: Path, restic: Path, which: str
) -> None:
    paths = {name: base / name for name in ("password", "credentials")}
    for path in paths.values():
        path.write_text("RESTIC_X=1\n")
        path.chmod(0o600)
    paths[which].chmod(0o640)
    url = str(base / "repository")
    make = partial(
        setup.init_repository,
        hub,
        url=url,
        password_file=paths["password"],
        credentials_file=paths["credentials"],
    )
    with pytest.raises(GuardError, match=rf"{which} can be read by others \(mode 0640\)") as caught:
        make()
    assert caught.value.hint == f"chmod 600 {paths[which]}" and not Path(url).exists()
    paths[which].chmod(0o600)
    make()


def test_settings_that_cannot_be_edited_are_left_alone(hub: Hub, base: Path) -> None:
    path = hub.folder / "iotops.toml"
    text = 'repository = { url = "/elsewhere" }\n' + path.read_text()
    path.write_text(text)
    wanted = config.RepositorySettings(url="/new", password_file=base / "password")
    with pytest.raises(SettingsError, match="repository"):
        setup.write_repository_setting(path, wanted)
    assert path.read_text() == text
