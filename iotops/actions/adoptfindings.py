"""What of an existing Compose project no snapshot would hold, and what else its owner should know.

Pure as `adopt.py`. An error means: something of the project is not captured, or not by the kind
that knows it, until the hint is followed; the rest is told. Not here: Docker volumes, and how data
in a wrong place is told, which `volumes.py` knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from iotops import services
from iotops.actions import hubfiles, volumes
from iotops.actions.adopt import Kept, Seen
from iotops.clients.compose import Mount, ServiceModel
from iotops.config import RESERVED
from iotops.hub import kind_of
from iotops.model import Finding, Severity

MACHINE = tuple(
    map(
        Path,
        (
            *("/boot", "/dev", "/lib", "/proc", "/run", "/sys", "/tmp", "/usr", "/var/log"),
            *("/var/run", "/var/lib/docker", "/etc/localtime", "/etc/timezone", "/etc/hostname"),
            *("/etc/hosts", "/etc/resolv.conf", "/etc/ssl", "/etc/passwd", "/etc/group"),
            *("/etc/machine-id", "/etc/ca-certificates"),
        ),
    )
)
"""Places of the machine itself: every machine has its own, and no hub keeps anything there."""


def findings(seen: Seen, kept: Sequence[Kept]) -> Iterator[Finding]:
    """Yield everything there is to say about a project, service by service, then about the whole.

    Args:
        kept: as `adopt.judge` decided.
    """
    of = {one.service: one for one in kept}
    for name in sorted(seen.whole.services):
        if name not in seen.active:
            yield from _inactive(seen, name)
            continue
        model = seen.whole.services[name]
        for mount in model.mounts:
            yield from _mount(seen, model, mount, of.get(name), [one.folder for one in kept])
        yield from _data(seen, model, of.get(name))
        if model.build is not None:
            yield from _built(seen, model, model.build)
        if name in of:
            yield from _access(seen, model, of[name])
    yield from _project(seen)


# -- mounts ----------------------------------------------------------------------------------------


def _mount(
    seen: Seen, model: ServiceModel, mount: Mount, own: Kept | None, folders: Sequence[Path]
) -> Iterator[Finding]:
    source = mount.source
    if mount.kind == "volume":
        yield from _bound_volume(seen, model, mount)
        return
    if source is None:
        return
    is_file = source in seen.files
    if source.is_relative_to(seen.root):
        fleeting = services.kind(own.kind).fleeting if own is not None else ()
        beside = not any(_around(source, one) for one in folders)
        if beside and not (is_file or mount.read_only or mount.target in fleeting):
            yield _warning(
                "folder.beside",
                model.name,
                f"{source} is captured with everything else below the data root, while"
                f" {model.name} writes there: its own folder is {own.folder if own else 'none'}",
                f"put its folders into one, or give this one a table: [services.{model.name}-2]"
                f' kind = "files", container = "{model.name}", folder ='
                f' "{source.relative_to(seen.root)}"',
            )
    elif source.is_relative_to(seen.folder):
        if not is_file and not mount.read_only:
            yield _in_hub(seen, model, mount, source)
    elif source != Path("/") and not any(source.is_relative_to(one) for one in MACHINE):
        what = "file" if is_file else "folder"
        where = (seen.folder if is_file or mount.read_only else seen.root) / source.name
        yield volumes.outside_of(model.name, f"the {what} {source}", mount.target, where)
    if is_file:
        yield Finding(
            "mount.file",
            Severity.INFO,
            model.name,
            f"{source} is mounted as a single file: when it is replaced, the container goes on"
            " seeing the old one, so every change of it needs a restart",
            f"after a change: docker compose restart {model.name}; or mount its folder instead",
        )


def _around(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _in_hub(seen: Seen, model: ServiceModel, mount: Mount, source: Path) -> Finding:
    kind = kind_of(model.image)
    if kind and mount.target in services.kind(kind).targets:
        return volumes.in_hub(seen.root, model.name, kind, mount.target, source)
    move = volumes.moving(seen.root, model.name, mount.target, source)
    return _warning(
        "mount.in-hub",
        model.name,
        f"it may write to {source} in the hub folder, which is copied as plain files and which no"
        " restore touches",
        f"if that is configuration, mount it read-only (:ro); if it is data: {move}",
    )


def _bound_volume(seen: Seen, model: ServiceModel, mount: Mount) -> Iterator[Finding]:
    device = seen.devices.get(mount.name)
    if device is None or not device.is_relative_to(seen.root):
        return  # what lies outside is a finding of `volumes.py`
    yield Finding(
        "volume.bound",
        Severity.ERROR if kind_of(model.image) else Severity.WARNING,
        model.name,
        f"the Docker volume {mount.name} is the folder {device}: it is copied as plain files with"
        " everything else below the data root, while the service writes",
        f"mount the folder itself: {device}:{mount.target}",
    )


def _data(seen: Seen, model: ServiceModel, own: Kept | None) -> Iterator[Finding]:
    """Find a server whose data nothing keeps, and a folder with a name that a snapshot needs."""
    kind = kind_of(model.image)
    targets = services.kind(kind).targets if kind else ()
    container = seen.containers.get(model.name)
    mounted = [one.target for one in (*model.mounts, *(container.mounts if container else ()))]
    if targets and not any(Path(targets[0]).is_relative_to(one) for one in mounted):
        yield _error(
            "data.unmounted",
            model.name,
            f"nothing is mounted at {targets[0]}: its data lies in its container and goes with it",
            f"docker compose cp {model.name}:{targets[0]} {seen.root / model.name}; mount that at"
            f" {targets[0]}; docker compose up -d {model.name}",
        )
    if own is not None:
        top = own.folder.relative_to(seen.root).parts[0]
        if top in RESERVED:
            yield _error(
                "folder.reserved",
                model.name,
                f"its folder {own.folder} has the name of a part of every snapshot: it cannot be"
                " captured",
                f"rename {seen.root / top}, on the disk and in the Compose file",
            )


def _built(seen: Seen, model: ServiceModel, context: Path) -> Iterator[Finding]:
    if not context.is_relative_to(seen.folder):
        yield _outside(seen, context, f"what the image of {model.name} is built from")
    else:
        yield Finding(
            "image.built",
            Severity.INFO,
            model.name,
            "its image is built on this machine and is in no snapshot; a new machine builds it"
            " again, with what its sources then are",
            "to have the same one again, push it to a registry and name it by digest",
        )


# -- access ----------------------------------------------------------------------------------------


def _access(seen: Seen, model: ServiceModel, own: Kept) -> Iterator[Finding]:
    cls = services.kind(own.kind)
    published = [one for one in model.ports if one.published and one.protocol == "tcp"]
    if (
        cls.port
        and model.network_mode != "host"
        and not any(o.target == cls.port for o in published)
    ):
        other = f", only {published[0].target}" if published else ""
        yield _error(
            "port.unpublished",
            model.name,
            f"port {cls.port} is not published{other}: the server cannot be asked",
            f'publish it for this machine: "127.0.0.1:{cls.port}:{cls.port}"; or say where it'
            f" answers: {'host and port' if own.kind == 'mosquitto' else 'url'} in"
            f" [services.{own.name}]",
        )
    if own.kind == "influxdb":
        yield from _operator(seen, model, own)
    elif own.kind == "nodered":
        yield from _login(seen, own)
    elif own.kind == "mosquitto":
        yield from _broker(seen, own)


def _operator(seen: Seen, model: ServiceModel, own: Kept) -> Iterator[Finding]:
    name = str(own.table.get("token_env", "INFLUXDB_OPERATOR_TOKEN"))
    if seen.secrets.get(name):
        return
    plain = [key for key in model.environment if key.endswith("_INIT_ADMIN_TOKEN")]
    yield _error(
        "token.missing",
        model.name,
        f"there is no {name} in .env: without an operator token InfluxDB gives nothing out",
        f"copy the value of {plain[0]} into .env as {name}='...'"
        if plain
        else f"make one: docker compose exec {model.name} influx auth create --operator; write it"
        f" into .env as {name}='...'",
    )


def _login(seen: Seen, own: Kept) -> Iterator[Finding]:
    if own.service in seen.guarded and not seen.secrets.get("NODERED_TOKEN"):
        yield _error(
            "token.missing",
            own.service,
            "its settings.js asks for a login (adminAuth), and there is no NODERED_TOKEN in .env:"
            " its flows cannot be read",
            "add a static token with the scope flows.read, status.read, nodes.read, settings.read"
            " to adminAuth.tokens, and NODERED_TOKEN='...' to .env; then: docker compose restart"
            f" {own.service}",
        )


def _broker(seen: Seen, own: Kept) -> Iterator[Finding]:
    where = f"[services.{own.name}]"
    if own.table.get("anonymous"):
        yield _warning(
            "mosquitto.open",
            own.service,
            "its broker lets in anybody without a password, and the settings now say that this is"
            " meant",
            "give devices passwords (`allow_anonymous false`, `password_file`), and remove"
            f" anonymous from {where}",
        )
    else:
        yield Finding(
            "mosquitto.login",
            Severity.INFO,
            own.service,
            "no user of the broker is known: a restore then sees only that it answers, and that it"
            " refuses whoever has no password",
            f"name one: username and password_env in {where}, the password in .env",
        )
    conf = seen.brokers.get(own.service)
    if conf is not None and not conf.keeps:
        yield _warning(
            "mosquitto.persistence",
            own.service,
            "persistence is off: retained messages and sessions are lost when the broker stops",
            "add `persistence true` and `persistence_location /mosquitto/data/` to mosquitto.conf",
        )


# -- the whole project -----------------------------------------------------------------------------


def _inactive(seen: Seen, name: str) -> Iterator[Finding]:
    model = seen.whole.services[name]
    there = name in seen.containers
    keeps = [str(one.source) for one in seen.inside(model) if one.source in seen.folders]
    what = f"; {', '.join(keeps)} is only copied as plain files" if keeps else ""
    yield Finding(
        "profile.inactive",
        Severity.ERROR if there else Severity.INFO,
        name,
        f"it belongs to the profile {' or '.join(model.profiles)}, which is not active here, but"
        f" it has a container, which is no part of the hub then{what}"
        if there
        else f"it belongs to the profile {' or '.join(model.profiles)}, which is not active: it is"
        f" no part of the hub{what}",
        f"make it one, also for `docker compose`: COMPOSE_PROFILES={','.join(model.profiles[:1])}"
        " in .env",
    )


def _project(seen: Seen) -> Iterator[Finding]:
    for path in (*seen.parts, *seen.whole.files):
        if not path.is_relative_to(seen.folder):
            yield _outside(seen, path, "a part of the Compose project")
    used = {path for one in seen.containers.values() for path in one.files}
    if used and seen.tops and used != {*seen.tops}:
        names = ":".join(sorted(str(_below(path, seen.folder)) for path in used))
        yield _error(
            "project.files",
            seen.whole.project,
            f"its containers were made from {names}, and not from what Compose finds by itself in"
            f" {seen.folder}: that is another project",
            f"say it in .env: COMPOSE_FILE={names}; then adopt again",
        )
    for name in seen.other_names:
        yield _error(
            "project.other-name",
            name,
            f"containers of this folder run as the project {name}, while Compose by itself calls"
            f" it {seen.whole.project}",
            f"write `name: {name}` at the top of the Compose file",
        )
    for name in sorted({*seen.containers} - {*seen.whole.services}):
        yield _error(
            "container.undeclared",
            name,
            "it has a container in this project, but no Compose file declares it",
            "declare it again, or remove it: docker compose up -d --remove-orphans",
        )
    if not seen.named:
        yield _warning(
            "project.name",
            seen.whole.project,
            "the project's name comes from the folder's name: in a folder of another name it would"
            " be another project, with other containers and volumes",
            f"write `name: {seen.whole.project}` at the top of the Compose file",
        )
    if seen.unset:
        yield _warning(
            "variable.unset",
            ".env",
            f"the Compose file names {', '.join(seen.unset)}, and .env does not: Compose puts"
            " nothing in their place (values of a shell are not seen by timers)",
            f"write them into {seen.folder}/.env",
        )
    yield from _beside(seen)


def _beside(seen: Seen) -> Iterator[Finding]:
    env = seen.folder / ".env"
    if not seen.has_env:
        yield _warning(
            "env.missing",
            ".env",
            f"there is no {env}: what iotops logs in with belongs there, and not into the"
            " Compose file",
            f"sudo install -m 600 /dev/null {env}",
        )
    if seen.git is None:
        yield Finding(
            "git.missing",
            Severity.INFO,
            "git",
            f"{seen.folder} is no Git repository: backups need none; `iotops flows` and"
            " `iotops sync` do",
            hubfiles.into_git(seen.folder),
        )
    elif seen.git != seen.folder:
        yield _warning(
            "git.above",
            "git",
            f"the Git repository of {seen.folder} begins above it, in {seen.git}: its history is"
            " not captured",
            "make the hub folder a repository of its own",
        )


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _outside(seen: Seen, path: Path, what: str) -> Finding:
    return _error(
        "file.outside",
        str(path),
        f"it is {what}, and lies outside of the hub folder: it is not captured",
        f"move it into {seen.folder}, and name it from there in the Compose file",
    )


def _error(code: str, subject: str, message: str, hint: str) -> Finding:
    return Finding(code, Severity.ERROR, subject, message, hint)


def _warning(code: str, subject: str, message: str, hint: str) -> Finding:
    return Finding(code, Severity.WARNING, subject, message, hint)
