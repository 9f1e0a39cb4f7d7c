"""The command group about `.env`: what it must hold, and how it is written."""

from __future__ import annotations

from pathlib import Path

import click

from iotops.cli.common import USUAL, exits, hub_option, open_hub, output_options, screen
from iotops.errors import Exit


@click.group()
def env() -> None:
    """Look after the hub's secrets file, .env.

    \b
    Example: iotops env check
    """


@env.command("check", epilog=exits(*USUAL, Exit.INTERRUPTED))
@hub_option
@output_options
def check(hub_folder: Path | None, as_json: bool, quiet: bool) -> int:
    """Find what .env lacks, repeats, leaves open or writes badly; no value is shown.

    Exit code 1 when anything was found.

    \b
    Example: iotops env check
    """
    from iotops.actions.envcheck import examine
    from iotops.cli import render

    out = screen(as_json, quiet)
    found = examine(open_hub(hub_folder), out.report)
    last = f"{len(found)} findings" if found else "nothing found"
    out.result({"findings": found}, [*render.findings(found), last])
    return Exit.FAILED if found else Exit.DONE


COMMANDS = (env,)
