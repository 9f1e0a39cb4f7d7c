"""Commands that hand data out in a vendor's own form."""

from __future__ import annotations

from pathlib import Path

import click

from iotops.cli.common import USUAL, exits, hub_option, open_hub, output_options, screen
from iotops.errors import Exit


@click.group()
def export() -> None:
    """Hand out a service's data in its vendor's own form.

    \b
    Example: iotops export influx /mnt/usb/influx-today
    """


@export.command(epilog=exits(*USUAL, Exit.LOCKED, Exit.INTERRUPTED))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--service", default="", metavar="NAME", help="Which InfluxDB, if there are several.")
@hub_option
@output_options
def influx(folder: Path, service: str, hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Write InfluxDB's data into an empty folder that `influx restore --full` takes.

    The server runs on. Tokens, users and tasks are in it: keep it as you keep the hub's secrets.

    \b
    Example: iotops export influx /mnt/usb/influx-today
    """
    from iotops.actions import export as action
    from iotops.cli import render

    out = screen(as_json, quiet)
    done = action.influx(open_hub(hub_folder), folder, service=service, report=out.report)
    made = done.exported
    out.result(
        done,
        [
            f"{made.shards} shards, {render.size(made.bytes)}, are in {done.folder}"
            f" ({done.seconds:.1f} s)",
            f"next: influx restore --full --operator-token TOKEN {done.folder}",
        ],
    )


COMMANDS = (export,)
