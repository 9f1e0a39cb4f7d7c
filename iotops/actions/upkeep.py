"""The repository's upkeep: checking its data in turns, and freeing what no snapshot needs.

A check that found damage stops everything that removes something, until a check of the same data
finds none; what to do is said, never done. Not here: which snapshots stay (`retention.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from iotops.actions import locks, ours, resume
from iotops.actions.recorded import recorded
from iotops.clients import files
from iotops.errors import GuardError, RepositoryDamaged, UsageError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import State, stamp
from iotops.model import Finding, Severity

PARTS = 30
"""One part of the data per run: all of it is read once a month by a nightly check."""

ALL = "all"
MAX_UNUSED = "10%"
REPAIR_SINCE = (0, 16, 0)
REPAIR_PACKS_SINCE = (0, 16, 4)
"""restic versions with `repair index` and `repair snapshots`, and with `repair packs`."""


@dataclass(frozen=True)
class Checked:
    """A check that found nothing wrong.

    Attributes:
        scope: "3/30", or "all": the part of the data that was read and verified.
    """

    run: str
    scope: str
    seconds: float


@dataclass(frozen=True)
class Pruned:
    """A prune; `freed` is restic's own word for how much ("1.2 GiB"), empty if it said none."""

    run: str
    freed: str
    seconds: float


def check(
    hub: Hub, *, parts: int = PARTS, everything: bool = False, report: Report = silent
) -> Checked:
    """Check the repository's structure, and the next part of its data.

    After damage the same part is read again until it is found whole: another one would say
    nothing about it.

    Args:
        parts: in how many parts the data is read, 1 to 256.
        everything: read all of it.

    Raises:
        RepositoryDamaged: with the documented next steps as its hint; it is recorded.
        Locked: another run goes on, or another restic.
    """
    began = time.monotonic()
    hub.guard()
    with hub.locked("check"):
        resume.settle(hub, report)
        known = hub.state.read().check
        scope = ALL if everything else _next(hub.state.read(), parts)
        with recorded(hub, "check", report) as run, step(report, "check", scope):
            run.note(step=f"check {scope}")
            try:
                ours.check_repository(hub)
                _sweep_caches(hub)
                subset = "1/1" if scope == ALL else scope
                locks.without_dead(hub, lambda: hub.repository.check(subset), report)
            except RepositoryDamaged as error:
                hub.state.update(check={**known, "damaged": stamp(), "scope": scope})
                for line in error.said:
                    report(Noted("error", line, "repository"))
                hint = "\n".join(next_steps(hub, error.said))
                raise RepositoryDamaged(error.message, said=error.said, hint=hint) from None
            part, _, of = scope.partition("/")
            turn = {"part": part, "of": of} if of else _turn(known)
            # Only now: a part counts as read when it was found whole.
            hub.state.update(check=turn)
            run.note(message=f"{scope} of the data read")
        return Checked(run.id, scope, time.monotonic() - began)


def prune(hub: Hub, *, max_unused: str = MAX_UNUSED, report: Report = silent) -> Pruned:
    """Remove data that no snapshot needs any more; rare, it rewrites a part of the repository.

    Args:
        max_unused: how much of it may stay, as restic writes it: "10%", "500M", "unlimited".

    Raises:
        UsageError: `max_unused` is no such amount.
        GuardError: the last check failed or found damage.
        Locked: another run goes on, or another restic.
    """
    if not re.fullmatch(r"unlimited|\d+(\.\d+)?%|\d+[KMGTkmgt]?", max_unused):
        raise UsageError(
            f"--max-unused {max_unused!r} is no amount", hint='write it like "10%", 500M, unlimited'
        )
    began = time.monotonic()
    hub.guard()
    with hub.locked("prune"):
        resume.settle(hub, report)
        refuse_damaged(hub, "pruned")
        last = hub.state.read().last.get("check", {})
        if last.get("outcome") == "failed":
            raise GuardError(
                f"nothing is pruned after a check that failed: {last.get('message', '')}",
                hint="check again first: iotops check",
            )
        with recorded(hub, "prune", report) as run:
            with step(report, "repository"):
                ours.check_repository(hub)
            with step(report, "prune"):
                run.note(step="prune")
                freed = locks.without_dead(hub, lambda: hub.repository.prune(max_unused), report)
            run.note(message=f"{freed} freed" if freed else "")
        return Pruned(run.id, freed, time.monotonic() - began)


def refuse_damaged(hub: Hub, done: str) -> None:
    """Refuse while the last check found the repository damaged.

    Args:
        done: what is refused, as "forgotten".

    Raises:
        GuardError: with the next step.
    """
    found = hub.state.read().check
    if found.get("damaged"):
        raise GuardError(
            f"nothing is {done} while the repository is damaged (check of {found['damaged']})",
            hint="see what is damaged, and what to do: iotops check",
        )


