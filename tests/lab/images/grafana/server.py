"""A STAND-IN for Grafana: the handful of routes iotops calls, over a SQLite file like Grafana's.

It is not Grafana and says so in its version. What it is good for: a database that is written to
all the time (so that a naive copy tears, in rollback mode as well as in WAL), accounts whose
passwords live in that database, and reads by which a test can compare before and after.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import json
import os
import re
import secrets
import signal
import sqlite3
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "12.4.0-standin"
DATA = Path(os.environ.get("GF_PATHS_DATA", "/var/lib/grafana"))
PROVISIONING = Path(os.environ.get("GF_PATHS_PROVISIONING", "/etc/grafana/provisioning"))
DATABASE = DATA / "grafana.db"
WAL = os.environ.get("GF_DATABASE_WAL", "false").lower() in ("1", "true", "yes")
WRITES_PER_SECOND = float(os.environ.get("STANDIN_WRITES_PER_SECOND", "20"))
ROWS_KEPT = int(os.environ.get("STANDIN_ROWS", "2000"))
ROW_BYTES = int(os.environ.get("STANDIN_ROW_BYTES", "800"))

SECRET_KEY = os.environ.get("GF_SECURITY_SECRET_KEY", "") or "the built-in one"

Json = dict[str, Any]

TABLES = """
CREATE TABLE IF NOT EXISTS migration_log (
  id INTEGER PRIMARY KEY, migration_id TEXT, sql TEXT, success INTEGER, error TEXT, timestamp TEXT);
CREATE TABLE IF NOT EXISTS org (
  id INTEGER PRIMARY KEY, version INTEGER, name TEXT UNIQUE, created TEXT, updated TEXT);
CREATE TABLE IF NOT EXISTS user (
  id INTEGER PRIMARY KEY, version INTEGER, login TEXT UNIQUE, email TEXT, name TEXT, password TEXT,
  salt TEXT, org_id INTEGER, is_admin INTEGER, is_service_account INTEGER DEFAULT 0, uid TEXT,
  created TEXT, updated TEXT);
CREATE TABLE IF NOT EXISTS org_user (
  id INTEGER PRIMARY KEY, org_id INTEGER, user_id INTEGER, role TEXT, created TEXT, updated TEXT);
CREATE TABLE IF NOT EXISTS api_key (
  id INTEGER PRIMARY KEY, org_id INTEGER, name TEXT, key TEXT UNIQUE, role TEXT, created TEXT,
  updated TEXT, expires INTEGER, service_account_id INTEGER, is_revoked INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS folder (
  id INTEGER PRIMARY KEY, uid TEXT UNIQUE, org_id INTEGER, title TEXT, description TEXT,
  parent_uid TEXT, created TEXT, updated TEXT);
CREATE TABLE IF NOT EXISTS dashboard (
  id INTEGER PRIMARY KEY, version INTEGER, slug TEXT, title TEXT, data TEXT, org_id INTEGER,
  uid TEXT UNIQUE, is_folder INTEGER DEFAULT 0, folder_uid TEXT, created TEXT, updated TEXT);
CREATE TABLE IF NOT EXISTS dashboard_version (
  id INTEGER PRIMARY KEY, dashboard_id INTEGER, version INTEGER, data TEXT, message TEXT,
  created TEXT);
CREATE TABLE IF NOT EXISTS data_source (
  id INTEGER PRIMARY KEY, org_id INTEGER, version INTEGER, type TEXT, name TEXT UNIQUE,
  access TEXT, url TEXT, is_default INTEGER, json_data TEXT, secure_json_data TEXT, uid TEXT UNIQUE,
  read_only INTEGER, created TEXT, updated TEXT);
CREATE TABLE IF NOT EXISTS data_keys (
  name TEXT PRIMARY KEY, active INTEGER, scope TEXT, provider TEXT, encrypted_data BLOB,
  label TEXT, created TEXT, updated TEXT);
CREATE TABLE IF NOT EXISTS alert_rule (
  id INTEGER PRIMARY KEY, org_id INTEGER, uid TEXT UNIQUE, title TEXT, namespace_uid TEXT,
  rule_group TEXT, data TEXT, version INTEGER, updated TEXT);
CREATE TABLE IF NOT EXISTS session_log (
  id INTEGER PRIMARY KEY, stamp TEXT, previous TEXT, filler TEXT);
CREATE TABLE IF NOT EXISTS session_state (
  name TEXT PRIMARY KEY, last_id INTEGER, last_stamp TEXT);
"""


def now() -> str:
    """The time as Grafana writes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())


