"""The part of `init` that starts a new system card: what is asked, and what is shown.

Not here: the command itself (`init.py`), and the work (`actions/newcard.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from iotops.cli import render
from iotops.cli.render import Screen
from iotops.errors import UsageError


def new_card(
    out: Screen,
    url: str,
    folder: Path | None,
    name: str,
    snapshot: str,
    password_file: Path | None,
    credentials_file: Path | None,
    ssh_config: Path | None,
    state: Path | None,
) -> None:
    """Ask for the kit's strings, bring the hub folder back, and show what is next."""
    from iotops.actions import newcard

    if folder is None:
        raise UsageError(
            "say where the hub folder goes",
            hint="iotops init --from-repository URL /srv/iot-hub",
        )
    kit = newcard.read_kit("" if url == "-" else url, _typed(url))
    done = newcard.start(
        kit,
        folder.absolute(),
        hub=name,
        snapshot=snapshot,
        password_file=(password_file or newcard.PASSWORD_FILE).absolute(),
        credentials_file=(credentials_file or newcard.CREDENTIALS_FILE).absolute(),
        ssh_config=ssh_config.absolute() if ssh_config else None,
        state=state,
        report=out.report,
    )
    lines = [
        f"the hub {done.name} is back in {done.folder}, from the snapshot {done.snapshot[:8]}",
        *(f"written: {path}" for path in done.written),
        *render.findings(done.missing),
        f"next:  sudo mkdir -p /etc/iotops && sudo ln -sfn {done.folder} /etc/iotops/hub",
        f"       sudo {done.next}",
    ]
    out.result(done, lines)


def _typed(url: str) -> str:
    """Read the kit's strings: from a person without an echo, else from standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.read()
    lines = [str(click.prompt("password, as on the kit", hide_input=True, err=True))]
    if not url.startswith("/"):
        words = "a line of access (NAME=value) as on the kit, empty when there is no more"
        while line := click.prompt(
            words, default="", hide_input=True, show_default=False, err=True
        ):
            lines.append(str(line))
    return "\n".join(lines)
