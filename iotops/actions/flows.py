"""Bring Node-RED's flows into the branch `flows`.

What Node-RED serves is proven by its revision, judged against the last commit (it serves an empty
set with a smile when its file is lost), searched for secrets, split into readable files and
committed with a message made from the difference. Nothing changed = no commit. Not here: the split
format (`flowdoc.py`), the words of the message (`flowdiff.py`), Git itself (`clients/git.py`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from iotops import flowdiff, flowdoc
from iotops.clients import files
from iotops.clients.git import Worktree
from iotops.errors import (
    Conflict,
    Exit,
    FlowsError,
    GitError,
    GuardError,
    IotopsError,
    Refused,
    ServerError,
    SettingsError,
    Skipped,
    TimedOut,
)
from iotops.events import Noted, Report, silent, step
from iotops.flowdoc import Flows
from iotops.hub import Hub
from iotops.journal import RunRecord, boot_id
from iotops.services.nodered import NodeRed

ACTION = "flows-pull"
BRANCH = "flows"
REMOTE = "flows"
"""Name of the remote that `[flows] remote` gives the address of."""


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        commit: the new commit's id; None = nothing had changed, so none was made.
        revision: Node-RED's revision of what it runs, which the branch now holds.
        changed: whether a commit was made.
        summary: the subject of the commit's message, or that nothing changed.
        pushed: whether the remote has the branch now.
        push_failure: why it has not although that was asked for; the commit stands.
        hint: what to do about the push.
        exit: what the pull means as an exit code.
    """

    commit: str | None
    revision: str
    changed: bool
    summary: str
    pushed: bool = False
    push_failure: str = ""
    hint: str = ""
    exit: Exit = Exit.DONE


def pull(
    hub: Hub,
    *,
    push: bool | None = None,
    allow_empty: bool = False,
    allow_shrink: bool = False,
    accepted: Collection[str] = (),
    report: Report = silent,
) -> Pulled:
    """Commit the running flows to the branch `flows` if they changed.

    Args:
        push: whether to send the branch to its remote; None = as the settings say.
        allow_empty: take an empty flow set.
        allow_shrink: take one of less than half the nodes.
        accepted: places ("<node id>.<key>") where what looks like a secret is none.
        report: told about each step.

    Raises:
        ServerError, FlowsError: Node-RED does not give its flows, or gives none that are whole.
        GuardError: a guard refused them; nothing was written.
        GitError: the branch could not be written. Locked: another pull is at it.
    """
    started = datetime.now(UTC)
    try:
        with hub.flows_locked(ACTION):
            service = _service(hub)
            tree = _worktree(hub)
            with step(report, "read", service.name):
                now = service.flows()
            with step(report, "commit", service.name):
                pulled = _record(
                    hub,
                    tree,
                    service,
                    now,
                    report,
                    _Allowed(allow_empty, allow_shrink, frozenset(accepted)),
                )
            if hub.settings.flows.push if push is None else push:
                with step(report, "push", service.name):
                    pulled = _push(hub, tree, pulled)
    except IotopsError as error:
        outcome = "skipped" if isinstance(error, Skipped) else "failed"
        _note(hub, started, outcome, error.message, error.hint)
        raise
    outcome = "complete" if pulled.exit is Exit.DONE else "partial"
    _note(hub, started, outcome, pulled.push_failure or pulled.summary, pulled.hint)
    return pulled


@dataclass(frozen=True)
class _Allowed:
    empty: bool
    shrink: bool
    places: frozenset[str]


@dataclass(frozen=True)
class _Last:
    """What the last commit holds: its document, and what it says of version and palette."""

    flows: Flows | None
    nodered: str = ""
    palette: Mapping[str, str] | None = None
    damaged: str = ""


