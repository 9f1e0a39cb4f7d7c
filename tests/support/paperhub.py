"""A hub on paper: real files on a real folder, and programs that repeat what was recorded.

For what is judged by files and by what Docker and restic say about themselves: no engine, no
repository. Not here: any assertion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from iotops import disk
from iotops.hub import Hub

ID = "0123456789abcdef"


class PaperHub:
    """One hub below a temporary folder.

    Args:
        base: an empty folder; `bin` in it is to be first on PATH.

    Attributes:
        folder: the hub folder. root: the data root, a claimed plain folder. bin: the programs.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder, self.root, self.bin = base / "hub", base / "data", base / "bin"
        for folder in (self.folder, self.root, self.bin):
            folder.mkdir()
        (self.folder / ".env").touch(0o600)
        (base / "password").touch(0o600)
        (self.folder / "compose.yaml").touch()
        disk.claim(self.root, "folder", ID, "h")
        self.write()
        self.compose({})
        self.restic("0.18.0")

    def write(self, services: str = "") -> None:
        """Write the settings, with tables of services in TOML."""
        (self.folder / "iotops.toml").write_text(
            f'[hub]\nid = "{ID}"\nname = "h"\nowner = "root"\n'
            f'[data]\nroot = "{self.root}"\nkind = "folder"\n'
            f'[paths]\nstate = "{self.base}/state"\nrun = "{self.base}/run"\n'
            f'[repository]\nurl = "{self.base}/repository"\n'
            f'password_file = "{self.base}/password"\n'
            f'credentials_file = "{self.base}/credentials"\n' + services
        )
        (self.base / "credentials").touch(0o600)

    def compose(self, services: Mapping[str, object]) -> None:
        """Say what `docker compose config` answers; no container is there."""
        document = self.base / "compose.json"
        document.write_text(json.dumps({"name": "paper", "services": services}))
        (self.bin / "docker").write_text(
            '#!/bin/sh\ncase "$*" in\n'
            '    *"compose version"*) echo 2.26.1 ;;\n'
            f"    *config*) cat '{document}' ;;\n"
            "    version*) echo 26.1.5 1.45 ;;\n"
            "esac\n"
        )
        (self.bin / "docker").chmod(0o755)

    def restic(self, version: str) -> None:
        """Say which restic is installed; there is no repository."""
        (self.bin / "restic").write_text(
            '#!/bin/sh\nif [ "$1" = version ]; then\n'
            f"    echo restic {version} compiled with go1.22 on linux/arm64\n"
            "else\n    echo Fatal: repository does not exist >&2\n    exit 10\nfi\n"
        )
        (self.bin / "restic").chmod(0o755)

    def open(self) -> Hub:
        """Open the hub as the next command would."""
        return Hub.open(self.folder)
