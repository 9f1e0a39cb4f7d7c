"""Faults of `iotops.toml`: all at once, each with its place, and the next thing to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops import config
from iotops.config import Secret, Settings
from iotops.errors import Exit, SettingsError
from iotops.hub import find_folder, options_of

pytestmark = pytest.mark.unit

GOOD = """
[hub]
id = "0123456789abcdef"
name = "iot-hub"
owner = "iot"
"""


def load(folder: Path, text: str) -> Settings:
    (folder / "iotops.toml").write_text(text)
    return config.load(folder / "iotops.toml", options_of)


def faults(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(folder, text)
    assert caught.value.exit is Exit.USAGE
    assert "nano" in caught.value.hint
    assert all(fault in caught.value.message for fault in caught.value.faults)
    return caught.value.faults


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert found.hub.id == "0123456789abcdef"
    assert found.data.root == Path("/mnt/iot-data") and found.data.kind == "mount"
    assert found.repository is None and not found.services


def test_no_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no iotops\.toml in") as caught:
        config.load(tmp_path / "iotops.toml", options_of)
    assert "iotops init DIR" in caught.value.hint and "--hub" in caught.value.hint


def test_no_hub_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IOTOPS_HUB", raising=False)
    with pytest.raises(SettingsError, match=r"no iotops\.toml in") as caught:
        find_folder(None, start=tmp_path)
    assert "--hub DIR" in caught.value.hint


def test_the_hub_is_found_from_below_and_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IOTOPS_HUB", raising=False)
    load(tmp_path, GOOD)
    (tmp_path / "nodered" / "deep").mkdir(parents=True)
    assert find_folder(None, start=tmp_path / "nodered" / "deep") == tmp_path
    monkeypatch.setenv("IOTOPS_HUB", str(tmp_path / "nodered"))
    assert find_folder(None, start=tmp_path) == tmp_path / "nodered"
    assert find_folder(tmp_path / "given", start=tmp_path) == tmp_path / "given"


def test_broken_toml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at line 6") as caught:
        load(tmp_path, GOOD + 'owner = "again\n[data]\n')
    assert "nano" in caught.value.hint


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "iotops.toml").write_bytes(b'[hub]\nname = "K\xfcche"\n')
    with pytest.raises(SettingsError, match="not UTF-8"):
        config.load(tmp_path / "iotops.toml", options_of)


@pytest.mark.parametrize("folder", ["hub", "other/x", "host"])
def test_a_folder_with_the_name_of_a_part_of_every_snapshot(tmp_path: Path, folder: str) -> None:
    table = f'[services.extra]\nkind = "files"\nfolder = "{folder}"\n'
    assert any("part of every snapshot" in one for one in faults(tmp_path, GOOD + table))


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "iotops.toml").mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        config.load(tmp_path / "iotops.toml", options_of)


@pytest.mark.parametrize(
    ("addition", "fault"),
    [
        ("[dat]\n", "dat: unknown key; did you mean data?"),
        ("[data]\nrot = 1\n", "data.rot: unknown key; did you mean root?"),
        (
            "[data]\nxyz = 1\n",
            "data.xyz: unknown key; known: ignore_volumes, kind, old_data_days, root",
        ),
        ('[repository]\nurl = "/b"\npassword-file = "/c"\n', "did you mean password_file?"),
        (
            '[services.db]\nkind = "influxdb"\nurll = "http://x"\n',
            "services.db.urll: unknown key; did you mean url?",
        ),
    ],
)
def test_an_unknown_key_comes_with_the_nearest(tmp_path: Path, addition: str, fault: str) -> None:
    found = faults(tmp_path, GOOD + addition)
    assert len(found) == 1 and fault in found[0]


@pytest.mark.parametrize(
    ("addition", "place"),
    [
        ('[data]\nkind = "disk"\n', "data.kind: "),
        ('[data]\nroot = "relative/path"\n', "data.root: must be an absolute path"),
        ("[repository]\n", "repository.url: is missing"),
        ('[repository]\nurl = ""\n', "repository.url: "),
        ("[services.db]\n", "services.db.kind: is missing"),
        ('[services.db]\nkind = "mysql"\n', "services.db.kind: there is no kind 'mysql'"),
        ('[services.mq]\nkind = "mosquitto"\nport = "many"\n', "services.mq.port: "),
        *(
            (f'[services.mq]\nkind = "mosquitto"\nport = {port}\n', "services.mq.port: ")
            for port in ("0", "-1", "65536", "99999999", "true", '"1883"')
        ),
        *(
            (f'[services.x]\nkind = "{kind}"\nurl = "{url}"\n', "services.x.url: ")
            for kind in ("nodered", "influxdb", "grafana")
            for url in ("nonsense", "", "ftp://h", "http://", "http://h:0", "http://h:99999")
        ),
        (
            '[services.n]\nkind = "nodered"\nnpm_registry = "nonsense"\n',
            "services.n.npm_registry: must be an address",
        ),
        ('[repository]\nurl = "backups/hub"\n', "repository.url: must be an absolute path"),
        ('[repository]\nurl = "local:backups"\n', "repository.url: must be an absolute path"),
        ('[repository]\nurl = "ftp:nas:/x"\n', "repository.url: must be an absolute path"),
        ('[repository]\nurl = "rest:http://h:x/"\n', "repository.url: is no address"),
        *(
            (f'[repository]\nurl = "{url}"\n', "repository.url: lies on the disk")
            for url in ("/mnt/iot-data", "/mnt/iot-data/repo", "local:/mnt/iot-data/repo")
        ),
        (
            '[repository]\nurl = "/mnt/x/../iot-data/repo"\n',
            "repository.url: lies on the disk that it protects",
        ),
        ("services = 3\n", "services: "),
        ('[services."../x"]\nkind = "files"\n', "services.../x"),
        ("[retention]\n", "retention: is empty; say what to keep"),
        ("[retention]\nkeep_daily = -1\n", "retention.keep_daily: "),
        ('[retention]\nkeep_weekly = "4"\n', "retention.keep_weekly: "),
        ("[retention]\nkeep_monthly = true\n", "retention.keep_monthly: "),
        ("[retention]\nkeep_at_least = 0\n", "retention.keep_at_least: "),
        ("[retention]\nkeep_last = 3\n", "retention.keep_last: unknown key; did you mean"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(tmp_path: Path, addition: str, place: str) -> None:
    text = addition + GOOD if addition.startswith("services =") else GOOD + addition
    found = faults(tmp_path, text)
    assert len(found) == 1 and place in found[0], found


@pytest.mark.parametrize(
    "url",
    [
        "rest:https://u:s3cr3tpw@nas:8000/hub",
        "rest:https://:s3cr3tpw@nas/hub",
        "rest:u:s3cr3tpw@nas/hub",
        "s3:https://key:s3cr3tpw@host/bucket",
        "sftp://u:s3cr3tpw@nas//hub",
        "rclone::sftp,host=nas,pass=s3cr3tpw:hub",
    ],
)
def test_a_password_in_the_repositorys_address_is_refused_unseen(tmp_path: Path, url: str) -> None:
    (found,) = faults(tmp_path, GOOD + f'[repository]\nurl = "{url}"\n')
    assert found.startswith("repository.url: holds a password") and "s3cr3tpw" not in found
    assert "credentials_file" in found
    with pytest.raises(SettingsError) as caught:
        config.repository(url=url)
    assert "s3cr3tpw" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    assert "--credentials-file" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "/mnt/backup/iot-hub",
        "sftp:iot@nas:/hub",
        "sftp://iot@nas:2222//hub",
        "rest:https://iot@nas:8000/hub/",
        "s3:https://s3.example.org:9000/bucket/hub",
        "s3:localhost:9000/bucket",
        "b2:bucket:hub",
        "rclone:drive:hub",
    ],
)
def test_an_address_without_a_password_is_taken_as_it_is(tmp_path: Path, url: str) -> None:
    made = load(tmp_path, GOOD + f'[repository]\nurl = "{url}"\n').repository
    assert made is not None and made.url == url
    assert config.repository(url=f"local:{url}" if url[0] == "/" else url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "https://ghp_s3cr3tpw@example.org/x.git",
        "https://u:s3cr3tpw@example.org/x.git",
        "ssh://git:s3cr3tpw@example.org/x.git",
    ],
)
def test_a_token_in_the_flows_remote_is_refused_unseen(tmp_path: Path, url: str) -> None:
    (found,) = faults(tmp_path, GOOD + f'[flows]\nremote = "{url}"\n')
    assert found.startswith("flows.remote: holds a user name") and "s3cr3tpw" not in found
    assert "credential.helper" in found


@pytest.mark.parametrize(
    "url",
    [
        "",
        "git@example.org:x.git",
        "ssh://git@example.org/x.git",
        "https://example.org/x.git",
        "/srv/git/x.git",
        "user@host:path@odd",
    ],
)
def test_a_remote_without_a_secret_is_taken(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, GOOD + f'[flows]\nremote = "{url}"\n').flows.remote == url


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        '[hub]\nid = "XYZ"\nnam = "iot-hub"\n'
        "[data]\nroot = 7\n[schedule]\nbackup = 'daily'\n"
        '[services.a]\nkind = "influxdb"\nport = 1\n[services.b]\nkind = "nothing"\n',
    )
    places = [fault.partition(":")[0] for fault in found]
    assert sorted(places) == [
        "data.root",
        "hub.id",
        "hub.nam",
        "hub.name",
        "hub.owner",
        "schedule",
        "services.a.port",
        "services.b.kind",
    ]


@pytest.mark.parametrize("name", ["hub", "host", "other"])
def test_a_service_with_the_name_of_a_part_of_snapshots_is_refused(
    tmp_path: Path, name: str
) -> None:
    found = faults(tmp_path, GOOD + f'[services.{name}]\nkind = "files"\nfolder = "x"\n')
    assert found == (f"services.{name}: the name belongs to a part of every snapshot",)


@pytest.mark.parametrize("path", config.LATER)
def test_a_setting_that_nothing_acts_on_is_refused(tmp_path: Path, path: str) -> None:
    table, _, key = path.partition(".")
    text = f'[[{path}]]\nurl = "x"\n' if key else f"[{table}]\nkeep = 1\n"
    if key:
        text = f'[{table}]\nurl = "/b"\n' + text
    found = faults(tmp_path, GOOD + text)
    assert len(found) == 1 and found[0].startswith(f"{path}: ") and "not act" in found[0]


TOML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["hub", "data", "services", "repository", "kind", "id", "url", "root", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["hub", "data", "services", "repository"]), TOML_VALUES))
def test_no_document_raises_anything_but_a_settings_error(document: dict[str, object]) -> None:
    try:
        config.check(document, Path("iotops.toml"), options_of)
    except SettingsError as error:
        assert error.faults


def test_the_command_line_tells_a_fault_in_two_lines_and_as_json(tmp_path: Path) -> None:
    (tmp_path / "iotops.toml").write_text(GOOD + "[dat]\n")
    argv = [sys.executable, "-m", "iotops", "status", "--hub", str(tmp_path)]
    told = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "did you mean data?" in told.stderr and "next:  correct it: nano" in told.stderr
    assert "Traceback" not in told.stderr and not told.stdout
    as_json = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=False)
    error = json.loads(as_json.stderr)
    assert (error["message_type"], error["code"]) == ("error", 2)
    assert error["hint"].startswith("correct it")


# -- secrets --------------------------------------------------------------------------------------


def test_a_secret_prints_as_stars() -> None:
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    assert str(secret) == repr(secret) == "Secret('***')"
    assert secret.reveal() == "hunter2" and secret == Secret("hunter2") != Secret("other")


def test_env_is_read_as_compose_reads_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "\ufeff# comment\n"
        "PLAIN=a b # comment\n"
        "SINGLE='it # is $all \\n literal'\n"
        'DOUBLE="line\\nbreak \\"quoted\\""\n'
        "export SHELL_STYLE = x\n"
        "DOLLAR=a$$b\n"
        "#OFF=1\nno assignment\nEMPTY=\n"
    )
    found = {name: value.reveal() for name, value in config.read_env(tmp_path / ".env").items()}
    assert found == {
        "PLAIN": "a b",
        "SINGLE": "it # is $all \\n literal",
        "DOUBLE": 'line\nbreak "quoted"',
        "SHELL_STYLE": "x",
        "DOLLAR": "a$b",
        "EMPTY": "",
    }
    assert config.read_env(tmp_path / "none") == {}


@pytest.mark.timeout(20)
def test_an_env_that_has_no_end_is_empty(tmp_path: Path) -> None:
    """In a forged snapshot it may be a link to a pipe of this machine, which is waited at."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / ".env").symlink_to(tmp_path / "pipe")
    assert config.read_env(tmp_path / ".env") == {}


