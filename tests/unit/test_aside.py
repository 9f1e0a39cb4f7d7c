"""What restores have put aside: how old it is, and when a later backup may let it go."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops import disk
from iotops.actions import aside, undo
from iotops.actions.aside import OldData
from iotops.actions.status import status
from iotops.cli import render
from iotops.hub import Hub

pytestmark = pytest.mark.unit

ID = "0123456789abcdef"
ASIDE = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def kept(restored: datetime | None = ASIDE, days: int | None = 7) -> OldData:
    """Old data of a restore, kept for some days."""
    until = restored + DAY * days if restored and days else None
    texts = [one.isoformat() if one else "" for one in (restored, until)]
    return OldData("20260301T115500Z-restore-abcd", texts[0], 1000, texts[1])


@pytest.mark.parametrize(
    ("one", "begun", "now", "goes"),
    [
        (kept(), ASIDE + DAY * 7, ASIDE + DAY * 7 + MINUTE, True),
        (kept(), ASIDE + DAY * 7 - MINUTE, ASIDE + DAY * 7, True),  # it may take long
        (kept(), ASIDE + DAY * 6, ASIDE + DAY * 7 - MINUTE, False),  # the days are not over
        (kept(), ASIDE - MINUTE, ASIDE + DAY * 30, False),  # no later backup: it began before
        (kept(), ASIDE, ASIDE + DAY * 30, False),
        (kept(days=30), ASIDE + DAY * 29, ASIDE + DAY * 29, False),
        (kept(days=30), ASIDE + DAY * 30, ASIDE + DAY * 30, True),
        (kept(days=None), ASIDE + DAY * 30, ASIDE + DAY * 30, False),  # no record, or not closed
        (kept(restored=None), ASIDE + DAY * 30, ASIDE + DAY * 30, False),  # nobody knows its age
        (kept(ASIDE + DAY * 365), ASIDE + DAY * 30, ASIDE + DAY * 30, False),  # a clock gone back
    ],
)
def test_what_a_complete_backup_lets_go(
    one: OldData, begun: datetime, now: datetime, goes: bool
) -> None:
    assert aside.due([one], begun, now) == ((one,) if goes else ())


class Case:
    """A hub on a claimed folder with old data of restores."""

    def __init__(self, base: Path, data: str = "") -> None:
        folder, root = base / "hub", base / "data"
        folder.mkdir()
        root.mkdir()
        (folder / "iotops.toml").write_text(
            f'[hub]\nid = "{ID}"\nname = "h"\nowner = "root"\n'
            f'[data]\nroot = "{root}"\nkind = "folder"\n{data}'
            f'[paths]\nstate = "{base}/state"\nrun = "{base}/run"\n'
        )
        disk.claim(root, "folder", ID, "h")
        self.hub = Hub.open(folder)
        self.replaced = self.hub.layout.replaced

    def put_aside(self, name: str, ended: str | None, outcome: str = "complete") -> None:
        """Old data of a run, with its record unless there is none any more."""
        old = self.replaced / name / "one"
        old.mkdir(parents=True)
        (old / "file").write_bytes(b"x" * 5000)
        if ended is None:
            return
        swap = {"service": "one", "live": "/x", "old": str(old), "new": "/y", "had_old": True}
        document = {
            **{"id": name, "action": "restore", "started": ASIDE.isoformat(), "ended": ended},
            **{"outcome": outcome, "pid": 1, "boot": "another", "swaps": [swap]},
        }
        path = self.hub.layout.journal / f"{name}.json"
        path.write_text(json.dumps(document))


def test_its_age_is_that_of_its_run(tmp_path: Path) -> None:
    case = Case(tmp_path, "old_data_days = 2\n")
    case.put_aside("20260301T115500Z-restore-aaaa", "2026-03-01T13:00:00+01:00")
    case.put_aside("20260302T120000Z-restore-bbbb", None)  # its record is gone
    case.put_aside("20260303T120000Z-restore-cccc", "", "running")  # it died, and is not settled
    case.put_aside("by-hand", None)
    assert [(one.restored[:16], one.until[:16]) for one in aside.old_data(case.hub)] == [
        ("2026-03-01T12:00", "2026-03-03T12:00"),
        ("2026-03-02T12:00", ""),
        ("2026-03-01T12:00", ""),
        ("", ""),
    ]


def test_status_shows_how_much_and_how_old(tmp_path: Path) -> None:
    case = Case(tmp_path)
    name = "20260301T115500Z-restore-aaaa"
    case.put_aside(name, (datetime.now(UTC) - DAY * 3).isoformat())
    case.put_aside("by-hand", None)
    found = status(case.hub)
    first, second = render.old_data(found.aside)
    assert f"old data of {name}: " in first and ", 3 d ago; the first complete backup" in first
    assert "of unknown age; it stays until you remove it" in second
    assert found.old_data == sum(one.bytes for one in found.aside) >= 10_000


def test_an_undo_is_offered_only_where_there_is_one(tmp_path: Path) -> None:
    """What a return of config-sync put aside is no restore's."""
    case = Case(tmp_path)
    case.put_aside("20260301T115500Z-sync-cccc", None)
    found = status(case.hub)
    assert (found.undo, found.replaced) == ("", str(case.replaced))
    old = "20260301T115500Z-restore-aaaa"
    case.put_aside(old, (datetime.now(UTC) - DAY * 30).isoformat())
    assert status(case.hub).undo == f"iotops undo --run {old}"
    case.put_aside("20260302T115500Z-restore-bbbb", datetime.now(UTC).isoformat())
    assert status(case.hub).undo == "iotops undo"


def test_discarded_old_data_is_never_swapped_in(tmp_path: Path) -> None:
    case = Case(tmp_path)
    gone, stays = "20260301T115500Z-restore-aaaa", "20260302T115500Z-restore-bbbb"
    for name in (gone, stays):
        case.put_aside(name, ASIDE.isoformat())
    aside.discard(case.hub, [gone], "a-backup")
    assert [path.name for path in case.replaced.iterdir()] == [stays]
    records = {one.id: one for one in case.hub.journal.runs()}
    assert not records[gone].swaps and records[gone].about[aside.DISCARDED] == "a-backup"
    assert records[stays].swaps
    assert [one.run for one in undo.discard(case.hub)] == [stays]
    assert not any(case.replaced.iterdir())
    assert not any(one.swaps for one in case.hub.journal.runs())
