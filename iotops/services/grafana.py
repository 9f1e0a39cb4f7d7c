"""Grafana: its database, plugins, and dashboards once more as JSON for people.

The database is copied by SQLite's online backup; a plain copy of it was torn in eleven of 24
tries under load. The JSON files of `export/` are a second way back that needs no Grafana of the
same version; they are never loaded. Not here: what stands in provisioning files
(`clients/grafanaprovisioning.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from iotops.clients import files, grafanakey, grafanaprovisioning
from iotops.clients.composemodel import inside_here
from iotops.clients.http import JsonClient
from iotops.clients.noderedfolder import own_processor
from iotops.clients.staging import Staging
from iotops.config import Secret, ServerAddress
from iotops.errors import CaptureError, LoadError, Refused, ServerError
from iotops.model import (
    Captured,
    Difference,
    Exclude,
    Facts,
    Finding,
    Readiness,
    ServiceRecord,
    Severity,
)
from iotops.services.base import BaseOptions, Service, compared, moved_url

DATABASE = "grafana.db"
EXPORT = "export"
PROVISIONING = "/etc/grafana/provisioning"
"""Where the image reads its provisioning files."""
KEY = "secret_key"
"""The fact that holds a print of the secret key."""
HEALTH_TRIES, HEALTH_PAUSE = 3, 1.0
"""How often an ill data source is asked again; seconds between."""
ILL = (400, 403, 404, 500, 501, 502, 503, 504)
"""What a data source's health may be answered with; 404 and 501: it has none to tell."""
PROGRAM = re.compile(r"/gpx_[^/]*_linux_([a-z0-9]+)$")
"""A plugin's own program, and the processor it is for."""
PAGE = 500
"""Entries of one page of a search."""

SAFE = re.compile(r"[^A-Za-z0-9_-]")

LEGACY = {
    "dashboards": ("dashboard", "is_folder = 0 AND org_id = 1"),
    "folders": ("folder", "org_id = 1"),
    "datasources": ("data_source", "org_id = 1"),
    "alert_rules": ("alert_rule", "org_id = 1"),
    "users": ("user", "is_service_account = 0"),
}
"""Where the counts lie in the database: table and condition. The API shows the first organisation
only, so the others are not counted here either."""

UNIFIED = {"dashboards": "dashboard.grafana.app", "folders": "folder.grafana.app"}
"""What moves into the table `resource` from 12.4 and 13 on, by API group; rows there win."""


@dataclass(frozen=True, kw_only=True)
class GrafanaOptions(BaseOptions):
    """Settings of a Grafana service.

    Attributes:
        url: its address, with the sub-path where it has one.
        token_env: name in `.env` of a service account's token.
        admin_user, admin_password_env: used where there is no token.
    """

    kind: str = "grafana"
    url: ServerAddress = "http://127.0.0.1:3000"
    token_env: str = "GRAFANA_TOKEN"
    admin_user: str = "admin"
    admin_password_env: str = "GRAFANA_ADMIN_PASSWORD"


