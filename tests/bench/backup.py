"""A backup with nothing changed, against the same restic calls made by a shell script.

In pairs, in one run: A is `iotops backup` on a whole hub in the lab, B a shell script that makes
the calls that A was seen to make, on a copy of the same snapshot in a repository of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.influx import grow
from tests.bench.memory import show
from tests.bench.report import machine, row
from tests.support.hubs import HubUnderTest, docker
from tests.support.influxd import WEEK, Client
from tests.support.lab import lab

WRAPPER = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
exec {restic} "$@"
"""


def seed(hub: HubUnderTest, series: int, files: int) -> None:
    """Fill the hub: five weeks of points in as many shards, and files that no service owns."""
    client = Client(
        f"http://127.0.0.1:{hub.ports['influxdb']}",
        hub.env_value("INFLUXDB_OPERATOR_TOKEN"),
        "home",
    )
    now = int(time.time()) // 600 * 600
    for week in range(5):
        for one in range(series):
            times = range(now - (week + 1) * WEEK, now - week * WEEK, 600)
            values = random.Random(one * 7 + week)
            client.write("iot", [f"t,s=s{one} v={values.gauss(20, 3):.3f} {at}" for at in times])
    folder = hub.root / "notes"
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:04d}.bin").write_bytes(os.urandom(20_000))


def bulk(hub: HubUnderTest, gigabytes: float) -> int:
    """Have the hub's InfluxDB hold a year of points, so many gigabytes of them."""
    client = Client(
        f"http://127.0.0.1:{hub.ports['influxdb']}",
        hub.env_value("INFLUXDB_OPERATOR_TOKEN"),
        "home",
    )
    container = hub.container("influxdb")

    def start() -> None:
        docker("start", container)
        done = hub.iotops("up", limit=1200)
        assert done.code == 0, done.err

    return grow(
        client,
        hub.root / "influxdb",
        int(gigabytes * 1e9),
        lambda: docker("stop", container),
        start,
    )


def observe(hub: HubUnderTest, log: Path, restic: Path) -> list[list[str]]:
    """See which calls of restic one backup makes."""
    folder = log.parent / "observed"
    folder.mkdir()
    wrapper = folder / "restic"
    wrapper.write_text(WRAPPER.format(log=shlex.quote(str(log)), restic=shlex.quote(str(restic))))
    wrapper.chmod(0o755)
    done = hub.iotops("backup", env={"PATH": f"{folder}:{os.environ['PATH']}"})
    assert done.code == 0, done.err
    return [line.split() for line in log.read_text().splitlines()]


def script(calls: list[list[str]], copy: Path, snapshot: str) -> str:
    """Write the shell script: each call once, in the same order, with the same options."""
    lines = ["set -e"]
    for argv in calls:
        words = [snapshot if len(word) == 64 else word for word in argv]
        if "backup" in words:
            at = words.index("--host")
            words[at + 1] = "bench"
            lines.append(f"(cd {shlex.quote(str(copy))} && restic {shlex.join(words)} >/dev/null)")
        else:
            lines.append(f"restic {shlex.join(words)} >/dev/null")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--gigabytes", type=float, default=0.0, help="of TSM beside that")
    chosen = parser.parse_args()
    restic = lab().restic[max(lab().restic)]
    base = Path(tempfile.mkdtemp(prefix="iotops-bench-", dir="/var/tmp"))
    hub = HubUnderTest(base, disk_size=(900 << 20) + int(chosen.gigabytes * 2.5e9))
    try:
        hub.make()
        for words in (["up"], ["backup"]):
            done = hub.iotops(*words)
            assert done.code == 0, done.err
        seed(hub, chosen.series, chosen.files)
        if chosen.gigabytes:
            print(f"{bulk(hub, chosen.gigabytes) / 1e9:.2f} GB of TSM", flush=True)
        done = hub.iotops("backup", limit=3600)
        assert done.code == 0, done.err
        calls = observe(hub, base / "calls", restic)
        env = {
            "PATH": f"{restic.parent}:{os.environ['PATH']}",
            "HOME": str(base),
            "RESTIC_REPOSITORY": str(base / "bare"),
            "RESTIC_PASSWORD_FILE": str(hub.password_file),
            "RESTIC_CACHE_DIR": str(base / "bare-cache"),
        }
        print(machine())
        print(f"restic {max(lab().restic)}; calls of one backup:")
        for argv in calls:
            print("  restic", *(word if len(word) < 60 else word[:8] for word in argv))
        text = _prepare(hub, env, calls, base) + _metadata(hub, base)
        times: dict[str, list[float]] = {"A": [], "B": []}
        last: dict[str, object] = {}
        for _ in range(chosen.pairs):
            began = time.perf_counter()
            done = hub.iotops("backup", "--json")
            times["A"].append(time.perf_counter() - began)
            assert done.code == 0, done.err
            last = done.result()
            began = time.perf_counter()
            subprocess.run(["sh", "-c", text], env=env, check=True)
            times["B"].append(time.perf_counter() - began)
        saved = last["saved"]
        assert isinstance(saved, dict)
        print(
            f"the snapshot: {saved['files']} files, {saved['bytes']} bytes;"
            f" new {saved['files_new']}, changed {saved['files_changed']},"
            f" {saved['data_added']} bytes added"
        )
        print(row("A  iotops backup, nothing changed", times["A"], "-"))
        print(row("B  the same restic calls and the metadata", times["B"], "-"))
        each = [a / b for a, b in zip(times["A"], times["B"], strict=True)]
        ratio = statistics.median(times["A"]) / statistics.median(times["B"])
        print(f"A / B of the medians {ratio:.2f}; pair by pair {min(each):.2f} to {max(each):.2f}")
        print("bar 1.10 with 5 GB")
        show(hub, "memory, nothing changed")
    finally:
        hub.remove()


def _metadata(hub: HubUnderTest, base: Path) -> str:
    """Give the request for InfluxDB's metadata, which a script of one's own would make, too."""
    header = base / "header"
    header.touch(mode=0o600)
    header.write_text(f"Authorization: Token {hub.env_value('INFLUXDB_OPERATOR_TOKEN')}\n")
    url = f"http://127.0.0.1:{hub.ports['influxdb']}/api/v2/backup/metadata"
    return f"\ncurl -fsS -H @{shlex.quote(str(header))} -o /dev/null {url}"


def _prepare(hub: HubUnderTest, env: dict[str, str], calls: list[list[str]], base: Path) -> str:
    """Make the script's own repository, as warm as the hub's, and give the script."""
    source = {**env, "RESTIC_REPOSITORY": str(hub.repository)}
    copy = base / "copy"
    take = ["restic", "restore", "latest", "--target", str(copy)]
    subprocess.run(take, env=source, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["restic", "init"], env=env, check=True, stdout=subprocess.DEVNULL)
    argv = ["restic", "backup", ".", "--json", "--host", "bench", "--tag", "iotops"]
    for _ in range(2):
        told = subprocess.run(argv, env=env, cwd=copy, check=True, capture_output=True, text=True)
    summary = json.loads(told.stdout.splitlines()[-1])
    return script(calls, copy, str(summary["snapshot_id"]))


if __name__ == "__main__":
    main()
