"""How a file of the hub folder differs, for people to see, without the secrets in it.

A file that is known to hold secrets, by its name or by what is in it, is not shown at all. Of any
other one the values of `.env`, whatever stands behind a telling name, and what looks like a key, a
hash or a login in an address are starred. It is a net, no proof: a secret behind a name that says
nothing (`x = "..."`), and that is in no form known here, is shown. Not here: what a difference
means (`syncplan.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from iotops import secretnames
from iotops.actions.hooks import private_key, refused_in_git
from iotops.clients import composemodel
from iotops.flowdoc import KEY_PATTERNS

LINES = 120
"""Lines of one diff that are shown; the rest is counted."""
LONGEST = 1000
"""Letters of a line that is shown: nobody reads a longer one, and looking through it takes long."""
WITHHELD = "holds secrets, not shown"
SHORT = 6
"""Letters that one line of a value has at least: a shorter one would take ordinary words too."""


class Content(Protocol):
    """A file's content; `link`: a symbolic link, its target the content."""

    @property
    def data(self) -> bytes: ...
    @property
    def executable(self) -> bool: ...
    @property
    def link(self) -> bool: ...


def shown(path: str, old: Content | None, new: Content | None, secrets: Sequence[str]) -> str:
    """Give what differs between two contents of a file, as a unified diff without secrets.

    Args:
        secrets: values that it may not show.
    """
    sides = [one.data for one in (old, new) if one is not None]
    if refused_in_git([path]) or _TELLING.search(path.rpartition("/")[2]):
        return WITHHELD
    if any(private_key(data) or _passwords(data) for data in sides):
        return WITHHELD
    try:
        was, now = (one.data.decode().splitlines() if one is not None else [] for one in (old, new))
    except UnicodeDecodeError:
        sizes = [f"{len(side.data)} bytes" if side else "nothing" for side in (old, new)]
        return f"no text: {sizes[0]}, then {sizes[1]}"
    lines = [*_diff(path, was, now, secrets)]
    if old is not None and new is not None:
        if old.link != new.link:
            lines.insert(0, "a symbolic link" if new.link else "no symbolic link any more")
        elif old.executable != new.executable:
            lines.insert(0, "executable" if new.executable else "not executable any more")
    more = len(lines) - LINES
    return "\n".join([*lines[:LINES], *([f"... and {more} more lines"] if more > 0 else [])])


def _diff(
    path: str, was: Sequence[str], now: Sequence[str], secrets: Sequence[str]
) -> Iterator[str]:
    """Compare the lines as they are, and show each as the whole file says that it may be shown.

    A part of a diff does not tell that it is in the middle of a key or of a text in quotes.
    """
    old, new = masked_lines(was, secrets), masked_lines(now, secrets)
    at_old = at_new = 0
    for number, line in enumerate(difflib.unified_diff(was, now, "a", "b", lineterm="")):
        if number < 2:
            yield f"{line[:4]}{'ab'[number]}/{path}"
        elif hunk := _HUNK.match(line):
            at_old, at_new = (max(int(one) - 1, 0) for one in hunk.groups())
            yield line
        else:
            # What stands on both sides may have become a secret by the line above it.
            text = old[at_old] if line[0] == "-" else new[at_new]
            if line[0] == " " and old[at_old] != was[at_old]:
                text = old[at_old]
            at_old += line[0] != "+"
            at_new += line[0] != "-"
            yield line[0] + text


_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")
_TELLING = re.compile(r"(?i)passw|secret|credential|token")
"""Names of files that hold one secret and nothing else, as `password_file` and its like want."""
_LOGIN = re.compile(rb"[^\s:]+:\$[0-9a-z]+\$\S+")


def _passwords(data: bytes) -> bool:
    """Whether a file is a list of logins with the hashes of their passwords."""
    lines = [line for line in data.splitlines() if line.strip()]
    return 0 < len(lines) < 2 * sum(_LOGIN.match(line) is not None for line in lines)


# -- masking --------------------------------------------------------------------------------------

