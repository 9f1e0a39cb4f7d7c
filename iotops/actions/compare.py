"""How two snapshots differ, in the words of the hub's owner.

Files are compared by the manifests alone. What files mean (flows, dashboards, users, points) each
kind says itself; for that only the few files that tell it are taken out of both snapshots, with one
call of restic each, into a folder that is removed again. Not here: what one snapshot holds
(`inside.py`), the flows in Git (`flows.py`).
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from iotops import services
from iotops.actions import extract
from iotops.clients.restic import SnapshotInfo
from iotops.errors import IotopsError, ManifestError
from iotops.events import Report, silent, step
from iotops.hub import Hub
from iotops.model import Artifact, Difference, Manifest, ServiceRecord

GIT = "hub/.git"


@dataclass(frozen=True)
class FolderDifference:
    """Files of one folder that were added, removed or changed.

    Attributes:
        folder: below the snapshot's root. bytes: the sizes of what is new or changed.
        freed: the sizes of what is gone.
    """

    folder: str
    added: int
    removed: int
    changed: int
    bytes: int
    freed: int


@dataclass(frozen=True)
class ServiceDifference:
    """What became of one service.

    Attributes:
        change: "added", "removed", "changed" or "same".
        image: "old -> new" where another image ran; version: the same for the server's version.
        counts: by name, the numbers then and now where they differ.
        things: in the owner's words. note: why there are none, where they could not be had.
    """

    name: str
    change: str
    image: str
    version: str
    counts: Mapping[str, tuple[int, int]]
    things: tuple[Difference, ...]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two snapshots beside each other; `old` is the first one named.

    Attributes:
        commits: by branch, "old -> new" where they differ. hub: files of the hub folder.
    """

    old: str
    new: str
    old_time: datetime
    new_time: datetime
    services: tuple[ServiceDifference, ...]
    hub: tuple[Difference, ...]
    commits: Mapping[str, str]
    folders: tuple[FolderDifference, ...]

    @property
    def different(self) -> bool:
        """Whether anything differs at all."""
        told = any(one.change != "same" for one in self.services)
        return told or bool(self.hub or self.commits or self.folders)


def compare(hub: Hub, old: SnapshotInfo, new: SnapshotInfo, report: Report = silent) -> Comparison:
    """Compare two snapshots.

    Raises:
        ManifestError: one of them has no manifest that can be read.
    """
    with step(report, "read manifests"):
        before = extract.read_manifest(hub.repository, old.id)
        after = extract.read_manifest(hub.repository, new.id)
    was = {one.path: one for one in before.artifacts()}
    now = {one.path: one for one in after.artifacts()}
    changed = [
        path for path in dict.fromkeys((*was, *now)) if _differ(was.get(path), now.get(path))
    ]
    hub.layout.tmp.mkdir(mode=0o700, exist_ok=True)
    with (
        step(report, "look inside"),
        tempfile.TemporaryDirectory(dir=hub.layout.tmp, prefix="compare-") as scratch,
    ):
        top = Path(scratch)
        _take_out(hub, old.id, before, changed, top / "old")
        _take_out(hub, new.id, after, changed, top / "new")
        names = [one.name for one in (*before.services, *after.services)]
        told = tuple(_service(name, before, after, changed, top) for name in dict.fromkeys(names))
    return Comparison(
        old.id,
        new.id,
        before.started,
        after.started,
        told,
        tuple(_hub_files(was, now, changed)),
        {
            branch: f"{before.commits.get(branch, 'none')[:8]} -> {commit[:8]}"
            for branch, commit in after.commits.items()
            if before.commits.get(branch) != commit
        },
        _folders(was, now, changed),
    )


def _differ(one: Artifact | None, other: Artifact | None) -> bool:
    if one is None or other is None:
        return True
    return _content(one) != _content(other)


def _content(one: Artifact) -> tuple[object, ...]:
    size = one.size if one.type == "file" else 0
    return one.type, size, one.sha256, one.target, one.mode, one.uid, one.gid


# -- services -------------------------------------------------------------------------------------


