"""The hub: its settings, containers, repository, services and places, opened lazily.

The one value that actions take. What the settings leave out is inferred here from the Compose
file. Not here: any order of work (`actions/`) and what a service's data is (`services/`).
"""

from __future__ import annotations

import dataclasses
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from iotops import config, disk, secretnames, services
from iotops.config import CopySettings, RepositorySettings, Secret, Settings
from iotops.errors import SettingsError, UsageError
from iotops.journal import Journal, StateFile, lock
from iotops.services.base import BaseOptions, Place, Service

if TYPE_CHECKING:  # `status` asks neither Docker nor restic and must start quickly
    from iotops.clients.compose import Model, ServiceModel, Stack
    from iotops.clients.restic import Repository, RepositoryAccess

LINK = Path("/etc/iotops/hub")
ENVIRONMENT = "IOTOPS_HUB"
FILES = "files"
"""The kind of what no other kind knows."""


def find_folder(given: Path | None, *, start: Path | None = None) -> Path:
    """Find the hub folder: as given, `IOTOPS_HUB`, the current folder upward, `/etc/iotops/hub`.

    Raises:
        SettingsError: there is none.
    """
    named = given or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if named is not None:
        return named.absolute()
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if (folder / config.FILE).is_file():
            return folder
    if (LINK / config.FILE).is_file():
        return LINK.resolve()
    raise SettingsError(
        f"no {config.FILE} in {here} or above, and {LINK} leads to none",
        hint="name the hub folder with --hub DIR, or make a hub with: iotops init DIR",
    )


def options_of(kind: str) -> type[BaseOptions] | None:
    """Give a kind's option class, None when there is no such kind; for `config.load`."""
    return services.kind(kind).Options if kind in services.kinds() else None


