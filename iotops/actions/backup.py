"""Run a backup: lock, record, one verified snapshot, retention; closed in every case.

Order: lock and record, what dead runs left, the guard, the snapshot (`snapshot.py`), the record
closed, copies, retention. Nothing is called complete that was not captured, saved and read back.
Not here: what is captured and in which order (`snapshot.py`), the copies (`copies.py`), which old
snapshots go (`retention.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from iotops import disk
from iotops.actions import aside, history, inside, resume, swap
from iotops.actions.aside import OldData
from iotops.actions.beside import Beside
from iotops.actions.ours import Ours, check_repository
from iotops.actions.recorded import recorded
from iotops.errors import Exit, GuardError, IotopsError
from iotops.events import Noted, Report, silent
from iotops.hub import Hub
from iotops.journal import Run, RunRecord, State
from iotops.model import Accepted, Manifest, Outcome

if TYPE_CHECKING:
    from iotops.actions.copies import Copied
    from iotops.actions.snapshot import Made
    from iotops.clients.restic import Saved


@dataclass(frozen=True)
class BackedUp:
    """What a backup made.

    Attributes:
        run: its id in the journal. snapshot: the full id; empty when none counts.
        saved: restic's own numbers. missing: name -> why, of everything not captured.
        forgotten: ids of old snapshots that the retention let go.
        warnings: what is odd about the disk or about who else writes, and what failed after the
            snapshot was safe; it is as good as without them.
        copies: what became of the copies to further repositories.
        discarded: old data of restores that was old enough to go.
    """

    run: str
    outcome: Outcome
    snapshot: str
    manifest: Manifest
    saved: Saved
    missing: Mapping[str, str]
    seconds: float
    forgotten: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    copies: tuple[Copied, ...] = ()
    discarded: tuple[OldData, ...] = ()

    @property
    def exit(self) -> Exit:
        """3: something was not captured, or a copy failed; else 75: a copy's remote was away."""
        if self.outcome is Outcome.PARTIAL:
            return Exit.PARTIAL
        if not self.copies:
            return Exit.DONE
        from iotops.actions import copies

        return copies.code(self.copies)


def back_up(hub: Hub, accepted: Accepted | None = None, report: Report = silent) -> BackedUp:
    """Make a verified snapshot of the whole hub.

    Args:
        accepted: which guards shall not refuse this time; None = all of them shall.
        report: hears of every step.

    Returns:
        What was made; look at `outcome`: partial means that something is missing.

    Raises:
        IotopsError: nothing was saved that counts; the record says failed and why.
    """
    began = time.monotonic()
    accepted = accepted or Accepted()
    try:
        hub.guard()
        if not accepted.disk:
            history.require_known(hub)
    except GuardError as error:
        hub.state.refused("backup", error.message)  # the journal is on the disk in question
        raise
    with hub.locked("backup"):
        resume.settle(hub, report)

        def put_right(run: Run) -> None:
            # A signal may have come between the end of a cold copy and the start after it.
            swap.start_stopped(hub, run, report)

        with recorded(hub, "backup", report, put_right=put_right) as run:
            before = hub.state.read()
            ours, made = _snapshot(hub, run, accepted, report)
            outcome, snapshot = made.manifest.outcome, made.saved.snapshot
            message = "; ".join(f"{name}: {why}" for name, why in made.missing.items())
            run.note(snapshot=snapshot, services=_lines(made.manifest), message=message)
            hub.state.update(snapshot=snapshot)
            inside.remember(hub, snapshot, made.manifest)
            run.verdict = outcome.value
        seconds = time.monotonic() - began
        done = BackedUp(
            run.id,
            outcome,
            snapshot,
            made.manifest,
            made.saved,
            made.missing,
            seconds,
            warnings=made.warnings,
        )
        if warning := _another_machine(hub, ours, before):
            report(Noted("warning", warning))
            done = replace(done, warnings=(*done.warnings, warning))
        if outcome is Outcome.COMPLETE:  # so the disk is the right one, whatever it was before
            hub.state.update(disk=disk.identity(hub.root) or hub.state.read().disk)
            done = _let_go(hub, run.record, done, report)
        # Runs of their own, after this one's record was closed: the backup is good, whatever comes.
        if hub.copies:
            done = replace(done, copies=_copy(hub, done, report))
        if outcome is not Outcome.COMPLETE or hub.settings.retention is None:
            return done  # a partial run never displaces anything
        from iotops.actions import retention

        after = retention.after_backup(hub, ours.snapshots, snapshot, report)
        warnings = (*done.warnings, *after.warnings)
        return replace(done, forgotten=after.forgotten, warnings=warnings)


def _let_go(hub: Hub, record: RunRecord, done: BackedUp, report: Report) -> BackedUp:
    """Remove the old data of restores for which this backup is the later one; as good without."""
    begun = datetime.fromisoformat(record.started)
    try:
        chosen = aside.due(aside.old_data(hub), begun, datetime.now(UTC))
        aside.discard(hub, [one.run for one in chosen], record.id, report)
    except (IotopsError, OSError) as error:
        text = f"old data of restores could not be removed: {error}"
        report(Noted("warning", text))
        return replace(done, warnings=(*done.warnings, text))
    return replace(done, discarded=chosen)


def _copy(hub: Hub, done: BackedUp, report: Report) -> tuple[Copied, ...]:
    from iotops import manifest
    from iotops.actions import copies

    written = (hub.layout.staging / manifest.NAME).read_bytes()
    return copies.after_backup(hub, done.snapshot, done.outcome, written, report)


def _snapshot(hub: Hub, run: Run, accepted: Accepted, report: Report) -> tuple[Ours, Made]:
    """Make the snapshot, and find out meanwhile which repository is there.

    One call of restic spends half a second of one core on deriving its key: the first one begins
    before anything else, even before the code for the captures is loaded.
    """
    hub.layout.tmp.mkdir(mode=0o700, exist_ok=True)
    hub.layout.cache.mkdir(mode=0o700, exist_ok=True)
    repository = Beside(lambda: check_repository(hub))
    try:
        from iotops.actions.snapshot import Maker

        made = Maker(hub, run, accepted, report).make(repository)
    except BaseException:
        repository.stop()  # it shall not outlive the run; what ended the run is told
        raise
    return repository.result(), made


def _another_machine(hub: Hub, ours: Ours, before: State) -> str:
    """Tell of another machine under this hub's id; this one's snapshot is as good as without."""
    from iotops.actions import machines

    try:
        found = machines.another(hub, ours, before)
    except (IotopsError, OSError) as error:
        return f"who made the newer snapshots is not known: {error}"
    return f"{found.message}; {found.hint}" if found is not None else ""


def _lines(made: Manifest) -> dict[str, str]:
    services = {record.name: record.error or "captured" for record in made.services}
    return services | {part.name: part.error for part in made.parts if part.error}
