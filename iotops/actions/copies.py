"""Copies: the snapshots of this hub in further repositories, each with its own everything.

A backup copies its own snapshot and no other: what was forgotten there shall not come back. What
was missed while a remote was away is caught up by hand (`catch_up`). Every copy is read back.
Whatever becomes of one copy, the others are served, and the first repository's snapshot is good.
Not here: making the repository of a copy (`repository.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING

from iotops.errors import (
    CaptureError,
    Exit,
    GuardError,
    IotopsError,
    Refused,
    RepositoryMissing,
    TimedOut,
    Unreachable,
    UsageError,
    WrongPassword,
)
from iotops.events import Noted, Report, silent, step
from iotops.journal import State, stamp
from iotops.model import Finding, Outcome, Severity

if TYPE_CHECKING:  # `status` wants the findings only, and must start quickly
    from iotops.clients.restic import SnapshotInfo
    from iotops.config import CopySettings
    from iotops.hub import Hub
    from iotops.journal import Run

STALE = timedelta(hours=36)
"""After this a copy is told as too old, like a backup."""
MESSAGE = 150
"""Characters of a message in the state file, which is small."""


class Standing(Enum):
    """How the attempt to copy ended; away = its place did not answer in time."""

    COMPLETE = "complete"
    AWAY = "away"
    FAILED = "failed"


@dataclass(frozen=True)
class Copied:
    """What became of one copy.

    Attributes:
        snapshots: id in the copy by id in the first repository.
        message, hint: why not, and the next step. exit: what that alone would end with.
        forgotten: ids in the copy that its retention let go.
        warnings: what failed after the snapshots were safe there.
    """

    name: str
    standing: Standing
    snapshots: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    hint: str = ""
    exit: Exit = Exit.DONE
    seconds: float = 0.0
    forgotten: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def after_backup(
    hub: Hub, snapshot: str, outcome: Outcome, written: bytes, report: Report = silent
) -> tuple[Copied, ...]:
    """Copy the snapshot that a backup has just made and verified; the caller holds the lock.

    Args:
        snapshot: its id. outcome: a partial one is copied, but lets nothing be forgotten.
        written: its manifest, which each copy must give back.
    """
    wanted = {one.name: (snapshot,) for one in hub.copies}
    if not wanted:
        return ()
    return _serve(hub, wanted, {}, lambda _: written, outcome is Outcome.COMPLETE, report)


def catch_up(
    hub: Hub, names: Sequence[str] = (), chosen: Sequence[str] = (), report: Report = silent
) -> tuple[Copied, ...]:
    """Copy by hand what copies lack.

    Args:
        names: of the copies; empty = all of them.
        chosen: beginnings of snapshot ids of the first repository; empty = everything that is
            newer than the newest there, and the newest one only where nothing is there yet.

    Raises:
        UsageError: there is no copy, or none of that name.
        SnapshotUnknown: the first repository has no such snapshot, or several.
        Locked: another run goes on.
    """
    from iotops.actions import ours, resume
    from iotops.clients.restic import find_snapshot

    if not hub.copies:
        raise UsageError(
            "the settings name no copies", hint="iotops init --repository URL --copy NAME"
        )
    for name in names:
        hub.at_copy(name)
    hub.guard()
    with hub.locked("copy"):
        resume.settle(hub, report)
        first = ours.snapshots(hub)
        if not first:
            raise UsageError("there is no snapshot to copy", hint="make one: iotops backup")
        ids = [find_snapshot(text, first).id for text in chosen]
        wanted: dict[str, tuple[str, ...] | None] = {
            one.name: tuple(ids) or None for one in hub.copies if not names or one.name in names
        }
        originals = {one.id: one.original for one in first if one.original}

        def written(snapshot: str) -> bytes:
            from iotops import manifest

            return hub.repository.dump(snapshot, "/" + manifest.NAME)

        return _serve(hub, wanted, originals, written, True, report, first)


def code(done: Collection[Copied]) -> Exit:
    """Give the exit code of what became of all copies, where everything else went well."""
    standings = {one.standing for one in done}
    if Standing.FAILED in standings:
        return Exit.PARTIAL
    return Exit.SKIPPED if Standing.AWAY in standings else Exit.DONE


def findings(
    copies: Sequence[CopySettings], state: State, now: datetime | None = None
) -> Iterator[Finding]:
    """Judge the copies from the state file alone."""
    for one in copies:
        known = state.copies.get(one.name, {})
        good, outcome = known.get("good", ""), known.get("outcome", "")
        subject, again = f"copy {one.name}", f"try it: iotops copy {one.name}"
        if outcome in (Standing.FAILED.value, Standing.AWAY.value):
            failed = outcome == Standing.FAILED.value
            yield Finding(
                f"copy.{outcome}",
                Severity.ERROR if failed else Severity.WARNING,
                subject,
                known.get("message", ""),
                again,
            )
        if not good:
            if not outcome:
                yield Finding(
                    "copy.never",
                    Severity.WARNING,
                    subject,
                    "no snapshot has been copied there yet",
                    again,
                )
        elif (now or datetime.now(UTC)) - datetime.fromisoformat(good) > STALE:
            yield Finding(
                "copy.stale",
                Severity.ERROR,
                subject,
                f"the last good copy is of {good}",
                again,
            )
        if known.get("warning"):
            yield Finding(
                "copy.retention",
                Severity.WARNING,
                subject,
                known["warning"],
                f"look: iotops retention --copy {one.name}",
            )


def told(hub: Hub, error: IotopsError) -> IotopsError:
    """Give an error of restic about a copy with the copy's name and the step that belongs to it."""
    name, hint = hub.copy, error.hint
    if isinstance(error, RepositoryMissing):
        hint = f"is its disk mounted? To make it: iotops init --copy {name}"
    elif isinstance(error, WrongPassword):
        hint = f"check the password_file of the copy {name} in iotops.toml"
    elif isinstance(error, Refused):
        hint = f"check credentials_file, or ssh_config, of the copy {name} in iotops.toml"
    elif isinstance(error, (Unreachable, TimedOut)):
        hint = f"look at its server and the network, then: iotops copy {name}"
    if not error.message.startswith(f"copy {name}: "):
        error.message = f"copy {name}: {error.message}"
        error.args = (error.message,)
    error.hint = hint
    return error


