"""What Compose and the engine say, as frozen values: readers of their JSON, tolerant of versions.

Pure: nothing here asks Docker anything (`compose.py` does). Shapes: `docker compose config`,
versions 2.26 and 2.40, and `docker inspect` of Engine 20.10 (API 1.41).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from iotops import secretnames
from iotops.errors import StackError
from iotops.model import ImageRecord


@dataclass(frozen=True)
class Mount:
    """A place in a container that comes from outside.

    Attributes:
        source: the host's path of a bind mount; None for any other kind.
        target: the path inside the container.
        kind: "bind", "volume", "tmpfs", ...
        creates_host_path: Docker makes an empty folder of root's when the source is missing, so
            an unmounted disk goes unnoticed.
        name: the volume's name, empty for a bind mount.
    """

    source: Path | None
    target: str
    kind: str
    read_only: bool
    creates_host_path: bool
    name: str = ""


@dataclass(frozen=True)
class Volume:
    """A volume of the engine.

    Attributes:
        mountpoint: where it lies on this host.
        device: the folder that it is in truth (`driver_opts` with `o: bind`), if it is one.
        in_memory: it is a tmpfs; nothing of it outlives its container.
    """

    name: str
    mountpoint: Path
    device: Path | None = None
    in_memory: bool = False


@dataclass(frozen=True)
class Port:
    """A published port. `host` empty = every interface; `published` 0 = chosen by the engine."""

    host: str
    published: int
    target: int
    protocol: str


@dataclass(frozen=True)
class ServiceModel:
    """A service as the Compose file declares it; `environment` holds secrets in clear text.

    Attributes:
        container_name: empty unless the file sets one.
        user: empty = the image's own.
        restart: the policy, for example "unless-stopped"; empty = never.
        command: as the file replaces the image's; empty = it does not.
        built: it may be built here, so that no registry needs to have its image.
        network_mode: for example "host"; empty = networks of its own.
        profiles: it is part of the project only while one of them is active; none = always.
        build: the folder that its image is built from on this machine, if it is.
        given: the files that it gets by `secrets` and `configs`.
        after: the services that it depends on. follows: those of them with which it is to be
            restarted (`restart: true`). joins: those whose network or other namespace it shares.
    """

    name: str
    image: str
    container_name: str
    mounts: tuple[Mount, ...]
    ports: tuple[Port, ...]
    environment: Mapping[str, str]
    user: str
    has_health_check: bool
    restart: str
    command: tuple[str, ...] = ()
    built: bool = False
    network_mode: str = ""
    profiles: tuple[str, ...] = ()
    build: Path | None = None
    given: tuple[Mount, ...] = ()
    after: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    joins: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Name it without its environment, which holds secrets."""
        return f"ServiceModel({self.name!r}, image={self.image!r})"


@dataclass(frozen=True)
class Model:
    """A whole Compose project with every variable filled in.

    Attributes:
        project: the Compose project's name.
        services: by their name; those of inactive profiles are not there.
        networks: the real name of each network, by its key in the file.
        files: what `secrets` and `configs` read on this machine.
    """

    project: str
    services: Mapping[str, ServiceModel]
    networks: Mapping[str, str]
    files: tuple[Path, ...] = ()


UP = ("running", "restarting", "paused")
"""States of a container that was started and has not ended."""


