"""Exchange a live folder for another by renaming, and take that back.

The record says what is about to happen before it does. Containers that mount the folder are
stopped first, since a running one keeps the old folder (seen), and what this run stopped is
started again in every case. Not here: what the new folder holds and whether it is any good.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from iotops.clients import files
from iotops.errors import IotopsError, RestoreError, StackError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run, Stopped, Swap
from iotops.signals import shield

if TYPE_CHECKING:  # every run comes by here, and must begin quickly
    from iotops.clients.compose import Holder

GRACE = 60.0
"""Seconds a container gets to stop; InfluxDB and Node-RED write out what they hold."""

BETWEEN = ".between"
"""End of the name of what a container made where a folder was put aside, after a power cut."""


def stop_for_swap(hub: Hub, run: Run, folder: Path, report: Report = silent) -> None:
    """Stop every container for which the exchange of a folder would go unseen, or whose it is.

    One that mounts the folder, or one in it, keeps the old one until it starts again; one that
    mounts a folder above it sees the exchange and may go on, unless the data is its own: its
    program has files of it open.

    Raises:
        RestoreError: a container of another project mounts it, or one would not stop.
    """
    own = {one.place.container for one in hub.services if folder.is_relative_to(one.place.folder)}
    holders = hub.stack.mounting(folder)
    users = [one for one in holders if not one.above or one.service in own]
    _stop(hub, run, folder, users, report)


def stop_for_copy(hub: Hub, run: Run, folder: Path, report: Report = silent) -> None:
    """Stop every container that could write into a folder, for a copy of it at rest.

    One of another project that can write to a folder above (a backup program, a file browser) is
    not ours to stop, and is told.

    Raises:
        RestoreError: a container of another project mounts it, or one would not stop.
    """
    users: list[Holder] = []
    for one in hub.stack.mounting(folder):
        if not one.above or (one.service and one.writes):
            users.append(one)
        elif one.writes:
            text = f"the container {one.name} of another project can write to {folder} meanwhile"
            report(Noted("warning", text))
    _stop(hub, run, folder, users, report)


def _stop(
    hub: Hub, run: Run, folder: Path, users: Sequence[Holder], report: Report = silent
) -> None:
    """Stop running containers, noting each before."""
    foreign = [user.name for user in users if not user.service]
    if foreign:
        raise RestoreError(
            f"containers outside the hub's Compose project mount {folder}: {', '.join(foreign)}",
            hint=f"stop them first: docker stop {' '.join(foreign)}",
        )
    for service in sorted({user.service for user in users}):
        container = hub.stack.containers()[service]
        with step(report, "stop", service):
            run.stopping(service, container.id)
            hub.stack.stop([service], grace=GRACE)


def stop_service(hub: Hub, run: Run, service: str, report: Report = silent) -> None:
    """Stop a service's container, noting it before; one that does not run is left as it is."""
    container = hub.stack.containers().get(service)
    if container is not None and container.state == "running":
        with step(report, "stop", service):
            run.stopping(service, container.id)
            hub.stack.stop([service], grace=GRACE)


def refuse_link(hub: Hub, live: Path) -> None:
    """Refuse a place that lies behind a symbolic link: root would rename in somewhere else.

    Raises:
        RestoreError: names the link.
    """
    link = files.first_link(hub.root, live.parent)
    if link is not None:
        raise RestoreError(
            f"{live} lies behind the symbolic link {link}, which is not followed",
            hint=f"look at it, and move it away: ls -l {link}",
        )


def swap_folder(hub: Hub, run: Run, name: str, live: Path, new: Path) -> None:
    """Exchange a folder below the data root for another one; the old one is put aside.

    Args:
        name: the service's, for the record. live: the folder's place; nobody has it mounted.

    Raises:
        RestoreError: it lies behind a link. OSError: as `swap_in`.
    """
    refuse_link(hub, live)
    old = hub.layout.replaced / run.id / live.relative_to(hub.root)
    had_old = os.path.lexists(live)
    swap_in(run, Swap(name, str(live), str(old), str(new), had_old=had_old))


def swap_in(run: Run, swap: Swap) -> None:
    """Rename the live folder aside and the new one into its place.

    Raises:
        OSError: a rename failed; `take_back` puts it right.
    """
    run.swapping(swap)
    live, old, new = Path(swap.live), Path(swap.old), Path(swap.new)
    old.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if swap.had_old:
        live.rename(old)
    files.make_folders(live.parent)
    new.rename(live)
    files.sync_folder(live.parent)
    run.swapping(replace(swap, done=True))


