"""The files of a new hub: the built-in template filled in, secrets, Mosquitto's password file.

Everything here is text and bytes; nothing is written. Not here: where the files go and to whom
they belong (`setup.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import string
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from iotops.errors import SettingsError, UsageError

IMAGES: Mapping[str, str] = {
    "MOSQUITTO": "eclipse-mosquitto:2.0.22",
    "NODERED": "nodered/node-red:4.1.13-22",
    "INFLUXDB": "influxdb:2.9.1",
    "GRAFANA": "grafana/grafana:12.4.0",
}
"""Full versions: short tags move (`eclipse-mosquitto:2` went from 2.0 to 2.1 in early 2026)."""

PORTS: Mapping[str, int] = {"mosquitto": 1883, "nodered": 1880, "influxdb": 8086, "grafana": 3000}
"""Published ports by service, as upstream has them."""

_PORT_NAMES = {
    "mosquitto": "MQTT_PORT",
    "nodered": "NODERED_PORT",
    "influxdb": "INFLUXDB_PORT",
    "grafana": "GRAFANA_PORT",
}

SECRETS = (
    "MQTT_PASSWORD",
    "NODERED_MQTT_PASSWORD",
    "NODERED_ADMIN_PASSWORD",
    "NODERED_TOKEN",
    "NODERED_CREDENTIAL_SECRET",
    "INFLUXDB_ADMIN_PASSWORD",
    "INFLUXDB_OPERATOR_TOKEN",
    "GRAFANA_ADMIN_PASSWORD",
    "GRAFANA_SECRET_KEY",
)
"""What is generated into `.env`."""

MQTT_USERS = {"iotops": "MQTT_PASSWORD", "nodered": "NODERED_MQTT_PASSWORD"}
"""Users of the broker, and the name of each one's password in `.env`."""

_NAMES = {"env": ".env", "gitignore": ".gitignore"}
"""Template files whose own name would act inside this project."""

