"""Watch containers that were just changed, until they are proven: ready, then good for a while.

A version may start, answer, and only then turn unhealthy or fall over. Docker's own health check,
restarts and ends are looked at for containers of every kind, and the services are asked as their
users would. Not here: what follows from a failure (`syncback.py`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter

from iotops.clients.compose import Container
from iotops.clients.composemodel import UP
from iotops.errors import StackError
from iotops.events import Report, silent, step
from iotops.hub import Hub

PATIENCE = 180.0
"""Seconds a service gets to answer; Node-RED on a Pi with many palettes is the slowest."""
PAUSE = 0.5
"""Seconds between two looks; one costs the engine three short calls."""
LOG_LINES = 20


def prove(hub: Hub, names: Collection[str], seconds: float, report: Report = silent) -> None:
    """See that containers come up, and that they stay so for a while.

    Args:
        names: Compose services. seconds: how long they are watched after all of them are ready.

    Raises:
        StackError: one did not come up, ended, restarted or turned unhealthy; with its last lines.
    """
    if not names:
        return
    ready(hub, names, report)
    look = _Look(hub, names)
    with step(report, "watch"):
        look.settled()
        ends = time.monotonic() + seconds
        while True:
            waiting = look.waiting(restarts=0)
            if time.monotonic() >= ends:
                break
            time.sleep(PAUSE)
        if waiting is not None:
            raise look.error(*waiting)


def ready(hub: Hub, names: Collection[str], report: Report = silent) -> None:
    """See that containers come up.

    Raises:
        StackError: as `prove`.
    """
    look = _Look(hub, names)
    with step(report, "ready"):
        deadline = time.monotonic() + PATIENCE
        while (waiting := look.waiting(restarts=1)) is not None:
            if time.monotonic() > deadline:
                raise look.error(*waiting)
            time.sleep(PAUSE)


def in_order(hub: Hub, names: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield services in the order in which they start, each with those that it waits for."""
    declared = hub.model.services
    after = {
        name: tuple(one for one in declared[name].after if one in names) if name in declared else ()
        for name in sorted(names)
    }
    for name in TopologicalSorter(after).static_order():
        yield name, after[name]


def along(hub: Hub, names: Collection[str]) -> set[str]:
    """Name what runs and is to be restarted with services, or shares a namespace with them."""
    there = hub.stack.containers()
    running = {
        name: {*one.follows, *one.joins}
        for name, one in hub.model.services.items()
        if name in there and there[name].state in UP
    }
    found = {*names}
    while new := {name for name, others in running.items() if others & found} - found:
        found |= new
    return found - {*names}


class _Look:
    """Looks at the same containers again and again."""

    def __init__(self, hub: Hub, names: Collection[str]) -> None:
        self.hub = hub
        self.names = sorted(names)
        self.services = [one for one in hub.services if one.place.container in names]
        self.first: dict[str, int] = {}

    def settled(self) -> None:
        """Count restarts from now on."""
        self.first = {name: one.restart_count for name, one in self._containers().items()}

    def waiting(self, *, restarts: int) -> tuple[str, str] | None:
        """Look once.

        Args:
            restarts: how many are forgiven: at a start a service may wait for another one so.

        Returns:
            None = all is well; else a container and what is not right with it yet.

        Raises:
            StackError: waiting is of no use.
        """
        found = self._containers()
        late = ("", "")
        for name in self.names:
            reason, final = _judge(found.get(name), self.first.setdefault(name, 0), restarts)
            if final:
                raise self.error(name, reason)
            late = (name, reason) if reason else late
        for service in () if late[1] else self.services:
            answer = service.ready()
            if not answer.ok:
                late = (service.place.container, answer.reason or "does not answer")
                if answer.final:
                    raise self.error(*late)
                break
        return late if late[1] else None

    def _containers(self) -> dict[str, Container]:
        known = self.hub.stack.containers()
        return {name: known[name] for name in self.names if name in known}

    def error(self, name: str, reason: str) -> StackError:
        """Give the error for a container, with the last lines of its log."""
        return container_not_up(self.hub, name, name, reason, "iotops sync plan")


def _judge(one: Container | None, first: int, forgiven: int) -> tuple[str, bool]:
    """Say what is not right with a container, and whether waiting is of no use."""
    if one is None:
        return "has no container", True
    if one.state in ("exited", "dead"):
        # With code 0 it has done what it was for; a service that must answer is asked besides.
        return (f"ended with exit code {one.exit_code}", True) if one.exit_code else ("", False)
    if one.restart_count > first + forgiven:
        # It may be running at this very moment: then there is no code to tell.
        return "keeps restarting" + (f" (exit code {one.exit_code})" if one.exit_code else ""), True
    if one.health == "unhealthy":
        return "is unhealthy", True
    if one.state != "running":
        return f"is {one.state}", False
    return ("is starting", False) if one.health == "starting" else ("", False)


def container_not_up(hub: Hub, name: str, container: str, reason: str, again: str) -> StackError:
    """Give the same error for any container; `again` is the command to type when it is mended."""
    lines = hub.stack.logs(container, LOG_LINES)
    shown = "\n".join(f"  | {line}" for line in lines)
    return StackError(
        f"{name} did not come up: {reason}" + (f"\n{shown}" if shown else ""),
        hint=f"mend its settings, then: {again}",
    )
