"""Commands that make snapshots and put them back: backup, restore, undo, resume."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iotops.cli.common import (
    REPOSITORY,
    USUAL,
    confirm,
    exits,
    from_option,
    hub_option,
    open_hub,
    output_options,
    screen,
    with_sudo,
)
from iotops.errors import Exit, UsageError

if TYPE_CHECKING:
    from iotops.clients.restic import SnapshotInfo
    from iotops.hub import Hub
    from iotops.model import Manifest


@click.command(epilog=exits(*USUAL, Exit.PARTIAL, *REPOSITORY, Exit.SKIPPED, Exit.INTERRUPTED))
@click.option(
    "--accept-shrink",
    is_flag=True,
    help="Go on although a source became empty or fell under half since the last good backup.",
)
@click.option(
    "--accept-disk",
    is_flag=True,
    help="Go on although the disk does not know of the last good backup: its data is wanted.",
)
@click.option(
    "--accept-clock",
    is_flag=True,
    help="Go on although the last good backup lies in the future: its time was wrong.",
)
@hub_option
@output_options
def backup(
    hub_folder: Path | None,
    accept_shrink: bool,
    accept_disk: bool,
    accept_clock: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Capture every service and save one verified snapshot.

    No service stops for it, but a folder declared as one that is copied cold. Then the snapshot
    is copied to the further repositories of the settings: one that is away makes the exit code
    75, one that fails for another reason 3.

    \b
    Example: iotops backup
    """
    from iotops.actions.backup import back_up
    from iotops.cli import render
    from iotops.model import Accepted

    out = screen(as_json, quiet)
    accepted = Accepted(accept_shrink, accept_disk, accept_clock)
    made = back_up(open_hub(hub_folder), accepted, out.report)
    saved = made.saved
    lines = [
        f"snapshot {made.snapshot[:8]} is {made.outcome.value}: {saved.files} files,"
        f" {render.size(saved.bytes)}, {render.size(saved.data_added)} new, {made.seconds:.1f} s"
    ]
    hints = {record.name: record.hint for record in made.manifest.services}
    for name, why in made.missing.items():
        lines.append(f"missing: {name}: {why}")
        if hints.get(name):
            lines.append(f"  next: {hints[name]}")
    lines += render.copies(made.copies)
    if made.forgotten:
        lines.append(f"old snapshots forgotten: {len(made.forgotten)} (iotops retention)")
    lines += [
        f"old data of {one.run} removed, {render.size(one.bytes)}: this backup is the later one"
        for one in made.discarded
    ]
    out.result(
        {
            "run": made.run,
            "outcome": made.outcome,
            "snapshot": made.snapshot,
            "missing": made.missing,
            "forgotten": made.forgotten,
            "warnings": made.warnings,
            "copies": made.copies,
            "discarded": made.discarded,
            "saved": saved,
            "seconds": made.seconds,
            "services": {
                record.name: {
                    "counts": record.counts,
                    "warnings": record.warnings,
                    "stopped_seconds": record.stopped_seconds,
                    "error": record.error,
                }
                for record in made.manifest.services
            },
        },
        lines,
    )
    return made.exit


