"""What the benchmarks share: machine and versions, and the layout of results."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from iotops import __version__


def machine() -> str:
    """Describe this machine in one line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            model = line.partition(":")[2].strip()
            break
    return (
        f"iotops {__version__}, Python {platform.python_version()},"
        f" {platform.machine()}, {os.cpu_count()} cores, {model}"
    )


def row(name: str, seconds: Sequence[float], bar: str) -> str:
    """Give one line of the table: median, best, worst, bar."""
    return (
        f"{name:<44} {statistics.median(seconds):8.3f} s"
        f"   ({min(seconds):.3f} to {max(seconds):.3f}, {len(seconds)} runs)   bar {bar}"
    )
