"""Give the broker's devices logins of their own, take them away, and tell which there are.

`mosquitto/devices.toml` declares them; the password file and the devices' block of the ACL follow.
A broker of its own tries the new files first: one that would not come up again is not stopped. The
broker is stopped while they are exchanged, all three by the same renaming as in a restore: its
undoing is armed first, and done when the broker does not come up, does not let the device in, or
lets in anybody. Not here: what a change makes of the files (`deviceplan.py`), and what stands in
them (`iotops/devices.py`, `clients/mosquittousers.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iotops import devices
from iotops.actions import aside, candidateview, hubfiles, resume, swap, sync
from iotops.actions.deviceplan import (
    Listing,
    Present,
    Wanted,
    plan_add,
    plan_listing,
    plan_remove,
    plan_rotate,
    refuse_claimed,
)
from iotops.actions.recorded import recorded
from iotops.actions.stack import wait_ready
from iotops.clients import files, mosquittousers
from iotops.clients.gitremote import Upstream
from iotops.clients.mosquittousers import UserFiles
from iotops.config import Secret
from iotops.errors import GuardError, IotopsError, StackError, UsageError
from iotops.events import Noted, Report, silent, step
from iotops.hub import Hub
from iotops.journal import Run, Swap
from iotops.model import Finding, Severity
from iotops.signals import shield

if TYPE_CHECKING:
    from iotops.services.mosquitto import Mosquitto

KIND = "mosquitto"
BRANCH = "main"
"""Where Git keeps the hub's configuration."""
GROUPS = 5
"""Of five letters each: 29 characters, to be typed into a device's web page or its settings."""


@dataclass(frozen=True)
class Changed:
    """What a change came to.

    Attributes:
        password: of the device, kept nowhere else; None where it was removed.
        tested: the broker ran, and was asked. commit: its id in Git, or "".
    """

    verb: str
    device: str
    prefix: str
    commands: str
    password: Secret | None
    tested: bool
    commit: str


def add(
    hub: Hub, name: str, prefix: str = "", commands: str = "", report: Report = silent
) -> Changed:
    """Give a new device a login and rights to its own topics.

    Raises:
        UsageError, GuardError, Conflict: it is refused. StackError: the broker did not take it; all
            is as it was.
    """
    new = devices.device(name, prefix, commands)
    return _change(hub, "add", name, lambda now: plan_add(now, new), report)


def rotate(hub: Hub, name: str, report: Report = silent) -> Changed:
    """Give a device another password; see `add`."""
    return _change(hub, "rotate", name, lambda now: plan_rotate(now, name), report)


def remove(hub: Hub, name: str, report: Report = silent) -> Changed:
    """Take a device's login and rights away; what it has published stays. See `add`."""
    return _change(hub, "remove", name, lambda now: plan_remove(now, name), report)


def listing(hub: Hub) -> Listing:
    """List the broker's users, and where declaration, passwords and rights differ."""
    hub.guard()
    broker = _broker(hub)
    return plan_listing(_present(hub, broker, broker.user_files()))


def _change(
    hub: Hub, verb: str, name: str, plan: Callable[[Present], Wanted], report: Report
) -> Changed:
    hub.stack.require()
    hub.guard()
    with hub.locked(f"device {verb}"):
        resume.settle(hub, report)
        broker = _broker(hub)
        places = broker.user_files()
        now = _present(hub, broker, places)
        wanted = plan(now)
        now.acl.refuse_edited(places.acl, now.declared)
        runs = _runs(hub, broker)
        made = _made(hub, broker, places, now, wanted, report, tried=runs)

        def put_right(run: Run) -> None:
            if aside.is_settled(run):
                return  # the old files may be gone already: half of them must not come back
            swap.put_right(hub, run, report)
            if runs:
                wait_ready(hub, [broker], report=report)

        command = f"device {verb} {name}"
        with recorded(hub, "device", report, put_right=put_right, command=command) as run:
            change = _Change(hub, broker, places, run, report)
            change.exchange(now, wanted, made)
            if runs:
                change.prove(wanted, made.password)
            else:
                text = "the broker does not run and stays so: the login was not tested"
                report(Noted("warning", text, broker.name))
            with shield():  # from here on it is done: `resume` goes on, and does not go back
                run.note(stopped=(), about={**run.record.about, aside.SETTLED: "yes"})
                swap.let_go(hub, run)
                commit = _commit(hub, places, f"{_WORDS[verb]} {name}", report)
    one = wanted.device
    return Changed(verb, name, one.prefix, one.commands, made.password, runs, commit)


_WORDS = {
    "add": "Give a login to the device",
    "rotate": "Set the rights of the device",
    "remove": "Take the login of the device",
}


