"""Plans of config-sync as data: what Git, the disk and the containers say in, changes out.

A case is a file in `syncplans/`. What it leaves out: `known` is as `wanted`, `before` and `present`
as `known`; a service runs, and mounts the folder of its name; `mosquitto` is of that kind.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from iotops.actions import syncfacts
from iotops.actions.syncdiff import masked
from iotops.actions.syncplan import (
    File,
    ServiceFacts,
    SyncFacts,
    SyncPlan,
    differences,
    plan,
)
from iotops.clients.composemodel import Container, Mount, Port, ServiceModel
from iotops.model import Finding, Severity
from iotops.services.mosquitto import Mosquitto

pytestmark = pytest.mark.unit

CASES = sorted((Path(__file__).parent / "syncplans").glob("*.toml"))
CONFIG = Mosquitto.config_files


def table(case: dict[str, object], name: str) -> dict[str, object]:
    found = case.get(name, {})
    assert isinstance(found, dict)
    return dict(found)


def texts(value: object) -> list[str]:
    assert isinstance(value, list)
    return [*map(str, value)]


def service_of(name: str, given: dict[str, object]) -> ServiceFacts:
    mounts = given.get("mounts", [[name, False]])
    assert isinstance(mounts, list)
    state = str(given.get("state", "running"))
    return ServiceFacts(
        state=state,
        container=f"id-{name}" if state else "",
        declared=given.get("declared") is not False,
        differs=tuple(texts(given.get("differs", []))),
        config=CONFIG if name == "mosquitto" else (),
        mounts=tuple((str(path), bool(alone)) for path, alone in mounts),
        stale=tuple(texts(given.get("stale", []))),
        after=tuple(texts(given.get("after", []))),
        follows=tuple(texts(given.get("follows", []))),
        joins=tuple(texts(given.get("joins", []))),
    )


def facts_of(case: dict[str, object]) -> SyncFacts:
    links = texts(case.get("links", []))

    def files(name: str, other: dict[str, File]) -> dict[str, File]:
        if name not in case:
            return other
        found = table(case, name)
        return {path: File(str(text).encode(), link=path in links) for path, text in found.items()}

    wanted = files("wanted", {})
    known = files("known", wanted)
    services = table(case, "services")
    return SyncFacts(
        head="h" * 40,
        target="t" * 40,
        good="" if case.get("good") is False else "g" * 40,
        wanted=wanted,
        known=known,
        before=files("before", known),
        present=files("present", known),
        services={
            name: service_of(name, one) for name, one in services.items() if isinstance(one, dict)
        },
        taken=texts(case.get("taken", [])),
        secrets=("known-value",),
        blocked={path: str(what) for path, what in table(case, "blocked").items()},
        findings=tuple(
            Finding(code, Severity.ERROR, "remote", "odd") for code in texts(case.get("given", []))
        ),
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_syncplan(path: Path) -> None:
    case = tomllib.loads(path.read_text())
    expected, decided = table(case, "expect"), plan(facts_of(case))
    if "changes" in expected:
        shown = [
            f"{one.kind} {one.path} {one.service or '-'} {one.on_change}" for one in decided.changes
        ]
        assert shown == texts(expected["changes"])
    if "services" in expected or not decided.changes:
        assert {**decided.services} == table(expected, "services")
    found = [f"{one.severity} {one.code} {one.subject}" for one in decided.findings]
    assert sorted(found) == sorted(texts(expected.get("findings", [])))
    assert decided.refused is (expected.get("refused") is True)
    diffs = "\n".join(one.diff for one in decided.changes)
    assert str(expected.get("diff", "")) in diffs and str(expected.get("diff2", "")) in diffs
    assert [word for word in texts(expected.get("shown", [])) if word not in diffs] == []
    assert not [word for word in texts(expected.get("never", [])) if word in diffs]
    hints = " ".join(one.hint for one in decided.findings)
    assert str(expected.get("hint", "")) in hints


def of(name: str) -> SyncPlan:
    return plan(facts_of(tomllib.loads((CASES[0].parent / f"{name}.toml").read_text())))


def test_a_change_knows_what_must_still_be_there() -> None:
    (changed,) = of("new-acl-is-reloaded").changes
    assert changed.before == File(b"old").mark != File(b"new").mark
    assert File(b"old", executable=True).mark != changed.before != File(b"old", link=True).mark
    added = of("a-folder-of-another-container").changes[0]
    assert added.before == ""
    container = of("container-differs").changes[1]
    assert container.before == "id-mosquitto"


def test_files_are_written_once_and_local_edits_never() -> None:
    assert of("a-folder-of-another-container").files == ("shared/rules.conf",)
    assert of("local-edit").files == ("mosquitto/mosquitto.conf",)


def test_diffs_of_odd_files() -> None:
    facts = facts_of({"wanted": {}, "services": {}})
    binary = replace(facts, wanted={"a": File(b"\xff\xfe")}, present={}, known={}, before={})
    assert plan(binary).changes[0].diff == "no text: nothing, then 2 bytes"
    long = File("\n".join(map(str, range(1000))).encode())
    many = plan(replace(binary, wanted={"a": long})).changes[0].diff
    assert "more lines" in many and len(many.splitlines()) < 130
    old = {"a": File(b"#!/bin/sh")}
    mode = replace(
        facts, wanted={"a": File(b"#!/bin/sh", True)}, present=old, known=old, before=old
    )
    assert plan(mode).changes[0].diff == "executable"


def test_a_secret_whose_name_is_far_above_the_change() -> None:
    """The part of a diff that is shown does not begin where the secret does."""
    block = [f"    SECRET-{n}" for n in range(20)]
    old = "\n".join(["a: 1", "password: |", *block, "b: 1"])
    facts = facts_of({"wanted": {"x.yaml": old.replace("SECRET-10", "SECRET-new")}})
    diff = plan(replace(facts, present={"x.yaml": File(old.encode())})).changes[0].diff
    assert diff.splitlines()[2] == "@@ -10,7 +10,7 @@"
    assert "SECRET" not in diff and diff.count("***") == 8


def test_a_line_that_nobody_reads_takes_no_time() -> None:
    """Minutes without a bound: every word of it could begin an address."""
    assert masked("a." * 100_000, []) == "... a line of 200000 letters, not shown"


def test_a_value_that_contains_another_is_masked_whole() -> None:
    assert masked("x abcdef-longer y", ["abcdef", "abcdef-longer"]) == "x *** y"


# -- containers -----------------------------------------------------------------------------------

DECLARED = ServiceModel(
    name="mosquitto",
    image="mosquitto:2",
    container_name="",
    mounts=(Mount(Path("/hub/mosquitto"), "/mosquitto/config", "bind", True, False),),
    ports=(Port("127.0.0.1", 1883, 1883, "tcp"),),
    environment={"TZ": "UTC", "PASSWORD": "geheim-1"},
    user="",
    has_health_check=True,
    restart="unless-stopped",
)
RUNS = Container(
    service="mosquitto",
    id="abc",
    name="hub-mosquitto-1",
    state="running",
    health="healthy",
    restart_count=0,
    exit_code=0,
    started_at="",
    oom_killed=False,
    image="mosquitto:2",
    image_id="sha256:aaa",
    digests=(),
    platform="linux/amd64",
    mounts=(
        *DECLARED.mounts,
        Mount(None, "/mosquitto/log", "volume", False, False, name="f" * 64),
    ),
    config_hash="h1",
    ports=DECLARED.ports,
    environment={"TZ": "UTC", "PASSWORD": "geheim-1", "PATH": "/bin"},
    inherited=frozenset({"PATH"}),
)


def test_files_given_by_configs_are_seen_as_files_of_their_own() -> None:
    given = Mount(Path("/hub/words.ini"), "/words.ini", "bind", True, False)
    model = replace(DECLARED, given=(given,))
    wanted = {"words.ini": File(b"")}
    found = [*syncfacts._mounts(Path("/hub"), model, wanted)]
    assert found == [("mosquitto", False), ("words.ini", True)]
    runs = replace(RUNS, mounts=(*RUNS.mounts, given))
    assert not any("words.ini" in one for one in differences(model, "h2", "", runs))


def test_a_container_as_declared() -> None:
    assert differences(DECLARED, "h1", "sha256:aaa", RUNS) == ()
    # The image is not here any more under that name: nothing can be said against the container.
    assert differences(DECLARED, "h1", "", RUNS) == ()


def test_only_what_was_made_is_remembered_as_made() -> None:
    """What stood there before may be of an older declaration than today's."""
    there = {name: replace(RUNS, service=name, id=f"id-{name}") for name in ("a", "b", "c", "d")}
    before = {"b": ("id-b", "h0"), "c": ("id-older", "h0"), "gone": ("id-gone", "h0")}
    hashes = dict.fromkeys(("a", "b", "c", "d"), "h1")
    found = syncfacts.made_of(before, there, hashes, ["a", "gone"])
    assert found == {"a": ("id-a", "h1"), "b": ("id-b", "h0")}


