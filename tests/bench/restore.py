"""A restore of a whole hub, against `restic restore --verify` of the same snapshot.

In pairs, in one run: A is `iotops restore latest` on a hub in the lab, without the time in which
its services stop, start and are waited for and looked at; B is restic alone, onto the same disk,
and a sync, which a restore waits for before it stops anything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.backup import bulk, seed
from tests.bench.report import machine, row
from tests.support.hubs import HubUnderTest
from tests.support.lab import lab

SERVICES_OWN = ("stop", "start", "wait", "verify")
"""Steps whose length the servers decide: the bar leaves them out, the output names them."""


def restored(hub: HubUnderTest) -> tuple[float, dict[str, float]]:
    """Restore the latest snapshot and drop the old data; give all seconds, and those by step."""
    began = time.perf_counter()
    done = hub.iotops("restore", "latest", "--yes", "--json", limit=3600)
    seconds = time.perf_counter() - began
    assert done.code == 0, done.err
    steps: dict[str, float] = {}
    for line in done.out.splitlines():
        event = json.loads(line)
        if event.get("message_type") == "step_finished":
            steps[event["step"]] = steps.get(event["step"], 0.0) + event["seconds"]
    dropped = hub.iotops("undo", "--discard", "--yes")
    assert dropped.code == 0, dropped.err
    return seconds, steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of TSM")
    chosen = parser.parse_args()
    restic = lab().restic[max(lab().restic)]
    base = Path(tempfile.mkdtemp(prefix="iotops-bench-", dir="/var/tmp"))
    hub = HubUnderTest(base, disk_size=(900 << 20) + int(chosen.gigabytes * 2.5e9))
    try:
        hub.make()
        assert hub.iotops("up").code == 0
        seed(hub, 20, 200)
        print(f"{bulk(hub, chosen.gigabytes) / 1e9:.2f} GB of TSM", flush=True)
        done = hub.iotops("backup", limit=3600)
        assert done.code == 0, done.err
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(base),
            "RESTIC_REPOSITORY": str(hub.repository),
            "RESTIC_PASSWORD_FILE": str(hub.password_file),
            "RESTIC_CACHE_DIR": str(base / "bare-cache"),
        }
        target = hub.root / "bare"
        bare = [str(restic), "restore", "latest", "--verify", "--target", str(target), "--quiet"]
        times: dict[str, list[float]] = {"whole": [], "A": [], "B": []}
        for _ in range(chosen.pairs):
            seconds, steps = restored(hub)
            own = sum(steps.get(name, 0.0) for name in SERVICES_OWN)
            print("  ".join(f"{name} {took:.2f}" for name, took in steps.items()), flush=True)
            times["whole"].append(seconds)
            times["A"].append(seconds - own)
            subprocess.run(["sync"], check=True)
            began = time.perf_counter()
            subprocess.run(bare, env=env, check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["sync", "-f", target], check=True)
            times["B"].append(time.perf_counter() - began)
            shutil.rmtree(target)
            subprocess.run(["sync"], check=True)
        print(machine(), f"restic {max(lab().restic)}")
        print(row("   iotops restore, all of it", times["whole"], "-"))
        print(row("A  the same without the services' own time", times["A"], "-"))
        print(row("B  restic restore --verify", times["B"], "-"))
        ratio = statistics.median(times["A"]) / statistics.median(times["B"])
        print(f"A / B of the medians {ratio:.2f}; bar 1.25")
    finally:
        hub.remove()


if __name__ == "__main__":
    main()
