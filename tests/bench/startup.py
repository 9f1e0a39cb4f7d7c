"""How long the command line takes to answer: `--version`, and `status` of a hub with a history."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from iotops import disk
from iotops.journal import KEPT_RUNS, Journal, StateFile
from tests.bench.report import machine, row

RUNS = 21
HUB = "0123456789abcdef"


def measure(name: str, argv: list[str], bar: str) -> None:
    """Run a command some times; the first run warms the disk's cache and does not count.

    The processor's time is given beside: on a busy machine it is the honest one.
    """
    found, used = [], []
    for _ in range(RUNS + 1):
        before, began = _processor(), time.perf_counter()
        subprocess.run(argv, check=False, capture_output=True)
        found.append(time.perf_counter() - began)
        used.append(_processor() - before)
    print(row(name, found[1:], bar) + f"   processor {statistics.median(used[1:]):.3f} s")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_hub(folder: Path) -> None:
    """Make what `status` reads: settings, sentinel, a full journal, the state file."""
    root = folder / "data"
    root.mkdir()
    disk.claim(root, "folder", HUB, "bench")
    (folder / "iotops.toml").write_text(
        f'[hub]\nid = "{HUB}"\nname = "bench"\nowner = "root"\n'
        f'[data]\nroot = "{root}"\nkind = "folder"\n'
        f'[paths]\nstate = "{folder}/state"\nrun = "{folder}/run"\n'
        '[services.mosquitto]\nkind = "mosquitto"\n[services.influxdb]\nkind = "influxdb"\n'
        '[services.nodered]\nkind = "nodered"\n[services.grafana]\nkind = "grafana"\n'
    )
    journal, state = Journal(disk.layout(root).journal), StateFile(folder / "state", HUB)
    for _ in range(KEPT_RUNS):
        run = journal.begin("backup", root=str(root))
        run.note(services={name: "captured" for name in ("mosquitto", "influxdb", "grafana")})
        run.close("complete")
    state.finished(run.record)


def main() -> None:
    """Measure and print."""
    program = str(Path(sys.executable).with_name("iotops"))
    with tempfile.TemporaryDirectory(prefix="iotops-bench-") as name:
        folder = Path(name)
        make_hub(folder)
        status = [program, "status", "--hub", name]
        assert subprocess.run(status, check=False, capture_output=True).returncode == 0
        print(machine())
        measure("python -c pass", [sys.executable, "-c", "pass"], "-")
        measure("iotops --version", [program, "--version"], "0.15 s")
        measure("iotops --help", [program, "--help"], "-")
        measure("iotops status", status, "0.3 s")
        measure("iotops status --json", [*status, "--json"], "0.3 s")


if __name__ == "__main__":
    main()
