"""What the lab has: real servers and programs, as `tests/lab/lab.py up` described them.

Read from the JSON file that `IOTOPS_LAB` names, else from the lab's cache folder. Not here: making
any of it (`tests/lab/`), and what becomes of a test that lacks something (`need` in conftest).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.lab.places import LINES, lab_file


@dataclass(frozen=True)
class Image:
    """A server's image: official or built by the lab; a stand-in is not the real server."""

    reference: str
    version: str
    official: bool
    stand_in: bool


@dataclass(frozen=True)
class Lab:
    """The lab's parts; what could not be had is absent, with the reason in `not_had`.

    Attributes:
        engine: version of the Docker Engine. compose: version of Compose.
        restic: programs by version. images: by service name or line, and "base". programs: by name.
        override: Compose override that brings the lab's own images to a hub, None without any.
    """

    engine: str | None = None
    compose: str | None = None
    restic: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    programs: Mapping[str, Path] = field(default_factory=dict)
    not_had: Mapping[str, str] = field(default_factory=dict)
    override: Path | None = None


@cache
def lab() -> Lab:
    """Read the lab's description once; an empty lab where there is none."""
    named = os.environ.get("IOTOPS_LAB")
    path = Path(named) if named else lab_file()
    if not path.is_file():
        return Lab(restic=_installed_restic())
    document: object = json.loads(path.read_text())
    assert isinstance(document, dict), f"{path} is no JSON object"
    override = path.parent / "compose.override.yaml"
    return Lab(
        engine=document.get("engine"),
        compose=document.get("compose"),
        restic=_programs(document.get("restic")) or _installed_restic(),
        images={name: Image(**one) for name, one in (document.get("images") or {}).items()},
        programs=_programs(document.get("programs")),
        not_had=dict(document.get("not_had") or {}),
        override=override if override.is_file() else None,
    )


def lines_of(server: str) -> tuple[str, ...]:
    """Give the images of a server's further lines, whether they could be had or not."""
    return tuple(name for name, line in LINES.items() if line.server == server)


def _programs(section: object) -> dict[str, Path]:
    """Take the programs that are really there."""
    rows = section.items() if isinstance(section, dict) else ()
    found = {str(name): Path(str(path)) for name, path in rows if path}
    return {name: path for name, path in found.items() if path.is_file()}


def _installed_restic() -> dict[str, Path]:
    """Take the restic on PATH, named by what it says of itself."""
    path = shutil.which("restic")
    if path is None:
        return {}
    with os.popen(f"'{path}' version") as pipe:
        match = re.search(r"restic (\d+\.\d+\.\d+)", pipe.read())
    return {match[1]: Path(path)} if match else {}