class Hub:
    """One machine's hub.

    Args:
        folder: the hub folder.
        secrets: values that stand before the ones in `.env` (a restore uses the snapshot's).
        rehearsal: the containers of a drill, instead of the hub's own; they act on nothing.
        copy: name of the copy that stands in the settings in the repository's place; "" = none.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        secrets: Mapping[str, Secret] | None = None,
        *,
        rehearsal: Stack | None = None,
        copy: str = "",
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.copy = copy
        self._secrets = dict(secrets or {})
        self._rehearsal = rehearsal
        self.layout = disk.layout(settings.data.root)
        self.journal = Journal(self.layout.journal)
        self.state = StateFile(settings.paths.state, settings.hub.id)

    @classmethod
    def open(cls, given: Path | None = None) -> Hub:
        """Find and read a hub.

        Raises:
            SettingsError: there is none, or its settings have faults.
        """
        folder = find_folder(given)
        return cls(folder, config.load(folder / config.FILE, options_of))

    def with_secrets(self, secrets: Mapping[str, Secret]) -> Hub:
        """Give the same hub with other secrets before the ones in its `.env`."""
        return Hub(self.folder, self.settings, secrets, copy=self.copy)

    @property
    def copies(self) -> tuple[CopySettings, ...]:
        """The further repositories of the settings."""
        chosen = self.settings.repository
        return chosen.copies if isinstance(chosen, RepositorySettings) else ()

    def at_copy(self, name: str) -> Hub:
        """Give the same hub with a copy, and its retention, in the place of its repository.

        Raises:
            UsageError: the settings name no such copy.
        """
        for chosen in self.copies:
            if chosen.name == name:
                settings = dataclasses.replace(
                    self.settings, repository=chosen, retention=chosen.retention
                )
                return Hub(self.folder, settings, self._secrets, copy=name)
        known = ", ".join(one.name for one in self.copies)
        raise UsageError(
            f"the settings name no copy {name!r}",
            hint=f"one of: {known}"
            if known
            else "make one: iotops init --repository URL --copy " + name,
        )

    @property
    def id(self) -> str:
        """The hub's id."""
        return self.settings.hub.id

    @property
    def name(self) -> str:
        """The hub's name, restic's host of all its snapshots."""
        return self.settings.hub.name

    @property
    def root(self) -> Path:
        """The data root."""
        return self.settings.data.root

    @cached_property
    def env(self) -> Mapping[str, Secret]:
        """The values of `.env`."""
        return config.read_env(self.folder / ".env")

    def secret(self, name: str) -> Secret | None:
        """Give a secret by the name it has in `.env`, or as a systemd credential."""
        if name in self._secrets:
            return self._secrets[name]
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder and (path := Path(folder) / name).is_file():
            return Secret(path.read_text().strip())
        return self.env.get(name)

    def named_secrets(self) -> Mapping[str, str]:
        """Give the values of `.env` whose names say that they are secret, in clear text.

        For finding them where they must not be; others are ports and time zones.
        """
        found = {key: value for key, value in self.env.items() if secretnames.of_variable(key)}
        return {key: value.reveal() for key, value in found.items()}

    @property
    def owner(self) -> tuple[int, int]:
        """Numeric user and group that the hub folder belongs to.

        Raises:
            SettingsError: the machine has no such user.
        """
        try:
            entry = pwd.getpwnam(self.settings.hub.owner)
        except KeyError as error:
            raise SettingsError(
                f"hub.owner: this machine has no user {self.settings.hub.owner!r}",
                hint=f"make it: sudo useradd -m {self.settings.hub.owner}",
            ) from error
        return entry.pw_uid, entry.pw_gid

    @cached_property
    def stack(self) -> Stack:
        """The containers of the hub's Compose project."""
        if self._rehearsal is not None:
            return self._rehearsal
        from iotops.clients.compose import ComposeStack

        return ComposeStack(self.folder)

    @cached_property
    def model(self) -> Model:
        """What the Compose file says; one `docker compose config`."""
        return self.stack.model()

    @cached_property
    def repository(self) -> Repository:
        """The restic repository.

        Raises:
            SettingsError: the settings name none, or its files cannot be read.
        """
        from iotops.clients.restic import Repository

        chosen = self.settings.repository
        access = repository_access(self.settings, self.layout)
        if isinstance(chosen, CopySettings):
            # It must not keep a run waiting that is good without it.
            return Repository(access, stall_limit=chosen.patience, quick_limit=chosen.patience)
        # A kit has a key of its own: without a hint restic may try that one first, at every call.
        return Repository(replace(access, key=self.state.read().kit.get("own_key", "")))

    @cached_property
    def services(self) -> tuple[Service, ...]:
        """All services: those of the settings in their order, then the inferred ones."""
        found: list[Service] = []
        for name, options in self.settings.services.items():
            if isinstance(options, BaseOptions):
                service = self._service(name, options)
                if (model := self.model.services.get(service.place.container)) is not None:
                    service = published(service, model)
                if (other := _sharing(service, found)) is not None:
                    raise SettingsError(
                        f"services.{name}: its folder {service.place.folder} and that of"
                        f" {other.name} ({other.place.folder}) contain each other",
                        hint="give each service a folder of its own: folder = ... in iotops.toml",
                    )
                found.append(service)
        named = {service.place.container for service in found}
        inferred = [
            (name, declared, options)
            for name, declared in self.model.services.items()
            if name not in named and (options := infer(declared, self.root)) is not None
        ]
        # What only looks into another one's folder (a log viewer) has no data of its own.
        for name, declared, options in sorted(inferred, key=lambda one: one[2].kind == FILES):
            service = published(self._service(name, options), declared)
            if _sharing(service, found) is None:
                found.append(service)
        return tuple(found)

    def service(self, name: str) -> Service:
        """Give one service by its name in the settings.

        Raises:
            UsageError: there is none of that name.
        """
        for service in self.services:
            if service.name == name:
                return service
        known = ", ".join(service.name for service in self.services)
        raise UsageError(f"this hub has no service {name!r}", hint=f"one of: {known}")

    def of_kind(self, kind: str) -> tuple[Service, ...]:
        """Give the services of one kind."""
        return tuple(service for service in self.services if service.kind == kind)

    def guard(self) -> None:
        """Refuse to go on unless the data root is this hub's, mounted and claimed.

        iotops' own folders on it are made again where they are missing.

        Raises:
            GuardError: with the findings.
        """
        data = self.settings.data
        disk.require(data.root, data.kind, self.id, self.state.read().disk)
        if not self.layout.journal.is_dir():  # a sentinel written by hand, or somebody tidied up
            disk.claim(data.root, data.kind, self.id, self.name, self.owner[1])

    @contextmanager
    def locked(self, action: str) -> Iterator[None]:
        """Hold the hub's lock: backup, restore and everything that stops containers."""
        with lock(self.settings.paths.run, self.id, action):
            yield

    @contextmanager
    def flows_locked(self, action: str) -> Iterator[None]:
        """Hold the lock of the hub folder's Git; a short one, hence waited for."""
        with lock(self.settings.paths.run, f"{self.id}-flows", action, patience=60.0):
            yield

    def _service(self, name: str, options: BaseOptions) -> Service:
        cls = services.kind(options.kind)
        folder = options.folder or cls.default_folder or name
        place = Place(
            name=name,
            container=options.container or name,
            folder=self.root / folder,
            hub=self.folder,
            tmp=self.layout.tmp,
            stack=self.stack,
            secret=self.secret,
            rehearsal=self._rehearsal is not None,
        )
        return cls(place, options)