@dataclass(frozen=True)
class Container:
    """A container of a service, as it is now.

    Attributes:
        state: "created", "running", "restarting", "paused", "exited" or "dead".
        health: "healthy", "unhealthy" or "starting"; empty = it has no health check.
        restart_count: how often the engine has restarted it since it was started on purpose.
        started_at: RFC 3339, as the engine says it.
        image: the reference it was made from.
        image_id: the id of that image. digests: its digests in registries, none for a local
            build. platform: for example "linux/arm64/v8"; both empty when the image was removed.
        config_hash: Compose's own, of the declaration it was made from.
        ports: as it publishes them. environment: in clear text, hence never shown. inherited:
            names of variables that have their image's own value.
        files: the Compose files that it was made from.
    """

    service: str
    id: str
    name: str
    state: str
    health: str
    restart_count: int
    exit_code: int
    started_at: str
    oom_killed: bool
    image: str
    image_id: str
    digests: tuple[str, ...]
    platform: str
    mounts: tuple[Mount, ...]
    config_hash: str = ""
    ports: tuple[Port, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherited: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Variable:
    """A variable that a Compose file names.

    Attributes:
        required: without a value nothing starts (`${NAME:?}`).
        has_default: it may be left out (`${NAME:-...}`, `${NAME:+...}`).
    """

    name: str
    required: bool
    has_default: bool


@dataclass(frozen=True)
class Publisher:
    """A running container and a port of this machine that it holds.

    Attributes:
        project, service: of Compose; empty = it was started in another way.
    """

    name: str
    project: str
    service: str
    port: Port


@dataclass(frozen=True)
class Executed:
    """How a program in a container ended; `err` keeps the last lines only."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Holder:
    """A running container with a folder mounted from around a given one.

    Attributes:
        service: its Compose service in this project; empty = a foreign container.
        source: the mounted folder on the host.
        above: the folder it mounts lies above the given one, so that it sees a replaced folder;
            else it keeps the old one until it is stopped.
        writes: it is not mounted read-only.
    """

    name: str
    id: str
    service: str
    source: Path
    above: bool
    writes: bool = True


# ---- checked reading of JSON -------------------------------------------------------------------


def decode(text: str, what: str) -> object:
    """Read one JSON document, or one per line (Compose 2.21 changed some listings).

    Raises:
        StackError: it is neither.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise StackError(f"{what}: the answer is not JSON") from error


def table(value: object, *keys: str) -> Mapping[str, object]:
    """Follow keys to an object; an empty one when it is not there or null."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def rows(value: object) -> Iterator[Mapping[str, object]]:
    """Give the objects of a list; nothing for null."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield item


def word(value: object) -> str:
    """Give a text or number as text; empty for null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else ""


def number(value: object) -> int:
    """Give a number, also from text; 0 for anything else, so for a range of ports."""
    text = word(value)
    return int(text) if re.fullmatch(r"-?\d+", text) else 0


def words(value: object) -> tuple[str, ...]:
    """Give the texts of a list."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


# ---- docker compose config ----------------------------------------------------------------------


def model(document: object) -> Model:
    """Read what `docker compose config --format json` prints.

    Raises:
        StackError: it is not a Compose project.
    """
    top = table(_undoubled(document))
    if not isinstance(top.get("services"), dict):
        raise StackError("reading the Compose project: it declares no services")
    volumes = table(top, "volumes")
    services = {
        name: replace(_service(name, table(value), volumes), given=(*_given(table(value), top),))
        for name, value in table(top, "services").items()
    }
    networks = {
        key: word(table(value).get("name")) or key for key, value in table(top, "networks").items()
    }
    read = [
        Path(path)
        for part in ("secrets", "configs")
        for value in table(top, part).values()
        if (path := word(table(value).get("file")))
    ]
    return Model(word(top.get("name")), services, networks, tuple(read))


def _given(value: Mapping[str, object], top: Mapping[str, object]) -> Iterator[Mount]:
    """Yield what a service gets by `secrets` and `configs`, where they are files (compose-spec)."""
    for part, folder in (("secrets", "/run/secrets"), ("configs", "/")):
        for item in rows(value.get(part)):
            name = word(item.get("source"))
            path = word(table(top, part, name).get("file"))
            target = PurePosixPath(folder) / (word(item.get("target")) or name)
            if path:
                yield Mount(Path(path), str(target), "bind", True, False)


def inside_here(declared: ServiceModel, inside: str) -> Path | None:
    """Give the place on this machine of a path in a service's container; None = not mounted."""
    wanted = PurePosixPath(inside)
    found: tuple[int, Path] | None = None
    for mount in (*declared.mounts, *declared.given):
        target = PurePosixPath(mount.target)
        if mount.source is None or not wanted.is_relative_to(target):
            continue
        if found is None or len(target.parts) > found[0]:
            found = len(target.parts), mount.source / wanted.relative_to(target)
    return found[1] if found is not None else None


def elsewhere(found: Model, moved: Mapping[Path, Path]) -> Model:
    """Give the same project with folders of the host in other places.

    Args:
        moved: where a folder is named, and where it is to be looked for.
    """
    if not moved:
        return found

    def place(mount: Mount) -> Mount:
        for old, new in moved.items():
            if mount.source is not None and mount.source.is_relative_to(old):
                return replace(mount, source=new / mount.source.relative_to(old))
        return mount

    services = {
        name: replace(
            one,
            mounts=tuple(place(mount) for mount in one.mounts),
            given=tuple(place(mount) for mount in one.given),
        )
        for name, one in found.services.items()
    }
    return replace(found, services=services)


def inside(document: object, root: str) -> object:
    """Give a project that was read below a folder which stands for the root folder, as from there.

    Args:
        root: that folder; empty = there is none.
    """
    return _replaced(document, root, "") if root else document


def _undoubled(value: object) -> object:
    """Undo the doubling of each literal dollar sign."""
    return _replaced(value, "$$", "$")


def _replaced(value: object, old: str, new: str) -> object:
    """Replace a text in each text of a JSON value, but not in keys."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    return value


def _service(name: str, value: Mapping[str, object], volumes: Mapping[str, object]) -> ServiceModel:
    check, after = table(value, "healthcheck"), table(value, "depends_on")
    context = word(table(value, "build").get("context"))
    return ServiceModel(
        name=name,
        image=word(value.get("image")),
        container_name=word(value.get("container_name")),
        mounts=tuple(_declared_mount(item, volumes) for item in rows(value.get("volumes"))),
        ports=tuple(
            Port(
                host=_every(word(item.get("host_ip"))),
                published=number(item.get("published")),
                target=number(item.get("target")),
                protocol=word(item.get("protocol")) or "tcp",
            )
            for item in rows(value.get("ports"))
        ),
        environment={
            key: word(item)
            for key, item in table(value, "environment").items()
            if item is not None  # named without a value, and the shell has none
        },
        user=word(value.get("user")),
        has_health_check=bool(check)
        and check.get("disable") is not True
        and check.get("test") != ["NONE"],
        restart="" if value.get("restart") == "no" else word(value.get("restart")),
        command=words(value.get("command")),
        built=bool(value.get("build")),
        network_mode=word(value.get("network_mode")),
        profiles=words(value.get("profiles")),
        build=Path(context) if context.startswith("/") else None,
        after=tuple(sorted(after)),
        follows=tuple(sorted(key for key in after if table(after, key).get("restart") is True)),
        joins=tuple(
            word(value[key]).removeprefix("service:")
            for key in ("network_mode", "ipc", "pid")
            if word(value.get(key)).startswith("service:")
        ),
    )


def _every(address: str) -> str:
    return "" if address in ("0.0.0.0", "::") else address


def _declared_mount(item: Mapping[str, object], volumes: Mapping[str, object]) -> Mount:
    kind = word(item.get("type"))
    source = word(item.get("source"))
    # A long form without `bind:` fails on a missing source in 2.26 and creates it in 2.40.
    unsafe = "bind" not in item or item["bind"] is None
    return Mount(
        source=Path(source) if kind == "bind" and source else None,
        target=word(item.get("target")),
        kind=kind,
        read_only=item.get("read_only") is True,
        creates_host_path=kind == "bind"
        and (unsafe or table(item, "bind").get("create_host_path") is True),
        name="" if kind == "bind" else word(table(volumes, source).get("name")) or source,
    )


def variables(text: str) -> tuple[Variable, ...]:
    """Read what `docker compose config --variables` prints: a table, whatever `--format` asks.

    Its columns are names, "true" or "false", and two texts that may hold anything.
    """
    head, *lines = text.splitlines() or [""]
    default = head.find("DEFAULT VALUE")
    if not head.startswith("NAME") or default < 0:
        return ()
    found: dict[str, Variable] = {}
    for line in lines:
        name, required, *_ = [*line.split(), "", ""]
        if re.fullmatch(r"[A-Za-z_]\w*", name) and required in ("true", "false"):
            found[name] = Variable(name, required == "true", bool(line[default:].strip()))
    return tuple(found[name] for name in sorted(found))


def has_default(name: str, text: str) -> bool:
    """Whether a Compose file names a variable with a text for when it is not set, also an empty."""
    return re.search(rf"\$\{{{name}:?[-+]", text) is not None


_PUBLISHED = re.compile(r"(?:(\S+):)?(\d+)(?:-(\d+))?->(\d+)(?:-\d+)?/(\w+)")


def published(text: str) -> tuple[Port, ...]:
    """Read the column "Ports" of `docker ps`: "0.0.0.0:1883->1883/tcp, [::]:1883->1883/tcp"."""
    found: list[Port] = []
    for part in text.split(", "):
        if (match := _PUBLISHED.fullmatch(part.strip())) is None:
            continue
        host, first, last, target, protocol = match.groups()
        for step in range(int(last or first) - int(first) + 1):
            address = _every((host or "").strip("[]"))
            found.append(Port(address, int(first) + step, int(target) + step, protocol))
    return tuple(found)


# ---- docker inspect -----------------------------------------------------------------------------


def image(reference: str, document: Mapping[str, object]) -> ImageRecord:
    """Read one element of `docker image inspect`; an empty one is an image that was removed."""
    parts = (word(document.get(key)) for key in ("Os", "Architecture", "Variant"))
    return ImageRecord(
        reference=reference,
        id=word(document.get("Id")),
        digests=words(document.get("RepoDigests")),
        platform="/".join(part for part in parts if part),
    )


def container(document: Mapping[str, object], made_from: Mapping[str, object]) -> Container:
    """Read one element of `docker inspect`, with the one of its image (empty = removed)."""
    state = table(document, "State")
    health = word(table(state, "Health").get("Status"))
    its = image("", made_from)
    given = words(table(document, "Config").get("Env"))
    labels = table(document, "Config", "Labels")
    sources = word(labels.get("com.docker.compose.project.config_files"))
    return Container(
        service=word(labels.get("com.docker.compose.service")),
        id=word(document.get("Id")),
        name=word(document.get("Name")).removeprefix("/"),
        state=word(state.get("Status")),
        health="" if health == "none" else health,
        restart_count=number(document.get("RestartCount")),
        exit_code=number(state.get("ExitCode")),
        started_at=word(state.get("StartedAt")),
        oom_killed=state.get("OOMKilled") is True,
        image=word(table(document, "Config").get("Image")),
        image_id=word(document.get("Image")),
        digests=its.digests,
        platform=its.platform,
        mounts=_real_mounts(document),
        config_hash=word(labels.get(_HASH)),
        ports=_real_ports(table(document, "HostConfig", "PortBindings")),
        environment=dict(line.split("=", 1) for line in given if "=" in line),
        inherited=frozenset(
            line.partition("=")[0]
            for line in words(table(made_from, "Config").get("Env"))
            if line in given
        ),
        files=tuple(Path(path) for path in sources.split(",") if path),
    )


_HASH = "com.docker.compose.config-hash"


def _real_ports(bindings: Mapping[str, object]) -> tuple[Port, ...]:
    """Read what a container publishes: by "80/tcp" the addresses of the host."""
    found: list[Port] = []
    for inside, places in bindings.items():
        target, _, protocol = inside.partition("/")
        for one in rows(places):
            host = _every(word(one.get("HostIp")))
            found.append(Port(host, number(one.get("HostPort")), number(target), protocol))
    return tuple(sorted(found, key=lambda port: (port.target, port.published, port.host)))


def _real_mounts(document: Mapping[str, object]) -> tuple[Mount, ...]:
    """Bind mounts given in the old form (`Binds`) make a missing source, the others do not."""
    binds = words(table(document, "HostConfig").get("Binds"))
    lenient = {bind.split(":")[1] for bind in binds if bind.startswith("/") and ":" in bind}
    found: list[Mount] = []
    for item in rows(document.get("Mounts")):
        kind = word(item.get("Type"))
        source = word(item.get("Source"))
        target = word(item.get("Destination"))
        found.append(
            Mount(
                source=Path(source) if kind == "bind" and source else None,
                target=target,
                kind=kind,
                read_only=item.get("RW") is False,
                creates_host_path=kind == "bind" and target in lenient,
                name=word(item.get("Name")),
            )
        )
    return tuple(sorted(found, key=lambda mount: mount.target))


def volume(document: Mapping[str, object]) -> Volume:
    """Read one element of `docker volume inspect`."""
    options = table(document, "Options")
    device = word(options.get("device"))
    bound = "bind" in word(options.get("o")).split(",") and device.startswith("/")
    return Volume(
        name=word(document.get("Name")),
        mountpoint=Path(word(document.get("Mountpoint"))),
        device=Path(device) if bound else None,
        in_memory=options.get("type") == "tmpfs",
    )


# ---- words --------------------------------------------------------------------------------------


def reason(text: str, secrets: Sequence[str] = (), *, lines: int = 6) -> str:
    """Give Compose's own words for a failure, without values.

    It repeats what stands in `.env`: whole lines when that file is broken, half of a value in a
    warning about `$`, a value that does not fit its place. All of that goes.

    Args:
        text: standard error of Compose.
        secrets: values that must not be seen.
        lines: at most so many, the last ones.
    """
    kept = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and "level=warning" not in line and not _PROGRESS.match(line)
    ]
    said = "; ".join(kept[-lines:])
    said = re.sub(r"(failed to read \S+: line \d+: [^\"']*)[\"'].*", r"\1", said).strip()
    return masked(said, secrets) or "it gave no reason"


def masked(text: str, secrets: Sequence[str]) -> str:
    """Take values out of a text."""
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, "***")
    return text


_PROGRESS = re.compile(
    r"\s*(Container|Network|Volume|Image)\s+\S+\s+"
    r"(Creat|Start|Stop|Remov|Wait|Healthy|Recreat|Restart|Running|Pull|Exited|Killed|Killing)\w*"
    r"(\s+[\d.]+s)?\s*$"
)
"""Compose's progress lines, which say nothing about a failure."""


def values_of(env_file: str) -> tuple[str, ...]:
    """Collect the values of an `.env` text in every form Compose may print them.

    Only for taking them out of messages: what a value really is, Compose decides. Left out are
    values of fewer than four letters, which would take ordinary words with them, and paths, which
    the owner needs to see, unless their name says that they are secret.
    """
    found: set[str] = set()
    for line in env_file.splitlines():
        key, equals, value = line.partition("=")
        if not equals or line.lstrip().startswith("#"):
            continue
        value = value.strip()
        bare = value.strip("'\"")
        if bare.startswith(("/", "./")) and not secretnames.of_variable(key):
            continue
        for form in (value, bare, re.split(r"\s+#", bare)[0].strip().strip("'\"")):
            found.update({form, form.replace("$$", "$"), form.replace("\\$", "$")})
    return tuple(value for value in found if len(value) >= 4)