@dataclass(frozen=True)
class _Made:
    """What was made for a change: the new password, if there is one, and the password file."""

    password: Secret | None
    lines: bytes


def _made(
    hub: Hub,
    broker: Mosquitto,
    places: UserFiles,
    now: Present,
    wanted: Wanted,
    report: Report,
    *,
    tried: bool,
) -> _Made:
    """Make the new users, and have a broker try them before anything is disturbed.

    Raises:
        GuardError: a broker does not come up with them and the configuration on the disk.
    """
    owner, name = _owner(broker, places), wanted.device.name
    with candidateview.held_folder(hub) as folder:
        password: Secret | None = None
        with step(report, "password", broker.name):
            lines = now.passwords.without(name)
            if wanted.fresh:
                password = Secret(hubfiles.readable_password(GROUPS))
                seen = folder / "seen"
                seen.mkdir(mode=0o700)
                os.chown(seen, *owner)
                container = broker.place.container
                lines = now.passwords.with_line(
                    mosquittousers.new_line(hub.stack, container, seen, owner, name, password)
                )
        if tried:
            with step(report, "try", broker.name):
                new = UserFiles(folder / "passwd", folder / "acl")
                files.write(new.passwords, lines.content(), mode=0o600, owner=owner)
                state = places.acl.stat()
                files.write(
                    new.acl,
                    wanted.acl.encode("utf-8", "surrogateescape"),
                    mode=state.st_mode & 0o777,
                    owner=(state.st_uid, state.st_gid),
                )
                found = tuple(broker.validate_users(new, folder))
            _refuse(broker, found, report)
    return _Made(password, lines.content())


def _refuse(broker: Mosquitto, found: tuple[Finding, ...], report: Report) -> None:
    bad = [one for one in found if one.severity is Severity.ERROR]
    if bad:
        raise GuardError(
            f"{broker.name} would not be well after it, so nothing was changed: {bad[0].message}",
            hint=bad[0].hint,
        )
    for one in found:
        report(Noted("warning", one.message, broker.name))


def _owner(broker: Mosquitto, places: UserFiles) -> tuple[int, int]:
    """Whoever owned the password file; the broker where that was root."""
    state = places.passwords.stat()
    return (state.st_uid, state.st_gid) if state.st_uid else broker.owner


@dataclass(frozen=True)
class _Change:
    """One run that exchanges the files of a broker's users."""

    hub: Hub
    broker: Mosquitto
    places: UserFiles
    run: Run
    report: Report

    def exchange(self, now: Present, wanted: Wanted, made: _Made) -> None:
        """Write the new files and put them in place of the old ones."""
        with step(self.report, "write", self.broker.name):
            folder = self.hub.layout.tmp / self.run.id
            folder.mkdir(mode=0o700, parents=True)
            changes = (self._passwords(folder, made.lines), *self._texts(now, wanted))
        for one in changes:
            swap.stop_for_swap(self.hub, self.run, Path(one.live), self.report)
        # It reads its users when it starts, wherever they lie.
        swap.stop_service(self.hub, self.run, self.broker.place.container, self.report)
        for one in changes:
            with step(self.report, "swap", self.broker.name):
                swap.swap_in(self.run, one)

    def prove(self, wanted: Wanted, password: Secret | None) -> None:
        """Start what was stopped, and ask the broker as everybody would.

        Raises:
            StackError: it does not come up, lets in anybody, or not the device.
        """
        self.run.note(step="start")
        swap.start_stopped(self.hub, self.run, self.report, keep=True)
        wait_ready(self.hub, [self.broker], report=self.report)
        if password is None:
            return
        with step(self.report, "login", self.broker.name):
            if not self.broker.lets_in(wanted.device.name, password):
                raise StackError(
                    f"{self.broker.name} refuses {wanted.device.name} with its new password",
                    hint=f"look at it: iotops logs {self.broker.name}",
                )

    def _passwords(self, made: Path, content: bytes) -> Swap:
        """Write the new password file where a rename can take it from, its removal armed."""
        live = self.places.passwords
        old, new = made / "old", made / "passwd"
        if made.stat().st_dev != live.parent.stat().st_dev:  # as in the hub folder, on the card
            old, new = files.beside(live), files.beside(live)
        one = self._swap(live, old, new)
        self.run.swapping(one)
        files.write(new, content, mode=0o600, owner=_owner(self.broker, self.places))
        return one

    def _texts(self, now: Present, wanted: Wanted) -> tuple[Swap, ...]:
        """Write the new texts beside the old ones, their removal armed; only those that differ."""
        declaration = self.hub.folder / devices.FILE
        found: list[Swap] = []
        for path, before, after in (
            (self.places.acl, None, wanted.acl),
            (declaration, now.text, wanted.text),
        ):
            data = after.encode("utf-8", "surrogateescape")
            there = path.is_file()
            if (before is None and data == path.read_bytes()) or before == after:
                continue
            one = self._swap(path, files.beside(path), files.beside(path), there=there)
            self.run.swapping(one)
            owner, mode = self.hub.owner, 0o644
            if there:
                state = path.stat()
                owner, mode = (state.st_uid, state.st_gid), state.st_mode & 0o777
            elif not path.parent.exists():  # the broker's own files lie in another folder
                files.make_folder(path.parent, owner=owner)
            files.write(Path(one.new), data, mode=mode, owner=owner)
            found.append(one)
        return tuple(found)

    def _swap(self, live: Path, old: Path, new: Path, *, there: bool = True) -> Swap:
        return Swap(self.broker.name, str(live), str(old), str(new), had_old=there)


