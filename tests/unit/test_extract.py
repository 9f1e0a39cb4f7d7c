"""What came out of a repository is not believed: rights that a file must not bring along."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iotops.actions import extract
from iotops.clients.staging import Staging
from iotops.events import silent
from iotops.model import HostRecord, Manifest, Outcome, PartRecord

pytestmark = pytest.mark.unit

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw+ep, version 2 (capabilities(7))."""


def test_a_program_with_capabilities_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a file capabilities")
    live = tmp_path / "live"
    live.mkdir()
    (live / "program").write_bytes(b"#!/bin/sh\n")
    staging = Staging(live, tmp_path / "out/other", prefix="other", memory=tmp_path / "memory")
    staging.rest()
    part = PartRecord("other", staging.finish().every)
    now = datetime.now(UTC)
    made = Manifest(
        1, "0" * 16, "h", "run", HostRecord("h", "m", "s"), {}, now, now, Outcome.COMPLETE
    )
    made = Manifest(**{**made.__dict__, "parts": (part,)})
    assert extract.check(tmp_path / "out", made, ["other"], silent) == []
    os.setxattr(tmp_path / "out/other/program", "security.capability", CAPABILITY)
    (found,) = extract.check(tmp_path / "out", made, ["other"], silent)
    assert found.code == "check.rights" and "other/program" in found.message


def test_room_is_asked_for_without_holes_where_they_are_kept(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    with (live / "sparse").open("wb") as file:
        file.truncate(64 << 20)
    (live / "plain").write_bytes(b"x" * 5000)
    staging = Staging(live, tmp_path / "out", prefix="part", memory=tmp_path / "memory")
    staging.rest()
    artifacts = staging.finish().artifacts
    assert extract.room_for(artifacts, keeps_holes=True) == 5000
    assert extract.room_for(artifacts, keeps_holes=False) == (64 << 20) + 5000