def findings(state: State) -> Iterator[Finding]:
    """Judge the upkeep from the state file alone."""
    if state.check.get("damaged"):
        yield Finding(
            "repository.damaged",
            Severity.ERROR,
            "repository",
            f"the check of {state.check['damaged']} found damage"
            f" (data read: {state.check.get('scope', '')})",
            "see what is damaged, and what to do: iotops check",
        )
    for action, again in (
        ("check", "iotops check"),
        ("retention", "iotops retention"),
        ("prune", "iotops prune"),
    ):
        last = state.last.get(action, {})
        if last.get("outcome") == "failed" and not (action == "check" and "damaged" in state.check):
            yield Finding(
                f"{action}.failed",
                Severity.WARNING,
                "repository",
                f"the last {action} failed: {last.get('message', '')}",
                f"try it again: {again}",
            )


def next_steps(hub: Hub, said: Sequence[str]) -> tuple[str, ...]:
    """Say what to do about a damaged repository, in order; all of it is done by hand.

    Source: restic's own troubleshooting guide (doc/077_troubleshooting.rst, 0.16 to 0.19).

    Args:
        said: what the check said.
    """
    from iotops.clients.resticerrors import cleaner

    chosen = hub.settings.repository
    url = cleaner(())(chosen.url) if chosen is not None else ""
    password = chosen.password_file if chosen is not None else ""
    aside = f"sudo cp -a {url} {url}.damaged" if url.startswith("/") else f"a copy of {url}"
    steps = [
        f"copy the repository aside before anything writes to it: {aside}",
        f"export RESTIC_REPOSITORY='{url}' RESTIC_PASSWORD_FILE={password}",
    ]
    if any("config" in line and "pack" not in line for line in said):
        steps = [
            steps[0],
            "put the file `config` back from any copy of this repository: without it nothing in"
            " the repository can be opened",
            "without such a copy begin a new one at another address: iotops init --repository URL",
            "then: iotops backup",
        ]
    else:
        steps += _repairs(hub.repository.version(), _broken_packs(said))
    head = "nothing was changed; do these by hand, in this order:"
    return (head, *(f"  {number}. {text}" for number, text in enumerate(steps, 1)))


def _repairs(version: tuple[int, int, int], packs: Sequence[str]) -> list[str]:
    """Give the repairing commands that a version of restic has."""
    steps = []
    if packs and version >= REPAIR_PACKS_SINCE:
        steps.append(f"restic repair packs {' '.join(packs)}")
    elif packs:
        steps += [f"move data/{pack[:2]}/{pack} out of the repository" for pack in packs]
    steps.append("restic repair index" if version >= REPAIR_SINCE else "restic rebuild-index")
    steps.append("iotops backup (saves again what the hub still has)")
    if version >= REPAIR_SINCE:
        # Not with its --forget: the new ones then lack the tag that tells them from complete ones.
        steps.append(
            "restic repair snapshots (makes new ones, tagged `repaired`, of those that lost files)"
        )
        steps.append("restic forget ID ... (of those that it has just repaired)")
    else:
        steps.append(
            "if the next check names lost data still: on another machine, with restic 0.16 or"
            " newer: restic repair snapshots; restic forget ID ... (of those that it repaired)"
        )
    steps.append("iotops check --all")
    return steps


def _broken_packs(said: Sequence[str]) -> list[str]:
    """Name the data files that are there, but damaged; a missing one has no repair of its own."""
    text = "\n".join(said)
    missing = {*re.findall(r"pack ([0-9a-f]{64}): does not exist", text)}
    named = re.findall(r"[Pp]ack(?: ID does not match, want)? ([0-9a-f]{64})", text)
    return [one for one in dict.fromkeys(named) if one not in missing]


def _next(state: State, parts: int) -> str:
    """Give the part of the data whose turn it is, or the one that was found damaged."""
    if state.check.get("damaged") and state.check.get("scope"):
        return state.check["scope"]
    turn = _turn(state.check)
    done = int(turn["part"]) if turn.get("of") == str(parts) else 0
    return f"{done % parts + 1}/{parts}"


def _turn(known: object) -> dict[str, str]:
    """Give the place in the rotation; empty when none is recorded that can be read."""
    found = known if isinstance(known, dict) else {}
    turn = {name: str(found.get(name, "")) for name in ("part", "of")}
    return turn if all(value.isdecimal() for value in turn.values()) else {}


def _sweep_caches(hub: Hub) -> None:
    """Remove what a killed check left: restic makes a fresh cache for each one."""
    for left in hub.layout.cache.glob("restic-check-cache-*"):
        files.remove_tree(left)
