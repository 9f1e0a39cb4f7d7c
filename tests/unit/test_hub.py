"""The hall: the guard before every run, secrets, and the owner."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from iotops import disk
from iotops.config import Secret
from iotops.errors import GuardError, SettingsError
from iotops.hub import Hub, repository_access
from tests.support.paperhub import PaperHub

pytestmark = pytest.mark.unit

ID = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hub folder whose data root is a claimed plain folder."""
    made, root = tmp_path / "hub", tmp_path / "data"
    made.mkdir()
    root.mkdir()
    (made / "iotops.toml").write_text(
        f'[hub]\nid = "{ID}"\nname = "h"\nowner = "root"\n'
        f'[data]\nroot = "{root}"\nkind = "folder"\n'
        f'[paths]\nstate = "{tmp_path}/state"\nrun = "{tmp_path}/run"\n'
        '[repository]\nurl = "/b"\npassword_file = "/p"\n'
        f'credentials_file = "{tmp_path}/credentials"\n'
        '[services.notes]\nkind = "files"\n'
    )
    disk.claim(root, "folder", ID, "h")
    return made


def test_the_guard_makes_missing_own_folders_again(folder: Path) -> None:
    hub = Hub.open(folder)
    shutil.rmtree(hub.layout.folder)
    hub.guard()
    assert hub.layout.journal.is_dir() and hub.layout.staging.is_dir()
    hub.journal.begin("backup").close("complete")


def test_the_guard_makes_nothing_on_a_disk_that_is_not_ours(folder: Path) -> None:
    hub = Hub.open(folder)
    shutil.rmtree(hub.layout.folder)
    (hub.root / disk.SENTINEL).write_text('{"hub": "fedcba9876543210"}')
    with pytest.raises(GuardError, match="another hub"):
        hub.guard()
    assert not hub.layout.folder.exists()


def test_a_secret_comes_from_a_credential_before_the_env_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (folder / ".env").write_text("TOKEN='from env'\n")
    hub = Hub.open(folder)
    assert hub.secret("TOKEN") == Secret("from env") and hub.secret("NONE") is None
    (tmp_path / "TOKEN").write_text("from systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert hub.secret("TOKEN") == Secret("from systemd")
    of_snapshot = hub.with_secrets({"TOKEN": Secret("from the snapshot")})
    assert of_snapshot.secret("TOKEN") == Secret("from the snapshot")


def test_an_owner_that_the_machine_does_not_know(folder: Path) -> None:
    settings = folder / "iotops.toml"
    settings.write_text(settings.read_text().replace('"root"', '"nobody-here"'))
    with pytest.raises(SettingsError, match="no user 'nobody-here'") as caught:
        _ = Hub.open(folder).owner
    assert "useradd" in caught.value.hint


def test_an_access_credential_is_read_or_named(folder: Path, tmp_path: Path) -> None:
    hub = Hub.open(folder)
    with pytest.raises(SettingsError, match=r"repository\.credentials_file: .* does not exist"):
        repository_access(hub.settings, hub.layout)
    (tmp_path / "credentials").write_text("AWS_SECRET_ACCESS_KEY=abc\n")
    access = repository_access(hub.settings, hub.layout)
    assert access.environment == {"AWS_SECRET_ACCESS_KEY": "abc"}
    assert "abc" not in repr(access)


# -- what the settings leave out ------------------------------------------------------------------


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperHub:
    made = PaperHub(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


def inferred(paper: PaperHub, *mounts: tuple[str, str]) -> list[tuple[str, str]]:
    """Kind and folder of what is inferred for one Compose service with these mounts."""
    volumes = [
        {"type": "bind", "source": str(paper.root / source), "target": target}
        for source, target in mounts
    ]
    paper.compose({"web": {"image": "web:1.0", "volumes": volumes}})
    hub = paper.open()
    return [(one.kind, one.place.folder.relative_to(hub.root).as_posix()) for one in hub.services]


def test_a_folder_that_a_container_mounts_is_a_service(paper: PaperHub) -> None:
    (paper.root / "web").mkdir()
    assert inferred(paper, ("web", "/data")) == [("files", "web")]
    assert inferred(paper, ("web/conf/site.conf", "/etc/site.conf")) == [("files", "web")]
    assert inferred(paper, ("gone", "/data")) == [("files", "gone")]  # a new disk


def test_a_file_in_the_data_root_is_no_services_folder(paper: PaperHub) -> None:
    (paper.root / "site.conf").write_text("x")
    (paper.root / "web").mkdir()
    assert inferred(paper, ("site.conf", "/etc/web/default")) == []
    assert inferred(paper, ("site.conf", "/etc/web/default"), ("web", "/data")) == [
        ("files", "web")
    ]
    (paper.root / "site.conf").unlink()  # a new disk
    assert inferred(paper, ("site.conf", "/etc/web/default.conf")) == []


def asked(paper: PaperHub, *ports: dict[str, object]) -> str:
    """Where the hub asks an InfluxDB that publishes these ports."""
    mount = {"type": "bind", "source": f"{paper.root}/db", "target": "/var/lib/influxdb2"}
    service = {"image": "influxdb:2.9.1", "ports": [*ports], "volumes": [mount]}
    paper.compose({"db": service})
    (service_of_hub,) = paper.open().services
    return str(getattr(service_of_hub.options, "url", ""))


def test_a_server_is_asked_at_its_published_port(paper: PaperHub) -> None:
    usual = "http://127.0.0.1:8086"
    assert asked(paper) == usual
    assert asked(paper, {"target": 8086, "published": "18086"}) == "http://127.0.0.1:18086"
    on_one = {"target": 8086, "published": "80", "host_ip": "192.0.2.7", "protocol": "tcp"}
    assert asked(paper, on_one) == "http://192.0.2.7:80"
    assert asked(paper, {"target": 8088, "published": "18088"}) == usual
    assert asked(paper, {"target": 8086, "published": "1", "protocol": "udp"}) == usual


def test_the_settings_go_before_a_published_port(paper: PaperHub) -> None:
    paper.write('[services.db]\nkind = "influxdb"\nfolder = "db"\nurl = "http://127.0.0.1:9"\n')
    published: dict[str, object] = {"target": 8086, "published": "18086"}
    assert asked(paper, published) == "http://127.0.0.1:9"
    paper.write('[services.db]\nkind = "influxdb"\nfolder = "db"\n')
    assert asked(paper, published) == "http://127.0.0.1:18086"
