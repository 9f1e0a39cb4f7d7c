"""Grafana under test: dashboards in nested folders, data sources, rules, accounts.

Where the lab has no official image this runs on its stand-in: a small server with the same routes
over a database with the same table names, which is written to all the time. What the stand-in
cannot show: unified storage, encrypted secrets, plugins.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, fields

from iotops.services.base import BaseOptions
from iotops.services.grafana import GrafanaOptions
from tests.contract.protocol import Ground, KindUnderTest


@dataclass(frozen=True)
class Answers:
    """What an independent client saw; ids and counters that Grafana moves itself left out."""

    dashboards: Mapping[str, object]
    folders: Mapping[str, object]
    sources: Mapping[str, object]
    rules: Mapping[str, object]
    account: object
    stale_password: int


class Kind(KindUnderTest[Answers]):
    """A Grafana with an admin whose password is not the usual one, and a service account."""

    kind = "grafana"
    lab_image = "grafana"
    moving = ("grafana.db", "grafana.db-*", "log/*")

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._env = {"GRAFANA_ADMIN_PASSWORD": secrets.token_hex(12)}

    def prepare(self) -> None:
        self.ground.folder.mkdir(parents=True)
        os.chown(self.ground.folder, 472, 0)
        for name in ("png", "unified-search/bleve", "plugins/a-panel"):
            (self.ground.folder / name).mkdir(parents=True)
        # Grafana's own user must be able to write what it makes there.
        for top, folders, _ in os.walk(self.ground.folder):
            for name in folders:
                os.chown(os.path.join(top, name), 472, 0)  # noqa: PTH118 - as os.walk gives it

    def compose(self) -> Mapping[str, object]:
        return {
            "image": self.ground.image,
            "ports": [f"127.0.0.1:{self.ground.port(3000)}:3000"],
            "environment": {"GF_SECURITY_ADMIN_PASSWORD": "${GRAFANA_ADMIN_PASSWORD}"},
            "volumes": [
                {
                    "type": "bind",
                    "source": str(self.ground.folder),
                    "target": "/var/lib/grafana",
                    "bind": {"create_host_path": False},
                }
            ],
        }

    def env(self) -> Mapping[str, str]:
        return self._env

    def options(self) -> BaseOptions:
        return GrafanaOptions(container="grafana", url=f"http://127.0.0.1:{self.ground.port(3000)}")

    def seed(self) -> Answers:
        self._post("/api/folders", {"uid": "house", "title": "House"})
        self._post("/api/folders", {"uid": "cellar", "title": "Cellar", "parentUid": "house"})
        for number in range(7):
            dashboard = {
                "uid": f"board-{number}",
                "title": f"Raum {number} — Übersicht",
                "panels": [{"id": n, "title": secrets.token_hex(20)} for n in range(9)],
            }
            folder = ("house", "cellar", "")[number % 3]
            self._post("/api/dashboards/db", {"dashboard": dashboard, "folderUid": folder})
        # Of a type that is well without a server behind it.
        testdata = "grafana-testdata-datasource"
        source = {"uid": "influx", "name": "InfluxDB", "type": testdata, "access": "proxy"}
        self._post("/api/datasources", {**source, "secureJsonData": {"token": "s3cret"}})
        rule = {"uid": "frost", "title": "Frost", "folderUID": "house", "ruleGroup": "warnings"}
        self._post("/api/v1/provisioning/alert-rules", rule)
        account = self._post("/api/serviceaccounts", {"name": "iotops", "role": "Admin"})
        assert isinstance(account, dict)
        token = self._post(f"/api/serviceaccounts/{account['id']}/tokens", {"name": "iotops"})
        assert isinstance(token, dict)
        self._env["GRAFANA_TOKEN"] = str(token["key"])
        answers = self._look()
        assert len(answers.dashboards) == 7 and len(answers.folders) == 2
        assert len(answers.sources) == 1 and len(answers.rules) == 1
        assert answers.stale_password == 401
        return answers

    def check(self, answers: Answers) -> list[str]:
        now = self._look()
        return [
            f"{field.name} is {getattr(now, field.name)!r}, was {getattr(answers, field.name)!r}"
            for field in fields(Answers)
            if getattr(now, field.name) != getattr(answers, field.name)
        ]

    def sabotage(self) -> None:
        """Lose one dashboard: health, logins and everything else are as before."""
        subprocess.run(["docker", "stop", self.ground.container], check=True, capture_output=True)
        with closing(sqlite3.connect(self.ground.folder / "grafana.db")) as link:
            link.execute("DELETE FROM dashboard WHERE uid = 'board-3'")
            link.commit()
        os.chown(self.ground.folder / "grafana.db", 472, 0)
        subprocess.run(["docker", "start", self.ground.container], check=True, capture_output=True)
        ends = time.monotonic() + 30
        while not self._up():
            assert time.monotonic() < ends
            time.sleep(0.1)

    def _up(self) -> bool:
        try:
            return self._get("/api/health") is not None
        except OSError:  # also a connection that the engine takes before the server listens
            return False

    def _look(self) -> Answers:
        boards, sources = self._rows("/api/search?type=dash-db"), self._rows("/api/datasources")
        folders = self._rows("/api/folders") + self._rows("/api/folders?parentUid=house")
        rules = self._rows("/api/v1/provisioning/alert-rules")
        return Answers(
            dashboards={
                str(one["uid"]): self._get(f"/api/dashboards/uid/{one['uid']}") for one in boards
            },
            folders={str(one["uid"]): one for one in folders},
            sources={str(one["uid"]): one for one in sources},
            rules={str(one["uid"]): one for one in rules},
            account=self._get("/api/user", self._env.get("GRAFANA_TOKEN", "")),
            stale_password=self._status("/api/org", "admin:admin"),
        )

    def _rows(self, path: str) -> list[dict[str, object]]:
        found = self._get(path)
        assert isinstance(found, list)
        return found

    def _get(self, path: str, token: str = "") -> object:
        return self._call(urllib.request.Request(self._address(path)), token=token)

    def _post(self, path: str, document: object) -> object:
        return self._call(
            urllib.request.Request(
                self._address(path),
                data=json.dumps(document).encode(),
                headers={"Content-Type": "application/json"},
            )
        )

    def _status(self, path: str, pair: str) -> int:
        try:
            self._call(urllib.request.Request(self._address(path)), pair=pair)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def _address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.ground.port(3000)}{path}"

    def _call(self, request: urllib.request.Request, *, pair: str = "", token: str = "") -> object:
        pair = pair or f"admin:{self._env['GRAFANA_ADMIN_PASSWORD']}"
        basic = f"Basic {base64.b64encode(pair.encode()).decode()}"
        request.add_header("Authorization", f"Bearer {token}" if token else basic)
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: object = json.load(answer)
            return found
