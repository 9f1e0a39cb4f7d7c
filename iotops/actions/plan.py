"""Decide what a restore will do: pure, so that it can be shown before anything is touched.

`plan` reads a manifest and what the hub looks like, and returns the steps in the order in which
`restore.py` takes them. Whatever has no live folder comes first, services and folders of nobody
alike: a container may mount more than one of them, and starts only when all are there. Not here:
looking at the hub, and applying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from iotops.model import (
    Artifact,
    Finding,
    Manifest,
    Plan,
    ServiceRecord,
    Severity,
    Step,
    StepKind,
)

OTHER = "other"
"""The part of a snapshot that holds the folders of no service; no service may be called so."""

NOT_HELD = frozenset({"service.missing", "service.not-in-snapshot", "part.missing"})
"""Findings that make a restore partial: something is not there afterwards."""


@dataclass(frozen=True)
class HubFacts:
    """What a plan needs to know of the hub; no action looks further.

    Attributes:
        services: name -> live folder below the data root, in order.
        live: names of services whose live folder exists. running: names that run.
        images: name -> (image id, digests, platform) of the image that would run; may be empty.
        declared: name -> image that the Compose file names, for those without a container.
        claim: the data root must be claimed first. free: bytes on the data root.
        keeps_holes: sparse files come out of the repository sparse.
        without_data: Compose services that keep nothing of their own here and have no container.
    """

    hub_id: str
    services: Mapping[str, str]
    live: frozenset[str]
    running: frozenset[str]
    images: Mapping[str, tuple[str, tuple[str, ...], str]]
    claim: bool
    free: int
    declared: Mapping[str, str] = field(default_factory=dict)
    keeps_holes: bool = True
    without_data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is to be restored.

    Attributes:
        services: names; empty = everything. claim_disk: an empty disk may be claimed.
        image: what to do where the image differs: "" refuse, "recorded", "current".
        other_hub: a snapshot of another hub id is meant.
    """

    services: tuple[str, ...] = ()
    claim_disk: bool = False
    image: str = ""
    other_hub: bool = False


def plan(facts: HubFacts, snapshot: str, made: Manifest, wanted: Wanted) -> Plan:
    """Decide what a restore will do. Pure: reads its arguments only.

    Args:
        snapshot: its full id. made: its manifest.

    Returns:
        The steps in order; with an error among the findings it must not be applied.
    """
    findings = [*_refusals(facts, made, wanted), *_not_in_snapshot(facts, made, wanted)]
    records = _records(facts, made, wanted)
    extracted = [a for r in records for a in r.artifacts]
    extracted += [a for name in parts(made, wanted) for a in _part(made, name)]
    size = sum(a.room if facts.keeps_holes else a.size for a in extracted)
    if size > facts.free:
        findings.append(_no_space(size, facts.free))
    steps: list[Step] = []
    if facts.claim:
        steps.append(Step(StepKind.CLAIM, "", True, "the disk is empty and belongs to no hub yet"))
    steps.append(Step(StepKind.EXTRACT, "", False, f"{size / 1e6:.1f} MB beside the data"))
    steps.append(Step(StepKind.CHECK, "", False, "hashes, owners and modes against the manifest"))
    known = [record for record in records if record.name in facts.services]
    new = [record.name for record in known if record.name not in facts.live]
    if OTHER in parts(made, wanted) and _part(made, OTHER):
        reason = "folders that belong to no service, before who mounts them starts"
        steps.append(Step(StepKind.SWAP, OTHER, not facts.claim, reason))
    for name in new:
        steps += _exchange(facts, name)
    for record in known:
        name = record.name
        if name not in new:
            steps += _exchange(facts, name)
        steps.append(Step(StepKind.START, name, False, "its container"))
        steps.append(Step(StepKind.WAIT, name, False, "until it really answers"))
        steps.append(Step(StepKind.VERIFY, name, False, _counted(record)))
    if not wanted.services:
        reason = "it has no container, and keeps no data"
        steps += [Step(StepKind.START, name, False, reason) for name in facts.without_data]
    return Plan(snapshot, tuple(steps), tuple(findings))


def parts(made: Manifest, wanted: Wanted) -> tuple[str, ...]:
    """Name the parts of no service that are extracted: to be compared with, or exchanged."""
    return tuple(
        part.name
        for part in made.parts
        if not part.error and (part.name != OTHER or not wanted.services)
    )


def _part(made: Manifest, name: str) -> tuple[Artifact, ...]:
    return next(part.artifacts for part in made.parts if part.name == name)


def _records(facts: HubFacts, made: Manifest, wanted: Wanted) -> list[ServiceRecord]:
    """Give what is to be restored, in the order of the settings."""
    order = {name: number for number, name in enumerate(facts.services)}
    chosen = [
        record
        for record in made.services
        if not record.error and (not wanted.services or record.name in wanted.services)
    ]
    return sorted(chosen, key=lambda record: order.get(record.name, len(order)))


