"""One service's part of the staging folder, filled from its live folder.

A staged file is never opened for writing, changed in place, or used as a restore target: it may
be a hard link to the live file. It is replaced by a new file under the same name, hence a new
inode, or left exactly as it is when its source has not changed, so that restic, run with
`--ignore-ctime`, reads again what changed and nothing else.

Coverage is per file: what the service does not stage itself is copied by `rest()`, what an
exclude rule leaves out is counted under that rule, and what cannot be copied is a warning or an
error, never silence. Not here: which files need special care (the service knows).
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
import stat
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from iotops.clients import attributes, files
from iotops.errors import CaptureError
from iotops.model import Artifact, Exclude, LeftOut

SPARSE = 1 << 20
"""Bytes of holes from which on a file counts as sparse."""
DEEPEST = 200
"""Folders below each other: to walk them takes Python's own stack in many places."""
SPECIAL = Exclude("(sockets, pipes, devices)", "hold no data; their programs make them again")
SIDES = Exclude("(SQLite side files)", "the online copy of their database holds what they hold")


@dataclass(frozen=True)
class Staged:
    """What a service's staging folder holds in the end.

    Attributes:
        artifacts: what is in it, by path. folder: the folder itself, with its owner and mode.
    """

    artifacts: tuple[Artifact, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    folder: Artifact

    @property
    def every(self) -> tuple[Artifact, ...]:
        """The folder itself and what is in it."""
        return (self.folder, *self.artifacts)


class Staging:
    """Fill one staging folder from one live folder.

    Args:
        source: the live folder.
        folder: the staging folder, on the same file system where links shall work.
        prefix: its path below the snapshot's root, for the artifacts.
        excludes: the named rules for what may be left out.
        known: the last manifest's artifacts by path: hashes are taken over from it.
        memory: file that remembers how each copied source looked; beside the staging folder,
            outside the snapshot.
    """

    def __init__(
        self,
        source: Path,
        folder: Path,
        *,
        prefix: str,
        excludes: Sequence[Exclude] = (),
        known: Mapping[str, Artifact] | None = None,
        memory: Path,
    ) -> None:
        self.source = source
        self.folder = folder
        self.prefix = prefix
        self.excludes = tuple(excludes)
        self.known = known or {}
        self.warnings: list[str] = []
        self._root = source.resolve()
        self._memory_file = memory
        self._seen_sources: dict[str, int] = {}
        self._before = _read_memory(memory, self.known)
        """Marks of the last run; those that are right again move into `_seen_sources`."""
        self._remembered = len(self._before)
        self._news = False
        self._staged: set[str] = set()
        self._links: set[str] = set()
        self._real: set[str] = set()
        self._plain: set[Path] = set()
        self._databases: set[str] = set()
        self._out: dict[Exclude, list[int]] = {rule: [0, 0] for rule in self.excludes}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # -- what a service calls -------------------------------------------------------------------

    def live(self, relative: str) -> Path:
        """Give the live path of something."""
        return self.source / relative

    def path(self, relative: str) -> Path:
        """Give the staged path of something, for reading only."""
        return self.folder / relative

    def has(self, relative: str) -> bool:
        """Tell whether a regular file is staged under that name, from this run or the last."""
        return files.is_regular(self.folder / relative)

    def copy(self, relative: str, source: Path | None = None) -> bool:
        """Copy a live file, unless the staged one is still the same.

        Args:
            relative: its name below both folders.
            source: where it comes from when not from the live folder.

        Returns:
            Whether it was copied (False: unchanged).

        Raises:
            OSError: it is gone or unreadable. CaptureError: it kept changing.
        """
        origin = self._origin(relative, source)
        if self._unchanged(relative, origin, ()):
            return False
        began = time.time_ns()
        within = self._root if source is None else None
        state = files.copy_plain(origin, self._place(relative), within)
        self._look_at_attributes(relative, origin)
        self._remember(relative, _mark(state), began)
        return True

    def sqlite(self, relative: str, source: Path | None = None) -> bool:
        """Copy a live SQLite database by its online backup, unless it is still the same.

        Returns:
            Whether it was copied.

        Raises:
            CaptureError: it is damaged or cannot be copied. OSError: it is gone.
        """
        origin = self._origin(relative, source)
        self._databases.add(relative)
        sides = tuple(origin.with_name(origin.name + end) for end in files.SQLITE_SIDE_FILES)
        if self._unchanged(relative, origin, sides):
            return False
        began = time.time_ns()
        marks = _mark(origin.lstat()) + _marks(sides)
        within = self._root if source is None else None
        files.copy_sqlite(origin, self._place(relative), within=within)
        self._look_at_attributes(relative, origin)
        self._remember(relative, marks, began)
        return True

    def link(self, relative: str, source: Path | None = None) -> None:
        """Hard-link a live file that is never changed in place.

        Raises:
            OSError: EXDEV on another file system, EPERM without the right to link, ENOENT.
            CaptureError: it is no regular file.
        """
        origin = self._origin(relative, source)
        state = origin.lstat()
        if not stat.S_ISREG(state.st_mode):
            raise CaptureError(f"{origin} is not a regular file and cannot be linked")
        target = self._place(relative)
        if not (_exists(target) and os.path.samestat(target.lstat(), state)):
            temporary = files.beside(target)
            os.link(origin, temporary, follow_symlinks=False)
            temporary.replace(target)
        self._staged.add(relative)
        self._links.add(relative)

    def put(
        self, relative: str, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] = (0, 0)
    ) -> bool:
        """Stage bytes that are no live file, unless the staged file already holds them.

        Returns:
            Whether it was written.
        """
        target = self._place(relative)
        if files.is_regular(target) and target.stat().st_size == len(data):
            if stat.S_IMODE(target.stat().st_mode) == mode and target.read_bytes() == data:
                self._staged.add(relative)
                return False
        files.write(target, data, mode=mode, owner=owner, sync=False)
        self._staged.add(relative)
        return True

    def adopt(self, relative: str, temporary: Path) -> bool:
        """Move a finished temporary file of the same file system into place.

        Where the staged file already has the same content it stays, and the temporary one goes.

        Returns:
            Whether it is new.
        """
        target = self._place(relative)
        if files.is_regular(target) and target.stat().st_size == temporary.stat().st_size:
            if files.sha256(target) == files.sha256(temporary):
                temporary.unlink()
                self._staged.add(relative)
                return False
        temporary.replace(target)
        self._staged.add(relative)
        return True

    def keep(self, relative: str) -> None:
        """Declare that the file staged in an earlier run is still right."""
        if not files.is_regular(self.folder / relative):
            raise CaptureError(f"{self.prefix}/{relative} is not staged and cannot be kept")
        self._staged.add(relative)
        path = self._path(relative)
        if (before := self._before.pop(path, None)) is not None:
            self._seen_sources[self._shared(path)] = before

    def forget(self, relative: str) -> None:
        """Unstage a file of this run (it vanished while its neighbours were linked)."""
        self._staged.discard(relative)
        self._links.discard(relative)
        (self.folder / relative).unlink(missing_ok=True)

    def paths(self) -> tuple[str, ...]:
        """Give what is staged in this run so far, sorted, relative to both folders."""
        return tuple(sorted(self._staged))

    def warn(self, text: str) -> None:
        """Note something that is not as good as it should be; it goes into the manifest."""
        self.warnings.append(text)

    def rest(self, skip: Callable[[str], bool] = lambda relative: False) -> None:
        """Copy everything of the live folder that is neither staged yet nor excluded.

        Args:
            skip: tells of a path (file or folder) that the service answers for itself.

        Raises:
            CaptureError: a file cannot be read, or kept changing; folders nested without an end.
        """
        folders = [""]
        while folders:
            below = folders.pop()
            if below.count("/") >= DEEPEST:
                raise CaptureError(
                    f"{self.source / below[:60]}... is nested deeper than {DEEPEST} folders",
                    hint="no program does that on purpose; look at it and remove it",
                )
            for name, kind in self._listed(below):
                relative = f"{below}/{name}" if below else name
                if relative in self._staged or skip(relative):
                    continue
                with suppress(FileNotFoundError):  # it went away meanwhile
                    if self._take(relative, kind):
                        folders.append(relative)

    # -- what the action calls ------------------------------------------------------------------

    def finish(self) -> Staged:
        """Remove what was staged in earlier runs only, and list what is there.

        Returns:
            Artifacts sorted by path, with hashes; what each rule left out; the warnings.

        Raises:
            CaptureError: something that was staged is not there any more.
        """
        lost = next((one for one in sorted(self._staged) if not _exists(self.folder / one)), None)
        if lost is not None:
            raise CaptureError(f"{self.folder / lost} was staged and has vanished")
        self._sweep()
        self._copy_folders()
        if self._news or len(self._seen_sources) != self._remembered:
            _write_memory(self._memory_file, self._seen_sources)
        self._before.clear()
        self._seen_sources.clear()
        entries = sorted(chain(self._staged, self._parents()))
        artifacts = tuple(map(self._artifact, entries))
        left_out = tuple(
            LeftOut(rule.pattern, rule.reason, count, size)
            for rule, (count, size) in self._out.items()
            if count
        )
        return Staged(artifacts, left_out, tuple(self.warnings), self._artifact(""))

    def drop_links(self) -> None:
        """Remove the hard links, so that compaction of the live files frees their space."""
        for relative in self._links:
            (self.folder / relative).unlink(missing_ok=True)

    # -- inside ---------------------------------------------------------------------------------

    def _place(self, relative: str) -> Path:
        """Make way for a file; it counts as staged only when it is there."""
        target = files.below(self.folder, relative)
        self._make_folder(target.parent)
        if target.is_dir() and not target.is_symlink():
            files.remove_tree(target)
        return target

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of real folders: a link staged earlier under its name must not lead out."""
        if folder == self.folder or (folder.is_dir() and str(folder) in self._real):
            return
        self._make_folder(folder.parent)
        if _exists(folder) and not _is_folder(folder):
            folder.unlink()
        folder.mkdir(mode=0o700, exist_ok=True)
        self._real.add(str(folder))

    def _origin(self, relative: str, source: Path | None) -> Path:
        """Give the live path, refusing one that leads through a link of the service's making."""
        if source is not None:
            return source
        origin = files.below(self.source, relative)
        for parent in origin.parents:
            if parent == self.source or parent in self._plain:
                break
            if parent.is_symlink():
                raise CaptureError(
                    f"{origin} lies behind the symbolic link {parent}, which is not followed",
                    hint="put the folder itself where the link is",
                )
        self._plain.add(origin.parent)
        return origin

    def _unchanged(self, relative: str, origin: Path, sides: tuple[Path, ...]) -> bool:
        path = self._path(relative)
        before = self._before.get(path, self._seen_sources.get(path))
        if before is None or not files.is_regular(self.folder / relative):
            return False
        try:
            now = _mark(origin.lstat()) + _marks(sides)
        except FileNotFoundError:
            return False
        if _digest([*now, (self.folder / relative).stat().st_ino]) != before:
            return False
        self._before.pop(path, None)
        self._staged.add(relative)
        self._seen_sources[self._shared(path)] = before
        return True

    def _remember(self, relative: str, marks: Sequence[int], began: int) -> None:
        self._staged.add(relative)
        if began - max(marks[2], marks[3], *marks[6::3]) < files.RACY_NS:
            return  # it may change again and look the same: it is copied again next time
        inode = (self.folder / relative).stat().st_ino
        self._seen_sources[self._path(relative)] = _digest([*marks, inode])
        self._news = True

    def _path(self, relative: str) -> str:
        """Give the path below the snapshot's root, as text."""
        return files.path_text(f"{self.prefix}/{relative}" if relative else self.prefix)

    def _shared(self, path: str) -> str:
        """Give the very string that the last manifest holds: there may be many of them."""
        old = self.known.get(path)
        return path if old is None else old.path

    def _listed(self, below: str) -> Iterator[tuple[str, str]]:
        """List a live folder: names, sorted, each with its kind ("special": none of the others)."""
        names: list[str] = []
        kinds: dict[str, str] = {}
        try:
            with (
                files.open_folder(self.source / below, self._root) as opened,
                os.scandir(opened) as entries,
            ):
                for entry in entries:
                    names.append(entry.name)
                    if (kind := _kind(entry)) != "file":
                        kinds[entry.name] = kind
        except (FileNotFoundError, NotADirectoryError):
            pass  # it went away meanwhile, or is something else by now
        except PermissionError as error:
            raise CaptureError(
                f"the folder {self.source / below} cannot be read", hint="run iotops as root: sudo"
            ) from error
        names.sort()
        return ((name, kinds.get(name, "file")) for name in names)

    def _take(self, relative: str, kind: str) -> bool:
        """Stage one thing, or count it as left out; tell whether it is a folder to go into."""
        folder = kind == "folder"
        rule = next((one for one in self.excludes if matches(one, relative, folder)), None)
        if rule is None and kind == "special":
            rule = SPECIAL
        if rule is not None:
            self._count(rule, relative, folder)
        elif kind == "link":
            self._link_symbolic(relative)
        elif folder:
            self._make_folder(self.folder / relative)
            self._staged.add(relative)
            return True
        else:
            self._copy_unknown(relative)
            path = self.source / relative
            if path.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID):
                self.warn(f"{path} is kept without its set-uid or set-gid bit")
        return False

    def _look_at_attributes(self, relative: str, origin: Path) -> None:
        staged = self.folder / relative
        if attributes.carried(origin) != attributes.carried(staged):
            self.warn(f"{origin} is kept without its extended attributes")

    def _copy_unknown(self, relative: str) -> None:
        origin = self.source / relative
        for ending in files.SQLITE_SIDE_FILES:
            # A database's side file belongs to its database: the online copy needs none.
            base = relative.removesuffix(ending)
            if base != relative and base in self._databases:
                if files.is_sqlite_side(origin, ending):
                    self._count_file(SIDES, origin)
                    return
        try:
            if not files.is_sqlite(origin):
                self.copy(relative)
                return
            try:
                self.sqlite(relative)
            except files.DamagedDatabase as error:
                self._databases.discard(relative)
                # It was so before, and its side files may be what somebody repairs it with.
                self.copy(relative)
                self.warn(f"{error.message}; it is copied as it is")
        except FileNotFoundError:
            return  # it went away meanwhile, as files do on a live system
        except OSError as error:
            hint = "run iotops as root: sudo" if isinstance(error, PermissionError) else ""
            raise CaptureError(
                f"{origin} cannot be copied: {error.strerror or error}", hint=hint
            ) from error

    def _link_symbolic(self, relative: str) -> None:
        target = self._place(relative)
        try:
            destination = (self.source / relative).readlink()
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # it is no link any more
            raise
        state = (self.source / relative).lstat()
        if target.is_symlink() and target.readlink() == destination:
            there = target.lstat()
            if os.geteuid() != 0 or (there.st_uid, there.st_gid) == (state.st_uid, state.st_gid):
                self._staged.add(relative)
                return
        temporary = files.beside(target)
        temporary.symlink_to(destination)
        if os.geteuid() == 0:
            os.lchown(temporary, state.st_uid, state.st_gid)
        os.utime(temporary, ns=(state.st_mtime_ns, state.st_mtime_ns), follow_symlinks=False)
        temporary.replace(target)
        self._staged.add(relative)

    def _count(self, rule: Exclude, relative: str, folder: bool) -> None:
        path = self.source / relative
        if not folder:
            self._count_file(rule, path)
            return
        for top, _, names in os.walk(path):
            for name in names:
                self._count_file(rule, Path(top) / name)

    def _count_file(self, rule: Exclude, path: Path) -> None:
        with suppress(FileNotFoundError):
            size = path.lstat().st_size
            number = self._out.setdefault(rule, [0, 0])
            number[0] += 1
            number[1] += size

    def _parents(self) -> set[str]:
        """Give the folders above what is staged that are not staged themselves."""
        above = {relative.rpartition("/")[0] for relative in self._staged if "/" in relative}
        for folder in [*above]:
            while "/" in folder:
                folder = folder.rpartition("/")[0]
                above.add(folder)
        return above - self._staged

    def _sweep(self) -> None:
        parents = self._parents()

        def stray(relative: str) -> bool:
            return relative not in self._staged and relative not in parents

        for top, folders, names in os.walk(self.folder):
            here = Path(top).relative_to(self.folder).as_posix()
            prefix = "" if here == "." else f"{here}/"
            for name in names:
                if stray(prefix + name):
                    (Path(top) / name).unlink()
            for name in [*folders]:
                if stray(prefix + name):
                    files.remove_tree(Path(top) / name)
                    folders.remove(name)

    def _copy_folders(self) -> None:
        """Give each staged folder mode, owner and times of its live one, children first."""
        every = chain(self._staged, self._parents())
        folders = [one for one in every if _is_folder(self.folder / one)]
        for relative in [*sorted(folders, key=len, reverse=True), ""]:
            target = self.folder / relative
            try:
                state = (self.source / relative).lstat()
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(state.st_mode):
                continue
            if os.geteuid() == 0:
                os.chown(target, state.st_uid, state.st_gid)
            target.chmod(stat.S_IMODE(state.st_mode))  # a change of group may clear set-group-id
            if not attributes.carry(self.source / relative, target):
                self.warn(f"{self.source / relative} is kept without its extended attributes")
            os.utime(target, ns=(state.st_mtime_ns, state.st_mtime_ns))

    def _artifact(self, relative: str) -> Artifact:
        staged = self.folder / relative
        state = staged.lstat()
        path = self._path(relative)
        mode, owner = stat.S_IMODE(state.st_mode), (state.st_uid, state.st_gid)
        if stat.S_ISLNK(state.st_mode):
            target = files.path_text(staged.readlink())
            return Artifact(
                path, "symlink", 0, mode, *owner, state.st_mtime_ns, state.st_ino, "", target
            )
        if stat.S_ISDIR(state.st_mode):
            return Artifact(path, "directory", 0, mode, *owner, state.st_mtime_ns)
        old = self.known.get(path)
        same = old is not None and (old.size, old.mtime_ns, old.inode) == (
            state.st_size,
            state.st_mtime_ns,
            state.st_ino,
        )
        digest = old.sha256 if old is not None and same else files.sha256(staged)
        changed = state.st_mtime_ns
        made = Artifact(
            path,
            "file",
            state.st_size,
            mode,
            *owner,
            changed,
            state.st_ino,
            digest,
            holes=_holes(state),
        )
        return old if old == made else made  # one object for both runs: there may be many


