"""The lock and the durable record of runs.

Before work starts, a record says that it does; before a container is stopped or a folder renamed,
the record says which; when work ends, the record says how. So a power cut at any instant leaves
enough to put things right (`actions/resume.py`). One small JSON file per run, written with fsync
and rename, on the data root; the last results also stand in the state file outside of it, which
can be read when the disk is gone. Not here: what is done about a dead run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from iotops.clients import files
from iotops.errors import IotopsError, Locked

RUNNING = "running"
TIMES = ("time", "good")
"""Keys of times in the state's entries."""
STATE_LIMIT = 4096
"""Bytes: one block of the SD card."""
DISOWNED = 8
"""Snapshots remembered as not counting; a repository that refuses to forget is the exception."""
KEPT_RUNS = 300
"""Records kept in the journal; older ones go when a new run starts."""

SPARE = ".spare"
SPARE_BYTES = 32 << 10
"""A file in the journal that is given up when the disk is full: the records of the run that met
it, of what it stopped and how it ended, still find room."""


@dataclass(frozen=True)
class Stopped:
    """A container that a run stopped, to be started again in every case."""

    service: str
    container: str


@dataclass(frozen=True)
class Swap:
    """A folder that a restore exchanges by renaming.

    Attributes:
        service: whose folder. live: the live path. old: where the old folder is put aside.
        new: where the restored folder waits. had_old: whether there was a live folder at all.
        done: the live path holds the restored folder.
    """

    service: str
    live: str
    old: str
    new: str
    had_old: bool
    done: bool = False


@dataclass(frozen=True)
class RunRecord:
    """One journaled execution. Times are ISO 8601, UTC.

    Attributes:
        outcome: "running", "complete", "partial", "failed", "interrupted".
        boot: the kernel's boot id: a record of another boot belongs to a dead run.
        born: when its process began, in ticks since boot: process ids are used again.
        woken: services that this run started although they did not run before.
        about: small facts by name (data root, snapshot asked for, undone run).
        services: one line per service, for `status`.
    """

    id: str
    action: str
    started: str
    pid: int
    boot: str
    outcome: str = RUNNING
    ended: str = ""
    step: str = ""
    snapshot: str = ""
    message: str = ""
    hint: str = ""
    stopped: tuple[Stopped, ...] = ()
    swaps: tuple[Swap, ...] = ()
    services: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    born: str = ""
    woken: tuple[str, ...] = ()

    @property
    def dead(self) -> bool:
        """Whether it says "running" but its process is gone."""
        if self.outcome != RUNNING:
            return False
        born = process_birth(self.pid)
        return self.boot != boot_id() or not born or self.born not in ("", born)

    @property
    def death(self) -> str:
        """Say where it died."""
        return f"died in step {self.step!r}" if self.step else "died"


class Run:
    """A run that goes on; every change is on the disk before the call returns.

    Attributes:
        verdict: the outcome that its record is closed with when its work ends well.
    """

    def __init__(self, path: Path, record: RunRecord) -> None:
        self._path = path
        self.record = record
        self.verdict = "complete"

    @property
    def id(self) -> str:
        """The run's id: its start in UTC, its action, and some letters."""
        return self.record.id

    def step(self, name: str) -> None:
        """Note what is being done; not worth a write of its own before each quick step."""
        self.record = replace(self.record, step=name)

    def note(self, **changes: object) -> None:
        """Change fields of the record and write it; what could not be written is not changed."""
        record = replace(self.record, **changes)  # type: ignore[arg-type]
        _write(self._path, record)
        self.record = record

    def stopping(self, service: str, container: str) -> None:
        """Note, before it happens, that a container is being stopped."""
        self.note(stopped=(*self.record.stopped, Stopped(service, container)))

    def started(self, service: str) -> None:
        """Note that a container stopped by this run is running again."""
        self.note(stopped=tuple(one for one in self.record.stopped if one.service != service))

    def waking(self, service: str) -> None:
        """Note, before it happens, that a container is started that did not run."""
        if service not in self.record.woken:
            self.note(woken=(*self.record.woken, service))

    def swapping(self, swap: Swap) -> None:
        """Note, before it happens, that a folder is being exchanged, or that it has been."""
        others = tuple(one for one in self.record.swaps if one.live != swap.live)
        self.note(swaps=(*others, swap))

    def close(self, outcome: str, *, message: str = "", hint: str = "") -> None:
        """Close the record."""
        self.note(outcome=outcome, ended=stamp(), message=message, hint=hint)