# -- one run over the copies ----------------------------------------------------------------------


def _serve(
    hub: Hub,
    wanted: Mapping[str, Sequence[str] | None],
    originals: Mapping[str, str],
    written: Callable[[str], bytes],
    retain: bool,
    report: Report,
    first: Sequence[SnapshotInfo] = (),
) -> tuple[Copied, ...]:
    """Serve one copy after the other, as one recorded run.

    Args:
        wanted: ids by the copy's name; None = what it lacks of `first`.
        written: gives the manifest of a snapshot.
    """
    from iotops.actions.recorded import recorded

    done: list[Copied] = []
    with recorded(hub, "copy", report) as run:
        for name, ids in wanted.items():
            one = _Copy(hub, hub.at_copy(name), run, report)
            done.append(one.serve(ids, originals, written, retain, first))
            run.note(services={each.name: _line(each) for each in done})
        bad = [one for one in done if one.standing is not Standing.COMPLETE]
        if bad:
            run.note(message="; ".join(one.message for one in bad))
            run.verdict = Outcome.PARTIAL.value
    return tuple(done)


def _line(one: Copied) -> str:
    if one.standing is not Standing.COMPLETE:
        return f"{one.standing.value}: {one.message}"
    return ", ".join(f"{there[:8]} (of {here[:8]})" for here, there in one.snapshots.items())


