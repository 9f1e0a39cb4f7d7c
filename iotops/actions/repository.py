"""Make a hub's restic repositories, or take one over; nothing else ever makes one.

Not here: what restic's answers mean (`clients/restic.py`), and whether a repository is still the
recorded one (`ours.py`).
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from iotops import config
from iotops.actions import copies, hubfiles, ours
from iotops.clients import files
from iotops.clients.git import Worktree
from iotops.clients.restic import Repository
from iotops.clients.resticerrors import cleaner
from iotops.errors import GuardError, IotopsError, RepositoryMissing, UsageError, WrongPassword
from iotops.events import Report, silent, step
from iotops.hub import Hub, repository_access

PASSWORD_FILE = Path("/etc/iotops/restic-password")


@dataclass(frozen=True)
class MadeRepository:
    """A repository that was made or taken over.

    Attributes:
        password_made: the password file did not exist and was made now.
        accepted: the repository existed already.
        copy: the copy that it belongs to; "" = it is the first one.
    """

    url: str
    id: str
    password_file: Path
    password_made: bool
    accepted: bool
    notes: tuple[str, ...]
    copy: str = ""


def init_repository(
    hub: Hub,
    *,
    url: str,
    password_file: Path = PASSWORD_FILE,
    credentials_file: Path | None = None,
    ssh_config: Path | None = None,
    accept: bool = False,
    new_history: bool = False,
    report: Report = silent,
) -> MadeRepository:
    """Make a hub's restic repository, and name it in the settings; nothing else ever makes one.

    Args:
        url: anything restic takes.
        password_file: made with a new password when it does not exist; mode 0600.
        accept: take a repository that exists, instead of refusing it.
        new_history: make it although this hub has recorded one at the address: that one is gone
            for good, and not only its disk unmounted.

    Raises:
        GuardError: one exists there (`accept` not given) or existed there (`new_history` not
            given), it would lie on the disk it protects, or the password or credentials file can
            be read by others.
        UsageError: the folder that it shall lie in does not exist.
        SettingsError: the address is relative, or holds a password.
        RepositoryMissing: none exists there and `accept` was given.
        WrongPassword: the one there has another password.
    """
    password_file = password_file.absolute()
    wanted = config.repository(
        url=url,
        password_file=password_file,
        credentials_file=credentials_file.absolute() if credentials_file else None,
        ssh_config=ssh_config.absolute() if ssh_config else None,
    )
    url = wanted.url
    hub.guard()  # restic's cache lies on the data root
    _check_address(hub, url)
    settings = dataclasses.replace(hub.settings, repository=wanted)
    repository = Repository(repository_access(settings, hub.layout))
    repository.version()  # without restic nothing is begun
    _refuse_open(password_file, wanted.credentials_file)
    known, state = hub.settings.repository, hub.state.read()
    if known is not None and state.repository and _same_place(known.url, url):
        if not accept and not new_history:
            good = state.good.get("backup", "")
            _refuse_lost(hub.repository, state.repository, good, "--repository URL")
    with step(report, "password"):
        made = _make_password(password_file, accept)
    with step(report, "repository"):
        repository_id = _open_or_make(repository, url, accept, made, password_file)
    with step(report, "settings"):
        changed = write_repository_setting(hub.folder / config.FILE, wanted)
    hub.state.update(repository=repository_id, name=hub.name, folder=str(hub.folder))
    notes = []
    if made:
        notes.append(
            f"the password was generated into {password_file}: without it nothing can be restored;"
            " keep a copy away from this machine"
        )
    if changed and Worktree(hub.folder, owner=hub.owner).exists():
        notes.append(f"commit the change: git -C {hub.folder} commit -m 'Name the repository' -a")
    return MadeRepository(url, repository_id, password_file, made, accept, tuple(notes))


def init_copy(
    hub: Hub,
    name: str,
    *,
    url: str = "",
    password_file: Path | None = None,
    credentials_file: Path | None = None,
    ssh_config: Path | None = None,
    append_only: bool = False,
    accept: bool = False,
    new_history: bool = False,
    report: Report = silent,
) -> MadeRepository:
    """Make the repository of a copy, with the first one's chunker parameters: equal data then
    needs no more room there than it does here.

    Args:
        name: of a copy in the settings, or of one that is written into them now.
        url: needed for a new one; so are the others where they are not the usual ones.
        accept: take a repository that exists, instead of refusing it.
        new_history: as `init_repository`.

    Raises:
        UsageError: the settings have no such copy and no address is given, or another one.
        others: as `init_repository`.
    """
    hub.guard()
    known = next((one for one in hub.copies if one.name == name), None)
    first = hub.settings.repository
    if first is None:
        raise UsageError(
            "a copy needs a repository to copy from", hint="iotops init --repository URL"
        )
    if known is None and not url:
        raise UsageError(
            f"the settings name no copy {name!r}",
            hint=f"iotops init --repository URL --copy {name}",
        )
    if known is not None and url not in ("", known.url):
        raise UsageError(
            f"the copy {name} has another address in the settings",
            hint=f"correct it there: nano {hub.folder / config.FILE}",
        )
    chosen = known or config.new_copy(
        first,
        hub.copies,
        name=name,
        url=url,
        password_file=(
            password_file or PASSWORD_FILE.with_name(f"restic-password-{name}")
        ).absolute(),
        credentials_file=credentials_file.absolute() if credentials_file else None,
        ssh_config=ssh_config.absolute() if ssh_config else None,
        append_only=append_only,
    )
    _check_address(hub, chosen.url)
    settings = dataclasses.replace(hub.settings, repository=chosen)
    there = Hub(hub.folder, settings, copy=name)
    there.repository.version()
    source = hub.repository
    source.id()  # the first one must be there and open before a password is made
    _refuse_open(chosen.password_file, chosen.credentials_file)
    recorded = hub.state.read().copies
    mine = recorded.get(name, {})
    if mine.get("repository") and not accept and not new_history:
        good = mine.get("good", "")
        _refuse_lost(there.repository, mine["repository"], good, f"--copy {name}")
    with step(report, "password"):
        made = _make_password(chosen.password_file, accept)
    with step(report, "repository"):
        try:
            repository_id = _open_or_make(
                there.repository, chosen.url, accept, made, chosen.password_file, source, name
            )
        except IotopsError as error:
            raise copies.told(there, error) from None
    if repository_id == hub.state.read().repository:
        raise GuardError(
            f"the address of the copy {name} leads to the hub's own repository",
            hint="put the copy on another disk or machine",
        )
    changed = known is None
    if changed:
        with step(report, "settings"):
            _write_copy(hub.folder / config.FILE, chosen)
    if mine.get("repository") != repository_id:
        hub.state.update(copies={**recorded, name: {"repository": repository_id}})
    notes = []
    if made:
        notes.append(
            f"the password was generated into {chosen.password_file}; it is another one than the"
            " first repository's: keep a copy away from this machine"
        )
    if changed and Worktree(hub.folder, owner=hub.owner).exists():
        notes.append(f"commit the change: git -C {hub.folder} commit -m 'Name a copy' -a")
    return MadeRepository(
        chosen.url, repository_id, chosen.password_file, made, accept, tuple(notes), name
    )


def _write_copy(path: Path, chosen: config.CopySettings) -> None:
    """Add a copy to `iotops.toml`, at its end."""
    keys: dict[str, str | bool] = {
        "name": chosen.name,
        "url": chosen.url,
        "password_file": str(chosen.password_file),
    }
    if chosen.credentials_file is not None:
        keys["credentials_file"] = str(chosen.credentials_file)
    if chosen.ssh_config is not None:
        keys["ssh_config"] = str(chosen.ssh_config)
    if chosen.append_only:
        keys["append_only"] = True
    after = hubfiles.add_table(path.read_text("utf-8"), "repository.copies", keys)
    state = path.stat()
    files.write(
        path, after.encode(), mode=state.st_mode & 0o7777, owner=(state.st_uid, state.st_gid)
    )


def _check_address(hub: Hub, url: str) -> None:
    ours.refuse_protected(hub, url)
    if not url.startswith("/"):
        return
    if not Path(url).parent.is_dir():
        # restic would make the whole path, for example on the SD card under an unmounted disk, and
        # tries for a quarter of an hour where it cannot.
        raise UsageError(
            f"the folder {Path(url).parent} for the repository does not exist",
            hint=f"mount its disk, or make it: sudo mkdir -p {Path(url).parent}",
        )


def _refuse_lost(known: Repository, recorded: str, good: str, option: str) -> None:
    """Refuse to begin anew where a repository of this hub was: its disk may only be unmounted.

    The new one would lie on the SD card below the mount point, and each backup into it succeed.

    Args:
        known: as the settings name it. recorded: its id. good: when it last took a backup.
        option: of `iotops init`, that names it.
    """
    url, password = known.access.url, known.access.password_file
    where = "it is not there now"
    if not password.is_file():
        where = f"its password file {password} is not there"
    elif url.startswith("s3:"):
        return  # no mount point can pass for it; and restic looks a quarter of an hour for a bucket
    else:
        try:
            known.id()
        except RepositoryMissing:
            pass
        except IotopsError:
            return  # there is one, or nobody can say: told by who makes it
        else:
            return
    raise GuardError(
        f"this hub has a repository at {cleaner(())(url)} (id {recorded[:10]}, last complete"
        f" backup {good or 'none'}), and {where}",
        hint="mount its disk, look at its server, put its password back from the kit; only if it"
        f" is gone for good, begin an empty history: iotops init {option} --new-history",
    )


def _same_place(url: str, other: str) -> bool:
    """Tell whether two addresses name one place, however a path is written."""
    places = [one.removeprefix("local:") for one in (url, other)]
    return len({os.path.normpath(one) if one.startswith("/") else one for one in places}) == 1


def _refuse_open(*paths: Path | None) -> None:
    """Refuse secrets that others on this machine can read."""
    for path in paths:
        if path is not None and path.is_file() and (mode := files.open_mode(path)):
            raise GuardError(
                f"{path} can be read by others (mode {mode:04o})", hint=f"chmod 600 {path}"
            )


def _make_password(path: Path, accept: bool) -> bool:
    """Make a password file unless there is one; tells whether it did."""
    if path.is_file():
        return False
    if accept:
        raise UsageError(
            f"the password file {path} does not exist",
            hint=f"write the repository's password into it: sudo install -m 600 /dev/stdin {path}",
        )
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, mode=0o711)
            # Passable: the link /etc/iotops/hub must be found by the hub's owner too.
            path.parent.chmod(0o711)
        files.write(path, hubfiles.readable_password().encode() + b"\n", mode=0o600)
    except OSError as error:
        raise IotopsError(
            f"the password file {path} cannot be made: {error.strerror}", hint="run it with sudo"
        ) from error
    return True


def _open_or_make(
    repository: Repository,
    url: str,
    accept: bool,
    made: bool,
    password_file: Path,
    source: Repository | None = None,
    copy: str = "",
) -> str:
    """Give the id of the repository, made now unless it may be an existing one."""
    chunker_from = source.access if source is not None else None
    if accept:
        return repository.id()
    there = ""
    try:
        if url.startswith("s3:"):
            # Looking first would take restic a quarter of an hour where there is no bucket yet.
            return repository.init(chunker_from)
        there = repository.id()
    except RepositoryMissing:
        return repository.init(chunker_from)
    except GuardError:
        pass  # restic found one, and left it as it is
    except WrongPassword:
        if not made:
            raise
    if made:
        password_file.unlink()  # it opens nothing
    raise GuardError(
        f"there is a repository at {url} already" + (f" (id {there[:10]})" if there else ""),
        hint="to use it for this hub: iotops init"
        f" {f'--copy {copy}' if copy else '--repository URL'} --accept-repository"
        " (with its password in the password file)",
    )


def write_repository_setting(path: Path, wanted: config.RepositorySettings) -> bool:
    """Name the repository in `iotops.toml`, leaving everything else as it is written.

    Returns:
        Whether the file had to be changed.

    Raises:
        SettingsError: the file is written in a way that cannot be edited.
    """
    before = path.read_text("utf-8")
    keys = {"url": wanted.url, "password_file": str(wanted.password_file)}
    if wanted.credentials_file is not None:
        keys["credentials_file"] = str(wanted.credentials_file)
    if wanted.ssh_config is not None:
        keys["ssh_config"] = str(wanted.ssh_config)
    table = tomllib.loads(before).get("repository", {})
    if all(table.get(key) == value for key, value in keys.items()):
        return False
    after = hubfiles.set_keys(before, "repository", keys)
    state = path.stat()
    files.write(
        path, after.encode(), mode=state.st_mode & 0o7777, owner=(state.st_uid, state.st_gid)
    )
    return True
