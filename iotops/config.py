"""The settings of a hub: `iotops.toml` and `.env`, read and checked.

All faults are reported at once, each with its path (`services.influxdb.url`), an unknown key with
the nearest known one. A setting that nothing acts on is refused, not ignored. Not here: what can
be inferred from the Compose file (`hub.py`), and finding the hub folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from iotops.errors import SettingsError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FILE = "iotops.toml"

LATER = {
    "schedule": "schedules in the settings (the units in systemd/ carry them)",
    "notify": "notifications",
}
"""Tables of the design that nothing acts on yet: refused by name, so that nobody relies on one."""

RESERVED = frozenset({"hub", "host", "other"})
"""The parts of a snapshot that belong to no service; no service may have their names."""
_RESERVED = frozenset((name,) for name in RESERVED)


class Secret:
    """A text that prints as stars; only `reveal()` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Give the text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


# -- addresses ------------------------------------------------------------------------------------
#
# What stands in iotops.toml is committed to Git and printed, and a remote's address is an argument
# of Git: no address may hold a secret. The texts below never repeat what they refuse.

BACKENDS = ("sftp", "rest", "s3", "gs", "azure", "swift", "b2", "rclone")
"""The remote places that restic 0.14 to 0.19 knows (`internal/backend/location`)."""

_RCLONE_SECRET = re.compile(r"[,:][a-z_]*(?:pass|secret|key|token)[a-z_]*=", re.IGNORECASE)


def _repository_address(text: str) -> str:
    """Check where a restic repository lies; `local:/x` becomes `/x`, its shortest spelling.

    Raises:
        ValueError: it is relative, or holds a secret.
    """
    backend, _, rest = text.partition(":")
    if backend == "local":
        text, backend = rest, ""
    if backend not in BACKENDS:
        if not text.startswith("/"):
            raise ValueError(
                "must be an absolute path, or an address that begins with "
                + ", ".join(f"{one}:" for one in BACKENDS)
            )
        return text
    if "://" in rest:
        text_of_url = rest
    else:
        text_of_url = f"{backend}://{rest}" if backend in ("rest", "s3") else text
    split = _split(text_of_url)
    if (split.netloc and split.password is not None) or (
        backend == "rclone" and _RCLONE_SECRET.search(rest)
    ):
        raise ValueError(
            "holds a password, and this file is committed to Git; put it into"
            " repository.credentials_file, for example RESTIC_REST_USERNAME= and"
            " RESTIC_REST_PASSWORD="
        )
    return text


def _git_address(text: str) -> str:
    """Check the address of a Git remote.

    Raises:
        ValueError: it holds a secret.
    """
    if git_secret(text):
        raise ValueError(
            "holds a user name, password or token, and this file is committed to Git; use an SSH"
            " key, or Git's credential helper: git config credential.helper"
        )
    return text


def git_secret(url: str) -> bool:
    """Tell whether a Git remote's address holds what can be a secret.

    A name before the host is none in `ssh://git@host/`; over http it may well be a token
    (`https://TOKEN@host/`), and Git's credential helper keeps names too.
    """
    if "://" not in url:
        return False  # host:path, or a folder
    split = _split(url)
    named = "@" in split.netloc
    return split.password is not None or (named and split.scheme in ("http", "https"))


def _server_address(text: str) -> str:
    """Check the address of a service's HTTP server.

    Raises:
        ValueError: it is none, or holds a password.
    """
    split = _split(text)
    if split.scheme not in ("http", "https") or not split.hostname or split.query or split.fragment:
        raise ValueError("must be an address such as http://127.0.0.1:8086")
    if "@" in split.netloc:
        raise ValueError("holds a user name; secrets are named by their name in .env")
    if split.port == 0:
        raise ValueError("port 0 cannot be reached")
    return text


def _split(url: str) -> SplitResult:
    try:
        split = urlsplit(url)
        _ = split.port  # read when asked for: out of range, or no number
    except ValueError:
        raise ValueError("is no address: look at its host and port") from None
    return split


