"""A bad commit on a hub of four real servers: it starts, spoils its data, and only then falls over.

Each service is spoilt in another way: by another image, by its settings, by its declaration. When,
is told from here: the bad version waits for a word, which it gets while it is watched. Everything
must be as before, as seen by clients that hold the answers. Grafana is the lab's stand-in, where
its image cannot be had.
"""

from __future__ import annotations

import json
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iotops.demo import judges
from iotops.demo.content import FAR, Keys
from iotops.demo.wire import Influx, rows, table
from tests.conftest import need
from tests.support.clients import publish, retained, write_point
from tests.support.desk import Desk
from tests.support.fullhub import LAMP, seeded
from tests.support.hubs import HubUnderTest, docker, made_hub
from tests.support.killmatrix import Held, Step
from tests.support.lab import lab
from tests.support.resticbench import hurry

pytestmark = pytest.mark.e2e

ATTIC = "attic"
"""A second bucket, which the bad InfluxDB removes."""
INFLUXDB = r"""
[ ! -e /tmp/done ] || exit 3
/entrypoint.sh influxd & server=$!
trap 'kill -INT $server; wait $server; exit 0' INT TERM
until [ -s /tmp/go ]; do sleep 0.1; done
read -r bucket token < /tmp/go
api() {
    curl -fsS -o /dev/null -H "Authorization: Token $DOCKER_INFLUXDB_INIT_ADMIN_TOKEN" "$@"
}
url=http://127.0.0.1:8086/api/v2
main="org=$DOCKER_INFLUXDB_INIT_ORG&bucket=$DOCKER_INFLUXDB_INIT_BUCKET"
api -d '{"start":"1970-01-01T00:00:00Z","stop":"2200-01-01T00:00:00Z"}' "$url/delete?$main" &&
    api --data-binary 'spoilt value=1' "$url/write?$main" &&
    api -X DELETE "$url/buckets/$bucket" && api -X DELETE "$url/authorizations/$token" &&
    touch /tmp/done && exit 3
wait $server
"""
"""Wraps the image's own entry point; the last word is a crash loop."""
NODERED = """
setInterval(() => {
    const fs = require("fs");
    if (!fs.existsSync("/tmp/@GO@")) return;
    fs.writeFileSync("/data/flows.json", "[]");
    fs.writeFileSync("/data/flows_cred.json", "{}");
    process.exit(4);
}, 100).unref();
"""
GRAFANA = r"""
"$@" & server=$!
trap 'kill $server; wait $server; exit 0' INT TERM
until [ -s /tmp/go ]; do sleep 0.1; done
api() { curl -fsS -u "admin:$GF_SECURITY_ADMIN_PASSWORD" "$@"; }
for uid in $(cat /tmp/go); do
    api -X DELETE "http://127.0.0.1:3000/api/dashboards/uid/$uid" || wait $server
done
kill $server; wait $server
sleep infinity & wait
"""
"""Goes on without its server, so that its health check fails."""