def matches(rule: Exclude, relative: str, folder: bool) -> bool:
    """Tell whether an exclude rule speaks of a path relative to the service's folder."""
    pattern = rule.pattern
    if pattern.endswith("/"):
        if not folder:
            return False
        pattern = pattern[:-1]
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(relative.rsplit("/", 1)[-1], pattern[3:])
    return pattern.count("/") == relative.count("/") and fnmatch.fnmatchcase(relative, pattern)


def _holes(state: os.stat_result) -> int:
    """Give the bytes of a file that are holes; little ones are not worth the mention."""
    missing = state.st_size - state.st_blocks * 512
    return missing if missing >= SPARSE else 0


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "special"


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _mark(state: os.stat_result) -> list[int]:
    return [state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _marks(sides: Sequence[Path]) -> list[int]:
    marks: list[int] = []
    for side in sides:
        try:
            state = side.lstat()
            marks += [state.st_ino, state.st_size, state.st_mtime_ns]
        except OSError:  # not there, or a name too long to have one
            marks += [0, 0, 0]
    return marks


def _digest(marks: Sequence[int]) -> int:
    """Give one number for how a file looks, in 8 bytes; times before 1970 are below zero."""
    packed = array("Q", [number & 0xFFFF_FFFF_FFFF_FFFF for number in marks]).tobytes()
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")


def _read_memory(path: Path, known: Mapping[str, Artifact]) -> dict[str, int]:
    """Read what `_write_memory` wrote: a line for each file, its path and how it looked."""
    found: dict[str, int] = {}
    try:
        with path.open("rb") as lines:
            for line in lines:
                name, digest = json.loads(line)
                if not isinstance(name, str) or not isinstance(digest, int):
                    return {}
                old = known.get(name)
                found[name if old is None else old.path] = digest
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        return {}  # torn by a power cut: everything is copied once more
    return found


def _write_memory(path: Path, now: Mapping[str, int]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = (json.dumps(pair).encode() + b"\n" for pair in sorted(now.items()))
    files.write(path, lines, mode=0o600, sync=False)
