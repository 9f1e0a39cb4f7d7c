"""How an existing Compose project is judged, as data: layouts that people have.

Every layout is also opened as the hub that it becomes, so that what was decided is what happens.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from iotops import config
from iotops.actions import adopt
from iotops.actions.adopt import Kept, Seen
from iotops.actions.adoptfindings import findings
from iotops.clients import composemodel
from iotops.clients.composemodel import Container, Mount
from iotops.clients.mosquittofolder import Conf
from iotops.hub import options_of
from iotops.model import Finding, Severity
from tests.support.paperhub import PaperHub

pytestmark = pytest.mark.unit

FOLDER, ROOT = Path("/srv/hub"), Path("/mnt/iot-data")
IMAGES = {
    "mosquitto": ("eclipse-mosquitto:2.0.22", 1883, "/mosquitto/data"),
    "nodered": ("nodered/node-red:4.1.13-22", 1880, "/data"),
    "influxdb": ("influxdb:2.9.1", 8086, "/var/lib/influxdb2"),
    "grafana": ("grafana/grafana:12.4.0", 3000, "/var/lib/grafana"),
}
TOKEN = {"INFLUXDB_OPERATOR_TOKEN": "operator"}

Document = dict[str, object]


def known(kind: str, source: str, *more: str, **values: object) -> Document:
    """A service of a known kind whose data lies in `source`; `more` are further mounts."""
    image, port, target = IMAGES[kind]
    return {
        "image": image,
        "ports": [{"target": port, "published": str(port), "host_ip": "127.0.0.1"}],
        "volumes": [bind(f"{source}:{target}"), *map(bind, more)],
        **values,
    }


def plain(*mounts: str, **values: object) -> Document:
    """A service of an image that no kind knows."""
    return {"image": "mine/thing:1.2", "volumes": [*map(bind, mounts)], **values}


def bind(text: str) -> Document:
    """A mount in Compose's own words; a source without a slash is a volume."""
    source, target, *read_only = text.split(":")
    kind = "bind" if source.startswith(("/", ".")) else "volume"
    if kind == "bind":
        source = os.path.normpath(FOLDER / source)
    return {"type": kind, "source": source, "target": target, "read_only": bool(read_only)}


