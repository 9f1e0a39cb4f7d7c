"""One hub with one backup for each version of restic, and copies of it for tests to change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.lighthub import VERSIONS, LightHub


@pytest.fixture(scope="session")
def light_hubs() -> dict[str, LightHub]:
    """The hubs by version, as they were needed; nothing changes these."""
    return {}


@pytest.fixture(params=VERSIONS)
def hub(
    request: pytest.FixtureRequest,
    light_hubs: dict[str, LightHub],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> Iterator[LightHub]:
    """A hub of its own for a test, in every version unless it says otherwise."""
    version = str(request.param)
    need("restic")
    if version not in light_hubs:
        made = LightHub(tmp_path_factory.mktemp("light") / "base", version)
        made.make()
        made.good("backup")
        light_hubs[version] = made
    yield LightHub(tmp_path / "base", version, like=light_hubs[version])