def connect() -> sqlite3.Connection:
    """A connection that waits for locks; commits are explicit."""
    link = sqlite3.connect(DATABASE, timeout=10, isolation_level=None)
    link.row_factory = sqlite3.Row
    link.execute("PRAGMA synchronous=NORMAL")
    return link


class Transaction:
    """A write transaction on a connection of its own."""

    def __enter__(self) -> sqlite3.Connection:
        self.link = connect()
        self.link.execute("BEGIN IMMEDIATE")
        return self.link

    def __exit__(self, kind: object, *_: object) -> None:
        self.link.execute("COMMIT" if kind is None else "ROLLBACK")
        self.link.close()


def read(sql: str, *values: object) -> list[Json]:
    """Rows of a query as dictionaries."""
    link = connect()
    try:
        return [dict(row) for row in link.execute(sql, values)]
    finally:
        link.close()


def hashed(text: str, salt: str) -> str:
    """A slow hash; Grafana's own differs, but neither gives the password away."""
    return hashlib.pbkdf2_hmac("sha256", text.encode(), salt.encode(), 10000).hex()


def setting(name: str, default: str) -> str:
    """``GF_<name>``, or the content of the file that ``GF_<name>__FILE`` names."""
    file = os.environ.get(f"GF_{name}__FILE")
    if file:
        return Path(file).read_text().rstrip("\n")
    return os.environ.get(f"GF_{name}", default)


def create() -> None:
    """Make the database on the first start; the admin's password counts only then."""
    link = connect()
    if WAL:
        # As in Grafana: the mode is written into the file, and turning it off changes nothing.
        link.execute("PRAGMA journal_mode=WAL")
    link.executescript(TABLES)
    link.close()
    DATABASE.chmod(0o640)
    if read("SELECT id FROM org"):
        return
    salt = secrets.token_hex(5)
    login = setting("SECURITY_ADMIN_USER", "admin")
    password = hashed(setting("SECURITY_ADMIN_PASSWORD", "admin"), salt)
    stamp = now()
    with Transaction() as link:
        link.execute("INSERT INTO org VALUES (1, 0, 'Main Org.', ?, ?)", (stamp, stamp))
        link.execute(
            "INSERT INTO user (id, version, login, email, name, password, salt, org_id, is_admin,"
            " uid, created, updated) VALUES (1, 0, ?, 'admin@localhost', ?, ?, ?, 1, 1, 'admin',"
            " ?, ?)",
            (login, login, password, salt, stamp, stamp),
        )
        link.execute("INSERT INTO org_user VALUES (1, 1, 1, 'Admin', ?, ?)", (stamp, stamp))
        link.execute(
            "INSERT INTO data_keys VALUES"
            " ('standin', 1, 'root', 'secretKey.v1', ?, 'standin', ?, ?)",
            (key_print(), stamp, stamp),
        )
        link.execute(
            "INSERT INTO migration_log (migration_id, success, timestamp) VALUES ('all', 1, ?)",
            (stamp,),
        )


def expanded(value: object) -> object:
    """``$NAME`` and ``${NAME}`` in provisioned text, as Grafana replaces them."""
    if isinstance(value, str):
        return re.sub(
            r"\$(?:\{(\w+)\}|(\w+))",
            lambda found: os.environ.get(found[1] or found[2], ""),
            value,
        )
    if isinstance(value, dict):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item) for item in value]
    return value


def provision() -> None:
    """Apply the provisioned data sources; they win over what is in the database."""
    yaml = importlib.import_module("yaml")
    files = sorted((PROVISIONING / "datasources").glob("*.y*ml"))
    for file in files:
        try:
            document: Any = expanded(yaml.safe_load(file.read_text()) or {})
        except (OSError, yaml.YAMLError) as error:
            sys.exit(f"provisioning {file}: {error}")
        for gone in document.get("deleteDatasources") or []:
            with Transaction() as link:
                link.execute("DELETE FROM data_source WHERE name = ?", (gone["name"],))
        for source in document.get("datasources") or []:
            save_datasource(source, read_only=True)


