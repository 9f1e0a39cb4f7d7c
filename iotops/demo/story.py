"""The story: a hub is made, filled, backed up, loses its disk, is restored, and is judged.

Only the order of things. The product's part is its own actions, called as its command line calls
them; the hub's content and its judges are the demo's (`content.py`, `judges.py`), the places and
their removal too (`ground.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from iotops.actions import backup, extract, flows, restore, setup, stack
from iotops.clients import dockerprogram, files, process
from iotops.demo import content, ground, judges
from iotops.demo.content import Keys, Sensors
from iotops.demo.ground import Ground
from iotops.demo.judges import Verdict
from iotops.errors import GuardError, ServerError
from iotops.events import Event, Noted, Report, silent
from iotops.hub import Hub
from iotops.model import Outcome, Severity

VERIFIED, FAILED = "verified", "failed"
LIVE_ROUNDS = 20
"""Readings of every sensor before each backup."""


@dataclass(frozen=True)
class Chapter(Event):
    """A part of the story began."""

    title: str


@dataclass(frozen=True)
class Shown:
    """What the demo showed.

    Attributes:
        outcome: "verified", or "failed" when anything is not as it was.
        services: verdicts by service.
        restored: what the restore itself found by its manifest, by service.
        faults: what it found that is not as recorded; without any, and with all services
            verified, the outcome is "verified".
        rto_seconds: from the loss of the disk until every check was done.
        seconds: what each part took, by name.
        images: image by service. stand_ins: services that are no real servers.
        bytes: sizes by name. disk: "loop" or "folder".
        project: the Compose project's name. kept: where it all is, if it is kept.
    """

    outcome: str
    services: Mapping[str, Verdict]
    restored: Mapping[str, str]
    faults: tuple[str, ...]
    rto_seconds: float
    seconds: Mapping[str, float]
    images: Mapping[str, str]
    bytes: Mapping[str, int]
    stand_ins: tuple[str, ...]
    disk: str
    project: str
    kept: str = ""


def show(
    *,
    override: Path | None = None,
    keep: bool = False,
    before_judging: Path | None = None,
    report: Report = silent,
) -> Shown:
    """Run the whole story; whatever happens, everything is removed again.

    Args:
        override: a Compose file to be merged over the hub's own, for other images.
        keep: leave everything as it is, also when a part fails.
        before_judging: a program to run between the restore and the judges; it gets
            IOTOPS_DEMO_HUB, IOTOPS_DEMO_ROOT and IOTOPS_DEMO_PROJECT.

    Raises:
        IotopsError: a part could not be done. A comparison that fails is an outcome.
    """
    dockerprogram.require()
    with ground.prepared(keep=keep) as place:
        return _Story(place, override, keep, before_judging, report).tell()


def removal(base: Path) -> str:
    """Give the command that removes a kept demo."""
    return f"sudo iotops demo --remove {base}"


@dataclass
class _Story:
    """One demo while it runs."""

    place: Ground
    override: Path | None
    keep: bool
    before_judging: Path | None
    report: Report
    seconds: dict[str, float] = field(default_factory=dict)

    def tell(self) -> Shown:
        """Do it all, in order."""
        if self.keep:
            self._say(f"kept in {self.place.base}; to remove it: {removal(self.place.base)}")
        ports = ground.free_ports()
        with self._part("make the hub"):
            devices = self._make(ports)
        hub = Hub.open(self.place.hub)
        with self._part("start it"):
            up = stack.up(hub, report=self.report)
        keys = _keys(hub, ports, devices)
        with self._part("fill it"):
            keys, sensors = self._fill(hub, keys)
        with self._part("first backup"):
            flows.pull(hub, report=self.report)
            self._backup(hub)
        with self._part("edit a flow"):
            self._edit(hub, keys, sensors)
        with self._part("second backup"):
            kept = self._backup(hub)
        with self._part("ask the judges"):
            before = judges.look(keys)
            if unseen := judges.broken(before):
                raise ServerError("the judges cannot see the hub: " + "; ".join(unseen))
            stand_ins = ("grafana",) if judges.stand_in(keys) else ()
        lost = time.monotonic()
        with self._part("lose the disk"):
            ground.lose_disk(self.place)
        with self._part("restore"):
            done = self._restore(kept.snapshot)
        pause = self._sabotage()
        with self._part("judge"):
            verdicts = judges.judge(before, keys)
        good = done.outcome is Outcome.COMPLETE
        good = good and all(one.outcome == VERIFIED for one in verdicts.values())
        return Shown(
            outcome=VERIFIED if good else FAILED,
            services=verdicts,
            restored=done.services,
            faults=tuple(
                f"{one.subject}: {one.message}"
                for one in done.findings
                if one.severity is Severity.ERROR
            ),
            rto_seconds=round(time.monotonic() - lost - pause, 2),
            seconds=self.seconds,
            images={one.service: one.image for one in up},
            bytes={
                "backed up": kept.saved.bytes,
                "new in the second backup": kept.saved.data_added,
                "repository": files.tree_bytes(self.place.repository),
                "restored": done.bytes,
            },
            stand_ins=stand_ins,
            disk="loop" if self.place.loop else "folder",
            project=self.place.project,
            kept=str(self.place.base) if self.keep else "",
        )

    # -- before ---------------------------------------------------------------------------------

    def _make(self, ports: Mapping[str, int]) -> dict[str, str]:
        place = self.place
        self._say(
            f"the disk is a file system of its own, loop-mounted at {place.root}"
            if place.loop
            else f"the disk is only a folder, {place.root}: {place.why_folder}"
        )
        choices = setup.Choices(
            name="demo-hub",
            data_root=place.root,
            data_kind="mount" if place.loop else "folder",
            claim_disk=True,
            ports=ports,
            project=place.project,
            override=self.override,
            mqtt_address="127.0.0.1",
            state=place.state,
            run=place.run,
        )
        setup.init(place.hub, choices, self.report)
        setup.init_repository(
            Hub.open(place.hub),
            url=str(place.repository),
            password_file=place.password_file,
            report=self.report,
        )
        return content.add_devices(place.root / setup.MQTT_PASSWORDS)

    def _fill(self, hub: Hub, keys: Keys) -> tuple[Keys, Sensors]:
        reader, writer = content.make_tokens(keys)
        keys = replace(keys, reader=reader, writer=writer)
        sensors = Sensors(keys)
        sensors.announce()
        content.deploy(keys)
        sensors.publish(LIVE_ROUNDS)
        self._say(f"{sensors.sent} readings went from the sensors through the flow to InfluxDB")
        lines = content.write_history(keys)
        shards, tombstones = content.delete_removed(keys, hub.service("influxdb").place.folder)
        self._say(
            f"{lines} lines of history in {shards} shards; one device's deleted again,"
            f" {tombstones} tombstone files"
        )
        self._say(f"{content.make_dashboards(keys)} dashboards made")
        return keys, sensors

    def _edit(self, hub: Hub, keys: Keys, sensors: Sensors) -> None:
        revision = content.deploy(keys, edited=True)
        pulled = flows.pull(hub, report=self.report)
        if not pulled.changed or pulled.revision != revision:
            raise GuardError(
                f"Git holds revision {pulled.revision[:8]}, Node-RED runs {revision[:8]}"
            )
        self._say(f"Git's branch flows: {pulled.summary}")
        sensors.publish(LIVE_ROUNDS)

    def _backup(self, hub: Hub) -> backup.BackedUp:
        made = backup.back_up(hub, report=self.report)
        if made.outcome is not Outcome.COMPLETE:
            missing = "; ".join(f"{name}: {why}" for name, why in made.missing.items())
            raise GuardError(f"the backup is {made.outcome.value}: {missing}")
        return made

    # -- after ----------------------------------------------------------------------------------

    def _restore(self, expected: str) -> restore.Restored:
        hub = Hub.open(self.place.hub)  # a new process would know no more than this
        chosen = restore.choose(hub, "latest")
        if chosen.id != expected:
            raise GuardError(f"the newest snapshot is {chosen.id[:8]}, not {expected[:8]}")
        made = extract.read_manifest(hub.repository, chosen.id)
        wanted = restore.Wanted(claim_disk=True)
        return restore.restore(hub, chosen, made, wanted, self.report)

    def _sabotage(self) -> float:
        """Run the program that may do harm before the judges look; give the seconds it took."""
        if self.before_judging is None:
            return 0.0
        began = time.monotonic()
        places = {
            "IOTOPS_DEMO_HUB": str(self.place.hub),
            "IOTOPS_DEMO_ROOT": str(self.place.root),
            "IOTOPS_DEMO_PROJECT": self.place.project,
        }
        process.run(
            [self.before_judging.absolute()],
            env={**os.environ, **places},
            doing=f"running {self.before_judging.name} before judging",
        )
        return time.monotonic() - began

    # -- telling --------------------------------------------------------------------------------

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self.report(Chapter(name))
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)

    def _say(self, text: str) -> None:
        self.report(Noted("info", text))


def _keys(hub: Hub, ports: Mapping[str, int], devices: Mapping[str, str]) -> Keys:
    """Gather what the hub's people and devices hold, from `.env` as it is before the disaster."""

    def value(name: str) -> str:
        found = hub.secret(name)
        if found is None:
            raise GuardError(f"the hub's .env has no {name}")
        return found.reveal()

    return Keys(
        broker=ports["mosquitto"],
        influxdb=f"http://127.0.0.1:{ports['influxdb']}",
        nodered=f"http://127.0.0.1:{ports['nodered']}",
        grafana=f"http://127.0.0.1:{ports['grafana']}",
        org=value("INFLUXDB_ORG"),
        bucket=value("INFLUXDB_BUCKET"),
        users={
            "iotops": value("MQTT_PASSWORD"),
            "nodered": value("NODERED_MQTT_PASSWORD"),
            **devices,
        },
        operator=value("INFLUXDB_OPERATOR_TOKEN"),
        admin={
            "nodered": value("NODERED_ADMIN_PASSWORD"),
            "grafana": value("GRAFANA_ADMIN_PASSWORD"),
        },
    )
