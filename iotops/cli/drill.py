"""The command that rehearses a restore."""

from __future__ import annotations

from pathlib import Path

import click

from iotops.cli.common import REPOSITORY, USUAL, exits, hub_option, open_hub, output_options, screen
from iotops.errors import Exit


@click.command(epilog=exits(*USUAL, Exit.PARTIAL, *REPOSITORY, Exit.SKIPPED, Exit.INTERRUPTED))
@click.argument("snapshot", default="latest")
@click.option("--service", "services", multiple=True, metavar="NAME", help="Only this service.")
@click.option("--list", "ledger", is_flag=True, help="Show the drills on record, and do nothing.")
@hub_option
@output_options
def drill(
    snapshot: str,
    services: tuple[str, ...],
    ledger: bool,
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Rehearse a restore: start the newest snapshot beside the hub, compare, remove it again.

    Each service runs in a container of its own, on a network that leads nowhere: no port is
    published, no task runs, flows stand still. Nothing of the hub is stopped or changed.
    With --service, exit 0 tells of these services only; the ledger calls that drill partial.

    \b
    Example: iotops drill
    Example: iotops drill --service influxdb
    """
    from iotops.actions import drill as action
    from iotops.actions import extract, restore
    from iotops.cli import render
    from iotops.model import Outcome

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    if ledger:
        entries = action.ledger(hub)
        rows = [
            (
                one.started[:16].replace("T", " "),
                one.snapshot[:8],
                one.outcome,
                f"{one.rto_seconds} s" if one.rto_seconds else "-",
                render.size(int(one.disk)) if one.disk else "-",
                render.size(int(one.memory)) if one.memory else "-",
                render.size(int(one.restic_memory)) if one.restic_memory else "-",
                one.compared or "-",
                one.message or ", ".join(one.services),
            )
            for one in entries
        ]
        head = (
            "started (UTC)",
            "snapshot",
            "outcome",
            "took",
            "disk",
            "memory",
            "restic",
            "numbers",
            "what",
        )
        out.document(entries, render.table(head, rows) if rows else ["no drill yet: iotops drill"])
        return Exit.DONE
    chosen = restore.choose(hub, snapshot)
    made = extract.read_manifest(hub.repository, chosen.id)
    done = action.drill(
        hub, chosen, made, wanted=services, stale=snapshot != "latest", report=out.report
    )
    found = [
        (
            one.service,
            "as recorded" if one.good else "DIFFERS",
            f"{one.compared}",
            f"{one.seconds:.1f} s",
            render.size(one.disk),
            render.size(one.memory),
        )
        for one in done.services
    ]
    lines = render.table(("service", "found", "numbers", "took", "disk", "memory"), found)
    lines.append(
        f"drill of {chosen.id[:8]}: {'FAILED' if done.outcome is Outcome.FAILED else 'good'},"
        f" {done.rto_seconds:.1f} s for {len(done.services)} services;"
        f" restic took {render.size(done.restic_memory)} of memory at most"
    )
    missing = {} if services else made.missing()
    lines += [f"not in it: {name}: {why}" for name, why in missing.items()]
    out.result(done, lines)
    if done.outcome is Outcome.FAILED:
        return Exit.FAILED
    return Exit.PARTIAL if missing else Exit.DONE


COMMANDS = (drill,)
