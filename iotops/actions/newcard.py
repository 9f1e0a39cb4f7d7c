"""Start a new system card: bring the hub folder out of the repository, and say what is missing.

What is needed is what the kit holds: the repository's address, a password that opens it, and a
remote's access. Nothing of the hub is taken from anywhere else, nothing is installed, and nothing
but the hub folder and the two secret files is written. Not here: the data (`restore.py`), making a
hub that never was (`setup.py`), the questions to a person (`cli/newcard.py`).
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iotops import config, disk
from iotops.actions import extract, hostdiff, paper
from iotops.actions.ours import TAG
from iotops.actions.repository import PASSWORD_FILE as PASSWORD_FILE
from iotops.actions.repository import write_repository_setting
from iotops.clients import dockerprogram, files, process
from iotops.clients.git import Worktree
from iotops.clients.restic import Repository, RepositoryAccess, SnapshotInfo, find_snapshot
from iotops.config import Secret, Settings
from iotops.errors import (
    GuardError,
    IotopsError,
    ManifestError,
    RestoreError,
    SnapshotUnknown,
    UsageError,
    WrongPassword,
)
from iotops.events import Report, silent, step
from iotops.hub import options_of
from iotops.journal import StateFile
from iotops.model import Finding, Manifest, Outcome, Severity

PARTS = ("hub", "host")
HUB_IDS = frozenset("0123456789abcdef")
CREDENTIALS_FILE = PASSWORD_FILE.with_name("restic-credentials")
"""Where a remote's access goes, unless it is told where."""


@dataclass(frozen=True)
class Kit:
    """What is typed from the kit.

    Attributes:
        url: the repository's address. password: opens it.
        credentials: a remote's access, by the names that restic knows.
    """

    url: str
    password: Secret
    credentials: Mapping[str, Secret]


@dataclass(frozen=True)
class HubInRepository:
    """A hub whose snapshots are in a repository; `newest` is the one that would be taken."""

    id: str
    name: str
    newest: SnapshotInfo
    snapshots: int


@dataclass(frozen=True)
class NewCard:
    """A hub folder that came back.

    Attributes:
        written: the secret files that were written.
        missing: what this machine lacks, with the commands; empty = ready for the restore.
        next: the next command. copy: of which copy the address is; "" = of none.
    """

    folder: Path
    hub_id: str
    name: str
    snapshot: str
    root: Path
    written: tuple[Path, ...]
    missing: tuple[Finding, ...]
    next: str
    copy: str = ""


def read_kit(url: str, text: str) -> Kit:
    """Read what was typed: a password, and lines as the kit prints them.

    Args:
        url: the address; empty = it stands among the lines.
        text: NAME=value lines (`RESTIC_REPOSITORY`, `RESTIC_PASSWORD`, and a remote's access); a
            line that is none of these is the password.

    Raises:
        UsageError: the address or the password is missing.
    """
    values: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, mark, value = line.partition("=")
        if mark and name.isidentifier() and name.isupper():
            values[name] = value.strip().strip("'\"")
        else:
            values.setdefault("RESTIC_PASSWORD", line)
    address = url or values.pop("RESTIC_REPOSITORY", "")
    values.pop("RESTIC_REPOSITORY", None)
    password = _as_printed(values.pop("RESTIC_PASSWORD", ""))
    if not address or not password:
        what = "the repository's address" if not address else "its password"
        raise UsageError(
            f"{what} was not given",
            hint="type it as the kit has it: iotops init --from-repository URL DIR",
        )
    return Kit(address, Secret(password), {name: Secret(text) for name, text in values.items()})


def _as_printed(typed: str) -> str:
    """Give a paper's password in the form that it was printed in; any other as it was typed."""
    try:
        return paper.read(typed)
    except paper.Mistyped:
        return typed


