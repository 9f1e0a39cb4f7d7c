"""What all tests share: a missing server or program is told at the end, never skipped in silence.

`need("docker")` at the start of a fixture or test ends it as NOT RUN where that part is missing.
The tiers that were touched are listed after the run, and under CI=true the run then fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache

import hypothesis
import pytest

from tests.support.lab import lab

# No clock decides a property: a busy machine is slow, not wrong.
hypothesis.settings.register_profile("iotops", deadline=None)
hypothesis.settings.load_profile("iotops")

# Started as `nohup` does, this run goes on when the terminal is lost, and what a test starts must
# hear it all the same: a child inherits an ignored signal, but not a handler.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

NOT_RUN = "NOT RUN: "
TIERS = ("unit", "clients", "contract", "e2e")


def need(what: str) -> None:
    """End the test as not run unless a part of the lab is there.

    Args:
        what: "docker" (an engine that answers), "compose", "root", "restic", "restic 0.18.0",
            "image grafana", "real grafana" (its image, and no stand-in), or the name of a program,
            built by the lab or on PATH.
    """
    missing = _missing(what)
    if missing:
        pytest.skip(f"{NOT_RUN}{what}: {missing}", allow_module_level=True)


@cache
def _missing(what: str) -> str:
    """Tell why a part is missing; empty when it is there."""
    kind, _, name = what.partition(" ")
    here = lab()
    if kind == "root":
        return "" if os.geteuid() == 0 else "the tests do not run as root"
    if kind == "docker":
        return _docker()
    if kind == "compose":
        return "" if here.compose else _reason("compose")
    if kind == "restic":
        return "" if (name in here.restic if name else here.restic) else _reason(what)
    if kind in ("image", "real"):
        image = here.images.get(name)
        if image is None:
            return _reason(name)
        return "only a stand-in" if kind == "real" and image.stand_in else ""
    return "" if what in here.programs or shutil.which(what) else _reason(what)


def _reason(name: str) -> str:
    return lab().not_had.get(name, "the lab has none; see tests/lab/lab.py up")


def _docker() -> str:
    """Ask the engine itself: a description of it does not mean that it runs now."""
    if shutil.which("docker") is None:
        return "the program docker is not installed"
    try:
        asked = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=30,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the engine does not answer"
    return "" if asked.returncode == 0 else "no engine answers; see tests/lab/lab.py up"


class Tiers:
    """Counts what ran and what ended as not run, by tier, and says so in the very last lines."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.ran: Counter[str] = Counter()
        self.found: Counter[tuple[str, str]] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tier = next((one for one in TIERS if one in report.keywords), "tests")
        if report.skipped:
            self._note(report.longrepr, tier)
        elif report.when == "call" or report.failed:
            self.ran[tier] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            folders = report.nodeid.split("/")
            self._note(report.longrepr, next((one for one in TIERS if one in folders), "tests"))

    def _note(self, why: object, tier: str) -> None:
        text = str(why[2]) if isinstance(why, tuple) else str(why)
        _, found, reason = text.partition(NOT_RUN)
        if found:
            self.found[tier, reason] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Under CI nothing may be missing: what is not run is a failure there."""
        if self.whole:
            for tier in TIERS:
                if not self.ran[tier] and not any(one == tier for one, _ in self.found):
                    self.found[tier, ""] += 1
        if self.found and os.environ.get("CI") == "true" and session.exitstatus in (0, 5):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Write after pytest's own last line, where it is seen."""
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or not (self.whole or self.found):
            return
        shown = ", ".join(f"{tier} {self.ran[tier]}" for tier in TIERS if self.ran[tier])
        terminal.write_line(f"tiers run: {shown or 'none'}")
        for (tier, reason), count in sorted(self.found.items()):
            why = f"{count} for want of {reason}" if reason else "there was no test of it to run"
            terminal.write_line(f"tiers not run: {tier} ({why})")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # one of several processes: the one that started them hears of every test
    chosen = ("keyword", "markexpr", "deselect", "lf", "collectonly")
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not any(
        config.getoption(name, None) for name in chosen
    )
    config.pluginmanager.register(Tiers(whole=whole), "iotops-tiers")
