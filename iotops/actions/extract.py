"""Take a snapshot out of the repository into a folder, and believe nothing in it unchecked.

What was extracted is compared with the manifest before anything else happens: every file's hash,
every owner and mode, no file too many, no device, no set-uid bit, no link where a folder should
be. Not here: what becomes of the folder (`restore.py`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from iotops import manifest
from iotops.clients import attributes, files
from iotops.clients.restic import Repository
from iotops.errors import IotopsError, ManifestError, ProgramFailed, RestoreError, UsageError
from iotops.events import Moved, Report, silent, step
from iotops.hub import Hub
from iotops.model import Artifact, Finding, Manifest, Severity

MANY = 20
"""Findings named one by one; the rest is counted."""


def read_manifest(repository: Repository, snapshot: str) -> Manifest:
    """Read a snapshot's manifest.

    Raises:
        ManifestError: it is missing, damaged or of a newer format.
    """
    where = f"snapshot {snapshot[:8]}"
    try:
        data = repository.dump(snapshot, "/" + manifest.NAME)
    except ProgramFailed as error:
        raise ManifestError(
            f"{where} holds no manifest that can be read",
            hint="choose another snapshot: iotops snapshots; or take its files out by hand:"
            f" restic restore {snapshot[:8]} --target DIR",
        ) from error
    return manifest.decode(data, where=where)


def artifacts_of(made: Manifest, folders: Sequence[str]) -> tuple[Artifact, ...]:
    """Give all artifacts below the given paths of the snapshot."""
    return tuple(artifact for artifact in made.artifacts() if _in(artifact.path, folders))


def room_for(artifacts: Iterable[Artifact], keeps_holes: bool) -> int:
    """Give the bytes that files take when they are extracted."""
    return sum(artifact.room if keeps_holes else artifact.size for artifact in artifacts)


def _in(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def extract(
    repository: Repository, snapshot: str, folders: Sequence[str], target: Path, report: Report
) -> None:
    """Extract parts of a snapshot into an empty folder, with one restic call.

    Args:
        folders: paths below the snapshot's root.
        target: made here, 0700; or an empty folder.

    Raises:
        IotopsError: restic failed, or something is in the target.
    """
    if target.is_dir() and not _empty(target):
        raise IotopsError(f"{target} is not empty", hint="name a folder that does not exist yet")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with step(report, "extract"):
        repository.restore(
            snapshot,
            target,
            includes=[f"/{folder}" for folder in folders],
            moved=lambda done, total: report(Moved("extract", done, total)),
        )


def extract_checked(
    hub: Hub,
    snapshot: str,
    made: Manifest,
    folders: Sequence[str],
    target: Path,
    report: Report,
    note: Callable[[str], None] = lambda _step: None,
) -> int:
    """Extract parts of a snapshot beside the data that they are to replace, and check them.

    Args:
        snapshot: its full id. made: its manifest. folders: paths below the snapshot's root.
        target: on the data root's file system; made here.
        note: is told "extract" and "check" before these are done, for a run's record.

    Returns:
        Bytes extracted.

    Raises:
        NoSpace: they do not fit; nothing was extracted.
        RestoreError: what came out is not as the manifest recorded it.
    """
    wanted = artifacts_of(made, folders)
    room = room_for(wanted, hub.repository.keeps_holes())
    files.require_space(hub.root, room, doing="extracting the snapshot")
    note("extract")
    extract(hub.repository, snapshot, folders, target, report)
    note("check")
    if found := check(target, made, folders, report):
        raise RestoreError(
            "the extracted files are not as the manifest recorded them; nothing was changed: "
            + "; ".join(one.message for one in found[:3]),
            hint="choose another snapshot: iotops snapshots; and check the repository:"
            " iotops check --all",
        )
    return sum(artifact.size for artifact in wanted)


def check(root: Path, made: Manifest, folders: Sequence[str], report: Report) -> list[Finding]:
    """Compare an extracted folder with the manifest.

    Args:
        root: where the snapshot was extracted.
        folders: the parts that were asked for.

    Returns:
        One finding of severity ERROR for everything that is not as recorded; at most some twenty.
    """
    with step(report, "check"):
        wanted = {artifact.path: artifact for artifact in artifacts_of(made, folders)}
        found = [*_unknown(root, folders, set(wanted))]
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            verdicts = pool.map(lambda artifact: _verdict(root, artifact), wanted.values())
            found += [verdict for verdict in verdicts if verdict is not None]
        if len(found) > MANY:
            more = _bad("check.more", "snapshot", f"and {len(found) - MANY} more")
            found = [*found[:MANY], more]
        return found


def _unknown(root: Path, folders: Sequence[str], wanted: set[str]) -> Iterator[Finding]:
    """Name what lies in the folders although the manifest does not know it."""
    for folder in folders:
        top = files.below(root, folder)
        if top.is_symlink():
            yield _bad("check.link", folder, f"{folder} is a symbolic link")
            continue
        for parent, names, plain in os.walk(top):
            for name in (*names, *plain):
                path = Path(parent) / name
                text = files.path_text(path.relative_to(root))
                if text not in wanted:
                    yield _bad("check.stranger", text, f"{text} is not in the manifest")


def _verdict(root: Path, artifact: Artifact) -> Finding | None:
    try:
        path = files.below(root, files.path_of(artifact.path))
        if _through_link(root, path):
            return _bad("check.link", artifact.path, f"{artifact.path} lies behind a link")
        state = path.lstat()
    except FileNotFoundError:
        return _bad("check.missing", artifact.path, f"{artifact.path} is missing")
    except IotopsError as error:
        return _bad("check.path", artifact.path, error.message)
    kinds = {"file": stat.S_ISREG, "directory": stat.S_ISDIR, "symlink": stat.S_ISLNK}
    if not kinds[artifact.type](state.st_mode):
        return _bad("check.type", artifact.path, f"{artifact.path} is no {artifact.type}")
    if stat.S_IMODE(state.st_mode) & (stat.S_ISUID | stat.S_ISGID) and artifact.type == "file":
        return _bad(
            "check.setuid", artifact.path, f"{artifact.path} has the set-uid or set-gid bit"
        )
    if attributes.gives_rights(path):
        return _bad("check.rights", artifact.path, f"{artifact.path} has capabilities of its own")
    if os.geteuid() == 0 and (state.st_uid, state.st_gid) != (artifact.uid, artifact.gid):
        owner, wanted = f"{state.st_uid}:{state.st_gid}", f"{artifact.uid}:{artifact.gid}"
        return _bad("check.owner", artifact.path, f"{artifact.path}: owner {owner}, not {wanted}")
    if artifact.type != "symlink" and stat.S_IMODE(state.st_mode) != artifact.mode:
        mode = f"{stat.S_IMODE(state.st_mode):04o}, not {artifact.mode:04o}"
        return _bad("check.mode", artifact.path, f"{artifact.path}: mode {mode}")
    if artifact.type == "symlink" and files.path_text(path.readlink()) != artifact.target:
        return _bad("check.target", artifact.path, f"{artifact.path} points elsewhere")
    if artifact.type == "file" and (
        state.st_size != artifact.size or files.sha256(path) != artifact.sha256
    ):
        return _bad("check.hash", artifact.path, f"{artifact.path}: other content than recorded")
    return None


def _through_link(root: Path, path: Path) -> bool:
    parent = path.parent
    while parent != root:
        if parent.is_symlink():
            return True
        parent = parent.parent
    return False


def _bad(code: str, subject: str, message: str) -> Finding:
    return Finding(code, Severity.ERROR, subject, message, "choose another: iotops snapshots")


def into(
    repository: Repository,
    snapshot: str,
    made: Manifest,
    target: Path,
    services: Sequence[str] = (),
    report: Report = silent,
    *,
    paths: Sequence[str] = (),
) -> tuple[Finding, ...]:
    """Only extract, into a folder of the owner's choice, and check what came out.

    Args:
        snapshot: its full id.
        target: an empty folder (a disk that was just mounted, too), or a new one in a folder
            that exists.
        services: names; with no paths either, the whole snapshot.
        paths: single files or folders, below the snapshot's root.

    Raises:
        UsageError: the target cannot be taken, or a service or path is not in the snapshot.
    """
    _refuse_target(target)
    folders: list[str] = []
    for name in services:
        record = made.service(name)
        if record is None or record.error:
            raise UsageError(
                f"snapshot {snapshot[:8]} does not hold {name}", hint="look: iotops snapshots"
            )
        folders.append(record.folder)
    for path in ("/".join(part for part in one.split("/") if part) for one in paths):
        if not path or not artifacts_of(made, [path]):
            raise UsageError(
                f"snapshot {snapshot[:8]} holds no {path or 'path without a name'}",
                hint=f"look: iotops ls {snapshot[:8]}",
            )
        folders.append(path)
    if not folders:
        folders = [record.folder for record in made.services if not record.error]
        folders += [part.name for part in made.parts if not part.error]
    size = room_for(artifacts_of(made, folders), repository.keeps_holes())
    on = target if target.is_dir() else target.absolute().parent
    files.require_space(on, size, doing=f"extracting into {target}")
    extract(repository, snapshot, [*folders, manifest.NAME], target, report)
    return tuple(check(target, made, folders, report))


def _refuse_target(target: Path) -> None:
    parent = target.absolute().parent
    if not parent.is_dir():
        raise UsageError(
            f"the folder {parent} does not exist",
            hint=f"mount its disk, or make it: sudo mkdir -p {parent}",
        )
    if os.path.lexists(target) and (not target.is_dir() or not _empty(target)):
        raise UsageError(f"{target} exists and is not empty", hint="name a new folder")


def _empty(folder: Path) -> bool:
    return all(path.name == "lost+found" for path in folder.iterdir())
