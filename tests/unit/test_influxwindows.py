"""Points by window: queries that meet every window once, and losses found where they are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops.clients.influxwindows import BATCH, SPAN, Batch, Fewer, Window, apart, batches, fewer
from iotops.clients.tsm import EARLIEST, LATEST

pytestmark = pytest.mark.unit


def windows(*starts: int, length: int = 10) -> list[Window]:
    """Windows of one length with a point of `m` in each."""
    return [Window(start, start + length, {"m": 1}) for start in starts]


def test_neighbours_share_a_query_up_to_a_limit() -> None:
    many = windows(*range(-30, 10 * BATCH, 10))
    found = list(batches(many, LATEST))
    assert found == [
        Batch(-30, 10 * BATCH - 30, 10, 0),
        Batch(10 * BATCH - 30, 10 * BATCH, 10, 0),
    ]


def test_a_wide_gap_another_length_or_grid_begins_a_new_query() -> None:
    odd = [*windows(0, 10), *windows(25), *windows(40, length=20), *windows(10 * SPAN + 40)]
    assert [(one.start, one.stop, one.every, one.offset) for one in batches(odd, LATEST)] == [
        (0, 20, 10, 0),
        (25, 35, 10, 5),
        (40, 60, 20, 0),
        (10 * SPAN + 40, 10 * SPAN + 50, 10, 0),
    ]


def test_nothing_is_asked_beyond_the_moment_or_before_all_time() -> None:
    """A window that begins before the earliest time makes InfluxDB 2.9.1 count for ever."""
    known = windows(EARLIEST - 5, 0, 10, 20)
    assert list(batches(known, 15)) == [Batch(0, 15, 10, 0)]
    assert fewer(known, {("m", 0): 1, ("m", 10): 1, ("m", 20): 1}) == {}


def test_windows_that_overlap_count_as_one() -> None:
    first = Window(0, 10, {"m": 2, "n": 1})
    second = Window(5, 15, {"m": 3})
    third = Window(15, 20, {"m": 9})
    assert apart([third, second, first]) == [Window(0, 15, {"m": 5, "n": 1}), third]


def test_a_loss_is_found_although_the_sum_is_right() -> None:
    known = [Window(0, 10, {"m": 5, "n": 1}), Window(10, 20, {"m": 5})]
    assert fewer(known, {("m", 0): 10, ("n", 3): 1}) == {"m": [Fewer(10, 20, 5, 0)]}
    assert fewer(known, {("m", 1): 2, ("m", 7): 3, ("m", 19): 7, ("n", 9): 1}) == {}
    assert fewer(known, {("m", -1): 5, ("m", 20): 5}) == {
        "m": [Fewer(0, 10, 5, 0), Fewer(10, 20, 5, 0)],
        "n": [Fewer(0, 10, 1, 0)],
    }


@given(
    st.lists(st.tuples(st.integers(-500, 500), st.sampled_from((7, 10, 24))), max_size=60),
    st.integers(-500, 600),
)
def test_every_window_is_met_by_one_query_on_its_grid(
    drawn: list[tuple[int, int]], before: int
) -> None:
    known = apart(Window(start, start + length, {}) for start, length in drawn)
    assert all(a.end <= b.start for a, b in pairwise(known))
    asked = list(batches(known, before))
    assert all(a.stop <= b.start for a, b in pairwise(asked))
    for window in known:
        met = [one for one in asked if one.start < window.end and window.start < one.stop]
        if window.start >= before:
            assert not met
            continue
        assert len(met) == 1 and met[0].start <= window.start
        assert window.start % met[0].every == met[0].offset
        assert met[0].every == window.end - window.start
        assert met[0].stop >= min(window.end, before)
