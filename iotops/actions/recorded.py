"""A run whose record is closed in every case: done, failed, interrupted.

Where a run disturbs the hub, what puts it right runs before the record is closed; if that fails
too, the record stays open, so that `resume` and the next run try again. Not here: what is done
about a run that died without closing its record (`resume.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from iotops.errors import IotopsError, RestoreError
from iotops.events import Report, RunFinished, RunStarted, step
from iotops.hub import Hub
from iotops.journal import RUNNING, Run, stamp
from iotops.signals import shield

ENDED_BADLY = ("failed", "interrupted")


@contextmanager
def recorded(
    hub: Hub,
    action: str,
    report: Report,
    *,
    put_right: Callable[[Run], None] | None = None,
    **about: str,
) -> Iterator[Run]:
    """Journal the body as one run, in the state file too; the caller holds the hub's lock.

    Ends the body well, the record is closed with the run's `verdict`; a message that the body has
    noted stays there.

    Args:
        put_right: takes back what the body did to the hub, when the body fails; no signal is
            heard meanwhile.
        about: small facts for the record.

    Raises:
        whatever the body raises; the record then says failed or interrupted, and why.
    """
    began = time.monotonic()
    run: Run | None = None

    def close(run: Run, outcome: str, message: str, hint: str = "") -> None:
        with step(report, "close"):
            if outcome in ENDED_BADLY:  # told also where the record itself finds no room
                told = replace(run.record, outcome=outcome, ended=stamp(), message=message)
                hub.state.finished(told)
            run.close(outcome, message=message, hint=hint)
            if outcome not in ENDED_BADLY:
                hub.state.finished(run.record)
        report(RunFinished(action, run.id, outcome, time.monotonic() - began))

    try:
        with shield():  # a record that was begun is always closed
            run = hub.journal.begin(action, root=str(hub.root), **about)
        report(RunStarted(action, run.id))
        yield run
        with shield():
            close(run, run.verdict, run.record.message)
    except BaseException as error:
        if run is None or run.record.outcome != RUNNING:
            raise  # a signal that had to wait until the record was closed
        outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        hint = error.hint if isinstance(error, IotopsError) else ""
        with shield():
            if put_right is not None:
                _put_right(put_right, run, error)
            close(run, outcome, _words(error), hint)
        raise


def _words(error: BaseException) -> str:
    """Say why a body ended; what no one expected may quote a secret, and the record is read."""
    told = isinstance(error, (IotopsError, OSError, KeyboardInterrupt))
    return (str(error) if told else "") or type(error).__name__


def _put_right(put_right: Callable[[Run], None], run: Run, error: BaseException) -> None:
    """Take back what the body did; where that fails too, what ended the body is told first."""
    try:
        put_right(run)
    except (IotopsError, OSError) as second:
        raise RestoreError(
            f"{error}; and not everything could be put back: {second}",
            hint="put it right: iotops resume",
        ) from error