def take_back(hub: Hub, run: Run, report: Report = silent) -> None:
    """Undo every exchange of a run, newest first; what was restored goes back to where it waited.

    Each case a crash can leave is told apart by what is on the disk: the old folder still live,
    put aside with nothing in its place (or with what a start of the engine made there, which is
    kept beside it), or replaced. So it can be done again, and the record is changed by who calls.
    """
    for swap in reversed(run.record.swaps):
        live, old, new = Path(swap.live), Path(swap.old), Path(swap.new)
        with shield(), step(report, "take-back", swap.service):
            stop_for_swap(hub, run, live, report)
            if swap.had_old and not os.path.lexists(old):
                pass  # the exchange had not begun: the live folder is the old one
            else:
                if os.path.lexists(live) and not os.path.lexists(new):
                    new.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    live.rename(new)
                if swap.had_old:
                    if live.is_dir() and any(live.iterdir()):
                        kept = old.with_name(f"{old.name}{BETWEEN}")
                        live.rename(kept)
                        text = f"{live} was made anew meanwhile: that is kept in {kept}"
                        report(Noted("warning", text, swap.service))
                    old.rename(live)
            files.sync_folder(live.parent)
            _remove_empty(old.parent, hub.layout.replaced)


def put_right(hub: Hub, run: Run, report: Report = silent) -> None:
    """Take back every exchange of a run, start what it stopped, remove what it extracted.

    The containers come before the record: on a full disk they run again all the same.
    """
    take_back(hub, run, report)
    start_stopped(hub, run, report, but=run.record.woken)
    for swap in run.record.swaps:
        if Path(swap.new).name.startswith(files.TEMPORARY):  # a file that waited beside its place
            Path(swap.new).unlink(missing_ok=True)
    if run.record.swaps:
        run.note(swaps=())
    with step(report, "clean"):
        files.remove_tree(hub.layout.tmp / run.id)


def let_go(hub: Hub, run: Run) -> None:
    """Remove what a settled run has exchanged files for, and its workplace; can be done again."""
    for swap in run.record.swaps:
        Path(swap.old).unlink(missing_ok=True)
    files.remove_tree(hub.layout.tmp / run.id)
    if run.record.swaps:
        run.note(swaps=())


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove folders that hold nothing, up to and without `top`."""
    while folder != top and folder.is_relative_to(top):
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return  # something is in it
        folder = folder.parent


def start_stopped(
    hub: Hub,
    run: Run,
    report: Report = silent,
    *,
    but: Collection[str] = (),
    keep: bool = False,
) -> None:
    """Start what this run stopped and has not started yet; a signal waits until all have been.

    Args:
        but: services that did not run before, and are left stopped.
        keep: they stay in the record, for one that ends again is to be started by taking back;
            the caller takes them out when they have answered.

    Raises:
        StackError: one did not start; the others were started all the same.
        OSError: all were started, but the record could not be written.
    """
    failed: list[str] = []
    unwritten: OSError | None = None
    with shield():
        for stopped in run.record.stopped:
            try:
                if stopped.service in but:
                    run.started(stopped.service)
                    continue
                with step(report, "start", stopped.service):
                    _start(hub, run, stopped, report)
                    if not keep:
                        run.started(stopped.service)
            except IotopsError as error:
                report(Noted("error", error.message, stopped.service))
                failed.append(stopped.service)
            except OSError as error:  # a full disk must not keep the others from being started
                unwritten = error
    if unwritten is not None and not failed:
        raise unwritten
    if failed:
        raise StackError(
            f"these services were stopped and did not start again: {', '.join(failed)}",
            hint=f"look at them: iotops logs {failed[0]}; then: iotops up",
        )


def _start(hub: Hub, run: Run, stopped: Stopped, report: Report) -> None:
    """Start one container, unless it is not the one that was stopped: then its owner came by.

    Nor where it has nothing to run on: a restore to a new disk that was taken back.
    """
    found = hub.stack.containers().get(stopped.service)
    if found is not None and (lacking := _lacking(hub, run, stopped.service)) is not None:
        report(Noted("warning", f"not started: {lacking} is not there", stopped.service))
    elif found is None:
        report(Noted("warning", "its container was removed", stopped.service))
    elif found.id != stopped.container and found.state != "running":
        text = "its container was made anew since, and is left as it is"
        report(Noted("warning", text, stopped.service))
    else:
        hub.stack.start([stopped.service])


def _lacking(hub: Hub, run: Run, service: str) -> Path | None:
    """Give a folder that a container needs and that was not there before the run either."""
    new = [Path(swap.live) for swap in run.record.swaps if not swap.had_old]
    model = hub.model.services.get(service) if new else None
    for mount in model.mounts if model is not None else ():
        source = mount.source
        if source is None or os.path.lexists(source):
            continue
        if any(source.is_relative_to(live) or live.is_relative_to(source) for live in new):
            return source
    return None
