"""The part of `init` that makes a hub of an existing Compose project: what is shown and asked.

Not here: the command itself (`init.py`), and the work (`actions/adopting.py`, `claiming.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iotops.cli import render
from iotops.cli.common import confirm
from iotops.cli.render import Screen
from iotops.errors import Exit

if TYPE_CHECKING:
    from iotops.hub import Hub

SHOWN = 12
"""Names on a data root that are shown before it is claimed."""


@dataclass(frozen=True)
class Adopting:
    """What the command line says about it."""

    name: str
    owner: str | None
    data_root: Path
    data_kind: str
    state: Path | None
    run: Path | None


def adopt_project(
    out: Screen, folder: Path, asked: Adopting, *, claim: bool, dry_run: bool, yes: bool
) -> int:
    """Look at a project, write its settings, and claim its data where that is asked for."""
    from iotops import disk
    from iotops.actions import adopting, claiming
    from iotops.hub import Hub

    wanted = adopting.Wanted(
        name=asked.name,
        owner=asked.owner or "",
        data_root=asked.data_root,
        data_kind="folder" if asked.data_kind == "folder" else "mount",
        state=asked.state,
        run=asked.run,
    )
    found = adopting.look(folder.absolute(), wanted, out.report)
    if claim and not dry_run:
        _ask(out, found.root, found.holds, yes=yes)  # before anything is written
    if not dry_run:
        found = adopting.write(found)
    claimed: tuple[Path, ...] = ()
    if claim and not dry_run:
        claimed = claiming.claim(Hub.open(found.folder))
    done = [one for one in found.findings if not (claimed and one.code in disk.UNCLAIMED)]
    lines = [*adopting.told(found), *render.findings(done)]
    if dry_run:
        lines += ["nothing was written; iotops.toml would be:", "", *found.text.splitlines()]
    else:
        lines += [f"written: {path}" for path in (*found.written, *claimed)]
        lines += [f"next: {one}" for one in _next(found.folder, claimed)]
    shown = {
        "folder": found.folder,
        "root": found.root,
        "hub": found.hub_id,
        "name": found.name,
        "owner": found.owner,
        "services": found.services,
        "findings": done,
        "settings": found.text,
        "written": (*found.written, *claimed),
        "partial": found.partial,
    }
    out.result(shown, lines)
    return Exit.PARTIAL if found.partial else Exit.DONE


def claim_data_root(out: Screen, hub: Hub, *, yes: bool) -> int:
    """Claim the data root of a hub that is there, with what lies on it."""
    from iotops.actions import claiming

    _ask(out, hub.root, claiming.claimable(hub), yes=yes)
    made = claiming.claim(hub)
    lines = [*(f"written: {path}" for path in made), "next: iotops doctor"]
    out.result({"hub": hub.id, "root": hub.root, "written": made}, lines)
    return Exit.DONE


def _ask(out: Screen, root: Path, holds: Sequence[str], *, yes: bool) -> None:
    more = f" and {len(holds) - SHOWN} more" if len(holds) > SHOWN else ""
    lines = [f"on {root} lie: {', '.join(holds[:SHOWN]) or 'nothing'}{more}"]
    out.shown("claim", {"root": root, "holds": tuple(holds)}, lines, asked=not yes)
    confirm(
        f"Is this the hub's own data? It gets a sentinel, nothing else of it is touched: {root}",
        yes=yes,
    )


def _next(folder: Path, claimed: Sequence[Path]) -> tuple[str, ...]:
    claim = () if claimed else (f"sudo iotops init --claim-data --hub {folder}",)
    return (
        f"sudo mkdir -p /etc/iotops && sudo ln -sfn {folder} /etc/iotops/hub",
        *claim,
        "sudo iotops doctor",
        "sudo iotops init --repository URL",
    )