def _exchange(facts: HubFacts, name: str) -> Iterator[Step]:
    if name in facts.running:
        yield Step(StepKind.STOP, name, True, "its folder is exchanged")
    live = name in facts.live
    aside = "today's folder is put aside" if live else "there is no folder yet"
    yield Step(StepKind.SWAP, name, live, aside)


def _no_space(size: int, free: int) -> Finding:
    return Finding(
        "space.missing",
        Severity.ERROR,
        "data root",
        f"the extraction needs {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free",
        "make room, or discard old data: iotops undo --discard",
    )


def not_held(decided: Plan) -> tuple[Finding, ...]:
    """Give what was asked for and is not in the snapshot: without it a restore is partial."""
    return tuple(one for one in decided.findings if one.code in NOT_HELD)


def _counted(record: ServiceRecord) -> str:
    return ", ".join(f"{name} {value}" for name, value in [*record.counts.items()][:4]) or "answers"


def _refusals(facts: HubFacts, made: Manifest, wanted: Wanted) -> list[Finding]:
    found: list[Finding] = []

    def refuse(code: str, subject: str, message: str, hint: str) -> None:
        found.append(Finding(code, Severity.ERROR, subject, message, hint))

    if made.hub_id != facts.hub_id and not wanted.other_hub:
        refuse(
            "hub.other",
            "hub",
            f"the snapshot is of the hub {made.hub_name} ({made.hub_id[:8]}), this one is"
            f" {facts.hub_id[:8]}",
            "choose a snapshot of this hub: iotops snapshots",
        )
    if facts.claim and not wanted.claim_disk:
        refuse(
            "mount.unclaimed",
            "data root",
            "the disk is empty and belongs to no hub yet",
            "claim it for this hub: iotops restore latest --claim-disk",
        )
    for name in wanted.services:
        record = made.service(name)
        if record is None or record.error:
            why = record.error if record is not None else "it was no service then"
            refuse(
                "service.absent",
                name,
                f"the snapshot does not hold {name}: {why}",
                "choose another snapshot: iotops snapshots",
            )
    for record in made.services:
        if wanted.services and record.name not in wanted.services:
            continue
        if record.error:
            found.append(
                Finding(
                    "service.missing",
                    Severity.WARNING,
                    record.name,
                    f"was not captured in this snapshot: {record.error}",
                )
            )
        elif record.name not in facts.services:
            refuse(
                "service.unknown",
                record.name,
                f"the settings know no service {record.name}",
                "restore the others by name with --service, or add it to iotops.toml",
            )
        else:
            found += _image_findings(facts, record, wanted.image)
    for part in made.parts:
        if part.error and not wanted.services:
            found.append(
                Finding(
                    "part.missing",
                    Severity.WARNING,
                    part.name,
                    f"was not captured in this snapshot: {part.error}",
                )
            )
    return found


def _not_in_snapshot(facts: HubFacts, made: Manifest, wanted: Wanted) -> Iterator[Finding]:
    """Name the services that the snapshot knows nothing of: it was made before they came."""
    if wanted.services:
        return
    for name, folder in facts.services.items():
        if made.service(name) is not None:
            continue
        if name in facts.live:
            yield Finding(
                "service.kept",
                Severity.INFO,
                name,
                "the snapshot knows no such service; its data stays as it is",
            )
        else:
            yield Finding(
                "service.not-in-snapshot",
                Severity.WARNING,
                name,
                f"the snapshot knows no such service, and its folder {folder} is not there:"
                " it is not started",
                f"choose another: iotops snapshots; or let it begin empty: make the folder, then"
                f" iotops up {name}",
            )


def _image_findings(facts: HubFacts, record: ServiceRecord, choice: str) -> list[Finding]:
    """Compare the image that would run with the one recorded: never a silent downgrade."""
    now = facts.images.get(record.name)
    if not record.image.id:
        return []
    if now is not None:
        image_id, digests, would = now
        same = image_id == record.image.id or bool(set(digests) & set(record.image.digests))
    else:  # no container yet: what the Compose file names is all that can be known
        would = facts.declared.get(record.name, "")
        same = would in ("", record.image.reference)
    if same or choice == "current":
        return []
    if choice == "recorded":
        return [
            Finding(
                "image.recorded",
                Severity.ERROR,
                record.name,
                f"the Compose file does not run the recorded image {record.image.reference}",
                f"write it into the Compose file, then: iotops up {record.name}",
            )
        ]
    what = f"{record.image.reference} {record.image.digests[0] if record.image.digests else ''}"
    return [
        Finding(
            "image.differs",
            Severity.ERROR,
            record.name,
            f"the data was captured under {what.strip()} (server {record.version or 'unknown'},"
            f" {record.image.platform}); another image would run ({would})",
            "go on with the present image: --image current",
        )
    ]
