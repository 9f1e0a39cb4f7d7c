"""Commands about what Git holds: flows, and the hook that keeps secrets out."""

from __future__ import annotations

from pathlib import Path

import click

from iotops.cli.common import USUAL, exits, hub_option, open_hub, output_options, screen
from iotops.errors import Exit


@click.group()
def flows() -> None:
    """Node-RED's flows in Git.

    \b
    Example: iotops flows pull
    """


@flows.command(epilog=exits(*USUAL, Exit.DIFFERENT, Exit.LOCKED, Exit.SKIPPED, Exit.INTERRUPTED))
@click.option("--allow-empty", is_flag=True, help="An empty set of flows is meant.")
@click.option("--accept-shrink", is_flag=True, help="Losing more than half of the nodes is meant.")
@click.option(
    "--accept",
    "accepted",
    multiple=True,
    metavar="NODE.KEY",
    help="What looks like a secret at this place is none.",
)
@click.option("--push/--no-push", default=None, help="Send the branch to its remote.")
@hub_option
@output_options
def pull(
    allow_empty: bool,
    accept_shrink: bool,
    accepted: tuple[str, ...],
    push: bool | None,
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fetch the flows, prove their revision, and commit them when they changed.

    \b
    Example: iotops flows pull
    """
    from iotops.actions import flows as action

    out = screen(as_json, quiet)
    done = action.pull(
        open_hub(hub_folder),
        allow_empty=allow_empty,
        allow_shrink=accept_shrink,
        accepted=accepted,
        push=push,
        report=out.report,
    )
    where = f"commit {done.commit[:8]}: {done.summary}" if done.commit else "nothing changed"
    lines = [f"{where} (revision {done.revision[:8]})"]
    if done.push_failure:
        lines += [f"not pushed: {done.push_failure}", f"next: {done.hint}"]
    out.result(done, lines)
    return done.exit


@click.group(hidden=True)
def hook() -> None:
    """What the hub's Git hooks call."""


@hook.command("pre-commit", epilog=exits(*USUAL))
def pre_commit() -> int:
    """Refuse a commit that would hold secrets or running state.

    Reads the paths of the commit from standard input, as `git diff --cached --name-only -z` writes
    them.

    \b
    Example: git diff --cached --name-only -z | iotops hook pre-commit
    """
    import sys

    from iotops.actions import hooks
    from iotops.cli import render

    found = hooks.refused_in_git(hooks.staged(sys.stdin.buffer.read()))
    for line in render.findings(found):
        click.echo(render.harmless(line), err=True)
    return Exit.FAILED if found else Exit.DONE


COMMANDS = (flows, hook)
