"""Look at what Git says the hub shall be and at what the hub is; commit what was edited on it.

The target is the remote's `main` after a fetch, or the commits of the hub folder itself where the
settings name no remote. A remote whose history was rewritten, or whose commit nobody allowed has
signed, is a finding. Looking writes nothing but the remote and its commits in `.git`, and a line in
the state file.
Not here: the decision (`syncplan.py`), applying it (`syncapply.py`), validation (`candidate.py`).
"""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from iotops.actions import syncfacts
from iotops.actions.hooks import private_key, refused_in_git
from iotops.actions.syncfacts import BRANCH
from iotops.actions.syncplan import (
    ChangeKind,
    SyncPlan,
    plan,
)
from iotops.clients import files
from iotops.clients.gitremote import Upstream
from iotops.errors import (
    Conflict,
    GitError,
    GuardError,
    IotopsError,
    Skipped,
    TimedOut,
    Unreachable,
    UsageError,
)
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import RUNNING, stamp
from iotops.model import Finding, OnChange, Severity
from iotops.services.base import Service

ACTION = "sync"
"""Name of an apply's run, in the journal."""
REMOTE = "sync"
"""Name of the remote that `[sync] remote` gives the address of."""

SHOWN = 3
"""Commits that a finding names."""


@dataclass(frozen=True)
class SyncStatus:
    """Where the hub stands to Git.

    Attributes:
        commit: the last one that was applied and ran well; empty = none yet. applied: when.
        returned: one that was returned from, and why.
        plan: what differs now; without a fetch.
    """

    commit: str
    applied: str
    returned: str
    why: str
    plan: SyncPlan


def look(hub: Hub, report: Report = silent, *, fetch: bool = True) -> SyncPlan:
    """Compare the hub with Git and decide what it takes; note in the state file what differs.

    Args:
        fetch: ask the remote, if the settings name one; else what was fetched last counts.

    Raises:
        GuardError: the hub folder is not at `main`. Skipped: the remote does not answer.
        IotopsError: Git or the engine could not be asked.
    """
    with hub.flows_locked("sync"):
        tree = syncfacts.worktree(hub)
        state = hub.state.read().sync
        good = state.get("commit", "")
        good = good if good and tree.has(good) else ""
        with step(report, "fetch" if fetch and hub.settings.sync.remote else "look"):
            target, tip, found = _target(hub, tree, good, fetch=fetch)
            found += _unsigned(hub, tree, target, good)
        with step(report, "compare"):
            facts = syncfacts.gather(hub, tree, target, good, tuple(found))
    decided = plan(facts)
    bad = [one.message for one in found if one.severity is Severity.ERROR]
    told = [one.message for one in decided.findings if _tells_more(one)]
    noted = {"looked": stamp(), "drift": summary(decided), "finding": "; ".join(told)[:200]}
    if tip and not bad:
        noted["tip"] = tip
    with suppress(IotopsError, OSError):  # to look, nobody needs rights
        # Read again: an apply that ended meanwhile has written there what it came to.
        hub.state.update(sync={**hub.state.read().sync, **noted})
    return decided


def _tells_more(finding: Finding) -> bool:
    """Tell whether a finding says more than that something differs."""
    return finding.severity is Severity.ERROR and finding.code != "sync.local"


def status(hub: Hub, report: Report = silent) -> SyncStatus:
    """Tell where the hub stands to Git, without asking the remote."""
    decided = look(hub, report, fetch=False)
    state = hub.state.read().sync
    return SyncStatus(
        state.get("commit", ""),
        state.get("applied", ""),
        state.get("returned", ""),
        state.get("why", ""),
        decided,
    )


def summary(decided: SyncPlan) -> str:
    """Say in a few words what differs; empty = nothing."""
    names: dict[str, int] = {}
    for one in decided.changes:
        name = "units" if one.kind is ChangeKind.HOST else one.service or "files"
        names[name] = names.get(name, 0) + 1
    return ", ".join(f"{name}: {number}" for name, number in sorted(names.items()))


# -- the target -----------------------------------------------------------------------------------


