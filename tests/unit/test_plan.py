"""Plans of a restore as data: how the hub is and what is wanted in, steps and findings out.

A case is a file in `plans/`; what it leaves out is as in `HUB` and `SNAPSHOT` here: a hub with two
running services, and a complete snapshot of both.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iotops.actions.plan import HubFacts, Server, Wanted, below, not_held, opened, plan
from iotops.model import (
    Artifact,
    HostRecord,
    ImageRecord,
    Manifest,
    Mode,
    Outcome,
    PartRecord,
    Plan,
    PublishedPort,
    ServiceRecord,
    Step,
    StepKind,
)

pytestmark = pytest.mark.unit

CASES = sorted((Path(__file__).parent / "plans").glob("*.toml"))
HUB = "0123456789abcdef"
SNAPSHOT = "5c1f" * 16
FOLDERS = {"mosquitto": "mqtt", "influxdb": "influxdb"}
RECORDED = ImageRecord(
    "influxdb:2.9.1", "sha256:recorded", ("influxdb@sha256:recorded",), "linux/amd64"
)


def table(case: dict[str, object], name: str) -> dict[str, object]:
    found = case.get(name, {})
    assert isinstance(found, dict)
    return dict(found)


def texts(value: object) -> tuple[str, ...]:
    assert isinstance(value, list)
    return tuple(map(str, value))


def artifact(path: str) -> Artifact:
    return Artifact(path, "file", 5_000_000, 0o600, 1000, 1000, 1, sha256="ab" * 32)


def ports_of(given: object) -> dict[str, tuple[PublishedPort, ...]]:
    """Read ports as a Compose file has them: "ADDRESS:PORT:TARGET/PROTOCOL"; "host" = all."""
    assert isinstance(given, dict)
    found = {}
    for name, each in given.items():
        made = []
        for text in texts(each):
            address, _, rest = text.rpartition(":")[0].rpartition(":")
            target, _, protocol = text.rpartition(":")[2].partition("/")
            host = PublishedPort("", 0, 0, "host")
            made.append(
                host
                if text == "host"
                else PublishedPort(address, int(rest), int(target), protocol or "tcp")
            )
        found[name] = tuple(made)
    return found


def facts_of(given: dict[str, object]) -> HubFacts:
    folders, free, images = given.get("services", FOLDERS), given.get("free", 10**12), {}
    assert isinstance(folders, dict) and isinstance(free, int)
    now = given.get("images", {})
    assert isinstance(now, dict)
    for name, image in now.items():
        images[name] = (image["id"], tuple(image["digests"]), image["platform"])
    return HubFacts(
        hub_id=HUB,
        services=folders,
        live=frozenset(texts(given.get("live", [*folders]))),
        running=frozenset(texts(given.get("running", [*folders]))),
        images=images,
        claim=given.get("claim") is True,
        free=free,
        without_data=texts(given.get("without_data", [])),
        declared={name: str(image) for name, image in table(given, "declared").items()},
        containers={name: str(one) for name, one in table(given, "containers").items()},
        ports=ports_of(given.get("ports", {})),
        absent=frozenset(texts(given.get("absent", []))),
        addresses=("192.168.1.9",),
        servers={
            name: Server(str(version), "it would not start")
            for name, version in table(given, "servers").items()
        },
    )


def manifest_of(given: dict[str, object]) -> Manifest:
    errors = given.get("errors", {})
    assert isinstance(errors, dict)
    references = table(given, "references")
    records = [
        ServiceRecord(
            name=name,
            kind=name,
            container=name,
            folder=folder,
            mode=Mode.HOT,
            image=replace(RECORDED, reference=str(references.get(name, RECORDED.reference)))
            if name == "influxdb"
            else ImageRecord(),
            version=str(table(given, "versions").get(name, "")),
            artifacts=() if name in errors else (artifact(f"{folder}/data"),),
            error=errors.get(name, ""),
        )
        for name, folder in FOLDERS.items()
    ]
    other = tuple(artifact(path) for path in texts(given.get("other", [])))
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    return Manifest(
        format=1,
        hub_id=str(given.get("hub_id", HUB)),
        hub_name="iot-hub",
        run="20260301T120000Z-backup-aaaa",
        host=HostRecord("pi", "aarch64", "Debian"),
        versions={},
        started=moment,
        ended=moment,
        outcome=Outcome.PARTIAL if errors else Outcome.COMPLETE,
        services=tuple(records),
        parts=(PartRecord("other", other),),
        ports=ports_of(given["ports"]) if "ports" in given else None,
    )


def decide(case: dict[str, object]) -> Plan:
    wanted = table(case, "wanted")
    return plan(
        facts_of(table(case, "facts")),
        SNAPSHOT,
        manifest_of(table(case, "manifest")),
        Wanted(
            services=texts(wanted.get("services", [])),
            claim_disk=wanted.get("claim_disk") is True,
            image=str(wanted.get("image", "")),
            accept_ports=wanted.get("accept_ports") is True,
        ),
    )


def shown(step: Step) -> str:
    """Write a step as the cases do; that a stop interrupts needs no word."""
    replaces = step.destructive and step.kind is not StepKind.STOP
    return " ".join([step.kind, *filter(None, [step.service]), *(["replaces"] if replaces else [])])


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_plan(path: Path) -> None:
    case = tomllib.loads(path.read_text())
    expected, decided = table(case, "expect"), decide(case)
    found = [f"{one.severity} {one.code} {one.subject}" for one in decided.findings]
    assert sorted(found) == sorted(texts(expected["findings"]))
    assert decided.refused is (expected.get("refused") is True)
    if "steps" in expected:
        assert [shown(one) for one in decided.steps] == [*texts(expected["steps"])]
    if "missing" in expected:
        assert [one.subject for one in not_held(decided)] == [*texts(expected["missing"])]
    if "opened" in expected:
        assert [one.message for one in opened(decided)] == [*texts(expected["opened"])]
    hints = " ".join(one.hint for one in decided.findings)
    assert str(expected.get("hint", "")) in hints
    assert decided.snapshot == SNAPSHOT


def test_every_step_gives_its_reason() -> None:
    for path in CASES:
        assert all(step.reason for step in decide(tomllib.loads(path.read_text())).steps)


@pytest.mark.parametrize(
    ("version", "other", "lower"),
    [
        ("2.0.22", "2.1.2", True),
        ("2.9.1", "2.10.0", True),
        ("4", "5.0.7", True),
        ("4", "4.1.15", False),
        ("5.0.7", "4.1.15", False),
        ("v2.7.0", "v2.9.1", True),
        ("12.1.0-ubuntu", "12.1.0", False),
        ("", "2.1", False),
        ("latest", "2.1", False),
        ("2.1", "", False),
    ],
)
def test_a_version_is_below_another_as_far_as_both_are_told(
    version: str, other: str, lower: bool
) -> None:
    assert below(version, other) is lower
