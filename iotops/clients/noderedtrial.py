"""Node-RED's `settings.js`, loaded by the node of the image that would run, and asked what it says.

The container has the service's variables and folders, all of them read-only, and no network. The
file is a program of its owner's and may do anything it likes to itself. Of an error only words are
taken that cannot hold a value. Not here: whether the settings are good ones
(`services/nodered.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iotops.clients.composemodel import ServiceModel
from iotops.clients.dockerprogram import KEPT
from iotops.clients.stack import ENDING, Stack
from iotops.config import Secret
from iotops.errors import StackError

LIMIT = 60.0
"""Seconds for the container."""

USUAL = "/data/settings.js"
"""Where Node-RED looks without `--settings` (the image starts it with `--userDir /data`)."""

_SCRIPT = r"""
"use strict";
const file = process.argv[1];
const mark = "\niotops-trial ";
function tell(answer) {
    require("fs").writeSync(1, mark + JSON.stringify(answer) + "\n");
    process.exit(0);
}
try {
    const settings = require(file);
    const known = settings !== null && typeof settings === "object";
    tell({
        object: known,
        admin: known && Boolean(settings.adminAuth),
        port: known ? settings.uiPort : undefined,
        secret: known ? settings.credentialSecret : undefined,
    });
} catch (error) {
    const kind = (error && error.name) || "";
    const at = new RegExp(file.replace(/[.*+?^${}()|[\]\\]/g, "\\$&") + ":(\\d+)");
    const place = at.exec(String(error && error.stack));
    // The words of these two quote the file, and what is not quoted right may be a password.
    const quoting = kind === "SyntaxError" || kind === "ReferenceError";
    tell({
        failed: true,
        kind: kind,
        line: place ? Number(place[1]) : 0,
        code: (error && error.code) || "",
        words: quoting ? "" : String((error && error.message) || "").split("\n")[0],
    });
}
"""


@dataclass(frozen=True)
class Loaded:
    """What came of loading the settings.

    Attributes:
        failure: why they cannot be loaded; empty = they can.
        admin: whether there is an `adminAuth`. port: `uiPort`, 0 = not given.
        secret: the `credentialSecret`; None = not given, so that Node-RED makes one.
        plain: `credentialSecret: false`: credentials are not encrypted.
    """

    failure: str = ""
    admin: bool = False
    port: int = 0
    secret: Secret | None = field(default=None, repr=False)
    plain: bool = False


def path_of(model: ServiceModel) -> str:
    """Give the place in the container of the settings that Node-RED will load."""
    words = list(model.command)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in ("--settings", "-s"):
            return value if equals else [*words, USUAL][number + 1]
    return USUAL


def trial(stack: Stack, model: ServiceModel) -> Loaded:
    """Load the settings of a service as its image would.

    Args:
        stack: of the Compose project that holds the candidate.
        model: the service in it; its image must be here.

    Raises:
        StackError: the container could not be started, or node has not what it needs.
        TimedOut: it did not end.
    """
    path = path_of(model)
    ended = stack.run_once(
        model.name,
        [*ENDING, "node", "-e", _SCRIPT, path],
        user=model.user,
        shown=[*_shown(model)],
        network=False,
        declared=True,
        limit=LIMIT,
        environment={key: text for key, text in model.environment.items() if key not in KEPT},
    )
    _, mark, answer = ended.out.rpartition("\niotops-trial ")
    if not mark:
        if ended.code in (126, 127):
            raise StackError(f"the image {model.image} has no program node, or no timeout")
        return Loaded(f"node ended with code {ended.code} before it had loaded {path}")
    return read(path, answer)


def _shown(model: ServiceModel) -> Iterator[tuple[Path, str]]:
    """Yield what the container gets of this machine: no sockets, no devices."""
    for mount in (*model.mounts, *model.given):
        source = mount.source.resolve() if mount.source is not None else None
        if source is not None and (source.is_dir() or source.is_file()):
            yield source, mount.target


def read(path: str, answer: str) -> Loaded:
    """Read what the container told of the settings at a path."""
    try:
        told = json.loads(answer)
    except json.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        return Loaded(f"what node told of {path} cannot be read")
    if told.get("failed"):
        return Loaded(_failure(path, told))
    if told.get("object") is not True:
        return Loaded(f"{path} exports no object: it needs module.exports = {{...}}")
    secret, port = told.get("secret"), told.get("port")
    return Loaded(
        admin=told.get("admin") is True,
        port=int(str(port)) if str(port or "").isdecimal() else 0,
        secret=Secret(secret) if isinstance(secret, str) and secret else None,
        plain=secret is False,
    )


def _failure(path: str, told: Mapping[str, object]) -> str:
    line = told.get("line")
    where = f"{path}, line {line}" if line else path
    if told.get("code") == "MODULE_NOT_FOUND":
        return f"{where}: it, or a module that it requires, is not there"
    kind, words = str(told.get("kind") or "Error"), str(told.get("words") or "")
    meaning = {
        "SyntaxError": "it is not JavaScript",
        "ReferenceError": "it uses a name that is not defined",
    }.get(kind, words)
    return f"{where}: {meaning or kind}"
