"""Which files a Compose project is made of, as far as its YAML names them plainly.

Compose answers with one merged project and does not tell where each part came from; an owner must
know which of them a snapshot of the hub folder would not hold. Lines are read, not YAML: a name
with a variable in it is not found. Not here: what the project says (`composemodel.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
"""The names Compose looks for, in its order."""

_INCLUDE = re.compile(r"^include[ \t]*:(.*(?:\n(?:[ \t]+.*|-.*|[ \t]*))*)", re.MULTILINE)
_NAMED = re.compile(r"^([ \t]*)(?:-[ \t]+)?env_file[ \t]*:(.*(?:\n\1[ \t]*(?:-|[ \t]).*)*)", re.M)
_FILE = re.compile(r"(?:^|[ \t{,])(?:env_)?file[ \t]*:[ \t]*(\[[^]\n]*\]|[^\s,}#]+)", re.M)
_COMPOSE_FILE = re.compile(r"^[ \t]*(?:export[ \t]+)?COMPOSE_FILE[ \t]*=[ \t]*(.+?)[ \t]*$", re.M)
_PROJECT_NAME = re.compile(r"^[ \t]*(?:export[ \t]+)?COMPOSE_PROJECT_NAME[ \t]*=[ \t]*\S", re.M)


def top_files(folder: Path, env: str) -> tuple[Path, ...]:
    """Give the files that Compose starts with in a project folder.

    Args:
        folder: the project's. env: the text of its `.env`.
    """
    if (told := _COMPOSE_FILE.search(env)) is not None:
        names = told[1].strip("'\"").split(":")
        return tuple(folder / name for name in names if name)
    first = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if first is None:
        return ()
    overrides = (folder / f"{first.stem}.override{end}" for end in (".yml", ".yaml"))
    return (first, *(path for path in overrides if path.is_file()))


def names_itself(tops: Sequence[Path], env: str) -> bool:
    """Tell whether the project has a name of its own, or is called as its folder is."""
    if _PROJECT_NAME.search(env):
        return True
    return any(re.search(r"^[\"']?name[\"']?[ \t]*:", text, re.M) for text in map(_text, tops))


def parts(tops: Sequence[Path]) -> tuple[Path, ...]:
    """Give every file of a project: those, what they include or extend, and their env files."""
    found: dict[Path, None] = {}
    waiting = list(tops)
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        found[path] = None
        text = _text(path)
        waiting += [_from(path, name) for name in included(text)]
        for name in read_besides(text):
            found.setdefault(_from(path, name))
    return tuple(found)


def included(text: str) -> tuple[str, ...]:
    """Give the names of files that a Compose file includes."""
    return tuple(name for block in _INCLUDE.findall(text) for name in _scalars(block))


def read_besides(text: str) -> tuple[str, ...]:
    """Give the names of files that a Compose file takes values or services from."""
    lists = (name for _, block in _NAMED.findall(text) for name in _scalars(block))
    single = (name for value in _FILE.findall(text) for name in _scalars(value))
    return tuple(dict.fromkeys((*lists, *single)))


def _scalars(block: str) -> Iterator[str]:
    """Give the plain names of a list in either of YAML's forms, or of a single one."""
    for line in block.splitlines():
        line = re.sub(r"(^|[ \t])#.*$", "", line).strip().removeprefix("-").strip()
        for word in line.strip("[]{}").split(","):
            word = re.sub(r"^(path|env_file)[ \t]*:", "", word.strip().strip("[]{} ")).strip()
            name = word.strip("'\"[]- ")
            other = re.match(r"^[\w-]+[ \t]*:([ \t]|$)", name)
            if name and not other and not re.search(r"\$|://|^(git@|oci:)", name):
                yield name


def _from(path: Path, name: str) -> Path:
    """Give the file that another one names, without `..` in its path."""
    return Path(os.path.normpath(path.parent / name))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
