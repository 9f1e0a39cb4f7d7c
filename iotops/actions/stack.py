"""Bring the stack up so that it really answers, down, and show it.

Compose's own `--wait` calls a crash-looping container without health check healthy, and a health
check does not see a missing palette or bad credentials (both seen). So after the start every
service is asked as its users would ask it, and looked at again a little later. Not here: what
"answers" means for a kind (`Service.ready`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iotops.actions import hubfiles, resume
from iotops.actions.watch import PATIENCE, container_not_up
from iotops.clients import files
from iotops.clients.compose import Container
from iotops.errors import ServerError, StackError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.services.base import Service

LOOK_AGAIN = 10.0
"""Seconds after the start at which restart loops show."""
PAUSE = 0.25


@dataclass(frozen=True)
class Up:
    """A service that is up: its name, image, and server version."""

    service: str
    image: str
    version: str


def up(hub: Hub, services: Sequence[str] = (), report: Report = silent) -> tuple[Up, ...]:
    """Start the stack, wait until every service really answers, look again.

    Args:
        services: names in the settings; empty = all.

    Raises:
        GuardError: the data root is not this hub's disk.
        StackError: a service did not come up; with the last lines of its log.
    """
    hub.stack.require()
    hub.guard()
    chosen = [hub.service(name) for name in services] if services else [*hub.services]
    with hub.locked("up"):
        resume.refuse_unsettled(hub)
        _make_secrets(hub, chosen, report)
        began = time.monotonic()
        with step(report, "start"):
            hub.stack.create([one.place.container for one in chosen] if services else [])
        wait_ready(hub, chosen, report=report)
        before = _restarts(hub, chosen)
        with step(report, "look-again"):
            others = {} if services else _without_data(hub, chosen)
            time.sleep(max(0.0, LOOK_AGAIN - (time.monotonic() - began)))
            _refuse_restarted(hub, chosen, before)
            _refuse_looping(hub, others)
            wait_ready(hub, chosen, report=silent)
    containers = hub.stack.containers()
    return tuple(
        Up(one.name, _image(containers.get(one.place.container)), one.probe().version)
        for one in chosen
    )


def _make_secrets(hub: Hub, chosen: Sequence[Service], report: Report) -> None:
    """Let services make what `.env` lacks, before those that need it start.

    Nothing of it stops a start: the services run without, and `doctor` names what is missing.
    """
    env = hub.folder / ".env"
    for service in chosen:
        for name, make in service.own_secrets().items():
            there = hub.secret(name)
            if there is not None and there.reveal():
                continue
            with step(report, "token", service.name):
                if not os.access(env, os.W_OK):  # a unit sees the hub folder read-only
                    text = f"{name} is empty and {env} cannot be written here; by hand: iotops up"
                    report(Noted("warning", text, service.name))
                    continue
                hub.stack.create([service.place.container])
                wait_ready(hub, [service], report=report)
                try:
                    made = make()
                except ServerError as error:
                    text = f"no token was made for {name} in .env: {error.message}"
                    report(Noted("warning", text, service.name))
                    continue
                text = hubfiles.set_secret(env.read_text("utf-8"), name, made.reveal())
                state = env.stat()
                files.write(env, text.encode(), mode=0o600, owner=(state.st_uid, state.st_gid))


def down(hub: Hub, report: Report = silent) -> None:
    """Stop and remove the containers; data and volumes stay."""
    hub.stack.require()
    with hub.locked("down"), step(report, "down"):
        hub.stack.down()


def wait_ready(
    hub: Hub, services: Sequence[Service], *, report: Report = silent, limit: float = PATIENCE
) -> None:
    """Wait until services really answer.

    Args:
        limit: seconds for all of them together.

    Raises:
        StackError: one does not, cannot any more, or its container keeps restarting; with the
            last lines of its log.
    """
    deadline = time.monotonic() + limit
    first = _restarts(hub, services)
    for service in services:
        with step(report, "ready", service.name):
            _wait_one(hub, service, deadline, first.get(service.name, 0))


def _wait_one(hub: Hub, service: Service, deadline: float, restarts: int) -> None:
    looked = 0.0
    while True:
        answer = service.ready()
        if answer.ok:
            return
        if answer.final:
            raise not_up(hub, service, answer.reason)
        if time.monotonic() > deadline:
            raise not_up(hub, service, answer.reason or "does not answer")
        if time.monotonic() - looked > 1.0:
            looked = time.monotonic()
            container = hub.stack.containers().get(service.place.container)
            if container is None:
                raise not_up(hub, service, "has no container")
            if container.state in ("exited", "dead"):
                raise not_up(hub, service, f"ended with exit code {container.exit_code}")
            if container.restart_count > restarts + 1:
                raise not_up(hub, service, f"keeps restarting ({answer.reason})")
        time.sleep(PAUSE)


def _restarts(hub: Hub, services: Sequence[Service]) -> dict[str, int]:
    containers = hub.stack.containers()
    return {
        one.name: container.restart_count
        for one in services
        if (container := containers.get(one.place.container)) is not None
    }


def _refuse_restarted(hub: Hub, services: Sequence[Service], before: dict[str, int]) -> None:
    containers = hub.stack.containers()
    for service in services:
        container = containers.get(service.place.container)
        if container is None:
            continue  # a folder without a container
        if container.state != "running" or container.restart_count > before.get(service.name, 0):
            raise not_up(hub, service, f"came up and went down again ({container.state})")


def _without_data(hub: Hub, known: Sequence[Service]) -> dict[str, int]:
    """Give the restarts so far of containers that keep nothing here, hence are no service."""
    names = {service.place.container for service in known}
    return {
        name: container.restart_count
        for name, container in hub.stack.containers().items()
        if name not in names
    }


def _refuse_looping(hub: Hub, before: Mapping[str, int]) -> None:
    containers = hub.stack.containers()
    for name, restarts in before.items():
        one = containers.get(name)
        if one is None:
            continue
        loops = one.state == "restarting" or one.restart_count > restarts
        if loops or (one.state in ("exited", "dead") and one.exit_code != 0):
            reason = f"does not stay up ({one.state}, exit code {one.exit_code})"
            raise container_not_up(hub, name, name, reason, "iotops up")


def not_up(hub: Hub, service: Service, reason: str) -> StackError:
    """Give the error that says why a service is not up, with its last log lines."""
    again = f"iotops up {service.name}"
    return container_not_up(hub, service.name, service.place.container, reason, again)


def _image(container: Container | None) -> str:
    return container.image if container is not None else ""
