"""The contract of every service kind, against its real server.

For each kind found by the product there must be a `kind_<name>.py` here (see `protocol.py`). Where
the lab has only a stand-in for a server, the test's own id says so.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from iotops import services
from iotops.model import Mode, Severity
from tests.conftest import need
from tests.contract.bench import Bench, differences
from tests.contract.protocol import KindUnderTest
from tests.support.lab import lab, lines_of

pytestmark = pytest.mark.contract


@dataclass(frozen=True)
class Case:
    """One class of a kind on one image; without a class the kind has no test."""

    kind: str
    image: str = ""
    under_test: type[KindUnderTest[object]] | None = None

    def __str__(self) -> str:
        """Name the test by the image and by what is tried; a stand-in is called one."""
        image = lab().images.get(self.image)
        parts = [self.kind if self.image in ("", "base") else self.image]
        parts += [self.under_test.variant] if self.under_test and self.under_test.variant else []
        parts += ["on-a-stand-in"] if image is not None and image.stand_in else []
        return "-".join(parts)


def under_test(name: str) -> tuple[type[KindUnderTest[object]], ...]:
    """Give a kind's classes for this suite; a kind without one fails by its name."""
    path = Path(__file__).with_name(f"kind_{name}.py")
    if not path.is_file():
        pytest.fail(f"the kind {name} has no test: write tests/contract/{path.name}")
    module = importlib.import_module(f"tests.contract.kind_{name}")
    found: tuple[type[KindUnderTest[object]], ...] = getattr(module, "KINDS", (module.Kind,))
    assert all(one.kind == name for one in found)
    return found


def cases(name: str) -> list[Case]:
    """Give what is to be tried of a kind: its classes, on every line of their server."""
    if not Path(__file__).with_name(f"kind_{name}.py").is_file():
        return [Case(name)]
    found = []
    for one in under_test(name):
        every = (one.lab_image, *lines_of(one.lab_image))
        found += [Case(name, image, one) for image in one.lines or every]
    return found


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A bench with the kind's project written and nothing started; it is removed at the end."""
    case: Case = request.param
    kind = case.under_test or under_test(case.kind)[0]
    for part in ("docker", "compose", "root", f"image {case.image}"):
        need(part)
    made = Bench(kind, lab().images[case.image], tmp_path)
    try:
        made.prepare()
        yield made
    finally:
        made.end()


every_kind = pytest.mark.parametrize(
    "bench", [case for name in services.kinds() for case in cases(name)], ids=str, indirect=True
)


@every_kind
def test_captured_lost_and_put_back(bench: Bench) -> None:
    """The story: seed, capture hot, lose everything, put it back, find all of it again."""
    bench.up()
    kind, service = bench.kind, bench.service()
    assert service.probe().reachable
    answers = kind.seed()
    assert kind.check(answers) == [], "the judge must be content before anything happens"
    planted = bench.plant()
    os.mkfifo(bench.ground.folder / "a pipe")
    before = bench.hashes(bench.ground.folder)
    started = bench.started_at()

    record = bench.capture()

    assert record.counts and all(number > 0 for number in record.counts.values()), record.counts
    if service.mode is Mode.HOT:
        assert bench.started_at() == started, "a hot capture neither stops nor restarts"
    now = bench.hashes(bench.ground.folder)
    assert {path: now.get(path) for path in before} == before, "the live files are not ours"
    assert {one.pattern for one in record.left_out} >= {"(sockets, pipes, devices)"}

    again = bench.capture(record)

    assert settled(bench, again) == settled(bench, record)
    assert again.counts.keys() == record.counts.keys()
    assert leaks(bench, again) == []

    bench.stop()
    dead = bench.service()
    assert not dead.probe().reachable, "a dead server is a fact"
    assert not dead.ready().ok

    bench.wipe()
    notes = bench.put_back(again)

    # All of it comes back as it was, but no file as a way to be root.
    kept = {
        path: replace(seen, mode=seen.mode & ~0o6000)
        for path, seen in planted.items()
        if not bench.excluded(path)
    }
    assert len(kept) >= 20
    assert differences(kept, bench.ground.folder, content_only=False) == [], notes
    bench.start()
    bench.await_ready()
    service = bench.service()
    assert [f for f in service.verify(again) if f.severity is not Severity.INFO] == []
    assert kind.check(answers) == []
    still = {path: seen for path, seen in kept.items() if not bench.moves(path)}
    assert differences(still, bench.ground.folder, content_only=True) == []

    kind.sabotage()
    assert kind.check(answers) != [], "a judge that finds nothing is none"


@every_kind
def test_declares_itself(bench: Bench) -> None:
    """What the class says of itself is what the settings and the manifest need."""
    service = bench.service()
    assert service.kind == bench.kind.kind
    assert service.options.kind == service.kind
    for rule in service.excludes:
        assert rule.pattern and rule.reason and not rule.pattern.startswith("/")
    assert len({rule.pattern for rule in service.excludes}) == len(service.excludes)


def settled(bench: Bench, record: object) -> dict[str, str]:
    """The hashes of a capture, without what the running server changes by itself."""
    from iotops.model import ServiceRecord

    assert isinstance(record, ServiceRecord)
    start = f"{record.folder}/"
    return {
        one.path: one.sha256
        for one in record.artifacts
        if one.type == "file" and not bench.moves(one.path.removeprefix(start))
    }


def leaks(bench: Bench, record: object) -> list[str]:
    """Names of secrets whose value stands in the record that becomes the manifest."""
    text = repr(record)
    return [name for name, value in bench.kind.env().items() if len(value) > 5 and value in text]


def test_a_kind_without_a_test_is_named() -> None:
    with pytest.raises(pytest.fail.Exception, match="the kind teapot has no test"):
        under_test("teapot")
