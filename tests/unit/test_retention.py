"""Which snapshots stay: cases, and the laws that hold whatever restic proposes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops.actions.retention import PARTIAL_FOR, Retention, outcome, plan, stand_ins
from iotops.clients import resticanswers
from iotops.clients.restic import SnapshotInfo
from iotops.model import Outcome

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 1, 3, 10, tzinfo=UTC)
HUB = "0123456789abcdef"


def snapshot(number: int, days_ago: float, *tags: str) -> SnapshotInfo:
    time = NOW - timedelta(days=days_ago)
    return SnapshotInfo(f"{number:064x}", time, "home", ("iotops", HUB, *tags), ("/",))


def nightly(count: int) -> list[SnapshotInfo]:
    """Complete snapshots 1 to `count`, one a night; 1 is the newest."""
    return [snapshot(number, number, "complete") for number in range(1, count + 1)]


def numbers(found: tuple[SnapshotInfo, ...]) -> list[int]:
    return sorted(int(one.id, 16) for one in found)


def all_ids(snapshots: list[SnapshotInfo]) -> set[str]:
    return {one.id for one in snapshots}


def judge(
    snapshots: list[SnapshotInfo],
    removable: set[str] | None = None,
    *,
    keep_at_least: int = 1,
    drilled: set[str] | None = None,
    last_good: datetime | None = None,
) -> Retention:
    """Decide; unless said otherwise restic would remove everything."""
    chosen = all_ids(snapshots) if removable is None else removable
    return plan(snapshots, chosen, keep_at_least, drilled or set(), NOW, last_good=last_good)


def test_only_what_restic_proposes_goes() -> None:
    five = nightly(5)
    found = judge(five, {five[3].id, five[4].id})
    assert numbers(found.remove) == [4, 5] and numbers(found.keep) == [1, 2, 3]
    assert found.reasons[five[4].id] == "no keep rule holds it" and not found.refused
    assert set(found.reasons) == all_ids(five)


@pytest.mark.parametrize(("floor", "stay"), [(1, [1]), (3, [1, 2, 3]), (9, [1, 2, 3, 4, 5])])
def test_the_floor_holds_whatever_restic_proposes(floor: int, stay: list[int]) -> None:
    found = judge(nightly(5), keep_at_least=floor)
    assert numbers(found.keep) == stay
    assert "newest" in found.reasons[f"{1:064x}"]


def test_the_last_drilled_one_stays() -> None:
    five = nightly(5)
    found = judge(five, drilled={five[4].id})
    assert numbers(found.keep) == [1, 5] and "drill" in found.reasons[five[4].id]


def test_partial_ones_do_not_count_for_the_floor() -> None:
    some = [snapshot(10 + day, day, "partial") for day in range(1, 6)]
    found = judge([*nightly(5), *some], keep_at_least=2)
    assert {1, 2} <= set(numbers(found.keep)) and not {3, 4, 5} & set(numbers(found.keep))


@pytest.mark.parametrize(
    ("partial_ago", "complete_ago", "goes"),
    [
        (7.1, 1, True),
        (6.9, 1, False),  # younger than seven days
        (7.1, 8, False),  # no newer complete one
        (7.1, None, False),  # no complete one at all
    ],
)
def test_a_partial_one_expires_after_a_week_and_a_newer_complete_one(
    partial_ago: float, complete_ago: float | None, goes: bool
) -> None:
    held = [snapshot(1, partial_ago, "partial")]
    if complete_ago is not None:
        held.append(snapshot(2, complete_ago, "complete"))
    found = judge(held, set())
    assert (1 in numbers(found.remove)) is goes and 2 not in numbers(found.remove)
    assert "partial" in found.reasons[held[0].id]


@pytest.mark.parametrize(
    "tags", [(), ("failed",), ("complete", "partial"), ("complete", "repaired")]
)
def test_what_does_not_say_what_it_is_stays_and_does_not_count(tags: tuple[str, ...]) -> None:
    strange = snapshot(9, 0.5, *tags)
    assert outcome(strange) is None
    found = judge([*nightly(3), strange])
    assert numbers(found.keep) == [1, 9]


def test_nothing_goes_while_a_snapshot_lies_in_the_future() -> None:
    for kind in ("complete", "partial"):
        found = judge([*nightly(5), snapshot(9, -0.01, kind)])
        assert not found.remove and "future" in found.refused and "timedatectl" in found.hint
        assert len(found.keep) == 6


def test_nothing_goes_while_the_clock_is_behind_the_last_good_backup() -> None:
    five = nightly(5)
    late = judge(five, last_good=NOW + timedelta(seconds=1))
    assert not late.remove and "before the last good backup" in late.refused
    assert judge(five, last_good=NOW).remove


def test_restics_own_words_tell_why_one_stays() -> None:
    two = nightly(2)
    found = plan(two, {two[1].id}, 1, set(), NOW, rules={two[0].id: "daily snapshot"})
    assert found.reasons[two[0].id] == "daily snapshot"


def test_a_repaired_one_takes_no_complete_ones_place() -> None:
    """For restic both are complete, and the newer one of a day stays."""
    morning, before = snapshot(1, 3.2, "complete"), snapshot(2, 4, "complete")
    evening = snapshot(3, 3.0, "complete", "repaired")
    assert stand_ins([before, morning], [evening]) == {morning.id}
    assert stand_ins([morning], [snapshot(4, 9, "complete", "repaired")]) == frozenset()
    found = judge([before, morning, evening], {before.id})
    assert found.reasons[evening.id].startswith("neither complete nor partial")


KINDS = st.sampled_from([("complete",), ("complete",), ("partial",), (), ("complete", "repaired")])
SNAPSHOTS = st.lists(st.tuples(st.floats(0, 400), KINDS), max_size=30).map(
    lambda rows: [snapshot(number, days, *tags) for number, (days, tags) in enumerate(rows, 1)]
)


@given(SNAPSHOTS, st.data(), st.integers(1, 6))
def test_laws(held: list[SnapshotInfo], data: st.DataObject, floor: int) -> None:
    ids = sorted(all_ids(held)) or ["0" * 64]
    removable = data.draw(st.sets(st.sampled_from(ids)))
    drilled = data.draw(st.sets(st.sampled_from(ids), max_size=2))
    found = judge(held, removable, keep_at_least=floor, drilled=drilled)

    def complete(some: list[SnapshotInfo]) -> list[SnapshotInfo]:
        return [one for one in some if outcome(one) is Outcome.COMPLETE]

    # Nothing is lost from the books: each one stays or goes, with a reason.
    assert sorted((*found.keep, *found.remove), key=id) == sorted(held, key=id)
    assert set(found.reasons) == all_ids(held)
    # Never below the floor; the newest complete one and drilled ones always stay.
    before, after = complete(held), complete(list(found.keep))
    assert len(after) >= min(floor, len(before))
    if before:
        assert max(one.time for one in after) == max(one.time for one in before)
    assert not drilled & {one.id for one in found.remove}
    for one in found.remove:
        if outcome(one) is Outcome.COMPLETE:
            assert one.id in removable
        else:  # a partial one: old, and a newer complete one stays
            assert outcome(one) is Outcome.PARTIAL and NOW - one.time > PARTIAL_FOR
            assert any(other.time > one.time for other in after)
    # A partial one never displaces a complete one: without any, the same complete ones stay.
    alone = judge(complete(held), removable, keep_at_least=floor, drilled=drilled)
    assert {one.id for one in alone.keep} == {one.id for one in after}


def test_the_reasons_of_restics_dry_run_are_joined_to_ids() -> None:
    text = (
        '[{"keep": [{"time": "2026-03-01T00:00:00Z", "tree": "t1", "id": "' + "a" * 64 + '"}],'
        ' "remove": null, "reasons": [{"snapshot": {"time": "2026-03-01T00:00:00Z", "tree": "t1"},'
        ' "matches": ["last snapshot", "daily snapshot"]}, 3, {"snapshot": null}]}]'
    )
    found = resticanswers.plan(text, "planning")
    assert found.keep == ("a" * 64,) and not found.remove
    assert found.why == {"a" * 64: ("last snapshot", "daily snapshot")}
