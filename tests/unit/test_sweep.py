"""Staging holds what this run staged, and nothing of a service that left the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from iotops.actions.snapshot import sweep

pytestmark = pytest.mark.unit


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_no_service_staged_goes_by_its_whole_path(tmp_path: Path) -> None:
    for name in ("apps/one/a", "apps/one/deep/b", "apps/two/c", "apps/d", "apps-old/e", "hub/f"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "left").touch()
    (tmp_path / "manifest.json").touch()
    sweep(tmp_path, {"apps/one", "hub", "manifest.json"})
    assert tree(tmp_path) == {"apps/one/a", "apps/one/deep/b", "hub/f", "manifest.json"}
    assert not (tmp_path / "apps-old").exists() and not (tmp_path / "apps/two").exists()


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "apps").mkdir(parents=True)
    (outside / "apps/mine").touch()
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "apps").symlink_to(outside / "apps")
    sweep(staging, {"apps/one"})
    assert tree(outside) == {"apps/mine"} and not [*staging.iterdir()]
