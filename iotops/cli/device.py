"""Commands about the broker's devices: add, list, rotate, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from iotops.cli.common import (
    USUAL,
    confirm,
    exits,
    hub_option,
    open_hub,
    output_options,
    screen,
)
from iotops.errors import Exit

if TYPE_CHECKING:
    from iotops.actions.deviceplan import Listing
    from iotops.actions.devices import Changed
    from iotops.cli.render import Screen

CHANGES = exits(*USUAL, Exit.DIFFERENT, Exit.LOCKED, Exit.INTERRUPTED)
CURES = {
    "no password": "iotops device rotate {0}",
    "not declared": "iotops device remove {0}; then, if it is one: iotops device add {0}",
}


@click.group()
def device() -> None:
    """Devices with a login of their own at the broker.

    \b
    Example: iotops device add kitchen
    """


@device.command(epilog=CHANGES)
@click.argument("name")
@click.option("--prefix", default="", metavar="TOPIC", help="Its own topic; else devices/NAME.")
@click.option(
    "--commands", default="", metavar="TOPIC", help="Where it reads commands; else commands/NAME."
)
@hub_option
@output_options
def add(
    name: str, prefix: str, commands: str, hub_folder: Path | None, as_json: bool, quiet: bool
) -> None:
    """Give a new device a login and its own topics; the broker restarts.

    The password is shown once, also with `--quiet`, and kept nowhere but as a hash.

    \b
    Example: iotops device add kitchen
    Example: iotops device add kitchen --prefix home/kitchen
    """
    from iotops.actions import devices as action

    out = screen(as_json, quiet)
    _told(out, action.add(open_hub(hub_folder), name, prefix, commands, out.report))


@device.command(epilog=CHANGES)
@click.argument("name")
@hub_option
@output_options
def rotate(name: str, hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Give a device another password; the old one is refused from then on.

    \b
    Example: iotops device rotate kitchen
    """
    from iotops.actions import devices as action

    out = screen(as_json, quiet)
    _told(out, action.rotate(open_hub(hub_folder), name, out.report))


@device.command(epilog=CHANGES)
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@hub_option
@output_options
def remove(name: str, yes: bool, hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Take a device's login and rights away; what it has published stays.

    \b
    Example: iotops device remove kitchen --yes
    """
    from iotops.actions import devices as action

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    confirm(f"Take the login of {name} away? It needs a new password to come back.", yes=yes)
    _told(out, action.remove(hub, name, out.report))


@device.command("list", epilog=exits(*USUAL, Exit.DIFFERENT))
@click.option("--exit-code", is_flag=True, help="Exit 4 where files and declaration differ.")
@hub_option
@output_options
def list_(exit_code: bool, hub_folder: Path | None, as_json: bool, quiet: bool) -> int:
    """List the devices, and where declaration, passwords and rights differ.

    \b
    Example: iotops device list --exit-code
    """
    from iotops.actions import devices as action

    out = screen(as_json, quiet)
    found = action.listing(open_hub(hub_folder))
    out.document(found, _lines(found))
    return Exit.DIFFERENT if exit_code and found.drifted else Exit.DONE


def _lines(found: Listing) -> list[str]:
    from iotops.cli import render

    head = ("name", "prefix", "commands", "login")
    rows = [(one.name, one.prefix or "-", one.commands or "-", one.state) for one in found.devices]
    lines = render.table(head, rows) if rows else ["no users; the first: iotops device add NAME"]
    for one in found.devices:
        if one.state in CURES:
            lines.append(f"{one.name}: {one.state}; next: {CURES[one.state].format(one.name)}")
    if found.rights == "edited":
        lines.append("the devices' rights were edited by hand: the next change says where")
    elif found.rights == "stale":
        lines.append("the devices' rights are not those declared; each change sets them")
    return lines


def _told(out: Screen, done: Changed) -> None:
    """Say what was done, and the password, which nobody can ask for again."""
    password = done.password.reveal() if done.password is not None else None
    verb = {"add": "has a login now", "rotate": "has another password now"}.get(
        done.verb, "has no login any more; what it has published stays"
    )
    lines = [f"{done.device} {verb}" + ("" if done.tested else " (not tested)")]
    if password is not None:
        lines += [
            f"it may write and read below {done.prefix}, and reads commands below {done.commands}",
            f"user {done.device}, password, shown only now:",
        ]
    out.result(
        {
            "verb": done.verb,
            "device": done.device,
            "prefix": done.prefix,
            "commands": done.commands,
            "password": password,
            "tested": done.tested,
            "commit": done.commit,
        },
        lines,
    )
    if password is not None and not out.json:
        click.echo(password)


COMMANDS = (device,)
