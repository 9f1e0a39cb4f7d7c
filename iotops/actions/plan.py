"""Decide what a restore will do: pure, so that it can be shown before anything is touched.

`plan` reads a manifest and what the hub looks like, and returns the steps in the order in which
`restore.py` takes them. Whatever has no live folder comes first, services and folders of nobody
alike: a container may mount more than one of them, and starts only when all are there. Not here:
looking at the hub, and applying.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from iotops.actions import ports
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
class Server:
    """The server that would run with a service's data.

    Attributes:
        version: as it or its image tells; empty = not known.
        older: what it makes of data that a newer one has written.
    """

    version: str
    older: str = ""


@dataclass(frozen=True)
class HubFacts:
    """What a plan needs to know of the hub; no action looks further.

    Attributes:
        services: name -> live folder below the data root, in order.
        live: names of services whose live folder exists. running: names that run.
        images: name -> (image id, digests, platform) of the image that would run; may be empty.
        declared: name -> image that the Compose file names, for those without a container. Where
            that name may mean another version tomorrow and it is here, it is in `images`, too.
        claim: the data root must be claimed first. free: bytes on the data root.
        keeps_holes: sparse files come out of the repository sparse.
        without_data: Compose services that keep nothing of their own here and have no container.
        containers: name -> Compose service, where that is called otherwise.
        ports: what the Compose file publishes today, by Compose service.
        absent: addresses in it that this machine does not have. addresses: those that it has.
        servers: by name, where another image would run than the recorded one.
        unfit: what the kinds found that does not fit the snapshot, by name.
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
    containers: Mapping[str, str] = field(default_factory=dict)
    ports: ports.Ports = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    servers: Mapping[str, Server] = field(default_factory=dict)
    unfit: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What is to be restored.

    Attributes:
        services: names; empty = everything. claim_disk: an empty disk may be claimed.
        image: what to do where the image differs: "" refuse, "recorded", "current".
        other_hub: a snapshot of another hub id is meant.
        accept_ports: published ports may be more open than recorded.
    """

    services: tuple[str, ...] = ()
    claim_disk: bool = False
    image: str = ""
    other_hub: bool = False
    accept_ports: bool = False


def plan(facts: HubFacts, snapshot: str, made: Manifest, wanted: Wanted) -> Plan:
    """Decide what a restore will do. Pure: reads its arguments only.

    Args:
        snapshot: its full id. made: its manifest.

    Returns:
        The steps in order; with an error among the findings it must not be applied.
    """
    findings = [*_refusals(facts, made, wanted), *_not_in_snapshot(facts, made, wanted)]
    records = _records(facts, made, wanted)
    findings += [one for record in records for one in facts.unfit.get(record.name, ())]
    findings += _ports(facts, made, wanted, records)
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


def opened(decided: Plan) -> tuple[Finding, ...]:
    """Give the ports that are more open than recorded and not accepted: exit code 3."""
    return tuple(
        one
        for one in decided.findings
        if one.code == ports.OPENED and one.severity is not Severity.INFO
    )


def _ports(
    facts: HubFacts, made: Manifest, wanted: Wanted, records: list[ServiceRecord]
) -> Iterator[Finding]:
    """Compare published ports: of everything, or of what is restored."""
    restored = {facts.containers.get(record.name, record.name) for record in records}
    if made.ports is not None:
        looked_at = restored if wanted.services else {*facts.ports}
        yield from ports.opened(made.ports, facts.ports, looked_at, accepted=wanted.accept_ports)
    starting = restored if wanted.services else {*restored, *facts.without_data}
    bound = {name: each for name, each in facts.ports.items() if name in starting}
    yield from ports.absent(bound, facts.absent, facts.addresses)


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


def same_image(facts: HubFacts, record: ServiceRecord) -> bool:
    """Tell whether the recorded image would run; by a digest of all platforms, too."""
    now = facts.images.get(record.name)
    if now is None:  # no container yet: what the Compose file names is all that can be known
        declared = facts.declared.get(record.name, "")
        return not declared or (declared == record.image.reference and not floating(declared))
    image_id, digests, _ = now
    return image_id == record.image.id or bool(set(digests) & set(record.image.digests))


def floating(reference: str) -> bool:
    """Tell whether an image's name may mean another version tomorrow: `latest`, `2`, none."""
    tag = reference.rpartition("/")[2].partition(":")[2]
    return "@" not in reference and re.search(r"\d+\.\d+", tag) is None


def _image_findings(facts: HubFacts, record: ServiceRecord, choice: str) -> Iterator[Finding]:
    """Compare the image that would run with the one recorded: never a silent downgrade."""
    if same_image(facts, record):
        return
    yield from _older(facts, record, choice)
    if not record.image.id or choice == "current":
        return
    if choice == "recorded":
        yield Finding(
            "image.recorded",
            Severity.ERROR,
            record.name,
            f"the Compose file does not run the recorded image {record.image.reference}",
            f"write it into the Compose file, then: iotops up {record.name}",
        )
        return
    now = facts.images.get(record.name)
    declared = facts.declared.get(record.name, "")
    would = now[2] if now is not None else declared
    if now is None and floating(declared):
        would = f"whatever {declared} means today"
    what = f"{record.image.reference} {record.image.digests[0] if record.image.digests else ''}"
    yield Finding(
        "image.differs",
        Severity.ERROR,
        record.name,
        f"the data was captured under {what.strip()} (server {record.version or 'unknown'},"
        f" {record.image.platform}); another image would run ({would})",
        "go on with the present image: --image current",
    )


def _older(facts: HubFacts, record: ServiceRecord, choice: str) -> Iterator[Finding]:
    """Find a server that is older than its data; whoever has chosen it is told all the same."""
    server = facts.servers.get(record.name)
    if server is None or not below(server.version, record.version):
        return
    why = f": {server.older}" if server.older else ""
    image = record.image.reference or f"the image of {record.version}"
    yield Finding(
        "version.older",
        Severity.WARNING if choice == "current" else Severity.ERROR,
        record.name,
        f"the data was written by server {record.version}, and the older {server.version} would"
        f" run{why}",
        f"write {image} into the Compose file, then: iotops up {record.name}; to go on with the"
        " older one: --image current",
    )


def below(version: str, other: str) -> bool:
    """Tell whether a version is below another, as far as both are told: "4" is not below 4.1."""
    one, two = ([*map(int, re.findall(r"\d+", _leading(text)))] for text in (version, other))
    shared = min(len(one), len(two))
    return one[:shared] < two[:shared]


def _leading(text: str) -> str:
    found = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return found[1] if found is not None else ""
