"""Commands that keep the hub equal to what Git says: sync plan, apply, status, adopt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from iotops.actions.syncapply import Applied
    from iotops.actions.syncplan import SyncPlan
    from iotops.cli.render import Screen


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
    need. Diffs go from the hub to Git, those of local edits from Git to the hub. Files of secrets
    are not shown; values of .env and what looks like a secret, by its name or form, are starred.
    A secret that nothing gives away is shown like any other text.

    \b
    Example: iotops sync plan --exit-code
    """
    from iotops.actions import sync as action
    from iotops.cli import render

    out = screen(as_json, quiet)
    decided = action.look(open_hub(hub_folder), render.without_json(out))
    out.document(decided, lines(decided))
    return _code(decided, exit_code)


@sync.command(epilog=exits(*USUAL, Exit.DIFFERENT, *REPOSITORY, Exit.SKIPPED, Exit.INTERRUPTED))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--auto",
    is_flag=True,
    help="For a timer: nobody is asked, and a commit that was returned from is not tried again.",
)
@click.option(
    "--without-backup",
    is_flag=True,
    help="Take no snapshot first; should the commit turn out bad, no data comes back.",
)
@hub_option
@output_options
def apply(
    hub_folder: Path | None,
    yes: bool,
    auto: bool,
    without_backup: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Make the hub equal to Git: files, then the services that need something.

    First a snapshot is taken. Then only those services are reloaded, restarted or made anew that a
    change concerns, and watched for a while. Where one does not stay well, everything goes back to
    the commit before by itself, the data of what was started with it included; the exit code is
    then 1. Local edits, and what has changed since it was looked at, are refused with 4, and so
    is a remote whose history was rewritten or whose commit no allowed key has signed. 75: it does
    not answer.

    \b
    Example: iotops sync apply
    """
    from iotops.actions import syncapply
    from iotops.model import Severity

    out = screen(as_json, quiet)
    hub = open_hub(hub_folder)
    if auto:
        if without_backup:
            raise UsageError(
                "--auto always takes a snapshot first", hint="iotops sync apply --auto"
            )
        return _applied(out, syncapply.unattended(hub, out.report))
    decided = syncapply.prepare(hub, out.report)
    work = bool(decided.files or decided.services or decided.head != decided.target)
    bad = any(one.severity is Severity.ERROR for one in decided.findings)
    out.shown("plan", decided, lines(decided), asked=work and not bad and not yes)
    if work and not bad:
        confirm("apply this?", yes=yes)
    done = syncapply.apply(hub, decided, backup=not without_backup, report=out.report)
    return _applied(out, done)


def _applied(out: Screen, done: Applied) -> int:
    what = ", ".join(f"{name} {how}" for name, how in done.services.items()) or "no service"
    said = f"the hub is at {done.commit[:8]}: {len(done.files)} files written, {what}"
    out.result(done, [said if done.run else f"the hub is at {done.commit[:8]}"])
    return Exit.DONE


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
    if drift or not found.plan.refused:
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
        equal = [] if decided.refused else ["the hub is equal to it"]
        return [*said, *equal, *render.findings(decided.findings)]
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
    units = [one.path for one in decided.changes if one.kind.value == "host"]
    if units:
        said += ["", "installed units are not as this version has them; sync leaves them alone:"]
        said += ["    copy them again, then: sudo systemctl daemon-reload"]
    return [*said, *(["", *render.findings(decided.findings)] if decided.findings else [])]


COMMANDS = (sync,)
