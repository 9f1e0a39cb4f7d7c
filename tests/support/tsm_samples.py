"""Makes `tests/unit/tsm/`: one shard of a real server, with what the server itself counted in it.

Run by hand when the samples shall be made anew: `python -m tests.support.tsm_samples INFLUXD`.
The shard holds every block type, all three time encodings, files that overlap, points written
twice, and deletes of whole and of half series, in one and in several steps.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.support.influxd import Influxd

BEGIN = 1_700_006_400  # Wed 15 Nov 2023 00:00 UTC, in the middle of a shard's week
TARGET = Path(__file__).parent.parent / "unit" / "tsm"


def lines(rnd: random.Random, count: int, start: int) -> list[str]:
    """Make line protocol in nanoseconds: even, uneven and far apart times, all field types."""
    out = []
    for i in range(count):
        even = (start + i * 10) * 10**9
        uneven = even + rnd.randrange(10**9)
        out += [
            f"even,room=r{i % 3} float={rnd.random()},int={i}i {even}",
            f'uneven,room=r{i % 2} text="w {i}",flag={"true" if i % 2 else "false"} {uneven}',
            f"we\\ ird\\,name,a\\ b=c\\,d unsigned={i}u,float=1 {uneven}",
        ]
    return out


def main(program: str) -> None:
    """Make the samples."""
    rnd = random.Random(7)
    with tempfile.TemporaryDirectory() as name:
        server = Influxd(program, Path(name) / "influxdb")
        server.start()
        try:
            server.setup()
            client = server.client
            for step in (lines(rnd, 120, BEGIN), lines(rnd, 60, BEGIN + 600)):
                client.write("iot", step, "ns")
                client.flush()
            client.write("iot", lines(rnd, 15, BEGIN + 3600), "ns")
            client.write("iot", [f"lone value=1 {BEGIN}"], "s")
            client.flush()
            for start, stop, predicate in (
                ("2023-11-15T00:05:00Z", "2023-11-15T00:08:00Z", 'room="r1"'),
                ("2023-11-15T00:12:00Z", "2023-11-15T00:13:00Z", 'room="r1"'),
                ("2023-01-01T00:00:00Z", "2024-01-01T00:00:00Z", '_measurement="uneven"'),
            ):
                client.delete("iot", start, stop, predicate)
            rows = client.flux(
                'from(bucket: "iot") |> range(start: 2020-01-01T00:00:00Z, stop: '
                '2025-01-01T00:00:00Z) |> count() |> group(columns: ["_measurement"]) |> sum()'
            )
            counts = {row["_measurement"]: int(row["_value"]) for row in rows}
            (shard,) = client.shards("iot")
        finally:
            server.stop()
        (found,) = Path(name).glob(f"influxdb/engine/data/*/autogen/{shard}")
        shutil.rmtree(TARGET, ignore_errors=True)
        TARGET.mkdir(parents=True)
        for path in sorted([*found.glob("*.tsm"), *found.glob("*.tombstone")]):
            shutil.copyfile(path, TARGET / path.name)
        (TARGET / "counts.json").write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
