"""One hub that is up, seeded and backed up, shared by the e2e tests of a session.

A test that changes it puts it back; the fixture checks that all four services run afterwards.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.hubs import HubUnderTest
from tests.support.killmatrix import LightHub, light_hub

SERVICES = frozenset({"mosquitto", "nodered", "influxdb", "grafana"})


@pytest.fixture(scope="session")
def shared() -> Iterator[HubUnderTest]:
    """A hub that is up and has one complete backup."""
    need("docker")
    need("root")
    base = Path(tempfile.mkdtemp(prefix="iotops-e2e-", dir="/var/tmp"))
    hub = HubUnderTest(base)
    try:
        hub.make()
        up = hub.iotops("up")
        assert up.code == 0, up.err + up.out
        first = hub.iotops("backup", "--json")
        assert first.code == 0, first.err + first.out
        yield hub
    finally:
        if not os.environ.get("IOTOPS_TEST_KEEP"):
            hub.remove()


@pytest.fixture
def hub(shared: HubUnderTest) -> Iterator[HubUnderTest]:
    """The shared hub; whatever a test does, afterwards the four services run again."""
    yield shared
    left = shared.running()
    if left != SERVICES:
        shared.iotops("resume")
        again = shared.iotops("up")
        assert again.code == 0, again.err
    assert left == SERVICES, f"the test left {sorted(SERVICES - left)} stopped"


@pytest.fixture(scope="session")
def light_hubs() -> Iterator[list[LightHub]]:
    """Three hubs of one server each, for tests that end a run (`tests/support/killmatrix.py`)."""
    for what in ("docker", "compose", "root", "restic", "image mosquitto"):
        need(what)
    with ThreadPoolExecutor(3) as pool:
        making = [pool.submit(light_hub) for _ in range(3)]
    made = [one.result() for one in making if one.exception() is None]
    try:
        for one in making:
            one.result()
        yield made
    finally:
        for hub in made:
            if not os.environ.get("IOTOPS_TEST_KEEP"):
                hub.remove()
