"""Running programs, saying what happens, and small files: what every other part of the lab needs.

The lab runs before the project's virtual environment exists, so this is the standard library only
and shares nothing with the product (a judge must not share code with what it judges).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


class LabError(Exception):
    """Something the lab wanted could not be had; the text says what and why."""


def say(text: str) -> None:
    """One line of progress for the person who waits (standard error, so that pipes stay clean)."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 1800,
    log: Path | None = None,
) -> str:
    """Run a program to its end and return what it printed; any failure is a ``LabError``.

    With ``log``, both streams go to that file and the last lines of it are quoted on failure.
    """
    words = [str(word) for word in command]
    full = {**os.environ, **env} if env else None
    try:
        if log is None:
            done = subprocess.run(
                words,
                cwd=cwd,
                env=full,
                timeout=timeout,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            output, errors = done.stdout, done.stderr
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as stream:
                print("+", *words, file=stream, flush=True)
                done = subprocess.run(
                    words,
                    cwd=cwd,
                    env=full,
                    timeout=timeout,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    text=True,
                    check=False,
                )
            output, errors = "", log.read_text(errors="replace")
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{words[0]} took longer than {timeout:.0f} s") from error
    if done.returncode != 0:
        tail = " | ".join((errors.strip() or output.strip()).splitlines()[-4:])
        raise LabError(f"{' '.join(words[:3])} ended with {done.returncode}: {tail}")
    return output


def answer(command: Sequence[str | Path], timeout: float = 30) -> str | None:
    """What a program printed, stripped, or None where it is missing or failed."""
    try:
        return run(command, timeout=timeout).strip()
    except LabError:
        return None


def is_root() -> bool:
    """Whether packages can be installed and a daemon started by hand."""
    return os.geteuid() == 0


def write_if_changed(path: Path, text: str) -> None:
    """Put a file in place in one step, and leave it alone when it already says the same."""
    with contextlib.suppress(OSError):
        if path.read_text() == text:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)


def write_json(path: Path, value: object) -> None:
    """``write_if_changed`` for a JSON document."""
    write_if_changed(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file, or an empty one when it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def digest(folder: Path, *extra: object) -> str:
    """A fingerprint of a folder's files (names, contents, executable bit) and of further facts."""
    mixed = hashlib.sha256()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_file() and "__pycache__" not in path.parts:
            executable = bool(path.stat().st_mode & 0o100)
            mixed.update(f"{path.relative_to(folder)}\0{executable}\0".encode())
            mixed.update(path.read_bytes())
    mixed.update(json.dumps(extra, sort_keys=True, default=str).encode())
    return mixed.hexdigest()[:20]


def remove(folder: Path) -> None:
    """Remove a folder tree, also one with read-only folders in it (a Go module cache)."""
    if not folder.exists():
        return
    for parent, names, _ in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            if not path.is_symlink():
                path.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lab's lock: two ``up`` at once would download and build everything twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run of the lab")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took when it took long."""
    say(what)
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    if took > 1:
        say(f"{what}: {took:.0f} s")