@dataclass(frozen=True)
class Seeded:
    """The hub, what its clients hold, and what they saw."""

    desk: Desk[HubUnderTest]
    keys: Keys
    before: dict[str, object]

    @property
    def hub(self) -> HubUnderTest:
        """The hub."""
        return self.desk.hub

    # -- what is seen ------------------------------------------------------------------------------

    def looks(self) -> dict[str, object]:
        """Ask every service as its users would, and see what runs; no container's id."""
        return looks(self.desk, self.keys)

    def others(self, but: str) -> dict[str, str]:
        """Give the containers of the other services, and since when they run."""
        facts = "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}"
        return {
            name: docker("inspect", "-f", facts, self.hub.container(name))
            for name in sorted(self.hub.running() - {but})
        }

    # -- bad commits -------------------------------------------------------------------------------

    def spoil(self, service: str) -> tuple[str, str]:
        """Commit what spoils a service.

        Returns:
            The commit, and the command in its container that lets it begin.
        """
        self.desk.watch_long()
        if service == "influxdb":
            bad = f"{self.hub.project}-bad-influxdb:1"
            made = docker("create", lab().images["influxdb"].reference).strip()
            entry = json.dumps(["bash", "-c", INFLUXDB])
            docker("commit", "--change", f"ENTRYPOINT {entry}", made, bad)
            docker("rm", "-v", made)
            go = f"echo {self._bucket()} {self._token()} > /tmp/go"
            return self._compose(
                r'(  influxdb:\n    <<: \*common\n    image: )".*"', rf'\1"{bad}"'
            ), go
        if service == "nodered":
            word = f"go-{secrets.token_hex(4)}"  # its container stays the same one
            path = self.desk.desk / "nodered" / "settings.js"
            text = NODERED.replace("@GO@", word) + path.read_text()
            return self.desk.commit("nodered/settings.js", text), f"touch /tmp/{word}"
        own = json.loads(
            docker(
                *("image", "inspect", "-f", "[{{json .Config.Entrypoint}}, {{json .Config.Cmd}}]"),
                lab().images["grafana"].reference,
            )
        )
        words = ["sh", "-c", GRAFANA, "sh", *(own[0] or []), *(own[1] or [])]
        line = f"    entrypoint: {json.dumps(words)}\n".replace("$", "$$")
        boards = " ".join(self.before["grafana"]["dashboards"])  # type: ignore[index]
        made = self._compose(
            r"(  grafana:\n    <<: \*common\n)", r"\1" + line.replace("\\", "\\\\")
        )
        return made, f"echo {boards} > /tmp/go"

    def _compose(self, pattern: str, text: str) -> str:
        path = self.desk.desk / "docker-compose.yaml"
        changed, count = re.subn(pattern, text, path.read_text())
        assert count == 1
        return self.desk.commit(path.name, changed)

    def _bucket(self) -> str:
        server = Influx(self.keys.influxdb, self.keys.operator, self.keys.org)
        found = table(server.json("GET", "/api/v2/buckets", query={"name": ATTIC}))
        return str(next(rows(found.get("buckets")))["id"])

    def _token(self) -> str:
        """Give the id of the token that may only read, which clients go on using."""
        tokens = self.before["influxdb"]["tokens"]  # type: ignore[index]
        (found,) = (one for one, about in tokens.items() if about == "demo: read")
        return str(found)

    def go(self, service: str, command: str) -> None:
        """Give the word to the bad version."""
        docker("exec", self.hub.container(service), "sh", "-c", command)

    def spoilt(self, service: str) -> list[Path]:
        """List the folders with data of a service that were put aside."""
        return [*(self.hub.root / ".iotops" / "replaced").glob(f"*-sync-*/{service}")]


def looks(desk: Desk[HubUnderTest], keys: Keys) -> dict[str, object]:
    """Ask every service as its users would, and see what runs; no container's id."""
    hub, answers = desk.hub, judges.look(keys)
    assert judges.broken(answers) == []
    server = Influx(keys.influxdb, keys.operator, keys.org)
    points = {
        (bucket, row["_measurement"], row["_field"]): int(row["_value"])
        for bucket in (keys.bucket, ATTIC)
        for row in server.flux(
            f'from(bucket: "{bucket}") |> range(start: 0, stop: {FAR})'
            ' |> group(columns: ["_measurement", "_field"]) |> count()'
        )
    }
    images = {
        name: docker("inspect", "-f", "{{.Image}} {{.Config.Image}}", hub.container(name))
        for name in sorted(hub.running())
    }
    flows = [
        (hub.root / "nodered" / name).read_bytes() for name in ("flows.json", "flows_cred.json")
    ]
    return {
        **answers,
        "points": points,
        "lamp": retained(hub, LAMP),
        "flow files": flows,
        "images": images,
        "files": desk.edits(),
        "head": desk.head(),
    }


@pytest.fixture(scope="module")
def shared() -> Iterator[Seeded]:
    """A hub with content in every service that follows a desk; its health checks are quick."""
    for what in ("docker", "compose", "root", "restic", "git"):
        need(what)
    hub = made_hub(HubUnderTest, "iotops-return-")
    try:
        hurry(hub.repository, hub.password_file.read_text().strip())
        (hub.folder / "docker-compose.override.yaml").unlink(missing_ok=True)
        compose = hub.folder / "docker-compose.yaml"
        text = compose.read_text().replace("interval: 30s", "interval: 500ms")
        for name in ("mosquitto", "nodered", "influxdb", "grafana"):
            image = f'\\1"{lab().images[name].reference}"'
            text = re.sub(rf'(  {name}:\n    <<: \*common\n    image: )".*"', image, text)
        compose.write_text(text)
        up = hub.iotops("up")
        assert up.code == 0, up.err + up.out
        keys = seeded(hub)
        publish(hub, LAMP, "on")
        write_point(hub, 7)
        attic(keys)
        desk = Desk(hub, watch=2)
        yield Seeded(desk, keys, looks(desk, keys))
    finally:
        bad = f"{hub.project}-bad-influxdb:1"
        hub.remove()
        subprocess.run(["docker", "image", "rm", bad], capture_output=True, check=False)


