"""How an apply of config-sync ends: finished, or returned to the commit before, also by `resume`.

The run's record alone says what there is to do, so it can be done again after every death. To
return: what the new version made of the data is put aside and the data comes back out of the
snapshot that was taken first, the files are those of the commit before, the containers are made of
them. Data is put back of what was started under the new commit, made anew or not, and of nothing
else. Not here: applying (`syncapply.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from iotops.actions import swap, sync, syncfacts, watch
from iotops.actions.syncplan import File
from iotops.clients import files
from iotops.clients.compose import ComposeStack, Container
from iotops.clients.composemodel import UP
from iotops.clients.gitremote import Upstream
from iotops.errors import GuardError, IotopsError, RestoreError, StackError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run, stamp
from iotops.model import OnChange, ServiceRecord, Severity
from iotops.services.base import Service

if TYPE_CHECKING:  # every run settles dead ones first, and must begin quickly
    from iotops.actions.putback import Extracted

WRITING, CHANGING, PROVEN = "writing", "changing", "proven"
"""Phases of an apply: files are being written; services have been touched; it is good."""
SHORT_WATCH = 5.0
"""Seconds that services are watched after a return: they ran like that before."""


@dataclass(frozen=True)
class Task:
    """What an apply is about, as its record holds it.

    Attributes:
        commit: to be equal to. back: the commit to return to; empty = none is known.
        head: where `main` is. phase: how far it has come.
        needs: what each Compose service needs. ids: their containers before; empty = none.
        images: ids of the images that those containers ran. started: when they were started.
        reads: services that see a file which the commit changes.
        folders: of the hub folder, that were not there before.
    """

    commit: str
    back: str
    head: str
    phase: str = WRITING
    needs: Mapping[str, str] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    started: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def about(self) -> dict[str, str]:
        """Give it as facts for a record."""
        return {
            "commit": self.commit,
            "back": self.back,
            "head": self.head,
            "phase": self.phase,
            "needs": json.dumps(dict(self.needs)),
            "ids": json.dumps(dict(self.ids)),
            "images": json.dumps(dict(self.images)),
            "started": json.dumps(dict(self.started)),
            "reads": json.dumps(dict.fromkeys(self.reads, "")),
            "folders": json.dumps(dict.fromkeys(self.folders, "")),
        }

    def at(self, phase: str, run: Run) -> Task:
        """Go on to a phase, and write that down before it begins."""
        task = replace(self, phase=phase)
        run.note(about={**run.record.about, **task.about})
        return task

    @classmethod
    def of(cls, about: Mapping[str, str]) -> Task:
        """Read it out of a record."""
        commit, back, head, phase = (
            about.get(name, "") for name in ("commit", "back", "head", "phase")
        )
        return cls(
            commit,
            back,
            head,
            phase,
            needs=_texts(about.get("needs", "")),
            ids=_texts(about.get("ids", "")),
            images=_texts(about.get("images", "")),
            started=_texts(about.get("started", "")),
            reads=tuple(_texts(about.get("reads", ""))),
            folders=tuple(_texts(about.get("folders", ""))),
        )


def _texts(text: str) -> dict[str, str]:
    try:
        document: object = json.loads(text or "{}")
    except ValueError:
        return {}
    found = document.items() if isinstance(document, dict) else ()
    return {str(key): str(value) for key, value in found}


def settle(hub: Hub, run: Run, report: Report = silent) -> Back | None:
    """Finish or return an apply whose run has died; the caller holds the lock.

    Returns:
        None = it is finished; else what the return did.

    Raises:
        IotopsError: it could not be done yet; nothing is lost by trying again.
    """
    phase = Task.of(run.record.about).phase
    if phase == PROVEN:
        finish(hub, run, report)
        return None
    back = give_back(hub, run, report)
    if phase == CHANGING:  # else no service has seen it, and it may well be good
        returned(hub, run, f"the run {run.record.death}")
    return back


def finish(hub: Hub, run: Run, report: Report = silent) -> None:
    """Let `main` follow, and remember the commit as the last good one."""
    task = Task.of(run.record.about)
    tree = Upstream(hub.folder, owner=hub.owner)
    with step(report, "settle"):
        if task.commit != task.head and tree.head() in (task.head, task.commit):
            with hub.flows_locked("sync"):
                tree.advance(syncfacts.BRANCH, task.commit, task.head)
        made = [name for name, need in task.needs.items() if need == OnChange.RECREATE]
        syncfacts.remember(hub, ComposeStack(hub.folder), made)
        good(hub, task.commit)
        with suppress(IotopsError, OSError):  # what an apply leaves alone is still told
            sync.look(Hub.open(hub.folder), fetch=False)


def good(hub: Hub, commit: str) -> None:
    """Remember a commit as the last good one; what was found to differ stays told."""
    state = hub.state.read().sync
    same = commit == state.get("commit") and "applied" in state
    keys = ("tip", "looked", "drift", *(("applied",) if same else ()))
    kept = {key: state[key] for key in keys if key in state}
    hub.state.update(sync={"commit": commit, "applied": stamp(), **kept})


def returned(hub: Hub, run: Run, why: str) -> None:
    """Remember a commit that was returned from: no timer tries it again."""
    state = hub.state.read().sync
    commit = Task.of(run.record.about).commit
    hub.state.update(sync={**state, "returned": commit, "why": why.splitlines()[0][:200]})


# -- returning ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Back:
    """What a return did: whose data was put back, and which service is not well all the same."""

    data: tuple[str, ...] = ()
    unwell: str = ""

    def told(self, hub: Hub) -> tuple[str, ...]:
        """Say it."""
        said: list[str] = []
        if self.data:
            said.append(
                f"the data of {', '.join(self.data)} is that of the snapshot taken before;"
                f" what the new version made of it lies in {hub.layout.replaced}"
            )
        if self.unwell:
            said.append(f"and what runs now is not well either: {self.unwell}")
        return tuple(said)


def give_back(hub: Hub, run: Run, report: Report = silent) -> Back:
    """Let everything be as the last good commit has it; what is so already stays untouched.

    That may be an older commit than the one that was checked out before the run: then the files
    differ from `main` afterwards, where its commits are still.
    A service that is not well afterwards was not well before either, or for another reason than
    this commit: it is told, and does not keep the next commit from being applied.

    Raises:
        RestoreError: all runs as before, but on the data that the commit left behind.
        IotopsError: not everything could be; it can be tried again.
    """
    task = Task.of(run.record.about)
    swap.put_right(hub, run, report)  # a return may have died while it put data back
    if task.phase != CHANGING:
        with step(report, "write-back"):
            _write_back(hub, task, report)
        return Back()
    run.note(step="return")
    with step(report, "write-back"):
        _write_back(hub, task, report)
    before = Hub.open(hub.folder)  # the settings are the old ones again, too
    there = before.stack.containers()
    exchanged = [name for name in task.needs if _id(there.get(name)) != task.ids.get(name, "")]
    # Also a setting that is read at a start may let a server spoil its data.
    begun = _begun(before, task, there, exchanged)
    old = [name for name in exchanged if task.ids.get(name)]
    data = _Data(before, run, report)
    data.take_out([one for one in before.services if one.place.container in (*old, *begun)])
    with step(report, "stop"):
        for name in (*exchanged, *begun):
            if name in there:
                before.stack.stop([name], grace=swap.GRACE)
    _remove_new(before, [name for name in exchanged if not task.ids.get(name)], report)
    if old:
        with step(report, "create"):
            stack = ComposeStack(hub.folder)
            _name_back(stack, {name: task.images.get(name, "") for name in old}, report)
            stack.prepare(old)
    records = data.exchange()
    _run_again(before, task, (*old, *begun), report)
    unwell = _judged(before, [name for name in task.needs if task.ids.get(name)], records, report)
    syncfacts.remember(before, ComposeStack(hub.folder), old)
    with step(report, "clean"):
        files.remove_tree(hub.layout.tmp / run.id)
    if data.lost:
        text = "the containers of before run again, on the data that the commit left behind, for"
        text += f" that of the snapshot {run.record.snapshot[:8]} cannot be had: {data.lost}"
        raise RestoreError(text, hint="mend that, then: iotops resume")
    return Back(tuple(one.name for one in records), unwell)


def _id(one: Container | None) -> str:
    return one.id if one is not None else ""


def _begun(
    hub: Hub, task: Task, there: Mapping[str, Container], exchanged: Collection[str]
) -> list[str]:
    """Name what kept its container and was started since the services were about to be touched.

    Docker starts everything at boot. What was to be made anew and was not has seen nothing of the
    commit then, but for its files, or where it was restarted along with something that has.
    """
    declared, found = hub.model.services, [*exchanged]
    for name, _ in watch.in_order(hub, task.needs):
        one = there.get(name)
        if one is None or name in exchanged:
            continue
        with_others = (*declared[name].follows, *declared[name].joins) if name in declared else ()
        seen = name in task.reads or any(other in found for other in with_others)
        if task.needs[name] == OnChange.RECREATE and not seen:
            continue
        if task.started.get(name, one.started_at) != one.started_at:
            found.append(name)
    return found[len(exchanged) :]


class _Data:
    """The data that a return puts back. Where it cannot be had, the services run without it."""

    def __init__(self, hub: Hub, run: Run, report: Report) -> None:
        self.hub = hub
        self.run = run
        self.report = report
        self.taken: Extracted | None = None
        self.lost = ""

    def take_out(self, services: Sequence[Service]) -> None:
        """Extract it, while nothing has been stopped yet."""
        from iotops.actions import putback

        snapshot = self.run.record.snapshot
        if not services or not snapshot:
            return
        try:
            with step(self.report, "data"):
                self.taken = putback.take_out(self.hub, self.run, snapshot, services, self.report)
        except (IotopsError, OSError) as error:
            self.lost = str(error)

    def exchange(self) -> tuple[ServiceRecord, ...]:
        """Put it in its place, while the services stand still; give what it is."""
        from iotops.actions import putback

        if self.taken is None:
            return ()
        try:
            putback.exchange(self.hub, self.run, self.taken, self.report)
        except (IotopsError, OSError) as error:
            self.lost = str(error)
            swap.put_right(self.hub, self.run, self.report)
            return ()
        return self.taken.records


def _run_again(hub: Hub, task: Task, stopped: Collection[str], report: Report) -> None:
    """Start what was stopped and let the others read the old files, in the order of their start."""
    there = hub.stack.containers()  # to make one anew, Compose may have stopped what depends on it
    reloads = [name for name, need in task.needs.items() if need == OnChange.RELOAD]
    dragged: set[str] = set()
    for name, first in watch.in_order(hub, {*task.needs, *watch.along(hub, reloads)}):
        need = task.needs.get(name, "")
        if name not in there or not (need or name in dragged):
            continue
        up = there[name].state in UP
        if name in stopped:
            if waits := [one for one in first if one in stopped]:
                with suppress(StackError):  # told at the end
                    watch.ready(hub, waits, report)
        elif name not in dragged and need == OnChange.RELOAD and up:
            with step(report, "reload", name):
                if reload(hub, name) is OnChange.NOTHING:
                    continue
            dragged |= watch.along(hub, [name])
        elif name not in dragged and need == OnChange.RECREATE and up:
            continue  # it has its old container, and never saw the new declaration
        if name in stopped or (need == OnChange.RECREATE and not up):
            with step(report, "start", name):
                hub.stack.start([name])
        else:
            with step(report, "restart", name):
                hub.stack.restart([name])


def reload(hub: Hub, name: str) -> OnChange:
    """Let a Compose service take its new configuration; tell what is still needed."""
    for service in hub.services:
        if service.place.container == name:
            return service.reload()
    return OnChange.RESTART


def _judged(
    hub: Hub, names: Sequence[str], records: Sequence[ServiceRecord], report: Report
) -> str:
    """Say what is not well after a return."""
    try:
        watch.prove(hub, names, min(SHORT_WATCH, hub.settings.sync.watch), report)
    except StackError as error:
        report(Noted("error", error.message))
        return error.message
    if not records:
        return ""
    from iotops.actions import putback

    with step(report, "verify"):
        found = [*putback.verified(hub, records)]
    for one in found:
        report(Noted("warning", one.message, one.subject))
    return "; ".join(one.message for one in found if one.severity is Severity.ERROR)


def _name_back(stack: ComposeStack, images: Mapping[str, str], report: Report) -> None:
    """Let the declared names stand for the images that ran before.

    A tag that was moved meanwhile (pulled, built) would bring the bad version back, now and at
    every later `up`. A name with a digest cannot move.
    """
    declared = stack.model().services
    for service, image in images.items():
        name = declared[service].image if service in declared else ""
        if not image or not name or stack.image_ids([name]).get(name) == image:
            continue
        try:
            stack.name_image(image, name)
            text = f"the image name {name} stands again for what ran before, {image[7:19]}"
        except StackError as error:
            text = f"the image that ran before could not be had again: {error.message}"
        report(Noted("warning", text, service))


def _remove_new(hub: Hub, names: Collection[str], report: Report) -> None:
    """Remove containers that this run has made where there were none; their data stays."""
    for name in names:
        with step(report, "remove", name):
            ComposeStack(hub.folder).discard(name)


def _write_back(hub: Hub, task: Task, report: Report) -> None:
    """Write the files of the commit before where those of the new one are."""
    tree = Upstream(hub.folder, owner=hub.owner)
    wanted = syncfacts.content(tree, task.commit)
    for folder in {files.below(hub.folder, path).parent for path in wanted}:
        if files.first_link(hub.folder, folder) is None:
            files.sweep(folder)  # a write that died would count as an edit from now on
    if not task.back:
        text = "no commit is known that this hub was good with: the files stay as they are"
        report(Noted("warning", text))
        return
    back = syncfacts.content(tree, task.back)
    # What goes comes first: where it was, a folder may have to be, or the other way round.
    for path in sorted({*wanted, *back}, key=lambda one: (one in back, one)):
        new, old = wanted.get(path), back.get(path)
        if new == old:
            continue
        there = syncfacts.on_disk(hub.folder, path)
        if there == old:
            continue
        if there != new:
            report(Noted("warning", f"{path} was edited meanwhile, and is left as it is"))
            continue
        write(hub, path, old)
    for name in sorted(task.folders, reverse=True):  # inner ones first
        place = files.below(hub.folder, name)
        if files.first_link(hub.folder, place) is None:
            with suppress(OSError):  # it was not made, or somebody has put something there
                place.rmdir()


# -- files ----------------------------------------------------------------------------------------


def new_folders(hub: Hub, paths: Collection[str]) -> tuple[str, ...]:
    """Name the folders that writing files would make in the hub folder."""
    found = {
        folder.relative_to(hub.folder).as_posix()
        for path in paths
        for folder in files.missing_folders(files.below(hub.folder, path).parent)
    }
    return tuple(sorted(found))


def write(hub: Hub, path: str, file: File | None) -> None:
    """Write or remove a file of the hub folder, at once or not at all.

    A file that is there keeps its owner and its mode (the broker's may be its own); a new one
    belongs to the hub's owner. Folders that hold nothing make room for it.

    Raises:
        GuardError: it lies behind a link, or something else than a file is in its place.
    """
    place = files.below(hub.folder, path)
    if (link := files.first_link(hub.folder, place.parent)) is not None:
        raise GuardError(
            f"{path} lies behind the symbolic link {link}, which is not followed",
            hint=f"look at it, and move it away: ls -l {link}",
        )
    if file is not None:
        _remove_empty(place)
    if place.is_dir() and not place.is_symlink():
        raise GuardError(f"{path} is a folder here", hint=f"look at it, and move it away: {place}")
    if file is None:
        place.unlink(missing_ok=True)
        files.sync_folder(place.parent)
        return
    files.make_folders(place.parent, owner=hub.owner)
    if file.link:
        temporary = files.beside(place)
        temporary.symlink_to(os.fsdecode(file.data))
        temporary.replace(place)
        return
    mode, owner = 0o644, hub.owner
    if files.is_regular(place):
        state = place.lstat()
        mode, owner = state.st_mode & 0o666, (state.st_uid, state.st_gid)
    if file.executable:
        mode |= (mode & 0o444) >> 2
    files.write(place, file.data, mode=mode, owner=owner)


def _remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but folders that hold nothing."""
    if folder.is_dir() and not folder.is_symlink():
        for base, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # something is in it, which its folder is told for
                Path(base).rmdir()