RepositoryAddress = Annotated[str, Field(min_length=1), AfterValidator(_repository_address)]
GitAddress = Annotated[str, AfterValidator(_git_address)]
ServerAddress = Annotated[str, AfterValidator(_server_address)]
OptionalServerAddress = Annotated[str, AfterValidator(lambda text: text and _server_address(text))]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
"""Types of settings, for the tables here and for the kinds' own options."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class HubSettings(_Table):
    """Who this hub is."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")] = Field(
        description="made by init; the same on every machine this hub ever runs on"
    )
    name: Name = Field(description="the hub's name; restic's host of every snapshot")
    owner: str = Field(description="the user that the hub folder belongs to; Git runs as this user")


class DataSettings(_Table):
    """Where the services' data lies."""

    root: Path = Field(default=Path("/mnt/iot-data"), description="the data root")
    kind: Literal["mount", "folder"] = Field(
        default="mount",
        description='"mount": the data root must be a mount point; "folder": a plain folder',
    )
    ignore_volumes: tuple[str, ...] = Field(
        default=(),
        description="Docker volumes whose content nobody needs back, by name or `SERVICE:/PATH`,"
        " or so a server's folder elsewhere; any other that holds files makes a backup partial",
    )
    old_data_days: Annotated[int, Field(strict=True, ge=1, le=36_500)] = Field(
        default=7,
        description="days that data which a restore has put aside is kept in any case; the first"
        " complete backup after them removes it",
    )


Count = Annotated[int, Field(strict=True, ge=0, le=100_000)]


class RetentionSettings(_Table):
    """Which snapshots stay; without this table nothing is ever forgotten."""

    keep_daily: Count = Field(default=0, description="the newest snapshot of each of so many days")
    keep_weekly: Count = Field(default=0, description="the same for weeks")
    keep_monthly: Count = Field(default=0, description="the same for months")
    keep_yearly: Count = Field(default=0, description="the same for years")
    keep_at_least: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(
        default=3,
        description="the newest so many complete snapshots stay in any case; at least 1",
    )

    @model_validator(mode="after")
    def _says_something(self) -> RetentionSettings:
        """Refuse an empty table: nobody means "all but three" by it."""
        if not self.model_fields_set:
            raise ValueError("is empty; say what to keep, for example keep_daily = 7")
        return self


class _Place(_Table):
    """Where a restic repository lies, and how to get there."""

    url: RepositoryAddress = Field(
        description="an absolute path, or a remote place as restic names it; no password in it"
    )
    password_file: Path = Field(description="file with the password, 0600")
    credentials_file: Path | None = Field(
        default=None,
        description="NAME=value lines for restic's environment (a remote's access), 0600",
    )
    ssh_config: Path | None = Field(
        default=None,
        description="ssh's configuration file for an sftp: address: host, user, key, known hosts",
    )
    small_memory: bool = Field(
        default=False,
        strict=True,
        description="true: restic takes half the memory and one core, and about twice the time;"
        " for a Pi with 1 GB",
    )


class CopySettings(_Place):
    """A further repository; every backup copies its snapshot there."""

    name: Name = Field(description="what commands and messages call it")
    append_only: bool = Field(
        default=False,
        description="its server lets nothing be removed; iotops then does not try to forget there",
    )
    patience: Annotated[int, Field(strict=True, ge=1, le=86_400)] = Field(
        default=600,
        description="seconds without an answer or progress after which it counts as away",
    )
    retention: RetentionSettings | None = Field(
        default=None,
        description="which snapshots stay there, as in [retention]; without it all of them",
    )


class RepositorySettings(_Place):
    """The restic repository."""

    password_file: Path = Field(
        default=Path("/etc/iotops/restic-password"), description="file with the password, 0600"
    )
    copies: Annotated[tuple[CopySettings, ...], Field(max_length=4)] = Field(
        default=(), description="further repositories; the state file has room for four"
    )

    @model_validator(mode="after")
    def _tells_them_apart(self) -> RepositorySettings:
        """Refuse two copies of one name, and an address that is used twice."""
        names = [one.name for one in self.copies]
        urls = [self.url, *(one.url for one in self.copies)]
        for found, what in ((names, "name"), (urls, "url")):
            if len(set(found)) < len(found):
                raise ValueError(f"copies: each needs a {what} of its own")
        return self


class FlowsSettings(_Table):
    """The branch `flows`."""

    service: str = Field(
        default="", description="the Node-RED service; empty = the only one of kind nodered"
    )
    remote: GitAddress = Field(
        default="", description="Git remote of the branch flows; empty = none; no token in it"
    )
    push: bool = Field(default=False, description="push after each commit")


