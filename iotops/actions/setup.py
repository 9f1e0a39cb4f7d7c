"""Make a hub: its folder from the built-in template, and its claimed disk.

Everything that can refuse is asked before anything is made, and what was made is removed again when
a later step fails. Not here: what stands in the files (`hubfiles.py`), what makes a disk fit
(`disk.py`), the repository (`repository.py`), and any question to a person (`cli/init.py`).
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from iotops import config, disk
from iotops.actions import hubfiles
from iotops.actions.repository import (
    PASSWORD_FILE,
    MadeRepository,
    init_copy,
    init_repository,
    write_repository_setting,
)
from iotops.clients import files
from iotops.clients.git import Worktree
from iotops.clients.git import init_repository as init_git
from iotops.clients.resticerrors import cleaner
from iotops.errors import (
    GuardError,
    IotopsError,
    SettingsError,
    UsageError,
)
from iotops.events import Report, silent, step
from iotops.hub import options_of
from iotops.journal import StateFile

__all__ = [
    "Choices",
    "DATA_FOLDERS",
    "Made",
    "MadeRepository",
    "OVERRIDE",
    "init",
    "init_copy",
    "init_repository",
    "told",
    "write_repository_setting",
]

OVERRIDE = "docker-compose.override.yaml"
FLOWS = "flows"

DATA_FOLDERS: Mapping[str, tuple[tuple[int, int], int]] = {
    "mqtt": ((1883, 1883), 0o755),
    "mqtt/data": ((1883, 1883), 0o700),
    "mqtt/log": ((1883, 1883), 0o750),
    "mqtt/secrets": ((1883, 1883), 0o700),
    "nodered": ((1000, 1000), 0o700),  # Node-RED itself writes live sessions world-readable
    "influxdb": ((1000, 1000), 0o700),
    "grafana": ((472, 0), 0o700),
}
"""Folders below the data root: numeric user and group of the image's server, and mode."""