class Grafana(Service):
    """Grafana 11 to 13 with its SQLite database."""

    kind = "grafana"
    images = ("grafana", "grafana-oss", "grafana-enterprise", "grafana-standin")
    targets = ("/var/lib/grafana",)
    port = 3000
    default_folder = "grafana"
    owner = (472, 0)
    secrets_in_data = True
    excludes = (
        Exclude("unified-search/", "a search index; an old one hides dashboards, it is made anew"),
        Exclude("png/", "rendered pictures, temporary"),
        Exclude("csv/", "exports of panels, temporary"),
        Exclude("pdf/", "rendered reports, temporary"),
        Exclude("alerting/", "working files of alerting; rules and silences are in the database"),
        Exclude("log/", "the server's log"),
        *(
            Exclude(DATABASE + ending, "the online copy holds what it holds")
            for ending in files.SQLITE_SIDE_FILES
        ),
    )
    older = (
        "Grafana changes its database to newer versions only; under an older one dashboards may be"
        " missing, or it does not start"
    )
    quiet = {
        "GF_UNIFIED_ALERTING_EXECUTE_ALERTS": "false",
        "GF_SMTP_ENABLED": "false",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
    }
    Options = GrafanaOptions
    options: GrafanaOptions

    def options_at(self, address: str, port: Callable[[int], int]) -> BaseOptions:
        """Give its options for the same server at another address; see `Service.options_at`."""
        return replace(self.options, url=moved_url(self.options.url, address, port))

    # -- asking the server ----------------------------------------------------------------------

    def probe(self) -> Facts:
        """Ask `/api/health` for the version; see `Service.probe`."""
        try:
            health = self._health()
        except ServerError as error:
            return Facts(False, detail=str(error))
        version = health.get("version")
        return Facts(True, version=version if isinstance(version, str) else "")

    def ready(self) -> Readiness:
        """Tell whether Grafana answers and reaches its database."""
        try:
            health = self._health()
        except ServerError as error:
            return Readiness(False, str(error))
        if health.get("database") != "ok":
            return Readiness(False, f"its database is {health.get('database', 'not named')}")
        return Readiness(True)

    def counts(self) -> Mapping[str, int]:
        """Count by the API what it tells, the rest in a copy of the live database."""
        counts = self._count_live_database()
        with self._authorised() as api:
            counts.update(api.counts() if api is not None else {})
        return counts

    def preflight(self) -> Iterator[Finding]:
        """Yield a token or password that Grafana does not accept."""
        try:
            with self._authorised() as api:
                refused = api is None and self._credentials() is not None
        except ServerError:
            return  # the probe tells that
        if refused:
            yield Finding(
                "grafana.token",
                Severity.WARNING,
                self.name,
                "Grafana does not accept our token or password: no export of dashboards as JSON",
                hint=f"set {self.options.token_env} in .env to the token of a service account; the"
                " password of .env counts only when the database is made, a new one is set by:"
                f" docker compose exec -T {self.place.container} grafana cli admin"
                " reset-admin-password --password-from-stdin",
            )
        yield from self._unhealthy()

    def unfit(self, record: ServiceRecord) -> Iterator[Finding]:
        """Compare the secret key, and the processor that plugins are made for."""
        if (other := self._other_key(record)) is not None:
            yield other
        yield from self._foreign_plugins(record)

    def verify(self, record: ServiceRecord) -> Iterator[Finding]:
        """Compare the counts; its health says nothing of the data sources, so they are asked."""
        yield from super().verify(record)
        if (other := self._other_key(record)) is not None:
            yield replace(other, severity=Severity.ERROR)
        if not self.place.rehearsal:  # there they would reach nothing
            yield from self._unhealthy()

    def _other_key(self, record: ServiceRecord) -> Finding | None:
        known, key = record.facts.get(KEY, ""), self._secret_key()
        if not known or key is None or grafanakey.same(known, key):
            return None
        return Finding(
            "grafana.key",
            Severity.WARNING,
            self.name,
            "its secret key is another one than when the data was captured: Grafana will call"
            " itself healthy, and no secret of a data source can be read",
            f"the right one is in the snapshot: iotops restore ID --into DIR --path hub/.env; write"
            f" it into .env, then: iotops up {self.name}. If it is lost, type the secrets of the"
            " data sources again",
        )

    def _secret_key(self) -> Secret | None:
        declared = self.place.stack.model().services.get(self.place.container)
        if declared is None:
            return None
        return grafanakey.secret_key(
            declared.environment, lambda inside: inside_here(declared, inside)
        )

    def _foreign_plugins(self, record: ServiceRecord) -> Iterator[Finding]:
        """Name plugins whose programs are for another processor only (gpx_NAME_linux_arm64)."""
        start, held = f"{record.folder}/plugins/", dict[str, set[str]]()
        for artifact in record.artifacts:
            found = PROGRAM.search(artifact.path)
            if found is not None and artifact.path.startswith(start):
                plugin = artifact.path.removeprefix(start).split("/")[0]
                held.setdefault(plugin, set()).add(found[1])
        if not held:
            return
        container = self.place.stack.containers().get(self.place.container)
        platform = container.platform.split("/") if container is not None else []
        # A new machine, which is where it may differ, has no container yet.
        now = platform[1] if len(platform) > 1 else own_processor()
        foreign = sorted(plugin for plugin, made in held.items() if now and now not in made)
        if foreign:
            yield Finding(
                "grafana.plugins",
                Severity.WARNING,
                self.name,
                f"plugins with programs for another processor than {now}: {', '.join(foreign)}",
                f"install them again afterwards: docker compose exec {self.place.container} grafana"
                " cli plugins install NAME",
            )

    def _unhealthy(self) -> Iterator[Finding]:
        """Ask for the health of each data source; of those that stay ill it is told.

        Right after a start a plugin may still be loading, so an ill one is asked again.
        """
        with suppress(ServerError), self._authorised() as api:
            ill = api.unhealthy() if api is not None else {}
            for _ in range(HEALTH_TRIES):
                if api is None or not ill:
                    return
                time.sleep(HEALTH_PAUSE)
                ill = api.unhealthy(only=ill)
            for name, said in ill.items():
                yield Finding(
                    "grafana.source",
                    Severity.WARNING,
                    self.name,
                    f"the data source {name} does not work: {said}",
                    "its token or address: look at it in Grafana (Connections, Data sources), and"
                    " ask again: iotops doctor",
                )

    def validate(self, tree: Path) -> Iterator[Finding]:
        """Read the provisioning files; see `Service.validate`."""
        model = self.place.stack.model().services[self.place.container]
        inside = model.environment.get("GF_PATHS_PROVISIONING", PROVISIONING)
        folder = inside_here(model, inside)
        if folder is None or not folder.is_dir():
            return  # nothing is provisioned from here
        for fault in grafanaprovisioning.faults(
            folder, model.environment, lambda path: inside_here(model, path)
        ):
            yield Finding(fault.code, fault.severity, self.name, fault.message, fault.hint)

    def _health(self) -> dict[str, object]:
        with JsonClient(self.options.url, name=self.name, timeout=(3.0, 10.0), tries=1) as client:
            answer = client.get("/api/health", accept=(503,))
        try:
            document: object = json.loads(answer.body)
        except ValueError:
            document = None
        if not isinstance(document, dict) or "database" not in document:
            raise ServerError(
                f"what answers at {self.options.url} is not Grafana",
                hint="check services.*.url in iotops.toml",
            )
        return document

    def _credentials(self) -> tuple[Secret, str] | None:
        """Give the token, else the admin's password, with the scheme of its header."""
        if (token := self.place.secret(self.options.token_env)) is not None:
            return token, "Bearer"
        if (password := self.place.secret(self.options.admin_password_env)) is not None:
            pair = f"{self.options.admin_user}:{password.reveal()}".encode()
            return Secret(base64.b64encode(pair).decode()), "Basic"
        return None

    @contextmanager
    def _authorised(self) -> Iterator[_Api | None]:
        """Open the API with our token or password.

        Yields:
            None when there is neither, or Grafana does not accept it: it is tried once only,
            since five wrong logins lock the admin out.

        Raises:
            ServerError: Grafana does not answer as it should.
        """
        found = self._credentials()
        if found is None:
            yield None
            return
        token, scheme = found
        with JsonClient(self.options.url, name=self.name, token=token, scheme=scheme) as client:
            try:
                client.get_json("/api/org")
            except Refused:
                yield None
                return
            yield _Api(client)

    # -- capture --------------------------------------------------------------------------------

    def capture(self, staging: Staging, previous: ServiceRecord | None) -> Captured:
        """Copy the database online, then export for people, then everything else."""
        if not files.is_regular(staging.live(DATABASE)):
            raise CaptureError(
                f"there is no {DATABASE} in {staging.source}",
                hint="a Grafana with its database elsewhere (MySQL, PostgreSQL) is not captured;"
                " otherwise see whether it ever started: iotops logs grafana",
            )
        staging.sqlite(DATABASE)
        counts, print_ = _look_into(staging.path(DATABASE))
        # A folder of that name may be the owner's own: it is captured, ours steps aside.
        theirs = staging.live(EXPORT)
        export = f"{EXPORT}-by-iotops" if theirs.exists() or theirs.is_symlink() else EXPORT
        extra = json.dumps({"export": export, "print": print_})
        self._export(staging, export, previous if print_ else None, extra, counts)
        staging.rest()
        facts = self._key_fact(staging, previous)
        return Captured(version=self.probe().version, counts=counts, facts=facts, extra=extra)

    def _key_fact(self, staging: Staging, previous: ServiceRecord | None) -> dict[str, str]:
        """Give the print of the secret key; nothing where it is not known."""
        key = self._secret_key()
        if key is None:
            return {}
        known = previous.facts.get(KEY, "") if previous is not None else ""
        made = grafanakey.fingerprint(key, known)
        if known and made != known and not grafanakey.same(known, key):
            staging.warn(
                "its secret key is another one than at the last backup: secrets of data sources"
                " that were not typed again since cannot be read"
            )
        return {KEY: made}

    def _export(
        self,
        staging: Staging,
        export: str,
        previous: ServiceRecord | None,
        extra: str,
        counts: Mapping[str, int],
    ) -> None:
        """Write the JSON files, or keep those of the last run when nothing they show changed.

        They are a second safety net: what fails here is a warning, the database is captured.
        """
        if previous is not None and previous.extra == extra and self._keep(staging, previous):
            return
        try:
            with self._authorised() as api:
                if api is None:
                    if self._credentials() is not None:
                        staging.warn("Grafana does not accept our token: no dashboards as JSON")
                    return
                for name, document in api.export():
                    staging.put(f"{export}/{name}", _pretty(document))
                seen = api.counts()
        except ServerError as error:
            staging.warn(f"dashboards are not exported as JSON: {error.message}")
            return
        for key, number in seen.items():
            if number != counts.get(key):
                staging.warn(f"{key}: the API tells {number}, the database {counts.get(key)}")

    def _keep(self, staging: Staging, previous: ServiceRecord) -> bool:
        start = f"{staging.prefix}/{_export_name(previous)}/"
        kept = [
            files.path_of(artifact.path.removeprefix(f"{staging.prefix}/"))
            for artifact in previous.artifacts
            if artifact.type == "file" and artifact.path.startswith(start)
        ]
        if not kept or not all(staging.has(relative) for relative in kept):
            return False
        for relative in kept:
            staging.keep(relative)
        return True

    def _count_live_database(self) -> dict[str, int]:
        with tempfile.TemporaryDirectory(dir=self.place.tmp) as folder:
            copy = Path(folder) / DATABASE
            files.copy_sqlite(self.place.folder / DATABASE, copy)
            return _look_into(copy)[0]

    # -- looking inside -------------------------------------------------------------------------

    @classmethod
    def telling(cls, path: str) -> bool:
        """The database, and the exported dashboards."""
        return path == DATABASE or path.startswith((f"{EXPORT}/", f"{EXPORT}-by-iotops/"))

    @classmethod
    def differences(
        cls, old: ServiceRecord, new: ServiceRecord, was: Path, now: Path
    ) -> Iterator[Difference]:
        """Compare dashboards, folders, data sources, alert rules and users by name."""
        before, after = _named(was, _export_name(old)), _named(now, _export_name(new))
        for what in dict.fromkeys((*before, *after)):
            yield from compared(what, before.get(what, {}), after.get(what, {}))

    # -- load -----------------------------------------------------------------------------------

    def load(self, folder: Path, record: ServiceRecord, live: Path | None) -> tuple[str, ...]:
        """Leave what Grafana would stumble over, check the database, give it its owner."""
        database = folder / DATABASE
        if not files.is_regular(database):
            raise LoadError(
                f"the snapshot holds no {DATABASE}", hint="choose another: iotops snapshots"
            )
        if name := _export_name(record):
            files.remove_tree(folder / name)
        files.remove_tree(folder / "unified-search")
        for ending in files.SQLITE_SIDE_FILES:
            (folder / (DATABASE + ending)).unlink(missing_ok=True)
        try:
            _look_into(database)
        except CaptureError as error:
            raise LoadError(error.message, hint="choose another: iotops snapshots") from error
        if os.geteuid() != 0:
            return ("not root: owners of Grafana's files are left as they are",)
        owner = self._recorded_owner(record)
        os.lchown(folder, *owner)
        os.lchown(database, *owner)
        database.chmod(0o640)
        return ()

    def _recorded_owner(self, record: ServiceRecord) -> tuple[int, int]:
        """Whoever owned the database: `user:` in the Compose file may have changed the usual."""
        wanted = f"{record.folder}/{DATABASE}"
        found = next((a for a in record.artifacts if a.path == wanted), None)
        return (found.uid, found.gid) if found is not None and found.uid != 0 else self.owner


