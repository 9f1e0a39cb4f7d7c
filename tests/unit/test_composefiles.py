"""Which files a Compose project is made of, in the forms in which people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from iotops.clients import composefiles

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "text",
    [
        "include:\n  - a.yaml\n  - ../b.yaml\nservices:\n  x: {image: y}\n",
        "include:\n- a.yaml\n- '../b.yaml'  # beside\n\nservices: {}\n",
        'services: {}\ninclude: [a.yaml, "../b.yaml"]\n',
        "include:\n  - path: a.yaml\n    project_directory: ..\n  - path: ../b.yaml\n",
        "include:\n  - path:\n      - a.yaml\n      - ../b.yaml\n",
        "include:\n  - a.yaml\n  - path: [../b.yaml]\n  - $UNKNOWN/c.yaml\n  - oci://c\n",
    ],
)
def test_included_files(text: str) -> None:
    assert composefiles.included(text) == ("a.yaml", "../b.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "services:\n  x:\n    env_file: one.env\n    image: y\n",
        "services:\n  x:\n    env_file:\n      - one.env\n    image: y\n",
        "services:\n  x:\n    env_file:\n    - one.env\n    image: y\n",
        "services:\n  x:\n    env_file:\n      - path: one.env\n        required: false\n",
        "services:\n  x:\n    env_file: ['one.env']\n",
        "services:\n  x:\n    extends:\n      file: one.env\n      service: z\n",
        "services:\n  x:\n    extends: {file: one.env, service: z}\n",
        "configs: {c: {file: one.env}}\n",
    ],
)
def test_files_that_are_read_besides(text: str) -> None:
    assert composefiles.read_besides(text) == ("one.env",)


def test_nothing_is_named_by_other_words() -> None:
    text = "services:\n  x:\n    image: y\n    volumes: [profile:/data]\n    dockerfile: no\n"
    assert composefiles.included(text) == () == composefiles.read_besides(text)


def test_every_part_of_a_project_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    top, sub = tmp_path / "compose.yaml", tmp_path / "sub" / "more.yaml"
    top.write_text("include: [sub/more.yaml, gone.yaml]\nservices: {x: {env_file: x.env}}\n")
    sub.write_text("include: [../compose.yaml]\nservices: {y: {env_file: y.env}}\n")
    assert {*composefiles.parts([top])} == {
        top,
        sub,
        tmp_path / "gone.yaml",
        tmp_path / "x.env",
        tmp_path / "sub" / "y.env",
    }


def test_the_files_that_compose_starts_with(tmp_path: Path) -> None:
    assert composefiles.top_files(tmp_path, "") == ()
    for name in ("docker-compose.yml", "docker-compose.override.yml", "extra.yaml"):
        (tmp_path / name).write_text("services: {}\n")
    usual = (tmp_path / "docker-compose.yml", tmp_path / "docker-compose.override.yml")
    assert composefiles.top_files(tmp_path, "A=1\n") == usual
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    assert composefiles.top_files(tmp_path, "") == (tmp_path / "compose.yaml",)
    told = composefiles.top_files(tmp_path, "COMPOSE_FILE='extra.yaml:compose.yaml'\n")
    assert told == (tmp_path / "extra.yaml", tmp_path / "compose.yaml")


def test_whether_a_project_has_a_name_of_its_own(tmp_path: Path) -> None:
    top = tmp_path / "compose.yaml"
    top.write_text("services: {x: {container_name: y}}\n")
    assert not composefiles.names_itself([top], "")
    assert composefiles.names_itself([top], "COMPOSE_PROJECT_NAME=mine\n")
    top.write_text("name: mine\nservices: {}\n")
    assert composefiles.names_itself([top], "")