class _Copy:
    """One copy, while it is served."""

    def __init__(self, hub: Hub, there: Hub, run: Run, report: Report) -> None:
        self.hub = hub
        self.there = there
        self.name = there.copy
        self.run = run
        self.report = report

    def serve(
        self,
        ids: Sequence[str] | None,
        originals: Mapping[str, str],
        written: Callable[[str], bytes],
        retain: bool,
        first: Sequence[SnapshotInfo],
    ) -> Copied:
        """Copy, read back, record; then the copy's own retention."""
        began = time.monotonic()
        self.run.note(step=f"copy {self.name}")
        try:
            with step(self.report, "copy", self.name):
                copied = self._copy(ids, originals, written, first)
        except (IotopsError, OSError) as error:
            return self._failed(error, time.monotonic() - began)
        newest = [*copied.values()][-1:]
        self._record(
            outcome=Standing.COMPLETE.value,
            good=stamp(),
            message="",
            **({"snapshot": newest[0]} if newest else {}),
        )
        forgotten, warnings = self._retain() if retain else ((), ())
        seconds = time.monotonic() - began
        return Copied(
            self.name,
            Standing.COMPLETE,
            copied,
            seconds=seconds,
            forgotten=forgotten,
            warnings=warnings,
        )

    def _copy(
        self,
        ids: Sequence[str] | None,
        originals: Mapping[str, str],
        written: Callable[[str], bytes],
        first: Sequence[SnapshotInfo],
    ) -> Mapping[str, str]:
        from iotops.actions import locks, ours

        found = ours.check_repository(self.there)
        self._record(repository=found.id)
        wanted = self._lacking(first) if ids is None else ids
        if not wanted:
            return {}
        repository = self.there.repository
        source = self.hub.repository.access
        copied = locks.without_dead(
            self.there, lambda: repository.copy_from(source, wanted, originals), self.report
        )
        from iotops import manifest

        self.run.note(step=f"verify {self.name}")
        for here, there in copied.items():
            if repository.dump(there, "/" + manifest.NAME) != written(here):
                raise CaptureError(
                    f"the copy {there[:8]} gives back another manifest than {here[:8]} has",
                    hint=f"copy it again: iotops copy {self.name} --snapshot {here[:8]};"
                    " and check both repositories",
                )
        return copied

    def _lacking(self, first: Sequence[SnapshotInfo]) -> list[str]:
        """Give what is newer than the newest there; what was forgotten there stays forgotten."""
        from iotops.actions.ours import TAG

        there = self.there.repository.snapshots(tags=(TAG, self.hub.id))
        if not there:
            return [one.id for one in first[-1:]]
        return [one.id for one in first if one.time > there[-1].time]

    def _failed(self, error: IotopsError | OSError, seconds: float) -> Copied:
        if isinstance(error, IotopsError):
            error = told(self.there, error)
            away = isinstance(error, (Unreachable, TimedOut))
            message, hint, exit_code = error.message, error.hint, error.exit
        else:
            away = False
            message, hint, exit_code = f"copy {self.name}: {error}", "", Exit.FAILED
        standing = Standing.AWAY if away else Standing.FAILED
        bare = message.removeprefix(f"copy {self.name}: ")
        self.report(Noted("warning" if away else "error", bare, self.name))
        self._record(outcome=standing.value, message=bare[:MESSAGE])
        code = Exit.SKIPPED if away else exit_code
        return Copied(self.name, standing, {}, message, hint, code, seconds)

    def _retain(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Forget there what its rules let go, once a day; gives ids, and what went wrong."""
        from iotops.actions import locks, ours, retention, upkeep

        there, now = self.there, datetime.now(UTC)
        chosen = there.settings.retention
        if chosen is None:
            return (), ()
        if getattr(there.settings.repository, "append_only", False):
            text = "append-only: its old snapshots are not forgotten from here"
            self.report(Noted("info", text, self.name))
            return (), ()
        known = self.hub.state.read().copies.get(self.name, {})
        if known.get("retention", "") == f"{now:%Y-%m-%d}":
            return (), ()
        self._record(retention=f"{now:%Y-%m-%d}", warning="")
        try:
            # Damage in the first repository makes the copies the only good ones.
            upkeep.refuse_damaged(self.hub, "forgotten")
            listed = there.repository.snapshots(tags=(ours.TAG, there.id))
            decided = retention.decide(there, listed, now)
            if decided.refused:
                raise GuardError(decided.refused, hint=decided.hint)
            self.run.note(step=f"forget {self.name}")
            gone = tuple(one.id for one in decided.remove)
            locks.without_dead(there, lambda: there.repository.forget(gone), self.report)
        except (IotopsError, OSError) as error:
            text = f"no old snapshot was forgotten: {error}"
            self.report(Noted("warning", text, self.name))
            self._record(warning=text[:MESSAGE])
            return (), (f"copy {self.name}: {text}",)
        return gone, ()

    def _record(self, **changes: str) -> None:
        """Note in the state file what is known of this copy now."""
        known = self.hub.state.read().copies
        mine = {**known.get(self.name, {}), **changes}
        mine = {key: value for key, value in mine.items() if value}
        self.hub.state.update(copies={**known, self.name: mine})
