"""What of a machine does not fit a snapshot is found before anything stops.

On a hub on paper: the Compose file says what would run, no container is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iotops.actions import ports, restore
from iotops.actions.plan import HubFacts, Wanted, plan
from iotops.clients import composemodel, network
from iotops.clients.noderedfolder import own_processor
from iotops.model import (
    Artifact,
    Finding,
    HostRecord,
    ImageRecord,
    Manifest,
    Mode,
    Outcome,
    PublishedPort,
    ServiceRecord,
    Severity,
)
from tests.support.paperhub import ID, PaperHub

pytestmark = pytest.mark.unit

NOWHERE = "192.0.2.7"
"""An address for examples (RFC 5737), which no machine has."""
KINDS = {
    "mosquitto": ("mosquitto", "eclipse-mosquitto:2.1.2", "/mosquitto/data", "mqtt"),
    "nodered": ("nodered", "nodered/node-red:5.0.7-22", "/data", "nodered"),
    "influxdb": ("influxdb", "influxdb:2.9.1", "/var/lib/influxdb2", "influxdb"),
    "grafana": ("grafana", "grafana/grafana:13.0.1", "/var/lib/grafana", "grafana"),
}
"""By service: its kind, image, mount target and folder."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperHub:
    made = PaperHub(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


def declared(hub: PaperHub, name: str, **more: object) -> dict[str, object]:
    """A Compose service as the built-in template has it."""
    _, image, target, folder = KINDS[name]
    mount = {"type": "bind", "source": str(hub.root / folder), "target": target}
    return {"image": image, "volumes": [mount], **more}


def snapshot(hub: PaperHub, name: str, version: str = "", *, root: str | None = None) -> Manifest:
    kind, image, _, folder = KINDS[name]
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    record = ServiceRecord(
        name, kind, name, folder, Mode.HOT, ImageRecord(image, "sha256:then"), version
    )
    return Manifest(
        format=1,
        hub_id=ID,
        hub_name="h",
        run="20260301T120000Z-backup-aaaa",
        host=HostRecord("pi", "aarch64", "Debian"),
        versions={},
        started=moment,
        ended=moment,
        outcome=Outcome.COMPLETE,
        services=(record,),
        root=str(hub.root) if root is None else root,
    )


def looked(hub: PaperHub, made: Manifest, services: Mapping[str, object]) -> HubFacts:
    hub.compose(services)
    return restore.look(hub.open(), made)


def found(hub: PaperHub, made: Manifest, services: Mapping[str, object]) -> dict[str, Finding]:
    decided = plan(looked(hub, made, services), "ab" * 32, made, Wanted())
    return {one.code: one for one in decided.findings}


# -- an older server ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "image", "version", "says"),
    [
        ("mosquitto", "eclipse-mosquitto:2.0.22-openssl", "2.1.2", "passwords that 2.1 has made"),
        ("nodered", "nodered/node-red:4.1.15", "5.0.7", "credentials in the user directory"),
        ("influxdb", "influxdb:2.7.12-alpine", "2.9.1", "influxd downgrade"),
        ("grafana", "grafana/grafana:12.1.0@sha256:aa", "13.0.1", "dashboards may be missing"),
    ],
)
def test_a_version_that_went_down_is_named_with_the_way_out(
    hub: PaperHub, name: str, image: str, version: str, says: str
) -> None:
    told = found(hub, snapshot(hub, name, version), {name: declared(hub, name, image=image)})
    older = told["version.older"]
    assert older.severity is Severity.ERROR and older.subject == name
    assert version in older.message and says in older.message
    assert f"write {KINDS[name][1]} into the Compose file" in older.hint
    assert "--image current" in older.hint and "image.differs" in told


@pytest.mark.parametrize(
    "image", ["mine/influxdb-of-ours:1.2", "influxdb:2", "influxdb", "influxdb:2.10.0"]
)
def test_what_is_not_known_to_be_older_is_not_called_so(hub: PaperHub, image: str) -> None:
    hub.write('[services.influxdb]\nkind = "influxdb"\n')
    services = {"influxdb": declared(hub, "influxdb", image=image)}
    told = found(hub, snapshot(hub, "influxdb", "2.9.1"), services)
    assert told.keys() == {"image.differs"}


def test_the_recorded_image_is_asked_nothing(hub: PaperHub) -> None:
    services = {"influxdb": declared(hub, "influxdb")}
    assert found(hub, snapshot(hub, "influxdb", "9.9.9"), services) == {}


# -- another data root ----------------------------------------------------------------------------


def test_a_container_that_would_not_see_the_data_is_named(hub: PaperHub) -> None:
    """The settings have today's data root, the Compose file still has the old one."""
    mount = {"type": "bind", "source": "/mnt/old/grafana", "target": "/var/lib/grafana"}
    hub.write('[services.grafana]\nkind = "grafana"\n')
    services = {"grafana": declared(hub, "grafana", volumes=[mount])}
    for root in ("/mnt/old", ""):  # an earlier iotops did not record it
        told = found(hub, snapshot(hub, "grafana", root=root), services)
        elsewhere = told["mount.elsewhere"]
        assert elsewhere.severity is Severity.ERROR and "/mnt/old/grafana" in elsewhere.message
        assert str(hub.root) in elsewhere.hint and "data.root" in elsewhere.hint


