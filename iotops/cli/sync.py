"""Commands that keep the hub equal to what Git says: sync plan, status, adopt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from iotops.cli.common import USUAL, exits, hub_option, open_hub, output_options, screen
from iotops.errors import Exit

if TYPE_CHECKING:
    from iotops.actions.syncplan import SyncPlan


@click.group()
def sync() -> None:
    """Keep the hub equal to the branch main.

    \b
    Example: iotops sync plan
    """


def _code(decided: SyncPlan, exit_code: bool) -> int:
    different = exit_code and (decided.refused or not decided.equal)
    return Exit.DIFFERENT if different else Exit.DONE


@sync.command(epilog=exits(*USUAL, Exit.DIFFERENT, Exit.SKIPPED, Exit.INTERRUPTED))
@click.option("--exit-code", is_flag=True, help="End with 4 where anything differs.")
@hub_option
@output_options
def plan(hub_folder: Path | None, exit_code: bool, as_json: bool, quiet: bool) -> int:
    """Fetch, compare Git with the hub, and show what would be applied; changes nothing.

    Compared are the files, the containers with the Compose file, and what each service would
    need. Diffs go from the hub to Git, those of local edits from Git to the hub; secrets are
    masked.

    \b
    Example: iotops sync plan --exit-code
    """
    from iotops.actions import sync as action
    from iotops.cli import render

    out = screen(as_json, quiet)
    decided = action.look(open_hub(hub_folder), render.without_json(out))
    out.document(decided, lines(decided))
    return _code(decided, exit_code)


@sync.command(epilog=exits(*USUAL, Exit.DIFFERENT, Exit.INTERRUPTED))
@click.option("--exit-code", is_flag=True, help="End with 4 where anything differs.")
@hub_option
@output_options
def status(hub_folder: Path | None, exit_code: bool, as_json: bool, quiet: bool) -> int:
    """Tell which commit the hub is at and what has drifted, without asking the remote.

    \b
    Example: iotops sync status
    """
    from iotops.actions import sync as action
    from iotops.cli import render

    out = screen(as_json, quiet)
    found = action.status(open_hub(hub_folder), render.without_json(out))
    said = [
        f"last good commit {found.commit[:8]}, applied {render.age(found.applied)}"
        if found.commit
        else "nothing has been applied yet"
    ]
    if found.returned:
        said.append(f"returned from {found.returned[:8]}: {found.why}")
    drift = action.summary(found.plan)
    said.append(f"differs: {drift} (iotops sync plan)" if drift else "equal to Git")
    out.document(found, [*said, *render.findings(found.plan.findings)])
    return _code(found.plan, exit_code)


@sync.command(epilog=exits(*USUAL, Exit.LOCKED, Exit.INTERRUPTED))
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--message", "-m", default="", help="Of the commit; else it names the files.")
@hub_option
@output_options
def adopt(
    paths: tuple[str, ...], message: str, hub_folder: Path | None, as_json: bool, quiet: bool
) -> None:
    """Commit what was edited in the hub folder, as the hub's owner.

    Secrets and running state are refused. With a remote, push the commit afterwards.

    \b
    Example: iotops sync adopt mosquitto/acl -m "Let the boiler publish"
    """
    from iotops.actions import sync as action

    out = screen(as_json, quiet)
    done = action.adopt(open_hub(hub_folder), paths, message, out.report)
    said = f"commit {done.commit[:8]}: {', '.join(done.paths)}" if done.commit else "no edits"
    out.result(done, [said])


def lines(decided: SyncPlan) -> list[str]:
    """Lay out a plan: what each service needs and why, then the diffs, then the findings."""
    from iotops.cli import render

    said = [f"{decided.head[:8]} is checked out, {decided.target[:8]} is wanted"]
    if not decided.changes:
        return [*said, "the hub is equal to it", *render.findings(decided.findings)]
    rows = [
        (one.service or "-", one.kind.value, one.path, one.on_change.value)
        for one in sorted(decided.changes, key=lambda one: (one.service == "", one.service))
    ]
    said += render.table(("service", "what", "where", "needs"), rows)
    shown: set[str] = set()
    for one in decided.changes:
        if one.diff and one.path not in shown:
            shown.add(one.path)
            said += ["", f"{one.kind.value} {one.path}"]
            said += [f"    {line}" for line in one.diff.splitlines()]
    return [*said, *(["", *render.findings(decided.findings)] if decided.findings else [])]


COMMANDS = (sync,)
