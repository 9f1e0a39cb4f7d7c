"""Commands about the repository's upkeep: retention, prune, check."""

from __future__ import annotations

from pathlib import Path

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


@click.command(epilog=exits(*USUAL, *REPOSITORY, Exit.INTERRUPTED))
@click.option("--apply", is_flag=True, help="Forget what the plan lets go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--copy", metavar="COPY", help="Show it for this copy, by the copy's own rules.")
@hub_option
@output_options
def retention(
    apply: bool,
    yes: bool,
    copy: str | None,
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Show which snapshots stay by [retention] in the settings, and which would go, and why.

    A backup applies it by itself, once a day at most, to copies as well. Forgetting frees no space:
    iotops prune.

    \b
    Example: iotops retention
    Example: iotops retention --apply
    """
    from iotops.actions import retention as action
    from iotops.cli import render

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    if copy is not None:
        if apply:
            raise UsageError(
                "a copy's retention is applied after a copy, not by hand",
                hint=f"iotops copy {copy}",
            )
        hub = hub.at_copy(copy)
    hub.guard()  # restic's cache lies on the data root
    decided = action.show(hub)
    gone = {one.id for one in decided.remove}
    listed = sorted((*decided.keep, *decided.remove), key=lambda one: one.time)
    listing = [
        {
            "id": one.id,
            "time": one.time,
            "outcome": getattr(action.outcome(one), "value", "unknown"),
            "fate": "goes" if one.id in gone else "stays",
            "why": decided.reasons[one.id],
        }
        for one in listed
    ]
    rows = [
        (
            one.id[:8],
            f"{one.time:%Y-%m-%d %H:%M} UTC",
            str(row["outcome"]),
            str(row["fate"]),
            str(row["why"]),
        )
        for one, row in zip(listed, listing, strict=True)
    ]
    lines = render.table(("snapshot", "time", "outcome", "fate", "why"), rows)
    lines.append(f"{len(decided.keep)} stay, {len(gone)} go")
    if decided.refused:
        lines += [f"nothing may be forgotten now: {decided.refused}", f"next: {decided.hint}"]
    if not apply:
        document = {"snapshots": listing, "refused": decided.refused, "hint": decided.hint}
        out.document(document, lines)
        return Exit.FAILED if decided.refused else Exit.DONE
    for line in lines:
        out.say(line)
    if gone:
        confirm(f"Forget {len(gone)} snapshots for good?", yes=yes)
    done = action.apply(hub, only=gone, report=out.report)
    out.result(done, [f"{len(done.forgotten)} snapshots forgotten, {done.stay} stay"])
    return Exit.DONE


@click.command(epilog=exits(*USUAL, *REPOSITORY, Exit.INTERRUPTED))
@click.option(
    "--max-unused",
    default="10%",
    show_default=True,
    metavar="AMOUNT",
    help="How much unused data may stay, so that less is written anew: 10%, 500M, unlimited.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@hub_option
@output_options
def prune(max_unused: str, yes: bool, hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Free the space of what no snapshot needs any more; rare, once a month is plenty.

    Refused after a check that failed.

    \b
    Example: iotops prune
    """
    from iotops.actions import upkeep

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    confirm("Remove data of forgotten snapshots for good?", yes=yes)
    done = upkeep.prune(hub, max_unused=max_unused, report=out.report)
    freed = done.freed or "no more than restic said"
    out.result(done, [f"freed: {freed}, {done.seconds:.1f} s"])


@click.command(epilog=exits(*USUAL, *REPOSITORY, Exit.INTERRUPTED))
@click.option("--all", "everything", is_flag=True, help="Read all of the data, not the next part.")
@click.option(
    "--parts",
    default=30,
    show_default=True,
    type=click.IntRange(1, 256),
    help="In how many parts the data is read, one in each run.",
)
@hub_option
@output_options
def check(
    everything: bool, parts: int, hub_folder: Path | None, as_json: bool, quiet: bool
) -> None:
    """Check the repository, and read the next part of its data in a rotation.

    Nothing is repaired. On damage the next steps are printed, and nothing is forgotten or pruned
    until a check of the same data finds it whole.

    \b
    Example: iotops check
    Example: iotops check --all
    """
    from iotops.actions import upkeep

    out = screen(as_json, quiet)
    done = upkeep.check(open_hub(hub_folder), parts=parts, everything=everything, report=out.report)
    what = "all of the data" if done.scope == upkeep.ALL else f"part {done.scope} of the data"
    out.result(done, [f"no damage found: structure and {what}, {done.seconds:.1f} s"])


COMMANDS = (retention, prune, check)
