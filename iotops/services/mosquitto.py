"""Mosquitto: retained messages, persistent sessions, users.

The broker is asked to write its database (SIGUSR1, sent from inside the container: a signal by
Docker's API would mark the container as stopped by hand), the new file is awaited, copied and
walked to its end. Where the SQLite plugin of 2.1 keeps the messages, its database is copied by the
online backup instead. Nothing here starts a broker with `--test-config`: that empties the database
in 2.1.2 (upstream issue 3712). Not here: what its files look like inside
(`clients/mosquittofolder.py`, `mosquittousers.py`), and making users (`actions/devices.py`).
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from iotops.clients import files, mosquittofolder, mosquittotrial, mosquittousers
from iotops.clients.composemodel import inside_here
from iotops.clients.mosquittofolder import GENERATED, SQLITE, Conf, Users
from iotops.clients.mosquittotrial import Tried
from iotops.clients.mosquittousers import UserFiles
from iotops.clients.staging import Staging
from iotops.config import Port, Secret
from iotops.errors import CaptureError, IotopsError, LoadError, StackError
from iotops.model import (
    Captured,
    ConfigFile,
    Difference,
    Exclude,
    Facts,
    Finding,
    OnChange,
    Readiness,
    ServiceRecord,
    Severity,
)
from iotops.services.base import BaseOptions, Service, compared

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.reasoncodes import ReasonCode

SAVE_LIMIT = 20.0
"""Seconds that the broker may take to write its database after the signal."""
FIRST_LIMIT = 5.0
"""The same where no database exists yet: most likely persistence is switched off."""
ANSWER_LIMIT = 5.0
"""Seconds that one login may take."""
IMAGE_LIMIT = 60.0
"""Seconds for asking an image which version it holds."""
CONFIGURATION = "/mosquitto/config/mosquitto.conf"
"""Where the image's broker reads its configuration."""
MOUNT_IT = "mount the folder with mosquitto.conf at /mosquitto/config"
OPEN = "the broker lets in anybody without a password"


@dataclass(frozen=True, kw_only=True)
class MosquittoOptions(BaseOptions):
    """Settings of a Mosquitto service.

    Attributes:
        host, port: where the broker's MQTT listener is reached from this machine.
        username: the user that iotops logs in with; empty = no login is tried.
        password_env: name of its password in `.env`.
        password_file, dynamic_security: where users are kept, relative to the folder.
        anonymous: true = anybody is let in without a password, and that is meant; a broker that
            does so unasked does not count as up.
    """

    kind: str = "mosquitto"
    host: str = "127.0.0.1"
    port: Port = 1883
    username: str = "iotops"
    password_env: str = "MQTT_PASSWORD"
    password_file: str = "secrets/passwd"
    dynamic_security: str = "secrets/dynamic-security.json"
    anonymous: bool = False


