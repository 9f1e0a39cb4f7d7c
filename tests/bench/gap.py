"""Whether anything stands still during a backup: 50 knocks a second at each service.

The broker takes messages (QoS 1, acknowledged), InfluxDB takes points, Node-RED and Grafana answer
requests. The longest time between two answers is told for an idle window and for one full of
backups; and that no container was started again.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from paho.mqtt.client import Client as MqttClient
from paho.mqtt.enums import CallbackAPIVersion

from tests.bench.report import machine
from tests.support.hubs import HubUnderTest, docker
from tests.support.influxd import Client

PACE = 0.02
"""Seconds between two knocks."""


class Knocker(threading.Thread):
    """Knocks at one service until told to stop, and remembers when each answer came."""

    def __init__(self, name: str, knock: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._knock = knock
        self._ended = threading.Event()
        self.answers: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Knock at an even pace; a knock that comes too late is left out, not made up for."""
        due = time.perf_counter()
        while not self._ended.wait(max(0.0, due - time.perf_counter())):
            due = max(due + PACE, time.perf_counter())
            try:
                self._knock()
            except OSError as error:
                self.failures.append(str(error))
            else:
                self.answers.append(time.perf_counter())

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self.join()

    def gap(self, since: float, until: float) -> float:
        """Give the longest time without an answer between two moments, in seconds."""
        moments = [since, *(one for one in self.answers if since < one < until), until]
        return max(later - sooner for sooner, later in itertools.pairwise(moments))

    def count(self, since: float, until: float) -> int:
        """Count the answers between two moments."""
        return sum(since < one < until for one in self.answers)


def knocks(hub: HubUnderTest) -> dict[str, Callable[[], object]]:
    """Give what is asked of each service."""
    influx = Client(
        f"http://127.0.0.1:{hub.ports['influxdb']}",
        hub.env_value("INFLUXDB_OPERATOR_TOKEN"),
        "home",
    )
    mqtt = MqttClient(CallbackAPIVersion.VERSION2, client_id="gap")
    mqtt.username_pw_set("iotops", hub.env_value("MQTT_PASSWORD"))
    mqtt.connect("127.0.0.1", hub.ports["mosquitto"])
    mqtt.loop_start()

    def publish() -> None:
        told = mqtt.publish("bench/gap", str(time.time()), qos=1)
        told.wait_for_publish(30)
        if not told.is_published():
            raise OSError("not acknowledged within 30 s")

    def get(service: str, path: str) -> Callable[[], object]:
        address = f"http://127.0.0.1:{hub.ports[service]}{path}"

        def ask() -> None:
            with urllib.request.urlopen(address, timeout=30) as answer:
                answer.read()

        return ask

    return {
        "mosquitto": publish,
        "influxdb": lambda: influx.write("iot", [f"gap v=1 {time.time_ns()}"], precision="ns"),
        "nodered": get("nodered", "/auth/login"),
        "grafana": get("grafana", "/api/health"),
    }


def started(hub: HubUnderTest) -> Mapping[str, str]:
    """Say of each container when it was started, and how often again."""
    form = "{{.State.StartedAt}} {{.RestartCount}}"
    return {name: docker("inspect", "--format", form, hub.container(name)) for name in hub.ports}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backups", type=int, default=5)
    chosen = parser.parse_args()
    hub = HubUnderTest(Path(tempfile.mkdtemp(prefix="iotops-bench-", dir="/var/tmp")))
    try:
        hub.make()
        for words in (["up"], ["backup"]):
            done = hub.iotops(*words)
            assert done.code == 0, done.err
        before = started(hub)
        knockers = [Knocker(name, knock) for name, knock in knocks(hub).items()]
        for one in knockers:
            one.start()
        time.sleep(1)
        moments = [time.perf_counter()]
        for _ in range(chosen.backups):
            done = hub.iotops("backup")
            assert done.code == 0, done.err
        moments.append(time.perf_counter())
        time.sleep(moments[1] - moments[0])
        moments.append(time.perf_counter())
        for one in knockers:
            one.stop()
        print(machine())
        seconds = moments[1] - moments[0]
        print(f"{chosen.backups} backups in {seconds:.1f} s, then {seconds:.1f} s without any")
        for one in knockers:
            busy, idle = moments[:2], moments[1:]
            print(
                f"{one.name:<10} longest gap {one.gap(*busy):6.3f} s in {one.count(*busy)} answers;"
                f" idle {one.gap(*idle):6.3f} s in {one.count(*idle)}; failures {len(one.failures)}"
            )
        same = started(hub) == before
        print(f"containers started again: {'none' if same else 'SOME'}")
        print("bar 1 s")
    finally:
        hub.remove()


if __name__ == "__main__":
    main()