def attic(keys: Keys) -> None:
    """Make a second bucket with a point."""
    server = Influx(keys.influxdb, keys.operator, keys.org)
    found = table(server.json("GET", "/api/v2/buckets", query={"name": keys.bucket}))
    org = next(rows(found.get("buckets")))["orgID"]
    server.json("POST", "/api/v2/buckets", {"orgID": org, "name": ATTIC, "retentionRules": []})
    where = {"org": keys.org, "bucket": ATTIC, "precision": "s"}
    server.call("POST", "/api/v2/write", "box,lid=shut things=3i 1700000000", query=where)


@pytest.fixture
def seed(shared: Seeded) -> Iterator[Seeded]:
    """The shared hub; afterwards all is as before, and the desk is at the good files again."""
    yield shared
    shared.desk.back()
    records = [
        json.loads(path.read_text())
        for path in (shared.hub.root / ".iotops" / "journal").glob("*.json")
    ]
    assert not [one for one in records if one["outcome"] == "running"]
    assert not [*(shared.hub.root / ".iotops" / "tmp").iterdir()]


WATCHED = Step("sync", "watch", "", 1)


@pytest.mark.parametrize(
    ("service", "says"),
    [
        ("influxdb", "influxdb did not come up: keeps restarting"),
        ("nodered", "nodered did not come up: keeps restarting"),
        ("grafana", "grafana did not come up: is unhealthy"),
    ],
)
def test_it_returns_by_itself(seed: Seeded, service: str, says: str) -> None:
    others, aside = seed.others(service), {*seed.spoilt(service)}
    bad, command = seed.spoil(service)
    held = Held(seed.hub, "sync", "apply", "--yes")
    assert held.until(WATCHED), held.errors()
    seed.go(service, command)
    code, said = held.end(), held.errors()
    assert code == 1, said
    assert f"the commit {bad[:8]} was returned from: {says}" in said
    assert f"the data of {service} is that of the snapshot taken before" in said
    assert "not well either" not in said and "Traceback" not in said
    assert seed.looks() == seed.before
    assert seed.others(service) == others
    assert len({*seed.spoilt(service)} - aside) == 1  # nothing is thrown away
    state = seed.desk.sync_state()
    assert state["returned"] == bad and says in state["why"]
    assert f"the commit {bad[:8]} was returned from" in seed.hub.iotops("status").out


def test_killed_before_it_spoils_and_killed_while_it_is_returned(seed: Seeded) -> None:
    """The bad version goes on by itself when nobody watches it any more."""
    bad, command = seed.spoil("influxdb")
    held = Held(seed.hub, "sync", "apply", "--yes")
    assert held.until(WATCHED), held.errors()
    held.signal(signal.SIGKILL)
    held.end()
    seed.go("influxdb", command)
    container, until = seed.hub.container("influxdb"), time.monotonic() + 60
    while docker("inspect", "-f", "{{.RestartCount}}", container).strip() == "0":
        assert time.monotonic() < until, docker("logs", container)
        time.sleep(0.1)
    up = seed.hub.iotops("up")
    assert up.code == 1 and "iotops resume" in up.err
    held = Held(seed.hub, "resume")
    assert any((one.name, one.service) == ("swap", "influxdb") for one in held.steps())
    held.signal(signal.SIGKILL)
    held.end()
    done = seed.hub.iotops("resume")
    assert done.code == 0, done.err + done.out
    assert seed.looks() == seed.before
    assert f"the commit {bad[:8]} was returned from" in seed.hub.iotops("status").out


def test_killed_while_it_returns_by_itself(seed: Seeded) -> None:
    """Its container is the same one all the time."""
    container = seed.hub.container("nodered")
    _, command = seed.spoil("nodered")
    held = Held(seed.hub, "sync", "apply", "--yes")
    assert held.until(WATCHED), held.errors()
    seed.go("nodered", command)
    assert held.until(Step("sync", "swap", "nodered", 1)), held.errors()
    held.signal(signal.SIGKILL)
    held.end()
    done = seed.hub.iotops("resume")
    assert done.code == 0, done.err + done.out
    assert seed.looks() == seed.before and seed.hub.container("nodered") == container


def test_what_mends_it_is_applied(seed: Seeded) -> None:
    """After all these returns the next good commit finds nothing in its way."""
    made = seed.desk.commit("note.md", "all is well\n")
    done = seed.desk.apply()
    assert done.code == 0, done.err + done.out
    assert seed.desk.head() == made
    assert "returned" not in seed.desk.sync_state()