class Journal:
    """The records of a hub, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, action: str, **about: str) -> Run:
        """Write the record of a run that starts now and give it."""
        started = datetime.now(UTC)
        run_id = f"{started:%Y%m%dT%H%M%SZ}-{action}-{secrets.token_hex(2)}"
        pid = os.getpid()
        record = RunRecord(
            run_id,
            action,
            started.isoformat(timespec="seconds"),
            pid,
            boot_id(),
            born=process_birth(pid),
        )
        self._keep_spare()
        run = Run(self.folder / f"{run_id}.json", replace(record, about=about))
        run.note()
        for old in sorted(self.folder.glob("*.json"))[:-KEPT_RUNS]:
            old.unlink(missing_ok=True)
        return run

    def _keep_spare(self) -> None:
        """Keep room for the records of a run that will meet a full disk."""
        spare = self.folder / SPARE
        if spare.exists():
            return
        with suppress(OSError):  # full already: the run will say so
            descriptor = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, SPARE_BYTES)
            finally:
                os.close(descriptor)

    def runs(self) -> tuple[RunRecord, ...]:
        """Read all records, oldest first; a damaged one is left out."""
        found = (_read(path) for path in sorted(self.folder.glob("*.json")))
        return tuple(record for record in found if record is not None)

    def last(self, action: str, *outcomes: str) -> RunRecord | None:
        """Give the newest record of an action, with one of the outcomes if any are named."""
        for path in sorted(self.folder.glob(f"*-{action}-*.json"), reverse=True):
            record = _read(path)
            if record is not None and (not outcomes or record.outcome in outcomes):
                return record
        return None

    def dead(self) -> tuple[RunRecord, ...]:
        """Give the records of runs that died without closing theirs, oldest first."""
        return tuple(record for record in self.runs() if record.dead)

    def reopen(self, record: RunRecord) -> Run:
        """Give the run of a record again, to correct or close it."""
        return Run(self.folder / f"{record.id}.json", record)


@dataclass(frozen=True)
class State:
    """What is known of a hub outside of its data root; its file stays under 4 KB.

    Attributes:
        disk: the file system's UUID, where it could be read. repository: restic's repository id.
        snapshot: the last snapshot that was made and verified.
        last: by action: {"time", "outcome", "message", "snapshot"} of the newest run.
        good: by action: time of the newest complete run.
        kit: the recovery kit (`actions/kit.py`): ids of its key and of the hub's own, when it was
            made and last proven, the repository that it opens.
        check: the rotation of checks and the damage that one found (`actions/upkeep.py`).
        copies: by name: what is known of a further repository (`actions/copies.py`).
        sync: where the hub stands to Git (`actions/sync.py`): the last good commit and when it was
            applied, one that was returned from and why, what differed when it was last looked at.
        disowned: snapshots that do not count although they are in the repository, newest last.
    """

    hub: str
    name: str = ""
    folder: str = ""
    disk: str = ""
    repository: str = ""
    snapshot: str = ""
    last: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    good: Mapping[str, str] = field(default_factory=dict)
    check: Mapping[str, str] = field(default_factory=dict)
    kit: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    disowned: tuple[str, ...] = ()
    sync: Mapping[str, str] = field(default_factory=dict)


class StateFile:
    """The state file of one hub, usually `/var/lib/iotops/<hub id>.json`."""

    def __init__(self, folder: Path, hub: str) -> None:
        self.path = folder / f"{hub}.json"
        self._hub = hub

    def read(self) -> State:
        """Read it; a missing or damaged one gives an empty state, an odd value is left out."""
        document = _document(self.path)
        if document is None or document.get("hub") != self._hub:
            return State(self._hub)
        state = State(**_typed(State, document))  # type: ignore[arg-type]
        good = {key: time for key, time in state.good.items() if _time(time)}
        times = ("made", "proven")
        kit = {key: text for key, text in state.kit.items() if key not in times or _time(text)}
        times = ("applied", "looked")
        sync = {key: text for key, text in state.sync.items() if key not in times or _time(text)}
        return replace(state, good=good, kit=kit, sync=sync)

    def update(self, **changes: object) -> State:
        """Change fields and write it, when anything differs."""
        before = self.read()
        state = replace(before, **changes)  # type: ignore[arg-type]
        if state != before or not self.path.exists():
            try:
                self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                files.write(self.path, _small(state), mode=0o644)
            except PermissionError as error:
                raise IotopsError(
                    f"the state file {self.path} cannot be written", hint="run iotops as root: sudo"
                ) from error
        return state

    def disown(self, snapshot: str) -> None:
        """Note a snapshot that does not count, before it is forgotten where that is allowed."""
        others = [one for one in self.read().disowned if one != snapshot]
        self.update(disowned=(*others, snapshot)[-DISOWNED:])

    def forgotten(self, snapshot: str) -> None:
        """Note that a snapshot which did not count is gone."""
        self.update(disowned=tuple(one for one in self.read().disowned if one != snapshot))

    def finished(self, record: RunRecord) -> None:
        """Take over the result of a closed run."""
        state = self.read()
        entry = {
            "time": record.ended or record.started,
            "outcome": record.outcome,
            "message": record.message[:300],
            "snapshot": record.snapshot,
        }
        good = dict(state.good)
        if record.outcome == "complete":
            good[record.action] = record.ended
        self.update(last={**state.last, record.action: entry}, good=good)

    def refused(self, action: str, message: str) -> None:
        """Note that a guard kept a run from beginning; there is no record of it elsewhere."""
        entry = {"time": stamp(), "outcome": "failed", "message": message[:300], "snapshot": ""}
        with suppress(IotopsError):  # not ours to write: what the guard says matters more
            self.update(last={**self.read().last, action: entry})


@contextmanager
def lock(folder: Path, hub: str, action: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the hub's lock; a second run is refused.

    Args:
        folder: where the lock file is, usually `/run/iotops`.
        patience: seconds to wait for it; 0 = not at all.

    Raises:
        Locked: another run holds it; says which, and its process id.
    """
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(
            folder / f"{hub}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
        )
    except PermissionError as error:
        raise IotopsError(
            f"the lock {folder}/{hub}.lock cannot be opened", hint="run iotops as root: sudo"
        ) from error
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                raise Locked(
                    f"another iotops works on this hub ({holder or 'unknown'})",
                    hint="wait for it, and look with: iotops status",
                )
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"iotops {action}, process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def boot_id() -> str:
    """Give the kernel's id of this boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_birth(pid: int) -> str:
    """Give when a process began, in ticks since boot (proc_pid_stat(5)); "" = it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie runs no more: it only waits for its parent to look.
    return "" if words[0] == "Z" else words[19]


