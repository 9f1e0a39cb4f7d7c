"""What may not get into the hub's Git: secrets, and the running state of services.

Names are judged, and whether a content has a private key: it is the last net before a commit,
`.gitignore` the first. Not here: the hook itself (`hooks/pre-commit`), which calls
`iotops hook pre-commit`, and secrets inside flows (`flows.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from iotops.flowdoc import KEY_PATTERNS
from iotops.model import Finding, Severity

ALLOWED = (".env.example", "id_*.pub")

SECRET = (
    ".env",
    ".env.*",
    "*.env",
    "flows_cred*.json",
    "*_cred.json",
    ".config.*.json",
    ".sessions.json",
    "passwd",
    "dynamic-security.json",
    "*.key",
    "*key*.pem",
    "*.p12",
    "*.pfx",
    "*.jks",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    "restic-password",
    "influx-configs",
)
"""Names of files that hold passwords, keys or tokens."""

STATE = (
    "*.db",
    "*.db-*",
    "*.sqlite",
    "*.sqlite3",
    "*.sqlite-*",
    "*.sqlite3-*",
    "*.bolt",
    "*.tsm",
    "*.tombstone",
    "*.wal",
    "*.backup",
    ".iotops-data-root",
    ".iotops-new-*",
)
"""Names of files that services write while they run; they belong into snapshots."""

_PRIVATE_KEY = re.compile(KEY_PATTERNS["a private key"].encode())
STATE_FOLDERS = frozenset({".iotops", "node_modules", "engine", ".npm"})


def refused_in_git(paths: Iterable[str]) -> tuple[Finding, ...]:
    """Judge the paths of a commit.

    Args:
        paths: relative to the worktree's top, with `/` between parts.

    Returns:
        An error for each one that must not be committed: `git.secret` or `git.state`.
    """
    return tuple(finding for path in paths if (finding := _judge(path)) is not None)


def private_key(data: bytes) -> bool:
    """Whether a file's content has a private key in it, whatever it is called."""
    return _PRIVATE_KEY.search(data) is not None


def staged(raw: bytes) -> tuple[str, ...]:
    """Split what `git diff --cached --name-only -z` wrote."""
    return tuple(os.fsdecode(one) for one in raw.split(b"\0") if one)


def _judge(path: str) -> Finding | None:
    pure = PurePosixPath(path)
    name = pure.name.lower()
    if any(fnmatchcase(name, pattern) for pattern in ALLOWED):
        return None
    hint = f"git rm --cached {path}; keep it out: add it to .gitignore"
    if any(fnmatchcase(name, pattern) for pattern in SECRET):
        return Finding(
            "git.secret",
            Severity.ERROR,
            path,
            f"{path} holds secrets and may not be committed",
            hint,
        )
    if any(fnmatchcase(name, pattern) for pattern in STATE) or STATE_FOLDERS & {*pure.parts[:-1]}:
        return Finding(
            "git.state",
            Severity.ERROR,
            path,
            f"{path} is the running state of a service; it belongs into a snapshot, not into Git",
            hint,
        )
    return None
