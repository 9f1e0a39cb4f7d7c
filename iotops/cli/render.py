"""How things look: events, tables, plans, findings and errors, as text or as JSON.

One document for a listing, one JSON line for each event of long work and a last line of type
`result`. On a terminal a line shows what goes on; elsewhere plain lines tell what is done.
`NO_COLOR` is honoured. Not here: what is shown.
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iotops.errors import Exit, IotopsError
from iotops.events import (
    Event,
    Moved,
    Noted,
    Report,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    silent,
)
from iotops.model import Finding, Plan, Severity

if TYPE_CHECKING:
    from iotops.actions.aside import OldData
    from iotops.actions.copies import Copied

MARKS = {"info": "·", "warning": "!", "error": "✗"}
COLOURS = {"info": "blue", "warning": "yellow", "error": "red"}

STEERING = re.compile(
    r"\x1b(?!\[[0-79;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
"""What steers a terminal or turns the order of letters; plain colours do not (8 hides text)."""


def harmless(text: str) -> str:
    """Write what steers a terminal as its code: names come from snapshots, files and servers."""
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


class AnswerLost(IotopsError):
    """What a command had to say could not be written; its work is not at fault."""


class Screen:
    """Where a command's words go.

    Args:
        json: machines read it. quiet: nothing but errors (and the result, with json).
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.live = not json and not quiet and sys.stderr.isatty()
        self._line = False
        self._lost: AnswerLost | None = None

    # -- events ---------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """Show one event; a target for `report=`.

        Whoever read our output may have gone (`iotops backup | head`): the work goes on silently,
        it must not fail because nobody listens.
        """
        if self.quiet:
            return
        try:
            self._show(event)
        except BrokenPipeError:
            self._unheard()
        except AnswerLost as error:
            self._lost = error
            self._unheard()

    def _unheard(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _show(self, event: Event) -> None:
        if self.json:
            kind = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
            self._out({"message_type": kind, **_plain_dict(event)})
            return
        match event:
            case RunStarted():
                pass
            case StepStarted(step, service):
                self._status(f"{_what(step, service)} ...")
            case Moved(step, done, total, service):
                share = f" {100 * done // total} %" if total else ""
                self._status(f"{_what(step, service)}{share} ({size(done)})")
            case Noted(level, text, service):
                self.say(_mark(level) + " " + (f"{service}: " if service else "") + text)
            case StepFinished(step, seconds, service, error):
                mark = _mark("error") if error else click.style("✓", fg="green")
                self.say(f"{mark} {_what(step, service):<34} {seconds:7.2f} s")
            case RunFinished():
                self._status("")
            case _:
                pass

    def _status(self, text: str) -> None:
        if self.live:
            click.echo("\r\x1b[K" + harmless(text)[: _width() - 1], nl=False, err=True)
            self._line = bool(text)

    # -- words ----------------------------------------------------------------------------------

    def say(self, text: str = "") -> None:
        """Print a line for a person."""
        if self.quiet or self.json:
            return
        if self._line:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._line = False
        self._write(harmless(text))

    def result(self, value: object, lines: Iterable[str] = ()) -> None:
        """Give the last word of long work: lines for a person, one JSON line of type `result`.

        Raises:
            AnswerLost: it, or an event before, could not be written.
        """
        if self._lost is not None:
            raise self._lost
        if self.json:
            document = _plain(value)
            body = document if isinstance(document, dict) else {"value": document}
            self._out({"message_type": "result", **body})
        for line in lines:
            self.say(line)

    def shown(self, kind: str, value: object, lines: Iterable[str], *, asked: bool) -> None:
        """Show what is about to be done: one JSON line of that type, or lines for a person.

        Args:
            asked: a question follows; then a person sees it also with `--quiet`.
        """
        if self.json:
            self._out({"message_type": kind, **_plain_dict(value)})
        for line in lines:
            if asked and (self.quiet or self.json) and sys.stdin.isatty():
                click.echo(harmless(line), err=True, color=_colour())
            else:
                self.say(line)

    def document(self, value: object, lines: Iterable[str]) -> None:
        """Give a listing: lines for a person, one JSON document."""
        if self.json:
            self._write(jsonlib.dumps(_plain(value), indent=2))
            return
        for line in lines:
            self._write(harmless(line))

    def _out(self, document: Mapping[str, object]) -> None:
        self._write(jsonlib.dumps(document))

    def _write(self, line: str) -> None:
        try:
            click.echo(line, color=_colour())
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise AnswerLost(
                f"the answer could not be written: {error.strerror}",
                hint="what was done stands in the record: iotops status",
            ) from error


def without_json(out: Screen) -> Report:
    """Give a listener for work before a listing: one JSON document must stay alone."""
    return silent if out.json else out.report


def _what(step: str, service: str) -> str:
    return f"{step} {service}".strip()


def _mark(level: str) -> str:
    return click.style(MARKS.get(level, "·"), fg=COLOURS.get(level))


def _colour() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None


def _width() -> int:
    try:
        return os.get_terminal_size(2).columns
    except OSError:
        return 100


def show_error(message: str, hint: str, code: Exit, *, json: bool) -> None:
    """Show how a command failed, on standard error."""
    if json:
        document = {
            "message_type": "error",
            "code": int(code),
            "message": message,
            "hint": hint,
        }
        click.echo(jsonlib.dumps(document), err=True)
        return
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    click.echo(click.style("error: ", fg="red") + harmless(message), err=True, color=_colour())
    if hint:
        click.echo(click.style("next:  ", fg="blue") + harmless(hint), err=True, color=_colour())


# -- shapes ---------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay out a table; columns as wide as their widest cell."""
    body = [tuple(str(cell) for cell in row) for row in rows]
    widths = [
        max(len(head[column]), *(len(row[column]) for row in body)) if body else len(head[column])
        for column in range(len(head))
    ]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True))]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in body
    ]
    return [line.rstrip() for line in lines]


