"""Look at a candidate configuration before anything of the hub is touched.

A candidate is a folder with the files of a commit. Compose reads it with the real `.env`; images,
ports and folders are asked for on this machine; every kind tries its own files on the real server
of the image that would run (`Service.validate`). Nothing is pulled, written into the hub or sent
out. Not here: how a candidate comes to look like the hub folder (`candidateview.py`), comparing it
with the hub (`syncfacts.py`), and putting it in place (`syncapply.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from iotops import config
from iotops.actions import candidateimages, envcheck, misnamed, refusals
from iotops.actions.candidateview import View, candidate_view
from iotops.actions.hooks import private_key, refused_in_git
from iotops.clients import enginelook, files
from iotops.clients.compose import ComposeStack
from iotops.clients.composemodel import Mount, Port, Publisher, masked
from iotops.errors import IotopsError, StackError, passes
from iotops.events import Report, silent, step
from iotops.hub import Hub, options_of
from iotops.model import Finding, Severity
from iotops.services.base import Service

SHORTEST = 8
"""Letters that a value must have to be looked for in files: a shorter one is there by chance."""
LARGEST = 1 << 20
"""Bytes up to which a file of a candidate is searched for secrets."""


def examine(hub: Hub, tree: Path, report: Report = silent) -> tuple[Finding, ...]:
    """Examine the files of a candidate against this hub, its machine and its images.

    Args:
        hub: the running hub; nothing of it is changed.
        tree: the hub files of a commit, without `.env`: the hub's own is used.

    Returns:
        All findings, without any value of `.env`; an ERROR means that it must not be applied.

    Raises:
        StackError, ProgramMissing: Docker or Compose is not there: nothing can be said.
    """
    hub.stack.require()
    with candidate_view(hub, tree.resolve()) as view:
        found = [*_looked(view, report)]
    secrets = [*_secrets(hub, shortest=4).values()]  # a server's words may hold one
    seen, real = str(view.folder), str(hub.folder)

    def told(text: str) -> str:
        return masked(text.replace(seen, real), secrets)

    return tuple(replace(one, message=told(one.message), hint=told(one.hint)) for one in found)


def _looked(view: View, report: Report) -> Iterator[Finding]:
    yield from _guarded("files", partial(_files, view), report)
    try:
        settings = config.load(view.folder / config.FILE, options_of)
    except IotopsError as error:
        # Its own hint opens the copy, or the hub's file, which may be as good as ever.
        hint = f"correct {config.FILE} in the commit"
        yield Finding("candidate.settings", Severity.ERROR, config.FILE, error.message, hint)
        settings = view.hub.settings
    moved = {view.hub.folder.resolve(): view.folder}
    hub = Hub(view.folder, settings, rehearsal=ComposeStack(view.folder, moved=moved))
    yield from _guarded("settings", partial(_settings, view.hub, hub), report)
    lacking = False
    with suppress(StackError), step(report, "look at", "variables"):  # told by the next look
        for one in envcheck.variables(hub):
            lacking |= one.severity is Severity.ERROR
            yield one
    try:
        with step(report, "look at", "compose"):
            services, models = hub.services, hub.model.services
    except IotopsError as error:
        if not (lacking and "required variable" in error.message):
            text = error.message.partition(": ")[2] or error.message
            yield _finding("candidate.compose", _compose(view), text, "correct the file")
        return
    yield from _guarded("compose", partial(_project, view, hub), report)
    yield from _guarded("services", partial(_services, view, hub), report)
    yield from _guarded("images", partial(candidateimages.look, hub), report)
    if enginelook.on_this_machine():
        yield from _guarded("ports", partial(_ports, view.hub, hub), report)
        yield from _guarded("folders", partial(_folders, view, hub), report)
    here = enginelook.images_here({one.image for one in models.values() if one.image})
    for service in services:
        model = models.get(service.place.container)
        if model is not None and model.image in here:
            yield from _guarded(service.name, partial(_service, service, view), report)


def _guarded(name: str, look: Callable[[], Iterator[Finding]], report: Report) -> Iterator[Finding]:
    """Take one look; what keeps it from being taken is a finding, and the others go on."""
    with step(report, "look at", name):
        found: list[Finding] = []
        try:
            found += look()
        except OSError as error:
            text = f"{error.filename or name}: {error.strerror or error}"
            code = refusals.PASSING if passes(error) else "candidate.unreadable"
            found.append(Finding(code, Severity.ERROR, name, text))
        except IotopsError as error:
            own = f"candidate.{type(error).__name__.lower()}"
            code = refusals.PASSING if passes(error) else own
            found.append(Finding(code, Severity.ERROR, name, error.message, error.hint))
    yield from found


def _secrets(hub: Hub, *, shortest: int = SHORTEST) -> Mapping[str, str]:
    """Give the values of `.env` whose name says that they are secret."""
    values = hub.named_secrets().items()
    return {name: value for name, value in values if len(value) >= shortest}


# ---- files and settings -------------------------------------------------------------------------


def _files(view: View) -> Iterator[Finding]:
    """Find secrets among the files: by their names, private keys, values of the real `.env`."""
    found = [path for path in sorted(view.tree.rglob("*")) if not path.is_dir()]
    paths = {path.relative_to(view.tree).as_posix(): path for path in found}
    paths = {name: path for name, path in paths.items() if not name.startswith(".git/")}
    refused = refused_in_git(paths)
    yield from refused
    told = {one.subject for one in refused}
    secrets = {
        name: value.encode("utf-8", "surrogateescape") for name, value in _secrets(view.hub).items()
    }
    for name, path in paths.items():
        if name in told or not files.is_regular(path) or path.stat().st_size > LARGEST:
            continue
        data = path.read_bytes()
        if private_key(data):
            yield _finding(
                "candidate.key",
                name,
                f"a private key stands in {name}",
                f"git rm --cached {name}; keep it on the hub only, named in .gitignore; and make"
                " another key, since this one is in the history",
            )
        for variable, value in secrets.items():
            if value in data:
                yield _finding(
                    "candidate.secret",
                    name,
                    f"the value of {variable} from {envcheck.FILE} stands in {name}",
                    f"write ${{{variable}}} in its place, and change the secret",
                )


def _settings(now: Hub, then: Hub) -> Iterator[Finding]:
    """Find settings that would make it another hub, or the same one with other data."""
    for key, old, new in (
        ("hub.id", now.id, then.id),
        ("data.root", str(now.root), str(then.root)),
        ("data.kind", now.settings.data.kind, then.settings.data.kind),
        # Another state file knows no last good commit; another lock keeps no other run out.
        ("paths.state", str(now.settings.paths.state), str(then.settings.paths.state)),
        ("paths.run", str(now.settings.paths.run), str(then.settings.paths.run)),
    ):
        if old != new:
            yield Finding(
                "candidate.other",
                Severity.ERROR,
                config.FILE,
                f"{key} is {new!r} there and {old!r} here: that is another hub, or other data or"
                " records",
                "such a change is made by hand, with the stack down",
            )
    if now.name != then.name:
        yield Finding(
            "candidate.renamed",
            Severity.WARNING,
            config.FILE,
            f"hub.name changes from {now.name!r} to {then.name!r}: new snapshots come under the"
            " new name, retention sees two series",
        )


# ---- the Compose model --------------------------------------------------------------------------


def _compose(view: View) -> str:
    names = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
    return next((name for name in names if (view.folder / name).exists()), "docker-compose.yaml")


def _project(view: View, hub: Hub) -> Iterator[Finding]:
    """Find a change that would leave the running containers behind."""
    if not _readable(view.hub):
        return
    running = view.hub.model.project
    if hub.model.project != running:
        yield _finding(
            "candidate.project",
            _compose(view),
            f"the project would be called {hub.model.project}; the containers that run belong to"
            f" {running} and would hold their ports and data",
            f'keep the line: name: "{running}"',
        )
    for service in view.hub.services:
        if service.place.container not in hub.model.services:
            yield Finding(
                "candidate.removed",
                Severity.WARNING,
                service.name,
                f"the Compose file has no {service.place.container} any more; its data stays in"
                f" {service.place.folder}, and no backup takes it as a service",
            )


def _services(view: View, hub: Hub) -> Iterator[Finding]:
    """Find services that no backup could take as what they are: their container or folder is not.

    What is so already is for the doctor to tell: the commit may have nothing to do with it.
    """
    before = {one.name: one for one in view.hub.services} if _readable(view.hub) else {}
    now = view.hub.model.services if before else {}
    declared = hub.model.services
    bound = [
        mount.source
        for model in declared.values()
        for mount in model.mounts
        if mount.source is not None
    ]
    for service in hub.services:
        name, folder, known = service.name, service.place.folder, before.get(service.name)
        if misnamed.lost(service, declared) and not (known and misnamed.lost(known, now)):
            odd = misnamed.declared_otherwise(service, hub.services, declared)
            yield odd or _finding(
                misnamed.CODE,
                name,
                f"the Compose file has no {service.place.container}, which [services.{name}] names",
                f'name its container: container = "..."; there are: {", ".join(sorted(declared))}',
            )
        if not enginelook.on_this_machine() or folder.exists():
            continue
        # Below another data root nothing is there, and that root is told by itself.
        usual = view.hub.root / folder.relative_to(hub.root)
        if known is not None and known.place.folder == usual:
            continue
        if not any(one.is_relative_to(folder) or folder.is_relative_to(one) for one in bound):
            yield _finding(
                "service.folder",
                name,
                f"the folder {folder} of [services.{name}] does not exist: every backup would be"
                " partial",
                f"correct it in the commit (folder = ...), or make it: mkdir {folder}",
            )


def _readable(hub: Hub) -> bool:
    """Whether the files that are in place now can be read; a candidate may be what mends them."""
    try:
        return bool(hub.services)
    except IotopsError:
        return False


# ---- this machine -------------------------------------------------------------------------------


def _ports(now: Hub, then: Hub) -> Iterator[Finding]:
    """Find ports that somebody else holds; what this hub's own containers hold will be free."""
    held = enginelook.publishers()
    project = now.model.project if _readable(now) else then.model.project
    seen: list[tuple[str, Port]] = []
    for name, model in sorted(then.model.services.items()):
        for port in model.ports:
            if not port.published:
                continue
            shown = f"{port.host + ':' if port.host else ''}{port.published}/{port.protocol}"
            if (other := next((one for one, its in seen if _same(port, its)), None)) is not None:
                text = f"port {shown} is published by {other} too"
                yield _finding("port.twice", name, text, "give one of them another port")
                continue
            seen.append((name, port))
            if why := _taken(port, held, project):
                text = f"port {shown} is not free: {why}"
                hint = (
                    f"choose another one, or see who holds it: ss -lntup | grep :{port.published}"
                )
                yield _finding("port.taken", name, text, hint)