def start(
    kit: Kit,
    folder: Path,
    *,
    hub: str = "",
    snapshot: str = "latest",
    password_file: Path,
    credentials_file: Path,
    ssh_config: Path | None = None,
    state: Path | None = None,
    report: Report = silent,
) -> NewCard:
    """Bring a hub folder back.

    Args:
        folder: where it goes; must not exist, or be empty.
        hub: name or id (or its beginning), where the repository holds several hubs.
        password_file, credentials_file: where the secrets go, 0600.
        ssh_config: ssh's configuration file, for an sftp: address.
        state: folder of the state file, instead of the one in the hub's settings.

    Raises:
        UsageError: not root, or which hub is meant is not clear.
        GuardError: the folder or a secret file is in use.
        RepositoryMissing, WrongPassword, Unreachable: as restic says.
        RestoreError: what came out is not what the manifest says.
    """
    if os.geteuid() != 0:
        raise UsageError(
            "a hub folder comes back with its owners: that needs root",
            hint=f"sudo iotops init --from-repository URL {folder}",
        )
    _require_free(folder)
    _require_same(password_file, kit.password.reveal() + "\n")
    if kit.credentials:
        _require_same(credentials_file, _lines(kit.credentials))
    with tempfile.TemporaryDirectory(prefix="iotops-", dir="/var/tmp") as name:
        work = Path(name)
        repository = _repository(kit, work, ssh_config)
        with step(report, "open"):
            try:
                found = repository.snapshots(tags=(TAG,))
                repository_id = repository.id()
            except WrongPassword as error:  # there are no settings yet to look at
                hint = f"type it as the kit has it: iotops init --from-repository URL {folder}"
                raise WrongPassword(error.message, hint=hint) from error
        chosen = _choose(found, hub, snapshot)
        made = extract.read_manifest(repository, chosen.id)
        target = work / "snapshot"
        extract.extract(repository, chosen.id, PARTS, target, report)
        bad = extract.check(target, made, PARTS, report)
        if bad:
            raise RestoreError(
                "the hub folder does not come out as it was recorded: "
                + "; ".join(one.message for one in bad[:3]),
                hint="choose another snapshot with --snapshot ID",
            )
        if not (target / "hub" / config.FILE).is_file():
            raise ManifestError(
                f"the snapshot {chosen.id[:8]} holds no hub folder",
                hint="choose another snapshot with --snapshot ID",
            )
        settings = config.load(target / "hub" / config.FILE, options_of)
        with step(report, "write"):
            written = [_write_secret(password_file, kit.password.reveal() + "\n")]
            if kit.credentials:
                written.append(_write_secret(credentials_file, _lines(kit.credentials)))
            wanted = config.repository(
                url=kit.url,
                password_file=password_file,
                credentials_file=credentials_file if kit.credentials else None,
                **({"ssh_config": ssh_config} if ssh_config is not None else {}),
            )
            copy = next((one for one in _copies(settings) if one.url == wanted.url), None)
            if copy is None:
                write_repository_setting(target / "hub" / config.FILE, wanted)
            _give_to_owner(target / "hub", settings, made)
            _move(target / "hub", folder)
        settings = config.load(folder / config.FILE, options_of)
        missing = tuple(lacking(folder, settings, made, target / "host"))
    _repair(folder, settings)
    records = StateFile(state or settings.paths.state, settings.hub.id)
    records.update(name=settings.hub.name, folder=str(folder))
    if copy is None:
        records.update(repository=repository_id)
    if copy is not None:
        missing = (*_elsewhere(copy, password_file, credentials_file, kit), *missing)
    if (used := copy or settings.repository) is not None:
        which = f"copy {copy.name}" if copy is not None else "repository"
        missing = (*_not_here(which, used, kit), *missing)
    which = chosen.id[:8] if snapshot != "latest" else "latest"
    source = f" --from {copy.name}" if copy is not None else ""
    return NewCard(
        folder=folder,
        hub_id=settings.hub.id,
        name=settings.hub.name,
        snapshot=chosen.id,
        root=settings.data.root,
        written=tuple(written),
        missing=missing,
        next=f"iotops restore {which} --claim-disk{source}",
        copy=copy.name if copy is not None else "",
    )


