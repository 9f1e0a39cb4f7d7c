"""What did not run is told in the last lines, and fails under CI: the rule for all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

INI = """
[pytest]
testpaths = tests
markers =
    unit: u
    clients: c
    contract: k
    e2e: e
"""
RAN = "import pytest\npytestmark = pytest.mark.{tier}\ndef test_it(): pass\n"
LACKS = (
    "import pytest\nfrom tests.conftest import need\npytestmark = pytest.mark.{tier}\n"
    "def test_it(): pass\ndef test_one(): need('nonesuch')\ndef test_two(): need('nonesuch')\n"
)


def suite(folder: Path, **tiers: str) -> None:
    """Write a suite with one file for each tier."""
    (folder / "pytest.ini").write_text(INI)
    for tier, text in tiers.items():
        (folder / "tests" / tier).mkdir(parents=True)
        (folder / "tests" / tier / f"test_{tier}.py").write_text(text.format(tier=tier))


def run(folder: Path, *argv: str, ci: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CI": "true" if ci else ""},
        capture_output=True,
        text=True,
        check=False,
    )


WHOLE = {tier: RAN for tier in ("unit", "clients", "contract", "e2e")}


def test_a_whole_run_names_the_tiers_last(tmp_path: Path) -> None:
    suite(tmp_path, **WHOLE)
    done = run(tmp_path, ci=True)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout.splitlines()[-2]
    assert done.stdout.splitlines()[-1] == "tiers run: unit 1, clients 1, contract 1, e2e 1"


@pytest.mark.parametrize("ci", [False, True])
def test_what_lacks_its_server_is_told_and_fails_under_ci(tmp_path: Path, ci: bool) -> None:
    suite(tmp_path, **{**WHOLE, "contract": LACKS})
    done = run(tmp_path, ci=ci)
    assert done.returncode == (1 if ci else 0)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("tiers not run: contract (2 for want of nonesuch: ")


def test_a_module_that_lacks_its_server_is_told_too(tmp_path: Path) -> None:
    text = "from tests.conftest import need\nneed('nonesuch')\n" + RAN
    suite(tmp_path, **{**WHOLE, "e2e": text})
    done = run(tmp_path, ci=True)
    assert done.returncode == 1
    assert "tiers not run: e2e (1 for want of nonesuch: " in done.stdout.splitlines()[-1]


def test_a_tier_without_any_test_is_not_run(tmp_path: Path) -> None:
    suite(tmp_path, unit=RAN, clients=RAN, contract=RAN)
    done = run(tmp_path, ci=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "tiers not run: e2e (there was no test of it to run)"


def test_a_chosen_part_is_not_blamed_for_the_rest(tmp_path: Path) -> None:
    suite(tmp_path, unit=RAN, clients=RAN)
    for argv in (["tests/unit"], ["-m", "unit"], ["-k", "unit"]):
        done = run(tmp_path, *argv, ci=True)
        assert done.returncode == 0 and "tiers" not in done.stdout, argv


def test_an_ordinary_skip_is_no_missing_server(tmp_path: Path) -> None:
    skipped = RAN + "def test_skipped(): pytest.skip('not here')\n"
    suite(tmp_path, **{**WHOLE, "unit": skipped})
    assert run(tmp_path, ci=True).returncode == 0
