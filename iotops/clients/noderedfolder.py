"""What lies in a Node-RED user directory: flow file, credentials, active project, palette.

Only files are looked at, never through a link, since a container wrote them; the server is not
asked. Facts about Node-RED 4.1.13 and 5.0.7. Not here: keys and what is copied when
(`services/nodered.py`), and the flows document itself (`flowdoc.py`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from iotops import flowdoc
from iotops.clients import files, process
from iotops.errors import FlowsError

DEPLOYING = 5.0
"""Seconds for which credentials newer than the flows mean a deploy that has not yet written both:
it writes the credentials first, and always both."""

RUNTIME, PROJECTS = ".config.runtime.json", ".config.projects.json"
PACKAGE, LOCK, MODULES = "package.json", "package-lock.json", "node_modules"
NO_FLOWS = frozenset((MODULES, "projects", "context", "lib"))
"""Folders of the user directory in which no flow file is looked for."""
FLOW_DEPTH = 3
"""How many folders deep one is looked for, the user directory counted."""


@dataclass(frozen=True)
class FlowSet:
    """Where a user directory keeps flows, credentials and keys; relative paths, empty = nowhere.

    Attributes:
        project: name of the active project. candidates: what was looked at for the flows.
    """

    flows: str
    credentials: str
    project: str = ""
    candidates: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every file of the set, the credentials first, as Node-RED writes them."""
        return tuple(name for name in (self.credentials, self.flows, RUNTIME, PROJECTS) if name)

    @classmethod
    def find(cls, folder: Path, revision: str, chosen: str) -> FlowSet:
        """Find the flow file by proof: the one that holds the revision.

        Args:
            folder: the user directory.
            revision: of the flows that run, or that were recorded.
            chosen: its name where the settings give one; looked at first.

        Returns:
            The set; without flow file when none holds that revision.
        """
        active = active_project(folder)
        if active is not None and file_revision(folder / active.flows) == revision:
            return active
        names = [chosen] if chosen and inside(chosen) else []
        for name in (*names, *_documents(folder)):
            if file_revision(folder / name) == revision:
                return cls(name, _credentials_of(folder, name), candidates=(name,))
        likely = (*names, *(("flows.json",) if "flows.json" not in names else ()))
        return cls("", _credentials_of(folder, likely[0]), candidates=likely)

    @classmethod
    def still(cls, folder: Path, chosen: str) -> FlowSet:
        """Name the files without a server to ask: the chosen flow file, else the usual one."""
        active = active_project(folder)
        if active is not None and chosen in ("", active.flows):
            if files.is_regular(folder / active.flows):
                return active
        for name in (chosen, "flows.json"):
            if name and inside(name) and files.is_regular(folder / name):
                return cls(name, _credentials_of(folder, name), candidates=(name,))
        return cls("", _credentials_of(folder, "flows.json"), candidates=("flows.json",))


def _documents(folder: Path) -> Iterator[str]:
    """Name what may be a flow file, the likeliest first; looked for no further than needed.

    `FLOWS` and `flowFile` may name one in a folder of the user directory. What other programs or
    Node-RED itself keep in folders of theirs is left alone.
    """
    places = [folder]
    for _ in range(FLOW_DEPTH):
        inner: list[Path] = []
        for place in places:
            try:
                found = sorted(place.iterdir(), key=lambda path: path.name != "flows.json")
            except OSError:  # it went away meanwhile, or is not ours to read
                continue
            for path in found:
                if path.name.startswith(".") or path.name in (PACKAGE, LOCK):
                    continue
                if path.suffix == ".json":
                    yield path.relative_to(folder).as_posix()
                elif path.is_dir() and not path.is_symlink():
                    if place != folder or path.name not in NO_FLOWS:
                        inner.append(path)
        places = inner


def active_project(folder: Path) -> FlowSet | None:
    """The active project's files; Node-RED may still have projects switched off."""
    document = as_object(read(folder / PROJECTS)) or {}
    name = document.get("activeProject")
    if not isinstance(name, str) or not name or not inside(name):
        return None
    home = f"projects/{name}"
    package = as_object(read(folder / home / PACKAGE)) or {}
    chosen = package.get("node-red")
    settings = chosen.get("settings") if isinstance(chosen, dict) else None
    told = settings if isinstance(settings, dict) else {}
    flows = str(told.get("flowFile") or "flows.json")
    credentials = str(told.get("credentialsFile") or _credentials_name(flows))
    if not inside(flows) or not inside(credentials):
        return None
    flows = f"{home}/{flows}"
    return FlowSet(flows, f"{home}/{credentials}", name, (flows,))


def _credentials_name(flows: str) -> str:
    pure = PurePosixPath(flows)
    return str(pure.with_name(f"{pure.stem}_cred{pure.suffix}"))