class _Api:
    """What is read from Grafana's API: the routes that 11 to 13 have in common."""

    def __init__(self, client: JsonClient) -> None:
        self._client = client

    def counts(self) -> dict[str, int]:
        """Count what the account may see; a route it has no right to is left out."""
        ways: dict[str, Callable[[], Sequence[object]]] = {
            "dashboards": self._dashboards,
            "folders": self._folders,
            "datasources": lambda: self._list("/api/datasources"),
            "alert_rules": lambda: self._list("/api/v1/provisioning/alert-rules"),
        }
        found = {}
        for key, way in ways.items():
            with suppress(Refused):
                found[key] = len(way())
        return found

    def unhealthy(self, only: Collection[str] | None = None) -> dict[str, str]:
        """Give what the data sources that do not work say, by their name.

        Args:
            only: names; None = all.
        """
        found: dict[str, str] = {}
        with suppress(Refused):
            for source in self._list("/api/datasources"):
                name, uid = str(source.get("name", "")), str(source.get("uid", ""))
                if only is None or name in only:
                    answer = self._client.get(
                        f"/api/datasources/uid/{quote(uid, safe='')}/health", accept=ILL
                    )
                    if answer.status >= 400 and answer.status not in (403, 404, 501):
                        found[name] = _said(answer.body) or f"it answered {answer.status}"
        return found

    def export(self) -> Iterator[tuple[str, object]]:
        """Give file names and documents, without what changes by itself.

        Raises:
            ServerError: one of them could not be read.
        """
        folders = self._folders()
        yield "folders.json", [_without(one, "id", "orgId") for one in folders]
        for entry in self._dashboards():
            uid = str(entry.get("uid", ""))
            document = self._client.get_json(f"/api/dashboards/uid/{quote(uid, safe='')}")
            if not isinstance(document, dict) or not isinstance(document.get("dashboard"), dict):
                raise ServerError(f"the dashboard {uid} came in no known form")
            yield (
                f"dashboards/{_file_name(uid)}.json",
                {
                    "folderUid": entry.get("folderUid", ""),
                    "dashboard": _without(document["dashboard"], "id", "version", "iteration"),
                },
            )
        with suppress(Refused):
            sources = self._list("/api/datasources")
            yield "datasources.json", [_without(one, "id", "version") for one in sources]
        with suppress(Refused):
            rules = "/api/v1/provisioning/alert-rules/export"
            yield "alert-rules.json", self._client.get_json(rules, params={"format": "json"})

    def _dashboards(self) -> list[dict[str, object]]:
        return self._pages("/api/search", {"type": "dash-db"})

    def _folders(self, parent: str = "", depth: int = 0) -> list[dict[str, object]]:
        found = self._pages("/api/folders", {"parentUid": parent} if parent else {})
        if depth < 8:  # Grafana nests four levels
            for one in list(found):
                found += self._folders(str(one.get("uid", "")), depth + 1)
        return found

    def _pages(self, path: str, query: Mapping[str, str]) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for page in range(1, 1000):
            more = self._list(path, {**query, "limit": str(PAGE), "page": str(page)})
            found += more
            if len(more) < PAGE:
                break
        return found

    def _list(self, path: str, query: Mapping[str, str] | None = None) -> list[dict[str, object]]:
        document = self._client.get_json(path, params=query)
        if not isinstance(document, list):
            raise ServerError(f"{path} of Grafana came in no known form")
        return [one for one in document if isinstance(one, dict)]


