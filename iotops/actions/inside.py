"""What snapshots hold: in a few numbers for each, and file by file for one.

Numbers come from manifests. A manifest is one call of restic, so what each snapshot holds in short
is remembered on the data root: a backup remembers its own, and whoever asks for more the others.
Not here: how two of them differ (`compare.py`), extraction (`extract.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from iotops.clients import files
from iotops.errors import UsageError
from iotops.events import Moved, Report, silent, step
from iotops.hub import Hub
from iotops.model import Artifact, Manifest

if TYPE_CHECKING:  # a backup begins its first call of restic before all else
    from iotops.clients.restic import SnapshotInfo

FOLDER = "held"
"""Below `.iotops` on the data root: one small file per snapshot, named by its id."""


@dataclass(frozen=True)
class Part:
    """One service or part of a snapshot; `error` says why it is not in it."""

    name: str
    kind: str
    files: int
    bytes: int
    counts: Mapping[str, int]
    error: str = ""


@dataclass(frozen=True)
class Held:
    """What a snapshot holds, in short."""

    files: int
    bytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Entry:
    """One name in a snapshot.

    Attributes:
        path: below the snapshot's root, as text. type: "file", "directory" or "symlink".
        files: how many lie in a folder, in all depths; 1 for a file.
        bytes: of them all. changed: time of last change, ISO 8601 UTC, empty for folders.
        target: where a link points.
    """

    path: str
    type: str
    files: int
    bytes: int
    changed: str = ""
    target: str = ""


# -- in short -------------------------------------------------------------------------------------


def summary(made: Manifest) -> Held:
    """Put a manifest into a few numbers."""
    parts = [
        Part(one.name, one.kind, *_sum(one.artifacts), _counts(one.counts), one.error)
        for one in made.services
    ]
    parts += [Part(one.name, "", *_sum(one.artifacts), {}, one.error) for one in made.parts]
    return Held(sum(one.files for one in parts), sum(one.bytes for one in parts), tuple(parts))


def _sum(artifacts: Sequence[Artifact]) -> tuple[int, int]:
    plain = [one.size for one in artifacts if one.type == "file"]
    return len(plain), sum(plain)


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Add up what is counted by bucket and measurement: "points/home/temperature"."""
    found: dict[str, int] = {}
    for key, number in counts.items():
        found[key.partition("/")[0]] = found.get(key.partition("/")[0], 0) + number
    return found


def remember(hub: Hub, snapshot: str, made: Manifest) -> None:
    """Remember what a snapshot holds; without it, it is read again when somebody asks."""
    folder = hub.layout.folder / FOLDER
    if not hub.layout.folder.is_dir():
        return  # the disk is not there: nothing is written beneath it
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        data = json.dumps(asdict(summary(made))).encode()
        files.write(folder / f"{snapshot}.json", data, mode=0o600, sync=False)


def held(
    hub: Hub,
    snapshots: Sequence[SnapshotInfo],
    *,
    read: bool = False,
    whole: bool = False,
    report: Report = silent,
) -> dict[str, Held]:
    """Give what snapshots hold, by id; one in a copy holds what the one holds that it was made of.

    Args:
        whole: these are all snapshots of the repository: what is remembered of others can go.
        read: read the manifests of those that are not remembered, one call of restic each.

    Raises:
        ManifestError: one of them cannot be read (`read` only).
    """
    folder = hub.layout.folder / FOLDER
    found = {}
    for one in snapshots:
        names = (one.id, one.original) if one.original else (one.id,)
        kept = next((k for name in names if (k := _recall(folder / f"{name}.json"))), None)
        if kept is not None:
            found[one.id] = kept
    known = {one.id for one in snapshots}
    for path in folder.glob("*.json") if whole and folder.is_dir() else ():
        if path.stem not in known:
            with suppress(OSError):
                path.unlink()
    missing = [one for one in snapshots if one.id not in found]
    if read and missing:
        from iotops.actions import extract

        with step(report, "read manifests"):
            for number, one in enumerate(missing):
                report(Moved("read manifests", number, len(missing)))
                made = extract.read_manifest(hub.repository, one.id)
                remember(hub, one.id, made)
                found[one.id] = summary(made)
    return found


def _recall(path: Path) -> Held | None:
    """Read what was remembered; anything odd is as good as nothing."""
    try:
        document = json.loads(path.read_bytes())
        parts = tuple(
            Part(
                str(one["name"]),
                str(one["kind"]),
                int(one["files"]),
                int(one["bytes"]),
                {str(key): int(value) for key, value in one["counts"].items()},
                str(one["error"]),
            )
            for one in document["parts"]
        )
        return Held(int(document["files"]), int(document["bytes"]), parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# -- file by file ---------------------------------------------------------------------------------


def entries(made: Manifest, path: str = "", *, deep: bool = False) -> tuple[Entry, ...]:
    """List what lies at a path of a snapshot.

    Args:
        path: below the snapshot's root; "" = the root. A file gives itself.
        deep: everything below, instead of one level.

    Raises:
        UsageError: there is no such path in it.
    """
    path = "/".join(part for part in path.split("/") if part not in ("", "."))
    inside = [one for one in made.artifacts() if _below(one.path, path)]
    if path and not inside:
        raise UsageError(
            f"the snapshot holds no {path}", hint="look one level up: iotops ls SNAPSHOT"
        )
    exact = [one for one in inside if one.path == path]
    if exact and exact[0].type != "directory":
        return (_entry(exact[0]),)
    found: dict[str, Entry] = {}
    for one in inside:
        for name in _names(one.path, path, deep):
            known = found.get(name)
            if name == one.path and one.type != "directory":
                found[name] = _entry(one)
                continue
            count, size = (1, one.size) if one.type == "file" else (0, 0)
            if known is not None:
                count, size = count + known.files, size + known.bytes
            found[name] = Entry(name, "directory", count, size)
    return tuple(sorted(found.values(), key=lambda one: one.path))


def _below(path: str, top: str) -> bool:
    return not top or path == top or path.startswith(f"{top}/")


def _names(path: str, top: str, deep: bool) -> Iterator[str]:
    """Give the entries of a listing that an artifact counts for."""
    rest = path.removeprefix(top).strip("/").split("/")
    head = [top] if top else []
    if rest == [""]:
        return
    for depth in range(1, len(rest) + 1 if deep else 2):
        yield "/".join((*head, *rest[:depth]))


def _entry(one: Artifact) -> Entry:
    changed = datetime.fromtimestamp(one.mtime_ns // 10**9, UTC).isoformat()
    size = one.size if one.type == "file" else 0
    return Entry(one.path, one.type, int(one.type == "file"), size, changed, one.target)
