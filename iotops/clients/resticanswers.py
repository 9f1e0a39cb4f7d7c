"""What restic answers, made into values: snapshots, summaries, locks, listings, progress.

Pure: nothing here runs a program. The fields are those of restic 0.14 to 0.19, which may add
others at any time and leave out what is zero. Not here: what its failures mean
(`clients/resticerrors.py`), which call gives which answer (`clients/restic.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from iotops.errors import ProgramFailed, SnapshotUnknown

FULL_ID = 64
"""Characters of a whole id."""

Document = dict[str, object]


@dataclass(frozen=True)
class SnapshotInfo:
    """One snapshot; `time` is UTC, `original` the id it was copied from (or had before a tag)."""

    id: str
    time: datetime
    host: str
    tags: tuple[str, ...]
    paths: tuple[str, ...]
    original: str = ""


@dataclass(frozen=True)
class Saved:
    """What a backup made.

    Attributes:
        snapshot: its full id.
        files_new, files_changed, files_unmodified, files: numbers of files.
        data_added: bytes that the repository did not have yet. bytes: size of all files.
        incomplete: not every file could be read; `unread` are the first of them.
    """

    snapshot: str
    files_new: int
    files_changed: int
    files_unmodified: int
    data_added: int
    files: int
    bytes: int
    seconds: float
    incomplete: bool = False
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One name in a snapshot: absolute path in it, restic's type ("file", "dir", ...), bytes."""

    path: str
    type: str
    size: int


@dataclass(frozen=True)
class Forget:
    """Full ids that a retention would keep and remove.

    Attributes:
        why: restic's words for the keep rules that hold one, by id: "daily snapshot".
    """

    keep: tuple[str, ...]
    remove: tuple[str, ...]
    why: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LockInfo:
    """A lock in the repository: who made it, when (UTC)."""

    id: str
    time: datetime
    host: str
    pid: int
    user: str
    exclusive: bool


@dataclass(frozen=True)
class KeyInfo:
    """A key of the repository: a password that opens it.

    Attributes:
        id: its beginning only, with restic 0.14. user, host: as it was marked when it was made.
        created: time in restic's words, in this machine's zone.
        current: the one that the listing itself was opened with.
    """

    id: str
    user: str
    host: str
    created: str
    current: bool

    def named(self, other: str) -> bool:
        """Whether another id, whole or its beginning, is this key's."""
        return bool(other) and (self.id.startswith(other) or other.startswith(self.id))


# -- JSON ----------------------------------------------------------------------------------------


def document(text: str) -> Document:
    """Read one line as a JSON object; empty for everything else, of which restic says a lot."""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def rows(text: str, doing: str, *, empty: bool = False) -> list[Document]:
    """Read the JSON array of objects in an answer, whatever other lines stand around it.

    Args:
        empty: no answer at all means an empty list (`forget` without a fitting snapshot).

    Raises:
        ProgramFailed: there is none; an empty list must never come from a missing answer.
    """
    for part in (text, *reversed(text.splitlines())):
        try:
            found: object = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if found is None:
            return []
        if isinstance(found, list) and all(isinstance(one, dict) for one in found):
            return found
    if empty and not text.strip():
        return []
    raise ProgramFailed(f"{doing}: restic gave no list that can be read")


def number(source: Mapping[str, object], name: str) -> int:
    """Give a number of a document; restic leaves out what is zero."""
    value = source.get(name, 0)
    try:
        return int(value) if isinstance(value, (int, float)) else 0
    except (ValueError, OverflowError):  # NaN and Infinity are JSON for Python
        return 0


def words(source: Mapping[str, object], name: str) -> str:
    """Give a text of a document, empty when it is none."""
    value = source.get(name)
    return value if isinstance(value, str) else ""


def moment(source: Mapping[str, object], doing: str) -> datetime:
    """Give the time of a document in UTC, its nanoseconds cut off.

    Raises:
        ProgramFailed: it has none.
    """
    text = re.sub(r"(\.\d{6})\d+", r"\1", words(source, "time"))
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ProgramFailed(f"{doing}: restic gave a time that cannot be read") from error


def identity(source: Mapping[str, object], doing: str) -> str:
    """Give the full id of a document.

    Raises:
        ProgramFailed: it has none.
    """
    found = words(source, "id")
    if not re.fullmatch(rf"[0-9a-f]{{{FULL_ID}}}", found):
        raise ProgramFailed(f"{doing}: restic gave no id")
    return found


def snapshot(row: Mapping[str, object], doing: str) -> SnapshotInfo:
    """Read one snapshot of a listing.

    Raises:
        ProgramFailed: it has no id or no time.
    """
    return SnapshotInfo(
        identity(row, doing),
        moment(row, doing),
        words(row, "hostname"),
        _texts(row.get("tags")),
        _texts(row.get("paths")),
        words(row, "original"),
    )


