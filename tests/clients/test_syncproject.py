"""The target's Compose project is read as Compose will read it in the hub folder; real Compose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from iotops.actions.syncplan import File
from iotops.actions.syncproject import taken_in, target_project
from iotops.clients.compose import ComposeStack
from iotops.errors import StackError
from iotops.hub import Hub
from tests.conftest import need
from tests.support.lighthub import VERSIONS, LightHub

pytestmark = pytest.mark.clients

TOP = "docker-compose.yaml"
ONE = "services:\n  one:\n    image: x:1\n    volumes: ['./conf:/conf:ro', '../../far:/far']\n"
DEEP = """services:
  two:
    image: x:2
    env_file: [in.words, ../../around.words]
    volumes: [".:/here"]
    profiles: [more]
"""


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A hub folder in two folders of its own."""
    for what in ("docker", "compose", "restic"):
        need(what)
    return Hub.open(LightHub(tmp_path / "a" / "b", VERSIONS[-1]).folder)


@dataclass(frozen=True)
class Case:
    """What Git knows here, what the target says, and what only the machine has; by path."""

    known: dict[str, str]
    wanted: dict[str, str]
    own: dict[str, str] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()


CASES = {
    "variables": Case(
        {TOP: ONE + "    env_file: a.words\n", "a.words": "A=1\n"},
        {TOP: ONE + "    env_file: a.words\n", "a.words": "A='2 $$x'\nB=${V}\n"},
        {".env": "V=7\n"},
        frozenset({"a.words"}),
    ),
    "extended": Case(
        {TOP: "services: {one: {extends: {file: ./p/e.yaml, service: b}}}\n"},
        {
            TOP: "services: {one: {extends: {file: ./p/e.yaml, service: b}}}\n",
            "p/e.yaml": "services: {b: {image: 'x:2', volumes: ['./d:/d']}}\n",
        },
        {"p/unknown": "x"},
        frozenset({"p/e.yaml"}),
    ),
    "an include of an include": Case(
        {TOP: f"include: [p/m.yaml]\n{ONE}", "p/m.yaml": "services: {}\n"},
        {
            TOP: f"include: [p/m.yaml]\n{ONE}",
            "p/m.yaml": "include: [q/deep.yaml]\nservices: {}\n",
            "p/q/deep.yaml": DEEP,
        },
        {
            ".env": "COMPOSE_PROFILES=more\n",
            "p/q/in.words": "IN=1\n",
            "around.words": "AROUND=1\n",
        },
        frozenset({"p/m.yaml", "p/q/deep.yaml", "p/q/in.words", "around.words"}),
    ),
    "an override of the machine's own": Case(
        {TOP: ONE, "gone/x.words": "X=1\n"},
        {TOP: ONE.replace("x:1", "x:3")},
        {
            "docker-compose.override.yaml": "services: {one: {env_file: [o.words, "
            "{path: gone/x.words, required: false}]}}\n",
            "o.words": "O=1\n",
        },
        frozenset({"o.words", "gone/x.words"}),
    ),
    "files that .env names": Case(
        {"first.yaml": ONE, "second.yaml": "services: {}\n"},
        {
            "first.yaml": ONE,
            "second.yaml": "services: {one: {environment: [X=1], env_file: ../far.words}}\n",
        },
        {".env": "COMPOSE_FILE=first.yaml:second.yaml\n", "../far.words": "FAR=1\n"},
    ),
}


def write(hub: Hub, files: dict[str, str]) -> None:
    for path, text in files.items():
        (hub.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (hub.folder / path).write_text(text)


def looks(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    }


def given(texts: dict[str, str]) -> dict[str, File]:
    return {path: File(text.encode()) for path, text in texts.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_read_as_it_will_be(hub: Hub, case: Case) -> None:
    (hub.folder / TOP).unlink()
    write(hub, {**case.known, **case.own})
    hub = Hub.open(hub.folder)
    before = looks(hub.folder.parent)
    with target_project(hub, given(case.wanted), case.known.keys()) as project:
        model, hashes, taken = project.model(), project.hashes(), taken_in(hub, project)
    assert looks(hub.folder.parent) == before
    for path in case.known.keys() - case.wanted.keys():
        (hub.folder / path).unlink()
    write(hub, case.wanted)
    really = ComposeStack(hub.folder)
    assert model == really.model()
    assert dict(hashes) == dict(really.hashes()) and hashes
    assert taken == case.taken == taken_in(hub, really)


def test_what_it_would_miss_is_named_as_in_the_hub_folder(hub: Hub) -> None:
    known = {TOP: ONE + "    env_file: a.words\n", "a.words": "A=1\n"}
    write(hub, known)
    for wanted, missing in (({TOP: known[TOP]}, "a.words"), ({}, "docker-compose.yaml in ")):
        with (
            target_project(hub, given(wanted), known.keys()) as project,
            pytest.raises(StackError) as raised,
        ):
            project.model()
        assert missing in raised.value.message and str(hub.folder.resolve()) in raised.value.message
        assert "iotops-sync-" not in raised.value.message + raised.value.hint


def test_a_link_of_the_commit_leads_nowhere_out_of_the_copy(hub: Hub) -> None:
    """Such a commit is refused; nothing may be written behind its link before that."""
    (hub.folder / "real").mkdir()
    write(hub, {TOP: ONE, "sub/x": "x\n", "sub/own": "o\n"})
    wanted = given({TOP: ONE}) | {"sub": File(b"real", link=True)}
    before = looks(hub.folder)
    with target_project(hub, wanted, {TOP, "sub/x"}) as project:
        assert project.hashes()
    assert looks(hub.folder) == before
