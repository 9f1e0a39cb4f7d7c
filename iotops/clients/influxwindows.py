"""Points by window of time: what a capture recorded, and how a server is asked for the same.

A window is the time of one shard group. Two shards that changed places, or one that is empty while
another was filled with as many points, look right in a bucket's total; they do not window by
window. Nothing is recorded for this but the two ends of each shard's time: the points of every
shard are in the ledger anyway (`influxengine.py`), which the manifest carries.

Not here: requests (`influxapi.py`), and what a difference means (`services/influxdb.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from iotops.clients.tsm import EARLIEST

BATCH = 16
"""Windows asked for in one query: the server holds one row per series and window in memory."""


SPAN = 4096
"""Windows that a query may reach over, known and empty ones: it takes time for each."""


@dataclass(frozen=True)
class Window:
    """A span of time, first ns and the ns after the last, and its points by measurement."""

    start: int
    end: int
    points: Mapping[str, int]


@dataclass(frozen=True)
class Batch:
    """One query: a range of time (ns), cut into windows of `every` that begin at `offset` modulo
    `every`.
    """

    start: int
    stop: int
    every: int
    offset: int


@dataclass(frozen=True)
class Fewer:
    """A window in which fewer points of a measurement were found than were recorded."""

    start: int
    end: int
    wanted: int
    found: int


def apart(windows: Iterable[Window]) -> list[Window]:
    """Order windows by time; those that overlap become one, so that no point counts twice."""
    found: list[Window] = []
    for one in sorted(windows, key=lambda window: (window.start, window.end)):
        if found and one.start < found[-1].end:
            last = found.pop()
            both = dict(last.points)
            for name, points in one.points.items():
                both[name] = both.get(name, 0) + points
            one = Window(last.start, max(last.end, one.end), both)
        found.append(one)
    return found


def batches(windows: Sequence[Window], before: int) -> Iterator[Batch]:
    """Cut windows into queries that meet each of them exactly.

    Neighbours of the same length on the same grid share a query; a wide gap begins a new one.
    Windows that begin before the earliest time that InfluxDB knows are left out (an endless loop
    in v2.9.1's Flux).

    Args:
        windows: as `apart` gives them.
        before: points at this time (ns) or later do not count.
    """
    runs: list[list[Window]] = []
    for window in windows:
        if not EARLIEST <= window.start < before:
            continue
        every, offset = _grid(window)
        if (
            runs
            and len(runs[-1]) < BATCH
            and _grid(runs[-1][0]) == (every, offset)
            and window.end - runs[-1][0].start <= SPAN * every
        ):
            runs[-1].append(window)
        else:
            runs.append([window])
    for run in runs:
        every, offset = _grid(run[0])
        yield Batch(run[0].start, min(run[-1].end, before), every, offset)


def _grid(window: Window) -> tuple[int, int]:
    every = window.end - window.start
    return every, window.start % every


def fewer(
    windows: Sequence[Window], found: Mapping[tuple[str, int], int]
) -> dict[str, list[Fewer]]:
    """Find, by measurement, the windows that hold fewer points than were recorded.

    Args:
        windows: as `apart` gives them.
        found: points by measurement and a time (ns) that lies in their window.
    """
    at = 0
    actual: dict[tuple[str, int], int] = {}
    for (name, time), points in sorted(found.items(), key=lambda item: item[0][1]):
        while at < len(windows) and windows[at].end <= time:
            at += 1
        if at < len(windows) and windows[at].start <= time:
            key = name, windows[at].start
            actual[key] = actual.get(key, 0) + points
    lost: dict[str, list[Fewer]] = {}
    for window in windows:
        if window.start < EARLIEST:
            continue
        for name, wanted in window.points.items():
            seen = actual.get((name, window.start), 0)
            if seen < wanted:
                lost.setdefault(name, []).append(Fewer(window.start, window.end, wanted, seen))
    return lost
