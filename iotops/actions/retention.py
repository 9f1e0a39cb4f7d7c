"""Which snapshots stay, and forgetting the others.

restic proposes by its keep rules, in a dry run over the complete snapshots; `plan` decides, and
can only keep more. Only complete snapshots count: a partial one never takes the place of a
complete one. Forgetting frees no space; that is `upkeep.prune`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from iotops.actions import locks, ours, resume, upkeep
from iotops.actions.recorded import recorded
from iotops.clients.restic import SnapshotInfo
from iotops.errors import GuardError, IotopsError, SettingsError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.model import Outcome

PARTIAL_FOR = timedelta(days=7)
"""How long a partial snapshot stays, once a newer complete one exists."""

REPAIRED = "repaired"
"""Tag that `restic repair snapshots` adds: files may be missing, so it is not complete."""

LOOK_AT_CLOCK = "look at the clock: timedatectl status"


@dataclass(frozen=True)
class Retention:
    """What a retention would do; a pure decision.

    Attributes:
        keep, remove: snapshots, oldest first.
        reasons: why, by id, for each of them.
        refused: why nothing may be removed at all; then `remove` is empty. hint: what to do.
    """

    keep: tuple[SnapshotInfo, ...]
    remove: tuple[SnapshotInfo, ...]
    reasons: Mapping[str, str]
    refused: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Forgotten:
    """What a retention did: ids that went, and how many snapshots stay."""

    run: str
    forgotten: tuple[str, ...]
    stay: int


@dataclass(frozen=True)
class AfterBackup:
    """What became of the retention after a backup: ids that went, or why it did not happen."""

    forgotten: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def plan(
    snapshots: Sequence[SnapshotInfo],
    removable: Collection[str],
    keep_at_least: int,
    drilled: Collection[str],
    now: datetime,
    *,
    last_good: datetime | None = None,
    rules: Mapping[str, str] | None = None,
) -> Retention:
    """Decide which snapshots go.

    Args:
        snapshots: all of this hub's.
        removable: ids that restic's keep rules do not hold, of its dry run over complete ones.
        keep_at_least: so many complete snapshots stay in any case, the newest of them.
        drilled: ids that a drill has proven.
        now: the time by this machine's clock.
        last_good: when the last complete backup ended.
        rules: restic's words for why it would keep one, by id.
    """
    ordered = sorted(snapshots, key=lambda one: one.time)
    refused = _refusal(ordered, now, last_good)
    if refused:
        reasons = dict.fromkeys((one.id for one in ordered), "nothing is forgotten now")
        return Retention(tuple(ordered), (), reasons, refused, LOOK_AT_CLOCK)
    complete = [one for one in ordered if outcome(one) is Outcome.COMPLETE]
    floor = {one.id for one in complete[-max(keep_at_least, 1) :]}
    reasons = {}
    gone: list[SnapshotInfo] = []
    for one in ordered:
        goes, reason = _judge(one, removable, complete, now)
        if goes and one.id in drilled:
            goes, reason = False, "the last one that a drill has proven"
        elif goes and one.id in floor:
            goes, reason = False, f"one of the newest {len(floor)} complete ones"
        elif not goes and one in complete:
            reason = (rules or {}).get(one.id) or reason
        reasons[one.id] = reason
        if goes:
            gone.append(one)
    stay = tuple(one for one in ordered if one not in gone)
    return Retention(stay, tuple(gone), reasons)


def outcome(snapshot: SnapshotInfo) -> Outcome | None:
    """Tell by its tags what a snapshot is; None for what does not say so clearly."""
    found = [one for one in (Outcome.COMPLETE, Outcome.PARTIAL) if one.value in snapshot.tags]
    return found[0] if len(found) == 1 and REPAIRED not in snapshot.tags else None


def _judge(
    one: SnapshotInfo,
    removable: Collection[str],
    complete: Sequence[SnapshotInfo],
    now: datetime,
) -> tuple[bool, str]:
    """Judge one snapshot by the rules for its kind: whether it may go, and why."""
    kind = outcome(one)
    if kind is Outcome.COMPLETE:
        if one.id in removable:
            return True, "no keep rule holds it"
        return False, "a keep rule holds it"
    if kind is None:
        return False, "neither complete nor partial by its tags: left to you"
    if not complete or complete[-1].time <= one.time:
        return False, "partial, and no newer complete one exists"
    if now - one.time <= PARTIAL_FOR:
        return False, f"partial, not older than {PARTIAL_FOR.days} days"
    return True, f"partial, older than {PARTIAL_FOR.days} days, a newer complete one exists"


def _refusal(ordered: Sequence[SnapshotInfo], now: datetime, last_good: datetime | None) -> str:
    """Tell why nothing may be forgotten: a wrong clock makes wrong ages."""
    if ordered and ordered[-1].time > now:
        newest = ordered[-1]
        return (
            f"the snapshot {newest.id[:8]} is of {newest.time:%Y-%m-%d %H:%M} UTC, which lies in"
            f" the future by this machine's clock ({now:%Y-%m-%d %H:%M} UTC)"
        )
    if last_good is not None and last_good > now:
        return (
            f"the clock says {now:%Y-%m-%d %H:%M} UTC, before the last good backup"
            f" ({last_good:%Y-%m-%d %H:%M} UTC)"
        )
    return ""


def decide(hub: Hub, snapshots: Sequence[SnapshotInfo], now: datetime) -> Retention:
    """Ask restic for its proposal, in one call, and decide; nothing is removed.

    Raises:
        SettingsError: the settings have no `[retention]`.
        GuardError: restic's proposal is about other snapshots than ours.
    """
    settings = hub.settings.retention
    if settings is None:
        raise SettingsError(
            "the settings have no table [retention]: nothing is ever forgotten",
            hint=f"say what shall stay, for example keep_daily = 7: nano {hub.settings.file}",
        )
    # A repaired one is complete for restic, which knows no tag that must be absent: each gets room
    # of its own in every rule, and the complete one before it, whose place it may have, stays.
    strange = [
        one
        for one in snapshots
        if Outcome.COMPLETE.value in one.tags and outcome(one) is not Outcome.COMPLETE
    ]
    room = len(strange)
    # By the hub's id, not by host: a hub that got another name still has its old snapshots.
    proposed = hub.repository.plan_forget(
        tags=(ours.TAG, hub.id, Outcome.COMPLETE.value),
        keep_daily=settings.keep_daily and settings.keep_daily + room,
        keep_weekly=settings.keep_weekly and settings.keep_weekly + room,
        keep_monthly=settings.keep_monthly and settings.keep_monthly + room,
        keep_yearly=settings.keep_yearly and settings.keep_yearly + room,
        keep_at_least=settings.keep_at_least + room,
    )
    complete = [one for one in snapshots if outcome(one) is Outcome.COMPLETE]
    newest = max(complete, key=lambda one: one.time, default=None)
    if newest is not None and newest.id not in (*proposed.keep, *proposed.remove):
        raise GuardError(
            f"restic's plan does not know the newest complete snapshot {newest.id[:8]}",
            hint="nothing was forgotten; look: iotops snapshots",
        )
    good = hub.state.read().good.get("backup", "")
    return plan(
        snapshots,
        {*proposed.remove} - stand_ins(complete, strange),
        settings.keep_at_least,
        _proven(snapshots, drilled(hub)),
        now,
        last_good=datetime.fromisoformat(good) if good else None,
        rules={one: ", ".join(why) for one, why in proposed.why.items()},
    )


def stand_ins(complete: Sequence[SnapshotInfo], strange: Sequence[SnapshotInfo]) -> frozenset[str]:
    """Give the newest complete snapshot before each of those that restic only takes for one."""
    found: set[str] = set()
    for one in strange:
        before = [each for each in complete if each.time <= one.time]
        if before:
            found.add(max(before, key=lambda each: each.time).id)
    return frozenset(found)


def show(hub: Hub) -> Retention:
    """Decide what a retention would remove now; see `decide`.

    Raises:
        RepositoryNotOurs: the repository is another one than was recorded.
    """
    if hub.settings.retention is None:
        return decide(hub, (), datetime.now(UTC))  # raises before restic is asked for anything
    return decide(hub, ours.snapshots(hub), datetime.now(UTC))


def apply(hub: Hub, *, only: Collection[str] | None = None, report: Report = silent) -> Forgotten:
    """Forget what the retention does not keep, in one call of restic.

    Args:
        only: nothing but these ids, what somebody has agreed to.

    Raises:
        SettingsError: the settings have no `[retention]`.
        GuardError: the last check found damage, or the clock is wrong.
        Locked: another run goes on.
    """
    hub.guard()
    with hub.locked("retention"):
        resume.settle(hub, report)
        upkeep.refuse_damaged(hub, "forgotten")
        return _forget(hub, ours.snapshots(hub), only, report)


def after_backup(
    hub: Hub,
    before: Sequence[SnapshotInfo] | None,
    snapshot: str,
    report: Report = silent,
) -> AfterBackup:
    """Forget what a new verified complete snapshot has made superfluous; once a day at most.

    The backup is good whatever happens here: a failure becomes a warning, and `status` shows it.
    The caller holds the lock.

    Args:
        before: the snapshots as listed when the backup began; None = not known, nothing is done.
        snapshot: the new one.
    """
    now = datetime.now(UTC)
    if hub.settings.retention is None or before is None or not _due(hub, now):
        return AfterBackup()
    new = SnapshotInfo(snapshot, now, hub.name, (ours.TAG, hub.id, Outcome.COMPLETE.value), ("/",))
    try:
        upkeep.refuse_damaged(hub, "forgotten")
        return AfterBackup(_forget(hub, (*before, new), None, report).forgotten)
    except (IotopsError, OSError) as error:
        text = f"no old snapshot was forgotten: {error}"
        report(Noted("warning", text, "retention"))
        return AfterBackup(warnings=(text,))


def drilled(hub: Hub) -> frozenset[str]:
    """Give the ids of the last drilled snapshot: of the journal, and of the state file."""
    record = hub.journal.last("drill", Outcome.COMPLETE.value)
    last = hub.state.read().last.get("drill", {})
    found = {record.snapshot} if record is not None else set()
    if last.get("outcome") == Outcome.COMPLETE.value:
        found.add(last.get("snapshot", ""))
    return frozenset(found - {""})


def _proven(snapshots: Sequence[SnapshotInfo], ids: Collection[str]) -> frozenset[str]:
    """Give the ids of drilled snapshots, by the ids of their copies where these are looked at."""
    return frozenset(one.id for one in snapshots if one.id in ids or one.original in ids)


def _due(hub: Hub, now: datetime) -> bool:
    """Whether no retention was tried on this day (UTC)."""
    last = hub.state.read().last.get("retention", {}).get("time", "")
    return not last or datetime.fromisoformat(last).astimezone(UTC).date() != now.date()


def _forget(
    hub: Hub,
    snapshots: Sequence[SnapshotInfo],
    only: Collection[str] | None,
    report: Report,
) -> Forgotten:
    with recorded(hub, "retention", report) as run:
        snapshots = _without_disowned(hub, snapshots, report)
        with step(report, "plan"):
            run.note(step="plan")
            now = datetime.now(UTC)
            decided = locks.without_dead(hub, lambda: decide(hub, snapshots, now), report)
        if decided.refused:
            raise GuardError(decided.refused, hint=decided.hint)
        gone = tuple(one.id for one in decided.remove if only is None or one.id in only)
        with step(report, "forget"):
            run.note(step="forget")
            locks.without_dead(hub, lambda: hub.repository.forget(gone), report)
        stay = len(snapshots) - len(gone)
        run.note(message=f"{len(gone)} forgotten, {stay} stay")
        return Forgotten(run.id, gone, stay)


def _without_disowned(
    hub: Hub, snapshots: Sequence[SnapshotInfo], report: Report
) -> Sequence[SnapshotInfo]:
    """Forget what a backup disowned and could not forget: restic's rules take it for a good one."""
    disowned = hub.state.read().disowned
    bad = [one.id for one in snapshots if one.id in disowned]
    if bad:
        with step(report, "disown"):
            locks.without_dead(hub, lambda: hub.repository.forget(bad), report)
    return [one for one in snapshots if one.id not in disowned]
