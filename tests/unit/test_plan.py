"""Plans of a restore as data: how the hub is and what is wanted in, steps and findings out.

A case is a file in `plans/`; what it leaves out is as in `HUB` and `SNAPSHOT` here: a hub with two
running services, and a complete snapshot of both.
"""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iotops.actions.plan import HubFacts, Wanted, not_held, plan
from iotops.model import (
    Artifact,
    HostRecord,
    ImageRecord,
    Manifest,
    Mode,
    Outcome,
    PartRecord,
    Plan,
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
    )


def manifest_of(given: dict[str, object]) -> Manifest:
    errors = given.get("errors", {})
    assert isinstance(errors, dict)
    records = [
        ServiceRecord(
            name=name,
            kind=name,
            container=name,
            folder=folder,
            mode=Mode.HOT,
            image=RECORDED if name == "influxdb" else ImageRecord(),
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
    hints = " ".join(one.hint for one in decided.findings)
    assert str(expected.get("hint", "")) in hints
    assert decided.snapshot == SNAPSHOT


def test_every_step_gives_its_reason() -> None:
    for path in CASES:
        assert all(step.reason for step in decide(tomllib.loads(path.read_text())).steps)
