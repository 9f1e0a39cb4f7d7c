"""Rehearse a restore: start what a snapshot holds beside the running hub, and compare.

One service after the other, in containers of their own on a network that leads nowhere: extracted,
checked against the manifest's hashes, prepared as for a restore, started, asked, compared with the
recorded counts, removed again. Flows stand still, tasks do not run, no port is published. How long
that took is what a restore would take. Not here: the ground it happens on (`scratch.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from iotops.actions import extract, ours, resume, scratch
from iotops.actions.recorded import recorded
from iotops.actions.stack import wait_ready
from iotops.clients import files
from iotops.clients.restic import SnapshotInfo
from iotops.errors import GuardError, IotopsError, Skipped, UsageError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run, RunRecord
from iotops.model import Finding, Manifest, Outcome, ServiceRecord, Severity
from iotops.services.base import Service

FRESH = timedelta(hours=36)
"""A newest snapshot older than this is no proof of tonight's backup."""

NEEDED_MEMORY = 512 << 20
"""Bytes of memory that must be free: the hub itself runs on."""

CONTAINER_MEMORY = 1 << 30
"""Bytes that one container of a drill may take at most."""

ROOM = 1.1
"""Beside the files themselves: indexes that servers make anew."""


@dataclass(frozen=True)
class Rehearsed:
    """What a drill found of one service.

    Attributes:
        seconds: from the first byte extracted until it was compared. bytes: extracted.
        disk: most bytes it took beside the running hub. memory: most bytes its container took.
        compared: how many recorded numbers the running copy was held against. what: their names.
        findings: what is not as recorded, and what could not be proven.
    """

    service: str
    seconds: float
    bytes: int
    disk: int
    memory: int
    compared: int
    findings: tuple[Finding, ...] = ()
    what: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether everything that was compared is as recorded."""
        return not any(one.severity is Severity.ERROR for one in self.findings)


@dataclass(frozen=True)
class Drilled:
    """A drill.

    Attributes:
        rto_seconds: what the services took together, one after the other.
        restic_memory: most bytes that restic took meanwhile.
    """

    run: str
    outcome: Outcome
    snapshot: str
    services: tuple[Rehearsed, ...]
    rto_seconds: float
    restic_memory: int = 0


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: one drill, as its record tells.

    Attributes:
        started: UTC, ISO 8601. outcome: of the run. services: name -> what was found.
        compared: how many numbers. disk, memory: most bytes beside the hub, most of a container;
            restic_memory: most of restic. Empty where it did not get so far.
    """

    run: str
    started: str
    outcome: str
    snapshot: str
    message: str
    services: dict[str, str] = field(default_factory=dict)
    rto_seconds: str = ""
    disk: str = ""
    memory: str = ""
    restic_memory: str = ""
    compared: str = ""


def drill(
    hub: Hub,
    snapshot: SnapshotInfo,
    made: Manifest,
    *,
    wanted: Sequence[str] = (),
    stale: bool = False,
    report: Report = silent,
) -> Drilled:
    """Rehearse the restore of a snapshot.

    Args:
        wanted: names of services; empty = all that the snapshot holds.
        stale: whether an old snapshot may be rehearsed.

    Returns:
        What was found; `outcome` is failed where anything differs from the record.

    Raises:
        UsageError: not root, or the snapshot has no such service.
        Skipped: there is no room for it now, on the disk or in memory.
        GuardError: the newest snapshot is too old to prove anything.
        IotopsError: it could not be rehearsed.
    """
    chosen = _chosen(made, wanted)
    if not stale and datetime.now(UTC) - snapshot.time > FRESH:
        raise GuardError(
            f"the newest snapshot {snapshot.id[:8]} is of {snapshot.time:%Y-%m-%d %H:%M} UTC: a"
            " drill of it proves nothing about today",
            hint="make a new one: iotops backup; or rehearse this one all the same: iotops drill"
            f" {snapshot.id[:8]}",
        )
    hub.stack.require()
    hub.guard()
    with hub.locked("drill"):
        resume.settle(hub, report)
        _require_room(hub, made, chosen)
        with recorded(hub, "drill", report) as run:
            run.note(snapshot=snapshot.id)
            with scratch.ground(hub, run) as place:
                done = _Drill(hub, run, place, snapshot, made, report).rehearse(chosen)
            peak = hub.repository.memory
            _conclude(run, done, made, peak, whole=not wanted)
            outcome = Outcome(run.verdict)
        rto = sum(one.seconds for one in done)
        return Drilled(run.id, outcome, snapshot.id, done, rto, peak)


