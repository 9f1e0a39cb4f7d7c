"""The files of a new hub, and what may not get into its Git."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops import config
from iotops.actions import hubfiles, setup
from iotops.actions.hooks import refused_in_git, staged
from iotops.errors import SettingsError, UsageError
from iotops.hub import options_of
from iotops.services import kind

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SECRET = re.compile(r"[A-Za-z][A-Za-z0-9_-]{31}")


def facts(**changed: str) -> dict[str, str]:
    """What `init` puts into the template."""
    return {
        **hubfiles.generate(),
        "ID": "0123456789abcdef",
        "NAME": "home",
        "OWNER": "iot",
        "ROOT": "/mnt/iot-data",
        "KIND": "mount",
        "PROJECT": "home",
        "TZ": "Europe/Berlin",
        "MQTT_ADDRESS": "0.0.0.0",
        "WEB_ADDRESS": "127.0.0.1",
        "MQTT_HOST": "127.0.0.1",
        "WEB_HOST": "127.0.0.1",
        **changed,
    }


# ---- files --------------------------------------------------------------------------------------


def test_the_settings_load_without_a_fault() -> None:
    text = hubfiles.render(facts(), {"mosquitto": 2883})["iotops.toml"].decode()
    found = config.check(tomllib.loads(text), Path("iotops.toml"), options_of)
    assert found.hub == config.HubSettings(id="0123456789abcdef", name="home", owner="iot")
    assert found.data == config.DataSettings(root=Path("/mnt/iot-data"), kind="mount")
    assert [*found.services] == ["mosquitto", "nodered", "influxdb", "grafana"]
    assert getattr(found.services["mosquitto"], "port", None) == 2883


def test_no_container_but_influxdb_gets_the_operator_token() -> None:
    compose = hubfiles.render(facts(), {})["docker-compose.yaml"].decode()
    (line,) = [line for line in compose.splitlines() if "INFLUXDB_OPERATOR_TOKEN" in line]
    assert "DOCKER_INFLUXDB_INIT_ADMIN_TOKEN" in line


def test_every_placeholder_is_filled() -> None:
    made = hubfiles.render(facts(), {})
    for path, data in made.items():
        assert not re.search(rb"@[A-Z_]+@", data), path
    assert {*made} >= {".env", ".gitignore", "docker-compose.yaml", "iotops.toml"}
    assert not any("__" in path for path in made)


def test_no_secret_stands_in_a_committed_file() -> None:
    values = hubfiles.generate()
    for path, data in hubfiles.render(facts(**values), {}).items():
        held = [name for name, value in values.items() if value.encode() in data]
        assert held == ([*values] if path == ".env" else []), path


def test_env_values_are_read_as_generated() -> None:
    values = hubfiles.generate()
    env = hubfiles.render(facts(**values), {"grafana": 3333})[".env"].decode()
    for name, value in {**values, "GRAFANA_PORT": "3333", "MQTT_PORT": "1883"}.items():
        assert f"\n{name}='{value}'\n" in env


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_any_path_survives_in_settings(tail: str) -> None:
    text = hubfiles.render(facts(ROOT=f"/mnt/{tail}"), {})["iotops.toml"].decode()
    assert tomllib.loads(text)["data"]["root"] == f"/mnt/{tail}"


def test_ports_are_checked() -> None:
    with pytest.raises(UsageError, match="no service 'mosquito'"):
        hubfiles.render(facts(), {"mosquito": 1})
    with pytest.raises(UsageError, match="two services"):
        hubfiles.render(facts(), {"mosquitto": 3000})


def test_data_folders_have_the_owners_of_the_kinds() -> None:
    for name in ("mosquitto", "nodered", "influxdb", "grafana"):
        service = kind(name)
        owner, _ = setup.DATA_FOLDERS[service.default_folder]
        assert owner == service.owner, name


def test_images_are_pinned_to_a_full_version() -> None:
    for image in hubfiles.IMAGES.values():
        assert re.fullmatch(r"[a-z/-]+:\d+\.\d+\.\d+(-\d+)?", image), image


def test_the_package_ships_what_is_read_at_run_time() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = shipped["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["iotops"]
    assert wheel["force-include"] == {"hooks": "iotops/hooks", "systemd": "iotops/systemd"}
    ignored = (ROOT / ".gitignore").read_text().split()
    names = {path.name for path in (ROOT / "iotops/actions/template").rglob("*") if path.is_file()}
    assert not names & {*ignored}  # hatch leaves out what Git ignores
    assert not any(name.startswith(".") for name in names)
    assert hubfiles.shipped("hooks/pre-commit").startswith("#!/bin/sh\n")
    assert "ExecStart" in hubfiles.shipped("systemd/iotops-backup.service")


# ---- secrets ------------------------------------------------------------------------------------


def test_secrets_are_long_different_and_plain() -> None:
    first, second = hubfiles.generate(), hubfiles.generate()
    values = [*first.values(), *second.values()]
    assert len({*values}) == len(values) == 2 * len(hubfiles.SECRETS)
    assert all(SECRET.fullmatch(value) for value in values)


def test_a_password_for_paper_is_readable() -> None:
    made = hubfiles.readable_password()
    assert re.fullmatch(r"([a-hjkmnp-z2-9]{5}-){5}[a-hjkmnp-z2-9]{5}", made)
    assert made != hubfiles.readable_password()


def test_mosquittos_line_holds_the_password() -> None:
    """Format of `mosquitto_passwd` 2.0: a longer salt would be refused by that version."""
    line = hubfiles.mosquitto_line("iotops", "secret")
    user, _, rest = line.rstrip("\n").partition(":")
    empty, version, rounds, salt, digest = rest.split("$")
    assert (user, empty, version, rounds) == ("iotops", "", "7", "101")
    raw = base64.b64decode(salt, validate=True)
    assert len(raw) == 12
    wanted = hashlib.pbkdf2_hmac("sha512", b"secret", raw, 101, 64)
    assert base64.b64decode(digest, validate=True) == wanted
    assert hubfiles.mosquitto_line("iotops", "secret") != line


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A='1'\nT=''\nB='2'\n", "A='1'\nT='new=='\nB='2'\n"),
        ("T=old # mine\nexport T = older\n", "T=old # mine\nT='new=='\n"),
        ("A='1'", "A='1'\nT='new=='\n"),
        ("#T=''\nXT=''\n", "#T=''\nXT=''\nT='new=='\n"),
    ],
)
def test_a_secret_is_set_and_everything_else_stays(tmp_path: Path, before: str, after: str) -> None:
    made = hubfiles.set_secret(before, "T", "new==")
    assert made == after
    (tmp_path / ".env").write_text(made)
    assert config.read_env(tmp_path / ".env")["T"].reveal() == "new=="


# ---- editing the settings -----------------------------------------------------------------------

TEXT = """# mine
[hub]
name = "home"  # a name

