"""Decide how an existing Compose project becomes a hub: pure, so that it can be tested as data.

For each service its kind, its folder below the data root, and what of that the settings must say
because the Compose file does not. Not here: what of the project no snapshot would hold
(`adoptfindings.py`), looking at the machine, and writing anything (`adopting.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from iotops import services
from iotops.actions import hubfiles
from iotops.clients.compose import Container, Model, Mount, ServiceModel
from iotops.clients.mosquittofolder import Conf
from iotops.config import RESERVED
from iotops.hub import FILES, infer

Values = Mapping[str, str | int | bool]

HEAD = """\
# Settings of iotops for this hub, begun by `iotops init --adopt`. What the Compose file says is not
# repeated here: images, folders, ports. A service's table says what cannot be read there.

"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found of a project and its machine.

    Attributes:
        folder: the project's. root: the data root.
        whole: the project with the services of every profile. active: the services without those
            of inactive profiles.
        containers: by service. other_names: further projects with containers of this folder.
        files, folders: what is mounted and is there, by what it is.
        brokers: what each Mosquitto's configuration says, by service.
        guarded: Node-RED services whose settings.js asks for a login.
        devices: folder that a Docker volume is in truth, by the volume's name.
        secrets: values of `.env` by name, for comparing only. has_env: there is one.
        unset: variables of the Compose file that have neither a value nor a default.
        tops: the Compose files that Compose starts with. parts: all files of the project.
        named: the project's name does not come from its folder's.
        git: top folder of the Git repository that the project lies in, if it does.
    """

    folder: Path
    root: Path
    whole: Model
    active: frozenset[str]
    containers: Mapping[str, Container] = field(default_factory=dict)
    other_names: tuple[str, ...] = ()
    files: frozenset[Path] = frozenset()
    folders: frozenset[Path] = frozenset()
    brokers: Mapping[str, Conf] = field(default_factory=dict)
    guarded: frozenset[str] = frozenset()
    devices: Mapping[str, Path] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    has_env: bool = True
    unset: tuple[str, ...] = ()
    tops: tuple[Path, ...] = ()
    parts: tuple[Path, ...] = ()
    named: bool = True
    git: Path | None = None

    def inside(self, model: ServiceModel) -> tuple[Mount, ...]:
        """Give the folders below the data root that a service mounts, in the file's order."""
        return tuple(
            mount
            for mount in model.mounts
            if mount.source is not None
            and mount.source != self.root
            and mount.source.is_relative_to(self.root)
            and mount.source not in self.files
        )


@dataclass(frozen=True)
class Kept:
    """A service with data of its own.

    Attributes:
        service: its Compose service. kind: as under `services/`. folder: below the data root.
        name: in the settings. table: what these must say of it; empty = nothing.
    """

    service: str
    name: str
    kind: str
    folder: Path
    table: Values = field(default_factory=dict)


def judge(seen: Seen) -> tuple[Kept, ...]:
    """Decide for every active service what is its own, those of a known kind first."""
    chosen: dict[str, tuple[str, Path]] = {}
    inferred: dict[str, tuple[str, Path]] = {}
    for name in sorted(seen.active):
        options = infer(_plain(seen, name), seen.root)
        if options is not None:
            inferred[name] = options.kind, seen.root / options.folder
    known = [name for name, (kind, _) in inferred.items() if kind != FILES]
    for name in (*known, *(name for name in inferred if name not in known)):
        kind, _ = inferred[name]
        folder = _folder(seen, name, kind, inferred[name][1], chosen)
        if folder is not None:
            chosen[name] = kind, folder
    return tuple(
        _kept(seen, name, kind, folder, inferred[name]) for name, (kind, folder) in chosen.items()
    )


def settings(hub: Values, data: Values, paths: Values, kept: Sequence[Kept]) -> str:
    """Give the text of `iotops.toml`.

    Args:
        hub, data, paths: these tables; an empty one is left out. kept: as judged.
    """
    tables = [hubfiles.toml_table("hub", hub), hubfiles.toml_table("data", data)]
    for one in kept:
        if one.table:
            plain = re.fullmatch(r"[A-Za-z0-9_-]+", one.name)
            name = one.name if plain else f'"{one.name}"'
            tables.append(hubfiles.toml_table(f"services.{name}", one.table))
    if paths:
        tables.append(hubfiles.toml_table("paths", paths))
    return HEAD + "\n".join(tables)