def _target(hub: Hub, tree: Upstream, good: str, *, fetch: bool) -> tuple[str, str, list[Finding]]:
    """Find the commit that the hub shall be equal to, the remote's, and what is odd about it."""
    head, url = tree.head() or "", hub.settings.sync.remote
    if not url:
        return head, "", []
    if fetch:
        tree.set_remote(REMOTE, url)
        try:
            tip = tree.fetch(REMOTE, BRANCH)
        except (Unreachable, TimedOut) as error:
            raise Skipped(
                error.message, hint="look whether it can be reached, then: iotops sync plan"
            ) from error
    else:
        try:
            tip = tree.resolve(f"refs/remotes/{REMOTE}/{BRANCH}")
        except GitError:
            return head, "", []
    if tip == head:
        return head, tip, []
    seen = hub.state.read().sync.get("tip", "")
    if seen and tree.has(seen) and not tree.is_ancestor(seen, tip):
        text = "does not lead on from the commits it had"
        ours = _only_here(tree, seen, head)
        drops = f", which drops what is only here: {ours}" if ours else ""
        hint = (
            f"look: git -C {hub.folder} log --oneline --graph {BRANCH} {REMOTE}/{BRANCH}; if it is"
            f" meant, take it over{drops}: git -C {hub.folder} reset --keep {REMOTE}/{BRANCH}"
        )
        return head, tip, [_odd("rewritten", text, tip, hint)]
    if tree.is_ancestor(tip, head):
        text, hint = f"{BRANCH} has commits that the remote lacks", bring(hub)
        return head, tip, [Finding("sync.ahead", Severity.WARNING, BRANCH, text, hint)]
    if tree.is_ancestor(head, tip):
        return tip, tip, []
    text = f"and {BRANCH} here have grown apart (only here: {_only_here(tree, tip, head)})"
    return head, tip, [_odd("diverged", text, tip, _merge(hub))]


def bring(hub: Hub) -> str:
    """Say how commits that only the hub folder has come to the remote."""
    return (
        f"git -C {hub.folder} push {REMOTE} {BRANCH}; or, if the hub's key may only read: "
        + _merge(hub)
    )


def _merge(hub: Hub) -> str:
    """Say how they come there from the clone that somebody works in.

    There it needs no more than a login at the hub; its merge is tried and applied as every commit
    is, and can be signed. A rebase on the hub would write untried files, under another name.
    """
    try:
        owner = pwd.getpwuid(hub.owner[0]).pw_name
    except KeyError:
        owner = "USER"
    place = shlex.quote(f"{owner}@{os.uname().nodename}:{hub.folder}")
    pull = f"git pull --no-rebase --no-edit {place} {BRANCH}"
    return f"in the clone that you work in: {pull} && git push"


def _only_here(tree: Upstream, theirs: str, ours: str) -> str:
    """Name the commits of one history that another lacks, the newest few."""
    found = tree.log(SHOWN + 1, revision=ours, without=theirs)
    names = [f"{one.id[:8]} {one.subject}" for one in found[:SHOWN]]
    return ", ".join([*names, *(["..."] if found[SHOWN:] else [])])


def _odd(code: str, text: str, tip: str, hint: str) -> Finding:
    text = f"the remote's {BRANCH} ({tip[:8]}) {text}; nothing of it is applied"
    return Finding(f"sync.{code}", Severity.ERROR, REMOTE, text, hint)


def _unsigned(hub: Hub, tree: Upstream, target: str, good: str) -> list[Finding]:
    allowed = hub.settings.sync.allowed_signers
    if allowed is None or target == good:
        return []
    try:
        if not allowed.is_file():
            raise GitError(f"there is no file {allowed}")
        tree.signer(target, allowed)
    except GitError as error:
        text = f"the commit {target[:8]} is not signed by an allowed key: {error.message}"
        hint = f"sign it (git commit -S), or look at the keys: {allowed}"
        return [Finding("sync.unsigned", Severity.ERROR, target[:8], text, hint)]
    return []


# -- adopting local edits -------------------------------------------------------------------------


@dataclass(frozen=True)
class Adopted:
    """What was committed: the commit's id (empty = nothing had been edited) and its paths."""

    commit: str
    paths: tuple[str, ...]