def _said(body: bytes) -> str:
    """The server's own words for what is wrong, in one bounded line."""
    try:
        document: object = json.loads(body)
    except ValueError:
        return ""
    said = document.get("message") if isinstance(document, dict) else None
    return " ".join(str(said).split())[:200] if said else ""


def _without(document: Mapping[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in document.items() if key not in keys}


def _pretty(document: object) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _file_name(uid: str) -> str:
    """Give a file name for an id; one with other than plain characters gets its hash as well."""
    plain = SAFE.sub("_", uid)[:80]
    return plain if plain == uid else f"{plain}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def _export_name(record: ServiceRecord) -> str:
    """The folder of our JSON files in a capture, empty when it has none."""
    try:
        document: object = json.loads(record.extra)
    except ValueError:
        return ""
    name = document.get("export") if isinstance(document, dict) else None
    return name if name in (EXPORT, f"{EXPORT}-by-iotops") else ""


def _look_into(database: Path) -> tuple[dict[str, int], str]:
    """Count in a finished copy of the database, and give a print of what the export shows.

    The copy is opened as one that nobody writes to, which leaves no trace beside it.

    Returns:
        The counts, and a hash over ids and versions (empty when the tables are not as expected).

    Raises:
        CaptureError: it is damaged.
    """
    uri = f"file:{quote(os.fsencode(database))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as reader:
            verdict = str(reader.execute("PRAGMA quick_check").fetchone()[0])
            if verdict != "ok":
                raise CaptureError(f"{DATABASE} is damaged: {verdict.splitlines()[0]}")
            return _count(reader), _fingerprint(reader)
    except sqlite3.Error as error:
        raise CaptureError(f"{DATABASE} cannot be read: {error}") from error


def _count(reader: sqlite3.Connection) -> dict[str, int]:
    columns = {
        str(table): {str(row[1]) for row in reader.execute(f'PRAGMA table_info("{table}")')}
        for (table,) in reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    counts: dict[str, int] = {}
    for key, (table, condition) in LEGACY.items():
        if known := columns.get(table):
            parts = [part for part in condition.split(" AND ") if part.split()[0] in known]
            where = " AND ".join(parts) or "1"
            query = f'SELECT count(*) FROM "{table}" WHERE {where}'  # names are our own
            counts[key] = int(reader.execute(query).fetchone()[0])
    if {"group", "namespace"} <= columns.get("resource", set()):
        for key, group in UNIFIED.items():
            query = "SELECT count(*) FROM resource WHERE \"group\" = ? AND namespace = 'default'"
            number = int(reader.execute(query, (group,)).fetchone()[0])
            if number:
                counts[key] = number
    return counts


NAMED = {
    "dashboard": ("dashboard", "uid", "title", "version, updated", "is_folder = 0"),
    "folder": ("folder", "uid", "title", "''", "1"),
    "data source": ("data_source", "uid", "name", "version, updated", "1"),
    "alert rule": ("alert_rule", "uid", "title", "version, updated", "1"),
    "user": ("user", "login", "login", "''", "is_service_account = 0"),
}
"""By the owner's word: table, key, name, what changes with it, condition."""


def _named(folder: Path, export: str) -> dict[str, dict[str, tuple[str, object]]]:
    """Name what people made: word -> key -> name and what changes with it."""
    found: dict[str, dict[str, tuple[str, object]]] = {}
    path = folder / DATABASE
    if files.is_regular(path):
        uri = f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as reader:
            for what, (table, key, name, mark, condition) in NAMED.items():
                query = f'SELECT {key}, {name}, {mark} FROM "{table}" WHERE {condition}'
                with suppress(sqlite3.Error):  # a Grafana without that table or column
                    rows = reader.execute(query).fetchall()
                    found[what] = {str(row[0]): (str(row[1]), row[2:]) for row in rows}
    if not found.get("dashboard") and export:  # from 12.4 on they lie in another table
        for one in sorted((folder / export / "dashboards").glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                document = json.loads(one.read_bytes())["dashboard"]
                mark = json.dumps(document, sort_keys=True)
                found.setdefault("dashboard", {})[one.stem] = (str(document["title"]), mark)
    return found


def _fingerprint(reader: sqlite3.Connection) -> str:
    queries = [
        "SELECT uid, version, updated FROM dashboard ORDER BY uid",
        "SELECT uid, title, parent_uid, updated FROM folder ORDER BY uid",
        "SELECT uid, version, updated FROM data_source ORDER BY uid",
        "SELECT uid, version, updated FROM alert_rule ORDER BY uid",
    ]
    if reader.execute("SELECT 1 FROM sqlite_master WHERE name = 'resource'").fetchone():
        queries.append("SELECT guid, resource_version FROM resource ORDER BY guid")
    digest = hashlib.sha256()
    try:
        for query in queries:
            for row in reader.execute(query):
                digest.update(repr(row).encode())
            digest.update(b"\n")
    except sqlite3.OperationalError:
        return ""
    return digest.hexdigest()
