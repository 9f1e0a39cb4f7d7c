"""Fake programs: executables that print a recorded answer and exit with a chosen code."""

from __future__ import annotations

import shlex
from pathlib import Path


def fake_program(path: Path, *, out: str = "", err: str = "", code: int = 0) -> Path:
    """Write an executable that says something and ends.

    Args:
        path: its file; the folder goes first on a test's PATH.
    """
    path.write_text(
        "#!/bin/sh\n"
        f"printf '%s\\n' {shlex.quote(out)}\n"
        f"printf '%s\\n' {shlex.quote(err)} >&2\n"
        f"exit {code}\n"
    )
    path.chmod(0o755)
    return path