def lock(text: str, lock_id: str, doing: str) -> LockInfo:
    """Read one lock, as `cat lock` prints it.

    Raises:
        ProgramFailed: it cannot be read.
    """
    found = document(text)
    return LockInfo(
        lock_id,
        moment(found, doing),
        words(found, "hostname"),
        number(found, "pid"),
        words(found, "username"),
        found.get("exclusive") is True,
    )


def entry(line: Document) -> Entry | None:
    """Read one line of `ls`; None for what is no entry.

    `struct_type` is in every version so far, `message_type` since 0.17.
    """
    if "node" not in (line.get("message_type"), line.get("struct_type")):
        return None
    return Entry(words(line, "path"), words(line, "type"), number(line, "size"))


def key(row: Document, doing: str) -> KeyInfo:
    """Read one row of `key list --json`.

    Raises:
        ProgramFailed: it has no id.
    """
    found = words(row, "id")
    if not re.fullmatch(rf"[0-9a-f]{{8,{FULL_ID}}}", found):
        raise ProgramFailed(f"{doing}: restic listed a key without its id")
    return KeyInfo(
        found,
        words(row, "userName"),
        words(row, "hostName"),
        words(row, "created"),
        row.get("current") is True,
    )


def plan(text: str, doing: str) -> Forget:
    """Read what `forget --dry-run --json` says; snapshots of all groups together.

    Raises:
        ProgramFailed: it cannot be read.
    """
    groups = rows(text, doing, empty=True)

    def ids(name: str) -> Iterator[str]:
        for group in groups:
            members = group.get(name)
            for one in members if isinstance(members, list) else ():
                yield identity(one if isinstance(one, dict) else {}, doing)

    keep = tuple(ids("keep"))
    why = {one: found for group in groups for one, found in _matches(group)}
    return Forget(keep, tuple(one for one in ids("remove") if one not in keep), why)


def _matches(group: Mapping[str, object]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Join the reasons of a group to its ids: the snapshots in the reasons have none (seen)."""
    members = group.get("keep")
    kept = [one for one in members if isinstance(one, dict)] if isinstance(members, list) else []
    reasons = group.get("reasons")
    for reason in reasons if isinstance(reasons, list) else ():
        about = reason.get("snapshot") if isinstance(reason, dict) else None
        if not isinstance(about, dict):
            continue
        for one in kept:
            if (one.get("time"), one.get("tree")) == (about.get("time"), about.get("tree")):
                yield words(one, "id"), _texts(reason.get("matches"))


def unread(tail: Iterable[str]) -> tuple[str, ...]:
    """Name the files of a backup's errors; they come on standard error, some of them twice."""
    found = (document(line) for line in tail)
    items = (words(one, "item") for one in found if one.get("message_type") == "error")
    return tuple(dict.fromkeys(item for item in items if item))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, list) else ()


class Progress:
    """Tells lines that show progress from lines that only show that the clock goes on."""

    CLOCK = frozenset({"seconds_elapsed", "seconds_remaining", "current_files"})

    def __init__(self) -> None:
        self._last: object = None

    def made(self, line: str, found: Document) -> bool:
        """Compare a line with the one before."""
        now: object
        if found:
            now = {name: value for name, value in found.items() if name not in self.CLOCK}
        else:
            now = re.sub(r"^\s*\[[\d:]+\]", "", line)
        made = now != self._last
        self._last = now
        return made


# -- choosing ------------------------------------------------------------------------------------


def find_snapshot(
    text: str, snapshots: Sequence[SnapshotInfo], *, at: datetime | None = None
) -> SnapshotInfo:
    """Choose one snapshot: "latest", or the beginning of an id.

    Args:
        at: only snapshots not later than this (aware) time count.

    Raises:
        SnapshotUnknown: none fits, or several do.
    """
    hint = "look: iotops snapshots"
    until = "" if at is None else f" up to {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    fitting = [one for one in snapshots if at is None or one.time <= at]
    if text == "latest":
        if not fitting:
            raise SnapshotUnknown(f"there is no snapshot of this hub{until}", hint=hint)
        return max(fitting, key=lambda one: one.time)
    found = [one for one in fitting if one.id.startswith(text)] if text else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise SnapshotUnknown(f"there is no snapshot {text!r}{until}", hint=hint)
    some = ", ".join(f"{one.id[:8]} of {one.time:%Y-%m-%d %H:%M}" for one in found[:3])
    raise SnapshotUnknown(
        f"{len(found)} snapshots begin with {text!r}; give more of the id"
        f" ({some}{', ...' if found[3:] else ''})",
        hint=hint,
    )


def checked_id(text: str) -> str:
    """Let only ids pass to restic: never "latest" (which ignores hosts), an option or a subfolder.

    Raises:
        SnapshotUnknown: it is none.
    """
    if not re.fullmatch(rf"[0-9a-f]{{8,{FULL_ID}}}", text):
        raise SnapshotUnknown(f"{text!r} is no snapshot id", hint="look: iotops snapshots")
    return text