def _copies(settings: Settings) -> Sequence[config.CopySettings]:
    """Give the copies that settings name."""
    chosen = settings.repository
    return chosen.copies if isinstance(chosen, config.RepositorySettings) else ()


def _elsewhere(
    copy: config.CopySettings, password_file: Path, credentials_file: Path, kit: Kit
) -> Iterator[Finding]:
    """Name the secret files that the settings of a copy look for in another place."""
    pairs = [(password_file, copy.password_file)]
    if kit.credentials and copy.credentials_file is not None:
        pairs.append((credentials_file, copy.credentials_file))
    for here, there in pairs:
        if here != there and not there.exists():
            yield _lack(
                f"copy {copy.name}",
                f"the settings look for its access in {there}",
                f"sudo install -m 600 {here} {there}",
            )


def _not_here(
    which: str, used: config.RepositorySettings | config.CopySettings, kit: Kit
) -> Iterator[Finding]:
    """Name files of access that the settings still look for: not given, and not on this machine."""
    line = f"or, where it opens without, take the line out of {config.FILE}"
    path = used.credentials_file
    if path is not None and not kit.credentials and not path.exists():
        text = f"the settings look for its access in {path}"
        yield _lack(which, text, f"write its NAME=value lines there, mode 0600; {line}")
    path = used.ssh_config
    if path is not None and not path.exists():
        text = f"the settings look for ssh's configuration in {path}"
        yield _lack(which, text, f"put it there, and the key that it names; {line}")


def hubs(found: Sequence[SnapshotInfo]) -> tuple[HubInRepository, ...]:
    """List the hubs that a repository's snapshots belong to, by name."""
    groups: dict[str, list[SnapshotInfo]] = {}
    for one in found:
        for tag in one.tags:
            if len(tag) >= 8 and set(tag) <= HUB_IDS:
                groups.setdefault(tag, []).append(one)
    made = []
    for hub_id, some in groups.items():
        complete = [one for one in some if Outcome.COMPLETE.value in one.tags]
        newest = max(complete or some, key=lambda one: one.time)
        made.append(HubInRepository(hub_id, newest.host, newest, len(some)))
    return tuple(sorted(made, key=lambda one: (one.name, one.id)))


def _choose(found: Sequence[SnapshotInfo], hub: str, snapshot: str) -> SnapshotInfo:
    known = hubs(found)
    fitting = [one for one in known if not hub or one.name == hub or one.id.startswith(hub)]
    listed = "; ".join(
        f"{one.name} ({one.id[:8]}), {one.snapshots} snapshots,"
        f" newest {one.newest.time:%Y-%m-%d %H:%M} UTC"
        for one in known
    )
    if not known:
        raise SnapshotUnknown(
            "the repository holds no snapshot of any hub", hint="is it the right address?"
        )
    if not fitting:
        raise UsageError(f"the repository holds no hub {hub!r}; it holds {listed}", hint="--name")
    if len(fitting) > 1:
        raise UsageError(
            f"the repository holds several hubs: {listed}",
            hint=f"say which: --name {fitting[0].name}",
        )
    (one,) = fitting
    if snapshot == "latest":
        return one.newest
    return find_snapshot(snapshot, [each for each in found if one.id in each.tags])


def _require_free(folder: Path) -> None:
    if folder.is_symlink():
        raise GuardError(
            f"{folder} is a symbolic link, and the hub folder takes the place of a folder",
            hint=f"name the folder itself: {folder.resolve()}",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GuardError(
            f"{folder} is there already and not empty",
            hint="name another folder, or move it away first",
        )
    if not folder.parent.is_dir():
        raise UsageError(
            f"the folder {folder.parent} does not exist", hint=f"sudo mkdir -p {folder.parent}"
        )


def _require_same(path: Path, text: str) -> None:
    """Refuse to overwrite a secret file that holds something else."""
    if path.exists() and path.read_text(errors="replace") != text:
        raise GuardError(
            f"{path} is there already and holds something else",
            hint="name another file, or move it away first",
        )


def _write_secret(path: Path, text: str) -> Path:
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, mode=0o711)
        path.parent.chmod(0o711)
    files.write(path, text.encode(), mode=0o600)
    return path