_NAME = rf"{secretnames.IN_TEXT}[\"']?"
_IS = r"(?:=|:(?![-?+]))"
"""What stands behind a name; not as in `${NAME:-default}`."""
_KEYED = re.compile(rf"(?i)({_NAME}\s*{_IS}\s*)(\S.*)$")
_OPENS = re.compile(rf"(?i).*{_NAME}\s*{_IS}\s*((?:[|>][-+\d]*|[\[{{(]*)\s*(?:#.*)?)$")
_SPACED = re.compile(r"(?i)^(\s*(?:remote_password|bridge_psk|password)\s+)(\S.*)$")
_OPTION = re.compile(rf"(?i)((?<![\w-])--[\w-]*?{_NAME}[\s,=]+[\"']?)[^\s\"',]+")
_VARIABLE = rf"\w*(?:{secretnames.VARIABLE})\w*"
_ENVIRONMENT = r"process\.env(?:\.\w+|\[[\"']\w+[\"']\])"
_OTHERWISE = (
    re.compile(rf"(?i)(\$\{{{_VARIABLE}:?[-+])(?:[^{{}}]+(?=\}})|[^}}].*)"),
    re.compile(
        rf"(?i)(process\.env(?:\.{_VARIABLE}|\[[\"']{_VARIABLE}[\"']\])\s*(?:\|\||\?\?)\s*)\S.*"
    ),
)
"""What is taken where a variable with such a name is not set."""
_REFERENCE = re.compile(
    rf"[\"'`]?(?:{_ENVIRONMENT}|\$\{{\w+(?::?\?[^{{}}]*|:?-)?\}}|\$__\w+\{{[^{{}}]*\}}"
    r"|\$[A-Z]+(?:_[A-Z0-9]+)+|\w+\([\"'][A-Z]+(?:_[A-Z0-9]+)+[\"']\)"
    r"|[~.]*/[\w./-]+\.(?:key|pem|crt|pub)|/run/secrets/[\w.-]+)"
    r"[\"'`]?[\s,;)\]}]*"
)
"""A value that only says where the secret is: a variable's name, also as a program's file asks for
it, or the path of a file."""
_BEGUN = re.compile(rf"{_ENVIRONMENT}\s*(?:\|\||\?\?)\s*|[\"']?\$\{{\w+:?[-+]")
_ADDRESS = re.compile(
    r"(?i)\b([a-z][a-z0-9+.-]*://)(?:([^\s/:@\"']*:)(?!\$\{\w+\}@)[^\s/\"']+|[^\s/:@\"'$]{16,})@"
)
_HASH = re.compile(r"(\$\$?)(?:2[abxy]?|5|6|7|y|apr1|argon2\w*|pbkdf2[\w-]*|scrypt)\$\$?[^\s\"',]+")
_KEYS = tuple(
    re.compile(pattern) for what, pattern in KEY_PATTERNS.items() if "address" not in what
)
_MAPPING = re.compile(r"(?:- +)?[\"']?[\w.$-]+[\"']?\s*[:=](?:\s|$)")
_BRACKETS = re.compile(r"[\[\]{}(),;]*")
_QUOTES = ('"""', "'''", '"', "'", "`")


def masked(text: str, secrets: Sequence[str]) -> str:
    """Take secrets out of a text: known values, and what looks like one."""
    return "\n".join(masked_lines(text.split("\n"), secrets))


def masked_lines(lines: Sequence[str], secrets: Sequence[str]) -> list[str]:
    """Take secrets out of the lines of a whole file; each stays in its place.

    A secret may go on below its name: in a block of YAML, a list, a text in quotes.
    """
    parts = [part for value in secrets for part in value.splitlines() if len(part) >= SHORT]
    values = [*secrets, *parts]
    found: list[str] = []
    quote, block, whole = "", -1, False
    for line in lines:
        if len(line) > LONGEST:
            found.append(f"... a line of {len(line)} letters, not shown")
            continue
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if quote:
            found.append("***")
            if quote in _unescaped(line):
                quote = ""
            continue
        inside = indent > block or (indent == block and not whole and bare.startswith("- "))
        if block >= 0 and bare and not inside:
            block = -1
        if (
            block >= 0
            and bare
            and (whole or not (_MAPPING.match(bare) or _BRACKETS.fullmatch(bare)))
        ):
            found.append(line[:indent] + "***")
            continue
        if opens := _OPENS.match(line):
            block, whole = indent, opens[1].startswith(("|", ">"))
        elif keyed := _KEYED.search(line):
            quote = _left_open(keyed[2])
            if keyed[2].startswith("[") and "]" not in keyed[2]:
                block, whole = indent, False  # the list goes on
        found.append(_line(line, values))
    return found


def _line(line: str, values: Sequence[str]) -> str:
    line = composemodel.masked(line, values)
    if not _OPENS.match(line):
        line = _KEYED.sub(_behind, line)
    line = _SPACED.sub(r"\1***", line)
    line = _OPTION.sub(r"\1***", line)
    line = _ADDRESS.sub(r"\1\2***@", line)
    for pattern in _OTHERWISE:
        line = pattern.sub(r"\1***", line)
    for pattern in (_HASH, *_KEYS):
        line = pattern.sub("***", line)
    return line


def _behind(found: re.Match[str]) -> str:
    """Star what stands behind a telling name, unless it only says where the secret comes from."""
    if _REFERENCE.fullmatch(found[2]):
        return found[0]
    begun = _BEGUN.match(found[2])
    return f"{found[1]}{begun[0] if begun else ''}***"


def _left_open(value: str) -> str:
    """Give the quote that a value begins with and does not end; empty = none."""
    quote = next((one for one in _QUOTES if value.startswith(one)), "")
    return quote if quote and quote not in _unescaped(value[len(quote) :]) else ""


def _unescaped(text: str) -> str:
    return re.sub(r"\\.", "", text)
