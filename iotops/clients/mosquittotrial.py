"""A Mosquitto configuration tried by a broker of its own, in a container of the same image.

The broker listens where nobody reaches it, keeps its data in an empty folder, and sees the files
that its configuration names read-only. `--test-config` is not used: 2.0 has none, and that of 2.1.2
empties the database it finds (upstream issue 3712). It ends by itself after some seconds, also when
we were killed, and the engine removes its container then. Words and exit codes: Mosquitto 2.0.21
and 2.1.2, seen. Not here: what is wrong with what it says (`services/mosquitto.py`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from iotops.clients.composemodel import Mount, ServiceModel
from iotops.clients.stack import ENDING, Stack
from iotops.errors import StackError

LIMIT = 60.0
"""Seconds for the container; the broker itself is given a few."""

Lines = Sequence[tuple[str, str]]
"""The directives of a configuration: key and value, in their order."""

_SCRIPT = r"""
configuration=$1 port=$2 log=$3
if [ -n "$IOTOPS_USER" ]; then
    export XDG_CONFIG_HOME=/tmp/iotops-trial
    mkdir -p $XDG_CONFIG_HOME
    printf -- '-u %s\n-P %s\n' "$IOTOPS_USER" "$IOTOPS_PASSWORD" > $XDG_CONFIG_HOME/mosquitto_sub
fi
unset IOTOPS_USER IOTOPS_PASSWORD
ask() { mosquitto_sub -h 127.0.0.1 -p "$port" -t iotops/trial -E -W 3 > /dev/null 2>&1; }
mosquitto -c "$configuration" & broker=$!
turns=0
while sleep 0.2; kill -0 $broker 2> /dev/null; do
    turns=$((turns + 1))
    if [ -z "$port" ]; then
        [ $turns -lt 10 ] && continue
    else
        if [ -f "$XDG_CONFIG_HOME/mosquitto_sub" ]; then
            ask; code=$?
            [ $code -ne 0 ] && [ $code -ne 5 ] && [ $turns -lt 25 ] && continue
            echo "iotops-trial known $code"
            XDG_CONFIG_HOME=/nowhere
        fi
        ask; code=$?
        [ $code -ne 0 ] && [ $code -ne 5 ] && [ $turns -lt 25 ] && continue
        echo "iotops-trial nameless $code"
    fi
    echo "iotops-trial runs 0"
    kill $broker
    wait $broker
    exit 0
done
wait $broker
echo "iotops-trial ended $?"
[ -z "$log" ] || tail -n 20 "$log" >&2
"""
"""`mosquitto_sub` ends with 0 when it was let in and with 5 when it was not."""


@dataclass(frozen=True)
class Tried:
    """What came of a trial.

    Attributes:
        runs: the broker came up. version: of it, empty if it did not say.
        known: whether the known user was let in; None = it was not asked.
        nameless: whether anybody is let in without a name; None = it was not asked.
        words: its errors, without anything from its files but paths; empty = it gave none.
    """

    runs: bool
    version: str = ""
    known: bool | None = None
    nameless: bool | None = None
    words: str = ""


def trial(
    stack: Stack,
    model: ServiceModel,
    configuration: str,
    lines: Lines,
    *,
    tmp: Path,
    fixed: Path | None,
    instead: Mapping[str, Path] | None = None,
    login: tuple[str, str] | None = None,
) -> Tried:
    """Start a broker with a configuration, ask it, and end it.

    Args:
        stack: of the Compose project that holds the candidate.
        model: the broker's service in it; its image must be here.
        configuration: where the container reads its configuration.
        lines: what stands in it.
        tmp: a folder for the broker's data, on a disk.
        fixed: the folder of the configuration, a copy; what a container mounts out of it is shown
            whole, and may be written where it may be. What only a link in it leads to is live.
            None = there is no copy, all is live and the container's own image tries it: nothing
            may be written, and of a folder that the broker writes only the named files are seen.
        instead: files to be seen at a path in the container in place of what is there.
        login: name and password of a user whom it should let in.

    Raises:
        StackError, TimedOut: the container could not be started, or did not end.
    """
    with tempfile.TemporaryDirectory(prefix="broker-", dir=tmp) as folder:
        # The broker gives up root, and writes at its end; the folder above is ours alone.
        named = [*lines, ("", configuration)]
        mounts, shown = _mounts(model, named, Path(folder), fixed)
        replaced = instead or {}
        shown = [(source, target) for source, target in shown if target not in replaced]
        shown += [(path, inside) for inside, path in replaced.items()]
        ended = stack.run_once(
            model.name,
            [*ENDING, "sh", "-c", _SCRIPT, "trial", configuration, port(lines), _log(lines)],
            user=model.user,
            mounts=mounts,
            shown=shown,
            network=False,
            declared=fixed is not None,
            limit=LIMIT,
            environment={"IOTOPS_USER": login[0], "IOTOPS_PASSWORD": login[1]} if login else None,
        )
    if ended.code in (126, 127):
        raise StackError(f"the image {model.image} has no shell, or no timeout")
    said = dict(re.findall(r"^iotops-trial (\w+) (\d+)$", ended.out, re.MULTILINE))
    version = re.search(r"mosquitto version (\d+\.\S+) starting", ended.out + ended.err)
    return Tried(
        runs="runs" in said,
        version=version[1] if version else "",
        known=_answer(said.get("known")),
        nameless=_answer(said.get("nameless")),
        words=words(ended.out + "\n" + ended.err),
    )


def words(log: str) -> str:
    """Give a broker's errors without what it quotes of its files, but for their paths."""
    found: list[str] = []
    for line in log.splitlines():
        text = re.sub(r"^\d+: ", "", line.strip()).removesuffix(".")
        if "error" not in text.lower() or text.startswith("Warning"):
            continue
        text = re.sub(r"""(["'])(?!/)[^"']*\1""", r"\1...\1", text)
        text = re.sub(r"(file \"[^\"]+\"): .*", r"\1", text)
        text = re.sub(r"(for user) .*", r"\1 ...", text)
        text = re.sub(r"^(password-file: )?Error: ", "", text)
        if text not in found:
            found.append(text)
    return "; ".join(found[:4])