def save_datasource(source: Json, read_only: bool) -> Json:
    """Insert or replace a data source by its uid (or, without one, by its name)."""
    name = source["name"]
    uid = source.get("uid") or "P" + hashlib.sha256(name.encode()).hexdigest()[:16].upper()
    stamp = now()
    with Transaction() as link:
        known = link.execute(
            "SELECT id, version, created FROM data_source WHERE uid = ? OR name = ?", (uid, name)
        ).fetchone()
        if known and not read_only:
            raise Problem(409, "data source with the same name already exists")
        if known:
            link.execute("DELETE FROM data_source WHERE id = ?", (known["id"],))
        link.execute(
            "INSERT INTO data_source VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                known["id"] if known else None,
                known["version"] + 1 if known else 1,
                source.get("type", ""),
                name,
                source.get("access", "proxy"),
                source.get("url", ""),
                int(bool(source.get("isDefault"))),
                json.dumps(source.get("jsonData") or {}, sort_keys=True),
                json.dumps(
                    {
                        # Kept unreadable, as behind Grafana's envelope encryption.
                        key: hashed(str(value), "standin")
                        for key, value in (source.get("secureJsonData") or {}).items()
                    }
                ),
                uid,
                int(read_only and not source.get("editable", False)),
                known["created"] if known else stamp,
                stamp,
            ),
        )
    return datasource(uid)


def source_health(uid: str) -> tuple[int, Json]:
    """``GET /api/datasources/uid/<uid>/health``: ill when its secret cannot be read any more.

    As with Grafana, nothing else notices that the secret key is another one than the database's.
    """
    source = datasource(uid)
    known = read("SELECT encrypted_data FROM data_keys WHERE name = 'standin'")
    if source["secureJsonFields"] and known and known[0]["encrypted_data"] != key_print():
        return 400, {"status": "ERROR", "message": "unauthorized: unauthorized access"}
    return 200, {"status": "OK", "message": f"stand-in: {source['name']}"}


def key_print() -> str:
    """What the database keeps of the key that its secrets are written with."""
    return hashed(SECRET_KEY, "standin")