def test_one_mount_left_at_the_old_data_root_is_named(hub: PaperHub) -> None:
    mounts = [
        {"type": "bind", "source": str(hub.root / "mqtt/data"), "target": "/mosquitto/data"},
        {"type": "bind", "source": "/mnt/old/mqtt/secrets", "target": "/mosquitto/secrets"},
        {"type": "bind", "source": "/mnt/old/mqtt/log", "target": "/mosquitto/log"},
    ]
    services = {"mosquitto": declared(hub, "mosquitto", volumes=mounts)}
    told = found(hub, snapshot(hub, "mosquitto", root="/mnt/old"), services)
    assert "/mosquitto/secrets" in told["mount.elsewhere"].message
    assert found(hub, snapshot(hub, "mosquitto"), services) == {}, "its own choice, then as now"


def test_another_data_root_that_the_compose_file_knows_is_fine(hub: PaperHub) -> None:
    (hub.base / "link").symlink_to(hub.root)
    mount = {"type": "bind", "source": f"{hub.base}/link/grafana", "target": "/var/lib/grafana"}
    hub.write('[services.grafana]\nkind = "grafana"\n')
    services = {"grafana": declared(hub, "grafana", volumes=[mount])}
    assert found(hub, snapshot(hub, "grafana", root="/mnt/old"), services) == {}


# -- addresses and ports --------------------------------------------------------------------------


def port(text: str, protocol: str = "tcp") -> dict[str, object]:
    address, published, target = text.rsplit(":", 2)
    given = {"published": published, "target": int(target), "protocol": protocol}
    return {**given, "host_ip": address} if address else given


def test_an_address_that_this_machine_does_not_have_is_named(hub: PaperHub) -> None:
    services = {
        "mosquitto": declared(hub, "mosquitto", ports=[port(f"{NOWHERE}:1883:1883")]),
        "proxy": {"image": "proxy:1.0", "ports": [port("127.0.0.1:8443:443")]},
    }
    made = snapshot(hub, "mosquitto")
    facts = looked(hub, made, services)
    assert facts.absent == {NOWHERE}
    absent = found(hub, made, services)["address.absent"]
    assert absent.severity is Severity.ERROR and absent.subject == "mosquitto"
    assert f"port 1883 is to listen at {NOWHERE}" in absent.message


def test_what_the_compose_file_publishes_is_read_whole(hub: PaperHub) -> None:
    hub.compose(
        {
            "a": {"image": "a", "ports": [port("0.0.0.0:1:2"), port("::1:3:4", "udp")]},
            "b": {"image": "b", "network_mode": "host"},
            "c": {"image": "c"},
        }
    )
    assert ports.published(hub.open().model) == {
        "a": (PublishedPort("", 1, 2, "tcp"), PublishedPort("::1", 3, 4, "udp")),
        "b": (ports.HOST,),
        "c": (),
    }


def test_a_container_is_started_as_it_was_made() -> None:
    """The Compose file was edited since: what its container has still counts, once."""
    declared = {"services": {"a": {"image": "a", "ports": [port("127.0.0.1:1:2")]}}}
    bindings = {"2/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}], "4/udp": [{"HostPort": "3"}]}
    made = composemodel.container({"HostConfig": {"PortBindings": bindings}}, {})
    found = ports.today(composemodel.model(declared), {"a": made, "orphan": made})
    assert found == {"a": (PublishedPort("127.0.0.1", 1, 2, "tcp"), PublishedPort("", 3, 4, "udp"))}


def test_this_machines_own_addresses_are_here_and_others_are_not() -> None:
    assert network.has("127.0.0.1") and network.has("127.9.9.9") and not network.has(NOWHERE)
    assert not network.has("2001:db8::7") or not Path("/proc/net/if_inet6").exists()
    assert all(network.has(one) for one in network.addresses())
    assert "127.0.0.1" not in network.addresses()
    assert network.has("no address"), "what cannot be known is not called gone"


# -- plugins for another processor ----------------------------------------------------------------


@pytest.mark.parametrize("fits", [True, False])
def test_without_a_container_plugins_are_held_against_this_machine(
    hub: PaperHub, fits: bool
) -> None:
    """As on a new one, where nothing has a container yet."""
    own = own_processor()
    made = snapshot(hub, "grafana")
    path = f"grafana/plugins/x/gpx_x_linux_{own if fits else 's390x'}"
    program = Artifact(path, "file", 1, 0o755, 472, 0, 1, sha256="ab" * 32)
    record = replace(made.services[0], artifacts=(program,))
    services = {"grafana": declared(hub, "grafana")}
    told = found(hub, replace(made, services=(record,)), services)
    assert [*told] == ([] if fits else ["grafana.plugins"])
