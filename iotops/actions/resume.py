"""Put right what a dead run left behind: folders half exchanged, containers stopped, locks.

Run at boot, and at the start of every run. Only what a record names is touched: a container that
the owner had stopped stays stopped. A run that died is taken back, never completed, but for one
that had settled: an undo, a change of the broker's users, an applied commit that was proven. Not
here: the runs themselves.
"""

from __future__ import annotations

import os

from iotops.actions import aside, locks, swap
from iotops.clients import files
from iotops.errors import IotopsError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run, RunRecord, boot_id


def resume(hub: Hub, report: Report = silent) -> tuple[RunRecord, ...]:
    """Settle all dead runs under the hub's lock.

    Returns:
        The records that were settled and closed.

    Raises:
        GuardError: the data root is not there. Locked: a run goes on.
        IotopsError: something could not be put right; its record stays open, so that `up` and the
            next run try again.
    """
    hub.guard()
    with hub.locked("resume"):
        return settle(hub, report)


def settle(hub: Hub, report: Report = silent) -> tuple[RunRecord, ...]:
    """Settle all dead runs; the caller holds the lock and has passed the guard."""
    settled: list[RunRecord] = []
    failed: list[IotopsError | OSError] = []
    for record in hub.journal.dead():
        try:
            with step(report, "resume", record.id):
                settled.append(_settle(hub, record, report))
        except (IotopsError, OSError) as error:  # the others are settled all the same
            failed.append(error)
    for folder in (hub.journal.folder, (hub.layout.folder / "memory"), hub.root):
        files.sweep(folder)
    files.sweep(hub.state.path.parent, older=3600.0)  # other hubs may write theirs now
    if settled:
        locks.sweep(hub, report)
    if failed:
        raise failed[0]
    return tuple(settled)


def _settle(hub: Hub, record: RunRecord, report: Report) -> RunRecord:
    run = hub.journal.reopen(record)
    report(Noted("warning", f"the run {record.id} {record.death}"))
    if record.action in ("sync", "device"):
        _require_writable(hub, record)
    if aside.is_settled(run):
        aside.release(hub, run)
        swap.let_go(hub, run)
        run.close("complete", message=f"{record.death}; finished by a later run")
        hub.state.finished(run.record)
        return run.record
    if record.action == "sync":
        return _settle_sync(hub, run, report)
    swap.put_right(hub, run, report)
    if record.action == "drill":
        from iotops.actions import scratch  # every run comes by here, and must begin quickly

        scratch.clear(hub, record)
    if record.action == "backup" and record.boot != boot_id():
        _distrust(hub)
    _sweep(hub, run)
    run.close(
        "failed",
        message=f"{record.death}; settled by a later run",
        hint=f"run it again: iotops {record.about.get('command', record.action)}",
    )
    hub.state.finished(run.record)
    return run.record


def _settle_sync(hub: Hub, run: Run, report: Report) -> RunRecord:
    """Finish an apply that was proven, return any other to the commit before."""
    from iotops.actions import syncback  # every run comes by here, and must begin quickly

    death = run.record.death
    back = syncback.settle(hub, run, report)
    if back is None:
        _sweep(hub, run)
        run.close("complete", message=f"{death}; finished by a later run")
    else:
        _sweep(hub, run)
        for text in back.told(hub):
            report(Noted("warning", text))
        message = f"{death}; returned to the commit before by a later run"
        message = "; ".join([message, *back.told(hub)])
        run.close("failed", message=message, hint="look: iotops sync plan")
    hub.state.finished(run.record)
    return run.record


def _require_writable(hub: Hub, record: RunRecord) -> None:
    """Refuse to begin what needs the hub folder: the unit of another verb sees it read-only."""
    if not os.access(hub.folder, os.W_OK):
        raise IotopsError(
            f"the {record.action} {record.id} {record.death}, and {hub.folder} cannot be written"
            " from here",
            hint="settle it first: iotops resume",
        )


def _distrust(hub: Hub) -> None:
    """Let everything be staged anew after a power cut: files may be there that never reached the
    disk as a whole, beside a memory that knows them as unchanged."""
    for path in (hub.layout.folder / "memory").glob("*.json"):
        if path.name != "last-good.json":
            path.unlink()


def _sweep(hub: Hub, run: Run) -> None:
    """Remove what a run left in the folder for temporary things; nobody else works there now."""
    for path in hub.layout.tmp.glob("*"):
        if path.is_dir() and not path.is_symlink():
            files.remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def refuse_unsettled(hub: Hub) -> None:
    """Refuse while a run that stopped, exchanged or applied something has died unsettled.

    Raises:
        IotopsError: with the command that settles it.
    """
    for record in hub.journal.dead():
        if record.swaps or record.stopped or record.action == "sync":
            raise IotopsError(
                f"the {record.action} {record.id} died and has not been settled",
                hint="settle it first: iotops resume",
            )
