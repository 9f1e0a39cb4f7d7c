"""Look for what would spoil a backup or a restore, before the day it is needed.

Every judgement is a finding with a severity, a subject and the next thing to do; nothing is
changed. Not here: the guards themselves, which refuse on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

from iotops import disk
from iotops.actions import (
    copies,
    envcheck,
    history,
    kit,
    machines,
    misnamed,
    ports,
    status,
    upkeep,
    volumes,
)
from iotops.actions.ours import check_repository
from iotops.actions.snapshot import previous
from iotops.clients import files, network
from iotops.clients.restic import MINIMUM
from iotops.config import CopySettings
from iotops.errors import IotopsError, TimedOut, Unreachable
from iotops.events import Report, silent, step
from iotops.hub import Hub
from iotops.model import Finding, Severity

STALE = timedelta(hours=36)
RECOMMENDED_RESTIC = (0, 16, 4)
"""Below it, restic has known bugs with large files (facts: 0.16.3, 0.16.4 notes)."""
OPEN = ("", "0.0.0.0", "::")
EXPECTED_OPEN = frozenset({"mosquitto"})
"""Kinds whose port is meant for the devices of the local network."""


def examine(hub: Hub, report: Report = silent) -> tuple[Finding, ...]:
    """Examine the hub.

    Returns:
        All findings; no finding means that nothing was found, not that nothing was looked at.
    """
    found: list[Finding] = []
    parts: list[tuple[str, Callable[[Hub], Iterator[Finding]]]] = [
        ("disk", _disk),
        ("files", _files),
        ("repository", _repository),
        *((f"copy {one.name}", partial(_copy, name=one.name)) for one in hub.copies),
        ("stack", _stack),
        ("services", _services),
        ("fit", _fit),
        ("records", _records),
    ]
    for name, look in parts:
        with step(report, "look at", name):
            try:
                found.extend(look(hub))
            except OSError as error:
                text = f"{error.filename or name}: {error.strerror or error}"
                found.append(
                    Finding(f"{name}.unreadable", Severity.ERROR, name, text, "sudo iotops doctor")
                )
            except IotopsError as error:
                code = f"{name}.{type(error).__name__.lower()}"
                found.append(Finding(code, Severity.ERROR, name, error.message, error.hint))
    return tuple(found)


def _disk(hub: Hub) -> Iterator[Finding]:
    data = hub.settings.data
    yield from (found := disk.inspect(data.root, data.kind, hub.id, hub.state.read().disk))
    if not any(one.severity is Severity.ERROR for one in found):
        if (older := history.older_copy(hub)) is not None:
            yield older


def _files(hub: Hub) -> Iterator[Finding]:
    yield from envcheck.guarded(hub)
    first = hub.settings.repository
    for subject, place in (
        *([("repository", first)] if first is not None else []),
        *((f"copy {one.name}", one) for one in hub.copies),
    ):
        for code, path in (
            ("password.open", place.password_file),
            ("credentials.open", place.credentials_file),
        ):
            if path is not None and path.is_file() and (mode := files.open_mode(path)):
                yield envcheck.too_open(code, subject, path, mode)


def _repository(hub: Hub) -> Iterator[Finding]:
    version = hub.repository.version()
    text = ".".join(str(part) for part in version)
    if version < MINIMUM:
        return  # version() has refused already
    if version < RECOMMENDED_RESTIC:
        yield Finding(
            "restic.old",
            Severity.WARNING,
            "restic",
            f"restic {text} works, but 0.16.4 and later are safer with large files",
            "apt-get install restic (from a newer release of your system)",
        )
    found = check_repository(hub)
    if (other := machines.another(hub, found, hub.state.read())) is not None:
        yield other


def _copy(hub: Hub, name: str) -> Iterator[Finding]:
    """See that a copy answers, opens, and is the recorded one; away is a warning for now."""
    there = hub.at_copy(name)
    try:
        check_repository(there)
    except IotopsError as error:
        said = copies.told(there, error)
        away = isinstance(error, (Unreachable, TimedOut))
        yield Finding(
            "copy.away" if away else f"copy.{type(error).__name__.lower()}",
            Severity.WARNING if away else Severity.ERROR,
            f"copy {name}",
            said.message.removeprefix(f"copy {name}: "),
            said.hint,
        )
    chosen = there.settings.repository
    if isinstance(chosen, CopySettings) and chosen.append_only and chosen.retention is not None:
        yield Finding(
            "copy.append_only",
            Severity.INFO,
            f"copy {name}",
            "it is append-only: its retention is shown, but never applied from here",
            f"look: iotops retention --copy {name}; forget there with other rights",
        )


def _stack(hub: Hub) -> Iterator[Finding]:
    hub.stack.require()
    yield from envcheck.variables(hub)
    yield from _operators(hub)
    kinds = {service.place.container: service.kind for service in hub.services}
    for name, model in sorted(hub.model.services.items()):
        if _unpinned(model.image):
            yield Finding(
                "image.unpinned",
                Severity.WARNING,
                name,
                f"the image {model.image} names no version; it changes by itself",
                "write a full version, better with @sha256:..., into the Compose file",
            )
        for port in model.ports:
            if port.host in OPEN and kinds.get(name) not in EXPECTED_OPEN:
                yield Finding(
                    "port.open",
                    Severity.WARNING,
                    name,
                    f"port {port.published} is open to every network, whatever a firewall says"
                    " (Docker's ports pass UFW by)",
                    f'publish it on one address: "127.0.0.1:{port.published}:{port.target}"',
                )
        for mount in model.mounts:
            if mount.kind == "bind" and mount.creates_host_path:
                yield Finding(
                    "mount.creates",
                    Severity.WARNING,
                    name,
                    f"a missing {mount.source} would be created empty on the SD card",
                    "write the mount in long form with create_host_path: false",
                )
        yield from volumes.outside(hub, name)
    containers = hub.stack.containers()
    yield from volumes.uncaptured(hub, containers)
    yield from volumes.misplaced(hub)
    published = ports.today(hub.model, containers)
    gone = {one for one in ports.bound(published) if not network.has(one)}
    yield from ports.absent(published, gone, network.addresses() if gone else ())


def _operators(hub: Hub) -> Iterator[Finding]:
    """Find containers that were handed the operator token: with it all data can be deleted."""
    for service in hub.of_kind("influxdb"):
        name = str(getattr(service.options, "token_env", ""))
        token = hub.secret(name)
        if token is None or not token.reveal():
            continue
        for other, model in sorted(hub.model.services.items()):
            held = [key for key, value in model.environment.items() if value == token.reveal()]
            if held and other != service.place.container:
                yield Finding(
                    "token.shared",
                    Severity.WARNING,
                    other,
                    f"{', '.join(held)} in its environment is InfluxDB's operator token",
                    f"give it one that only reads: reader_token_env of [services.{service.name}]",
                )


def _unpinned(image: str) -> bool:
    if "@sha256:" in image:
        return False
    tag = image.rsplit("/", 1)[-1].partition(":")[2]
    return tag in ("", "latest") or not any(character.isdigit() for character in tag)


def _services(hub: Hub) -> Iterator[Finding]:
    containers = hub.stack.containers()
    for service in hub.services:
        declared = hub.model.services
        odd = misnamed.running(service, hub.services, declared, containers)
        if odd := odd or misnamed.declared_otherwise(service, hub.services, declared):
            yield odd
            continue
        facts = service.probe()
        if not facts.reachable:
            yield Finding(
                "service.down",
                Severity.ERROR,
                service.name,
                f"does not answer: {facts.detail}",
                f"look at it: iotops logs {service.name}; start it: iotops up {service.name}",
            )
            continue
        try:
            yield from service.preflight()
        except IotopsError as error:
            yield Finding(
                "service.preflight", Severity.ERROR, service.name, error.message, error.hint
            )


def _fit(hub: Hub) -> Iterator[Finding]:
    """Find what would no longer fit the data of the last backup, or its own data today."""
    made = previous(hub.layout.staging)
    if made is None:
        return
    for service in hub.services:
        record = made.service(service.name)
        if record is not None and not record.error:
            yield from service.unfit(record)


def _records(hub: Hub) -> Iterator[Finding]:
    for record in hub.journal.dead():
        yield status.died(record)
    state = hub.state.read()
    yield from upkeep.findings(state)
    yield from kit.findings(hub, state)
    yield from copies.findings(hub.copies, state)
    good = state.good.get("backup", "")
    if not good:
        yield Finding(
            "backup.never",
            Severity.ERROR,
            "backup",
            "there has been no complete backup yet",
            "make one: iotops backup",
        )
    elif datetime.now(UTC) - datetime.fromisoformat(good) > STALE:
        yield Finding(
            "backup.stale",
            Severity.ERROR,
            "backup",
            f"the last complete backup is of {good}",
            "make one: iotops backup; see why none ran: systemctl status iotops-backup",
        )