_WORDS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Letters of a password that people type from paper: none looks like another."""


def into_git(folder: Path) -> str:
    """Give the commands that put an adopted hub folder under Git, without its secrets."""
    return (
        f"cd {folder} && printf '.env\\nflows/\\n' >> .gitignore && git init -b main; then"
        " commit what holds no secrets: sudo iotops sync adopt"
    )


def generate() -> dict[str, str]:
    """Make a new value for every secret: 32 characters of A-Z, a-z, 0-9, `-` and `_`.

    Nothing in that alphabet means anything to Compose, a shell, TOML or a URL; the first one is a
    letter, so that no program takes the value for an option.
    """
    first = string.ascii_letters
    return {name: secrets.choice(first) + secrets.token_urlsafe(24)[1:] for name in SECRETS}


def readable_password(groups: int = 6) -> str:
    """Make a password in groups of five letters, 24 bits each, fit for typing from paper."""
    made = ("".join(secrets.choice(_WORDS) for _ in range(5)) for _ in range(groups))
    return "-".join(made)


def mosquitto_line(user: str, password: str) -> str:
    """Give a user's line in Mosquitto's password file.

    PBKDF2-SHA512 with 101 rounds and a salt of 12 bytes, as `mosquitto_passwd` 2.0.22 writes it;
    2.1 reads it too, while 2.0 does not read the longer salts of 2.1.
    """
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101, 64)
    return f"{user}:$7$101${_base64(salt)}${_base64(digest)}\n"


def mosquitto_passwords(values: Mapping[str, str]) -> bytes:
    """Give the broker's whole password file for a hub's secrets."""
    return "".join(mosquitto_line(user, values[name]) for user, name in MQTT_USERS.items()).encode()


def render(facts: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, bytes]:
    """Fill in the template.

    Args:
        facts: ID, NAME, OWNER, ROOT, KIND, PROJECT, TZ, MQTT_ADDRESS and WEB_ADDRESS (where ports
            listen), MQTT_HOST and WEB_HOST (where iotops asks), and the secrets.
        ports: by service, instead of the usual ones.

    Returns:
        Content by path relative to the hub folder.

    Raises:
        UsageError: a port is no service's, or two services have the same.
    """
    values = {**IMAGES, **facts}
    for name, port in {**PORTS, **_checked(ports)}.items():
        values[_PORT_NAMES[name]] = str(port)
    made: dict[str, bytes] = {}
    for path, text in template().items():
        escape = _ESCAPES.get(PurePosixPath(path).name)
        made[path] = (_fill(text, values, escape) if escape else text).encode()
    return made


def template() -> dict[str, str]:
    """Read the built-in template: text by path relative to the hub folder, placeholders in it."""
    found: dict[str, str] = {}
    _collect(resources.files("iotops.actions") / "template", "", found)
    return found


def set_keys(text: str, table: str, values: Mapping[str, str]) -> str:
    """Set keys of one table in the text of a TOML file; comments and everything else stay.

    Args:
        table: its plain name; appended when there is none.
        values: texts by key.

    Raises:
        SettingsError: the file is written in a way that this cannot edit.
    """
    expected = tomllib.loads(text)
    present = expected.get(table)
    lines = [f'{key} = "{_quoted(value)}"' for key, value in values.items()]
    if present is None:
        text = text.rstrip("\n") + "\n\n" + "\n".join([f"[{table}]", *lines]) + "\n"
    else:
        head, header, rest = _split_at(text, table)
        body, following = _split_before_table(rest)
        for key, line in zip(values, lines, strict=True):
            old = re.search(rf"(?m)^[ \t]*{key}[ \t]*=.*$", body)
            if old is None:
                body = f"{line}\n{body}"
            else:
                body = body[: old.start()] + line + body[old.end() :]
        text = head + header + body + following
    expected[table] = {**(present if isinstance(present, dict) else {}), **values}
    try:
        right = tomllib.loads(text) == expected
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise SettingsError(
            f"the table [{table}] cannot be changed for you, the way it is written",
            hint=f"write it by hand: [{table}] " + ", ".join(lines),
        )
    return text


def toml_table(name: str, values: Mapping[str, str | int | bool]) -> str:
    """Give the text of a table for a TOML file.

    Args:
        name: its dotted name; a part that is no plain word is to be quoted. values: by key.
    """
    lines = [
        f'{key} = "{_quoted(value)}"' if isinstance(value, str) else f"{key} = {str(value).lower()}"
        for key, value in values.items()
    ]
    return "\n".join([f"[{name}]", *lines]) + "\n"


def set_secret(env: str, name: str, value: str) -> str:
    """Set one value in the text of a `.env`; everything else stays.

    Args:
        value: without single quotes and line ends.
    """
    line = f"{name}='{value}'"
    found = [*re.finditer(rf"(?m)^[ \t]*(?:export[ \t]+)?{re.escape(name)}[ \t]*=.*$", env)]
    if not found:
        return env.rstrip("\n") + f"\n{line}\n"
    last = found[-1]  # the one that counts
    return env[: last.start()] + line + env[last.end() :]


def add_table(text: str, table: str, values: Mapping[str, str | bool]) -> str:
    """Add one more table to an array of tables, at the end of the text of a TOML file.

    Args:
        table: its dotted name, as "repository.copies".
        values: texts and truths by key.

    Raises:
        SettingsError: the file is written in a way that this cannot edit.
    """
    lines = [
        f"{key} = {str(value).lower()}"
        if isinstance(value, bool)
        else f'{key} = "{_quoted(value)}"'
        for key, value in values.items()
    ]
    after = text.rstrip("\n") + "\n\n" + "\n".join([f"[[{table}]]", *lines]) + "\n"
    found: object
    try:
        found = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        found = None
    for part in table.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if not isinstance(found, list) or found[-1] != dict(values):
        raise SettingsError(
            f"a table [[{table}]] cannot be added for you, the way the file is written",
            hint=f"write it by hand: [[{table}]] " + ", ".join(lines),
        )
    return after


def _split_at(text: str, table: str) -> tuple[str, str, str]:
    found = re.search(rf"(?m)^[ \t]*\[[ \t]*{table}[ \t]*\][ \t]*(#.*)?\n?", text)
    if found is None:
        return text, "", ""  # written inline or with dotted keys: the check afterwards refuses
    return text[: found.start()], text[found.start() : found.end()], text[found.end() :]


def _split_before_table(text: str) -> tuple[str, str]:
    found = re.search(r"(?m)^[ \t]*\[", text)
    return (text, "") if found is None else (text[: found.start()], text[found.start() :])


def shipped(name: str) -> str:
    """Read a file of `hooks/` or `systemd/`: beside the package's code, or in a source checkout."""
    inside = resources.files("iotops") / name
    if inside.is_file():
        return inside.read_text("utf-8")
    return (Path(__file__).parents[2] / name).read_text("utf-8")


def time_zone() -> str:
    """Give this machine's time zone by name."""
    _, found, name = os.path.realpath("/etc/localtime").partition("/zoneinfo/")
    return name if found and re.fullmatch(r"[A-Za-z0-9_+/-]+", name) else "Etc/UTC"


def _collect(folder: Traversable, prefix: str, found: dict[str, str]) -> None:
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.is_dir():
            _collect(entry, f"{prefix}{entry.name}/", found)
        else:
            found[prefix + _NAMES.get(entry.name, entry.name)] = entry.read_text("utf-8")


def _fill(text: str, values: Mapping[str, str], escape: Callable[[str], str]) -> str:
    return re.sub(r"@([A-Z_]+)@", lambda match: escape(values[match[1]]), text)


def _quoted(text: str) -> str:
    """For double quotes in TOML and YAML: both take JSON's escapes, but neither takes what JSON
    leaves bare of control characters and line ends."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda one: f"\\u{ord(one[0]):04x}", plain)


_ESCAPES: Mapping[str, Callable[[str], str]] = {
    "docker-compose.yaml": lambda text: _quoted(text).replace("$", "$$"),
    "iotops.toml": _quoted,
    ".env": str,
}
"""Template files with placeholders, and what makes a value harmless in each."""


def _checked(ports: Mapping[str, int]) -> Mapping[str, int]:
    for name in ports:
        if name not in PORTS:
            raise UsageError(
                f"there is no service {name!r} to give a port", hint=f"one of: {', '.join(PORTS)}"
            )
    used = [*{**PORTS, **ports}.values()]
    twice = {port for port in used if used.count(port) > 1}
    if twice:
        raise UsageError(f"port {twice.pop()} is given to two services", hint="choose another one")
    return ports


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
