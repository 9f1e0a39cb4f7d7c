"""The command that shows the main job on a hub of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iotops.cli.common import USUAL, exits, output_options, screen, with_sudo
from iotops.errors import Exit, IotopsError, UsageError

if TYPE_CHECKING:
    from iotops.demo.story import Shown
    from iotops.events import Event


@click.command(epilog=exits(*USUAL, Exit.INTERRUPTED))
@click.option("--keep", is_flag=True, help="Leave the hub as it is at the end.")
@click.option(
    "--override",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A Compose file that is merged over the hub's, for other images.",
)
@click.option(
    "--remove",
    "left",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Only remove what an earlier demo left there.",
)
@click.option(
    "--before-judging",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    hidden=True,
    help="A program to run between the restore and the judges.",
)
@output_options
def demo(
    keep: bool,
    override: Path | None,
    left: Path | None,
    before_judging: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Make a hub, back it up, destroy its disk, restore it, and compare.

    On a temporary disk, project and ports of its own; everything is removed again. Needs root,
    since each service owns its files. Another place than /var/tmp: IOTOPS_DEMO_DIR.

    \b
    Example: sudo iotops demo
    """
    if os.geteuid() != 0:
        raise UsageError(
            "the demo needs root: each service's data belongs to a user of its own; nothing was"
            " changed",
            hint=with_sudo(),
        )
    out = screen(as_json, quiet)
    if left is not None:
        from iotops.demo import ground

        ground.remove(ground.find(left))
        out.result({"removed": left}, [f"{left} is removed"])
        return Exit.DONE
    from iotops.cli.render import show_error
    from iotops.demo.story import FAILED, VERIFIED, Chapter, show

    def report(event: Event) -> None:
        if isinstance(event, Chapter):
            out.say("\n" + click.style(event.title.capitalize(), bold=True))
        out.report(event)

    try:
        shown = show(override=override, keep=keep, before_judging=before_judging, report=report)
    except IotopsError as error:
        if not isinstance(error, UsageError):
            out.result({"outcome": FAILED, "services": {}, "error": error.message})
        raise
    out.result(shown, _lines(shown))
    if shown.outcome == VERIFIED:
        return Exit.DONE
    message = "not everything came back as it was: " + "; ".join(_differences(shown))
    show_error(message, "look at it: iotops demo --keep", Exit.FAILED, json=as_json)
    return Exit.FAILED


def _differences(shown: Shown) -> list[str]:
    found = [
        f"{name}: {check}: {one.detail}"
        for name, verdict in shown.services.items()
        for check, one in verdict.checks.items()
        if not one.equal
    ]
    return found + [f"by the manifest: {text}" for text in shown.faults]


def _lines(shown: Shown) -> list[str]:
    """Lay the comparison out: checks by service, times, bytes, the last word."""
    from iotops.cli import render

    rows = [
        (
            name + (" (stand-in)" if name in shown.stand_ins else ""),
            check,
            "equal" if found.equal else "DIFFERENT",
            found.detail,
        )
        for name, verdict in shown.services.items()
        for check, found in verdict.checks.items()
    ]
    lines = ["", *render.table(("service", "compared", "", "what"), rows), ""]
    lines += render.table(
        ("service", "image", "by the manifest"),
        [
            (name, image, shown.restored.get(name, "not restored"))
            for name, image in shown.images.items()
        ],
    )
    lines += ["", *render.table(("part", "seconds"), _numbers(shown)), ""]
    lines += render.table(
        ("data", "size"), [(name, render.size(number)) for name, number in shown.bytes.items()]
    )
    lines.append("")
    for name in shown.stand_ins:
        lines.append(f"{name} is the lab's stand-in here, not the real server")
    if shown.kept:
        lines.append(f"kept in {shown.kept}: iotops status --hub {shown.kept}/hub")
        lines.append(f"remove it: sudo iotops demo --remove {shown.kept}")
    lost = "disk lost" if shown.disk == "loop" else "data root (a plain folder) lost"
    lines.append(
        f"{shown.outcome}: {lost}, and everything back and checked after {shown.rto_seconds:.1f} s"
        if shown.outcome == "verified"
        else f"{shown.outcome}: not everything came back as it was"
    )
    return lines


def _numbers(shown: Shown) -> list[tuple[str, str]]:
    rows = [(name, f"{seconds:8.1f}") for name, seconds in shown.seconds.items()]
    return [*rows, ("RTO: disk lost to all checks done", f"{shown.rto_seconds:8.1f}")]


COMMANDS = (demo,)
