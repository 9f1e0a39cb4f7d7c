"""Look at `.env`: what the Compose file needs of it, what is missing, unused, or not what it says.

Judged is how the file is written; no value of it is ever part of a finding. `doctor` and the look
at a candidate (`candidate.py`) ask the same questions here. Not here: what a value is, which only
Compose decides, and whether it is the right one, which the services say (`iotops doctor`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from iotops import config
from iotops.clients import files
from iotops.clients.composemodel import Variable
from iotops.clients.git import Worktree
from iotops.errors import GitError, IotopsError, ProgramMissing, SettingsError, StackError
from iotops.events import Report, silent, step
from iotops.hub import Hub
from iotops.model import Finding, Severity

FILE = ".env"
NUL = "\0"
"""No variable can hold it; a power cut leaves some where a file was being written."""
COMPOSES_OWN = re.compile(r"COMPOSE_|DOCKER_(HOST|CONTEXT|CONFIG|CERT_PATH|TLS|API_VERSION)")
"""Names by which `.env` steers Compose itself."""

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*(?:=\s*(.*)|$)", re.DOTALL)
_DOLLAR = re.compile(r"\$(?:\{?([A-Za-z_][A-Za-z0-9_]*))?")


@dataclass(frozen=True)
class Entry:
    """One value of `.env`: the line it begins in, its name, and how it is written."""

    line: int
    name: str
    raw: str

    def __repr__(self) -> str:
        """Name it without its value, which may be a secret."""
        return f"Entry({self.line}, {self.name!r})"

    @property
    def empty(self) -> bool:
        """Whether nothing is set."""
        return self.raw.split(" #")[0].strip() in ("", "''", '""')

    @property
    def references(self) -> tuple[str, ...]:
        """What Compose fills in for each `$` that it does not take as it is; "" = nothing named."""
        text = self.raw
        if text.startswith("'"):
            return ()
        quoted = text.startswith('"')
        text = text.replace("\\$", "") if quoted else re.split(r"\s#", text)[0]
        return tuple(found[1] or "" for found in _DOLLAR.finditer(text.replace("$$", "")))


def entries(text: str) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
    """Read an `.env` text as it is written.

    Returns:
        Its values in order, and the numbers of lines that are none. A value in quotes may go over
        several lines.
    """
    found: list[Entry] = []
    odd: list[int] = []
    lines = text.removeprefix("\ufeff").splitlines()
    number = 0
    while number < len(lines):
        begun, line = number + 1, lines[number]
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            odd.append(begun)
            continue
        raw = (match[2] or "").strip()
        while (closed := _closed(raw)) is False and number < len(lines):
            raw += "\n" + lines[number]
            number += 1
        if closed is False:  # the quote is never closed: Compose refuses the whole file
            odd.append(begun)
            number = begun
        elif NUL in raw:
            odd.append(begun + raw[: raw.index(NUL)].count("\n"))
        found.append(Entry(begun, match[1], raw))
    return tuple(found), tuple(odd)


def _closed(raw: str) -> bool | None:
    """Whether a value in quotes ends; None = it is in none."""
    if raw[:1] not in ("'", '"'):
        return None
    return re.match(rf"{raw[0]}(?:[^{raw[0]}\\]|\\.)*{raw[0]}", raw, re.DOTALL) is not None


def judge(
    text: str,
    variables: Sequence[Variable],
    used: Collection[str] | None,
    wanted: Mapping[str, str] | None = None,
) -> Iterator[Finding]:
    """Judge an `.env` text against what names its values; pure.

    Args:
        variables: of the Compose files.
        used: other names that somebody reads: settings of iotops, variables of containers;
            None = not known, so that nothing is called unused.
        wanted: names that the settings give for secrets, and where; each must have a value.
    """
    found, odd = entries(text)
    by_name = {one.name: one for one in found}
    yield from _odd(text, odd)
    for one in found:
        yield from _written(one, by_name)
    for variable in variables:
        if variable.required or variable.name not in (wanted or {}):
            yield from _needed(variable, by_name.get(variable.name))
    required = {one.name for one in variables if one.required}
    for name, where in (wanted or {}).items():
        entry = by_name.get(name)
        if name not in required and (entry is None or entry.empty):
            yield _finding(
                "env.unset",
                Severity.ERROR,
                f"{name} is {'empty' if entry else 'missing'}, and {where} in iotops.toml names it",
                f"set it in {FILE}: {name}='...'; or correct the name in iotops.toml",
            )
    if used is not None:
        read = {name for one in found for name in one.references}
        yield from _unused(by_name, {*used, *read, *(one.name for one in variables)})


def _odd(text: str, lines: Sequence[int]) -> Iterator[Finding]:
    """Yield a finding for each line that Compose refuses the file for."""
    written = text.splitlines()
    for line in lines:
        if NUL in written[line - 1]:
            yield _finding(
                "env.line",
                Severity.ERROR,
                f"line {line} of {FILE} holds a NUL byte: Compose refuses the whole file",
                "write the line anew, or restore the file from a snapshot: iotops restore"
                " --into DIR",
            )
        else:
            yield _finding(
                "env.line",
                Severity.ERROR,
                f"line {line} of {FILE} is not NAME=value, or its quote does not end: Compose may"
                " refuse the whole file",
                "write NAME='value'",
            )


def _written(one: Entry, by_name: Mapping[str, Entry]) -> Iterator[Finding]:
    """Yield what is wrong with how a value is written, among the last ones of each name."""
    if by_name[one.name] is not one:
        again = by_name[one.name].line
        yield _finding(
            "env.duplicate",
            Severity.WARNING,
            f"{one.name} is set in line {one.line} and again in line {again}: the last counts",
            "remove one of the two lines",
        )
    if lost := [name for name in one.references if name not in by_name]:
        yield _finding(
            "env.dollar",
            Severity.WARNING,
            f"{one.name} (line {one.line}) has a $ outside single quotes: Compose puts"
            f" {'a variable' if lost[0] else 'something'} in its place, and a part of the"
            " value is lost",
            f"put the value in single quotes: {one.name}='...'; a service that was set up with"
            " what was left of it knows no more than that: then write only this",
        )


def _unused(names: Collection[str], read: Collection[str]) -> Iterator[Finding]:
    for name in names:
        if name not in read and not COMPOSES_OWN.match(name):
            yield _finding(
                "env.unused",
                Severity.WARNING,
                f"{name} is used by nothing: not by the Compose file, not by iotops.toml",
                "remove the line, or correct its name",
            )


def _needed(variable: Variable, entry: Entry | None) -> Iterator[Finding]:
    if entry is not None and not (entry.empty and variable.required):
        return
    if variable.required:
        yield _finding(
            "env.unset",
            Severity.ERROR,
            f"{variable.name} is {'empty' if entry else 'missing'}, and nothing starts without it",
            f"set it in {FILE}: {variable.name}='...'",
        )
    elif not variable.has_default:
        yield _finding(
            "env.unset",
            Severity.WARNING,
            f"{variable.name} is missing: an empty text takes its place",
            f"set it in {FILE}: {variable.name}='...'; or give it a default in the Compose file",
        )


def examine(hub: Hub, report: Report = silent) -> tuple[Finding, ...]:
    """Examine the hub's `.env`.

    Returns:
        All findings; also that Compose cannot be asked is one, after what the files say by
        themselves.
    """
    found: list[Finding] = []
    with step(report, "look at", FILE):
        found += guarded(hub)
    if (hub.folder / FILE).is_dir():
        return tuple(found)
    with step(report, "look at", "variables"):
        try:
            for one in variables(hub):
                found.append(one)
            if not any(one.severity is Severity.ERROR for one in found):
                _ = hub.model  # what else keeps Compose from reading the file is told by itself
        except IotopsError as error:
            hint = error.hint or "correct the Compose file, then: iotops env check"
            found.append(Finding("env.compose", Severity.ERROR, "Compose", error.message, hint))
    return tuple(found)


def variables(hub: Hub) -> Iterator[Finding]:
    """Judge the hub's `.env` against its Compose file and its settings.

    Raises:
        StackError: the Compose file cannot be read at all, for another reason than a line of
            `.env` that is told.
    """
    text = read(hub)
    try:
        named = hub.stack.variables()
    except StackError:
        yield from judge(text, (), None)
        if entries(text)[1]:
            return  # Compose's own words for it name no place and no next step
        raise
    yield from judge(text, named, used(hub), wanted(hub))


def wanted(hub: Hub) -> Mapping[str, str]:
    """Give the names that the settings want a value for in `.env`, and where each stands.

    Not those that a running server makes, and not what systemd hands over.
    """
    try:
        made = {name for service in hub.services for name in service.own_secrets()}
    except StackError:
        return {}
    found = config.env_names(hub.folder / config.FILE)
    given = {name for name in found if name not in hub.env and hub.secret(name) is not None}
    return {name: where for name, where in found.items() if name not in made | given}


def read(hub: Hub) -> str:
    """Read the hub's `.env`; one that is not there is empty.

    Raises:
        SettingsError: it is a folder.
    """
    return config.env_text(hub.folder / FILE)


def used(hub: Hub) -> frozenset[str] | None:
    """Name what iotops and the containers of a hub read from `.env` by themselves.

    Returns:
        The names; None = Compose cannot read the project, so nobody knows.
    """
    try:
        names = {name for service in hub.services for name in service.own_secrets()}
        models = hub.model.services.values()
    except StackError:
        return None
    for service in hub.services:
        names |= {value for key, value in asdict(service.options).items() if key.endswith("_env")}
    # `env_file: .env`, and a variable without a value (`environment: [NAME]`).
    return frozenset(names.union(*(model.environment for model in models)))


def guarded(hub: Hub) -> Iterator[Finding]:
    """Yield what lets `.env` get lost or seen: missing, too open, in Git."""
    env = hub.folder / FILE
    if env.is_dir():
        try:
            config.env_text(env)
        except SettingsError as error:
            yield _finding("env.folder", Severity.ERROR, error.message, error.hint)
    elif not env.is_file():
        yield _finding(
            "env.missing",
            Severity.ERROR,
            f"{env} does not exist",
            "restore it from a snapshot: iotops restore --into DIR",
        )
    elif mode := files.open_mode(env):
        yield too_open("env.open", FILE, env, mode)
    yield from _in_git(hub)


def _in_git(hub: Hub) -> Iterator[Finding]:
    try:
        tree = Worktree(hub.folder, owner=hub.owner)
        if not tree.exists():
            return
        if tree.tracked(FILE):
            yield _finding(
                "env.tracked",
                Severity.ERROR,
                f"{FILE} is under Git: its secrets go wherever the repository goes",
                f"take it out: git -C {hub.folder} rm --cached {FILE}; then change the secrets",
            )
            return
        if not tree.ignored(FILE):
            yield _finding(
                "env.unignored",
                Severity.ERROR,
                f"{FILE} is not ignored by Git: the next commit of everything takes it along",
                f"ignore it: echo {FILE} >> {hub.folder}/.gitignore",
            )
        if tree.log(1, paths=[FILE]):
            yield _finding(
                "env.history",
                Severity.WARNING,
                f"{FILE} was committed once: its secrets of then are in the repository's history",
                "change those secrets; a history that was pushed cannot be called back",
            )
    except ProgramMissing:  # a hub without Git; whoever needs it says so
        return
    except GitError as error:
        yield _finding("env.git", Severity.WARNING, error.message, error.hint)


def too_open(code: str, subject: str, path: Path, mode: int) -> Finding:
    """Give the finding for a secret file that others can read."""
    text = f"{path} can be read by others (mode {mode:04o})"
    return Finding(code, Severity.ERROR, subject, text, f"chmod 600 {path}")


def _finding(code: str, severity: Severity, message: str, hint: str) -> Finding:
    return Finding(code, severity, FILE, message, hint)