def _chosen(made: Manifest, wanted: Sequence[str]) -> tuple[ServiceRecord, ...]:
    known = {record.name: record for record in made.services}
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"the snapshot has no service {name!r}", hint=f"one of: {', '.join(known)}"
            )
        if known[name].error:
            raise UsageError(
                f"{name} was not captured in this snapshot: {known[name].error}",
                hint="choose another snapshot: iotops snapshots",
            )
    return tuple(
        record
        for name, record in known.items()
        if not record.error and (not wanted or name in wanted)
    )


def _require_room(hub: Hub, made: Manifest, chosen: Sequence[ServiceRecord]) -> None:
    """Refuse where the hub itself would feel the drill.

    Raises:
        Skipped: too little room on the data root, or too little free memory.
    """
    largest = max((_size(made, record) for record in chosen), default=0)
    needed, free = int(largest * ROOM) + (256 << 20), files.free_bytes(hub.root)
    if free < needed:
        raise Skipped(
            f"a drill needs {needed / 1e6:.0f} MB beside the data; {free / 1e6:.0f} MB are free",
            hint=f"make room on the data root: df -h {hub.root}; or rehearse one service:"
            " iotops drill --service NAME",
        )
    available = available_memory()
    if available is not None and available < NEEDED_MEMORY:
        raise Skipped(
            f"a drill needs {NEEDED_MEMORY >> 20} MB of free memory;"
            f" {available >> 20} MB are available",
            hint="look who takes it: docker stats",
        )