def _broker(hub: Hub) -> Mosquitto:
    from iotops.services.mosquitto import Mosquitto

    found = [one for one in hub.of_kind(KIND) if isinstance(one, Mosquitto)]
    if len(found) != 1:
        raise UsageError(
            f"the devices of one broker are declared, and this hub has {len(found)}",
            hint="look at the services of the kind mosquitto in iotops.toml",
        )
    return found[0]


def _present(hub: Hub, broker: Mosquitto, places: UserFiles) -> Present:
    """Read everything, before anything is disturbed."""
    declaration = hub.folder / devices.FILE
    if declaration.is_symlink():
        raise GuardError(f"{declaration} is a link", hint="put the file itself there")
    text = _text(declaration) if declaration.exists() else ""
    with files.open_plain(places.passwords) as descriptor:
        lines = mosquittousers.passwords(os.read(descriptor, 4 << 20))
    rights = mosquittousers.acl(_text(places.acl), places.acl)
    now = Present(broker.options.username, text, devices.parse(text), lines, rights)
    refuse_claimed(now)
    return now


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _runs(hub: Hub, broker: Mosquitto) -> bool:
    """Tell whether the broker runs; one that runs must be well, for its logins prove the change.

    Raises:
        GuardError: it is not.
    """
    container = hub.stack.containers().get(broker.place.container)
    if container is None or container.state in ("created", "exited", "dead"):
        return False
    reason = container.state
    if reason == "running":
        answer = broker.ready()
        if answer.ok:
            return True
        reason = answer.reason
    raise GuardError(
        f"{broker.name} is not well, so nothing was changed: {reason}",
        hint=f"mend that first: iotops up {broker.name}; or stop it",
    )


def _commit(hub: Hub, places: UserFiles, message: str, report: Report) -> str:
    """Commit the two texts, so that Git says what the hub is; give the commit, or "".

    It has happened already: where Git refuses, that is told and nothing is taken back.
    """
    chosen = [devices.FILE]
    acl, top = places.acl.resolve(), hub.folder.resolve()
    if acl.is_relative_to(top):
        chosen.append(acl.relative_to(top).as_posix())
    try:
        tree = Upstream(hub.folder, owner=hub.owner)
        if not tree.exists():
            return ""
        with step(report, "commit"), hub.flows_locked("device"):
            if (branch := tree.branch()) != BRANCH:
                text = f"not committed: the hub folder has {branch or 'no branch'} checked out"
                report(Noted("warning", text))
                return ""
            before = tree.head()
            commit = tree.commit_all(message, chosen) or ""
            if commit:
                _follow(hub, tree, before, commit, report)
            return commit
    except IotopsError as error:
        text = f"not committed: {error.message}; by hand: git commit {' '.join(chosen)}"
        report(Noted("warning", text))
        return ""


def _follow(hub: Hub, tree: Upstream, before: str | None, commit: str, report: Report) -> None:
    """Let config-sync know a commit that was made; a failure takes nothing of it back."""
    try:
        synced = hub.state.read().sync
        if synced.get("commit") == before:
            # The broker has it already: config-sync has nothing to tell anybody.
            hub.state.update(sync={**synced, "commit": commit})
    except (IotopsError, OSError) as error:
        text = f"committed as {commit[:8]}, but config-sync does not know it: {error}"
        report(Noted("warning", f"{text}; look: iotops sync plan"))
    if url := hub.settings.sync.remote:
        bring = f"bring the commit to the remote before another one comes: {sync.bring(hub)}"
        try:
            tree.set_remote(sync.REMOTE, url)
            report(Noted("info", bring))
        except IotopsError as error:
            text = f"committed as {commit[:8]}, but: {error.message}; mend that, then {bring}"
            report(Noted("warning", text))
