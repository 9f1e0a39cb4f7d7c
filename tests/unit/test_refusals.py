"""A refused commit is remembered; what only kept it from being tried is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iotops.actions import refusals
from iotops.actions.candidate import _guarded
from iotops.errors import (
    FlowsError,
    GuardError,
    IotopsError,
    NoSpace,
    ProgramFailed,
    StackError,
    TimedOut,
    Unreachable,
)
from iotops.events import silent
from iotops.model import Finding
from tests.support.paperhub import PaperHub

pytestmark = pytest.mark.unit


def full_disk() -> None:
    Path("/dev/full").write_bytes(b"x")


def absent() -> None:
    Path("/no/such/file").read_bytes()


def failing(error: IotopsError) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("fail", "remembered"),
    [
        (full_disk, False),
        (failing(NoSpace("x")), False),
        (failing(Unreachable("x")), False),
        (failing(ProgramFailed("x")), False),
        (failing(TimedOut("x")), False),
        (failing(StackError("x")), False),
        (absent, True),
        (failing(FlowsError("x")), True),
    ],
)
def test_what_passes_is_not_the_commits_fault(
    tmp_path: Path, fail: Callable[[], None], remembered: bool
) -> None:
    hub = PaperHub(tmp_path).open()
    hub.layout.folder.mkdir(exist_ok=True)

    def look() -> Iterator[Finding]:
        fail()
        yield from ()

    found = [*_guarded("mosquitto", look, silent)]
    refusals.remember(hub, refusals.judged(hub, "abc"), found)
    assert (hub.layout.folder / refusals.FILE).exists() == remembered
    error = refusals.tell("abc", found, silent)
    assert error is not None and "the commit abc is refused" in error.message
    if remembered:
        with pytest.raises(GuardError, match="a timer tries again when"):
            refusals.refuse_again(hub, "abc", silent)
    else:
        refusals.refuse_again(hub, "abc", silent)
