"""Grafana's secret key: where its container has it from, and a print that does not give it away.

With another key than the one its database was written with, Grafana starts and says that it is
healthy, and no secret of a data source can be read any more. So a capture records a print of the
key, and whoever restores compares. Not here: what is told of a difference (`services/grafana.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from iotops.clients import files
from iotops.config import Secret

VARIABLE = "GF_SECURITY_SECRET_KEY"
CONFIGURATION = "/etc/grafana/grafana.ini"
"""Where the image's server reads its configuration, unless `GF_PATHS_CONFIG` names another."""
BUILT_IN = "SW2YcwTIb9zpOOhoPsMm"
"""The key of a Grafana that was given none; it stands in its sources (conf/defaults.ini)."""
DEFAULT = "default"
"""What is recorded for the built-in key: everybody knows it, and can see that it is in use."""

_PRINT = re.compile(r"scrypt1:([0-9a-f]{32}):([0-9a-f]{4})")


def secret_key(environment: Mapping[str, str], here: Callable[[str], Path | None]) -> Secret | None:
    """Find the key that a container gives to Grafana, in Grafana's own order.

    Args:
        environment: of the container. here: gives the place on this machine of a path in it.

    Returns:
        None where it cannot be known: it comes from a file that is not on this machine.
    """
    if key := environment.get(VARIABLE):
        return Secret(key)
    if place := environment.get(f"{VARIABLE}__FILE"):
        text = _read(here(place))
        return Secret(text.strip()) if text and text.strip() else None
    text = _read(here(environment.get("GF_PATHS_CONFIG") or CONFIGURATION))
    if text is None:
        return Secret(BUILT_IN)
    security = re.search(r"^\s*\[security\]\s*$(.*?)(?=^\s*\[|\Z)", text, re.MULTILINE | re.DOTALL)
    line = re.search(
        r"^[ \t]*secret_key[ \t]*=[ \t]*(.*?)[ \t]*$", security[1] if security else "", re.MULTILINE
    )
    value = line[1].strip("\"'") if line is not None else ""
    if "$" in value:
        return None  # it is put in from somewhere else
    return Secret(value or BUILT_IN)


def fingerprint(key: Secret, known: str = "") -> str:
    """Give a print of a key by which the same one is known again.

    A manifest is shown to people, and a key may be a weak word. A hash with the hub's id would
    not do, since that id stands beside it: words could be tried by the million. Each try costs
    scrypt's 4 MB here (10 ms of every backup), with a salt of its own; and only 16 bits are kept: a
    wrong key fits once in 65 536, so that whoever tries a dictionary is left with many words.

    Args:
        known: an earlier print, given back when it is of the same key; empty = none.
    """
    if key.reveal() == BUILT_IN:
        return DEFAULT
    if _PRINT.fullmatch(known) and same(known, key):
        return known
    salt = secrets.token_hex(16)
    return f"scrypt1:{salt}:{_hashed(key, salt)}"


def same(known: str, key: Secret) -> bool:
    """Tell whether a print is of this key; one of an unknown form is taken for it."""
    if known == DEFAULT or key.reveal() == BUILT_IN:
        return known == DEFAULT and key.reveal() == BUILT_IN
    found = _PRINT.fullmatch(known)
    return found is None or hmac.compare_digest(_hashed(key, found[1]), found[2])


def _hashed(key: Secret, salt: str) -> str:
    data = key.reveal().encode()
    return hashlib.scrypt(data, salt=bytes.fromhex(salt), n=1 << 12, r=8, p=1, dklen=2).hex()


def _read(path: Path | None) -> str | None:
    if path is None or not files.is_regular(path):
        return None
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None
