"""One InfluxDB, its staging folder and the product's service for it, for tests of single faults.

Runs as a program also, for faults that need a process of their own: `python -m
tests.support.influxbench ROOT URL TOKEN STAGING` captures once and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from iotops.clients.compose import Stack
from iotops.clients.staging import Staged, Staging
from iotops.config import Secret
from iotops.errors import IotopsError
from iotops.model import Captured, Mode, ServiceRecord
from iotops.services.base import Place
from iotops.services.influxdb import Influxdb, InfluxdbOptions


@dataclass(frozen=True)
class Made:
    """What a capture gave."""

    captured: Captured
    staged: Staged
    staging: Staging

    @property
    def record(self) -> ServiceRecord:
        """The service's record, as a backup would write it."""
        return ServiceRecord(
            "influxdb",
            "influxdb",
            "influxdb",
            "influxdb",
            Mode.HOT,
            version=self.captured.version,
            counts=self.captured.counts,
            facts=self.captured.facts,
            artifacts=self.staged.artifacts,
            left_out=self.staged.left_out,
            warnings=(*self.captured.warnings, *self.staged.warnings),
            extra=self.captured.extra,
        )

    def hashes(self) -> dict[str, str]:
        """Give the hash of every staged file by its path."""
        return {one.path: one.sha256 for one in self.staged.artifacts if one.type == "file"}


class Bench:
    """A data root with an InfluxDB in it.

    Args:
        root: holds `influxdb`, and `.iotops` unless `work` is elsewhere.
        work: holds the staging folder and temporary files.
    """

    def __init__(self, root: Path, url: str, token: str, work: Path | None = None) -> None:
        self.root = root
        self.url = url
        self.token = token
        self.work = work or root / ".iotops"

    @property
    def staging_folder(self) -> Path:
        """Where captures go."""
        return self.work / "staging" / "influxdb"

    def service(self) -> Influxdb:
        """Give the product's service."""
        (self.work / "tmp").mkdir(parents=True, exist_ok=True)
        place = Place(
            name="influxdb",
            container="influxdb",
            folder=self.root / "influxdb",
            hub=self.root / "hub",
            tmp=self.work / "tmp",
            stack=cast(Stack, None),  # this kind asks the stack nothing
            secret={"TOKEN": Secret(self.token)}.get,
        )
        return Influxdb(place, InfluxdbOptions(kind="influxdb", url=self.url, token_env="TOKEN"))

    def capture(self, previous: Made | None = None) -> Made:
        """Capture once; links of an earlier capture are dropped first, as after a backup."""
        if previous is not None:
            previous.staging.drop_links()
        service = self.service()
        record = previous.record if previous is not None else None
        staging = Staging(
            self.root / "influxdb",
            self.staging_folder,
            prefix="influxdb",
            excludes=service.excludes,
            known={one.path: one for one in record.artifacts} if record is not None else None,
            memory=self.work / "memory",
        )
        captured = service.capture(staging, record)
        return Made(captured, staging.finish(), staging)

    def put_into(self, target: Path, made: Made) -> None:
        """Put a capture where a stopped server will find it, as a restore does."""
        shutil.copytree(self.staging_folder, target, symlinks=True)
        self.service().load(target, made.record, None)


def captured_by(*before: str, bench: Bench, work: Path) -> dict[str, object]:
    """Capture in a process of its own that was started through other programs."""
    command = [*before, sys.executable, "-m", "tests.support.influxbench"]
    done = subprocess.run(
        [*command, str(bench.root), bench.url, bench.token, str(work)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def main(argv: list[str]) -> None:
    """Capture once and print the counts, hashes and the memory's peak in kB, or the error."""
    root, url, token, work = argv
    try:
        made = Bench(Path(root), url, token, Path(work)).capture()
    except IotopsError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
    else:
        # Not getrusage: its peak knows the memory of the process that started this one, too.
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0])
        document = {"counts": dict(made.captured.counts), "links": made.hashes(), "peak": peak}
        print(json.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1:])
