"""Make a hub of an existing Compose project: look at it, and write `iotops.toml`.

Nothing else is written or changed: no container, no file of the project, nothing below the data
root. Not here: what is decided (`adopt.py`), what is wrong with it (`adoptfindings.py`), taking
the data root (`claiming.py`), and any question (`cli/adopt.py`).
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from iotops import config, disk, services
from iotops.actions import adopt, claiming, volumes
from iotops.actions.adopt import Kept, Seen
from iotops.actions.adoptfindings import findings
from iotops.clients import files, mosquittofolder
from iotops.clients.compose import ComposeStack, Model
from iotops.clients.composemodel import Variable, inside_here
from iotops.clients.mosquittofolder import Conf
from iotops.errors import GuardError, IotopsError, SettingsError, StackError, UsageError
from iotops.events import Report, silent, step
from iotops.hub import FILES, Hub, kind_of, options_of
from iotops.model import Finding, Mode, Severity
from iotops.services.mosquitto import CONFIGURATION


@dataclass(frozen=True)
class Wanted:
    """How a project shall be adopted.

    Attributes:
        name: the hub's; empty = the project's. owner: empty = whom the folder belongs to.
        state, run: folders of the state file and of the lock, instead of the usual ones.
    """

    name: str = ""
    owner: str = ""
    data_root: Path = Path("/mnt/iot-data")
    data_kind: Literal["mount", "folder"] = "mount"
    state: Path | None = None
    run: Path | None = None


@dataclass(frozen=True)
class Found:
    """What was found of a service, and what will be captured of it.

    Attributes:
        container: its name, empty when it has none now. kind, folder: empty = no data of its own.
        captured: in words.
    """

    service: str
    image: str
    container: str
    kind: str
    folder: str
    captured: str


@dataclass(frozen=True)
class Adoption:
    """A project that can be adopted, or was.

    Attributes:
        text: of `iotops.toml`. partial: something of the project is not captured as it should be.
        written: what was made; nothing after a look.
        holds: names of what lies on the data root.
    """

    folder: Path
    root: Path
    kind: Literal["mount", "folder"]
    hub_id: str
    name: str
    owner: str
    services: tuple[Found, ...]
    findings: tuple[Finding, ...]
    text: str
    partial: bool
    written: tuple[Path, ...] = ()
    holds: tuple[str, ...] = ()


def look(folder: Path, wanted: Wanted, report: Report = silent) -> Adoption:
    """Look at a project, and decide how it becomes a hub; nothing is written.

    Args:
        folder: the project's; absolute.

    Raises:
        UsageError: it cannot be asked for like that. GuardError: it is a hub already, or its data
        is not where it is said to be. StackError: Compose cannot read it.
    """
    folder = folder.resolve()
    _refuse(folder, wanted)
    stack = ComposeStack(folder)
    with step(report, "read the project"):
        stack.require()
        seen = _seen(folder, wanted.data_root, stack)
    _refuse_elsewhere(seen)
    with step(report, "judge"):
        kept = adopt.judge(seen)
        hub = _hub(folder, wanted, seen, kept)
        found = [*findings(seen, kept), *volumes.uncaptured(hub, seen.containers)]
        root = wanted.data_root
        ours = disk.inspect(root, wanted.data_kind, "")
        partial = any(one.severity is Severity.ERROR for one in found)
        if not kept and not partial:
            raise GuardError(
                f"no service of {folder} keeps anything below {root}: nothing would be captured",
                hint="say where their data lies: iotops init --adopt --data-root DIR",
            )
        found += [_unclaimed(one, folder) for one in ours if one.code in disk.UNCLAIMED]
    return Adoption(
        folder,
        hub.root,
        wanted.data_kind,
        hub.id,
        hub.name,
        hub.settings.hub.owner,
        tuple(_services(hub, seen)),
        tuple(found),
        _text(hub.id, hub.name, hub.settings.hub.owner, wanted, kept),
        partial,
        holds=claiming.names(root),
    )


def write(adoption: Adoption) -> Adoption:
    """Write `iotops.toml`, and nothing else.

    Raises:
        GuardError: there is one by now. IotopsError: it cannot be written.
    """
    path = adoption.folder / config.FILE
    entry = pwd.getpwnam(adoption.owner)
    if os.path.lexists(path):
        raise _adopted(path)
    try:
        files.write(path, adoption.text.encode(), mode=0o644, owner=(entry.pw_uid, entry.pw_gid))
    except OSError as error:
        raise IotopsError(f"{path} cannot be written: {error.strerror}") from error
    return replace(adoption, written=(*adoption.written, path))


def told(adoption: Adoption) -> list[str]:
    """Say in lines for a person what was found and what is captured, without the findings."""
    head = f"hub {adoption.name} in {adoption.folder}, data in {adoption.root}"
    lines = [head]
    for one in adoption.services:
        runs = f", container {one.container}" if one.container else ", no container"
        lines.append(f"  {one.service} ({one.image or 'built here'}{runs}): {one.captured}")
    return lines


# -- looking ---------------------------------------------------------------------------------------


def _refuse(folder: Path, wanted: Wanted) -> None:
    if os.geteuid() != 0:
        raise UsageError(
            "adopting a project needs root: Docker's volumes and the services' data are looked at",
            hint=f"sudo iotops init --adopt {folder}",
        )
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", hint="iotops init --adopt DIR")
    if os.path.lexists(folder / config.FILE):
        raise _adopted(folder / config.FILE)
    root = wanted.data_root
    if not root.is_absolute():
        raise UsageError(f"the data root {root} must be an absolute path", hint="--data-root /...")
    inner, outer = folder, root.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise GuardError(
            f"the hub folder {folder} and the data root {root} contain each other: a snapshot of"
            " one would hold the other one too",
            hint="move the project to a folder of its own, for example /srv/iot-hub (docker compose"
            " down; mv; write its `name:` into the Compose file; docker compose up -d)",
        )
    bad = [
        one
        for one in disk.inspect(root, wanted.data_kind, "")
        if one.severity is Severity.ERROR and one.code not in disk.UNCLAIMED
    ]
    if bad:
        hint = bad[0].hint
        if bad[0].code == "mount.absent":
            hint = f"sudo mount {root}; if it is a plain folder: --data-kind folder"
        elif bad[0].code == "mount.missing":
            hint = "say where the services' data lies: iotops init --adopt --data-root DIR"
        elif bad[0].code == "mount.foreign":
            hint = (
                "if its iotops.toml was lost, bring the hub folder back: iotops init"
                " --from-repository URL DIR"
            )
        raise GuardError("; ".join(one.message for one in bad), hint=hint)


def _adopted(path: Path) -> GuardError:
    return GuardError(
        f"{path} is there already: this is a hub",
        hint=f"look at it: iotops doctor --hub {path.parent}; claim its data:"
        f" iotops init --claim-data --hub {path.parent}",
    )


def _seen(folder: Path, root: Path, stack: ComposeStack) -> Seen:
    env = config.read_env(folder / ".env")
    values = {name: value.reveal() for name, value in env.items()}
    named: tuple[Variable, ...] = ()
    with suppress(StackError):  # what is wrong with the project, the model tells
        named = stack.variables()
    lacking = [one.name for one in named if one.required and not values.get(one.name)]
    try:
        active = stack.model()
    except StackError as error:
        if not lacking:
            raise
        raise StackError(
            f"the Compose project in {folder} needs values that its .env does not have:"
            f" {', '.join(lacking)}",
            hint=f"write them into {folder / '.env'}, mode 0600; values of a shell do not count,"
            " timers have none",
        ) from error
    whole = stack.whole()
    mounts = [one for model in whole.services.values() for one in model.mounts]
    sources = {one.source for one in mounts if one.source is not None}
    there = stack.volumes(sorted({one.name for one in mounts if one.kind == "volume" and one.name}))
    tops, parts = stack.files()
    seen = Seen(
        folder=folder,
        root=root,
        whole=whole,
        active=frozenset(active.services),
        containers=stack.containers(),
        other_names=stack.other_names(),
        files=frozenset(one for one in sources if one.exists() and not one.is_dir()),
        folders=frozenset(one for one in sources if one.is_dir()),
        devices={name: one.device for name, one in there.items() if one.device is not None},
        secrets=values,
        has_env=(folder / ".env").is_file(),
        unset=tuple(
            one.name
            for one in named
            if not one.required and not one.has_default and one.name not in values
        ),
        tops=tops,
        parts=parts,
        named=stack.names_itself(),
        git=next((one for one in (folder, *folder.parents) if (one / ".git").exists()), None),
    )
    return replace(seen, brokers=dict(_brokers(whole)), guarded=frozenset(_guarded(seen)))


def _brokers(whole: Model) -> Iterator[tuple[str, Conf]]:
    for name, model in whole.services.items():
        if kind_of(model.image) == "mosquitto":
            here = partial(inside_here, model)
            path = here(CONFIGURATION)
            told = mosquittofolder.configuration(path, here) if path is not None else None
            if told is not None:
                yield name, told


def _guarded(seen: Seen) -> Iterator[str]:
    """Find the Node-RED services whose settings ask for a login, wherever they are mounted."""
    for name, model in seen.whole.services.items():
        if kind_of(model.image) != "nodered":
            continue
        for mount in model.mounts:
            places = [mount.source, mount.source / "settings.js"] if mount.source else []
            for path in places:
                try:
                    text = path.read_text("utf-8", "replace") if path.suffix == ".js" else ""
                except OSError:
                    continue
                if re.search(r"^\s*[\"']?adminAuth[\"']?\s*:", text, re.MULTILINE):
                    yield name


def _refuse_elsewhere(seen: Seen) -> None:
    """Refuse a data root that holds nothing of the project, while another folder does."""
    models = seen.whole.services.values()
    places = [
        mount.source.parent
        for model in models
        for mount in model.mounts
        if mount.source in seen.folders
        and mount.source is not None
        and not mount.source.is_relative_to(seen.folder)
        and (kind := kind_of(model.image))
        and mount.target in services.kind(kind).targets
    ]
    if places and not any(seen.inside(model) for model in models):
        raise GuardError(
            f"no service of {seen.folder} keeps anything below {seen.root}: it lies elsewhere",
            hint=f"if it is there: iotops init --adopt --data-root {os.path.commonpath(places)}",
        )


# -- what it becomes -------------------------------------------------------------------------------


def _hub(folder: Path, wanted: Wanted, seen: Seen, kept: Sequence[Kept]) -> Hub:
    """Give the hub that it will be, and see that it is what was decided."""
    name = wanted.name or seen.whole.project[:63]
    text = _text(secrets.token_hex(8), name, _owner(folder, wanted.owner), wanted, kept)
    try:
        hub = Hub(folder, config.check(tomllib.loads(text), folder / config.FILE, options_of))
    except SettingsError as error:
        raise UsageError(
            "; ".join(error.faults),
            hint=f"mend it in the Compose project, then again: iotops init --adopt {folder}",
        ) from error
    _ = hub.owner  # this machine knows the user
    return hub


def _text(hub_id: str, name: str, owner: str, wanted: Wanted, kept: Sequence[Kept]) -> str:
    moved = {"state": wanted.state, "run": wanted.run}
    return adopt.settings(
        {"id": hub_id, "name": name, "owner": owner},
        {"root": str(wanted.data_root), "kind": wanted.data_kind},
        {key: str(path.absolute()) for key, path in moved.items() if path is not None},
        kept,
    )


def _owner(folder: Path, name: str) -> str:
    if name:
        return name
    number = folder.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError as error:
        raise UsageError(
            f"{folder} belongs to the user {number}, which this machine does not know",
            hint="name one: iotops init --adopt --owner USER",
        ) from error


def _services(hub: Hub, seen: Seen) -> Iterator[Found]:
    own = {one.place.container: one for one in hub.services}
    for name in sorted(seen.whole.services):
        model, container = seen.whole.services[name], seen.containers.get(name)
        service = own.get(name)
        if service is not None:
            hot = service.mode is Mode.HOT
            how = "while it runs" if hot else "and it is stopped for the copy"
            what = "as plain files" if service.kind == FILES else f"as {service.kind}"
            text = f"{service.place.folder} {what}, {how}"
        elif name not in seen.active:
            text = "nothing: its profile is not active"
        elif seen.inside(model):
            text = "nothing of its own: it looks into folders of others"
        else:
            text = "nothing: it keeps nothing below the data root"
        yield Found(
            name,
            model.image,
            container.name if container is not None else "",
            service.kind if service is not None else "",
            str(service.place.folder) if service is not None else "",
            text,
        )


def _unclaimed(found: Finding, folder: Path) -> Finding:
    return replace(
        found,
        severity=Severity.WARNING,
        message=f"the data root {found.subject} carries no sentinel yet: until it is claimed, it"
        " counts as another disk, and nothing is backed up",
        hint=f"sudo iotops init --claim-data --hub {folder}",
    )
