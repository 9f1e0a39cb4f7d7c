"""Put a snapshot back: show the plan, apply it, prove it.

What is done, and in which order, is the plan's (`plan.py`); here its steps are taken. Everything is
extracted beside the data and every hash checked before anything stops; folders are exchanged by
renaming; the running services are compared with what the manifest recorded. Until the last exchange
has proven itself, everything can be taken back, and the old data stays until it is discarded.

The hub folder and the host are never touched: what differs there becomes a finding
(`hubdiff.py`). Not here: extraction and its checks (`extract.py`), the exchange itself
(`swap.py`), `undo` (`undo.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from iotops import config, disk
from iotops.actions import aside, extract, fitting, hostdiff, hubdiff, resume, swap
from iotops.actions.beside import Beside
from iotops.actions.ours import TAG, Ours, check_repository
from iotops.actions.plan import (
    OTHER,
    HubFacts,
    Wanted,
    floating,
    not_held,
    opened,
    parts,
    plan,
)
from iotops.actions.recorded import recorded
from iotops.actions.stack import wait_ready
from iotops.clients import files
from iotops.clients.compose import Container
from iotops.clients.restic import SnapshotInfo, find_snapshot
from iotops.errors import (
    GuardError,
    LoadError,
    SettingsError,
    StackError,
    UsageError,
)
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run
from iotops.model import (
    Finding,
    Manifest,
    Outcome,
    Plan,
    ServiceRecord,
    Severity,
    Step,
    StepKind,
)
from iotops.services.base import Service

__all__ = ["HubFacts", "Wanted", "Restored", "choose", "look", "plan", "restore"]

NOT_UP = "container.down"
"""A container without data that did not start: the data is back all the same."""


@dataclass(frozen=True)
class Restored:
    """What a restore did.

    Attributes:
        services: name -> "as recorded", or what differs.
        findings: everything that is not as recorded. bytes: extracted.
        undoable: old data was put aside.
    """

    run: str
    outcome: Outcome
    snapshot: str
    services: Mapping[str, str]
    findings: tuple[Finding, ...]
    seconds: float
    bytes: int
    undoable: bool


# -- choosing and looking -------------------------------------------------------------------------


def choose(hub: Hub, text: str, at: datetime | None = None) -> SnapshotInfo:
    """Find the snapshot that is meant.

    Args:
        text: "latest", or the beginning of an id.
        at: the newest one not later than this (UTC), instead of the newest.

    Raises:
        SnapshotUnknown: none or several fit. RepositoryMissing, WrongPassword, Locked.
    """
    found = hub.repository.snapshots(tags=(TAG,))
    if text == "latest":
        found = candidates(found, hub.id, hub.state.read().disowned, at)
    return find_snapshot(text, found, at=at)


def candidates(
    found: Sequence[SnapshotInfo], hub_id: str, disowned: Collection[str], at: datetime | None
) -> tuple[SnapshotInfo, ...]:
    """Give those that "latest" may mean: the complete ones, or partial ones where there is none.

    Another hub's snapshots in the same repository are never meant, nor what does not count.
    """
    ours = [one for one in found if hub_id in one.tags and one.id not in disowned]
    until = [one for one in ours if at is None or one.time <= at]
    complete = [one for one in until if Outcome.COMPLETE.value in one.tags]
    return tuple(complete or until)


def look(hub: Hub, made: Manifest) -> HubFacts:
    """Gather what a plan needs to know of the hub, for the snapshot of a manifest."""
    data = hub.settings.data
    findings = disk.inspect(data.root, data.kind, hub.id, hub.state.read().disk)
    claim = any(finding.code == "mount.unclaimed" for finding in findings)
    others = [
        finding
        for finding in findings
        if finding.severity is Severity.ERROR and finding.code != "mount.unclaimed"
    ]
    if others:
        disk.require(data.root, data.kind, hub.id, hub.state.read().disk)
    containers = hub.stack.containers()
    names = {service.name: service for service in hub.services}
    held = {service.place.container for service in hub.services}
    declared = {
        name: model.image
        for name, service in names.items()
        if service.place.container not in containers
        and (model := hub.model.services.get(service.place.container)) is not None
    }
    here = hub.stack.images({one for one in declared.values() if one and floating(one)})
    images = {
        name: (image.id, image.digests, image.platform)
        for name, reference in declared.items()
        if (image := here.get(reference)) is not None
    }
    facts = HubFacts(
        hub_id=hub.id,
        services={
            name: service.place.folder.relative_to(hub.root).as_posix()
            for name, service in names.items()
        },
        live=frozenset(name for name, service in names.items() if service.place.folder.is_dir()),
        running=frozenset(
            name
            for name, service in names.items()
            if _runs(containers.get(service.place.container))
        ),
        images=images
        | {
            name: (container.image_id, container.digests, container.platform)
            for name, service in names.items()
            if (container := containers.get(service.place.container)) is not None
        },
        claim=claim,
        free=files.free_bytes(hub.root),
        keeps_holes=hub.repository.keeps_holes(),
        declared=declared,
        without_data=tuple(
            name for name in hub.model.services if name not in containers and name not in held
        ),
        containers={name: service.place.container for name, service in names.items()},
    )
    return fitting.look(hub, made, facts, containers)


def _runs(container: Container | None) -> bool:
    return container is not None and container.state in ("running", "restarting", "paused")


# -- applying -------------------------------------------------------------------------------------


def restore(
    hub: Hub,
    snapshot: SnapshotInfo,
    made: Manifest,
    wanted: Wanted,
    report: Report = silent,
) -> Restored:
    """Apply the plan for a snapshot; it is made again here, and each step looks again.

    Raises:
        RestoreError, IotopsError: nothing is changed, or what was changed has been put back.
    """
    began = time.monotonic()
    if os.geteuid() != 0:
        raise UsageError(
            "a restore needs root: each service's data belongs to a user of its own",
            hint=f"sudo iotops restore {snapshot.id[:8]}",
        )
    with hub.locked("restore"):
        facts = look(hub, made)
        if not facts.claim:
            hub.guard()
            resume.settle(hub, report)
            facts = look(hub, made)
        decided = plan(facts, snapshot.id, made, wanted)
        if decided.refused:
            first = next(one for one in decided.findings if one.severity is Severity.ERROR)
            raise GuardError(f"{first.subject}: {first.message}", hint=first.hint)
        if facts.claim:
            _claim(hub, report)

        def put_right(run: Run) -> None:
            swap.put_right(hub, run, report)

        with recorded(hub, "restore", report, put_right=put_right, snapshot=snapshot.id) as run:
            work = _Restore(hub, run, snapshot, made, wanted, decided, report)
            ours = Beside(lambda: check_repository(hub))
            try:
                findings = work.apply(ours)
            finally:
                ours.stop()
            bad = [one for one in findings if one.severity is Severity.ERROR]
            missing = [*not_held(decided), *opened(decided)]
            missing += [one for one in findings if one.code == NOT_UP]
            outcome = Outcome.PARTIAL if missing else Outcome.COMPLETE
            outcome = Outcome.FAILED if bad else outcome
            message = "; ".join(f"{one.subject}: {one.message}" for one in (*bad, *missing))
            run.note(snapshot=snapshot.id, services=work.results, message=message)
            run.verdict = outcome.value
        said = [one for one in decided.findings if one not in findings]
        return Restored(
            run=run.id,
            outcome=outcome,
            snapshot=snapshot.id,
            services=work.results,
            findings=(*said, *findings),
            seconds=time.monotonic() - began,
            bytes=work.bytes,
            undoable=any(one.had_old for one in run.record.swaps),
        )


def _claim(hub: Hub, report: Report) -> None:
    """Make an empty disk this hub's; last of all that can be refused."""
    with step(report, "repository"):
        check_repository(hub)
    with step(report, "claim"):
        data = hub.settings.data
        disk.claim(data.root, data.kind, hub.id, hub.name, _group(hub))
        hub.state.update(disk=disk.identity(data.root))