@click.command(epilog=exits(*USUAL, Exit.PARTIAL, *REPOSITORY, Exit.SKIPPED, Exit.INTERRUPTED))
@click.argument("names", nargs=-1, metavar="[COPY]...")
@click.option(
    "--snapshot",
    "snapshots",
    multiple=True,
    metavar="ID",
    help="This snapshot of the repository; else all that are newer than the newest there.",
)
@hub_option
@output_options
def copy(
    names: tuple[str, ...],
    snapshots: tuple[str, ...],
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Copy snapshots that further repositories lack, for example after one was away.

    A backup copies its own snapshot by itself. Of one copy alone the exit code tells why it failed.

    \b
    Example: iotops copy
    Example: iotops copy nas --snapshot 1a2b3c4d
    """
    from iotops.actions import copies as action
    from iotops.cli import render

    out = screen(as_json, quiet)
    done = action.catch_up(open_hub(hub_folder), names, snapshots, out.report)
    out.result({"copies": done}, render.copies(done))
    return done[0].exit if len(done) == 1 else action.code(done)


@click.command(epilog=exits(*USUAL, Exit.PARTIAL, *REPOSITORY, Exit.INTERRUPTED))
@click.argument("snapshot", default="latest")
@click.option("--service", "services", multiple=True, metavar="NAME", help="Only this service.")
@from_option
@click.option("--at", metavar="TIME", help="The newest snapshot not later than this (ISO 8601).")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Only extract into this folder; the hub is not touched.",
)
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    help="With --into: only this file or folder of the snapshot, as `iotops ls` shows it.",
)
@click.option("--claim-disk", is_flag=True, help="An empty disk may become this hub's.")
@click.option(
    "--image",
    type=click.Choice(["recorded", "current"]),
    help="Which image shall run where it differs from the recorded one.",
)
@click.option(
    "--accept-ports",
    is_flag=True,
    help="Published ports may be more open than recorded; else that makes the exit code 3.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@hub_option
@output_options
def restore(
    snapshot: str,
    services: tuple[str, ...],
    source: str | None,
    at: str | None,
    into: Path | None,
    paths: tuple[str, ...],
    claim_disk: bool,
    image: str | None,
    accept_ports: bool,
    dry_run: bool,
    yes: bool,
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Put a snapshot back: plan, hash check, exchange, proof.

    Today's data is put aside, not destroyed: `iotops undo` swaps it back.

    \b
    Example: iotops restore latest
    Example: iotops restore 1a2b3c4d --service nodered --dry-run
    Example: iotops restore latest --from nas
    Example: iotops restore latest --into /tmp/look --path nodered/flows.json
    """
    if paths and into is None:
        raise UsageError(
            "--path takes single files out, into a folder: --into is missing",
            hint="iotops restore latest --path PATH --into DIR",
        )
    if into is None and not dry_run and os.geteuid() != 0:
        raise UsageError(
            "a restore needs root: each service's data belongs to a user of its own; nothing was"
            " changed",
            hint=with_sudo(),
        )
    from iotops.actions import extract
    from iotops.actions import restore as action
    from iotops.cli import render
    from iotops.model import Outcome

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder, source)
    chosen, made = _chosen(hub, snapshot, _time(at), docker=into is None)
    if into is not None:
        found = extract.into(
            hub.repository, chosen.id, made, into, services, out.report, paths=paths
        )
        missing = {} if services or paths else made.missing()
        lines = [*render.findings(found), f"snapshot {chosen.id[:8]} is in {into}"]
        lines += [f"not in it: {name}: {why}" for name, why in missing.items()]
        document = {"snapshot": chosen.id, "folder": into, "findings": found, "missing": missing}
        out.result(document, lines)
        if found:
            return Exit.FAILED
        return Exit.PARTIAL if missing else Exit.DONE
    for name in services:
        if made.service(name) is None:
            hub.service(name)  # a name that neither knows is a slip of the fingers
    wanted = action.Wanted(services, claim_disk, image or "", accept_ports=accept_ports)
    decided = action.plan(action.look(hub, made), chosen.id, made, wanted)
    if dry_run:
        out.document(decided, render.plan(decided))
        return Exit.FAILED if decided.refused else Exit.DONE
    out.shown("plan", decided, render.plan(decided), asked=not yes and not decided.refused)
    if not decided.refused:
        confirm("Apply this plan?", yes=yes)
    done = action.restore(hub, chosen, made, wanted, out.report)
    lines = render.findings(done.findings)
    lines += [f"{name}: {what}" for name, what in done.services.items()]
    lines.append(
        f"snapshot {done.snapshot[:8]} restored in {done.seconds:.1f} s,"
        f" {render.size(done.bytes)}"
        + ("; the old data is kept: iotops undo" if done.undoable else "")
    )
    out.result(done, lines)
    if done.outcome is Outcome.FAILED:
        bad = [f"{one.subject}: {one.message}" for one in done.findings if one.severity == "error"]
        render.show_error(
            "restored, but not everything is as recorded: " + "; ".join(bad),
            "look at it; the old data goes back with: iotops undo" if done.undoable else "",
            Exit.FAILED,
            json=as_json,
        )
        return Exit.FAILED
    return Exit.PARTIAL if done.outcome is Outcome.PARTIAL else Exit.DONE


