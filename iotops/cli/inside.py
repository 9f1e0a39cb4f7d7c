"""Commands that look into snapshots: snapshots, ls, diff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from iotops.cli.common import (
    REPOSITORY,
    USUAL,
    exits,
    from_option,
    hub_option,
    open_hub,
    output_options,
    screen,
)
from iotops.errors import Exit

if TYPE_CHECKING:
    from iotops.actions.compare import Comparison
    from iotops.actions.inside import Held
    from iotops.model import Difference

MARK = {"added": "+", "removed": "-", "changed": "~"}
MANY = 12
"""Files of the hub folder, or nodes of a flow, that are named one by one."""


@click.command(epilog=exits(*USUAL, *REPOSITORY))
@click.option(
    "--details", is_flag=True, help="Every service's numbers; reads what is not known yet."
)
@from_option
@hub_option
@output_options
def snapshots(
    details: bool, source: str | None, hub_folder: Path | None, as_json: bool, quiet: bool
) -> None:
    """List the snapshots of this hub, the newest last, and what each holds.

    A backup remembers what its snapshot holds; of others `--details` reads it, once.

    \b
    Example: iotops snapshots
    Example: iotops snapshots --from nas
    """
    from iotops.actions import inside
    from iotops.actions.ours import TAG
    from iotops.cli import render
    from iotops.model import Outcome

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder, source)
    found = hub.repository.snapshots(tags=(TAG, hub.id))
    known = inside.held(
        hub, found, read=details, whole=source is None, report=render.without_json(out)
    )
    outcomes, disowned = {value.value for value in Outcome}, hub.state.read().disowned
    listing, rows = [], []
    for one in found:
        outcome = next((tag for tag in one.tags if tag in outcomes), "unknown")
        outcome = "does not count" if one.id in disowned else outcome
        holds = known.get(one.id)
        listing.append(
            {"id": one.id, "time": one.time, "host": one.host, "outcome": outcome, "holds": holds}
        )
        when = f"{one.time:%Y-%m-%d %H:%M:%S} UTC"
        much = (f"{holds.files:,}", render.size(holds.bytes)) if holds else ("-", "-")
        rows.append((one.id[:8], when, render.age(one.time), outcome, *much, _short(holds)))
    head = ("snapshot", "time", "age", "outcome", "files", "size", "holds")
    lines = render.table(head, rows) if rows else ["no snapshots yet; make one with: iotops backup"]
    if details:
        lines = []
        for row, one in zip(rows, found, strict=True):
            lines += ["  ".join(row[:6])]
            parts = known[one.id].parts
            cells = [
                (
                    f"  {p.name}",
                    f"{p.files:,} files",
                    render.size(p.bytes),
                    p.error or _counts(p.counts),
                )
                for p in parts
            ]
            lines += render.table(("  service", "files", "size", "holds"), cells)
        lines = lines or ["no snapshots yet; make one with: iotops backup"]
    elif len(known) < len(found):
        lines.append("what the others hold: iotops snapshots --details")
    out.document(listing, lines)


def _short(holds: Held | None) -> str:
    """Say of each service its first number; a service that is missing by its name."""
    if holds is None:
        return "-"
    told = []
    for part in holds.parts:
        if part.error:
            told.append(f"no {part.name}")
        elif part.counts:
            chosen = "points" if "points" in part.counts else next(iter(part.counts))
            told.append(f"{part.counts[chosen]:,} {chosen.replace('_', ' ')}")
    return ", ".join(told)


def _counts(counts: dict[str, int] | object) -> str:
    items = counts.items() if isinstance(counts, dict) else ()
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in items)


@click.command(epilog=exits(*USUAL, *REPOSITORY))
@click.argument("snapshot", default="latest")
@click.argument("path", default="")
@click.option("--recursive", "-R", is_flag=True, help="Everything below, not one level.")
@from_option
@hub_option
@output_options
def ls(
    snapshot: str,
    path: str,
    recursive: bool,
    source: str | None,
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """List the files of a snapshot, as they lie in the hub folder and on the data root.

    \b
    Example: iotops ls latest
    Example: iotops ls 1a2b3c4d nodered
    """
    from iotops.actions import extract, inside
    from iotops.actions import restore as action
    from iotops.cli import render

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder, source)
    chosen = action.choose(hub, snapshot)
    made = extract.read_manifest(hub.repository, chosen.id)
    found = inside.entries(made, path, deep=recursive)
    rows = [
        (
            one.path
            + ("/" if one.type == "directory" else "")
            + (f" -> {one.target}" if one.type == "symlink" else ""),
            render.size(one.bytes),
            f"{one.files:,} files" if one.type == "directory" else one.changed[:16],
        )
        for one in found
    ]
    title = f"snapshot {chosen.id[:8]} of {chosen.time:%Y-%m-%d %H:%M} UTC"
    lines = [title, *render.table(("path", "size", "files, or changed (UTC)"), rows)]
    out.document({"snapshot": chosen.id, "path": path, "entries": found}, lines)


@click.command(epilog=exits(*USUAL, Exit.DIFFERENT, *REPOSITORY))
@click.argument("old")
@click.argument("new", default="latest")
@click.option("--exit-code", is_flag=True, help="Exit 4 when they differ.")
@from_option
@hub_option
@output_options
def diff(
    old: str,
    new: str,
    exit_code: bool,
    source: str | None,
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Tell how two snapshots differ: dashboards, flows, users, buckets, points, files.

    \b
    Example: iotops diff 1a2b3c4d latest
    Example: iotops diff 1a2b3c4d 5e6f7a8b --exit-code
    """
    from iotops.actions import compare as action
    from iotops.actions import restore
    from iotops.cli import render

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder, source)
    hub.guard()  # the few files that tell something are taken out beside the data
    pair = restore.choose(hub, old), restore.choose(hub, new)
    found = action.compare(hub, *pair, report=render.without_json(out))
    out.document({**vars(found), "different": found.different}, _told(found))
    return Exit.DIFFERENT if exit_code and found.different else Exit.DONE