class SyncSettings(_Table):
    """What the hub's configuration is kept equal to; see `iotops sync`."""

    remote: GitAddress = Field(
        default="",
        description="Git remote whose branch main is applied; empty = the commits made in the hub"
        " folder; no token in it",
    )
    allowed_signers: Path | None = Field(
        default=None,
        description="file of SSH keys (ssh-keygen's ALLOWED SIGNERS); with it only a commit signed"
        " by one of them is applied",
    )
    watch: Annotated[int, Field(strict=True, ge=1, le=3600)] = Field(
        default=60,
        description="seconds that changed services are watched after they answer: one that restarts"
        " or turns unhealthy then is a failure",
    )


class PathSettings(_Table):
    """Places outside the data root."""

    state: Path = Field(
        default=Path("/var/lib/iotops"), description="folder of the small state file"
    )
    run: Path = Field(default=Path("/run/iotops"), description="folder of the lock")


class _Document(_Table):
    hub: HubSettings
    data: DataSettings = DataSettings()
    repository: RepositorySettings | None = None
    retention: RetentionSettings | None = None
    flows: FlowsSettings = FlowsSettings()
    sync: SyncSettings = SyncSettings()
    paths: PathSettings = PathSettings()
    services: dict[Name, dict[str, object]] = Field(
        default={}, description="one table per service; keys depend on its kind"
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked `iotops.toml`.

    Attributes:
        file: where it was read.
        repository: None = not made yet; a copy where that is looked at in its place.
        services: the kinds' own option values by service name, in the file's order.
        retention: None = nothing is ever forgotten.
    """

    file: Path
    hub: HubSettings
    data: DataSettings
    repository: RepositorySettings | CopySettings | None
    flows: FlowsSettings
    paths: PathSettings
    services: Mapping[str, object]
    retention: RetentionSettings | None = None
    sync: SyncSettings = dataclasses.field(default_factory=SyncSettings)

    def moved(self, root: Path) -> Settings:
        """Give the same settings for a data root that is a plain folder elsewhere."""
        return dataclasses.replace(
            self, data=self.data.model_copy(update={"root": root, "kind": "folder"})
        )


OptionsByKind = Callable[[str], type | None]
"""Gives a kind's own option dataclass, None when there is no such kind."""


def load(path: Path, options_by_kind: OptionsByKind) -> Settings:
    """Read and check a settings file.

    Args:
        path: the file.
        options_by_kind: asked only for the kinds that the file names.

    Raises:
        SettingsError: it is missing, no TOML (with the line), or wrong; all faults at once.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise SettingsError(
            f"there is no {path.name} in {path.parent}",
            hint="make a hub with: iotops init DIR, or name one with --hub DIR",
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text", hint=f"correct it: nano {path}") from error
    except OSError as error:
        rights = isinstance(error, PermissionError)
        raise SettingsError(
            f"{path} cannot be read: {error.strerror}",
            hint="run iotops as root: sudo iotops ..." if rights else f"look at it: ls -ld {path}",
        ) from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f"{path} is no TOML: {error}", hint=f"correct it: nano {path}"
        ) from error
    return check(document, path, options_by_kind)


def check(document: Mapping[str, object], path: Path, options_by_kind: OptionsByKind) -> Settings:
    """Check a settings document that has been read already; see `load`."""
    faults, cleaned = _refuse_later(document)
    settings: _Document | None = None
    try:
        settings = _Document.model_validate(cleaned)
    except ValidationError as error:
        faults += [_fault(one, _Document) for one in error.errors()]
    services: dict[str, object] = {}
    tables = cleaned.get("services")
    if isinstance(tables, dict):
        for name, table in tables.items():
            if isinstance(table, dict):
                if name in RESERVED:
                    faults.append(f"services.{name}: the name belongs to a part of every snapshot")
                value = _options(str(name), table, options_by_kind, faults)
                services[str(name)] = value
                folder = table.get("folder", "")
                if isinstance(folder, str) and folder and not _inside(folder):
                    faults.append(f"services.{name}.folder: must be a path below the data root")
                elif isinstance(folder, str) and PurePosixPath(folder).parts[:1] in _RESERVED:
                    faults.append(
                        f"services.{name}.folder: {PurePosixPath(folder).parts[0]!r} is the name"
                        " of a part of every snapshot; rename the folder"
                    )
    if settings is not None and not settings.data.root.is_absolute():
        faults.append("data.root: must be an absolute path")
    if settings is not None and (signers := settings.sync.allowed_signers) is not None:
        # In the hub folder a commit could allow its own key.
        if not signers.is_absolute() or _lies_in(str(signers), path.parent.absolute()):
            faults.append("sync.allowed_signers: must be an absolute path outside the hub folder")
    if settings is not None and settings.repository is not None:
        if _lies_in(settings.repository.url, settings.data.root):
            faults.append("repository.url: lies on the disk that it protects")
        for number, one in enumerate(settings.repository.copies):
            if _lies_in(one.url, settings.data.root):
                faults.append(f"repository.copies.{number}.url: lies on the disk that it protects")
    if faults or settings is None:
        raise SettingsError(
            f"{path} has {len(faults)} fault{'s' if len(faults) != 1 else ''}:\n"
            + "\n".join(f"  {fault}" for fault in faults),
            faults=faults,
            hint=f"correct it: nano {path}",
        )
    return Settings(
        path,
        settings.hub,
        settings.data,
        settings.repository,
        settings.flows,
        settings.paths,
        services,
        settings.retention,
        settings.sync,
    )


def repository(**values: object) -> RepositorySettings:
    """Check what shall become the table [repository].

    Raises:
        SettingsError: with all faults.
    """
    try:
        return RepositorySettings.model_validate(values)
    except ValidationError as error:
        faults = [f"repository.{_fault(one, RepositorySettings)}" for one in error.errors()]
        raise SettingsError(
            "this cannot be the repository: " + "; ".join(faults),
            faults=faults,
            hint="iotops init --repository URL --credentials-file FILE",
        ) from None


def new_copy(
    first: RepositorySettings | CopySettings, copies: Sequence[CopySettings], **values: object
) -> CopySettings:
    """Check a copy that stands in no settings file yet, as if it stood beside the others.

    Raises:
        SettingsError: with all faults.
    """
    try:
        made = CopySettings.model_validate(values)
        RepositorySettings(url=first.url, copies=(*copies, made))
    except ValidationError as error:
        faults = [_fault(one, CopySettings) for one in error.errors()]
        raise SettingsError(
            "this cannot be a copy: " + "; ".join(faults),
            faults=faults,
            hint="choose another name or address for it",
        ) from None
    return made


def _lies_in(url: str, root: Path) -> bool:
    """Tell by their names alone whether a local repository lies below a folder."""
    return url.startswith("/") and Path(os.path.normpath(url)).is_relative_to(
        os.path.normpath(root)
    )


def _inside(folder: str) -> bool:
    """Tell whether a text names a folder below another one, that is not iotops' own there."""
    pure = PurePosixPath(folder)
    own = pure.parts[:1] in ((), (".iotops",), ("lost+found",))
    return not own and not pure.is_absolute() and ".." not in pure.parts and "\0" not in folder


def _refuse_later(document: Mapping[str, object]) -> tuple[list[str], dict[str, object]]:
    faults: list[str] = []
    cleaned: dict[str, object] = dict(document)
    for path, what in LATER.items():
        table, _, key = path.partition(".")
        inner = cleaned.get(table)
        if not key and table in cleaned:
            del cleaned[table]
        elif key and isinstance(inner, dict) and key in inner:
            cleaned[table] = {name: value for name, value in inner.items() if name != key}
        else:
            continue
        faults.append(f"{path}: this version does not act on {what} yet; remove it")
    return faults, cleaned


def _fault(error: ErrorDetails, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown(where, _known(model, error["loc"][:-1]))
    if error["type"] == "missing":
        return f"{where}: is missing"
    text = error["msg"].removeprefix("Value error, ")
    return f"{where}: {text[0].lower()}{text[1:]}"


def _unknown(where: str, known: list[str]) -> str:
    key = where.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{where}: unknown key; {advice}"


def _known(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc:
        found = model.model_fields.get(str(part))
        inner = found.annotation if found is not None else None
        options = [inner, *getattr(inner, "__args__", ())]
        model = next(
            (one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), model
        )
    return list(model.model_fields)


def _options(
    name: str, table: dict[str, object], options_by_kind: OptionsByKind, faults: list[str]
) -> object:
    where = f"services.{name}"
    kind = table.get("kind")
    if not isinstance(kind, str):
        faults.append(f"{where}.kind: is missing")
        return None
    options = options_by_kind(kind)
    if options is None or not dataclasses.is_dataclass(options):
        faults.append(f"{where}.kind: there is no kind {kind!r}")
        return None
    known = [field.name for field in dataclasses.fields(options)]
    before = len(faults)
    faults.extend(_unknown(f"{where}.{key}", known) for key in table if key not in known)
    required = [
        field.name
        for field in dataclasses.fields(options)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    faults.extend(f"{where}.{key}: is missing" for key in required if key not in table)
    if len(faults) > before:
        return None
    try:
        value: object = TypeAdapter(options).validate_python(table)
    except ValidationError as error:
        for one in error.errors():
            inner = ".".join(str(part) for part in one["loc"])
            text = one["msg"].removeprefix("Value error, ")
            faults.append(f"{where}.{inner}: {text[0].lower()}{text[1:]}")
        return None
    return value


def tables() -> dict[str, type[BaseModel]]:
    """Give the model of every fixed table by the table's name, for the reference."""
    found: dict[str, type[BaseModel]] = {}

    def collect(prefix: str, model: type[BaseModel]) -> None:
        for table, field in model.model_fields.items():
            for one in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(one, type) and issubclass(one, BaseModel):
                    found[prefix + table] = one
                    collect(f"{prefix}{table}.", one)

    collect("", _Document)
    return found


def keys() -> dict[str, str]:
    """List every settings key of the fixed tables with its description, for the reference."""
    return {
        f"{table}.{key}": field.description or ""
        for table, model in tables().items()
        for key, field in model.model_fields.items()
    }


# -- .env -----------------------------------------------------------------------------------------

_LINE = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*(.*?)\s*$")


def env_names(path: Path) -> dict[str, str]:
    """Name the variables of `.env` that a settings file wants for its services.

    Returns:
        By name, where it stands, for example "services.broker.password_env". What a kind wants
        where nothing is written is not in it; a file that cannot be read names nothing.
    """
    try:
        document: object = tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError):
        return {}
    tables = document.get("services") if isinstance(document, dict) else None
    found: dict[str, str] = {}
    for name, table in tables.items() if isinstance(tables, dict) else ():
        for key, value in table.items() if isinstance(table, dict) else ():
            if key.endswith("_env") and isinstance(value, str) and value:
                found.setdefault(value, f"services.{name}.{key}")
    return found


def read_env(path: Path) -> dict[str, Secret]:
    """Read a `.env` file as Compose does, except that nothing is expanded.

    Single quotes are literal, double quotes know escapes, an unquoted value ends at ` #`
    (Compose 2.26, seen). A missing file is empty, and so is a device or a pipe, which could have no
    end: a snapshot's may be a link to one.

    Raises:
        SettingsError: it is a folder.
    """
    if not (path.is_file() or path.is_dir()):
        return {}
    text = env_text(path)
    values: dict[str, Secret] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None and not line.lstrip().startswith("#"):
            values[match[1]] = Secret(_env_value(match[2]))
    return values


def env_text(path: Path) -> str:
    """Read an `.env` file as it is written; one that is not there is empty.

    Raises:
        SettingsError: it is a folder.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except IsADirectoryError as error:
        raise SettingsError(
            f"reading {path}: it is a folder, and no file",
            hint="Docker makes one where a container mounts a file that is missing; if it is empty:"
            f" rmdir {path}; then restore the file from a snapshot: iotops restore --into DIR",
        ) from error


def _env_value(raw: str) -> str:
    if raw.startswith("'"):
        end = raw.find("'", 1)
        return raw[1:end] if end > 0 else raw[1:]
    if raw.startswith('"'):
        match = re.match(r'"((?:[^"\\]|\\.)*)"', raw)
        body = match[1] if match is not None else raw[1:]
        return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m[1], m[1]), body)
    return re.split(r"\s#", raw, maxsplit=1)[0].rstrip().replace("$$", "$")