def available_memory() -> int | None:
    """Give the memory that programs could have now, in bytes (proc(5), MemAvailable)."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = next((line for line in text.splitlines() if line.startswith("MemAvailable:")), "")
    return int(found.split()[1]) * 1024 if found else None


def _size(made: Manifest, record: ServiceRecord) -> int:
    return sum(one.size for one in extract.artifacts_of(made, [record.folder]))


def _conclude(
    run: Run, done: Sequence[Rehearsed], made: Manifest, peak: int, *, whole: bool
) -> None:
    """Write the drill into its record: the ledger."""
    lines = {
        one.service: "; ".join(f.message for f in one.findings if f.severity is Severity.ERROR)
        or f"as recorded ({one.compared} numbers: {', '.join(one.what)})"
        for one in done
    }
    bad = [f"{one.service}: {lines[one.service]}" for one in done if not one.good]
    if sum(one.compared for one in done) == 0:
        bad.append("nothing was compared")
    missing = [f"{name} is not in the snapshot" for name in made.missing()] if whole else []
    run.note(
        services=lines,
        message="; ".join((*bad, *missing)),
        about={
            **run.record.about,
            "rto_seconds": f"{sum(one.seconds for one in done):.1f}",
            "disk": str(max((one.disk for one in done), default=0)),
            "memory": str(max((one.memory for one in done), default=0)),
            "restic_memory": str(peak),
            "compared": str(sum(one.compared for one in done)),
            "whole": str(whole and not missing).lower(),
        },
    )
    run.verdict = "failed" if bad else "partial" if missing or not whole else "complete"


def ledger(hub: Hub) -> tuple[Entry, ...]:
    """List the drills that are on record, oldest first."""
    return tuple(_entry(record) for record in hub.journal.runs() if record.action == "drill")


def _entry(record: RunRecord) -> Entry:
    about = record.about
    return Entry(
        record.id,
        record.started,
        record.outcome,
        record.snapshot,
        record.message,
        dict(record.services),
        about.get("rto_seconds", ""),
        about.get("disk", ""),
        about.get("memory", ""),
        about.get("restic_memory", ""),
        about.get("compared", ""),
    )


class _Drill:
    """One drill while it goes on."""

    def __init__(
        self,
        hub: Hub,
        run: Run,
        place: scratch.Ground,
        snapshot: SnapshotInfo,
        made: Manifest,
        report: Report,
    ) -> None:
        self.hub = hub
        self.run = run
        self.place = place
        self.snapshot = snapshot
        self.made = made
        self.report = report
        self.extracted = place.folder / "snapshot"

    def rehearse(self, chosen: Sequence[ServiceRecord]) -> tuple[Rehearsed, ...]:
        """Rehearse one service after the other; one that fails does not stop the others."""
        ours.check_repository(self.hub)
        began = time.monotonic()
        self.run.note(step="extract hub")
        self._extract("hub")
        copy = scratch.scratch_hub(
            self.hub, self.run, self.place, self.extracted / "hub", CONTAINER_MEMORY
        )
        shared = time.monotonic() - began
        done: list[Rehearsed] = []
        for record in chosen:
            done.append(self._one(copy, record, shared))
            shared = 0.0  # what all of them need was done before the first
        return tuple(done)

    def _one(self, copy: scratch.ScratchHub, record: ServiceRecord, before: float) -> Rehearsed:
        self.run.note(step=f"rehearse {record.name}")
        began = time.monotonic() - before
        findings: list[Finding] = []
        compared, disk, memory = 0, 0, 0
        what: tuple[str, ...] = ()
        try:
            service = copy.hub.service(record.name)
            folder = service.place.folder
            self._extract(record.folder)
            folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            (self.extracted / record.folder).rename(folder)
            findings += self._prepare(service, record, folder)
            findings += self._left_out(copy, service)
            compared = self._start_and_compare(copy, service, record, findings)
            disk = files.tree_bytes(folder)
            what = ("files",)
            if service.place.container in copy.hub.model.services:
                what = tuple(record.counts)
                memory = copy.stack.memory(service.place.container)
        except (IotopsError, OSError) as error:
            findings.append(self._finding("drill.failed", Severity.ERROR, record.name, str(error)))
        finally:
            with step(self.report, "clear", record.name):
                copy.stack.discard(record.container)
                for left in self.place.data.iterdir():
                    if left != copy.hub.layout.folder:
                        files.remove_tree(left)
                files.remove_tree(self.extracted / record.folder)
        for one in findings:
            self.report(Noted(one.severity.value, one.message, record.name))
        return Rehearsed(
            record.name,
            time.monotonic() - began,
            _size(self.made, record),
            disk,
            memory,
            compared,
            tuple(findings),
            what,
        )

    def _extract(self, folder: str) -> None:
        """Take one part out of the repository and hold it against the manifest."""
        target = self.place.folder / "part"
        try:
            extract.extract(self.hub.repository, self.snapshot.id, [folder], target, self.report)
            found = extract.check(target, self.made, [folder], self.report)
            if found:
                raise GuardError(
                    f"{folder} does not come out of the repository as it was recorded: "
                    + "; ".join(one.message for one in found[:3]),
                    hint="check the repository: iotops check --all",
                )
            (self.extracted / folder).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (target / folder).rename(self.extracted / folder)
        finally:
            files.remove_tree(target)

    def _prepare(self, service: Service, record: ServiceRecord, folder: Path) -> list[Finding]:
        with step(self.report, "prepare", record.name):
            live = self.hub.root / folder.relative_to(self.place.data)
            notes = service.load(folder, record, live if live.is_dir() else None)
        return [self._finding("drill.note", Severity.WARNING, record.name, note) for note in notes]

    def _left_out(self, copy: scratch.ScratchHub, service: Service) -> list[Finding]:
        """Name mounts that the copy does not get, and make the folders of others' that it does."""
        container = service.place.container
        for source in copy.folders.get(container, ()):
            if source.is_relative_to(self.place.data) and not source.exists():
                source.mkdir(parents=True)
        return [
            self._finding(
                "drill.mount", Severity.WARNING, service.name, f"not rehearsed with it: {mount}"
            )
            for mount in copy.left_out.get(container, ())
        ]

    def _start_and_compare(
        self,
        copy: scratch.ScratchHub,
        service: Service,
        record: ServiceRecord,
        findings: list[Finding],
    ) -> int:
        """Start the copy, wait for it, compare; give how many numbers were compared."""
        if service.place.container not in copy.hub.model.services:
            return len(extract.artifacts_of(self.made, [record.folder]))  # its files are all
        with step(self.report, "start", record.name):
            copy.stack.create([service.place.container], alone=True)
        running = copy.at(service)
        with step(self.report, "wait", record.name):
            wait_ready(copy.hub, [running])
        with step(self.report, "verify", record.name):
            findings += running.verify(record)
        return len(record.counts)

    @staticmethod
    def _finding(code: str, severity: Severity, subject: str, message: str) -> Finding:
        return Finding(code, severity, subject, message, "look closer: iotops drill --service NAME")
