"""The ledger of drills: what it shows of a drill, and of one that did not get far."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from iotops import disk
from iotops.actions import drill
from iotops.cli import iotops
from iotops.hub import Hub

pytestmark = pytest.mark.unit

ID = "0123456789abcdef"
WHOLE = {"rto_seconds": "24.5", "disk": "34500000", "memory": "72300000"}


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A hub with two drills on record, the second one older than the memory of restic."""
    folder, root = tmp_path / "hub", tmp_path / "data"
    folder.mkdir()
    root.mkdir()
    (folder / "iotops.toml").write_text(
        f'[hub]\nid = "{ID}"\nname = "h"\nowner = "root"\n'
        f'[data]\nroot = "{root}"\nkind = "folder"\n'
        f'[paths]\nstate = "{tmp_path}/state"\nrun = "{tmp_path}/run"\n'
    )
    disk.claim(root, "folder", ID, "h")
    made = Hub.open(folder)
    for name, about, outcome, message in (
        ("20260301T030000Z-drill-aaaa", WHOLE, "complete", ""),
        (
            "20260302T030000Z-drill-bbbb",
            {**WHOLE, "restic_memory": "71300000", "compared": "17"},
            "failed",
            "influxdb: points: 5 recorded, 4 found",
        ),
        ("20260303T030000Z-drill-cccc", {}, "failed", "there is no repository at the address"),
    ):
        document = {
            **{"id": name, "action": "drill", "started": "2026-03-01T03:00:00+00:00", "pid": 1},
            **{"boot": "another", "outcome": outcome, "ended": "2026-03-01T03:01:00+00:00"},
            **{"snapshot": "a44a5d97" * 8, "message": message, "about": about},
            "services": {"influxdb": "as recorded (2 numbers: points, tokens)"},
        }
        (made.layout.journal / f"{name}.json").write_text(json.dumps(document))
    return made


def test_a_drill_is_shown_with_all_that_was_measured(hub: Hub) -> None:
    done = CliRunner().invoke(iotops, ["drill", "--list", "--hub", str(hub.folder)])
    assert done.exit_code == 0, done.output
    rows = [re.split(r"  +", line) for line in done.output.splitlines()]
    assert rows[0][-6:] == ["took", "disk", "memory", "restic", "numbers", "what"]
    measured = ["24.5 s", "34.5 MB", "72.3 MB"]
    assert rows[1][3:] == [*measured, "-", "-", "influxdb"]
    failed = "influxdb: points: 5 recorded, 4 found"
    assert rows[2][1:] == ["a44a5d97", "failed", *measured, "71.3 MB", "17", failed]
    assert rows[3][3:] == [*"-----", "there is no repository at the address"]


def test_the_ledger_is_the_same_in_json(hub: Hub) -> None:
    done = CliRunner().invoke(iotops, ["drill", "--list", "--json", "--hub", str(hub.folder)])
    found = json.loads(done.output)
    assert [one["restic_memory"] for one in found] == ["", "71300000", ""]
    assert [one["compared"] for one in found] == ["", "17", ""]
    assert found[1]["services"] == dict(drill.ledger(hub)[1].services)