MQTT_PASSWORDS = "mqtt/secrets/passwd"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a new hub shall be like.

    Attributes:
        owner: user that the hub folder belongs to; empty = who called sudo, else the folder's.
        claim_disk: the empty disk mounted at the data root may be taken.
        repository: restic's address of it, only written into the settings; empty = none yet.
        ports: published ports by service, instead of the usual ones.
        project: name of the Compose project; empty = made from the hub's name.
        override: a Compose file to be merged over the hub's own on this machine.
        mqtt_address, web_address: where the broker, and Node-RED with Grafana, listen.
        state, run: folders of the state file and of the lock, instead of the usual ones.
    """

    name: str = "iot-hub"
    owner: str = ""
    data_root: Path = Path("/mnt/iot-data")
    data_kind: Literal["mount", "folder"] = "mount"
    claim_disk: bool = False
    repository: str = ""
    password_file: Path = PASSWORD_FILE
    credentials_file: Path | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    project: str = ""
    override: Path | None = None
    mqtt_address: str = "0.0.0.0"
    web_address: str = "127.0.0.1"
    state: Path | None = None
    run: Path | None = None


@dataclass(frozen=True)
class Made:
    """A hub that was made: its folder and data root, its id, and what lies where."""

    folder: Path
    root: Path
    hub_id: str
    name: str
    owner: str
    paths: tuple[Path, ...]
    notes: tuple[str, ...]


# ---- a hub --------------------------------------------------------------------------------------


def init(folder: Path, choices: Choices, report: Report = silent) -> Made:
    """Make a hub folder and claim its data root.

    Args:
        folder: absolute; missing or empty.

    Raises:
        UsageError: a choice cannot be. GuardError: the folder or the data root is in use.
        ProgramMissing, GitError: no Git. Whatever is raised, nothing half-made stays.
    """
    owner = _owner(folder, choices.owner)
    root = choices.data_root
    hub_id = secrets.token_hex(8)
    values = hubfiles.generate()
    with step(report, "check"):
        _check(folder, choices)
        content = _content(folder, choices, hub_id, owner.pw_name, values)
    ids = (owner.pw_uid, owner.pw_gid)
    with _undone() as made:
        with step(report, "files"):
            _write_folder(folder, content, ids, made)
        with step(report, "git"):
            _commit(folder, ids)
        with step(report, "data"):
            _write_data(choices, hub_id, ids[1], values, made)
            settings = config.load(folder / config.FILE, options_of)
            StateFile(settings.paths.state, hub_id).update(
                name=choices.name, folder=str(folder), disk=disk.identity(root)
            )
    paths = [folder / name for name in (*content, FLOWS)]
    paths += [root / name for name in (*DATA_FOLDERS, MQTT_PASSWORDS, disk.SENTINEL)]
    return Made(folder, root, hub_id, choices.name, owner.pw_name, tuple(paths), _notes(folder))


def _check(folder: Path, choices: Choices) -> None:
    root = choices.data_root
    if os.geteuid() != 0:
        raise UsageError(
            "making a hub needs root: each service's data belongs to a user of its own",
            hint=f"sudo iotops init {folder}",
        )
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise GuardError(
            f"{folder} exists and is not an empty folder",
            hint="choose another folder; a hub that is there needs no init: iotops status",
        )
    if not root.is_absolute():
        raise UsageError(f"the data root {root} must be an absolute path", hint="--data-root /...")
    inner, outer = folder.resolve(), root.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise UsageError(
            f"the hub folder {folder} and the data root {root} must not contain each other",
            hint="choose another place for one of them",
        )
    if choices.data_kind == "folder" and not os.path.lexists(root):
        return  # the only kind that is made, and only here
    wanted = [
        one
        for one in disk.inspect(root, choices.data_kind, "")
        if one.code != "mount.unclaimed"
        or (choices.data_kind == "mount" and not choices.claim_disk)
    ]
    if wanted:
        hint = wanted[0].hint
        if wanted[0].code == "mount.unclaimed":
            hint = f"if it is the disk for this hub: iotops init {folder} --claim-disk"
        raise GuardError("; ".join(one.message for one in wanted), hint=hint)


def _owner(folder: Path, name: str) -> pwd.struct_passwd:
    chosen = name or os.environ.get("SUDO_USER", "")
    try:
        if chosen:
            return pwd.getpwnam(chosen)
        there = next(one for one in (folder, *folder.parents) if one.exists())
        return pwd.getpwuid(there.stat().st_uid)
    except KeyError as error:
        raise UsageError(
            f"this machine has no user {chosen or 'that the folder belongs to'!r}",
            hint="name one: iotops init --owner USER",
        ) from error


def _content(
    folder: Path, choices: Choices, hub_id: str, owner: str, values: Mapping[str, str]
) -> dict[str, bytes]:
    """Give every file of the hub folder, and check the settings among them."""
    project = choices.project or re.sub(r"[^a-z0-9_-]+", "-", choices.name.lower()).strip("-_")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", project):
        raise UsageError(
            f"{project!r} cannot name a Compose project",
            hint="use a-z, 0-9, - and _: iotops init --project NAME",
        )
    for address in (choices.mqtt_address, choices.web_address):
        if not re.fullmatch(r"[0-9.]+|\[[0-9a-fA-F:]+\]", address):
            raise UsageError(f"{address!r} is no address to listen on", hint="for example 0.0.0.0")
    facts = {
        **values,
        "ID": hub_id,
        "NAME": choices.name,
        "OWNER": owner,
        "ROOT": str(choices.data_root),
        "KIND": choices.data_kind,
        "PROJECT": project,
        "TZ": hubfiles.time_zone(),
        "MQTT_ADDRESS": choices.mqtt_address,
        "WEB_ADDRESS": choices.web_address,
        "MQTT_HOST": _asked_at(choices.mqtt_address).strip("[]"),
        "WEB_HOST": _asked_at(choices.web_address),
    }
    try:
        content = hubfiles.render(facts, choices.ports)
    except UnicodeEncodeError as error:
        raise UsageError("a path or name is not UTF-8", hint="choose another one") from error
    text = content[config.FILE].decode()
    if choices.repository:
        text = hubfiles.set_keys(text, "repository", _repository_keys(choices))
    places = {"state": choices.state, "run": choices.run}
    moved = {name: str(path.absolute()) for name, path in places.items() if path is not None}
    if moved:
        text = hubfiles.set_keys(text, "paths", moved)
    try:
        config.check(tomllib.loads(text), folder / config.FILE, options_of)
    except SettingsError as error:
        raise UsageError("; ".join(error.faults), hint="iotops init --help") from error
    content[config.FILE] = text.encode()
    if choices.override is not None:
        try:
            content[OVERRIDE] = choices.override.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{choices.override} cannot be read: {error.strerror}", hint="correct --override"
            ) from error
    return content


def _asked_at(address: str) -> str:
    """Give the address at which this machine reaches what listens there."""
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(address, address)


def _repository_keys(choices: Choices) -> dict[str, str]:
    keys = {
        "url": choices.repository,
        "password_file": str(choices.password_file.absolute()),
    }
    if choices.credentials_file is not None:
        keys["credentials_file"] = str(choices.credentials_file.absolute())
    return keys


def _write_folder(
    folder: Path, content: Mapping[str, bytes], owner: tuple[int, int], made: list[Path]
) -> None:
    """Write the hub folder; what is new is added to `made`."""
    for place in reversed(files.missing_folders(folder)):
        files.make_folder(place)  # the containers' users read the configuration
        made.append(place)
    os.chown(folder, *owner)
    for name, data in content.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            if not (folder / parent).exists():
                made.append(folder / parent)
                files.make_folder(folder / parent, owner=owner)
        made.append(path)
        files.write(path, data, mode=0o600 if name == ".env" else 0o644, owner=owner)
    made += [folder / ".git", folder / FLOWS]


def _commit(folder: Path, owner: tuple[int, int]) -> None:
    tree: Worktree = init_git(folder, owner)
    tree.commit_all("Begin the configuration of the hub")
    tree.add_orphan_worktree(FLOWS, at=folder / FLOWS)
    program = shlex.quote(_own_program())
    hook = hubfiles.shipped("hooks/pre-commit").replace("@IOTOPS@", program)
    place = folder / ".git" / "hooks"
    place.mkdir(exist_ok=True)
    files.write(place / "pre-commit", hook.encode(), mode=0o755, owner=owner)
    os.chown(place, *owner)


def _own_program() -> str:
    """Name the console script of this installation, also when run as `python -m iotops`."""
    called = Path(sys.argv[0]).absolute()
    beside = Path(sys.executable).absolute().parent / "iotops"
    found = next((one for one in (called, beside) if one.name == "iotops" and one.is_file()), None)
    return str(found or "iotops")


def _write_data(
    choices: Choices, hub_id: str, group: int, values: Mapping[str, str], made: list[Path]
) -> None:
    root = choices.data_root
    if choices.data_kind == "folder":
        for place in reversed(files.missing_folders(root)):
            files.make_folder(place)
            made.append(place)
    if disk.claimable(root, choices.data_kind):  # else it stays as it is, and the claim refuses
        made += [root / disk.FOLDER, root / disk.SENTINEL]
    disk.claim(root, choices.data_kind, hub_id, choices.name, group)
    for name, (owner, mode) in DATA_FOLDERS.items():
        (root / name).mkdir(mode=0o700)
        made.append(root / name)  # only what was made here is ever removed
        os.chown(root / name, *owner)
        (root / name).chmod(mode)
    files.write(
        root / MQTT_PASSWORDS,
        hubfiles.mosquitto_passwords(values),
        mode=0o600,
        owner=DATA_FOLDERS["mqtt"][0],
    )


@contextmanager
def _undone() -> Iterator[list[Path]]:
    """Remove what the body says it made when it fails, newest first."""
    made: list[Path] = []
    try:
        yield made
    except BaseException as error:
        for path in reversed(made):
            if path.is_dir():
                files.remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise IotopsError(
                f"making the hub failed, and what was made is removed again: {error}",
                hint="correct that, then run the same command again",
            ) from error
        raise


def _notes(folder: Path) -> tuple[str, ...]:
    return (
        f"passwords were generated into {folder}/.env; nobody else can read it",
        "Node-RED and Grafana listen on this machine only; to open them: WEB_ADDRESS in .env",
        f"to use it from any folder: sudo mkdir -p /etc/iotops && sudo ln -sfn {folder}"
        " /etc/iotops/hub",
    )


def told(made: Made | MadeRepository) -> list[str]:
    """Say what was made, in lines for a person; no secret is in them."""
    if isinstance(made, MadeRepository):
        verb = "taken over" if made.accepted else "made"
        what = f"copy {made.copy}" if made.copy else "repository"
        following = f"iotops copy {made.copy}" if made.copy else "iotops backup"
        return [f"{what} {verb}: {cleaner(())(made.url)}", *made.notes, f"next: {following}"]
    return [
        f"hub {made.name} ({made.hub_id}) made in {made.folder}, data in {made.root}",
        *(f"  {path}" for path in made.paths),
        *made.notes,
        f"next: sudo iotops up --hub {made.folder}",
    ]