def _group(hub: Hub) -> int | None:
    """Give the owner's group, who may read the journal; a new machine may not know it yet."""
    try:
        return hub.owner[1]
    except SettingsError:
        return None


class _Restore:
    """One restore while it is applied."""

    def __init__(
        self,
        hub: Hub,
        run: Run,
        snapshot: SnapshotInfo,
        made: Manifest,
        wanted: Wanted,
        decided: Plan,
        report: Report,
    ) -> None:
        self.hub = hub
        self.run = run
        self.snapshot = snapshot
        self.made = made
        self.plan = decided
        self.report = report
        self.work = hub.layout.tmp / run.id
        self.extracted = self.work / "snapshot"
        self.then = hub
        self.results: dict[str, str] = {}
        self.bytes = 0
        self.parts = parts(made, wanted)
        swaps = [one.service for one in decided.steps if one.kind is StepKind.SWAP]
        self.records = {
            name: record for name in swaps if (record := made.service(name)) is not None
        }
        self.folders = {
            artifact.path: artifact
            for part in made.parts
            for artifact in part.artifacts
            if part.name == OTHER and artifact.type == "directory"
        }

    def apply(self, ours: Beside[Ours]) -> list[Finding]:
        """Extract, check, prepare; then take the plan's steps one by one.

        Args:
            ours: whether the repository is this hub's; asked while it extracts, and before
                anything stops.
        """
        hub, report = self.hub, self.report
        self._extract()
        with step(report, "repository"):
            ours.result()
        there = self.extracted / "hub"
        findings = [*hubdiff.differences(hub.folder, there)]
        findings += hostdiff.differences(self.made, self.extracted / "host", hub.root)
        self.then = hub.with_secrets(config.read_env(there / ".env"))
        self.run.note(step="prepare")
        for record in self.records.values():
            self._prepare(hub.service(record.name), record)
        with step(report, "sync"):
            files.sync_filesystem(hub.root)
        for one in self.plan.steps:
            findings += self._take(one)
        self._finish()
        return findings

    def _extract(self) -> None:
        """Extract everything with one call, and believe none of it unchecked."""
        folders = [*(record.folder for record in self.records.values()), *self.parts]
        self.bytes = extract.extract_checked(
            self.hub,
            self.snapshot.id,
            self.made,
            folders,
            self.extracted,
            self.report,
            lambda name: self.run.note(step=name),
        )

    def _prepare(self, service: Service, record: ServiceRecord) -> None:
        with step(self.report, "prepare", service.name):
            swap.refuse_link(self.hub, service.place.folder)
            live = service.place.folder if service.place.folder.is_dir() else None
            try:
                for note in service.load(self.extracted / record.folder, record, live):
                    self.report(Noted("warning", note, service.name))
            except LoadError as error:
                raise LoadError(
                    f"{service.name}: {error.message}; nothing was changed",
                    hint=self._without(service.name, error.hint),
                ) from error

    def _without(self, name: str, hint: str) -> str:
        """Add to a hint how the other services come back meanwhile."""
        others = [one for one in self.records if one != name]
        if not others:
            return hint
        options = " ".join(f"--service {one}" for one in others)
        only = f"the others meanwhile: iotops restore {self.snapshot.id[:8]} {options}"
        return f"{hint}; {only}" if hint else only

    def _take(self, one: Step) -> list[Finding]:
        """Take one step of the plan, after everything was prepared."""
        name = one.service
        match one.kind:
            case StepKind.SWAP if name == OTHER:
                self._exchange_other()
            case StepKind.SWAP:
                self._exchange(self.hub.service(name), self.records[name])
            case StepKind.START if name not in self.records:
                return self._create(name)
            case StepKind.START:
                self._start(self.hub.service(name))
            case StepKind.WAIT:
                service = self._asked(name)
                with step(self.report, "wait", name):
                    wait_ready(self.hub, [service])
                # Not before: one that ends again has to be started when all is taken back.
                self.run.started(service.place.container)
            case StepKind.VERIFY:
                return self._verify(name)
            case _:
                pass  # done before; and a swap stops whoever mounts the folder
        return []

    def _asked(self, name: str) -> Service:
        """Give a service with the secrets that it knows once its data is back."""
        service = self.hub.service(name)
        known = service.secrets_in_data and name in self.records
        return self.then.service(name) if known else service

    # -- the steps ------------------------------------------------------------------------------

    def _exchange(self, service: Service, record: ServiceRecord) -> None:
        self.run.note(step=f"swap {service.name}")
        live = service.place.folder
        swap.stop_for_swap(self.hub, self.run, live, self.report)
        with step(self.report, "swap", service.name):
            self._swap(service.name, live, self.extracted / record.folder)

    def _swap(self, name: str, live: Path, new: Path) -> None:
        swap.refuse_link(self.hub, live)
        self._make_above(live)
        swap.swap_folder(self.hub, self.run, name, live, new)

    def _make_above(self, live: Path) -> None:
        """Make the folders above a place as they were recorded; no service has them."""
        root = self.hub.root
        above = [path for path in live.parents if path != root and path.is_relative_to(root)]
        for path in reversed(above):
            if os.path.lexists(path):
                continue
            files.make_folder(path)
            recorded = self.folders.get(f"{OTHER}/{files.path_text(path.relative_to(root))}")
            if recorded is not None:
                os.chown(path, recorded.uid, recorded.gid)
                path.chmod(recorded.mode & 0o3777)

    def _start(self, service: Service) -> None:
        hub, container = self.hub, service.place.container
        with step(self.report, "start", service.name):
            found = hub.stack.containers().get(container)
            known = found is not None or container in hub.model.services
            if known and not _runs(found) and container not in self._stopped():
                self.run.waking(container)  # if it comes to taking back, it is left stopped again
            if found is not None:
                hub.stack.start([container])
            elif container in hub.model.services:  # else it is a folder without a container
                # Alone: what it depends on may still wait for its own folder.
                hub.stack.create([container], alone=True)

    def _stopped(self) -> set[str]:
        return {one.service for one in self.run.record.stopped}

    def _verify(self, name: str) -> list[Finding]:
        with step(self.report, "verify", name):
            findings = [*self._asked(name).verify(self.records[name])]
        bad = [one for one in findings if one.severity is Severity.ERROR]
        for one in findings:
            self.report(Noted("error" if one in bad else "warning", one.message, name))
        self.results[name] = "; ".join(one.message for one in bad) or "as recorded"
        return findings

    def _create(self, container: str) -> list[Finding]:
        """Make and start a container that keeps no data; the data is good without it."""
        self.run.waking(container)
        try:
            with step(self.report, "start", container):
                self.hub.stack.create([container], alone=True)
        except StackError as error:
            hint = f"look at it: iotops logs {container}; then: iotops up"
            return [Finding(NOT_UP, Severity.WARNING, container, error.message, hint)]
        return []

    def _finish(self) -> None:
        """Start what else was stopped on the way, and see that it answers."""
        self.run.note(step="finish")
        hub, waiting = self.hub, self._stopped()
        swap.start_stopped(hub, self.run, self.report, keep=True)
        again = [one.name for one in hub.services if one.place.container in waiting]
        for name in again:
            with step(self.report, "wait", name):
                wait_ready(hub, [self._asked(name)])
        self.run.note(stopped=())
        with step(self.report, "clean"):
            files.remove_tree(self.work)
            aside.measured(hub, self.run)

    # -- what belongs to no service -------------------------------------------------------------

    def _exchange_other(self) -> None:
        """Exchange the entries that belong to no service."""
        self.run.note(step="swap other")
        for entry in [*self._others(self.extracted / OTHER)]:
            inside = entry.relative_to(self.extracted / OTHER)
            live, name = self.hub.root / inside, f"{OTHER}/{files.path_text(inside)}"
            swap.stop_for_swap(self.hub, self.run, live, self.report)
            with step(self.report, "swap", name):
                self._swap(name, live, entry)

    def _others(self, folder: Path) -> Iterator[Path]:
        """Yield what is to be exchanged: whole entries, but beside a service's folder its
        neighbours one by one."""
        for entry in sorted(folder.iterdir()):
            live = self.hub.root / entry.relative_to(self.extracted / OTHER)
            if live in (self.hub.root / disk.SENTINEL, self.hub.layout.folder):
                continue
            inner = [s for s in self.hub.services if s.place.folder.is_relative_to(live)]
            if not inner:
                yield entry
            elif all(service.place.folder != live for service in inner):
                if entry.is_dir() and not entry.is_symlink():
                    yield from self._others(entry)
