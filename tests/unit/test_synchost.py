"""What config-sync says of the host: installed units, and what mounts the data root."""

from __future__ import annotations

from pathlib import Path

import pytest

from iotops.actions.synchost import mount, units
from iotops.actions.syncplan import Change, ChangeKind, SyncFacts, plan
from iotops.model import OnChange

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).parents[2] / "systemd"


def installed(folder: Path) -> None:
    for name in ("iotops-backup.service", "iotops-backup.timer"):
        (folder / name).write_bytes((SHIPPED / name).read_bytes())


def test_units_as_they_were_shipped_are_equal(tmp_path: Path) -> None:
    installed(tmp_path)
    (tmp_path / "iotops-backup.timer.d").mkdir()  # a drop-in is the owner's
    (tmp_path / "iotops-backup.timer.d" / "time.conf").write_text("[Timer]\nOnCalendar=\n")
    (tmp_path / "iotops-own.service").write_text("[Service]\n")  # and so is this
    (tmp_path / "iotops-gone.service").symlink_to(tmp_path / "nowhere")
    assert [*units(tmp_path)] == []


def test_a_unit_of_another_version_is_told_with_its_diff(tmp_path: Path) -> None:
    installed(tmp_path)
    path = tmp_path / "iotops-backup.timer"
    path.write_text(path.read_text().replace("OnCalendar=", "OnCalendar=Mon "))
    (found,) = units(tmp_path)
    assert (found.path, found.kind) == (str(path), ChangeKind.HOST)
    assert found.on_change is OnChange.NOTHING and not found.service
    assert "-OnCalendar=Mon " in found.diff and "+OnCalendar=" in found.diff


def test_a_machine_without_units_has_nothing_to_compare(tmp_path: Path) -> None:
    assert [*units(tmp_path / "none")] == []


def test_a_unit_that_differs_is_drift_and_nothing_to_write() -> None:
    one = Change("/x/iotops-a.timer", ChangeKind.HOST, "diff", "", OnChange.NOTHING)
    decided = plan(SyncFacts("h", "h", "h", {}, {}, {}, {}, host=(one,)))
    assert decided.changes == (one,) and not decided.equal and not decided.refused
    assert decided.files == () and decided.services == {}


def test_a_data_root_that_nothing_mounts_at_boot(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (tmp_path / "other.mount").write_text("[Mount]\nWhere=/elsewhere\n")
    (tmp_path / "gone.mount").symlink_to(tmp_path / "nowhere")
    (found,) = mount(root, tmp_path)
    assert found.code == "host.mount" and str(root) in found.message and "findmnt" in found.hint
    (tmp_path / "data.mount").write_text(f"[Mount]\nWhat=/dev/sda1\nWhere={root}\n")
    assert [*mount(root, tmp_path)] == []