def adopt(
    hub: Hub, paths: Sequence[str] = (), message: str = "", report: Report = silent
) -> Adopted:
    """Commit what was edited in the hub folder, on `main`, as the hub's owner.

    Args:
        paths: only these, relative to the hub folder; empty = all, but for those that a return put
            there: to commit them takes back what Git says, and nobody edited them.
        message: of the commit; empty = one that names the files.

    Raises:
        GuardError: one of them holds secrets or running state, is no configuration by its size,
            or an apply goes on; there is nothing but what a return put there.
        UsageError: a path is unknown.
    """
    with hub.flows_locked("sync adopt"):
        _refuse_halfway(hub)
        tree = Upstream(hub.folder, owner=hub.owner)
        if tree.exists() and tree.head() is not None:
            tree = syncfacts.worktree(hub)
        status = {one.path: one.code for one in tree.status()}
        edited = [*status]
        for path in paths:
            if not any(one == path or one.startswith(f"{path.rstrip('/')}/") for one in edited):
                raise UsageError(
                    f"{path} was not edited on the hub", hint="what was: iotops sync plan"
                )
        chosen = [
            one
            for one in edited
            if not paths or any(one == p or one.startswith(f"{p.rstrip('/')}/") for p in paths)
        ]
        if not paths:
            chosen = _edited(hub, tree, chosen, report)
        _refuse_large(hub, [path for path in chosen if status[path] == "??"])
        _refuse_secrets(hub, chosen)
        if not chosen:
            return Adopted("", ())
        with step(report, "commit"):
            names = ", ".join(chosen[:3]) + (f" and {len(chosen) - 3} more" if chosen[3:] else "")
            commit = tree.commit_all(message or f"Adopt edits on the hub: {names}", chosen)
    return Adopted(commit or "", tuple(chosen))


def _refuse_halfway(hub: Hub) -> None:
    """Refuse while files are those of an apply: they are no edits, and may yet go back."""
    for record in hub.journal.runs():
        if record.action == ACTION and record.outcome == RUNNING:
            raise GuardError(
                f"the files are those of the apply {record.id}, which "
                + (record.death if record.dead else "goes on"),
                hint="settle it first: iotops resume" if record.dead else "wait for it",
            )


def _edited(hub: Hub, tree: Upstream, paths: list[str], report: Report) -> list[str]:
    """Leave out the files that are as the last good commit has them, after a return to that."""
    state = hub.state.read().sync
    good = state.get("commit", "")
    if not paths or not state.get("returned") or not good or not tree.has(good):
        return paths
    before = syncfacts.content(tree, good)
    back = [path for path in paths if syncfacts.on_disk(hub.folder, path) == before.get(path)]
    if not back:
        return paths
    left = [path for path in paths if path not in back]
    text = f"{', '.join(back)}: as the commit {good[:8]} has it, which the hub returned to"
    if not left:
        raise GuardError(
            f"nothing was edited on the hub; {text}",
            hint="to take the commits after it back in Git: git revert; or commit it so:"
            f" iotops sync adopt {back[0]}",
        )
    report(Noted("warning", f"left out: {text}"))
    return left


def _refuse_large(hub: Hub, new: Sequence[str]) -> None:
    """Refuse what is no configuration by its size: Git would keep it for ever, and never read it
    into the memory of a Pi to look for secrets."""
    for path in new:
        place = files.below(hub.folder, path)
        if files.is_regular(place) and (size := place.stat().st_size) > syncfacts.LARGEST:
            raise GuardError(
                f"{path} has {size >> 20} MB, and is not looked through for secrets",
                hint=f"keep it out of Git: add {path} to .gitignore, or move it away",
            )


def _refuse_secrets(hub: Hub, paths: Sequence[str]) -> None:
    refused = refused_in_git(path for path in paths if (hub.folder / path).exists())
    if refused:
        raise GuardError(
            "; ".join(one.message for one in refused),
            hint=f"keep out of Git: add to .gitignore: {', '.join(one.subject for one in refused)}",
        )
    values = [value.encode() for value in syncfacts.secrets(hub)]
    for path in paths:
        file = syncfacts.on_disk(hub.folder, path)
        if file is not None and private_key(file.data):
            raise GuardError(
                f"{path} holds a private key and may not be committed",
                hint=f"keep it out: add {path} to .gitignore; a backup takes it all the same",
            )
        if file is not None and any(value in file.data for value in values):
            raise GuardError(
                f"{path} holds a value of .env in clear text and may not be committed",
                hint=f"let it come from the environment, then: iotops sync adopt {path}",
            )


def conflict(decided: SyncPlan) -> Conflict:
    """Give the error that says why a plan is not applied."""
    bad = [one for one in decided.findings if one.severity is Severity.ERROR]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return Conflict(f"nothing was applied: {bad[0].message}{more}", hint=bad[0].hint)


def touched(decided: SyncPlan, hub: Hub) -> tuple[Service, ...]:
    """Give the services whose containers a plan touches."""
    needs = {name for name, need in decided.services.items() if need is not OnChange.NOTHING}
    return tuple(one for one in hub.services if one.place.container in needs)


def local(decided: SyncPlan) -> tuple[str, ...]:
    """Name the paths that were edited on the hub."""
    return tuple(sorted({one.path for one in decided.changes if one.kind is ChangeKind.LOCAL}))
