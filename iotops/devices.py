"""The broker's devices: who has a login of its own and below which topics, as text and as values.

`mosquitto/devices.toml` of the hub folder holds them, without any secret, and people may edit it:
a change here leaves their comments and their order alone. Not here: the rights that the broker
makes of it (`clients/mosquittousers.py`), and passwords.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

from iotops.errors import SettingsError, UsageError

FILE = "mosquitto/devices.toml"
"""Its place in the hub folder."""

HEAD = """\
# Devices with a login of their own at the broker. No secrets: their passwords lie, hashed, on the
# data disk. Changed by: iotops device add, iotops device rotate, iotops device remove
"""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""A name is a user of the broker, a level of topics, and a word on command lines."""
TOPIC = re.compile(r"[\w.:-]+(?:/[\w.:-]+)*")
"""Levels without wildcards, blanks and `$`, which the broker keeps for itself."""
TOPIC_LIMIT = 200
"""Characters; MQTT itself allows 65,535 bytes."""
KEYS = ("prefix", "commands")


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: its user at the broker.
        prefix: it may write and read below this topic, which is its own.
        commands: it may read below this topic, where others write what it shall do.
    """

    name: str
    prefix: str
    commands: str


def device(name: str, prefix: str = "", commands: str = "") -> Device:
    """Give a device, with the usual topics where none are named.

    Raises:
        UsageError: the name or a topic cannot be.
    """
    made = Device(name, prefix or f"devices/{name}", commands or f"commands/{name}")
    for fault in _faults(made):
        raise UsageError(fault, hint="iotops device add --help")
    return made


def parse(text: str) -> dict[str, Device]:
    """Read the declared devices, by name, in the order of the file.

    Raises:
        SettingsError: with all faults.
    """
    faults: list[str] = []
    found: dict[str, Device] = {}
    document: dict[str, object] = {}
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        faults.append(f"is no TOML: {error}")
    faults += [f"{key}: unknown key" for key in document if key != "devices"]
    tables = document.get("devices", {})
    if not isinstance(tables, dict):
        faults.append("devices: must be tables, as [devices.kitchen]")
        tables = {}
    for name, table in tables.items():
        one = _device(str(name), table, faults)
        if one is not None:
            found[one.name] = one
    faults += overlaps(found.values())
    if faults:
        raise SettingsError(
            f"{FILE} has {len(faults)} fault{'s' if len(faults) != 1 else ''}:\n"
            + "\n".join(f"  {fault}" for fault in faults),
            faults=faults,
            hint=f"correct it: nano {FILE}, in the hub folder",
        )
    return found


def overlaps(devices: Iterable[Device]) -> Iterator[str]:
    """Say where a topic of one device is one of another's, or lies below or above it.

    `devices/NAME` stays NAME's also where its prefix is another one: the template of a hub gives
    every user that topic.
    """
    chosen = sorted(devices, key=lambda one: one.name)
    for number, one in enumerate(chosen):
        for other in chosen[number + 1 :]:
            for here, there in product(_topics(one), _topics(other)):
                if f"{here}/".startswith(f"{there}/") or f"{there}/".startswith(f"{here}/"):
                    yield f"{here!r} of {one.name} and {there!r} of {other.name} overlap"


def _topics(one: Device) -> frozenset[str]:
    return frozenset({one.prefix, one.commands, f"devices/{one.name}"})


def added(text: str, new: Device) -> str:
    """Give the text with one more device at its end.

    Raises:
        SettingsError: the file is written in a way that this cannot edit.
    """
    lines = [f"[devices.{_key(new.name)}]"]
    lines += [f'{key} = "{getattr(new, key)}"' for key in KEYS]
    before = text.rstrip("\n") if text.strip() else HEAD.rstrip("\n")
    after = before + "\n\n" + "\n".join(lines) + "\n"
    return _proven(after, {**parse(text), new.name: new}, "\n".join(lines))


def without(text: str, name: str) -> str:
    """Give the text without one device; comments above its table stay.

    Raises:
        SettingsError: the file is written in a way that this cannot edit.
    """
    wanted = parse(text)
    wanted.pop(name, None)
    lines = text.splitlines(keepends=True)
    heads = [number for number, line in enumerate(lines) if line.lstrip().startswith("[")]
    for here, following in pairwise([*heads, len(lines)]):
        if not re.fullmatch(_header(name), lines[here].strip()):
            continue
        end = following
        # What stands directly above the next table belongs to that one.
        while end > here + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
            end -= 1
        del lines[here:end]
        break
    after = re.sub(r"\n{3,}", "\n\n", "".join(lines)).rstrip("\n") + "\n"
    return _proven(after, wanted, f"without the table [devices.{_key(name)}]")


def _proven(after: str, wanted: Mapping[str, Device], by_hand: str) -> str:
    try:
        right = parse(after) == wanted
    except SettingsError:
        right = False
    if not right:
        raise SettingsError(
            f"{FILE} cannot be changed for you, the way it is written",
            hint=f"write it by hand: {by_hand}",
        )
    return after


def _device(name: str, table: object, faults: list[str]) -> Device | None:
    """Read one table; what is wrong with it is added to the faults."""
    where = f"devices.{_key(name)}"
    if not isinstance(table, dict):
        faults.append(f"{where}: must be a table")
        return None
    told = [f"{where}.{key}: unknown key" for key in table if key not in KEYS]
    texts = {key: table.get(key, "") for key in KEYS}
    told += [f"{where}.{key}: must be text" for key, one in texts.items() if type(one) is not str]
    if told:
        faults += told
        return None
    one = Device(
        name,
        str(texts["prefix"]) or f"devices/{name}",
        str(texts["commands"]) or f"commands/{name}",
    )
    wrong = [f"{where}: {fault}" for fault in _faults(one)]
    faults += wrong
    return None if wrong else one


def _faults(one: Device) -> Iterator[str]:
    if not NAME.fullmatch(one.name):
        yield (
            f"{one.name!r} cannot name a device: letters, digits, `_`, `.` and `-`, at most 63,"
            " a letter or digit first"
        )
        return
    for what, topic in (("prefix", one.prefix), ("commands", one.commands)):
        if len(topic) > TOPIC_LIMIT or not TOPIC.fullmatch(topic):
            yield (
                f"{topic!r} cannot be its {what}: levels of letters, digits, `_`, `.`, `:` and"
                " `-`, with `/` between them and no wildcards"
            )


def _key(name: str) -> str:
    """Write a name as a key of TOML; only what a bare key may hold goes without quotes."""
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return name
    quoted = "".join(
        f"\\u{ord(one):04x}" if ord(one) < 32 or ord(one) == 127 else one
        for one in name.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{quoted}"'


def _header(name: str) -> str:
    """Give an expression for the header of a device's table, quoted or not, with a comment."""
    word = re.escape(name)
    return rf"\[\s*devices\s*\.\s*(?:\"{word}\"|'{word}'|{word})\s*\]\s*(?:#.*)?"