def infer(model: ServiceModel, root: Path) -> BaseOptions | None:
    """Choose kind and folder for a Compose service that the settings do not name.

    Args:
        root: the data root.

    Returns:
        Options of the kind; None = it keeps nothing below the data root.
    """
    inside = [
        (mount.source.relative_to(root), mount.target)
        for mount in model.mounts
        if mount.source is not None
        and mount.source != root
        and mount.source.is_relative_to(root)
        and not _is_file(mount.source, mount.target, root)
    ]
    if not inside:
        return None
    folder = inside[0][0].parts[0]
    image = image_name(model.image)
    for kind in services.kinds():
        cls = services.kind(kind)
        # The image alone does not tell: what lies under its data folder does.
        held = [source for wanted in cls.targets for source, target in inside if target == wanted]
        if image in cls.images and held:
            # The one folder with all data is the service's, however deep it lies.
            own = held[0].as_posix() if len(cls.targets) == 1 else held[0].parts[0]
            return cls.Options(kind=kind, folder=own)
    return services.kind(FILES).Options(kind=FILES, folder=folder)


def published(service: Service, model: ServiceModel) -> Service:
    """Give the service as it is asked where its Compose service publishes its port.

    Only where the settings leave the address at its default: what they say goes first.
    """
    usual = service.options_at("127.0.0.1", lambda _: service.port)
    if not service.port or service.options != usual:
        return service
    ours = [
        one
        for one in model.ports
        if (one.target, one.protocol) == (service.port, "tcp") and one.published
    ]
    if not ours or ":" in ours[0].host:
        return service
    options = service.options_at(ours[0].host or "127.0.0.1", lambda _: ours[0].published)
    return type(service)(service.place, options)


def image_name(reference: str) -> str:
    """Give the name of an image without registry, tag and digest."""
    return reference.split("@")[0].rsplit("/", 1)[-1].split(":")[0]


def kind_of(image: str) -> str:
    """Give the kind that knows an image; empty = none does."""
    name = image_name(image)
    return next((kind for kind in services.kinds() if name in services.kind(kind).images), "")


def _is_file(source: Path, target: str, root: Path) -> bool:
    """Whether a mount shows one file that lies directly in the data root: no service's folder.

    On a new disk nothing lies there yet: then a suffix at both ends tells (site.conf).
    """
    if source.parent != root:
        return False
    if source.exists():
        return not source.is_dir()
    return bool(source.suffix) and source.suffix == PurePosixPath(target).suffix


def _sharing(service: Service, others: Sequence[Service]) -> Service | None:
    """Give the one whose folder is this one's, or lies around or in it."""
    folder = service.place.folder
    for other in others:
        there = other.place.folder
        if folder.is_relative_to(there) or there.is_relative_to(folder):
            return other
    return None


def repository_access(settings: Settings, layout: disk.Layout) -> RepositoryAccess:
    """Give what restic needs to reach the hub's repository, or the copy in its place.

    Raises:
        SettingsError: the settings name none, or its credentials file cannot be read.
    """
    from iotops.clients.restic import RepositoryAccess

    chosen = settings.repository
    if chosen is None:
        raise SettingsError(
            "the settings name no repository", hint="make one with: iotops init --repository URL"
        )
    copy = chosen.name if isinstance(chosen, CopySettings) else ""
    where = f"repository.copies {copy}" if copy else "repository"
    for key, path, what in (
        ("credentials_file", chosen.credentials_file, "the access credential, NAME=value lines"),
        ("ssh_config", chosen.ssh_config, "ssh's configuration: Host, User, IdentityFile"),
    ):
        if path is not None and not path.is_file():
            raise SettingsError(
                f"{where}.{key}: {path} does not exist", hint=f"put {what} there, mode 0600"
            )
    credentials: dict[str, str] = {}
    if chosen.credentials_file is not None:
        values = config.read_env(chosen.credentials_file)
        credentials = {name: value.reveal() for name, value in values.items()}
    password, password_from = chosen.password_file, ""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = f"restic-password-{copy}" if copy else "restic-password"
    if folder and (Path(folder) / credential).is_file():
        password = Path(folder) / credential
        password_from = (
            f"systemd's credential {password}, which goes before {where}.password_file:"
            " LoadCredential= in the unit must name that file"
        )
    return RepositoryAccess(
        url=chosen.url,
        password_file=password,
        environment=credentials,
        cache=layout.cache,
        tmp=layout.tmp,
        small_memory=chosen.small_memory,
        password_from=password_from,
        ssh_config=chosen.ssh_config,
    )