def seen(services: Mapping[str, object], **more: object) -> Seen:
    """What was found of a project with these services."""
    document: Document = {"name": "mine", "services": dict(services)}
    document["volumes"] = more.pop("volumes", {})
    whole = composemodel.model(document)
    made = Seen(
        folder=FOLDER,
        root=ROOT,
        whole=whole,
        active=frozenset(name for name, one in whole.services.items() if not one.profiles),
        git=FOLDER,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def kept(project: Seen) -> dict[str, tuple[str, str]]:
    """Kind and folder of each service with data of its own."""
    return {
        one.service: (one.kind, one.folder.relative_to(ROOT).as_posix())
        for one in adopt.judge(project)
    }


def tables(project: Seen) -> dict[str, Mapping[str, object]]:
    return {one.name: one.table for one in adopt.judge(project) if one.table}


def found(project: Seen, *codes: str) -> list[Finding]:
    """The findings of these codes, or all of them."""
    every = findings(project, adopt.judge(project))
    return [one for one in every if not codes or one.code in codes]


def only(project: Seen, code: str, severity: Severity, *says: str) -> Finding:
    (one,) = found(project, code)
    assert one.severity is severity and one.hint
    for word in says:
        assert word in f"{one.subject}: {one.message}; {one.hint}"
    return one


def text(project: Seen, judged: tuple[Kept, ...] | None = None) -> str:
    hub = {"id": "0123456789abcdef", "name": "mine", "owner": "root"}
    judged = adopt.judge(project) if judged is None else judged
    return adopt.settings(hub, {"root": str(ROOT), "kind": "mount"}, {}, judged)


# -- layouts ---------------------------------------------------------------------------------------

OWN = {
    "mosquitto": known(
        "mosquitto",
        "/mnt/iot-data/mqtt/data",
        "/mnt/iot-data/mqtt/log:/mosquitto/log",
        "/mnt/iot-data/mqtt/secrets:/mosquitto/secrets",
        "./mosquitto:/mosquitto/config:ro",
    ),
    "nodered": known("nodered", "/mnt/iot-data/nodered", "./nodered:/config:ro"),
    "influxdb": known("influxdb", "/mnt/iot-data/influxdb"),
    "grafana": known("grafana", "/mnt/iot-data/grafana"),
}
OTHER_NAMES = {
    "broker": known("mosquitto", "/mnt/iot-data/mosquitto/data", container_name="my-mqtt"),
    "flows": known("nodered", "/mnt/iot-data/node-red/data"),
    "tsdb": known("influxdb", "/mnt/iot-data/influx/db", "/mnt/iot-data/influx/etc:/etc/influxdb2"),
    "charts": known("grafana", "/mnt/iot-data/charts"),
}
NESTED = {
    "broker": known(
        "mosquitto",
        "/mnt/iot-data/docker/mosquitto/data",
        "/mnt/iot-data/docker/mosquitto/log:/mosquitto/log",
    ),
    "nodered": known("nodered", "/mnt/iot-data/docker/nodered"),
    "zigbee": plain("/mnt/iot-data/docker/zigbee:/app/data"),
    "matter": plain("/mnt/iot-data/docker/matter/a:/a", "/mnt/iot-data/docker/matter/b:/b"),
}
APART = {
    "broker": known(
        "mosquitto",
        "/mnt/iot-data/mqtt-data",
        "/mnt/iot-data/a-mqtt-log:/mosquitto/log",
        "/mnt/iot-data/mqtt-config:/mosquitto/config:ro",
    ),
}
VIEWERS = {
    "a-viewer": plain("/mnt/iot-data/grafana:/look:ro"),
    "an-editor": plain("/mnt/iot-data/nodered/lib:/lib", "/mnt/iot-data/editor:/config"),
    "browser": plain("/mnt/iot-data:/everything"),
    "grafana": known("grafana", "/mnt/iot-data/grafana"),
    "nodered": known("nodered", "/mnt/iot-data/nodered"),
    "proxy": plain("./proxy:/etc/proxy:ro"),
}
RESERVED = {"host": plain("/mnt/iot-data/agent:/state"), "a.b": plain("/mnt/iot-data/dotted/x:/x")}

LAYOUTS = {
    "own": (
        OWN,
        {
            "mosquitto": ("mosquitto", "mqtt"),
            "nodered": ("nodered", "nodered"),
            "influxdb": ("influxdb", "influxdb"),
            "grafana": ("grafana", "grafana"),
        },
        {"mosquitto"},
    ),
    "other names": (
        OTHER_NAMES,
        {
            "broker": ("mosquitto", "mosquitto"),
            "flows": ("nodered", "node-red/data"),
            "tsdb": ("influxdb", "influx/db"),
            "charts": ("grafana", "charts"),
        },
        {"broker"},
    ),
    "nested": (
        NESTED,
        {
            "broker": ("mosquitto", "docker/mosquitto"),
            "nodered": ("nodered", "docker/nodered"),
            "zigbee": ("files", "docker/zigbee"),
            "matter": ("files", "docker/matter"),
        },
        {"broker", "zigbee", "matter"},
    ),
    "apart": (APART, {"broker": ("mosquitto", "mqtt-data")}, {"broker"}),
    "viewers": (
        VIEWERS,
        {
            "grafana": ("grafana", "grafana"),
            "nodered": ("nodered", "nodered"),
            "an-editor": ("files", "editor"),
        },
        {"an-editor"},
    ),
    "reserved": (
        RESERVED,
        {"host": ("files", "agent"), "a.b": ("files", "dotted")},
        {"host-service"},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_understood(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services, wanted, written = LAYOUTS[name]
    project = seen(services)
    assert kept(project) == wanted
    assert {*tables(project)} == written  # and nothing that can be read from the Compose file
    # The hub that it becomes sees the same services in the same places.
    paper = PaperHub(tmp_path)
    monkeypatch.setenv("PATH", f"{paper.bin}:{os.environ['PATH']}")
    paper.compose(services)
    (paper.folder / "iotops.toml").write_text(text(project))
    hub = paper.open()
    became = {
        one.place.container: (one.kind, one.place.folder.relative_to(ROOT).as_posix())
        for one in hub.services
    }
    assert became == wanted


def test_the_own_layout_has_nothing_that_is_not_captured() -> None:
    project = seen(OWN, secrets=TOKEN)
    assert {one.code for one in found(project)} == {"mosquitto.login"}


def test_the_settings_say_what_only_the_owner_can_know() -> None:
    wanted = tomllib.loads(text(seen(OTHER_NAMES)))
    assert wanted["hub"] == {"id": "0123456789abcdef", "name": "mine", "owner": "root"}
    assert wanted["data"] == {"root": "/mnt/iot-data", "kind": "mount"}
    broker = {"kind": "mosquitto", "folder": "mosquitto", "username": ""}
    assert wanted["services"] == {"broker": broker}
    assert set(wanted) == {"hub", "data", "services"}


def test_odd_names_become_settings_that_load() -> None:
    project = seen({"a.b": known("mosquitto", '/mnt/iot-data/a "quoted" place')})
    checked = config.check(tomllib.loads(text(project)), Path("iotops.toml"), options_of)
    assert [*checked.services] == ["a.b"]


# -- what no snapshot would hold -------------------------------------------------------------------


def test_a_single_file_is_told_with_what_a_change_of_it_needs() -> None:
    path = FOLDER / "mosquitto.conf"
    service = known(
        "mosquitto", "/mnt/iot-data/mqtt/data", "./mosquitto.conf:/mosquitto/config/mosquitto.conf"
    )
    project = seen({"broker": service}, files=frozenset({path}))
    only(project, "mount.file", Severity.INFO, str(path), "docker compose restart broker")
    assert not found(project, "mount.outside", "mount.in-hub")


@pytest.mark.parametrize("mount", ["/home/pi/m.conf:/c:ro", "/home/pi/data:/d", "/opt/x:/x:ro"])
def test_what_lies_elsewhere_is_named_with_its_new_place(mount: str) -> None:
    source = Path(mount.split(":")[0])
    files = frozenset({source} if source.suffix else ())
    project = seen({"web": plain("/mnt/iot-data/web:/web", mount)}, files=files)
    goal = "/mnt/iot-data/" if mount == "/home/pi/data:/d" else "/srv/hub"
    only(project, "mount.outside", Severity.ERROR, str(source), goal, "web")


@pytest.mark.parametrize(
    "mount",
    ["/etc/localtime:/etc/localtime:ro", "/var/run/docker.sock:/s", "/:/host:ro", "/dev:/d"],
)
def test_places_of_the_machine_are_no_finding(mount: str) -> None:
    assert not found(seen({"web": plain("/mnt/iot-data/web:/web", mount)}))


def test_data_in_the_hub_folder_is_told_with_the_way_out() -> None:
    project = seen({"db": known("influxdb", "./influx"), "web": plain("./web:/d", "./ro:/c:ro")})
    database, web = found(project, "mount.in-hub")
    assert database.severity is Severity.ERROR and "not as influxdb" in database.message
    assert "sudo mv /srv/hub/influx /mnt/iot-data/influx" in database.hint
    assert web.severity is Severity.WARNING and web.subject == "web"


def test_a_folder_beside_the_services_own_one() -> None:
    mounts = ("/mnt/iot-data/one:/one", "/mnt/iot-data/two:/two")
    one = only(seen({"web": plain(*mounts)}), "folder.beside", Severity.WARNING, "iot-data/two")
    _, _, told = one.hint.partition("a table: ")
    table = told.replace("] ", "]\n").replace(", ", "\n")
    document = {**tomllib.loads(text(seen({}))), **tomllib.loads(table)}
    checked = config.check(document, Path("iotops.toml"), options_of)
    assert [*checked.services] == ["web-2"]


def test_what_changes_by_no_service_may_lie_beside_it() -> None:
    assert not found(seen(APART), "folder.beside")  # its log, and what it only reads
    assert not found(seen({"web": plain("/mnt/iot-data/web:/d", "/mnt/iot-data:/all")}))


def test_a_volume_that_is_a_folder_of_the_data_root() -> None:
    devices = {"mine_deep": ROOT / "deep", "mine_far": Path("/home/far")}
    service: Document = {
        "image": "influxdb:2.9.1",
        "volumes": [bind("mine_deep:/var/lib/influxdb2")],
    }
    project = seen({"db": service}, devices=devices)
    only(project, "volume.bound", Severity.ERROR, "/mnt/iot-data/deep:/var/lib/influxdb2")
    other = seen({"web": plain("mine_deep:/d", "mine_far:/e")}, devices=devices)
    only(other, "volume.bound", Severity.WARNING, "mine_deep")


def test_a_server_whose_data_nothing_keeps() -> None:
    bare: Document = {"image": "nodered/node-red:4.1.13-22"}
    only(seen({"flows": bare}), "data.unmounted", Severity.ERROR, "/data", "docker compose cp")
    unnamed = Mount(None, "/data", "volume", False, False, "ab" * 32)
    container = made_container("flows", mounts=(unnamed,))
    assert not found(seen({"flows": bare}, containers={"flows": container}), "data.unmounted")


def test_a_folder_with_the_name_of_a_snapshots_part() -> None:
    project = seen({"web": plain("/mnt/iot-data/other/web:/d")})
    only(project, "folder.reserved", Severity.ERROR, "rename /mnt/iot-data/other")


def test_files_of_the_project_outside_of_its_folder() -> None:
    outside = Path("/home/pi/secret.txt")
    project = seen(
        {
            "web": plain(build={"context": "/home/pi/web"}),
            "own": plain(build={"context": "/srv/hub/own"}),
        },
        parts=(FOLDER / "compose.yaml", Path("/home/pi/more.yaml")),
    )
    project = replace(project, whole=replace(project.whole, files=(outside, FOLDER / "inner.txt")))
    told = {one.subject for one in found(project, "file.outside")}
    assert told == {str(outside), "/home/pi/web", "/home/pi/more.yaml"}
    only(project, "image.built", Severity.INFO, "own")


# -- access ----------------------------------------------------------------------------------------


def influx(**environment: str) -> Mapping[str, object]:
    return {"tsdb": known("influxdb", "/mnt/iot-data/influx", environment=environment)}


def test_an_operator_token_is_found_by_its_value() -> None:
    services = influx(DOCKER_INFLUXDB_INIT_ADMIN_TOKEN="s3cret-token")
    project = seen(services, secrets={"OTHER": "x", "MY_TOKEN": "s3cret-token"})
    assert tables(project)["tsdb"]["token_env"] == "MY_TOKEN"
    assert not found(project, "token.missing")
    for one in (text(project), repr(project), repr(adopt.judge(project))):
        assert "s3cret-token" not in one


def test_an_operator_token_that_is_not_in_the_env_file() -> None:
    project = seen(influx(DOCKER_INFLUXDB_INIT_ADMIN_TOKEN="s3cret-token"))
    one = only(project, "token.missing", Severity.ERROR, "DOCKER_INFLUXDB_INIT_ADMIN_TOKEN", ".env")
    assert "s3cret-token" not in repr(one)
    only(seen(influx()), "token.missing", Severity.ERROR, "influx auth create --operator")
    assert not tables(seen(influx(), secrets=TOKEN))


def test_a_login_of_node_red_needs_a_token() -> None:
    services = {"flows": known("nodered", "/mnt/iot-data/nodered")}
    guarded = seen(services, guarded=frozenset({"flows"}))
    only(guarded, "token.missing", Severity.ERROR, "NODERED_TOKEN", "adminAuth.tokens")
    assert not found(replace(guarded, secrets={"NODERED_TOKEN": "x"}), "token.missing")
    assert not found(seen(services))


def test_names_of_secrets_of_node_red_and_grafana() -> None:
    services = {
        "flows": known(
            "nodered", "/mnt/iot-data/n", environment={"NODE_RED_CREDENTIAL_SECRET": "key"}
        ),
        "charts": known(
            "grafana",
            "/mnt/iot-data/g",
            environment={"GF_SECURITY_ADMIN_PASSWORD": "pw", "GF_SECURITY_ADMIN_USER": "boss"},
        ),
    }
    project = seen(services, secrets={"THE_KEY": "key", "THE_PASSWORD": "pw"})
    assert tables(project)["flows"]["secret_env"] == "THE_KEY"
    assert tables(project)["charts"]["admin_password_env"] == "THE_PASSWORD"
    assert tables(project)["charts"]["admin_user"] == "boss"


def test_an_open_broker_is_accepted_and_told() -> None:
    services = {"broker": known("mosquitto", "/mnt/iot-data/mqtt/data")}
    project = seen(services, brokers={"broker": Conf(persistence=True, anonymous=True)})
    assert tables(project)["broker"]["anonymous"] is True
    only(project, "mosquitto.open", Severity.WARNING, "allow_anonymous false", "[services.broker]")
    closed = seen(services, brokers={"broker": Conf()})
    assert "anonymous" not in tables(closed)["broker"]
    only(closed, "mosquitto.persistence", Severity.WARNING, "persistence true")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"ports": []}, True),
        ({"ports": [{"target": 8086}]}, True),
        ({"ports": [{"target": 9999, "published": "8086"}]}, True),
        ({"ports": [], "network_mode": "host"}, False),
        ({"ports": [{"target": 8086, "published": "18086"}]}, False),
    ],
)
def test_a_server_that_cannot_be_asked(values: dict[str, object], told: bool) -> None:
    services = {"db": {**known("influxdb", "/mnt/iot-data/influx"), **values}}
    project = seen(services, secrets=TOKEN)
    if told:
        only(project, "port.unpublished", Severity.ERROR, "127.0.0.1:8086:8086", "url")
    else:
        assert not found(project)