def _take_out(
    hub: Hub, snapshot: str, made: Manifest, changed: Sequence[str], target: Path
) -> None:
    """Extract the telling files of the services in which one of them changed.

    Raises:
        ManifestError: what came out is not what the manifest says, a link for example.
    """
    paths: list[str] = []
    for record in made.services:
        if any(_tells(record, path) for path in changed):
            paths += [one.path for one in record.artifacts if _tells(record, one.path)]
    target.mkdir(mode=0o700)
    if not paths:
        return
    hub.repository.restore(snapshot, target, includes=[f"/{path}" for path in paths])
    found = extract.check(target, made, paths, silent)
    if found:
        raise ManifestError(
            f"snapshot {snapshot[:8]} is not as its manifest says: {found[0].message}",
            hint="check the repository: iotops check --all",
        )


def _tells(record: ServiceRecord, path: str) -> bool:
    inside = path.removeprefix(f"{record.folder}/")
    known = record.kind in services.kinds() and inside != path
    return known and services.kind(record.kind).telling(inside)


def _service(
    name: str, before: Manifest, after: Manifest, changed: Sequence[str], top: Path
) -> ServiceDifference:
    old, new = before.service(name), after.service(name)
    if old is None or old.error or new is None or new.error:
        had, has = (one is not None and not one.error for one in (old, new))
        change = "same" if had == has else "added" if has else "removed"
        missing = next((one.error for one in (new, old) if one is not None and one.error), "")
        return ServiceDifference(name, change, "", "", {}, (), missing)
    counts = {
        key: (old.counts.get(key, 0), new.counts.get(key, 0))
        for key in dict.fromkeys((*old.counts, *new.counts))
        if old.counts.get(key) != new.counts.get(key) and "/" not in key
    }
    things, note = _things(old, new, top)
    inside = any(path.startswith((f"{old.folder}/", f"{new.folder}/")) for path in changed)
    image = _arrow(old.image.reference, new.image.reference)
    if not image and old.image.id != new.image.id:
        image = f"{new.image.reference}, built anew"
    version = _arrow(old.version, new.version)
    same = not (counts or things or image or version or inside)
    return ServiceDifference(
        name, "same" if same else "changed", image, version, counts, things, note
    )


def _things(
    old: ServiceRecord, new: ServiceRecord, top: Path
) -> tuple[tuple[Difference, ...], str]:
    """Ask the kind for its words; where it cannot say, why."""
    if old.kind != new.kind or new.kind not in services.kinds():
        return (), f"it was of the kind {old.kind}, now {new.kind}" if old.kind != new.kind else ""
    kind = services.kind(new.kind)
    was, now = top / "old" / old.folder, top / "new" / new.folder
    telling = any(kind.telling(one.path.removeprefix(f"{new.folder}/")) for one in new.artifacts)
    if telling and not (was.is_dir() and now.is_dir()):
        return (), ""  # no file that tells anything has changed
    try:
        return tuple(kind.differences(old, new, was, now)), ""
    except IotopsError as error:
        return (), f"cannot be told in words: {error.message}"
    except (OSError, sqlite3.Error) as error:
        return (), f"cannot be told in words: {error}"


def _arrow(old: str, new: str) -> str:
    return "" if old == new else f"{old or 'unknown'} -> {new or 'unknown'}"


# -- files ----------------------------------------------------------------------------------------


def _hub_files(
    was: Mapping[str, Artifact], now: Mapping[str, Artifact], changed: Iterable[str]
) -> Iterable[Difference]:
    """Name the changed files of the hub folder; what Git stores itself is told by its commits."""
    for path in changed:
        if not path.startswith("hub/") or path.startswith((f"{GIT}/", "hub/flows/")):
            continue
        one = now.get(path) or was[path]
        if one.type == "directory":
            continue
        change = "added" if path not in was else "removed" if path not in now else "changed"
        yield Difference("hub file", change, path.removeprefix("hub/"))


def _folders(
    was: Mapping[str, Artifact], now: Mapping[str, Artifact], changed: Iterable[str]
) -> tuple[FolderDifference, ...]:
    """Sum up the changed files by the first two levels of folders."""
    found: dict[str, list[int]] = {}
    for path in changed:
        one, other = was.get(path), now.get(path)
        if (other or one or was[path]).type == "directory":
            continue
        folder = "/".join(path.split("/")[:-1][:2]) or "."
        sums = found.setdefault(folder, [0, 0, 0, 0, 0])
        sums[0 if one is None else 1 if other is None else 2] += 1
        sums[3] += other.size if other is not None else 0
        sums[4] += one.size if one is not None and other is None else 0
    return tuple(FolderDifference(folder, *sums) for folder, sums in sorted(found.items()))