def _service(hub: Hub) -> NodeRed:
    chosen = hub.settings.flows.service
    found = [service for service in hub.of_kind("nodered") if isinstance(service, NodeRed)]
    if chosen:
        found = [service for service in found if service.name == chosen]
    if len(found) == 1:
        return found[0]
    if not found:
        what = f"no Node-RED service {chosen!r}" if chosen else "no service of kind nodered"
        raise SettingsError(f"this hub has {what}", hint="name it in iotops.toml: [services.NAME]")
    names = ", ".join(service.name for service in found)
    raise SettingsError(
        f"this hub has several Node-RED services: {names}", hint="choose one: [flows] service"
    )


def _worktree(hub: Hub) -> Worktree:
    """Open the worktree of the branch, making or repairing it where needed."""
    folder = hub.folder / BRANCH
    main = Worktree(hub.folder, owner=hub.owner)
    if not main.exists():
        raise GitError(
            f"the hub folder {hub.folder} is no Git repository",
            hint=f"make it one: git -C {hub.folder} init",
        )
    linked = Worktree(folder, owner=hub.owner)
    if not folder.is_symlink() and linked.exists():
        return _on_branch(linked)
    if (folder / ".git").is_file():  # the hub folder was moved or restored
        main.repair(folder)
        if linked.exists():
            return _on_branch(linked)
    return main.add_orphan_worktree(BRANCH, at=folder)


def _on_branch(tree: Worktree) -> Worktree:
    branch = tree.branch()
    if branch != BRANCH:
        raise GitError(
            f"{tree.path} is on {branch or 'a detached commit'}, not on the branch {BRANCH}",
            hint=f"git -C {tree.path} switch {BRANCH}",
        )
    return tree


def _record(
    hub: Hub, tree: Worktree, service: NodeRed, now: Flows, report: Report, allowed: _Allowed
) -> Pulled:
    old = {name: data for name, data in tree.contents().items() if flowdoc.is_ours(name)}
    last = _last(old)
    if last.damaged:
        report(Noted("warning", f"the last commit is not whole: {last.damaged}", service.name))
    _guard(hub, now, last, allowed)
    version = service.version() or last.nodered
    palette = _palette(service, last, report)
    new = flowdoc.split(now.nodes, nodered_version=version, palette=palette)
    if flowdoc.join(new) != now.nodes:  # the revision was compared within
        raise FlowsError("splitting the flows lost something; nothing was written")
    before = None if last.damaged else last.flows
    text = flowdiff.message(
        flowdiff.difference(before, now),
        nodered_version=version,
        notes=_notes(last, version, palette),
    )
    stale = _stale(tree.path, new) | (old.keys() - new.keys())
    if edited := _edited(tree.path, old, new):
        report(Noted("warning", f"edits by hand were replaced: {', '.join(edited)}", service.name))
    _write(tree.path, new, stale, hub.owner)
    commit = tree.commit_all(text, sorted({*new, *stale}))
    summary = text.splitlines()[0] if commit is not None else "no change"
    return Pulled(commit, now.revision, commit is not None, summary)


def _last(old: Mapping[str, bytes]) -> _Last:
    if flowdoc.INDEX not in old:
        return _Last(None)
    try:
        revision, version, palette = flowdoc.recorded(old)
    except FlowsError as error:
        return _Last(None, damaged=error.message)
    try:
        return _Last(Flows(flowdoc.join(old), revision), version, palette)
    except FlowsError as error:
        # Its order of ids still tells how much there was, for the guards.
        ids = flowdoc.order(old)
        return _Last(
            Flows(tuple({"id": key} for key in ids), revision), version, palette, error.message
        )


def _guard(hub: Hub, now: Flows, last: _Last, allowed: _Allowed) -> None:
    if not now.nodes and last.flows is None and not last.damaged and not allowed.empty:
        raise Skipped(  # a new hub's timer must not fail until somebody draws the first flow
            "Node-RED serves an empty flow set, and none was ever committed: nothing to commit yet",
            hint="deploy a flow first; should there be some: look at Node-RED's flow file and log",
        )
    findings = flowdoc.judge(
        now,
        last.flows,
        allow_empty=allowed.empty,
        allow_shrink=allowed.shrink,
        secrets=hub.named_secrets(),
        accepted=allowed.places,
    )
    if not findings:
        return
    first = findings[0]
    more = f" (and {len(findings) - 1} more like this)" if len(findings) > 1 else ""
    raise GuardError(f"the flows were not taken: {first.message}{more}", hint=first.hint)