def _credentials_of(folder: Path, flows: str) -> str:
    """In 4.x always in the user directory; in 5.x beside the flow file unless it is there."""
    beside = _credentials_name(flows)
    top = PurePosixPath(beside).name
    return (
        beside if not files.is_regular(folder / top) and files.is_regular(folder / beside) else top
    )


def inside(name: str) -> bool:
    """Tell whether a relative path that a file names stays in the folder."""
    pure = PurePosixPath(name)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts


def deploying(folder: Path, held: FlowSet) -> bool:
    """Whether a deploy has written the credentials and not yet the flows."""
    credentials, flows = _mtime(folder / held.credentials), _mtime(folder / held.flows)
    return credentials > flows and time.time() - credentials < DEPLOYING


def file_revision(path: Path) -> str | None:
    """Give the revision Node-RED has for a flow file; None = it holds no flows."""
    data = read(path)
    if data is None:
        return None
    try:
        document = flowdoc.load(data, where=path.name)
    except FlowsError:
        return None
    if not isinstance(document, list) or not all(isinstance(node, dict) for node in document):
        return None
    return flowdoc.revision(document)


# -- palette --------------------------------------------------------------------------------------


def dependencies(folder: Path) -> Mapping[str, object]:
    """Give what `package.json` asks for: module to version range."""
    package = as_object(read(folder / PACKAGE)) or {}
    wanted = package.get("dependencies")
    return wanted if isinstance(wanted, dict) else {}


def take_over_palette(live: Path, folder: Path) -> bool:
    """Copy `node_modules` where both locks are equal and nothing of it is missing.

    Args:
        live: a user directory, for reading only. folder: the one that gets the palette.

    Returns:
        Whether it was done; otherwise `folder` may hold an unfinished one.
    """
    lock = read(folder / LOCK)
    source = live / MODULES
    if lock is None or lock != read(live / LOCK) or not source.is_dir() or source.is_symlink():
        return False
    if lacking(live):
        return False
    files.remove_tree(folder / MODULES)
    process.run(
        ["cp", "-a", "--reflink=auto", "--", source, folder / MODULES],
        doing="taking over the palette",
    )
    return not lacking(folder)


PROCESSORS = {3: "386", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64"}
"""An ELF file's number of its processor (`e_machine`), by Docker's word for it."""


def foreign(folder: Path, processor: str) -> str:
    """Name a compiled module of the palette that is for another processor; empty = none.

    Args:
        processor: Docker's word for the wanted one.
    """
    for path in sorted((folder / MODULES).rglob("*.node")):
        # Packages that bring their modules compiled bring them for all processors.
        if "prebuilds" in path.parts or not files.is_regular(path):
            continue
        if _compiled_for(path) not in ("", processor):
            return path.relative_to(folder / MODULES).as_posix()
    return ""


def own_processor() -> str:
    """Give Docker's word for the processor of this machine's programs; empty = none known.

    The kernel may be of another width: its word is not asked.
    """
    return _compiled_for(Path(sys.executable).resolve())


def _compiled_for(path: Path) -> str:
    with files.open_plain(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        head = file.read(20)
    number = int.from_bytes(head[18:20], "little") if head[:4] == b"\x7fELF" else 0
    return PROCESSORS.get(number, "")


def lacking(folder: Path) -> list[str]:
    """Modules that the lock (or else `package.json`) wants and `node_modules` has not."""
    document = as_object(read(folder / LOCK)) or {}
    packages = document.get("packages")
    wanted: dict[str, object] = {}
    if isinstance(packages, dict):
        for place, entry in packages.items():
            told = entry if isinstance(entry, dict) else {}
            # Optional ones are for other machines, dev ones are left out, links have no version.
            skipped = any(told.get(k) for k in ("optional", "dev", "devOptional", "link"))
            if place and not skipped and inside(place):
                wanted[place] = told.get("version")
    else:
        wanted = {f"{MODULES}/{name}": None for name in dependencies(folder)}
    missing: list[str] = []
    for place, version in wanted.items():
        there = (as_object(read(folder / place / PACKAGE)) or {}).get("version")
        if there is None or (version is not None and there != version):
            missing.append(place.rpartition(f"{MODULES}/")[2])
    return missing


# -- reading --------------------------------------------------------------------------------------


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return 0.0


def read(path: Path) -> bytes | None:
    """Read a regular file; None when it is not one or not there."""
    if not files.is_regular(path):
        return None
    try:
        with files.open_plain(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def as_object(data: bytes | None) -> dict[str, object] | None:
    """Decode a JSON object; None when it is none."""
    if data is None:
        return None
    try:
        value: object = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