@pytest.mark.parametrize(
    ("declared", "image", "running", "line"),
    [
        ({"image": "mosquitto:3"}, "", {}, "image: mosquitto:2 runs, mosquitto:3 is declared"),
        ({"mounts": ()}, "", {}, "mount /hub/mosquitto at /mosquitto/config read-only: there"),
        ({"ports": (Port("", 1883, 1883, "tcp"),)}, "", {}, "port *:1883 to 1883/tcp: declared"),
        ({"environment": {"TZ": "UTC"}}, "", {}, "variable PASSWORD is no longer declared"),
        (
            {"environment": {"TZ": "UTC", "PASSWORD": "geheim-2"}},
            "",
            {},
            "variable PASSWORD has another value",
        ),
        (
            {"environment": {**DECLARED.environment, "NEW": "x"}},
            "",
            {},
            "variable NEW is declared, and not there",
        ),
        ({}, "", {}, "another part of its declaration"),
        ({}, "sha256:bbb", {"config_hash": "h2"}, "image mosquitto:2: aaa runs, the name is now"),
    ],
)
def test_how_a_container_differs(
    declared: dict[str, object], image: str, running: dict[str, object], line: str
) -> None:
    found = differences(
        replace(DECLARED, **declared),  # type: ignore[arg-type]
        "h2",
        image,
        replace(RUNS, **running),  # type: ignore[arg-type]
    )
    assert any(one.startswith(line) for one in found), found
    assert "geheim" not in repr(found) and "geheim" not in repr(RUNS)