class Mosquitto(Service):
    """A Mosquitto 2.x broker."""

    kind = "mosquitto"
    images = ("eclipse-mosquitto", "mosquitto")
    targets = ("/mosquitto/data", "/mosquitto/log", "/mosquitto/secrets")
    port = 1883
    default_folder = "mqtt"
    fleeting = ("/mosquitto/log",)
    older = (
        "2.0 refuses the passwords that 2.1 has made, and an older broker may not read the database"
    )
    owner = (1883, 1883)
    secrets_in_data = True
    excludes = (
        Exclude("log/", "the broker's log; the folder is made again with its owner"),
        Exclude("data/mosquitto.db.new", "a database half written; the broker makes it again"),
        Exclude("mosquitto.db.new", "a database half written; the broker makes it again"),
    )
    config_files = (
        ConfigFile("mosquitto/mosquitto.conf", OnChange.RESTART),
        ConfigFile("mosquitto/acl", OnChange.RELOAD),
        # What `iotops device` declares; the broker never reads it.
        ConfigFile("mosquitto/devices.toml", OnChange.NOTHING),
    )
    Options = MosquittoOptions
    options: MosquittoOptions

    def options_at(self, address: str, port: Callable[[int], int]) -> BaseOptions:
        """Give its options for the same broker at another address; see `Service.options_at`."""
        return replace(self.options, host=address, port=port(self.options.port))

    # -- asking the broker ----------------------------------------------------------------------

    def probe(self) -> Facts:
        """Log in and read the version from `$SYS`; see `Service.probe`."""
        try:
            login = _Login(self.options, self.options.username, self._password())
        except OSError as error:
            return Facts(False, detail=f"nothing answers at {self._where()}: {_why(error)}")
        with login:
            code = login.answer()
            if code is None:
                return Facts(False, detail=f"no answer to a login at {self._where()}")
            if code != 0:
                return Facts(True, detail=f"the login of {self._user()} is refused")
            return Facts(True, version=login.version())

    def ready(self) -> Readiness:
        """Tell whether a known user is let in and a nameless one is not."""
        password = self._password()
        if self.options.username and password is None:
            return Readiness(
                False, f"{self.options.password_env} is not set in .env: no login", final=True
            )
        try:
            if self.options.username:
                with _Login(self.options, self.options.username, password) as known:
                    code = known.answer()
                if code is None:
                    return Readiness(False, "the broker does not answer a login yet")
                if code != 0:
                    return Readiness(False, f"the login of {self._user()} is refused", final=True)
            with _Login(self.options, "", None) as nameless:
                code = nameless.answer()
        except OSError as error:
            return Readiness(False, f"nothing answers at {self._where()}: {_why(error)}")
        if code == 0 and not self.options.anonymous:
            return Readiness(False, OPEN, final=True)
        if code is None and not self.options.username:
            return Readiness(False, "the broker does not answer a login yet")
        return Readiness(True)

    def lets_in(self, user: str, password: Secret) -> bool | None:
        """Log in as somebody; None = no answer."""
        try:
            with _Login(self.options, user, password) as login:
                code = login.answer()
        except OSError:
            return None
        return None if code is None else code == 0

    def user_files(self) -> UserFiles:
        """Find where its users and their rights lie; see `mosquittousers.places`."""
        return mosquittousers.places(self._conf(), self._here, self.name)

    def counts(self) -> Mapping[str, int]:
        """Count what the broker holds now: it is asked to save, and its own file is counted."""
        conf = self._conf()
        what = f"the database of {self.name}"
        database = self.place.folder / self._database(conf)
        retained = 0
        if conf is not None and conf.sqlite:
            with tempfile.TemporaryDirectory(dir=self.place.tmp) as folder:
                copy = Path(folder) / SQLITE
                files.copy_sqlite(database, copy)
                retained = mosquittofolder.sqlite_retained(copy, what)
        else:
            self._save(conf)
            if files.is_regular(database):
                retained = mosquittofolder.retained(database, what)
        return {"retained": retained, **self._users(conf, self.place.folder)}

    def preflight(self) -> Iterator[Finding]:
        """Yield what keeps iotops from logging in, an open broker, and what will not last."""
        state = self.ready()
        if not state.ok:
            yield self._warning(
                "mosquitto.login",
                state.reason,
                "set username and password_env in iotops.toml, and the password in .env",
            )
        elif self.options.anonymous:
            yield self._warning(
                "mosquitto.open",
                f"{OPEN}, as the settings allow",
                "give devices passwords (`allow_anonymous false`, `password_file`), and remove"
                f" anonymous from [services.{self.name}]",
            )
        conf = self._conf()
        if conf is not None and not conf.keeps:
            yield self._warning(
                "mosquitto.persistence",
                "persistence is off: retained messages and sessions are lost when it stops",
                "add `persistence true` and `persistence_location /mosquitto/data/`"
                " to mosquitto.conf",
            )
        for relative in self._dynamic(conf):
            path = self.place.folder / relative
            if files.is_regular(path.with_name(path.name + GENERATED)):
                yield self._warning(
                    "mosquitto.generated",
                    f"{relative}{GENERATED} holds passwords in clear text, made by the broker",
                    "write them down where passwords belong, and remove the file",
                )
            elif conf is not None and self._relative(conf.dynamic_security) == relative:
                if not files.is_regular(path):
                    yield Finding("mosquitto.users", Severity.ERROR, self.name, *self._lost(path))
        yield from self.judge_users(self.place.folder)

    def would_run(self) -> str:
        """Ask the image itself where its tag says too little (`2` was 2.0 and is 2.1)."""
        told = super().would_run()
        return told if "." in told else self._version() or told

    # -- capture --------------------------------------------------------------------------------

    def capture(self, staging: Staging, previous: ServiceRecord | None) -> Captured:
        """Have the broker save, then copy its file and everything else."""
        version, conf = self.probe().version, self._conf()
        try:
            saved = self._save(conf)
        except StackError as error:
            if self._running():
                raise
            # A broker that was stopped in good order has saved; one that was killed has not.
            saved = False
            staging.warn(f"the broker does not run: its last saved state is taken ({error})")
        database = self._database(conf)
        counts = {}
        what = f"the database of {self.name}"
        if conf is not None and conf.sqlite:
            self._copy_sqlite(staging, database)
            counts["retained"] = mosquittofolder.sqlite_retained(staging.path(database), what)
        elif files.is_regular(staging.live(database)):
            staging.copy(database)
            counts["retained"] = mosquittofolder.retained(staging.path(database), what)
        elif saved is None:
            counts["retained"] = 0
            staging.warn("the broker keeps no database: persistence is off, nothing is retained")
        staging.rest()
        counts |= self._users(conf, staging.folder, staging.paths())
        if previous is not None:
            self._guard_users(conf, staging, previous)
        return Captured(version=version, counts=counts)

    def _copy_sqlite(self, staging: Staging, database: str) -> None:
        try:
            staging.sqlite(database)
        except FileNotFoundError as error:
            raise CaptureError(
                f"{self.name} is configured to keep its messages in {staging.live(database)},"
                " which is not there",
                hint="does the broker run, and may it write its data folder?"
                f" look: iotops logs {self.name}",
            ) from error

    def _guard_users(self, conf: Conf | None, staging: Staging, previous: ServiceRecord) -> None:
        """Refuse users that the broker made anew because it had lost its own.

        2.1 without its file of dynamic security makes one, with passwords of its own in a file
        beside it; where that one is there already it makes none, and lets nobody in. In both cases
        it runs and looks healthy.
        """
        before = {one.path for one in previous.artifacts}
        there = staging.paths()
        for relative in self._dynamic(conf):
            was = f"{previous.folder}/{relative}"
            if was not in before:
                continue
            if relative not in there:
                if conf is not None and self._relative(conf.dynamic_security) == relative:
                    message, hint = self._lost(staging.live(relative))
                    raise CaptureError(message, hint=hint)
            elif relative + GENERATED in there and was + GENERATED not in before:
                raise CaptureError(
                    f"the users of {self.name} are not those of the last backup: the broker made"
                    f" {relative} anew, with passwords of its own",
                    hint=f"bring the old ones back: iotops restore latest --service {self.name};"
                    f" if the new ones are meant, note them and remove {relative}{GENERATED}",
                )

    def _lost(self, path: Path) -> tuple[str, str]:
        return (
            f"{path}, which the configuration names for dynamic security, is not there:"
            " nobody can log in, or the users are new ones",
            f"bring it back: iotops restore latest --service {self.name}",
        )

    def _save(self, conf: Conf | None) -> bool | None:
        """Make the broker write its database and wait for the new file.

        Returns:
            True: written. None: there is no database of its own, and none came.

        Raises:
            StackError: the signal could not be given. CaptureError: the file did not change.
        """
        if conf is not None and conf.sqlite:
            if not self._running():
                raise StackError(f"the container of {self.name} does not run")
            return None  # the plugin writes by itself, every few seconds
        path = self.place.folder / self._database(conf)
        before = _mark(path)
        if conf is not None and not conf.persistence:
            if before is None:
                return None
            raise CaptureError(
                f"{self.name} did not write {path}: persistence is off in its configuration",
                hint="switch it on; a database that is no longer used can be removed",
            )
        # The shell's own `kill`: not every image has the program.
        asked = self.place.stack.execute(
            self.place.container, ["sh", "-c", "kill -USR1 1"], limit=SAVE_LIMIT
        )
        if asked.code != 0:
            raise CaptureError(f"{self.name} could not be asked to save: {asked.err.strip()}")
        ends = time.monotonic() + (SAVE_LIMIT if before else FIRST_LIMIT)
        while time.monotonic() < ends:
            if (now := _mark(path)) is not None and now != before:
                return True
            time.sleep(0.02)
        if before is None:
            return None
        raise CaptureError(
            f"{self.name} did not write {path} within {SAVE_LIMIT:.0f} s after SIGUSR1",
            hint="is `persistence true` set and the data folder writable for the broker?"
            f" look: iotops logs {self.name}; a database that is no longer used can be removed",
        )

    # -- where things lie -----------------------------------------------------------------------

    def _conf(self) -> Conf | None:
        """Read the configuration that the container sees, else the one of the built-in layout."""
        usual = self.place.hub / "mosquitto" / "mosquitto.conf"
        return mosquittofolder.configuration(self._here(CONFIGURATION) or usual, self._here)

    def _here(self, inside: str) -> Path | None:
        """Give the place on this machine of a path in the container; None = not mounted."""
        declared = self.place.stack.model().services.get(self.place.container)
        return inside_here(declared, inside) if declared is not None else None

    def _relative(self, inside: str) -> str:
        """Give a path in the container as one below the service's folder; empty = elsewhere."""
        here = self._here(inside) if inside else None
        if here is None or not here.is_relative_to(self.place.folder):
            return ""
        return here.relative_to(self.place.folder).as_posix()

    def _database(self, conf: Conf | None) -> str:
        """Where the database lies; a hub of other making may mount its data folder itself."""
        name = "mosquitto.db"
        if conf is not None:
            name = SQLITE if conf.sqlite else conf.file
            if conf.location and (found := self._relative(conf.below(name))):
                return found
        flat = not (self.place.folder / "data").is_dir()
        return name if flat else f"data/{name}"

    def _passwords(self, conf: Conf | None) -> tuple[str, ...]:
        """The password files below the folder: as in the settings, and as configured."""
        told = [self._relative(one) for one in (conf.password_files if conf else ())]
        return tuple(dict.fromkeys(one for one in (self.options.password_file, *told) if one))

    def _dynamic(self, conf: Conf | None) -> tuple[str, ...]:
        """The files of dynamic security below the folder: as in the settings, as configured."""
        told = self._relative(conf.dynamic_security) if conf else "data/dynamic-security.json"
        return tuple(dict.fromkeys(one for one in (self.options.dynamic_security, told) if one))

    def _users(
        self, conf: Conf | None, folder: Path, there: Collection[str] | None = None
    ) -> dict[str, int]:
        """Count the users of the password files and of dynamic security below a folder.

        Args:
            there: the relative paths that count; None = whatever is there. (A staging folder
                may still hold files of an earlier run.)

        Returns:
            All users; and, where there is dynamic security, its clients that were made by
            somebody: the broker's own new ones are not what was lost.
        """
        counts = {"users": 0}
        for relative in (*self._passwords(conf), *(dynamic := self._dynamic(conf))):
            path = folder / relative
            if not files.is_regular(path) or (there is not None and relative not in there):
                continue
            if relative in dynamic:
                users = mosquittofolder.dynamic_security(path)
                counts["dynsec_clients"] = counts.get("dynsec_clients", 0) + users.own
            else:
                users = mosquittofolder.password_file(path)
            counts["users"] += users.number
        return counts

    def _running(self) -> bool:
        container = self.place.stack.containers().get(self.place.container)
        return container is not None and container.state == "running"

    # -- looking inside -------------------------------------------------------------------------

    @classmethod
    def telling(cls, path: str) -> bool:
        """Password files, by their usual names, and the file of dynamic security."""
        name = path.rpartition("/")[2].lower()
        return "passw" in name or "pwfile" in name or name == "dynamic-security.json"

    @classmethod
    def differences(
        cls, old: ServiceRecord, new: ServiceRecord, was: Path, now: Path
    ) -> Iterator[Difference]:
        """Compare the users by name, and whether their password is another one."""
        yield from compared("user", mosquittofolder.names(was), mosquittofolder.names(now))

    # -- load -----------------------------------------------------------------------------------

    def load(self, folder: Path, record: ServiceRecord, live: Path | None) -> tuple[str, ...]:
        """Check database and password file, give owners and modes, make the log folder."""
        notes: list[str] = []
        conf = self._conf()
        self._check_databases(conf, folder)
        for finding in self.judge_users(folder):
            if finding.severity is Severity.ERROR:
                raise LoadError(finding.message, hint=finding.hint)
            notes.append(finding.message)
        owner = self._recorded_owner(record)
        secrets = [folder / one for one in (*self._passwords(conf), *self._dynamic(conf))]
        if os.geteuid() == 0:
            self._own(folder, owner, [folder / self._database(conf), *secrets])
        else:
            notes.append("not root: owners of the broker's files are left as they are")
        return tuple(notes)

    def _check_databases(self, conf: Conf | None, folder: Path) -> None:
        """Read the database to its end: a broker exits at the start over one that is cut short.

        Side files of a SQLite database are those of another moment, or hold nothing.
        """
        where = [folder / "data", folder, (folder / self._database(conf)).parent]
        try:
            for place in where:
                if conf is None or not conf.sqlite:
                    own = place / (conf.file if conf is not None else "mosquitto.db")
                    if files.is_regular(own):
                        mosquittofolder.retained(own, "the captured database")
                if (conf is None or conf.sqlite) and files.is_regular(place / SQLITE):
                    for ending in files.SQLITE_SIDE_FILES:
                        (place / f"{SQLITE}{ending}").unlink(missing_ok=True)
                    mosquittofolder.sqlite_retained(place / SQLITE, "the captured database")
        except CaptureError as error:
            raise LoadError(str(error), hint="choose another snapshot: iotops snapshots") from error

    def reload(self) -> OnChange:
        """Let the broker read its ACL, users and certificates again: SIGHUP from inside."""
        asked = self.place.stack.execute(
            self.place.container, ["sh", "-c", "kill -HUP 1"], limit=SAVE_LIMIT
        )
        return OnChange.NOTHING if asked.code == 0 else OnChange.RESTART

    def validate(self, tree: Path) -> Iterator[Finding]:
        """Have a broker of its own try the configuration, with today's users."""
        lines = self._directives()
        if lines is None:
            text = f"its container has no {CONFIGURATION}: 2.0 does not start, 2.1 lets in anybody"
            yield self._error("mosquitto.conf", text, MOUNT_IT)
            return
        tried = self._tried(lines, tree.parent, fixed=tree)
        yield from self._judge_trial(tried)
        for relative in self._passwords(self._conf()):
            if files.is_regular(path := self.place.folder / relative):
                users = mosquittofolder.password_file(path)
                yield from self._judge_hashes(relative, users, lambda: tried.version)

    def validate_users(self, new: UserFiles, tmp: Path) -> Iterator[Finding]:
        """Have a broker of its own try today's configuration with other users and rights.

        Args:
            new: the files that would take the place of `user_files()`. tmp: for its data.
        """
        lines = self._directives()
        if lines is None:
            text = f"not tried: its container has no {CONFIGURATION}"
            yield self._warning("mosquitto.conf", text, MOUNT_IT)
            return
        now = self.user_files()
        with_new = {now.passwords: new.passwords, now.acl: new.acl}
        instead = {
            value: with_new[here]
            for key, value in lines
            if key in ("password_file", "acl_file") and (here := self._here(value)) in with_new
        }
        yield from self._judge_trial(self._tried(lines, tmp, instead=instead))

    def _directives(self) -> list[tuple[str, str]] | None:
        """Read the configuration that its container sees; None = it has none."""
        configuration = self._here(CONFIGURATION)
        if configuration is None or not configuration.is_file():
            return None
        return [*mosquittofolder.directives(configuration, self._here)]

    def _tried(
        self,
        lines: Sequence[tuple[str, str]],
        tmp: Path,
        *,
        fixed: Path | None = None,
        instead: Mapping[str, Path] | None = None,
    ) -> Tried:
        password = self._password()
        return mosquittotrial.trial(
            self.place.stack,
            self.place.stack.model().services[self.place.container],
            CONFIGURATION,
            lines,
            tmp=tmp,
            fixed=fixed,
            instead=instead,
            login=(self.options.username, password.reveal()) if password else None,
        )

    def _judge_trial(self, tried: Tried) -> Iterator[Finding]:
        if not tried.runs:
            said = tried.words or "it gave no reason"
            # In the container of the trial there is no network to have an address in.
            if "Cannot assign requested address" in said:
                yield self._warning(
                    "mosquitto.conf",
                    f"not proven: it listens at one address of its own ({said})",
                    "write the listener without an address, and publish the port at one",
                )
                return
            yield self._error(
                "mosquitto.conf",
                f"a broker of its image does not start with it: {said}",
                "correct it; every word of it: man mosquitto.conf",
            )
        if tried.nameless and not self.options.anonymous:
            yield self._error(
                "mosquitto.open",
                "a broker with it lets in anybody without a password",
                "write: allow_anonymous false",
            )
        if tried.known is False:
            yield self._error(
                "mosquitto.login",
                f"a broker with it refuses {self._user()}, with the password of .env",
                "see that password_file names the file that holds the users",
            )

    def judge_users(self, folder: Path) -> Iterator[Finding]:
        """Judge the users in a service's folder before a broker stumbles over them.

        Args:
            folder: laid out as the service's folder is. No line or name of it is ever repeated.
        """
        conf = self._conf()
        for relative in self._passwords(conf):
            path = folder / relative
            if path.is_symlink():
                yield self._warning(
                    "mosquitto.users",
                    f"{relative} is a symbolic link: Mosquitto 2.1 does not start with it",
                    "put the file itself there",
                )
            elif files.is_regular(path):
                users = mosquittofolder.password_file(path)
                yield from self._judge_lines(relative, users)
                yield from self._judge_hashes(relative, users, self._version)
        for relative in self._dynamic(conf):
            if not files.is_regular(folder / relative):
                continue
            try:
                users = mosquittofolder.dynamic_security(folder / relative)
            except CaptureError as error:
                yield Finding(
                    "mosquitto.users",
                    Severity.ERROR,
                    self.name,
                    f"{error.message}; a broker runs with it and refuses everybody",
                    f"bring it back: iotops restore latest --service {self.name}",
                )
            else:
                yield from self._judge_hashes(relative, users, self._version)

    def _judge_lines(self, relative: str, users: Users) -> Iterator[Finding]:
        if users.number and not users.good:
            yield Finding(
                "mosquitto.users",
                Severity.ERROR,
                self.name,
                f"{relative} holds no user with a hashed password: nobody could log in",
                "choose another snapshot: iotops snapshots",
            )
        elif users.good < users.number:
            what = f"{relative}: {users.number - users.good} of {users.number} lines are no"
            if _older(version := self._version(), 2, 1) or not version:
                yield self._warning(
                    "mosquitto.users",
                    f"{what} `user:hash`; 2.0 ignores them, 2.1 does not start",
                    "correct the password file",
                )
            else:
                yield Finding(
                    "mosquitto.users",
                    Severity.ERROR,
                    self.name,
                    f"{what} `user:hash`: Mosquitto {version} does not start with it, and a"
                    " running one ends when it reads it again",
                    "correct the password file",
                )

    def _judge_hashes(
        self, relative: str, users: Users, of: Callable[[], str]
    ) -> Iterator[Finding]:
        """Find hashes that only 2.1 reads under a broker of 2.0: it refuses their users.

        Args:
            of: gives the broker's version; asked only where it matters.
        """
        if not users.newer or not _older(version := of(), 2, 1):
            return
        yield Finding(
            "mosquitto.downgrade",
            Severity.ERROR if users.newer == users.good else Severity.WARNING,
            self.name,
            f"{relative}: {users.newer} of {users.good} passwords were made by Mosquitto 2.1; the"
            f" broker {version} refuses these users",
            "go back to the image that made them, or set the passwords again",
        )

    def _version(self) -> str:
        """Ask the running broker for its version, else the image that would run."""
        if told := self.probe().version:
            return told
        try:
            asked = self.place.stack.run_once(
                self.place.container, ["mosquitto", "-h"], network=False, limit=IMAGE_LIMIT
            )
        except IotopsError:
            return ""
        found = re.search(r"version (\d+\.\S+)", asked.out)
        return found[1] if found else ""

    def verify(self, record: ServiceRecord) -> Iterator[Finding]:
        """Compare "at least": devices go on publishing while the broker is being looked at."""
        actual = self.counts()
        for key, wanted in record.counts.items():
            if actual.get(key, 0) < wanted:
                yield Finding(
                    "counts.differ",
                    Severity.ERROR,
                    self.name,
                    f"{key}: {wanted} recorded, {actual.get(key, 'nothing')} found",
                )

    def _own(self, folder: Path, owner: tuple[int, int], kept: list[Path]) -> None:
        """Give the broker what it must read and write, as its image's entrypoint would.

        2.1 leaves log and secrets alone, and a password file that it cannot read ends it.
        """
        for name in ("data", "secrets"):
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                os.lchown(folder / name, *owner)
        for path in kept:
            if files.is_regular(path):
                os.lchown(path, *owner)
                path.chmod(0o600)
        log = folder / "log"
        if not log.is_symlink() and (folder / "data").is_dir():
            log.mkdir(mode=0o755, exist_ok=True)
            log.chmod(0o755)
            os.lchown(log, *owner)

    def _recorded_owner(self, record: ServiceRecord) -> tuple[int, int]:
        """Whoever owned the database: `PUID` of the 2.1 image may have changed the usual one."""
        wanted = f"{record.folder}/data"
        found = next((a for a in record.artifacts if a.path == wanted), None)
        return (found.uid, found.gid) if found is not None and found.uid != 0 else self.owner

    # -- inside ---------------------------------------------------------------------------------

    def _password(self) -> Secret | None:
        return self.place.secret(self.options.password_env) if self.options.username else None

    def _warning(self, code: str, message: str, hint: str) -> Finding:
        return Finding(code, Severity.WARNING, self.name, message, hint)

    def _error(self, code: str, message: str, hint: str) -> Finding:
        return Finding(code, Severity.ERROR, self.name, message, hint)

    def _user(self) -> str:
        return f"user {self.options.username}"

    def _where(self) -> str:
        return f"{self.options.host}:{self.options.port}"


