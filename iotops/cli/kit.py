"""The command for the recovery kit on paper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iotops.cli.common import (
    REPOSITORY,
    USUAL,
    confirm,
    exits,
    hub_option,
    open_hub,
    output_options,
    screen,
)
from iotops.errors import Exit, UsageError

if TYPE_CHECKING:
    from iotops.cli.render import Screen
    from iotops.hub import Hub

TRIES = 3
"""How often a slip of the fingers may be corrected on a terminal."""


@click.command(epilog=exits(*USUAL, Exit.PARTIAL, *REPOSITORY, Exit.INTERRUPTED))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where kit.html and kit.txt go; without it into memory, gone at the next boot.",
)
@click.option("--replace", is_flag=True, help="Remove the keys of older papers of this hub.")
@click.option(
    "--verify",
    "proving",
    is_flag=True,
    help="Ask for the password from paper (or read it from standard input) and open with it.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@hub_option
@output_options
def kit(
    output: Path | None,
    replace: bool,
    proving: bool,
    yes: bool,
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Write the recovery kit: the page on paper that a fresh machine needs; or prove it.

    The page has a password of its own, a key that is added to the repository and stands nowhere
    else. `iotops status` says when it was last proven.

    \b
    Example: iotops kit
    Example: iotops kit --verify
    """
    from iotops.actions import kit as action

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    if proving:
        if output is not None or replace:
            raise UsageError(
                "--verify makes no kit: --output and --replace do not go with it",
                hint="iotops kit --verify",
            )
        return _verify(out, hub)
    if replace:
        confirm("Make a new kit, and let no older paper open the repository any more?", yes=yes)
    made = action.make(hub, output=output, replace=replace, report=out.report)
    lines = [f"written: {made.html}", f"         {made.text}"]
    lines += [f"not on it: the copy {name}: {why}" for name, why in made.left_out.items()]
    lines += [f"the key of an older paper was removed: {one[:8]}" for one in made.removed]
    lines += [f"a key that a broken-off kit left was removed: {one[:8]}" for one in made.orphans]
    if made.own:
        lines.append(
            f"the hub itself opens the repository with a password from paper (key {made.own[:8]}),"
            " which therefore stays"
        )
    if made.older:
        some = ", ".join(one[:8] for one in made.older)
        lines.append(f"older papers still open the repository (keys {some}): iotops kit --replace")
    lines += [
        f"its password (key {made.key[:8]}) stands nowhere else: print it, then remove the files",
        "then prove it, from the paper: iotops kit --verify",
    ]
    out.result(made, lines)
    return Exit.PARTIAL if made.left_out else Exit.DONE


def _verify(out: Screen, hub: Hub) -> int:
    from iotops.actions import kit as action
    from iotops.actions import paper

    asked = sys.stdin.isatty()
    for left in reversed(range(TRIES if asked else 1)):
        if asked:
            words = "The password, as it stands on the paper"
            typed = click.prompt(words, hide_input=True, err=True)
        else:
            typed = sys.stdin.readline()
        try:
            proven = action.verify(hub, typed, out.report)
            break
        except paper.Mistyped as slip:
            if not left:
                raise
            out.say(slip.message)
    lines = [
        f"the paper opens the repository {proven.repository[:10]} (key {proven.key[:8]}); the"
        f" snapshot {proven.snapshot[:8]} of {proven.taken:%Y-%m-%d %H:%M} UTC was read with it"
    ]
    for name, why in proven.copies.items():
        lines.append(f"the copy {name} was NOT opened: {why}" if why else f"and the copy {name}")
    if not proven.newest:
        lines.append("it is an older paper: the newest kit has not been proven by this")
    out.result(proven, lines)
    return Exit.FAILED if any(proven.copies.values()) else Exit.DONE


COMMANDS = (kit,)
