"""What long work says while it runs.

Work calls `report(event)` and goes on; what becomes of the event (a status line, a JSON line, a
line in the journal of systemd) is decided by whoever passed the callable. Silent by default, so
every action can be used without a terminal. Not here: how an event looks (`cli/render.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Root of everything that can be reported."""


@dataclass(frozen=True)
class RunStarted(Event):
    """A journaled run began. `action` is the verb, `run` its id in the journal."""

    action: str
    run: str


@dataclass(frozen=True)
class StepStarted(Event):
    """A named step began; `service` is empty for a step of the whole hub."""

    step: str
    service: str = ""


@dataclass(frozen=True)
class Moved(Event):
    """Progress inside a step: `done` of `total` bytes; a total of 0 means not known yet."""

    step: str
    done: int
    total: int
    service: str = ""


@dataclass(frozen=True)
class Noted(Event):
    """Something the owner should know; `level` is "info", "warning" or "error"."""

    level: str
    text: str
    service: str = ""


@dataclass(frozen=True)
class StepFinished(Event):
    """A step ended after `seconds`; `error` is empty when it went well."""

    step: str
    seconds: float
    service: str = ""
    error: str = ""


@dataclass(frozen=True)
class RunFinished(Event):
    """A journaled run was closed. `outcome` is "complete", "partial" or "failed"."""

    action: str
    run: str
    outcome: str
    seconds: float


Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """Do nothing with an event: the default target."""


@contextmanager
def step(report: Report, name: str, service: str = "") -> Iterator[None]:
    """Report the start and the end of a step, also when it fails.

    Args:
        report: where the events go.
        name: the step's name, stable: tests and machines match on it.
        service: the service it works on, empty for the whole hub.

    Raises:
        whatever the body raises; the event then carries its text.
    """
    began = time.monotonic()
    report(StepStarted(name, service))
    try:
        yield
    except BaseException as error:  # also an interruption ends the step visibly
        text = str(error) or type(error).__name__
        report(StepFinished(name, time.monotonic() - began, service, text))
        raise
    report(StepFinished(name, time.monotonic() - began, service))