def stamp() -> str:
    """Give the present time as ISO 8601 in UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _small(state: State) -> bytes:
    """Write a state down in less than 4 KB: where it is more, without blanks, and messages cut."""
    document = asdict(state)
    data = b""
    for length, indent in ((300, 1), (100, 1), (100, None), (30, None)):
        for table in ("last", "copies"):
            for entry in document[table].values():
                if len(entry.get("message", "")) > length:
                    entry["message"] = entry["message"][:length]
        data = json.dumps(
            document, indent=indent, separators=(",", ":"), ensure_ascii=False
        ).encode()
        if len(data) < STATE_LIMIT:
            break
    return data


def _write(path: Path, record: RunRecord) -> None:
    data = json.dumps(asdict(record), indent=1).encode()
    try:
        files.write(path, data, mode=0o640)
    except OSError as error:
        spare = path.with_name(SPARE)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not spare.exists():
            raise
        spare.unlink(missing_ok=True)
        files.write(path, data, mode=0o640)


def _read(path: Path) -> RunRecord | None:
    document = _document(path)
    if document is None:
        return None
    known = _typed(RunRecord, document)
    try:
        known["stopped"] = tuple(
            Stopped(str(one["service"]), str(one["container"]))
            for one in _dicts(document.get("stopped"))
        )
        known["swaps"] = tuple(_swap(one) for one in _dicts(document.get("swaps")))
        woken = document.get("woken")
        known["woken"] = tuple(map(str, woken)) if isinstance(woken, list) else ()
        return RunRecord(**known)  # type: ignore[arg-type]  # JSON we wrote ourselves
    except (TypeError, KeyError):
        return None


def _swap(one: dict[str, object]) -> Swap:
    return Swap(
        str(one["service"]),
        str(one["live"]),
        str(one["old"]),
        str(one["new"]),
        had_old=bool(one["had_old"]),
        done=bool(one.get("done")),
    )


def _document(path: Path) -> dict[str, object] | None:
    try:
        document: object = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict):
        return None
    return {str(key): value for key, value in document.items()}


def _typed(cls: type[State | RunRecord], document: Mapping[str, object]) -> dict[str, object]:
    """Choose the fields of a document that are what they must be.

    Whatever stands in a file, also one that somebody edited: what is read here has the types that
    the classes declare, so that nothing fails on it later.
    """
    found: dict[str, object] = {}
    for one in fields(cls):
        value = document.get(one.name)
        if one.type == "Mapping[str, Mapping[str, str]]":
            tables = value.items() if isinstance(value, dict) else ()
            found[one.name] = {str(key): _entry(inner) for key, inner in tables}
        elif one.type == "Mapping[str, str]":
            found[one.name] = _texts(value)
        elif one.type == "tuple[str, ...]":
            texts = value if isinstance(value, list) else []
            found[one.name] = tuple(text for text in texts if isinstance(text, str))
        elif (one.type == "str" and isinstance(value, str)) or (
            one.type == "int" and isinstance(value, int)
        ):
            found[one.name] = value
    return found


def _texts(value: object) -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else ()
    return {str(key): text for key, text in items if isinstance(text, str)}


def _entry(value: object) -> dict[str, str]:
    """Give the texts of an entry, without times that are none."""
    return {key: text for key, text in _texts(value).items() if key not in TIMES or _time(text)}


def _time(text: str) -> bool:
    """Tell whether a text is a time with its zone."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _dicts(value: object) -> list[dict[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