class Problem(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def shown_datasource(row: Json) -> Json:
    """A data source as the API shows it: secrets only as 'is set'."""
    return {
        "id": row["id"],
        "uid": row["uid"],
        "orgId": row["org_id"],
        "name": row["name"],
        "type": row["type"],
        "access": row["access"],
        "url": row["url"],
        "isDefault": bool(row["is_default"]),
        "jsonData": json.loads(row["json_data"]),
        "secureJsonFields": dict.fromkeys(json.loads(row["secure_json_data"]), True),
        "version": row["version"],
        "readOnly": bool(row["read_only"]),
    }


def datasource(uid: str) -> Json:
    """One data source by its uid."""
    rows = read("SELECT * FROM data_source WHERE uid = ?", uid)
    if not rows:
        raise Problem(404, "Data source not found")
    return shown_datasource(rows[0])


def slug(title: str) -> str:
    """The part of a dashboard's address that is made of its title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def save_dashboard(body: Json) -> Json:
    """``POST /api/dashboards/db``: a new dashboard, or a new version of one."""
    document = dict(body.get("dashboard") or {})
    title = str(document.get("title") or "").strip()
    if not title:
        raise Problem(400, "Dashboard title cannot be empty")
    uid = document.get("uid") or secrets.token_hex(7)
    folder = body.get("folderUid") or ""
    if folder and not read("SELECT id FROM folder WHERE uid = ?", folder):
        raise Problem(400, "folder not found")
    stamp = now()
    with Transaction() as link:
        known = link.execute("SELECT * FROM dashboard WHERE uid = ?", (uid,)).fetchone()
        if known and not body.get("overwrite") and document.get("version") != known["version"]:
            raise Problem(412, "The dashboard has been changed by someone else")
        version = known["version"] + 1 if known else 1
        document.update({"uid": uid, "version": version})
        document.pop("id", None)
        data = json.dumps(document)
        if known:
            number = known["id"]
            link.execute(
                "UPDATE dashboard SET version = ?, slug = ?, title = ?, data = ?, folder_uid = ?,"
                " updated = ? WHERE id = ?",
                (version, slug(title), title, data, folder, stamp, number),
            )
        else:
            number = link.execute(
                "INSERT INTO dashboard VALUES (NULL, ?, ?, ?, ?, 1, ?, 0, ?, ?, ?)",
                (version, slug(title), title, data, uid, folder, stamp, stamp),
            ).lastrowid
        link.execute(
            "INSERT INTO dashboard_version VALUES (NULL, ?, ?, ?, ?, ?)",
            (number, version, data, body.get("message", ""), stamp),
        )
    return {
        "id": number,
        "uid": uid,
        "url": f"/d/{uid}/{slug(title)}",
        "status": "success",
        "version": version,
        "slug": slug(title),
        "folderUid": folder,
    }


def get_dashboard(uid: str) -> Json:
    """``GET /api/dashboards/uid/<uid>``."""
    rows = read("SELECT * FROM dashboard WHERE uid = ?", uid)
    if not rows:
        raise Problem(404, "Dashboard not found")
    row = rows[0]
    document = json.loads(row["data"])
    document["id"] = row["id"]
    folder = read("SELECT title FROM folder WHERE uid = ?", row["folder_uid"])
    meta = {
        "type": "db",
        "slug": row["slug"],
        "url": f"/d/{uid}/{row['slug']}",
        "version": row["version"],
        "folderUid": row["folder_uid"],
        "folderTitle": folder[0]["title"] if folder else "General",
        "created": row["created"],
        "updated": row["updated"],
        "provisioned": False,
    }
    return {"meta": meta, "dashboard": document}


def delete_dashboard(uid: str) -> Json:
    """``DELETE /api/dashboards/uid/<uid>``."""
    title = get_dashboard(uid)["dashboard"]["title"]
    with Transaction() as link:
        link.execute("DELETE FROM dashboard WHERE uid = ?", (uid,))
    return {"title": title, "message": f"Dashboard {title} deleted"}


def save_folder(body: Json) -> Json:
    """``POST /api/folders``."""
    title = str(body.get("title") or "").strip()
    if not title:
        raise Problem(400, "folder title cannot be empty")
    uid = body.get("uid") or secrets.token_hex(7)
    stamp = now()
    with Transaction() as link:
        if link.execute("SELECT 1 FROM folder WHERE uid = ?", (uid,)).fetchone():
            raise Problem(409, "a folder with the same uid already exists")
        link.execute(
            "INSERT INTO folder VALUES (NULL, ?, 1, ?, '', ?, ?, ?)",
            (uid, title, body.get("parentUid") or "", stamp, stamp),
        )
    return get_folder(uid)


def shown_folder(row: Json) -> Json:
    """A folder as the API shows it."""
    shown = {"id": row["id"], "uid": row["uid"], "title": row["title"]}
    return {**shown, "parentUid": row["parent_uid"]} if row["parent_uid"] else shown


def get_folder(uid: str) -> Json:
    """One folder by its uid."""
    rows = read("SELECT * FROM folder WHERE uid = ?", uid)
    if not rows:
        raise Problem(404, "folder not found")
    return shown_folder(rows[0])


RULE_FIELDS = ("uid", "title", "folderUID", "ruleGroup")


def save_rule(body: Json) -> Json:
    """``POST /api/v1/provisioning/alert-rules``."""
    if not body.get("title") or not body.get("folderUID") or not body.get("ruleGroup"):
        raise Problem(400, "title, folderUID and ruleGroup are required")
    rule = {**body, "uid": body.get("uid") or secrets.token_hex(7), "orgID": 1}
    with Transaction() as link:
        if link.execute("SELECT 1 FROM alert_rule WHERE uid = ?", (rule["uid"],)).fetchone():
            raise Problem(409, "an alert rule with the same uid already exists")
        cursor = link.execute(
            "INSERT INTO alert_rule VALUES (NULL, 1, ?, ?, ?, ?, ?, 1, ?)",
            (
                rule["uid"],
                rule["title"],
                rule["folderUID"],
                rule["ruleGroup"],
                json.dumps(rule),
                now(),
            ),
        )
        rule["id"] = cursor.lastrowid
    return rule


def rules() -> list[Json]:
    """Every alert rule."""
    rows = read("SELECT id, data FROM alert_rule ORDER BY id")
    return [{**json.loads(row["data"]), "id": row["id"]} for row in rows]


def rules_export() -> Json:
    """The file form of the alert rules: groups with their rules."""
    groups: dict[tuple[str, str], list[Json]] = {}
    for rule in rules():
        kept = {
            key: value
            for key, value in rule.items()
            if key not in ("id", "orgID", "folderUID", "ruleGroup", "updated", "provenance")
        }
        groups.setdefault((rule["folderUID"], rule["ruleGroup"]), []).append(kept)
    titles = {row["uid"]: row["title"] for row in read("SELECT uid, title FROM folder")}
    return {
        "apiVersion": 1,
        "groups": [
            {
                "orgId": 1,
                "name": group,
                "folder": titles.get(folder, folder),
                "interval": "1m",
                "rules": members,
            }
            for (folder, group), members in sorted(groups.items())
        ],
    }


def save_account(body: Json) -> Json:
    """``POST /api/serviceaccounts``."""
    name, role = body.get("name"), body.get("role", "Viewer")
    if not name:
        raise Problem(400, "Required Name field not provided")
    stamp = now()
    login = f"sa-1-{slug(str(name))}"
    with Transaction() as link:
        if link.execute("SELECT 1 FROM user WHERE login = ?", (login,)).fetchone():
            raise Problem(400, "service account already exists")
        number = link.execute(
            "INSERT INTO user (version, login, email, name, password, salt, org_id, is_admin,"
            " is_service_account, uid, created, updated)"
            " VALUES (0, ?, ?, ?, '', '', 1, 0, 1, ?, ?, ?)",
            (login, login, name, secrets.token_hex(7), stamp, stamp),
        ).lastrowid
        link.execute(
            "INSERT INTO org_user VALUES (NULL, 1, ?, ?, ?, ?)", (number, role, stamp, stamp)
        )
    return {
        "id": number,
        "name": name,
        "login": login,
        "orgId": 1,
        "isDisabled": False,
        "role": role,
        "tokens": 0,
    }


def save_token(account: int, body: Json) -> Json:
    """``POST /api/serviceaccounts/<id>/tokens``: the token is shown this once."""
    if not body.get("name"):
        raise Problem(400, "Required Name field not provided")
    known = read("SELECT 1 FROM user WHERE id = ? AND is_service_account = 1", account)
    if not known:
        raise Problem(404, "service account not found")
    token = f"glsa_{secrets.token_urlsafe(24)}_{secrets.token_hex(4)}"
    lives = int(body.get("secondsToLive") or 0)
    with Transaction() as link:
        number = link.execute(
            "INSERT INTO api_key VALUES (NULL, 1, ?, ?, '', ?, ?, ?, ?, 0)",
            (
                body["name"],
                hashlib.sha256(token.encode()).hexdigest(),
                now(),
                now(),
                int(time.time()) + lives if lives else None,
                account,
            ),
        ).lastrowid
    return {"id": number, "name": body["name"], "key": token}


def search(query: dict[str, str]) -> list[Json]:
    """``GET /api/search``: folders and dashboards, a page at a time."""
    kind = query.get("type", "")
    found: list[Json] = []
    if kind in ("", "dash-folder"):
        for row in read("SELECT * FROM folder ORDER BY title, id"):
            found.append(
                {"id": row["id"], "uid": row["uid"], "title": row["title"], "type": "dash-folder"}
            )
    if kind in ("", "dash-db"):
        titles = {row["uid"]: row["title"] for row in read("SELECT uid, title FROM folder")}
        for row in read("SELECT * FROM dashboard WHERE is_folder = 0 ORDER BY title, id"):
            entry = {
                "id": row["id"],
                "uid": row["uid"],
                "title": row["title"],
                "uri": f"db/{row['slug']}",
                "url": f"/d/{row['uid']}/{row['slug']}",
                "type": "dash-db",
                "tags": json.loads(row["data"]).get("tags", []),
                "isStarred": False,
            }
            if row["folder_uid"]:
                entry["folderUid"] = row["folder_uid"]
                entry["folderTitle"] = titles.get(row["folder_uid"], "")
            found.append(entry)
    words = query.get("query", "").lower()
    found = [entry for entry in found if words in entry["title"].lower()]
    limit = int(query.get("limit", "1000"))
    begin = (int(query.get("page", "1")) - 1) * limit
    return found[begin : begin + limit]


def folders(query: dict[str, str]) -> list[Json]:
    """``GET /api/folders``: one level of the tree."""
    parent = query.get("parentUid", "")
    rows = read("SELECT * FROM folder WHERE parent_uid = ? ORDER BY title, id", parent)
    limit = int(query.get("limit", "1000"))
    begin = (int(query.get("page", "1")) - 1) * limit
    return [shown_folder(row) for row in rows[begin : begin + limit]]


Route = Callable[[re.Match[str], dict[str, str], Json], tuple[int, Any]]

ROUTES: list[tuple[str, str, Route]] = [
    ("GET", r"/api/org", lambda m, q, b: (200, read("SELECT id, name FROM org")[0])),
    ("GET", r"/api/search", lambda m, q, b: (200, search(q))),
    ("GET", r"/api/dashboards/uid/([^/]+)", lambda m, q, b: (200, get_dashboard(m[1]))),
    ("DELETE", r"/api/dashboards/uid/([^/]+)", lambda m, q, b: (200, delete_dashboard(m[1]))),
    ("POST", r"/api/dashboards/db", lambda m, q, b: (200, save_dashboard(b))),
    ("GET", r"/api/folders", lambda m, q, b: (200, folders(q))),
    ("GET", r"/api/folders/([^/]+)", lambda m, q, b: (200, get_folder(m[1]))),
    ("POST", r"/api/folders", lambda m, q, b: (200, save_folder(b))),
    (
        "GET",
        r"/api/datasources",
        lambda m, q, b: (
            200,
            [shown_datasource(row) for row in read("SELECT * FROM data_source ORDER BY name")],
        ),
    ),
    ("GET", r"/api/datasources/uid/([^/]+)", lambda m, q, b: (200, datasource(m[1]))),
    (
        "GET",
        r"/api/datasources/uid/([^/]+)/health",
        lambda m, q, b: source_health(m[1]),
    ),
    (
        "POST",
        r"/api/datasources",
        lambda m, q, b: (
            200,
            {"message": "Datasource added", "datasource": save_datasource(b, read_only=False)},
        ),
    ),
    ("GET", r"/api/v1/provisioning/alert-rules", lambda m, q, b: (200, rules())),
    ("POST", r"/api/v1/provisioning/alert-rules", lambda m, q, b: (201, save_rule(b))),
    ("GET", r"/api/v1/provisioning/alert-rules/export", lambda m, q, b: (200, rules_export())),
    ("POST", r"/api/serviceaccounts", lambda m, q, b: (201, save_account(b))),
    ("POST", r"/api/serviceaccounts/(\d+)/tokens", lambda m, q, b: (200, save_token(int(m[1]), b))),
]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server_version = "Grafana-standin"

    def log_message(self, format: str, *values: object) -> None:
        """Quiet: health checks would fill the log."""

    def _reply(self, status: int, value: Any) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        kind = "text/plain" if isinstance(value, str) else "application/json"
        self.send_header("Content-Type", f"{kind}; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="Grafana stand-in"')
        self.end_headers()
        self.wfile.write(body)

    def _user(self) -> Json:
        """The account behind the request's credentials."""
        scheme, _, value = (self.headers.get("Authorization") or "").partition(" ")
        if scheme.lower() == "bearer":
            key = hashlib.sha256(value.strip().encode()).hexdigest()
            rows = read(
                "SELECT user.* FROM api_key JOIN user ON user.id = api_key.service_account_id"
                " WHERE key = ? AND is_revoked = 0 AND (expires IS NULL OR expires > ?)",
                key,
                int(time.time()),
            )
            if rows:
                return rows[0]
            raise Problem(401, "Invalid API key")
        if scheme.lower() == "basic":
            try:
                login, _, password = base64.b64decode(value).decode().partition(":")
            except ValueError:
                raise Problem(401, "Invalid Basic Auth Header") from None
            rows = read("SELECT * FROM user WHERE login = ? AND is_service_account = 0", login)
            if rows and hmac.compare_digest(hashed(password, rows[0]["salt"]), rows[0]["password"]):
                return rows[0]
            raise Problem(401, "Invalid username or password")
        raise Problem(401, "Unauthorized")

    def _health(self) -> tuple[int, Json]:
        shown = {"database": "ok", "version": VERSION, "commit": "standin"}
        try:
            read("SELECT id FROM org LIMIT 1")
            read("SELECT id FROM session_log ORDER BY id DESC LIMIT 1")
        except sqlite3.Error:
            return 503, {**shown, "database": "failing"}
        return 200, shown

    def _answer(self, method: str) -> tuple[int, Any]:
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        if method == "GET" and parts.path == "/healthz":
            return 200, "Ok"
        if method == "GET" and parts.path == "/api/health":
            return self._health()
        if method == "GET" and parts.path in ("/", "/login"):
            return 200, "This is the lab's stand-in for Grafana, not Grafana.\n"
        user = self._user()
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            raise Problem(400, "bad request data") from None
        if method == "GET" and parts.path == "/api/user":
            names = ("id", "login", "email", "name", "uid")
            return 200, {
                **{name: user[name] for name in names},
                "orgId": user["org_id"],
                "isGrafanaAdmin": bool(user["is_admin"]),
            }
        for wanted, pattern, route in ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match and wanted == method:
                return route(match, query, body)
        raise Problem(404, "Not found")

    def _serve(self, method: str) -> None:
        try:
            status, value = self._answer(method)
        except Problem as problem:
            status, value = problem.status, {"message": problem.message}
        except (sqlite3.Error, KeyError, TypeError, ValueError) as error:
            status, value = 500, {"message": f"Internal server error: {error}"}
        self._reply(status, value)

    def do_GET(self) -> None:
        """HTTP GET."""
        self._serve("GET")

    def do_POST(self) -> None:
        """HTTP POST."""
        self._serve("POST")

    def do_DELETE(self) -> None:
        """HTTP DELETE."""
        self._serve("DELETE")


def write_always(stop: threading.Event) -> None:
    """Commit all the time: each transaction changes several pages that must agree.

    Row ``n`` names the stamp of row ``n - 1``, and ``session_state`` names the newest row, so a
    torn copy shows as a damaged file, a gap or a disagreement.
    """
    link = connect()
    last = link.execute("SELECT id, stamp FROM session_log ORDER BY id DESC LIMIT 1").fetchone()
    number, before = (last["id"], last["stamp"]) if last else (0, "")
    while not stop.is_set():
        number += 1
        stamp = secrets.token_hex(16)
        try:
            link.execute("BEGIN IMMEDIATE")
            link.execute(
                "INSERT INTO session_log VALUES (?, ?, ?, ?)",
                (number, stamp, before, secrets.token_hex(ROW_BYTES // 2)),
            )
            link.execute("DELETE FROM session_log WHERE id <= ?", (number - ROWS_KEPT,))
            link.execute(
                "INSERT OR REPLACE INTO session_state VALUES ('session_log', ?, ?)", (number, stamp)
            )
            link.execute("COMMIT")
            before = stamp
        except sqlite3.Error as error:
            number -= 1
            if link.in_transaction:
                link.execute("ROLLBACK")
            print(f"writer: {error}", file=sys.stderr)
        stop.wait(1 / WRITES_PER_SECOND)
    link.close()


def main() -> int:
    """Open the database, serve until a signal comes."""
    if not os.access(DATA, os.W_OK):
        print(f"GF_PATHS_DATA='{DATA}' is not writable.", file=sys.stderr)
        return 1
    create()
    provision()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    writer = threading.Thread(target=write_always, args=(stop,))
    if WRITES_PER_SECOND > 0:
        writer.start()
    port = int(os.environ.get("GF_SERVER_HTTP_PORT", "3000"))
    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mode = read("PRAGMA journal_mode")[0]["journal_mode"]
    print(f"Grafana stand-in {VERSION} on port {port}, journal mode {mode}", file=sys.stderr)
    stop.wait()
    server.shutdown()
    if writer.is_alive():
        writer.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
