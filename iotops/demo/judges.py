"""The demo's judges: independent clients that hold the answers from before the disaster.

A judge looks at a running service the way its users do and writes down what it sees; the answers
from before and after must be equal. A service that does not answer is an answer too, and not an
equal one. They share no code with the captures. Not here: what was put there (`content.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from iotops.demo.content import BROKER, REMOVED, WRITER, Keys, count, grafana
from iotops.demo.wire import Influx, Mqtt, NodeRed, Web, rows, table, wait_until
from iotops.errors import IotopsError, Refused

FRESH_LIMIT = 30.0
"""Seconds for a fresh message to arrive through the restored flow."""

Answers = Mapping[str, object]
"""What a judge saw, by the name of the check; values of JSON."""


@dataclass(frozen=True)
class Check:
    """One comparison; `detail` tells both sides where they differ, else what is equal."""

    equal: bool
    detail: str


@dataclass(frozen=True)
class Verdict:
    """How a service came back: "verified" or "failed", with every check by name."""

    outcome: str
    checks: Mapping[str, Check]


def look(keys: Keys) -> dict[str, Answers]:
    """Ask all four services; what goes wrong stands in the answers.

    Returns:
        Answers by service.
    """
    return {name: _answers(asked, keys) for name, asked in QUESTIONS.items()}


def judge(before: Mapping[str, Answers], keys: Keys) -> dict[str, Verdict]:
    """Ask again and compare; then send a fresh message on its way through the restored hub."""
    after = look(keys)
    found: dict[str, dict[str, Check]] = {
        name: {check: _compare(then, after[name].get(check)) for check, then in answers.items()}
        for name, answers in before.items()
    }
    found["nodered"]["fresh message"] = _fresh(keys)
    return {
        name: Verdict(
            "verified" if checks and all(one.equal for one in checks.values()) else "failed",
            checks,
        )
        for name, checks in found.items()
    }


def broken(answers: Mapping[str, Answers]) -> list[str]:
    """List what a judge could not see; before the disaster there must be none."""
    return [
        f"{name}: {check}: {value.reason}"
        for name, checks in answers.items()
        for check, value in checks.items()
        if isinstance(value, _NoAnswer)
    ]


@dataclass(frozen=True, eq=False)
class _NoAnswer:
    """Not equal to anything, another one of its kind included."""

    reason: str


Question = Callable[[Keys], object]


def _answers(questions: Mapping[str, Question], keys: Keys) -> Answers:
    found: dict[str, object] = {}
    for check, question in questions.items():
        try:
            found[check] = question(keys)
        except IotopsError as error:
            found[check] = _NoAnswer(error.message)
    return found


def _compare(then: object, now: object) -> Check:
    if isinstance(now, _NoAnswer):
        return Check(False, now.reason)
    if then == now:
        return Check(True, _short(now))
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        parts = [f"{key}: was {then.get(key)!s:.80}, is {now.get(key)!s:.80}" for key in keys[:3]]
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        return Check(False, "; ".join(parts) + more)
    return Check(False, f"was {_short(then)}, is {_short(now)}")


def _short(value: object) -> str:
    if isinstance(value, dict):
        numbers = [one for one in value.values() if isinstance(one, int | float)]
        if numbers and len(numbers) == len(value) and not isinstance(numbers[0], bool):
            return f"{sum(numbers):,.0f} in {len(value)} series"
        return str(len(value))
    return str(value)[:40]


# ---- InfluxDB -----------------------------------------------------------------------------------


def _points(keys: Keys) -> object:
    return {name: int(value) for name, value in _by_series(keys, "count").items()}


def _sums(keys: Keys) -> object:
    return {name: round(float(value), 2) for name, value in _by_series(keys, "sum").items()}


def _by_series(keys: Keys, function: str) -> dict[str, str]:
    server = _reader(keys)
    found = server.flux(
        f'from(bucket: "{keys.bucket}") |> range(start: 0, stop: 2200-01-01T00:00:00Z)'
        f' |> group(columns: ["_measurement", "_field", "device"]) |> {function}()'
    )
    return {f"{row['device']} {row['_field']}": row["_value"] for row in found}


def _deleted(keys: Keys) -> object:
    left = count(_reader(keys), keys.bucket, f'r.device == "{REMOVED}"')
    return f"{left} points"


def _reader(keys: Keys) -> Influx:
    """Open InfluxDB with the old token that may only read the bucket."""
    server = Influx(keys.influxdb, keys.reader, keys.org)
    server.wait("/health")
    return server


def _tokens(keys: Keys) -> object:
    server = Influx(keys.influxdb, keys.operator, keys.org)
    found = rows(table(server.json("GET", "/api/v2/authorizations")).get("authorizations"))
    return {str(one.get("id")): str(one.get("description")) for one in found}


def _buckets(keys: Keys) -> object:
    server = Influx(keys.influxdb, keys.operator, keys.org)
    found = rows(
        table(server.json("GET", "/api/v2/buckets", query={"limit": "100"})).get("buckets")
    )
    return {str(one.get("id")): str(one.get("name")) for one in found}


# ---- Mosquitto ----------------------------------------------------------------------------------


def _logins(keys: Keys) -> object:
    return {user: _login(keys, user, word) for user, word in keys.users.items()}


def _strangers(keys: Keys) -> object:
    wrong = {f"{user}, wrong password": _login(keys, user, "wrong") for user in keys.users}
    return {"anonymous": _login(keys, "", ""), **wrong}


def _login(keys: Keys, user: str, password: str) -> str:
    try:
        with Mqtt(keys.broker, user, password):
            return "accepted"
    except Refused:
        return "refused"


def _retained(keys: Keys) -> object:
    with Mqtt(keys.broker, "iotops", keys.users["iotops"]) as link:
        return link.retained()


# ---- Node-RED -----------------------------------------------------------------------------------


def _revision(keys: Keys) -> object:
    headers = {"Node-RED-API-Version": "v2"}
    answer = table(_nodered(keys).json("GET", "/flows", headers=headers))
    return answer.get("rev")


def _nodes(keys: Keys) -> object:
    answer = _nodered(keys).json("GET", "/flows")
    return {str(one.get("id")): one for one in rows(answer)}


def _credentials(keys: Keys) -> object:
    server = _nodered(keys)
    broker = table(server.json("GET", f"/credentials/mqtt-broker/{BROKER}"))
    writer = table(server.json("GET", f"/credentials/http-request/{WRITER}"))
    return {
        "user at the broker": broker.get("user"),
        "password for the broker": broker.get("has_password"),
        "token for InfluxDB": writer.get("has_password"),
    }


def _nodered(keys: Keys) -> Web:
    """Log in with the old password; the login itself is part of what is judged."""
    Web("Node-RED", keys.nodered).wait("/auth/login")
    return NodeRed(keys.nodered, keys.admin["nodered"])


def _fresh(keys: Keys) -> Check:
    """Publish a reading as a device; it must come out of InfluxDB: every link of the chain works.

    Asked last: it adds a point, where the others count.
    """
    now = int(time.time() * 1000)
    message = f'{{"value": 21.5, "time": {now}}}'
    began = time.monotonic()

    def arrived() -> bool:
        link.publish("devices/kitchen/reading/fresh", message)
        return count(server, keys.bucket, 'r._field == "fresh"', now // 1000) == 1

    try:
        server = _reader(keys)
        with Mqtt(keys.broker, "kitchen", keys.users["kitchen"]) as link:
            wait_until(arrived, "a fresh reading does not arrive in InfluxDB", FRESH_LIMIT)
    except IotopsError as error:
        return Check(False, error.message)
    return Check(True, f"from sensor to InfluxDB in {time.monotonic() - began:.1f} s")


# ---- Grafana ------------------------------------------------------------------------------------


def _dashboards(keys: Keys) -> object:
    server = grafana(keys)
    server.wait("/api/health")
    found = rows(server.json("GET", "/api/search", query={"type": "dash-db"}))
    uids = [str(one.get("uid")) for one in found]
    return {
        uid: table(server.json("GET", f"/api/dashboards/uid/{uid}")).get("dashboard")
        for uid in uids
    }


def _folders(keys: Keys) -> object:
    found = rows(grafana(keys).json("GET", "/api/folders"))
    return {str(one.get("uid")): one.get("title") for one in found}


def _sources(keys: Keys) -> object:
    found = rows(grafana(keys).json("GET", "/api/datasources"))
    return {str(one.get("uid")): [one.get("name"), one.get("url")] for one in found}


def stand_in(keys: Keys) -> bool:
    """Tell whether what answers as Grafana is the lab's stand-in; it says so in its version."""
    answer = table(Web("Grafana", keys.grafana).json("GET", "/api/health"))
    return "standin" in str(answer.get("version"))


QUESTIONS: Mapping[str, Mapping[str, Question]] = {
    "influxdb": {
        "points": _points,
        "sums": _sums,
        "deleted series": _deleted,
        "tokens": _tokens,
        "buckets": _buckets,
    },
    "mosquitto": {"logins": _logins, "strangers": _strangers, "retained": _retained},
    "nodered": {"revision": _revision, "nodes": _nodes, "credentials": _credentials},
    "grafana": {"dashboards": _dashboards, "folders": _folders, "data sources": _sources},
}
"""What each service is asked, by the name of the check."""
