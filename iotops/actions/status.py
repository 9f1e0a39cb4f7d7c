"""What the hub looks like, from the records alone: no restic, no server is asked.

Answers also when the disk is gone, from the state file outside of it. Not here: judgement of what
could go wrong (`doctor.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from iotops import disk
from iotops.actions import copies, history, kit, upkeep
from iotops.actions.aside import OldData, old_data
from iotops.clients import files
from iotops.hub import Hub
from iotops.journal import RunRecord
from iotops.model import Finding, Severity


@dataclass(frozen=True)
class Last:
    """The newest run of an action, and when it last ended complete. Times ISO 8601 UTC, or ""."""

    action: str
    time: str
    outcome: str
    message: str
    snapshot: str
    good: str


@dataclass(frozen=True)
class CopyStatus:
    """A further repository: the last attempt ("complete", "away", "failed" or ""), the last good
    one (ISO 8601 UTC), and the snapshot that then was the newest there."""

    name: str
    outcome: str
    good: str
    snapshot: str
    message: str


@dataclass(frozen=True)
class Status:
    """The hub at a glance.

    Attributes:
        services: name -> what the last backup says of it.
        running: the run that goes on now, if one does.
        old_data: bytes that runs have put aside; aside: the same one by one. replaced: where.
        undo: the command that swaps a restore's back; empty = there is none to undo.
        free: bytes free on the data root; None = it is not there, or not this hub's.
        kit_made, kit_proven: when the recovery kit was; ISO 8601 UTC, or "".
        sync: where the hub stands to Git, as it was last looked at (`journal.State.sync`).
        findings: of the mount guard, of the repository's upkeep, of copies, of the kit, and of
            dead runs.
    """

    hub: str
    id: str
    folder: str
    root: str
    services: Mapping[str, str]
    last: tuple[Last, ...]
    running: str
    snapshot: str
    free: int | None
    old_data: int
    kit_made: str
    kit_proven: str
    findings: tuple[Finding, ...]
    copies: tuple[CopyStatus, ...] = ()
    sync: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[OldData, ...] = ()
    replaced: str = ""
    undo: str = ""


def status(hub: Hub) -> Status:
    """Gather the status."""
    state = hub.state.read()
    data = hub.settings.data
    findings = [*disk.inspect(data.root, data.kind, hub.id, state.disk)]
    here = not any(finding.severity is Severity.ERROR for finding in findings)
    findings.extend(upkeep.findings(state))
    findings.extend(kit.findings(hub, state))
    findings.extend(copies.findings(hub.copies, state))
    findings.extend(synced(state.sync))
    unknown = "not known: the disk is not there" if not here else "not in this disk's journal"
    word = unknown if state.good.get("backup") else "never backed up"
    services = dict.fromkeys(hub.settings.services, word)
    running, old = "", tuple[OldData, ...]()
    if here and not os.access(hub.layout.journal, os.R_OK | os.X_OK):
        services = dict.fromkeys(services, "not known to this user")
        findings.append(
            Finding(
                "journal.unreadable",
                Severity.WARNING,
                "journal",
                "the journal cannot be read by this user: services and dead runs are not shown",
                "sudo iotops status",
            )
        )
    elif here:
        if (older := history.older_copy(hub)) is not None:
            findings.append(older)
        newest = hub.journal.last("backup", "complete", "partial")
        if newest is not None:
            services |= newest.services
        for record in hub.journal.runs():
            if record.dead:
                findings.append(died(record))
            elif record.outcome == "running":
                running = record.id
        old = old_data(hub)
    actions = sorted(state.last)
    return Status(
        hub=hub.name,
        id=hub.id,
        folder=str(hub.folder),
        root=str(hub.root),
        services=services,
        last=tuple(
            Last(
                action,
                state.last[action].get("time", ""),
                state.last[action].get("outcome", ""),
                state.last[action].get("message", ""),
                state.last[action].get("snapshot", ""),
                state.good.get(action, ""),
            )
            for action in actions
        ),
        running=running,
        snapshot=state.snapshot,
        free=files.free_bytes(hub.root) if here else None,
        old_data=sum(one.bytes for one in old),
        aside=old,
        replaced=str(hub.layout.replaced),
        undo=_undo(hub) if old else "",
        kit_made=state.kit.get("made", ""),
        kit_proven=state.kit.get("proven", ""),
        findings=tuple(findings),
        copies=tuple(
            CopyStatus(
                one.name,
                *(
                    state.copies.get(one.name, {}).get(key, "")
                    for key in ("outcome", "good", "snapshot", "message")
                ),
            )
            for one in hub.copies
        ),
        sync=state.sync,
    )


def _undo(hub: Hub) -> str:
    """Give the command that swaps old data back: a return of config-sync leaves some too, which
    is no restore's."""
    from iotops.actions import undo  # a status must begin quickly

    return undo.offered(hub)


def died(record: RunRecord) -> Finding:
    """Tell of a run that died and has not been settled."""
    hint = "settle it: iotops resume"
    return Finding("run.dead", Severity.ERROR, record.id, record.death, hint)


def synced(sync: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what config-sync would not apply, or has returned from."""
    if sync.get("finding"):
        text = sync["finding"]
        yield Finding("sync.refused", Severity.WARNING, "sync", text, "look: iotops sync plan")
    if sync.get("returned"):
        text = f"the commit {sync['returned'][:8]} was returned from: {sync.get('why', '')}"
        hint = "commit what mends it, then: iotops sync apply"
        yield Finding("sync.returned", Severity.WARNING, "sync", text, hint)
