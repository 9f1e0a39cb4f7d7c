"""InfluxDB's capture against the vendor's `influx backup` on the same server, and the TSM check.

A real influxd is started on a folder whose weekly shards were filled with files in its own form:
whole numbers of high entropy, which it stores as they are, so that gigabytes are made in a minute
and its own queries read them. Not here: restic, which `tests/bench/backup.py` measures.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iotops.clients import files
from iotops.clients.tsm import check_tsm
from tests.bench.report import machine, row
from tests.support.influxbench import Bench, Made, captured_by
from tests.support.influxd import WEEK, Client, Influxd
from tests.support.lab import lab
from tests.support.tsmwriter import run_times, uvarint

WEEKS = 52
SERIES = 50
POINTS = 1000
STEP = 10**8
"""Points in a block, and the unit in which their distance is written (ns)."""


@dataclass(frozen=True)
class Measured:
    """One measurement: seconds, requests to the server, bytes written."""

    seconds: float
    requests: int
    written: int


def fill(server: Influxd, size: int) -> int:
    """Start a server and fill it; see `grow`."""
    server.start()
    server.setup()
    return grow(server.client, server.folder, size, server.stop, server.start)


def grow(
    client: Client,
    folder: Path,
    size: int,
    stop: Callable[[], object],
    start: Callable[[], object],
) -> int:
    """Make a shard for each week by the server, and a large file in each while it stands.

    Args:
        folder: the server's data. size: bytes. stop, start: end the server, and start it again.

    Returns:
        The bytes of all TSM files.
    """
    now = int(time.time())
    weeks = [now - now % 60 - (week + 1) * WEEK for week in range(WEEKS)]
    for at in weeks:
        client.write("iot", [f"bulk,s=s{n:02d} v=0i {at}" for n in range(SERIES)])
    client.flush()
    windows = {}
    for bucket in client.manifest():
        if bucket["bucketName"] == "iot":
            for group in bucket["retentionPolicies"][0]["shardGroups"]:
                begins = time.strptime(group["startTime"], "%Y-%m-%dT%H:%M:%SZ")
                windows[group["id"]] = int(time.mktime(begins) - time.timezone)
    stop()
    for shard in folder.glob("engine/data/*/autogen/*"):
        if int(shard.name) in windows:
            made = shard / "000000002-000000001.tsm"
            write_week(made, windows[int(shard.name)], size // WEEKS)
            owner = shard.stat()
            os.chown(made, owner.st_uid, owner.st_gid)
        shutil.rmtree(shard / "index", ignore_errors=True)
        for path in shard.glob("fields.idx*"):
            path.unlink()
    for series in folder.glob("engine/data/*/_series"):
        shutil.rmtree(series)
    os.sync()
    start()
    return sum(path.stat().st_size for path in folder.rglob("*.tsm"))


def write_week(path: Path, start: int, size: int) -> None:
    """Write a TSM file of about `size` bytes whose points lie in the week from `start` (s)."""
    blocks = max(1, size // (8 * POINTS * SERIES))
    step = WEEK * 10**9 // STEP // (blocks * POINTS)
    index, at = [], 5
    with path.open("wb") as file:
        file.write(b"\x16\xd1\x16\xd1\x01")
        for number in range(SERIES):
            key = b"bulk,s=s%02d#!~#v" % number
            entries = b""
            for block in range(blocks):
                first = start * 10**9 + block * POINTS * step * STEP
                times = run_times(first, step, POINTS, 8)
                # Type 1: whole numbers; encoding 0: eight bytes each, as they are.
                body = b"\x01" + uvarint(len(times)) + times + b"\x00" + os.urandom(8 * POINTS)
                file.write(struct.pack(">I", zlib.crc32(body)) + body)
                last = first + (POINTS - 1) * step * STEP
                entries += struct.pack(">qqqI", first, last, at, len(body) + 4)
                at += len(body) + 4
            index.append(
                struct.pack(">H", len(key)) + key + struct.pack(">BH", 1, blocks) + entries
            )
        file.write(b"".join(index) + struct.pack(">Q", at))


def requests(server: Influxd) -> int:
    """Ask the server how many requests of its API it has answered."""
    text = server.client.call("GET", "/metrics").decode()
    return sum(
        int(float(found[1]))
        for found in re.finditer(r"^http_api_requests_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    )


def counted(server: Influxd, act: Callable[[], object], written: Callable[[], int]) -> Measured:
    """Do it once, and measure."""
    before, began = requests(server), time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    return Measured(seconds, requests(server) - before, written())


def own_bytes(name: str) -> int:
    """Give how many bytes this process has read (`rchar`) or written (`wchar`) so far."""
    text = Path("/proc/self/io").read_text()
    return int(re.search(rf"{name}: (\d+)", text)[1])  # type: ignore[index]


def captures(server: Influxd, bench: Bench, made: Made, runs: int, hot: int) -> list[Measured]:
    """Capture some times, each after so many new points in the shard of today."""
    found = []
    for _ in range(runs):
        if hot:
            now = time.time_ns()
            lines = [f"bulk,s=s{n % SERIES:02d} v={n}i {now - n * 10**6}" for n in range(hot)]
            server.client.write("iot", lines, "ns")
        before = own_bytes("wchar")
        box: list[Made] = []
        found.append(
            counted(
                server,
                lambda made=made, box=box: box.append(bench.capture(made)),  # type: ignore[misc]
                lambda before=before: own_bytes("wchar") - before,  # type: ignore[misc]
            )
        )
        made = box[0]
    return found


def vendor(server: Influxd, base: Path, runs: int, *more: str) -> list[Measured]:
    """Run the vendor's backup some times."""
    found = []
    for _ in range(runs):
        folder = base / "vendor"
        argv = [str(lab().programs["influx"]), "backup", "--host", server.url]
        argv += ["--token", server.token, *more, str(folder)]
        env = {"PATH": os.environ["PATH"], "HOME": str(base)}
        found.append(
            counted(
                server,
                lambda argv=argv, env=env: subprocess.run(  # type: ignore[misc]
                    argv, check=True, capture_output=True, env=env
                ),
                lambda folder=folder: sum(p.stat().st_size for p in folder.iterdir()),  # type: ignore[misc]
            )
        )
        shutil.rmtree(folder)
    return found