# -- folders ---------------------------------------------------------------------------------------


def _plain(seen: Seen, name: str) -> ServiceModel:
    """Give a service with no mount below the data root but its folders."""
    model = seen.whole.services[name]
    return replace(model, mounts=seen.inside(model))


def _folder(
    seen: Seen, name: str, kind: str, usual: Path, chosen: Mapping[str, tuple[str, Path]]
) -> Path | None:
    """Choose a service's own folder: as it would be inferred, or less, where others share that.

    Returns:
        None = it only looks into folders of others.
    """
    mounts = seen.inside(seen.whole.services[name])
    taken = [folder for _, folder in chosen.values()]
    if kind != FILES:
        targets = services.kind(kind).targets
        sources = [_source(one) for target in targets for one in mounts if one.target == target]
        own = [one for one in sources if not _shares(one, taken)]
    else:
        own = [one for one in map(_source, mounts) if not _shares(one, taken)]
    if not own:
        return None
    others = [
        _source(mount)
        for other, model in seen.whole.services.items()
        if other != name
        for mount in seen.inside(model)
    ]
    for folder in (usual, Path(os.path.commonpath(own))):
        strangers = [one for one in others if one.is_relative_to(folder) and one not in own]
        holds_own = own[0].is_relative_to(folder)
        if folder != seen.root and holds_own and not strangers and not _shares(folder, taken):
            return folder
    return own[0]


def _source(mount: Mount) -> Path:
    assert mount.source is not None  # `Seen.inside` gives no other ones
    return mount.source


def _shares(folder: Path, taken: Sequence[Path]) -> bool:
    return any(folder.is_relative_to(one) or one.is_relative_to(folder) for one in taken)


# -- what the settings must say --------------------------------------------------------------------


def _kept(seen: Seen, service: str, kind: str, folder: Path, inferred: tuple[str, Path]) -> Kept:
    name = f"{service}-service" if service in RESERVED else service
    values: dict[str, str | int | bool] = {}
    if name != service:
        values["container"] = service
    below = folder.relative_to(seen.root).as_posix()
    more = _options(seen, service, kind)
    if below != (services.kind(kind).default_folder or name):
        values["folder"] = below
    needed = name != service or more or (kind, folder) != inferred
    return Kept(service, name, kind, folder, {"kind": kind, **values, **more} if needed else {})


def _options(seen: Seen, service: str, kind: str) -> dict[str, str | int | bool]:
    """Give the options of a kind that are not its usual ones, as far as they can be known."""
    environment = seen.whole.services[service].environment
    found: dict[str, str | int | bool] = {}
    if kind == "mosquitto":
        found["username"] = ""  # whom to log in as, only its owner knows
        conf = seen.brokers.get(service)
        if conf is not None and conf.anonymous:
            found["anonymous"] = True
        return found
    asked = {
        "influxdb": ("token_env", "INFLUXDB_OPERATOR_TOKEN", r".*_INIT_ADMIN_TOKEN"),
        "grafana": ("admin_password_env", "GRAFANA_ADMIN_PASSWORD", r"GF_SECURITY_ADMIN_PASSWORD"),
        "nodered": ("secret_env", "NODERED_CREDENTIAL_SECRET", r".*CREDENTIALS?_SECRET"),
    }
    if kind in asked:
        key, usual, variable = asked[kind]
        name = _name_of(seen, [v for k, v in environment.items() if re.fullmatch(variable, k)])
        if name and usual not in seen.secrets:
            found[key] = name
    user = environment.get("GF_SECURITY_ADMIN_USER", "")
    if kind == "grafana" and user not in ("", "admin"):
        found["admin_user"] = user
    return found


def _name_of(seen: Seen, values: Sequence[str]) -> str:
    """Give the name that one of the values has in `.env`; empty = none has."""
    for name, value in seen.secrets.items():
        if value and value in values:
            return name
    return ""
