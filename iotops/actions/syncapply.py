"""Make the hub equal to a commit, and return by itself where that is not good.

Order: refusals, validation, a snapshot, the files, the services that need something, a watch over
them; then `main` follows. What was looked at must still be there when it is changed. Every step
stands in the run's record before it is taken. Not here: what is to be done (`syncplan.py`), the end
(`syncback.py`).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from iotops.actions import (
    candidateimages,
    refusals,
    resume,
    sync,
    syncback,
    syncfacts,
    watch,
)
from iotops.actions.recorded import recorded
from iotops.actions.sync import ACTION
from iotops.actions.syncback import Back, Task
from iotops.actions.syncplan import RANK, WRITTEN, ChangeKind, File, SyncPlan
from iotops.actions.syncproject import target_project
from iotops.clients import files
from iotops.clients.compose import ComposeStack
from iotops.clients.composemodel import UP
from iotops.clients.gitremote import Upstream
from iotops.errors import (
    Conflict,
    GuardError,
    IotopsError,
    Locked,
    Skipped,
    StackError,
    UsageError,
    passes,
)
from iotops.events import Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run, RunRecord, boot_id, stamp
from iotops.model import OnChange

READ = (OnChange.RELOAD, OnChange.RESTART)
"""What a service needs that reads a file again; to be made anew it need not have read any."""


@dataclass(frozen=True)
class Applied:
    """What an apply did.

    Attributes:
        run: its id; empty = there was nothing to do. commit: that the hub is equal to now.
        files: written or removed. services: what was done to each. snapshot: taken before.
    """

    run: str
    commit: str
    files: tuple[str, ...] = ()
    services: Mapping[str, str] = field(default_factory=dict)
    snapshot: str = ""
    seconds: float = 0.0


def prepare(hub: Hub, report: Report = silent) -> SyncPlan:
    """Settle what dead runs left, fetch, and decide.

    Raises:
        IotopsError: the data root is not this hub's; or as `sync.look`.
    """
    hub.stack.require()
    hub.guard()
    with hub.locked(ACTION):
        resume.settle(hub, report)
    return sync.look(hub, report)


def unattended(hub: Hub, report: Report = silent) -> Applied:
    """Do it all where nobody watches, for a timer.

    Raises:
        Skipped: the remote does not answer, or another run goes on.
        Conflict: the remote, the hub's files, or a commit that was returned from before, forbid it.
        GuardError: the commit is refused, now or within the last day.
        IotopsError: as `apply`.
    """
    try:
        try:
            decided = prepare(hub, report)
        except Locked as error:
            raise Skipped(error.message, hint=error.hint) from error
    except IotopsError as error:
        if not isinstance(error, Skipped):
            hub.state.refused(ACTION, error.message)
        raise
    return apply(hub, decided, auto=True, report=report)


def apply(
    hub: Hub,
    decided: SyncPlan,
    *,
    auto: bool = False,
    backup: bool = True,
    report: Report = silent,
) -> Applied:
    """Apply a plan.

    Args:
        auto: nobody watches: a commit that was returned from, or refused, is not tried again.
        backup: take a snapshot before a service is touched; without one no data comes back.

    Raises:
        Conflict: something forbids it, or is not any more as it was looked at.
        StackError: the commit was returned from.
        IotopsError: nothing was touched, or what was touched is put back.
    """
    try:
        _refuse(hub, decided, auto=auto)
        work = decided.files or decided.services or decided.head != decided.target
        # Also where no service needs anything: one that stands still gets the files all the same.
        unproven = decided.good != decided.target
        if not work and not unproven:
            return _equal(hub, decided)
        if os.geteuid() != 0:
            raise UsageError(
                "an apply needs root: it makes a backup, and may have to put data back",
                hint="sudo iotops sync apply",
            )
        if auto:
            refusals.refuse_again(hub, decided.target, report)
        _examine(hub, decided, report)
        if not work:
            return _equal(hub, decided)
        snapshot = _snapshot(hub, decided, report) if backup and _touches(hub, decided) else ""
    except IotopsError as error:
        hub.state.refused(ACTION, error.message)
        raise
    with hub.locked(ACTION):
        resume.settle(hub, report)
        work_of = _Apply(hub, decided, snapshot, report)
        work_of.refuse_moved()
        return work_of.run()


def _equal(hub: Hub, decided: SyncPlan) -> Applied:
    """Note that there was nothing to do: in the state file, not in the journal, which a frequent
    timer would fill."""
    syncback.good(hub, decided.target)
    now = stamp()
    record = RunRecord(f"{now}-{ACTION}", ACTION, now, os.getpid(), boot_id())
    hub.state.finished(replace(record, outcome="complete", ended=now))
    return Applied("", decided.target)


def _refuse(hub: Hub, decided: SyncPlan, *, auto: bool) -> None:
    if decided.refused:
        raise sync.conflict(decided)
    state = hub.state.read().sync
    if auto and state.get("returned") == decided.target:
        raise Conflict(
            f"the commit {decided.target[:8]} was returned from before: {state.get('why', '')}",
            hint="commit what mends it; or try the same again by hand: iotops sync apply",
        )


def _touches(hub: Hub, decided: SyncPlan) -> bool:
    """Tell whether services may be touched: also by a file that Compose reads beside its own, for
    where that is named in a way that the plan cannot see through (an absolute path)."""
    if decided.services:
        return True
    parts = {path.resolve() for path in ComposeStack(hub.folder).files()[1]}
    return any((hub.folder / name).resolve() in parts for name in decided.files)


def _examine(hub: Hub, decided: SyncPlan, report: Report) -> None:
    """Refuse what can be known to be bad, on a copy; nothing of the hub is touched.

    Raises:
        GuardError: with the first error, and how many more there are.
    """
    from iotops.actions.candidate import examine

    tree = Upstream(hub.folder, owner=hub.owner)
    wanted = syncfacts.content(tree, decided.target)
    known = [commit for commit in (decided.head, decided.good) if commit]
    tracked = {path for commit in known for path in tree.files(commit)}
    fetch_images(hub, decided, wanted, tracked, report)
    hub.layout.tmp.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sync-", dir=hub.layout.tmp) as base:
        for path, file in wanted.items():
            place = files.below(Path(base), path)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.link:
                place.symlink_to(os.fsdecode(file.data))
                continue
            place.write_bytes(file.data)
            place.chmod(0o755 if file.executable else 0o644)
        mark = refusals.judged(hub, decided.target)
        with step(report, "examine"):
            found = examine(hub, Path(base), report)
    refusals.remember(hub, mark, found)
    if (error := refusals.tell(decided.target, found, report)) is not None:
        raise error


def fetch_images(
    hub: Hub,
    decided: SyncPlan,
    wanted: Mapping[str, File],
    tracked: Collection[str],
    report: Report = silent,
) -> None:
    """Fetch the images that are not here yet: what is not here cannot be tried out, and a service
    shall not stand still while its new image comes over a slow line.

    Args:
        wanted: the target's files. tracked: paths that Git knows here now.

    Raises:
        StackError, GuardError: one cannot be had, or cannot run here; nothing was touched.
    """
    made = [name for name, need in decided.services.items() if need is OnChange.RECREATE]
    if not made:
        return
    with target_project(hub, wanted, tracked) as stack:
        declared = stack.model().services
    images = {declared[name].image for name in made if not declared[name].built}
    candidateimages.fetch(ComposeStack(hub.folder), images - {""}, report)


def _snapshot(hub: Hub, decided: SyncPlan, report: Report) -> str:
    """Make a snapshot of the whole hub that holds the services which will be touched.

    Of the whole hub: a snapshot of some services would be one more kind of incomplete snapshot
    that a restore must not take for the newest; and captures are hot and incremental.
    """
    from iotops.actions.backup import back_up

    made = back_up(hub, None, report)
    missing = [
        f"{one.name} ({made.missing[one.name]})"
        for one in sync.touched(decided, hub)
        if one.name in made.missing
    ]
    if missing:
        raise GuardError(
            f"the snapshot before the change lacks {', '.join(missing)}; nothing was touched",
            hint="mend that first; or go on without: iotops sync apply --without-backup",
        )
    return made.snapshot


def _back(decided: SyncPlan) -> str:
    """Choose the commit to return to: the last good one. What is checked out may be known to be
    bad, or have been tried by nobody; it counts only where no good one is known."""
    if decided.good and decided.good != decided.target:
        return decided.good
    return decided.head if decided.head != decided.target else decided.good


class _Apply:
    """One apply while it goes on; the lock is held."""

    def __init__(self, hub: Hub, decided: SyncPlan, snapshot: str, report: Report) -> None:
        self.hub = hub
        self.plan = decided
        self.snapshot = snapshot
        self.report = report
        self.done: dict[str, str] = {}
        self.why = ""
        self.unwritable = False
        self.back = Back()
        self.tree = Upstream(hub.folder, owner=hub.owner)
        containers = hub.stack.containers()
        self.task = Task(
            decided.target,
            _back(decided),
            decided.head,
            needs={name: need.value for name, need in decided.services.items()},
            ids={name: one.id for name, one in containers.items() if name in decided.services},
            reads=tuple(sorted({one.service for one in decided.changes if one.on_change in READ})),
            folders=syncback.new_folders(hub, decided.files),
        )

    # -- what was looked at is still there ------------------------------------------------------

    def refuse_moved(self) -> None:
        """Refuse where anything has changed since the plan was made.

        Raises:
            Conflict: with what it is.
        """
        if self.tree.head() != self.plan.head:
            raise _moved(syncfacts.BRANCH)
        containers = self.hub.stack.containers()
        for one in self.plan.changes:
            if one.kind is ChangeKind.CONTAINER:
                there = containers.get(one.path)
                if (there.id if there is not None else "") != one.before:
                    raise _moved(f"the container of {one.path}")
            elif one.kind in WRITTEN:
                self._same(one.path, one.before)

    def _same(self, path: str, before: str) -> None:
        there = syncfacts.on_disk(self.hub.folder, path)
        if (there.mark if there is not None else "") != before:
            raise _moved(path)

    # -- the run --------------------------------------------------------------------------------

    def run(self) -> Applied:
        """Do it, recorded."""
        began = time.monotonic()
        try:
            with recorded(
                self.hub, ACTION, self.report, put_right=self._put_right, **self.task.about
            ) as run:
                run.note(snapshot=self.snapshot)
                try:
                    self._apply(run)
                except (IotopsError, OSError) as error:
                    self.why = str(error)
                    raise
                run.note(services=self.done)
        except (IotopsError, OSError) as error:
            if not self.why or self.task.phase == syncback.PROVEN:
                raise
            raise self._returned(error) from error
        seconds = time.monotonic() - began
        return Applied(run.id, self.plan.target, self.plan.files, self.done, self.snapshot, seconds)

    def _returned(self, error: IotopsError | OSError) -> IotopsError:
        """Give the error of an apply that was returned from, or could not be."""
        if isinstance(error, IotopsError) and error.hint.endswith("iotops resume"):
            return error  # not everything could be put back
        text = f"the commit {self.plan.target[:8]} was returned from: {self.why}"
        text = "\n".join([text, *self.back.told(self.hub)])
        hint = "commit what mends it, then: iotops sync apply"
        return StackError(text, hint=hint) if not isinstance(error, Conflict) else error

    def _put_right(self, run: Run) -> None:
        if self.task.phase == syncback.PROVEN:
            syncback.finish(self.hub, run, self.report)
            return
        self.back = syncback.give_back(self.hub, run, self.report)
        # Who interrupts a run says nothing against the commit.
        if self.why and (self.task.phase == syncback.CHANGING or self.unwritable):
            syncback.returned(self.hub, run, self.why)

    def _apply(self, run: Run) -> None:
        run.note(step="write")
        with step(self.report, "write"):
            self._write()
        hub = Hub.open(self.hub.folder)  # with the settings of the commit
        needs = {
            name: need.value for name, need in most(self.plan, sync.look(hub, fetch=False)).items()
        }
        self._require_data(hub, needs)
        self._know(hub, run, needs)
        run.note(step="change")
        self._change(hub, run, needs)
        run.note(step="watch")
        watch.prove(hub, self.task.needs, hub.settings.sync.watch, self.report)
        self.task = self.task.at(syncback.PROVEN, run)
        syncback.finish(hub, run, self.report)

    def _require_data(self, hub: Hub, needs: Mapping[str, str]) -> None:
        """Refuse where a return could not put back the data of what only shows to be touched now
        that the files are written."""
        reloads = [name for name, need in needs.items() if need == OnChange.RELOAD]
        more = {*needs, *watch.along(hub, reloads)} - {*self.plan.services}
        services = [one for one in hub.services if one.place.container in more]
        if self.snapshot and services:
            from iotops.actions import putback

            putback.held(hub, self.snapshot, services)

    def _know(self, hub: Hub, run: Run, needs: Mapping[str, str]) -> None:
        """Write down what is about to be touched, and how it is now."""
        there = hub.stack.containers()
        new = {name: there.get(name) for name in needs if name not in self.task.started}
        found = {name: one for name, one in new.items() if one is not None}
        self.task = replace(
            self.task,
            needs={**self.task.needs, **needs},
            ids={**self.task.ids, **{name: one.id if one else "" for name, one in new.items()}},
            images={**self.task.images, **{name: one.image_id for name, one in found.items()}},
            started={**self.task.started, **{name: one.started_at for name, one in found.items()}},
        ).at(syncback.CHANGING, run)

    def _write(self) -> None:
        wanted: Mapping[str, File] = syncfacts.content(self.tree, self.plan.target)
        before = {one.path: one.before for one in self.plan.changes if one.kind in WRITTEN}
        # What goes comes first: where it was, a folder may have to be, or the other way round.
        for path, mark in sorted(before.items(), key=lambda one: (one[0] in wanted, one[0])):
            self._same(path, mark)
            try:
                syncback.write(self.hub, path, wanted.get(path))
            except (GuardError, OSError) as error:
                self.unwritable = not passes(error)
                raise

    def _change(self, hub: Hub, run: Run, needs: Mapping[str, str]) -> None:
        """Let each service have what it needs, and nothing else."""
        recreate = [name for name, need in needs.items() if need == OnChange.RECREATE]
        if recreate:
            with step(self.report, "recreate"):
                self._recreate(hub, recreate)
            now = hub.stack.containers()
            for name in recreate:
                new = name not in now or now[name].id != self.task.ids.get(name)
                self.done[name] = "made anew" if new else "left as it is"
        reloads = [name for name, need in needs.items() if need == OnChange.RELOAD]
        dragged: set[str] = set()
        for name, first in watch.in_order(hub, {*needs, *watch.along(hub, reloads)}):
            need = needs.get(name, "")
            if name not in dragged and (name in self.done or not need):
                continue
            if need == OnChange.RELOAD and name not in dragged:
                with step(self.report, "reload", name):
                    if syncback.reload(hub, name) is OnChange.NOTHING:
                        self.done[name] = "reloaded"
                        continue
            elif first:
                watch.ready(hub, first, self.report)
            dragged |= watch.along(hub, [name])
            more = dragged - {*self.task.needs}
            if more:
                self._know(hub, run, dict.fromkeys(more, OnChange.RESTART.value))
            with step(self.report, "restart", name):
                hub.stack.restart([name])
            self.done.setdefault(name, "restarted")

    def _recreate(self, hub: Hub, names: Collection[str]) -> None:
        """Make containers anew; what Compose starts along with them is stopped again.

        Not without their dependencies: they would get another hash, and be made anew again by the
        next `up`.
        """
        before = hub.stack.containers()
        hub.stack.create(sorted(names))
        for name, one in hub.stack.containers().items():
            known = before.get(name)
            if name not in names and known is not None and known.state not in UP:
                if one.state in UP:
                    hub.stack.stop([name])


def most(*plans: SyncPlan) -> dict[str, OnChange]:
    """Give the most that a service needs by any of several plans."""
    needs: dict[str, OnChange] = {}
    for plan in plans:
        for name, need in plan.services.items():
            needs[name] = max(needs.get(name, need), need, key=RANK.index)
    return needs


def _moved(what: str) -> Conflict:
    return Conflict(
        f"{what} has changed since it was looked at; nothing was overwritten",
        hint="look again: iotops sync plan",
    )