def show(name: str, found: list[Measured], bar: str = "-") -> float:
    """Print one row and give its median of seconds."""
    print(row(name, [one.seconds for one in found], bar))
    print(
        f"{'':<44} {max(one.requests for one in found)} requests,"
        f" {statistics.median(one.written for one in found) / 1e6:.2f} MB written"
    )
    return statistics.median(one.seconds for one in found)


def check_speed(name: str, paths: list[Path]) -> None:
    """Check files and print how fast that went."""
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        files.sha256(path)  # the disk's speed is not the question
    began = time.perf_counter()
    used = time.process_time()
    points = sum(sum(check_tsm(path).by_measurement().values()) for path in paths)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    print(
        f"{name:<44} {size / 1e6 / seconds:8.0f} MB/s ({size / 1e6 / used:.0f} of the processor's"
        f" time), {points / 1e6 / seconds:.1f} M points/s, {size / 1e6:.0f} MB   bar 100 MB/s"
    )


def uneven(server: Influxd, points: int) -> list[Path]:
    """Have the server itself write points at uneven times, and give its files."""
    before = set(server.folder.rglob("*.tsm"))
    start = int(time.time()) * 1000 - 60 * WEEK * 1000
    for at in range(0, points, 20_000):
        server.client.write(
            "iot",
            [
                f"odd,s=s{n % 20} v={n * 7919 % 99991 / 97} {start + n * 37 + n % 7}"
                for n in range(at, at + 20_000)
            ],
            "ms",
        )
    server.client.flush()
    return sorted(set(server.folder.rglob("*.tsm")) - before)


@contextmanager
def a_server() -> Iterator[tuple[Influxd, Path]]:
    """A server that is not started yet, in a folder that goes at the end."""
    base = Path(tempfile.mkdtemp(prefix="iotops-bench-", dir="/var/tmp"))
    server = Influxd(str(lab().programs["influxd"]), base / "data" / "influxdb")
    try:
        yield server, base
    finally:
        server.stop()
        shutil.rmtree(base)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--vendor-runs", type=int, default=2)
    chosen = parser.parse_args()
    with a_server() as (server, base):
        stored = fill(server, int(chosen.gigabytes * 1e9))
        print(machine())
        print(
            f"influxd {server.client.json('GET', '/health')['version']}: {stored / 1e9:.2f} GB of"
            f" TSM in {len(server.client.shards('iot'))} shards"
        )
        week = sorted(server.folder.rglob("000000002-*.tsm"))[:3]
        check_speed("TSM check, even times, 8 bytes a value", week)
        check_speed("TSM check, uneven times, floats", uneven(server, 2_000_000))
        bench = Bench(base / "data", server.url, server.token)
        first: list[Made] = []
        began = time.perf_counter()
        first.append(bench.capture())
        print(row("first capture: every file is checked", [time.perf_counter() - began], "-"))
        still = show("capture, nothing changed", captures(server, bench, first[0], chosen.runs, 0))
        before = own_bytes("rchar")
        found = captures(server, bench, first[0], chosen.runs, 5000)
        read = (own_bytes("rchar") - before) / chosen.runs
        hot = show("capture, 5,000 new points in one shard", found)
        extra = sum(
            path.stat().st_size
            for path in bench.staging_folder.rglob("*")
            if path.is_file() and path.stat().st_nlink == 1
        )
        print(
            f"read per run {100 * read / stored:.3f} % of the bytes (bar 1 %);"
            f" extra disk {extra / 1e6:.2f} MB (bar 1 MB)"
        )
        peak = captured_by(bench=bench, work=base / "data" / "whole")["peak"]
        print(f"memory of a process that captures everything: {int(str(peak)) / 1000:.0f} MB")
        plain = show(
            "influx backup --compression none",
            vendor(server, base, chosen.vendor_runs, "--compression", "none"),
        )
        zipped = show("influx backup", vendor(server, base, chosen.vendor_runs))
        for name, mine in (("nothing changed", still), ("one hot shard", hot)):
            print(
                f"{name}: {zipped / mine:.0f} times as fast as `influx backup`,"
                f" {plain / mine:.0f} times as without compression (bar 50)"
            )


if __name__ == "__main__":
    main()