def _answer(code: str | None) -> bool | None:
    return {"0": True, "5": False}.get(code or "")


def port(lines: Lines) -> str:
    """Give the port of the first listener for plain MQTT; empty = there is none."""
    listeners: list[dict[str, str]] = []
    top: dict[str, str] = {}
    for key, value in lines:
        if key == "listener":
            listeners.append({"listener": value})
        elif key == "port":
            top["listener"] = value
        else:
            (listeners[-1] if listeners else top).setdefault(key, value)
    for one in (*listeners, top):
        number, _, address = one.get("listener", "").partition(" ")
        plain = one.get("protocol", "mqtt") == "mqtt"
        if plain and number.isdigit() and number != "0" and not one.keys() & _SEALED:
            if address.strip() in ("", "0.0.0.0", "127.0.0.1", "::"):
                return number
    return ""


_SEALED = {"certfile", "keyfile", "psk_hint"}


def _log(lines: Lines) -> str:
    """Give the file that the broker writes its errors into; empty = they come out of it."""
    for key, value in lines:
        kind, _, path = value.partition(" ")
        if key == "log_dest" and kind == "file":
            return path.strip()
    return ""


def _mounts(
    model: ServiceModel, lines: Lines, folder: Path, fixed: Path | None
) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Choose what the container gets: folders of its own to write, and files to read."""
    mounts: list[tuple[Path, str]] = []
    shown: list[tuple[Path, str]] = []
    for number, mount in enumerate((*model.mounts, *model.given)):
        source = mount.source
        ours = copied = False
        if source is not None and fixed is not None:
            ours = source.is_relative_to(fixed)
            copied = source.resolve().is_relative_to(fixed.resolve())
        elif source is not None:
            ours = mount.read_only
        if source is not None and (source.is_file() or (ours and (mount.read_only or copied))):
            if source.exists():
                place = mounts if copied and not mount.read_only and source.is_dir() else shown
                place.append((source.resolve(), mount.target))
        elif mount.kind in ("bind", "volume"):
            own = folder / str(number)
            own.mkdir()
            own.chmod(0o777)
            mounts.append((own, mount.target))
            shown += _named(mount, lines)
    return mounts, shown


def _named(mount: Mount, lines: Lines) -> Iterator[tuple[Path, str]]:
    """Yield the files of a folder that the configuration names."""
    if mount.source is None:
        return
    done: set[str] = set()
    for key, value in lines:
        inside = PurePosixPath(value)
        if key == "persistence_location" or not value.startswith("/") or value in done:
            continue
        if inside.is_relative_to(mount.target) and str(inside) != mount.target:
            here = mount.source / inside.relative_to(mount.target)
            if here.exists() and not here.is_symlink():
                done.add(value)
                yield here, value