def findings(found: Iterable[Finding]) -> list[str]:
    """Lay out findings, the worst first."""
    order = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}
    lines: list[str] = []
    for one in sorted(found, key=lambda finding: order[finding.severity]):
        lines.append(f"{_mark(one.severity.value)} {one.subject}: {one.message}")
        if one.hint:
            lines.append(f"    next: {one.hint}")
    return lines


def plan(decided: Plan) -> list[str]:
    """Lay out a plan: its steps, what replaces something marked."""
    rows = [
        (
            step.kind.value,
            step.service or "-",
            "replaces" if step.destructive else "",
            step.reason,
        )
        for step in decided.steps
    ]
    lines = [f"snapshot {decided.snapshot[:8]}", *table(("step", "service", "", "why"), rows)]
    return lines + findings(decided.findings)


def copies(done: Iterable[Copied]) -> list[str]:
    """Lay out what became of the copies."""
    lines: list[str] = []
    for one in done:
        if one.exit is not Exit.DONE:
            lines.append(f"{one.standing.value}: {one.message}")
            lines += [f"    next: {one.hint}"] if one.hint else []
            continue
        made = ", ".join(f"{there[:8]}" for there in one.snapshots.values())
        said = f"copied as {made}, {one.seconds:.1f} s" if made else "nothing newer to copy"
        gone = f"; {len(one.forgotten)} old ones forgotten there" if one.forgotten else ""
        lines.append(f"copy {one.name}: {said}{gone}")
    return lines


def old_data(kept: Iterable[OldData]) -> list[str]:
    """Lay out what restores have put aside: how much, how old, and when it goes by itself."""
    lines = []
    for one in kept:
        old = age(one.restored) if one.restored else "of unknown age"
        goes = "it stays until you remove it"
        if one.until:
            goes = f"the first complete backup after {one.until[:10]} removes it"
        lines.append(f"old data of {one.run}: {size(one.bytes)}, {old}; {goes}")
    return lines


def size(number: int) -> str:
    """Write a number of bytes for a person, in powers of ten."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age(time: str | datetime, now: datetime | None = None) -> str:
    """Write how long ago something was (a time in UTC)."""
    if not time:
        return "never"
    then = datetime.fromisoformat(time) if isinstance(time, str) else time
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    if seconds < 0:
        return "in the future"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _plain_dict(value: object) -> dict[str, object]:
    document = _plain(value)
    return document if isinstance(document, dict) else {}


def _plain(value: object) -> object:
    """Turn values into what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)
