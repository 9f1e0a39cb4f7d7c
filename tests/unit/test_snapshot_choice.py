"""Which snapshot is meant: by id, by time, or the newest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from iotops.actions.restore import candidates
from iotops.clients.restic import SnapshotInfo, find_snapshot
from iotops.errors import Exit, SnapshotUnknown

pytestmark = pytest.mark.unit


def made(identifier: str, day: int) -> SnapshotInfo:
    return SnapshotInfo(
        id=identifier * 16,
        time=datetime(2026, 3, day, 12, tzinfo=UTC),
        host="iot-hub",
        tags=("iotops",),
        paths=("/",),
    )


FOUND = (made("abcd", 2), made("abef", 3), made("1234", 1))


def test_latest_is_the_newest_whatever_the_order() -> None:
    assert find_snapshot("latest", FOUND) is FOUND[1]


def test_a_beginning_that_fits_one() -> None:
    assert find_snapshot("abc", FOUND) is FOUND[0]
    assert find_snapshot(FOUND[2].id, FOUND) is FOUND[2]


def test_at_leaves_out_what_is_younger() -> None:
    moment = datetime(2026, 3, 2, 12, tzinfo=UTC)
    assert find_snapshot("latest", FOUND, at=moment) is FOUND[0]
    with pytest.raises(SnapshotUnknown, match="there is no snapshot 'abe'"):
        find_snapshot("abe", FOUND, at=moment)


@pytest.mark.parametrize("text", ["ffff", "", "abcdx", "latest "])
def test_an_unknown_id_is_refused(text: str) -> None:
    with pytest.raises(SnapshotUnknown, match="there is no snapshot") as caught:
        find_snapshot(text, FOUND)
    assert "iotops snapshots" in caught.value.hint and caught.value.exit is Exit.FAILED


def test_an_ambiguous_id_is_refused() -> None:
    with pytest.raises(SnapshotUnknown, match="2 snapshots begin with 'ab'") as caught:
        find_snapshot("ab", FOUND)
    assert "iotops snapshots" in caught.value.hint


def test_none_before_a_time_names_the_time() -> None:
    with pytest.raises(SnapshotUnknown, match="up to 2026-02-01 00:00 UTC"):
        find_snapshot("latest", FOUND, at=datetime(2026, 2, 1, tzinfo=UTC))
    with pytest.raises(SnapshotUnknown, match="no snapshot of this hub"):
        find_snapshot("latest", ())


# -- what "latest" may mean -----------------------------------------------------------------------

HUB = "0123456789abcdef"


def of_hub(identifier: str, day: int, outcome: str, hub: str = HUB) -> SnapshotInfo:
    return replace(made(identifier, day), tags=("iotops", hub, outcome))


def newest(*found: SnapshotInfo, disowned: tuple[str, ...] = (), day: int = 31) -> SnapshotInfo:
    at = datetime(2026, 3, day, 23, tzinfo=UTC)
    return find_snapshot("latest", candidates(found, HUB, disowned, at), at=at)


WHOLE = of_hub("aaaa", 5, "complete")
PART = of_hub("bbbb", 3, "partial")


def test_a_complete_one_comes_before_a_younger_partial_one() -> None:
    assert newest(WHOLE, of_hub("cccc", 6, "partial")) is WHOLE


def test_a_partial_one_is_better_than_none() -> None:
    assert newest(PART) is PART


def test_a_complete_one_after_the_time_does_not_hide_a_partial_one_before_it() -> None:
    assert newest(PART, WHOLE, day=4) is PART


def test_another_hubs_snapshot_is_never_latest() -> None:
    assert newest(PART, of_hub("cccc", 9, "complete", "fedcba9876543210")) is PART


def test_what_does_not_count_is_never_latest() -> None:
    bad = of_hub("cccc", 9, "complete")
    assert newest(WHOLE, bad, disowned=(bad.id,)) is WHOLE