# -- the whole project -----------------------------------------------------------------------------


def made_container(service: str, **more: object) -> Container:
    one = composemodel.container({"Name": f"/{service}-1"}, {})
    return replace(one, service=service, **more)  # type: ignore[arg-type]


def test_a_profile_that_is_not_active() -> None:
    services = {"tool": plain("/mnt/iot-data/tool:/d", profiles=["tools"])}
    project = seen(services)
    assert not kept(project)
    only(project, "profile.inactive", Severity.INFO, "no part of the hub", "COMPOSE_PROFILES=tools")
    runs = seen(
        services,
        containers={"tool": made_container("tool")},
        folders=frozenset({ROOT / "tool"}),
    )
    only(runs, "profile.inactive", Severity.ERROR, "/mnt/iot-data/tool", "COMPOSE_PROFILES=tools")


def test_containers_of_another_project_than_compose_finds() -> None:
    services = {"web": plain("/mnt/iot-data/web:/d")}
    tops = (FOLDER / "compose.yaml",)
    used = (FOLDER / "compose.yaml", FOLDER / "more.yaml")
    project = seen(services, tops=tops, containers={"web": made_container("web", files=used)})
    only(project, "project.files", Severity.ERROR, "COMPOSE_FILE=compose.yaml:more.yaml")
    same = seen(services, tops=tops, containers={"web": made_container("web", files=tops)})
    assert not found(same)
    named = seen(services, other_names=("pi",))
    only(named, "project.other-name", Severity.ERROR, "name: pi")
    orphan = seen(services, containers={"old": made_container("old")})
    only(orphan, "container.undeclared", Severity.ERROR, "old", "--remove-orphans")


def test_what_else_is_told_of_a_project() -> None:
    bare = seen({}, named=False, has_env=False, git=None, unset=("ONE", "TWO"))
    told = {one.code: one for one in found(bare)}
    assert {*told} == {"project.name", "env.missing", "git.missing", "variable.unset"}
    assert all(one.severity is not Severity.ERROR and one.hint for one in told.values())
    assert "name: mine" in told["project.name"].hint
    assert "ONE, TWO" in told["variable.unset"].message
    assert "git init" in told["git.missing"].hint
    assert "sync adopt" in told["git.missing"].hint, "`git add .` takes password files along"
    only(seen({}, git=Path("/srv")), "git.above", Severity.WARNING, "/srv")
