"""A hub of four servers with content in each, for tests that lose, move or spoil all of it.

Two measures: `filled` in a second (a message, a point, a flow, dashboards, flows in Git), `seeded`
as the demo does it (weeks of history, a deleted series, tokens, credentials), to be asked by the
demo's judges. Not here: any assertion about the product, but that the hub comes up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from iotops.demo import content
from iotops.demo.content import Keys
from tests.conftest import need
from tests.support.clients import deploy, publish, write_point
from tests.support.hubs import HubUnderTest, made_hub

LAMP = "house/lamp"
"""Topic of the retained message."""


@contextmanager
def full_hub(prefix: str, label: str, lamp: str = "on") -> Iterator[HubUnderTest]:
    """Give a hub of its own, up and filled, without a backup; ends it.

    Args:
        prefix: of its folder's name. label: of its flow. lamp: the retained message.
    """
    for what in ("docker", "root"):
        need(what)
    hub = made_hub(HubUnderTest, prefix)
    try:
        up = hub.iotops("up")
        assert up.code == 0, up.err
        publish(hub, LAMP, lamp)
        write_point(hub, 7)
        deploy(hub, label)
        assert content.make_dashboards(keys_of(hub)) == 2
        pulled = hub.iotops("flows", "pull")
        assert pulled.code == 0, pulled.err
        yield hub
    finally:
        hub.remove()


def keys_of(hub: HubUnderTest) -> Keys:
    """Give what a hub's clients hold."""
    url = {name: f"http://127.0.0.1:{port}" for name, port in hub.ports.items()}
    return Keys(
        broker=hub.ports["mosquitto"],
        influxdb=url["influxdb"],
        nodered=url["nodered"],
        grafana=url["grafana"],
        org=hub.env_value("INFLUXDB_ORG"),
        bucket=hub.env_value("INFLUXDB_BUCKET"),
        users={
            "iotops": hub.env_value("MQTT_PASSWORD"),
            "nodered": hub.env_value("NODERED_MQTT_PASSWORD"),
        },
        operator=hub.env_value("INFLUXDB_OPERATOR_TOKEN"),
        admin={
            "nodered": hub.env_value("NODERED_ADMIN_PASSWORD"),
            "grafana": hub.env_value("GRAFANA_ADMIN_PASSWORD"),
        },
    )


def seeded(hub: HubUnderTest) -> Keys:
    """Fill the hub as the demo does; give what its clients hold from before the disaster."""
    keys = keys_of(hub)
    reader, writer = content.make_tokens(keys)
    keys = replace(keys, reader=reader, writer=writer)
    content.deploy(keys)
    assert content.write_history(keys) > 1000
    shards, tombstones = content.delete_removed(keys, hub.root / "influxdb")
    assert shards >= 4 and tombstones >= 1
    assert content.make_dashboards(keys) >= 1
    return keys