def _chosen(
    hub: Hub, snapshot: str, at: datetime | None, *, docker: bool
) -> tuple[SnapshotInfo, Manifest]:
    """Find the snapshot and read its manifest; meanwhile Docker is asked what a plan needs.

    restic derives its key for half a second in each of its two calls.
    """
    from iotops.actions import extract
    from iotops.actions import restore as action
    from iotops.actions.beside import Beside

    def read() -> tuple[SnapshotInfo, Manifest]:
        found = action.choose(hub, snapshot, at)
        return found, extract.read_manifest(hub.repository, found.id)

    reading = Beside(read)
    try:
        if docker:
            hub.stack.require()
            _ = hub.model
        return reading.result()
    finally:
        reading.stop()


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:  # year 1 is before what UTC can write
        raise UsageError(
            f"--at {text!r} is no time", hint="write it like 2026-03-01T12:00 (local time)"
        ) from error


@click.command(epilog=exits(*USUAL, Exit.LOCKED, Exit.INTERRUPTED))
@click.option("--discard", is_flag=True, help="Remove the old data for good instead.")
@click.option(
    "--run", "run", default="", metavar="RUN", help="The restore to undo, where it is not the last."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@hub_option
@output_options
def undo(
    discard: bool, run: str, yes: bool, hub_folder: Path | None, as_json: bool, quiet: bool
) -> None:
    """Swap the last restore back, or discard what it had put aside.

    A restore older than a week, or one before the last, is undone only when it is named. Its old
    data goes by itself with the first complete backup after `old_data_days` (`iotops status`).

    \b
    Example: iotops undo
    """
    from iotops.actions import undo as action
    from iotops.actions.aside import old_data
    from iotops.cli import render

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    if discard:
        for line in render.old_data(old_data(hub)):
            out.say(line)
        confirm("Remove this old data for good?", yes=yes)
        gone = action.discard(hub, out.report)
        freed = sum(one.bytes for one in gone)
        out.result({"discarded": gone}, [f"{render.size(freed)} of old data removed"])
        return
    chosen = action.look(hub, run)
    services = action.touched(chosen)
    about = {"restore": chosen.id, "snapshot": chosen.snapshot, "services": services}
    when = render.age(chosen.ended) if chosen.ended else chosen.death
    line = (
        f"restore {chosen.id}, {when}, of snapshot {chosen.snapshot[:8]}:"
        f" {', '.join(services) or 'nothing was exchanged'}"
    )
    out.shown("undo", about, [line], asked=not yes)
    confirm("Swap this restore back?", yes=yes)
    done = action.undo(hub, chosen.id, out.report)
    names = ", ".join(done.services)
    out.result(done, [f"{names} have their old data again" if names else "all is as before it"])


@click.command(epilog=exits(*USUAL, Exit.LOCKED, Exit.INTERRUPTED))
@hub_option
@output_options
def resume(hub_folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Put right what a run that died left behind; starts what it had stopped.

    \b
    Example: iotops resume
    """
    from iotops.actions.resume import resume as action

    out = screen(as_json, quiet)
    settled = action(open_hub(hub_folder), out.report)
    names = [record.id for record in settled]
    out.result({"settled": names}, [f"settled: {', '.join(names)}" if names else "nothing to do"])


COMMANDS = (backup, copy, restore, undo, resume)