def _taken(port: Port, held: Sequence[Publisher], project: str) -> str:
    holders = [one for one in held if _same(port, one.port)]
    foreign = [one for one in holders if one.project != project]
    if foreign:
        return f"the container {foreign[0].name} holds it"
    if holders:
        return ""
    return enginelook.taken(port)


def _same(one: Port, other: Port) -> bool:
    """Whether two ports cannot be held at once: one of them on every address, or on the same."""
    if (one.published, one.protocol) != (other.published, other.protocol):
        return False
    return not one.host or not other.host or one.host == other.host


def _folders(view: View, hub: Hub) -> Iterator[Finding]:
    for name, model in sorted(hub.model.services.items()):
        for mount in (*model.mounts, *model.given):
            if mount.kind == "bind" and mount.source is not None:
                yield from _folder(view, name, mount, mount.source)


def _folder(view: View, name: str, mount: Mount, source: Path) -> Iterator[Finding]:
    relative = view.relative(source)
    there = source if relative is None else view.folder / relative
    if there.exists():
        return
    shown = source if relative is None else view.hub.folder / relative
    where = f"{shown}, which {name} sees as {mount.target}, does not exist"
    if relative is not None:
        text = f"{where}, and the commit does not bring it"
        yield _finding("mount.missing", name, text, f"add {relative} to the commit")
    elif not mount.creates_host_path:
        text = f"{where}: the container would not start"
        yield _finding("mount.missing", name, text, f"make it with its owner: mkdir -p {shown}")
    else:
        text = f"{where}: Docker would make it empty, as root's"
        yield Finding(
            "mount.creates", Severity.WARNING, name, text, f"make it with its owner: mkdir {shown}"
        )


def _service(service: Service, view: View) -> Iterator[Finding]:
    yield from service.validate(view.folder)


def _finding(code: str, subject: str, message: str, hint: str = "") -> Finding:
    return Finding(code, Severity.ERROR, subject, message, hint)
