#!/usr/bin/env python3
"""The lab: Docker, Compose, restic and the four servers, whatever this machine can reach.

``up`` sets up what is missing, ``run -- CMD ...`` runs a command in the lab, ``status`` tells what
is used, ``down`` ends what ``up`` started. Where the official images can be had they are used;
elsewhere the same servers are built from package registries and kept in a cache outside the
checkout. This is the standard library only: it runs before any virtual environment exists.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

# Run as a script, from any folder: the parts are found from the checkout's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.lab import engine, images, programs
from tests.lab.places import LAB_REPOSITORY, LINES, OFFICIAL, cache, lab_file, override_file
from tests.lab.shell import LabError, lock, read_json, say, write_if_changed, write_json

Value = TypeVar("Value")


class Missing(dict[str, str]):
    """What could not be had, with the reason; everything else goes on without it."""

    def attempt(self, name: str, get: Callable[[], Value]) -> Value | None:
        """Run one part of the set-up; a ``LabError`` is noted under its name."""
        try:
            return get()
        except LabError as error:
            self[name] = str(error)
            say(f"{name} is not to be had: {error}")
            return None


def up(refresh: bool = False) -> bool:
    """Set up whatever is missing and describe the lab. True if ``dockerd`` was started here."""
    started = False
    with lock(cache() / "lock"):
        missing = Missing()
        if refresh:
            images.forget_refusals()
        missing.attempt("host tools", programs.host_tools)
        for program, package in programs.PAPER_TOOLS.items():
            missing.attempt(program, partial(programs.tool, program, package))
        for release, version in programs.RESTIC.items():
            missing.attempt(f"restic {version}", partial(programs.restic, release))
        servers = {
            **{
                name: missing.attempt(name, partial(programs.server, name))
                for name in programs.SERVERS
            },
            "moto_server": missing.attempt("moto_server", programs.moto),
        }
        answered = missing.attempt("engine", engine.start)
        found: dict[str, images.Image] = {}
        compose = None
        if answered is None:
            missing.update(dict.fromkeys(LAB_REPOSITORY, "no Docker Engine"))
        else:
            started = answered[1]
            compose = missing.attempt("compose", engine.compose)
            for name in (*OFFICIAL, *LINES, "base"):
                image = missing.attempt(name, partial(images.get, name, refresh))
                if image is not None:
                    found[name] = image
        place = programs.influxd_folder()
        built = {
            name: str(place / name) if (place / name).is_file() else None
            for name in ("influxd", "influx")
        }
        write_json(
            lab_file(),
            {
                "engine": answered[0] if answered else None,
                "compose": compose,
                "restic": programs.restic_have(),
                "images": found,
                "programs": {**built, **servers},
                "not_had": missing,
            },
        )
        write_if_changed(override_file(), _override(found))
    if missing:
        say(f"not to be had: {', '.join(missing)}")
    return started


def _override(found: dict[str, images.Image]) -> str:
    """The Compose override: only services whose official image is not the one in use."""
    lines = ["# Made by the lab: this hub runs on the lab's own builds of these servers."]
    own = {name: found[name] for name in OFFICIAL if name in found and not found[name]["official"]}
    lines.append("services:" if own else "services: {}")
    for name, image in own.items():
        note = "    # a stand-in, not the real server" if image["stand_in"] else ""
        lines += [
            f"  {name}:",
            f"    image: {image['reference']}{note}",
            "    pull_policy: never",
        ]
    return "\n".join(lines) + "\n"


def status() -> int:
    """Print what the lab consists of, and whether its engine answers now."""
    lab = read_json(lab_file())
    if not lab:
        print("not set up: run 'lab.py up'")
        return 1
    now = engine.engine_version()
    pid = engine.started_pid()
    how = f"dockerd started by the lab, process {pid}" if pid else "not started by the lab"
    print(f"engine        {lab['engine']} ({how if now else 'does not answer now'})")
    print(f"compose       {lab['compose']}")
    restic = lab["restic"]
    if isinstance(restic, dict):
        print(f"restic        {', '.join(sorted(restic))}")
    described = lab["images"]
    for name, image in described.items() if isinstance(described, dict) else ():
        kind = "STAND-IN" if image["stand_in"] else "official" if image["official"] else "lab build"
        print(f"{name:<13} {image['version']:<9} {image['reference']} ({kind})")
    built = lab["programs"]
    for name, path in built.items() if isinstance(built, dict) else ():
        print(f"{name:<13} {path or 'not built'}")
    refused = lab["not_had"]
    for name, reason in refused.items() if isinstance(refused, dict) else ():
        print(f"NOT HAD       {name}: {reason}")
    print(f"details       {lab_file()}")
    return 0 if now else 1


def _in_foreground() -> bool:
    """Whether a Ctrl-C at the terminal reaches the command without our help."""
    try:
        with Path("/dev/tty").open() as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def run_in_lab(command: list[str]) -> int:
    """Run a command in the lab and return its exit code; ends the engine if this started it."""
    started = up()
    restic = programs.restic_chosen()
    search = [str(Path(restic).parent)] if restic else []
    env = {
        **os.environ,
        "IOTOPS_LAB": str(lab_file()),
        "PATH": os.pathsep.join([*search, os.environ.get("PATH", os.defpath)]),
    }
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if not (number == signal.SIGINT and _in_foreground()):
            for child in children:
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    try:
        try:
            children.append(subprocess.Popen(command, env=env))
        except OSError as error:
            say(f"{command[0]} cannot be run: {error.strerror}")
            return 127
        code = children[0].wait()
        return code if code >= 0 else 128 - code
    finally:
        if started:
            engine.stop()


def main(arguments: list[str]) -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="lab.py", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    upward = commands.add_parser("up", help="set up whatever is missing")
    upward.add_argument("--refresh", action="store_true", help="try the official images again")
    commands.add_parser("down", help="end what 'up' started")
    commands.add_parser("status", help="tell what is used")
    runner = commands.add_parser("run", help="run a command in the lab: run -- CMD ...")
    runner.add_argument("words", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "up":
            up(chosen.refresh)
            return status()
        if chosen.command == "down":
            say("dockerd ended" if engine.stop() else "the lab started no dockerd that still runs")
            return 0
        if chosen.command == "status":
            return status()
        words = chosen.words[1:] if chosen.words[:1] == ["--"] else chosen.words
        if not words:
            parser.error("run needs a command: run -- CMD ...")
        return run_in_lab(words)
    except LabError as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
