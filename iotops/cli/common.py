"""What all commands share: options, the paragraph of exit codes, opening the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from iotops.errors import EXIT_MEANING, Exit, UsageError

if TYPE_CHECKING:
    from iotops.cli.render import Screen
    from iotops.hub import Hub

F = TypeVar("F", bound=Callable[..., object])


def exits(*codes: Exit) -> str:
    """Give the paragraph of exit codes for a command's help."""
    shown = (Exit.DONE, *codes)
    lines = [f"  {code.value:<4} {EXIT_MEANING[code]}" for code in shown]
    return "\b\nExit codes:\n" + "\n".join(lines)


EXIT_EPILOG = exits(*(code for code in Exit if code is not Exit.DONE))

USUAL = (Exit.FAILED, Exit.USAGE)
REPOSITORY = (Exit.NO_REPOSITORY, Exit.LOCKED, Exit.WRONG_PASSWORD)


def hub_option(function: F) -> F:
    """Add `--hub DIR`."""
    return click.option(
        "--hub",
        "hub_folder",
        type=click.Path(path_type=Path, file_okay=False),
        help="The hub folder; else IOTOPS_HUB, the current folder upward, /etc/iotops/hub.",
    )(function)


def from_option(function: F) -> F:
    """Add `--from COPY`."""
    return click.option(
        "--from", "source", metavar="COPY", help="Read this copy instead of the repository."
    )(function)


def output_options(function: F) -> F:
    """Add `--json` and `--quiet`."""
    function = click.option("--quiet", is_flag=True, help="Say nothing but errors.")(function)
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(function)


def screen(as_json: bool, quiet: bool) -> Screen:
    """Give the place where a command's words go."""
    from iotops.cli.render import Screen

    return Screen(json=as_json, quiet=quiet)


def open_hub(folder: Path | None, source: str | None = None) -> Hub:
    """Open the hub that is meant, with a copy in the place of its repository where one is named."""
    from iotops.hub import Hub

    hub = Hub.open(folder)
    return hub if source is None else hub.at_copy(source)


def with_sudo() -> str:
    """Give the command line as it was typed, with sudo before it."""
    import shlex
    import sys

    program = Path(sys.argv[0])
    own = [sys.executable, "-m", "iotops"] if program.name == "__main__.py" else [str(program)]
    return shlex.join(["sudo", *own, *sys.argv[1:]])


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is replaced; only a terminal is asked, and on standard error.

    Raises:
        UsageError: nobody can be asked, and `--yes` was not given.
        click.Abort: the answer was no.
    """
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is here to confirm this", hint="say it with --yes")
    click.confirm(question, abort=True, err=True)
