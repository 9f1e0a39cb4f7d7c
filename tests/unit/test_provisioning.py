"""Grafana's provisioning files: what is found in them before a Grafana reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from iotops.clients.grafanaprovisioning import Fault, faults
from iotops.model import Severity

pytestmark = pytest.mark.unit

TEMPLATE = Path(__file__).resolve().parents[2] / "iotops/actions/template/grafana/provisioning"
INSIDE = "/etc/grafana/provisioning"
ENVIRONMENT = {"INFLUXDB_ORG": "home", "INFLUXDB_BUCKET": "iot", "INFLUXDB_TOKEN": "geheim"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The built-in template's files."""
    shutil.copytree(TEMPLATE, tmp_path / "provisioning")
    return tmp_path / "provisioning"


def found(folder: Path, environment: Mapping[str, str] = ENVIRONMENT) -> list[Fault]:
    def there(path: str) -> Path | None:
        inside = path.startswith(INSIDE)
        return folder / path.removeprefix(INSIDE).lstrip("/") if inside else None

    return [*faults(folder, environment, there)]


def one(folder: Path, code: str, severity: Severity, *words: str) -> None:
    (fault,) = found(folder)
    assert (fault.code, fault.severity) == (code, severity), fault
    assert fault.hint and all(word in fault.message for word in words), fault


def sources(folder: Path, text: str) -> None:
    (folder / "datasources" / "influxdb.yaml").write_text(f"apiVersion: 1\ndatasources:\n{text}")


GOOD = "  - {name: A, uid: a, type: influxdb}\n"


def test_the_template_is_good(folder: Path) -> None:
    assert found(folder) == []


@pytest.mark.parametrize(
    "text", ["a: [\n", "a:\n\t- b\n", "- a\n b: {", "just hunter2\n", "a: !!x y"]
)
def test_what_is_no_yaml(folder: Path, text: str) -> None:
    (folder / "datasources" / "influxdb.yaml").write_text(text)
    one(folder, "grafana.yaml", Severity.ERROR, "datasources/influxdb.yaml")
    assert "hunter2" not in repr(found(folder))


def test_yaml_is_asked_for_wherever_grafana_reads_it(folder: Path) -> None:
    (folder / "alerting").mkdir()
    (folder / "alerting" / "rules.yml").write_text("groups: [")
    (folder / "alerting" / "notes.txt").write_text("groups: [")
    one(folder, "grafana.yaml", Severity.ERROR, "alerting/rules.yml")


def test_two_defaults(folder: Path) -> None:
    sources(
        folder,
        "  - {name: A, uid: a, type: x, isDefault: true}\n"
        "  - {name: C, uid: c, type: x, isDefault: true, orgId: 2}\n",
    )
    assert found(folder) == []
    text = "datasources: [{name: B, uid: b, type: x, isDefault: true}]\n"
    (folder / "datasources" / "more.yml").write_text("apiVersion: 1\n" + text)
    one(folder, "grafana.default", Severity.ERROR, "more.yml")


@pytest.mark.parametrize(
    ("text", "code", "severity"),
    [
        ("  - {name: A, type: x}\n", "grafana.uid", Severity.WARNING),
        ("  - {name: A, uid: a}\n", "grafana.datasource", Severity.ERROR),
        (GOOD + "  - {name: B, uid: a, type: x}\n", "grafana.twice", Severity.ERROR),
        (GOOD + "  - {name: A, uid: b, type: x}\n", "grafana.twice", Severity.ERROR),
        (
            "  - {name: A, uid: a, type: x, secureJsonData: {token: geheim}}\n",
            "grafana.secret",
            Severity.ERROR,
        ),
        ("  - {name: A, uid: a, type: x, url: $NOBODY}\n", "grafana.variable", Severity.WARNING),
    ],
)
def test_a_data_source(folder: Path, text: str, code: str, severity: Severity) -> None:
    sources(folder, text)
    one(folder, code, severity)
    assert "geheim" not in repr(found(folder))


@pytest.mark.parametrize(
    "text", ["${INFLUXDB_ORG}", "a$$b", "$__file{/run/secrets/x}", "$__env{X}"]
)
def test_what_is_no_missing_variable(folder: Path, text: str) -> None:
    sources(folder, f"  - {{name: A, uid: a, type: x, url: '{text}'}}\n")
    assert found(folder) == []


def test_labels_of_alerting_are_no_variables(folder: Path) -> None:
    (folder / "alerting").mkdir()
    (folder / "alerting" / "rules.yaml").write_text("summary: '{{ $labels.room }} $values'\n")
    assert found(folder) == []


def test_a_provider_without_a_path_or_with_one_that_is_not_there(folder: Path) -> None:
    path = folder / "dashboards" / "hub.yaml"
    path.write_text("apiVersion: 1\nproviders: [{name: hub, options: {}}]\n")
    one(folder, "grafana.provider", Severity.ERROR, "options.path")
    path.write_text("apiVersion: 1\nproviders: [{name: hub, options: {path: /dashboards}}]\n")
    one(folder, "grafana.provider", Severity.WARNING, "/dashboards")
    path.write_text(f"- {{name: hub, folder: '', options: {{folder: {INSIDE}/dashboards}}}}\n")
    assert found(folder) == []  # the first form of these files


def test_dashboards(folder: Path) -> None:
    board = folder / "dashboards" / "house" / "one.json"
    board.parent.mkdir()
    board.write_text(json.dumps({"title": "One", "uid": "one"}))
    assert found(folder) == []
    board.with_name("two.json").write_text(json.dumps({"title": "Two", "uid": "one"}))
    one(folder, "grafana.twice", Severity.ERROR, "house/one.json", "house/two.json")
    board.with_name("two.json").write_text(json.dumps({"uid": "two"}))
    one(folder, "grafana.dashboard", Severity.ERROR, "title")
    board.with_name("two.json").write_text('{\n"title": "hunter2\n')
    one(folder, "grafana.dashboard", Severity.ERROR, "house/two.json", "line 2")
    board.with_name("two.json").write_text(json.dumps({"title": "Two"}))
    one(folder, "grafana.uid", Severity.WARNING)
