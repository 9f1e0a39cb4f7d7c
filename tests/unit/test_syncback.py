"""What an apply leaves in its record, and how a changed container is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iotops.actions.syncback import CHANGING, Task
from iotops.actions.watch import _judge
from tests.unit.test_syncplan import RUNS

pytestmark = pytest.mark.unit


def test_a_record_holds_all_that_a_return_needs() -> None:
    task = Task("c" * 40, "b" * 40, "h" * 40, CHANGING, {"one": "recreate"}, {"one": "id-1"})
    task = replace(task, folders=("a", "a/b"))
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