def _lines(values: Mapping[str, Secret]) -> str:
    return "".join(f"{name}={value.reveal()}\n" for name, value in values.items())


def _repository(kit: Kit, work: Path, ssh_config: Path | None) -> Repository:
    password = work / "password"
    files.write(password, kit.password.reveal().encode() + b"\n", mode=0o600)
    for name in ("cache", "tmp"):
        (work / name).mkdir(mode=0o700)
    return Repository(
        RepositoryAccess(
            url=kit.url,
            password_file=password,
            cache=work / "cache",
            tmp=work / "tmp",
            environment={name: value.reveal() for name, value in kit.credentials.items()},
            ssh_config=ssh_config,
        )
    )


def _give_to_owner(folder: Path, settings: Settings, made: Manifest) -> None:
    """Give the files to the hub's owner, whose number may be another one on this machine."""
    try:
        entry = pwd.getpwnam(settings.hub.owner)
        owner = entry.pw_uid, entry.pw_gid
    except KeyError:
        # Somebody else may have that number here, and would read the secrets. What it lacks is
        # told, with the command that gives the files to their owner.
        owner = 0, 0
    top = folder.stat()
    if (top.st_uid, top.st_gid) == owner:
        return
    for path in (folder, *folder.rglob("*")):
        state = path.lstat()
        if state.st_uid == top.st_uid:
            os.lchown(path, *owner)


def _move(source: Path, target: Path) -> None:
    """Put the finished folder in its place, as one step where the file system allows it."""
    if target.is_dir():
        target.rmdir()
    beside = target.with_name(f".{target.name}.iotops-new")
    files.remove_tree(beside)
    try:
        process.run(["cp", "-a", "--", source, beside], doing=f"writing {target}")
        beside.rename(target)
    finally:
        files.remove_tree(beside)


def _repair(folder: Path, settings: Settings) -> None:
    """Have Git know the moved folder again; without its user that is left to `lacking`."""
    try:
        owner = pwd.getpwnam(settings.hub.owner)
    except KeyError:
        return
    tree = Worktree(folder, owner=(owner.pw_uid, owner.pw_gid))
    flows = folder / "flows"
    if tree.exists() and flows.is_dir():
        tree.repair(flows)


# -- what the machine lacks -----------------------------------------------------------------------


def lacking(folder: Path, settings: Settings, made: Manifest, host: Path) -> Iterator[Finding]:
    """Say what this machine lacks for the restore, and how it differs from the old one.

    Args:
        host: the snapshot's part of that name, extracted.
    """
    owner, root = settings.hub.owner, settings.data.root
    try:
        pwd.getpwnam(owner)
    except KeyError:
        yield _lack(
            "owner",
            f"the user {owner}",
            # Not what belongs to a container's user.
            f"sudo useradd -m {owner}; sudo chown -R --from=root {owner}: {folder}",
        )
    for name, ask in (
        ("docker", lambda: dockerprogram.require()),
        ("git", lambda: process.find("git", hint="sudo apt-get install git")),
    ):
        try:
            ask()
        except IotopsError as error:
            yield _lack(name, error.message, error.hint)
    for finding in disk.inspect(root, settings.data.kind, settings.hub.id):
        if finding.severity is Severity.ERROR and finding.code != "mount.unclaimed":
            yield replace(
                finding,
                hint="mount an empty disk there, or the old one; somewhere else: say so in"
                f" {folder / config.FILE} (data.root) and in the mounts of the Compose file",
            )
    yield from hostdiff.differences(made, host, root)


def _lack(subject: str, message: str, hint: str) -> Finding:
    return Finding("machine.lacks", Severity.WARNING, subject, message, hint)