def test_a_retention_says_what_stays(tmp_path: Path) -> None:
    none = load(tmp_path, GOOD)
    assert none.retention is None  # nothing is ever forgotten
    some = load(tmp_path, GOOD + "[retention]\nkeep_daily = 7\nkeep_yearly = 2\n").retention
    assert some is not None
    assert (some.keep_daily, some.keep_weekly, some.keep_yearly, some.keep_at_least) == (7, 0, 2, 3)


# -- copies ---------------------------------------------------------------------------------------

FIRST = '[repository]\nurl = "/mnt/backup/hub"\n'


def copy_named(name: str, url: str = "", more: str = "") -> str:
    where = url or f"/mnt/{name}/hub"
    return (
        f'[[repository.copies]]\nname = "{name}"\nurl = "{where}"\npassword_file = "/p/{name}"\n'
        + more
    )


def test_copies_have_their_own_everything(tmp_path: Path) -> None:
    own = (
        'ssh_config = "/etc/iotops/ssh_config"\nappend_only = true\npatience = 20\n'
        "[repository.copies.retention]\nkeep_monthly = 24\n"
    )
    text = GOOD + FIRST + copy_named("nas", "sftp:nas:/hub", own) + copy_named("disk")
    found = load(tmp_path, text).repository
    assert isinstance(found, config.RepositorySettings)
    nas, disk = found.copies
    assert (nas.name, nas.append_only, nas.patience) == ("nas", True, 20)
    assert nas.retention is not None and nas.retention.keep_monthly == 24
    assert disk.retention is None and disk.password_file == Path("/p/disk")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (copy_named("a") + copy_named("a", "/mnt/b"), "each needs a name of its own"),
        (copy_named("a") + copy_named("b", "/mnt/a/hub"), "each needs a url of its own"),
        (copy_named("a", "/mnt/backup/hub"), "each needs a url of its own"),
        ("".join(copy_named(name) for name in "abcde"), "at most 4 items"),
        (copy_named("a b"), "repository.copies.0.name"),
        (copy_named("a", "/mnt/iot-data/x"), "repository.copies.0.url: lies on the disk"),
        (copy_named("a", "rest:http://u:secret12@h/"), "repository.copies.0.url: holds a password"),
        (copy_named("a", more="patience = 0\n"), "repository.copies.0.patience"),
        (copy_named("a", more="keep_daily = 1\n"), "repository.copies.0.keep_daily: unknown key"),
        (copy_named("a", more="apend_only = true\n"), "did you mean append_only?"),
        (copy_named("a", more="[repository.copies.retention]\n"), "is empty; say what to keep"),
        ('[[repository.copies]]\nname = "a"\nurl = "/x"\n', "password_file: is missing"),
    ],
)
def test_a_wrong_copy_is_told_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    found = faults(tmp_path, GOOD + FIRST + text)
    assert any(fault in one for one in found), found
    assert "secret12" not in str(found)


@pytest.mark.parametrize("path", ["signers", "{here}/keys/signers", "{here}/../{name}/signers"])
def test_who_may_sign_is_not_decided_in_the_hub_folder(tmp_path: Path, path: str) -> None:
    named = path.format(here=tmp_path, name=tmp_path.name)
    (found,) = faults(tmp_path, GOOD + f'[sync]\nallowed_signers = "{named}"\n')
    assert found.startswith("sync.allowed_signers: must be an absolute path outside")
    good = load(tmp_path, GOOD + '[sync]\nallowed_signers = "/etc/iotops/signers"\n')
    assert good.sync.allowed_signers == Path("/etc/iotops/signers")
