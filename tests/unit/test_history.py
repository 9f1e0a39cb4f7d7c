"""The disk's own history: a copy from before the last good backup does not know of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops import disk
from iotops.actions import history
from iotops.errors import GuardError
from iotops.hub import Hub
from iotops.journal import KEPT_RUNS

pytestmark = pytest.mark.unit

ID = "0123456789abcdef"
NOW = datetime.now(UTC)


def at(hours: float) -> str:
    return (NOW + timedelta(hours=hours)).isoformat(timespec="seconds")


class Case:
    """A hub on a claimed folder, with records and a state of our choice."""

    def __init__(self, base: Path) -> None:
        folder, root = base / "hub", base / "data"
        folder.mkdir()
        root.mkdir()
        (folder / "iotops.toml").write_text(
            f'[hub]\nid = "{ID}"\nname = "h"\nowner = "root"\n'
            f'[data]\nroot = "{root}"\nkind = "folder"\n'
            f'[paths]\nstate = "{base}/state"\nrun = "{base}/run"\n'
        )
        disk.claim(root, "folder", ID, "h")
        self.hub = Hub.open(folder)

    def good(self, hours: float) -> None:
        self.hub.state.update(good={"backup": at(hours)})

    def record(self, hours: float, action: str = "backup", outcome: str = "complete") -> None:
        name = f"{NOW + timedelta(hours=hours):%Y%m%dT%H%M%SZ}-{action}-abcd"
        (self.hub.layout.journal / f"{name}.json").write_text(
            json.dumps(
                {
                    "id": name,
                    "action": action,
                    "started": at(hours - 0.01),
                    "ended": at(hours),
                    "outcome": outcome,
                    "pid": 1,
                    "boot": "",
                }
            )
        )

    @property
    def known(self) -> bool:
        return history.older_copy(self.hub) is None


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_without_a_good_backup_there_is_nothing_to_know(case: Case) -> None:
    assert case.known


def test_a_disk_that_has_the_record_is_the_one(case: Case) -> None:
    case.good(-5)
    case.record(-5)
    case.record(-3, outcome="failed")
    assert case.known


def test_a_copy_from_before_is_found_whatever_was_tried_on_it(case: Case) -> None:
    case.record(-50)
    case.good(-5)
    case.record(-1, outcome="failed")
    case.record(-1, action="prune")
    assert not case.known
    with pytest.raises(GuardError, match="does not know of the last good backup") as caught:
        history.require_known(case.hub)
    assert "--accept-disk" in caught.value.hint


def test_a_disk_without_any_record_is_found(case: Case) -> None:
    case.good(-5)
    assert not case.known


@pytest.mark.parametrize(("action", "outcome"), [("restore", "complete"), ("backup", "partial")])
def test_a_disk_that_was_brought_up_to_date_since_is_fine(
    case: Case, action: str, outcome: str
) -> None:
    case.good(-5)
    case.record(-50)
    case.record(-1, action, outcome)
    assert case.known


def test_a_record_that_made_room_for_newer_ones_is_not_missed(case: Case) -> None:
    case.good(-500)
    for number in range(KEPT_RUNS):
        case.record(-1 - number / 10, "check")
    assert case.known
    case.record(-600)
    assert not case.known  # nothing had made room yet


def test_a_good_backup_in_the_future_is_the_clocks_business(case: Case) -> None:
    case.good(+24)
    assert case.known
