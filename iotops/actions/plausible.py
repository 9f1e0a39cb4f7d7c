"""Judge whether a capture is plausible beside the last good one.

A folder that became empty or fell under half would otherwise make a snapshot that looks good.
Only numbers that were once saved and verified are compared with. Not here: what counts of a
service (`Service.guarded`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from iotops.clients import files
from iotops.errors import GuardError
from iotops.model import Artifact, Manifest, PartRecord, ServiceRecord
from iotops.services.base import Service

FLOOR = 8
"""A number below this is too small for its fall to mean anything, unless it falls to nothing."""
ACCEPT = "if this is meant, go on with: iotops backup --accept-shrink"
NAMED = 4
"""Numbers that are named in one refusal; the others are counted."""
_FILE = "last-good.json"


def refuse_shrunken(memory: Path, service: Service, record: ServiceRecord) -> None:
    """Refuse a capture whose numbers became nothing or fell under half of the last good ones.

    Raises:
        GuardError: with the numbers and the way to go on.
    """
    before = _read(memory).get(service.name, {})
    _compare(service.name, before, _numbers(service, record))


def refuse_shrunken_part(memory: Path, part: PartRecord) -> None:
    """Refuse a part (the hub folder, everything else) that shrank; see `refuse_shrunken`.

    What its owner removed altogether is only seen in the part's whole: a folder that is there and
    empty is a sign of something that was not mounted.
    """
    now = _part_numbers(part)
    top = {one.path.partition("/")[2] for one in part.artifacts if one.type == "directory"}
    before = {
        name: number
        for name, number in _read(memory).get(_key(part), {}).items()
        if name in now or name in _TOTAL or name.partition(" of ")[2] in top
    }
    _compare(part.name, before, now)


def _compare(name: str, before: Mapping[str, int], now: Mapping[str, int]) -> None:
    fell = []
    for what, old in before.items():
        new = now.get(what, 0)
        if (new == 0 and old > 1) or (old >= FLOOR and new * 2 < old):
            fell.append(f"{what} fell from {old} to {new}")
    if fell:
        more = f" and {len(fell) - NAMED} more" if len(fell) > NAMED else ""
        text = ", ".join(fell[:NAMED]) + more
        raise GuardError(f"{name}: {text} since the last good backup", hint=ACCEPT)


def remember(memory: Path, made: Manifest, services: Sequence[Service]) -> None:
    """Keep the numbers of all that was captured, after the snapshot was verified."""
    known = _read(memory)
    by_name = {service.name: service for service in services}
    for record in made.services:
        if not record.error and record.name in by_name:
            known[record.name] = _numbers(by_name[record.name], record)
    for part in made.parts:
        if not part.error:
            known[_key(part)] = _part_numbers(part)
    data = json.dumps(known, indent=1, sort_keys=True).encode()
    if not (memory / _FILE).exists() or (memory / _FILE).read_bytes() != data:
        files.write(memory / _FILE, data, mode=0o600)


_TOTAL = ("files", "bytes")


def _key(part: PartRecord) -> str:
    return f"/{part.name}"  # no service has such a name


def _numbers(service: Service, record: ServiceRecord) -> dict[str, int]:
    number, size = _sums(record.artifacts)
    return dict(service.guarded(record.counts, number, size))


def _part_numbers(part: PartRecord) -> dict[str, int]:
    """Count a part's files and bytes: of the hub folder without Git's own, which Git repacks."""
    if part.name == "host":
        return {}
    counted = [one for one in part.artifacts if not one.path.startswith("hub/.git/")]
    found = dict(zip(_TOTAL, _sums(counted), strict=True))
    if part.name == "other":
        below: dict[str, list[Artifact]] = {}
        for one in counted:
            folder, inside, _ = one.path.partition("/")[2].partition("/")
            if inside:
                below.setdefault(folder, []).append(one)
        for folder, ones in below.items():
            found[f"files of {folder}"], found[f"bytes of {folder}"] = _sums(ones)
    return found


def _sums(artifacts: Iterable[Artifact]) -> tuple[int, int]:
    sizes = [artifact.size for artifact in artifacts if artifact.type == "file"]
    return len(sizes), sum(sizes)


def _read(memory: Path) -> dict[str, Mapping[str, int]]:
    try:
        document: object = json.loads((memory / _FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {
        str(name): {str(key): value for key, value in numbers.items() if isinstance(value, int)}
        for name, numbers in document.items()
        if isinstance(numbers, dict)
    }