def _palette(service: NodeRed, last: _Last, report: Report) -> Mapping[str, str]:
    try:
        return service.palette()
    except Refused as error:
        report(Noted("warning", f"the palette was not recorded: {error.message}", service.name))
        return last.palette or {}


def _notes(last: _Last, version: str, palette: Mapping[str, str]) -> list[str]:
    """Changes beside the flows, in words."""
    if last.palette is None:
        return []
    notes: list[str] = []
    for module in sorted(palette.keys() | last.palette.keys()):
        before, after = last.palette.get(module), palette.get(module)
        if before is None:
            notes.append(f"palette: {module} {after} added")
        elif after is None:
            notes.append(f"palette: {module} removed")
        elif before != after:
            notes.append(f"palette: {module} {before} to {after}")
    if last.nodered and version and last.nodered != version:
        notes.append(f"Node-RED {last.nodered} to {version}")
    return notes


def _stale(folder: Path, new: Mapping[str, bytes]) -> set[str]:
    """Files of the split format on the disk that the new document does not have."""
    found: set[str] = set()
    for pattern in ("*.json", "tabs/*.json", "subflows/*.json", "code/*"):
        for path in folder.glob(pattern):
            relative = path.relative_to(folder).as_posix()
            if flowdoc.is_ours(relative) and relative not in new:
                found.add(relative)
    return found


def _edited(folder: Path, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> list[str]:
    """Files on the disk that are neither the last commit's nor what is about to be written."""
    found: list[str] = []
    for relative, committed in old.items():
        path = folder / relative
        if not path.is_symlink() and path.is_file():
            if path.read_bytes() not in (committed, new.get(relative)):
                found.append(relative)
    return sorted(found)


def _write(
    folder: Path, new: Mapping[str, bytes], stale: Collection[str], owner: tuple[int, int]
) -> None:
    """Make the files of the worktree those of the document, for their owner."""
    for relative in stale:
        (folder / relative).unlink(missing_ok=True)
    for relative, data in new.items():
        path = folder / relative
        if path.parent.is_symlink() or (path.parent.exists() and not path.parent.is_dir()):
            path.parent.unlink()  # never write where a link leads
        if not path.parent.is_dir():
            files.make_folder(path.parent, owner=owner)
        if path.is_symlink() or not path.is_file() or path.read_bytes() != data:
            # Git syncs what it stores; these are copies.
            files.write(path, data, mode=0o644, owner=owner, sync=False)


def _push(hub: Hub, tree: Worktree, pulled: Pulled) -> Pulled:
    """Send the branch; a failure is told, and the commit stands."""
    try:
        if hub.settings.flows.remote:
            tree.set_remote(REMOTE, hub.settings.flows.remote)
        head = tree.head()
        try:
            if head is not None and tree.resolve(f"{REMOTE}/{BRANCH}") == head:
                return replace(pulled, pushed=True)
        except GitError:
            pass  # never pushed before
        tree.push(REMOTE, BRANCH)
    except (ServerError, TimedOut, GitError) as error:
        away = not isinstance(error, Conflict)
        return replace(
            pulled,
            push_failure=error.message,
            hint=error.hint or "try again: iotops flows pull --push",
            exit=Exit.SKIPPED if away else Exit.DIFFERENT,
        )
    return replace(pulled, pushed=True)


def _note(hub: Hub, started: datetime, outcome: str, message: str, hint: str) -> None:
    """Keep the result in the state file, not in the journal: a frequent timer would fill that."""
    ended = datetime.now(UTC)
    hub.state.finished(
        RunRecord(
            id=f"{started:%Y%m%dT%H%M%SZ}-{ACTION}",
            action=ACTION,
            started=started.isoformat(timespec="seconds"),
            pid=os.getpid(),
            boot=boot_id(),
            outcome=outcome,
            ended=ended.isoformat(timespec="seconds"),
            message=message,
            hint=hint,
        )
    )