class _Login:
    """One MQTT connection, driven by hand so that nothing waits longer than asked.

    Raises:
        OSError: no connection.
    """

    def __init__(self, options: MosquittoOptions, user: str, password: Secret | None) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self._code: int | None = None
        self._version = ""
        self._client: Client = Client(CallbackAPIVersion.VERSION2, clean_session=True)
        self._client.connect_timeout = ANSWER_LIMIT
        if user:
            self._client.username_pw_set(user, password.reveal() if password else None)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.connect(options.host, options.port, keepalive=30)

    def __enter__(self) -> _Login:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()

    def answer(self) -> int | None:
        """Give the reason code of the CONNACK (0 = let in), None when none came."""
        self._turn(ANSWER_LIMIT, lambda: self._code is not None)
        return self._code

    def version(self) -> str:
        """Give the broker's version, empty when this user may not read `$SYS`."""
        self._client.subscribe("$SYS/broker/version", 0)
        self._turn(1.0, lambda: bool(self._version))
        return self._version

    def _turn(self, limit: float, done: Callable[[], bool]) -> None:
        ends = time.monotonic() + limit
        while not done() and time.monotonic() < ends:
            if self._client.loop(0.1) != 0:
                return  # the connection is gone

    def _on_connect(
        self, client: Client, data: object, flags: object, reason: ReasonCode, more: object
    ) -> None:
        self._code = reason.value

    def _on_message(self, client: Client, data: object, message: MQTTMessage) -> None:
        # "mosquitto version 2.0.22"
        self._version = message.payload.decode("utf-8", "replace").rpartition(" ")[2]


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.lstat()
    except FileNotFoundError:
        return None
    return (state.st_ino, state.st_mtime_ns, state.st_size)


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _older(version: str, major: int, minor: int) -> bool:
    """Whether a version is known and below another; "2.0.22" is below 2.1."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < (major, minor)
