"""Commands about the hub itself: init, up, down, ps, logs, status, doctor."""

from __future__ import annotations

from pathlib import Path

import click

from iotops.cli.common import (
    USUAL,
    exits,
    hub_option,
    open_hub,
    output_options,
    screen,
)
from iotops.errors import Exit


@click.command(epilog=exits(*USUAL, Exit.LOCKED, Exit.INTERRUPTED))
@click.argument("services", nargs=-1)
@hub_option
@output_options
def up(services: tuple[str, ...], hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Start the stack and wait until every service really answers.

    \b
    Example: iotops up
    """
    from iotops.actions import stack
    from iotops.cli import render

    out = screen(as_json, quiet)
    done = stack.up(open_hub(hub_folder), services, out.report)
    rows = [(one.service, one.version, one.image) for one in done]
    out.result({"services": done}, render.table(("service", "version", "image"), rows))


@click.command(epilog=exits(*USUAL, Exit.LOCKED, Exit.INTERRUPTED))
@hub_option
@output_options
def down(hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Stop the stack and remove its containers; the data stays.

    \b
    Example: iotops down
    """
    from iotops.actions import stack

    out = screen(as_json, quiet)
    stack.down(open_hub(hub_folder), out.report)
    out.result({"down": True}, ["the stack is down; the data stays"])


@click.command(epilog=exits(*USUAL))
@hub_option
@output_options
def ps(hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """List the containers of the stack.

    \b
    Example: iotops ps
    """
    from iotops.cli import render

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    hub.stack.require()
    found = hub.stack.containers()
    rows = [
        (name, one.state, one.health or "-", str(one.restart_count), one.image)
        for name, one in sorted(found.items())
    ]
    listing = [
        {
            "service": name,
            "state": one.state,
            "health": one.health,
            "restarts": one.restart_count,
            "image": one.image,
        }
        for name, one in sorted(found.items())
    ]
    head = ("service", "state", "health", "restarts", "image")
    none = ["no containers; start them with: iotops up"]
    out.document(listing, render.table(head, rows) if rows else none)


@click.command(epilog=exits(*USUAL))
@click.argument("service")
@click.option("--lines", default=50, show_default=True, help="How many of the last lines.")
@hub_option
@output_options
def logs(service: str, lines: int, hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Show the last lines of a service's log.

    \b
    Example: iotops logs nodered --lines 20
    """
    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    hub.stack.require()
    found = hub.stack.logs(hub.service(service).place.container, lines)
    out.document({"service": service, "lines": found}, found)


@click.command(epilog=exits(*USUAL))
@hub_option
@output_options
def status(hub_folder: Path | None, as_json: bool, quiet: bool) -> int:
    """Tell how the hub stands, from the records; quick, and also when the disk is gone.

    \b
    Example: iotops status
    """
    from iotops.actions.status import status as action
    from iotops.cli import render
    from iotops.model import Severity

    out = screen(as_json, quiet)
    found = action(open_hub(hub_folder))
    lines = [f"hub {found.hub} in {found.folder}, data in {found.root}"]
    rows = [
        (
            one.action,
            one.outcome,
            render.age(one.time),
            render.age(one.good),
            one.snapshot[:8] or "-",
        )
        for one in found.last
    ]
    head = ("last run of", "ended", "age", "last complete", "snapshot")
    lines += render.table(head, rows) if rows else ["nothing has run yet; start: iotops backup"]
    for one in found.last:
        if one.message and one.outcome != "complete":
            lines.append(f"{one.action} {one.outcome}: {one.message}")
            lines.append(f"    next: {_again(one.action)}")
    lines += render.table(("service", "in the last backup"), [*found.services.items()])
    if found.copies:
        each = [
            (one.name, one.outcome or "never tried", render.age(one.good), one.snapshot[:8] or "-")
            for one in found.copies
        ]
        lines += render.table(("copy", "last attempt", "last good", "snapshot there"), each)
    if found.free is not None:
        lines.append(f"{render.size(found.free)} free on the data root")
    lines += render.old_data(found.aside)
    if found.aside:
        swap = f"swap a restore's back: {found.undo}" if found.undo else f"see {found.replaced}"
        lines.append(f"{swap}; remove it now: iotops undo --discard")
    if found.kit_made or found.kit_proven:
        made, proven = render.age(found.kit_made), render.age(found.kit_proven)
        lines.append(f"recovery kit: made {made}, last proven {proven}")
    if found.sync:
        at = found.sync.get("commit", "")[:8] or "no commit yet"
        drift = found.sync.get("drift") or (
            "see below" if found.sync.get("finding") else "equal to Git"
        )
        lines.append(f"sync: at {at}; {drift} ({render.age(found.sync.get('looked', ''))})")
    if found.running:
        lines.append(f"running now: {found.running}")
    lines += render.findings(found.findings)
    out.document(found, lines)
    bad = any(one.severity is Severity.ERROR for one in found.findings)
    return Exit.FAILED if bad else Exit.DONE


@click.command(epilog=exits(*USUAL, Exit.INTERRUPTED))
@hub_option
@output_options
def doctor(hub_folder: Path | None, as_json: bool, quiet: bool) -> int:
    """Look for what would spoil a backup or a restore, and say what to do.

    \b
    Example: iotops doctor
    """
    from iotops.actions.doctor import examine
    from iotops.cli import render
    from iotops.model import Severity

    out = screen(as_json, quiet)
    found = examine(open_hub(hub_folder), out.report)
    bad = [one for one in found if one.severity is Severity.ERROR]
    last = f"{len(found)} findings, {len(bad)} errors" if found else "nothing found"
    out.result({"findings": found}, [*render.findings(found), last])
    return Exit.FAILED if bad else Exit.DONE


def _again(action: str) -> str:
    """Name the commands after a run that did not end well."""
    command = {
        "device": "device list",
        "export": "export influx DIR",
        "flows-pull": "flows pull",
        "restore": "restore latest",
        "retention": "backup",
        "sync": "sync apply",
    }
    return f"look: iotops doctor; then again: iotops {command.get(action, action)}"


COMMANDS = (up, down, ps, logs, status, doctor)
