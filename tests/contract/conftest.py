"""What the tests of InfluxDB share: influxd as a program, a data root, the service for it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.influxbench import Bench
from tests.support.influxd import Influxd, Starter, take_program
from tests.support.lab import lab


@pytest.fixture(scope="session")
def influxd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's program: the lab's own build, or taken out of the image."""
    if built := lab().programs.get("influxd"):
        return built
    need("docker")
    need("image influxdb")
    program = tmp_path_factory.mktemp("program") / "influxd"
    take_program(lab().images["influxdb"].reference, "influxd", program)
    return program


@pytest.fixture
def start(influxd: Path) -> Iterator[Starter]:
    """Start servers on folders; all are ended with the test."""
    running: list[Influxd] = []

    def begin(folder: Path, *settings: str, setup: bool = True) -> Influxd:
        server = Influxd(str(influxd), folder, settings=settings)
        running.append(server)
        server.start()
        if setup:
            server.setup()
        return server

    yield begin
    for server in running:
        server.stop()


@pytest.fixture
def server(tmp_path: Path, start: Starter) -> Influxd:
    """A server that was set up, on the `influxdb` folder of a data root."""
    return start(tmp_path / "data" / "influxdb")


@pytest.fixture
def bench(tmp_path: Path, server: Influxd) -> Bench:
    """The product's service for that server."""
    return Bench(tmp_path / "data", server.url, server.token)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than the data's."""
    folder = Path("/dev/shm") / f"iotops-test-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir(mode=0o700)
    assert folder.stat().st_dev != tmp_path.stat().st_dev
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)
