"""The door to restic: one repository and what can be done with it.

Works with restic 0.14 to 0.19. A repository is created by `init` only. Not here: how restic is run
(`clients/resticprogram.py`), what it answers (`clients/resticanswers.py`), which snapshots count
and how long they are kept (actions).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from iotops.clients import resticanswers as answers
from iotops.clients.resticanswers import (
    Document,
    Entry,
    Forget,
    KeyInfo,
    LockInfo,
    Saved,
    SnapshotInfo,
    find_snapshot,
)
from iotops.clients.resticprogram import (
    END_LIMIT,
    MINIMUM,
    OPEN_LIMIT,
    QUICK_LIMIT,
    STALL_LIMIT,
    RepositoryAccess,
    ResticProgram,
    Version,
)
from iotops.errors import IotopsError, ProgramFailed, SnapshotUnknown

__all__ = [
    "MINIMUM",
    "Entry",
    "Forget",
    "KeyInfo",
    "LockInfo",
    "Repository",
    "RepositoryAccess",
    "Saved",
    "SnapshotInfo",
    "find_snapshot",
]

Moved = Callable[[int, int], None]
"""Hears of progress: bytes done, bytes in all."""


class Repository:
    """One restic repository.

    Every call raises, besides what it names:
        ProgramMissing: restic is not installed, or too old.
        RepositoryMissing, WrongPassword, Locked, RepositoryDamaged, Unreachable, Refused, NoSpace:
            what restic found.
        TimedOut: it took too long or stood still; it has been ended.
        ProgramFailed: it failed in another way.
    """

    def __init__(
        self,
        access: RepositoryAccess,
        *,
        stall_limit: float = STALL_LIMIT,
        quick_limit: float = QUICK_LIMIT,
        end_limit: float = END_LIMIT,
    ) -> None:
        self.access = access
        self._restic = ResticProgram(
            access, stall_limit=stall_limit, quick_limit=quick_limit, end_limit=end_limit
        )

    # -- restic and the repository itself -----------------------------------------------------

    @property
    def memory(self) -> int:
        """Most bytes of memory that restic took in a call so far; see `process.Result`."""
        return self._restic.memory

    def version(self) -> Version:
        """Give restic's version.

        Raises:
            ProgramMissing: it is not installed, or too old.
        """
        return self._restic.version()

    def init(self, chunker_from: RepositoryAccess | None = None) -> str:
        """Create the repository.

        Args:
            chunker_from: a repository whose chunker parameters it shall have, so that copies of
                its snapshots need no other storage than they did there.

        Returns:
            Its id.

        Raises:
            GuardError: there is one already; it is left as it is.
        """
        doing = "creating the repository"
        if chunker_from is None:
            self._restic.run(["init"], doing=doing)
        else:
            self._restic.run(["init", "--copy-chunker-params"], doing=doing, source=chunker_from)
        return self.id()

    def id(self) -> str:
        """Give the repository's id."""
        doing = "opening the repository"
        ended = self._restic.run(["cat", "config"], doing=doing, limit=OPEN_LIMIT)
        return answers.identity(answers.document(ended.out), doing)

    # -- snapshots ----------------------------------------------------------------------------

    def snapshots(
        self, tags: Sequence[str] = (), host: str | None = None
    ) -> tuple[SnapshotInfo, ...]:
        """List snapshots, oldest first.

        Args:
            tags: only those that have all of these.
            host: only those of this host.
        """
        doing = "listing the snapshots"
        text = self._restic.run(["snapshots", "--json", *_filter(tags, host)], doing=doing).out
        found = [answers.snapshot(row, doing) for row in answers.rows(text, doing)]
        return tuple(sorted(found, key=lambda one: one.time))

    def save(
        self, folder: Path, *, host: str, tags: Sequence[str], moved: Moved | None = None
    ) -> Saved:
        """Save a folder's content as one snapshot.

        restic runs inside of the folder: only the same form of naming it finds the parent.

        Args:
            folder: its content becomes the root of the snapshot.
            host, tags: as recorded in the snapshot.
            moved: hears of progress.

        Raises:
            ProgramFailed: also when restic ended well, but without a summary or an id.
        """
        doing = "saving the snapshot"
        argv = ["backup", ".", "--json", "--host", host, "--ignore-ctime"]
        for tag in tags:
            argv += ["--tag", tag]
        summaries: list[Document] = []

        def hear(found: Document) -> None:
            kind = found.get("message_type")
            if kind == "summary":
                summaries.append(found)
            elif kind == "status" and moved is not None:
                moved(answers.number(found, "bytes_done"), answers.number(found, "total_bytes"))

        ended = self._restic.run(argv, doing=doing, cwd=folder, hear=hear, ok=(0, 3))
        if not summaries:
            raise ProgramFailed(f"{doing}: restic ended without a summary", tail=ended.tail)
        summary = summaries[-1]
        seconds = summary.get("total_duration")
        return Saved(
            self._full_id(answers.words(summary, "snapshot_id"), host, doing),
            answers.number(summary, "files_new"),
            answers.number(summary, "files_changed"),
            answers.number(summary, "files_unmodified"),
            answers.number(summary, "data_added"),
            answers.number(summary, "total_files_processed"),
            answers.number(summary, "total_bytes_processed"),
            float(seconds) if isinstance(seconds, (int, float)) else 0.0,
            ended.code == 3,
            answers.unread(ended.tail),
        )

    def dump(self, snapshot: str, path: str) -> bytes:
        """Give the content of one file of a snapshot.

        Args:
            snapshot: its id.
            path: absolute in the snapshot.

        Raises:
            SnapshotUnknown: there is no such snapshot.
        """
        argv = ["dump", answers.checked_id(snapshot), _absolute(path)]
        ended = self._restic.run(argv, doing=f"reading {path} of {snapshot[:8]}")
        return ended.out.encode("utf-8", "surrogateescape")

    def holds(self, snapshot: str, path: str, file: Path) -> bool:
        """Tell whether one file of a snapshot has the content of a text file here, line by line.

        Args:
            snapshot: its id.
            path: absolute in the snapshot.
            file: where the content was taken from; its last line is ended.

        Raises:
            SnapshotUnknown: there is no such snapshot.
        """
        argv = ["dump", answers.checked_id(snapshot), _absolute(path)]
        same = True
        with file.open("rb") as wanted:
            # Another call made where ssh had ended finds nothing left, and says no: never yes.

            def read(text: str) -> None:
                nonlocal same
                line = text.encode("utf-8", "surrogateescape") + b"\n"
                same = same and wanted.readline() == line

            self._restic.run(
                argv,
                doing=f"reading {path} of {snapshot[:8]}",
                hear=lambda _: None,
                read=read,
                quick=True,
            )
            return same and not wanted.readline()

    def ls(self, snapshot: str) -> tuple[Entry, ...]:
        """List what a snapshot holds.

        Raises:
            SnapshotUnknown: there is no such snapshot.
        """
        argv = ["ls", "--json", answers.checked_id(snapshot)]
        found: list[Entry] = []
        heads: list[Document] = []

        def hear(line: Document) -> None:
            one = answers.entry(line)
            if one is not None:
                found.append(one)
            elif "snapshot" in (line.get("message_type"), line.get("struct_type")):
                heads.append(line)

        self._restic.run(argv, doing=f"listing {snapshot[:8]}", hear=hear)
        if not heads:  # restic 0.14 ignores an unknown id and ends well
            raise SnapshotUnknown(
                f"the repository has no snapshot {snapshot[:8]}", hint="look: iotops snapshots"
            )
        return tuple(found)

    def restore(
        self,
        snapshot: str,
        target: Path,
        *,
        includes: Sequence[str] = (),
        moved: Moved | None = None,
    ) -> None:
        """Extract a snapshot, or the named parts of it, into a folder of its own.

        Never a folder with links in it: restic 0.14 writes through a hard link into its other
        name. A path that the snapshot does not have is no failure of restic's; compare afterwards.

        Args:
            snapshot: its id.
            target: where to; made when missing.
            includes: absolute paths in the snapshot, taken as they are (no patterns).
            moved: hears of progress, with restic 0.16 and newer.

        Raises:
            SnapshotUnknown: there is no such snapshot.
        """
        argv = ["restore", answers.checked_id(snapshot), "--target", str(target)]
        if self.keeps_holes():
            argv.append("--sparse")
        for path in includes:
            argv += ["--include", re.sub(r"([*?\[\]\\])", r"\\\1", _absolute(path))]
        speaks = self._restic.has("restore --json")
        if speaks:
            argv.append("--json")

        def hear(found: Document) -> None:
            if found.get("message_type") == "status" and moved is not None:
                moved(answers.number(found, "bytes_restored"), answers.number(found, "total_bytes"))

        # Without JSON it says nothing until it has ended: silence then is no standstill.
        self._restic.run(argv, doing=f"extracting {snapshot[:8]}", hear=hear, silent=not speaks)

    def keeps_holes(self) -> bool:
        """Tell whether sparse files come back sparse; before 0.15 their holes are written out."""
        return self._restic.has("restore --sparse")

    def plan_forget(
        self,
        *,
        tags: Sequence[str],
        host: str | None = None,
        keep_daily: int,
        keep_weekly: int,
        keep_monthly: int,
        keep_yearly: int = 0,
        keep_at_least: int,
    ) -> Forget:
        """Ask restic which snapshots its keep rules would keep; nothing is removed.

        All snapshots with the tags are one group, whatever their host and paths: a renamed hub or
        a moved data root must not start a group of its own beside one that never shrinks.

        Args:
            tags: only snapshots that have all of these are looked at; at least one.
            keep_at_least: the newest so many are kept in any case; at least one.

        Raises:
            ValueError: no tag, or nothing to keep.
        """
        if not tags or keep_at_least < 1:
            raise ValueError("a retention needs tags, and keeps at least one snapshot")
        doing = "planning the retention"
        argv = ["forget", "--dry-run", "--json", "--group-by", "", *_filter(tags, host)]
        argv += ["--keep-last", str(keep_at_least)]
        periods = {
            "daily": keep_daily,
            "weekly": keep_weekly,
            "monthly": keep_monthly,
            "yearly": keep_yearly,
        }
        for period, count in periods.items():
            if count:
                argv += [f"--keep-{period}", str(count)]
        return answers.plan(self._restic.run(argv, doing=doing).out, doing)

    def forget(self, ids: Sequence[str]) -> None:
        """Remove snapshots; their data stays until a prune. One that is gone already is fine.

        Raises:
            ProgramFailed: also when restic before 0.19 ends well without having removed them.
        """
        if not ids:
            return
        doing = "forgetting snapshots"
        ended = self._restic.run(["forget", *map(answers.checked_id, ids)], doing=doing)
        for line in (*ended.out.splitlines(), *ended.tail):
            if re.search(r"unable to remove|failed to remove|could not be removed", line):
                raise ProgramFailed(f"{doing}: {line.strip()}", code=ended.code, tail=ended.tail)

    def copy_from(
        self,
        source: RepositoryAccess,
        ids: Sequence[str],
        originals: Mapping[str, str] | None = None,
    ) -> Mapping[str, str]:
        """Copy snapshots of another repository; what is here already is not copied again.

        Args:
            ids: full ids there.
            originals: by id, the id that one had before it was changed there: restic then finds
                the copy by that one.

        Returns:
            The id here by the id there.

        Raises:
            ProgramFailed: also when restic ended well, but one of them is not here.
        """
        doing = "copying snapshots"
        argv = ["copy", *map(answers.checked_id, ids)]
        self._restic.run(argv, doing=doing, source=source, hear=_deaf)
        here = {one.original or one.id: one.id for one in self.snapshots()}
        first = {one: (originals or {}).get(one) or one for one in ids}
        missing = [one[:8] for one in ids if first[one] not in here]
        if missing:
            raise ProgramFailed(f"{doing}: {', '.join(missing)} did not arrive")
        return {one: here[first[one]] for one in ids}

    # -- keys ---------------------------------------------------------------------------------

    def list_keys(self) -> tuple[KeyInfo, ...]:
        """List the keys; one of them is `current`, the one that our password opened."""
        doing = "listing the keys"
        text = self._restic.run(["key", "list", "--json"], doing=doing, limit=OPEN_LIMIT).out
        return tuple(answers.key(row, doing) for row in answers.rows(text, doing))

    def add_key(self, password_file: Path, *, user: str, host: str) -> None:
        """Add a key: a further password that opens the repository.

        Its id is what `list_keys()` gives as current to one who opens with it: restic 0.14 does not
        tell it. Its derivation is measured on this machine, as restic does at `init`.

        Args:
            password_file: holds the new password; a path, so that it is in no argument list.
            user, host: as it is marked; they open nothing.
        """
        argv = ["key", "add", "--new-password-file", str(password_file)]
        self._restic.run([*argv, "--user", user, "--host", host], doing="adding a key")

    def remove_key(self, key: str) -> None:
        """Remove a key; one that is gone already is fine.

        Args:
            key: its id, whole or its beginning.

        Raises:
            ProgramFailed: also for the key that our own password opens; restic refuses that.
        """
        # "no matching ID found" is what restic says of an unknown snapshot, too.
        with suppress(SnapshotUnknown):
            argv = ["key", "remove", answers.checked_id(key)]
            self._restic.run(argv, doing=f"removing the key {key[:8]}")

    # -- upkeep -------------------------------------------------------------------------------

    def prune(self, max_unused: str = "10%") -> str:
        """Remove data that no snapshot needs any more.

        Args:
            max_unused: how much of it may stay, so that less has to be written anew.

        Returns:
            How much was removed, in restic's words ("1.2 GiB"); empty where it did not say so.
        """
        freed: list[str] = []

        def read(line: str) -> None:
            if found := re.match(r"total prune:.* / (.+)", line):  # 0.14 to 0.19; no JSON so far
                freed.append(found[1].strip())

        argv = ["prune", "--max-unused", max_unused]
        self._restic.run(argv, doing="pruning", hear=_deaf, read=read)
        return freed[-1] if freed else ""

    def check(self, subset: str | None = None) -> None:
        """Check the repository's structure, and a part of its data.

        Args:
            subset: the part, as "3/12" or "5%"; None = structure only.

        Raises:
            RepositoryDamaged: it has errors.
        """
        argv = ["check"] if subset is None else ["check", f"--read-data-subset={subset}"]
        self._restic.run(argv, doing="checking the repository", hear=_deaf)

    def locks(self) -> tuple[LockInfo, ...]:
        """List the locks, without taking one."""
        doing = "reading the locks"

        def ids() -> list[str]:
            text = self._restic.run(["list", "locks", "--no-lock"], doing=doing).out
            return re.findall(rf"^[0-9a-f]{{{answers.FULL_ID}}}$", text, re.MULTILINE)

        found: list[LockInfo] = []
        for one in ids():
            try:
                # restic 0.14 looks 45 s long for a lock that has just been removed.
                ended = self._restic.run(["cat", "lock", one, "--no-lock"], doing=doing, limit=20)
                found.append(answers.lock(ended.out, one, doing))
            except IotopsError:
                if one in ids():
                    raise
        return tuple(found)

    def unlock(self, *, every: bool = False) -> None:
        """Remove locks that restic takes for stale.

        Mind that restic sends SIGHUP to the process of this host whose number a lock holds, to
        see whether it lives: look at `locks()` first.

        Args:
            every: remove all locks, whoever holds them.
        """
        self._restic.run(
            ["unlock", *(["--remove-all"] if every else [])], doing="removing stale locks"
        )

    def _full_id(self, snapshot: str, host: str, doing: str) -> str:
        """Complete the id of a summary; restic 0.14 gives its beginning only."""
        if not re.fullmatch(r"[0-9a-f]{8,64}", snapshot):
            raise ProgramFailed(f"{doing}: restic ended without naming its snapshot")
        if len(snapshot) == answers.FULL_ID:
            return snapshot
        fitting = [one for one in self.snapshots(host=host) if one.id.startswith(snapshot)]
        if not fitting:
            raise ProgramFailed(f"{doing}: the repository does not list the snapshot {snapshot}")
        return fitting[-1].id


def _deaf(line: Document) -> None:
    """Hear nothing: for calls that are watched, but say nothing that is needed."""


def _filter(tags: Sequence[str], host: str | None) -> list[str]:
    """Choose snapshots: all the tags, and the host."""
    chosen = ["--tag", ",".join(tags)] if tags else []
    return chosen if host is None else [*chosen, "--host", host]


def _absolute(path: str) -> str:
    return "/" + path.lstrip("/")
