"""Swap the last restore back, or discard the data it had put aside.

Not here: the exchange itself (`swap.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from iotops.actions import aside, resume, swap
from iotops.actions.aside import OldData
from iotops.actions.recorded import recorded
from iotops.actions.stack import wait_ready
from iotops.errors import RestoreError
from iotops.events import Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run, RunRecord, Swap
from iotops.signals import shield

ENDED = ("complete", "partial", "failed")
"""Outcomes of a restore that may have left its exchange in place."""
DONE = "complete"
OLD = timedelta(days=7)
"""A restore that is older than this is undone only when it is named."""


@dataclass(frozen=True)
class Undone:
    """What `undo` did: the restore's run, and the services that have their old data again.

    `run` is the undo's own; the restore's where that had died, and was only to be taken back.
    """

    run: str
    restore: str
    services: tuple[str, ...]
    seconds: float


def choose(hub: Hub, run: str = "") -> RunRecord:
    """Find the restore that is meant: the last one, or an earlier one that is named.

    Args:
        run: its id; empty = the last restore, unless it is old or undone already: what was put
            aside before that is hardly meant.

    Raises:
        RestoreError: there is none, or not without its name.
    """
    restores = _restores(hub)
    whole = _whole(restores)
    if not restores or not whole or (not run and whole[0] is not restores[0]):
        hint = f"an earlier one: iotops undo --run {whole[0].id}" if whole else "iotops status"
        why = ": the last one is undone already" if restores and _undone(restores[0]) else ""
        raise RestoreError(f"there is no restore to undo{why}", hint=hint)
    last = whole[0]
    if run and run != last.id:
        known = any(one.id == run for one in whole)
        text = f"a later one, {last.id}, would have to be undone first" if known else "unknown"
        raise RestoreError(
            f"the restore {run} cannot be undone: {text}", hint=f"iotops undo --run {last.id}"
        )
    age = datetime.now(UTC) - datetime.fromisoformat(last.ended or last.started)
    if not run and age > OLD:
        raise RestoreError(
            f"the last restore, {last.id}, is {age.days} days old: what has been written since"
            " would be put aside",
            hint=f"if it is meant: iotops undo --run {last.id}",
        )
    return last


def offered(hub: Hub) -> str:
    """Give the command that swaps old data back; empty = there is none for what is put aside."""
    try:
        choose(hub)
    except RestoreError:
        whole = _whole(_restores(hub))
        return f"iotops undo --run {whole[0].id}" if whole else ""
    return "iotops undo"


def _restores(hub: Hub) -> list[RunRecord]:
    """Give the restores that exchanged something, the last one first, with those undone."""
    return [
        one
        for one in reversed(hub.journal.runs())
        if one.action == "restore" and one.outcome in ENDED and (one.swaps or _undone(one))
    ]


def _whole(restores: Sequence[RunRecord]) -> list[RunRecord]:
    """Give those that have old data to be swapped back."""
    return [one for one in restores if any(swap.had_old for swap in one.swaps)]


def look(hub: Hub, run: str = "") -> RunRecord:
    """Find the restore that `undo` would swap back, to be shown before it is asked for.

    One that died in its exchange comes before all others: nothing else is meant by it.

    Raises:
        RestoreError: see `choose`. GuardError: the data root is not there. Locked: a run goes on.
    """
    hub.guard()
    with hub.locked("undo"):
        return _died(hub, run) or choose(hub, run)


def _died(hub: Hub, run: str) -> RunRecord | None:
    """Give the restore that died and is not settled, or whose undo did."""
    for dead in reversed(hub.journal.dead()):
        meant = dead.about.get("restore", "") if dead.action == "undo" else dead.id
        if dead.action in ("restore", "undo") and run in ("", dead.id, meant):
            known = {one.id: one for one in hub.journal.runs()}
            return known.get(meant, dead)
    return None


def touched(record: RunRecord) -> tuple[str, ...]:
    """Name what a restore has put old data aside of."""
    return tuple(sorted({one.service for one in record.swaps if one.had_old}))


def _undone(record: RunRecord) -> bool:
    return bool(record.about.get("undone"))


def undo(hub: Hub, run_id: str = "", report: Report = silent) -> Undone:
    """Give every service that a restore touched its old data again.

    What the restore had brought is put aside in its turn, under `.iotops/replaced/`.

    Args:
        run_id: see `choose`.

    Raises:
        RestoreError: there is nothing to undo.
        IotopsError: a step failed; what was exchanged has been put back.
    """
    began = time.monotonic()
    hub.guard()
    with hub.locked("undo"):
        died = _died(hub, run_id)
        settled = resume.settle(hub, report)
        if died is not None and _is_done(died, settled):
            return Undone(died.id, died.id, touched(died), time.monotonic() - began)
        record = choose(hub, run_id)
        missing = [
            one.service for one in record.swaps if one.had_old and not os.path.lexists(one.old)
        ]
        if missing:
            raise RestoreError(
                f"the old data of {', '.join(missing)} has been discarded",
                hint="restore an older snapshot instead: iotops snapshots",
            )

        def put_right(run: Run) -> None:
            swap.put_right(hub, run, report)

        with recorded(hub, "undo", report, put_right=put_right, restore=record.id) as run:
            services = _swap_back(hub, run, record, report)
            with shield():  # from here on it is done: `resume` goes on, and does not go back
                aside.settled(run)
                with step(report, "release"):
                    aside.release(hub, run)
                    aside.measured(hub, run)
        return Undone(run.id, record.id, services, time.monotonic() - began)


def _is_done(restore: RunRecord, settled: Sequence[RunRecord]) -> bool:
    """Whether settling dead runs was all that there is to do about a restore."""
    return any(
        one.id == restore.id or (one.about.get("restore") == restore.id and one.outcome == DONE)
        for one in settled
    )


def _swap_back(hub: Hub, run: Run, record: RunRecord, report: Report) -> tuple[str, ...]:
    """Exchange every folder of the restore again; give the names of what has its old data."""
    running = _running(hub)
    for one in reversed(record.swaps):
        if not one.had_old:
            continue
        run.note(step=f"swap {one.service}")
        live = Path(one.live)
        swap.stop_for_swap(hub, run, live, report)
        away = hub.layout.replaced / run.id / live.relative_to(hub.root)
        with step(report, "swap", one.service):
            there = os.path.lexists(live)
            swap.swap_in(run, Swap(one.service, one.live, str(away), one.old, had_old=there))
    run.note(step="start")
    swap.start_stopped(hub, run, report, keep=True)
    services = {one.service for one in record.swaps if one.had_old}
    with step(report, "wait"):
        # One that its owner had stopped stays so, and cannot answer.
        chosen = [one for one in hub.services if one.name in services & running]
        wait_ready(hub, chosen, report=report)
    run.note(stopped=())
    return tuple(sorted(services))


def _running(hub: Hub) -> set[str]:
    """Give the names of services that run, and of folders without a container."""
    containers = hub.stack.containers()
    found: set[str] = set()
    for service in hub.services:
        one = containers.get(service.place.container)
        bare = one is None and service.place.container not in hub.model.services
        if bare or (one is not None and one.state in ("running", "restarting", "paused")):
            found.add(service.name)
    return found


def discard(hub: Hub, report: Report = silent) -> tuple[OldData, ...]:
    """Remove all old data that restores have put aside; it cannot be undone.

    Returns:
        What was removed.
    """
    hub.guard()
    with hub.locked("undo --discard"):
        resume.settle(hub, report)
        found = aside.old_data(hub)
        kept = {one.run for one in found}
        # A restore that found nothing to put aside cannot be undone after this either.
        kept |= {one.id for one in hub.journal.runs() if one.action == "restore" and one.swaps}
        aside.discard(hub, sorted(kept), "undo --discard", report)
        return found