[repository]  # where
url = "/old"   # soon elsewhere
# a remark

[services.x]
url = "untouched"
"""


def test_a_key_is_changed_and_everything_else_stays() -> None:
    after = hubfiles.set_keys(TEXT, "repository", {"url": '/a "new" ö', "password_file": "/p"})
    assert tomllib.loads(after)["repository"] == {"url": '/a "new" ö', "password_file": "/p"}
    before = TEXT.splitlines()
    assert [line for line in before if line not in after.splitlines()] == [
        'url = "/old"   # soon elsewhere'
    ]


def test_a_missing_table_is_appended() -> None:
    after = hubfiles.set_keys("[hub]\nname = 'x'", "repository", {"url": "/new"})
    assert after == "[hub]\nname = 'x'\n\n[repository]\nurl = \"/new\"\n"


@pytest.mark.parametrize(
    "text",
    [
        'repository = { url = "/old" }\n',
        'repository.url = "/old"\n',
        '[repository]\n"url" = "/old"\n',
        "[repository]\nurl = '''\n/old\n'''\n",
    ],
)
def test_what_cannot_be_edited_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        hubfiles.set_keys(text, "repository", {"url": "/new"})
    assert 'url = "/new"' in caught.value.hint


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_can_be_set(value: str) -> None:
    after = hubfiles.set_keys(TEXT, "repository", {"url": value})
    assert tomllib.loads(after)["repository"]["url"] == value


# ---- what may not be committed ------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "old/.env",
        ".env.bak",
        "flows_cred.json",
        "nodered/flows_cred.json",
        "flows_pi_cred.json",
        ".config.runtime.json",
        "data/.config.nodes.json",
        ".sessions.json",
        "mqtt/secrets/passwd",
        "mqtt/secrets/dynamic-security.json",
        "mosquitto/certs/server.key",
        "mosquitto/certs/server.p12",
        "certs/Hub.PFX",
        "certs/privkey1.pem",
        "grafana/key.pem",
        "store.jks",
        "nodered/id_rsa",
        "id_rsa.bak",
        "ssh/id_ed25519",
        "id_ecdsa_sk",
    ],
)
def test_secrets_are_refused(path: str) -> None:
    (found,) = refused_in_git([path])
    assert (found.code, found.subject) == ("git.secret", path)
    assert "git rm --cached" in found.hint


@pytest.mark.parametrize(
    "path",
    [
        "mosquitto.db",
        "grafana/grafana.db",
        "grafana/grafana.db-wal",
        "influxdb/influxd.bolt",
        "influxdb/influxd.sqlite",
        "x/000000001-000000001.tsm",
        "influxdb/engine/data/a/fields.idx",
        "nodered/node_modules/x/index.js",
        ".iotops/journal/x.json",
        ".iotops-data-root",
    ],
)
def test_running_state_is_refused(path: str) -> None:
    assert [found.code for found in refused_in_git([path])] == ["git.state"]


def test_what_a_hub_commits_is_let_through() -> None:
    made = [path for path in hubfiles.render(facts(), {}) if path != ".env"]
    flows = [
        "index.json",
        "tabs/heating--1a2b.json",
        "global.json",
        "palette.json",
        "code/a.func.js",
    ]
    mine = [
        "README.md",
        "id_rsa.pub",
        "mosquitto/certs/ca.pem",
        ".env.example",
        "mosquitto/devices.toml",
        "grafana/x/engine.json",
    ]
    assert refused_in_git([*made, *flows, *mine]) == ()


def test_staged_paths_are_split_at_nul() -> None:
    assert staged(b"a b\0\xffx\n\0") == ("a b", "\udcffx\n")
    assert staged(b"") == ()


def test_json_stays_what_the_template_says() -> None:
    """The escapes of one template file do not leak into another one."""
    made = hubfiles.render(facts(ROOT='/a"b$c\\d'), {})
    compose = made["docker-compose.yaml"].decode()
    source = re.search(r'source: ("[^}]*/nodered"), target: /data', compose)
    assert source is not None
    assert json.loads(source[1]) == '/a"b$$c\\d/nodered'
