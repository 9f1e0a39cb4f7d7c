"""How much memory a backup takes: iotops itself, and restic beside it.

The kernel's own high-water mark of each process (`VmHWM`) is read while it lives. Once for many
files, once for many bytes, each as the first run (all new) and as the next one (nothing changed);
restic on its defaults and with `small_memory`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report import machine
from tests.support.hubs import HubUnderTest


def high_water(pid: int) -> int:
    """Give a process's largest resident size so far, in bytes; 0 when it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def restics(parent: int) -> list[int]:
    """List the restic processes that a process started."""
    try:
        threads = [*Path(f"/proc/{parent}/task").iterdir()]
        text = " ".join((one / "children").read_text() for one in threads)
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def watched(hub: HubUnderTest) -> tuple[int, int, float]:
    """Run a backup; give the high water of iotops and of its children (bytes), and its seconds."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "iotops", "backup", "--quiet", "--hub", str(hub.folder)],
        env={**os.environ, "PYTHONPATH": os.fspath(Path.cwd())},
    )
    own, others = 0, 0
    while child.poll() is None:
        own = max(own, high_water(child.pid))
        for pid in restics(child.pid):
            others = max(others, high_water(pid))
        time.sleep(0.01)
    assert child.returncode == 0, child.returncode
    return own, others, time.perf_counter() - began


def show(hub: HubUnderTest, name: str) -> None:
    """Measure one row and print it."""
    own, others, seconds = watched(hub)
    print(
        f"{name:<48} iotops {own / 1e6:6.1f} MB   restic {others / 1e6:6.1f} MB   {seconds:6.1f} s"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--megabytes", type=int, default=1024)
    chosen = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="iotops-bench-", dir="/var/tmp"))
    hub = HubUnderTest(base, disk_size=(8 * chosen.megabytes + 4096) << 20)
    try:
        hub.make()
        for words in (["up"], ["backup"]):
            done = hub.iotops(*words)
            assert done.code == 0, done.err
        print(machine())
        for small in (False, True):
            if small:
                settings = hub.folder / "iotops.toml"
                text = settings.read_text()
                settings.write_text(
                    text.replace("[repository]", "[repository]\nsmall_memory = true")
                )
            word = ", small_memory" if small else ""
            folder = hub.root / f"many-{small}"
            folder.mkdir()
            for number in range(chosen.files):
                (folder / f"{number}").write_bytes(os.urandom(300))
            show(hub, f"{chosen.files} small files, new{word}")
            show(hub, f"{chosen.files} small files, nothing changed{word}")
            with (hub.root / f"large-{small}").open("wb") as file:
                for _ in range(chosen.megabytes):
                    file.write(os.urandom(1 << 20))
            show(hub, f"{chosen.megabytes} MB in one file, new{word}")
        print("bar: iotops below 100 MB")
    finally:
        hub.remove()


if __name__ == "__main__":
    main()
