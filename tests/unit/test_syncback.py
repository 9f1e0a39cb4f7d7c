"""What an apply leaves in its record, and how a changed container is judged."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from iotops.actions.syncback import CHANGING, Task, _begun
from iotops.actions.watch import _judge, along
from iotops.hub import Hub
from tests.unit.test_syncplan import DECLARED, RUNS

pytestmark = pytest.mark.unit


def test_a_record_holds_all_that_a_return_needs() -> None:
    task = Task("c" * 40, "b" * 40, "h" * 40, CHANGING, {"one": "recreate"}, {"one": "id-1"})
    task = replace(task, folders=("a", "a/b"), reads=("one",))
    task = replace(task, images={"one": "sha256:1"}, started={"one": "2026-01-01T00:00:00Z"})
    assert Task.of(task.about) == task
    assert all(isinstance(value, str) for value in task.about.values())


@pytest.mark.parametrize("text", ["", "no json", "[1]", "null"])
def test_an_odd_record_names_no_service(text: str) -> None:
    assert Task.of({"needs": text, "ids": text}) == Task("", "", "", "")


@pytest.mark.parametrize(
    ("changes", "said", "final"),
    [
        ({}, "", False),
        ({"health": ""}, "", False),
        ({"health": "starting"}, "is starting", False),
        ({"health": "unhealthy"}, "is unhealthy", True),
        ({"state": "restarting", "health": ""}, "is restarting", False),
        ({"state": "exited", "exit_code": 3}, "ended with exit code 3", True),
        ({"state": "exited", "exit_code": 0}, "", False),  # a job that is done
        ({"restart_count": 3}, "", False),  # as many as it had before, and one is forgiven
        ({"restart_count": 4}, "keeps restarting", True),
        ({"restart_count": 4, "exit_code": 1}, "keeps restarting (exit code 1)", True),
    ],
)
def test_how_a_container_is_judged(changes: dict[str, object], said: str, final: bool) -> None:
    one = replace(RUNS, **changes)  # type: ignore[arg-type]
    assert _judge(one, 2, 1) == (said, final)


def test_a_container_that_is_gone() -> None:
    assert _judge(None, 0, 1) == ("has no container", True)


def hub_of(states: dict[str, str], **others: dict[str, tuple[str, ...]]) -> Hub:
    """A hub that knows of its services what Compose says of them, and nothing else."""
    declared = {name: replace(DECLARED, name=name, **others.get(name, {})) for name in states}  # type: ignore[arg-type]
    there = {
        name: replace(RUNS, service=name, id=f"id-{name}", state=state, started_at="boot")
        for name, state in states.items()
    }
    stack = SimpleNamespace(containers=lambda: there)
    return cast(Hub, SimpleNamespace(model=SimpleNamespace(services=declared), stack=stack))


def test_what_is_restarted_along_with_a_service() -> None:
    hub = hub_of(
        dict.fromkeys(("tunnel", "app", "front", "other"), "running") | {"stopped": "exited"},
        app={"after": ("tunnel",), "joins": ("tunnel",)},
        front={"after": ("app",), "follows": ("app",)},
        stopped={"after": ("tunnel",), "follows": ("tunnel",)},
        other={"after": ("tunnel",)},
    )
    assert along(hub, ["tunnel"]) == {"app", "front"}
    assert along(hub, []) == along(hub, ["front"]) == set()


@pytest.mark.parametrize(
    ("need", "reads", "exchanged", "found"),
    [
        ("restart", (), [], ["app"]),
        ("recreate", (), [], []),  # Docker started it at boot, and it never saw the declaration
        ("recreate", ("app",), [], ["app"]),
        ("recreate", (), ["store"], ["app"]),  # restarted with what has seen it
    ],
)
def test_whose_data_is_put_back_after_a_power_cut(
    need: str, reads: tuple[str, ...], exchanged: list[str], found: list[str]
) -> None:
    hub = hub_of(
        {"store": "running", "app": "running"}, app={"after": ("store",), "follows": ("store",)}
    )
    started = {"store": "boot", "app": "before"}
    task = Task("c", "b", "h", CHANGING, {"store": "recreate", "app": need}, reads=reads)
    task = replace(task, started=started)
    assert _begun(hub, task, hub.stack.containers(), exchanged) == found