def _told(found: Comparison) -> list[str]:
    from iotops.cli import render

    lines = [
        f"{found.old[:8]} of {found.old_time:%Y-%m-%d %H:%M} UTC ->"
        f" {found.new[:8]} of {found.new_time:%Y-%m-%d %H:%M} UTC"
    ]
    for one in found.services:
        if one.change == "same":
            continue
        lines.append(f"{one.name}" + ("" if one.change == "changed" else f": {one.change}"))
        for name, text in (("image", one.image), ("version", one.version), ("note", one.note)):
            lines += [f"  {name}: {text}"] if text else []
        for thing in one.things:
            lines += _thing(thing)
        if one.counts:
            told = (f"{n.replace('_', ' ')} {a:,} -> {b:,}" for n, (a, b) in one.counts.items())
            lines.append(f"  numbers: {', '.join(told)}")
    if found.hub or found.commits:
        lines.append("hub folder")
        lines += [f"  {branch}: {commits}" for branch, commits in found.commits.items()]
        lines += [line for thing in found.hub[:MANY] for line in _thing(thing)]
        lines += _more(len(found.hub))
    rows = [
        (
            f"  {one.folder}/",
            f"+{one.added}",
            f"-{one.removed}",
            f"~{one.changed}",
            render.size(one.bytes),
        )
        for one in found.folders
    ]
    if rows:
        lines += render.table(("files in", "added", "removed", "changed", "new bytes"), rows)
    return lines if found.different else [*lines, "nothing differs"]


def _thing(thing: Difference) -> list[str]:
    what = "" if thing.what == "hub file" else f"{thing.what} "
    detail = f": {thing.detail}" if thing.detail else ""
    lines = [f"  {MARK[thing.change]} {what}{thing.name}{detail}"]
    lines += [f"      {part}" for part in thing.parts[:MANY]]
    return lines + ["    " + line for line in _more(len(thing.parts))]


def _more(count: int) -> list[str]:
    return [f"  and {count - MANY} more (--json names all)"] if count > MANY else []


COMMANDS = (snapshots, ls, diff)
