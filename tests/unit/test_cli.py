"""The command line as a process: one boundary for errors, JSON when asked, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops import __version__
from iotops.cli import render
from iotops.errors import Exit
from iotops.events import Moved, Noted, RunStarted, StepFinished, StepStarted
from iotops.journal import lock
from iotops.model import Finding, Outcome, Severity
from tests.support.paperhub import ID, PaperHub

pytestmark = pytest.mark.unit


def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "IOTOPS_HUB"}
    return subprocess.run(
        [sys.executable, "-m", "iotops", *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
    )


def test_the_version() -> None:
    assert run("--version").stdout == f"iotops {__version__}\n"


@pytest.mark.parametrize(
    "argv", [["nothing"], ["restore", "--image", "any"], ["backup", "--nope"], ["flows", "nope"]]
)
def test_a_wrong_command_line_is_2(argv: list[str]) -> None:
    told = run(*argv)
    assert told.returncode == 2 and "Usage: iotops" in told.stderr and not told.stdout
    as_json = run(*argv, "--json")
    error = json.loads(as_json.stderr)
    assert as_json.returncode == 2 and error["code"] == 2 and error["hint"] == "iotops --help"


@pytest.mark.parametrize(
    "command", ["backup", "status", "doctor", "up", "down", "ps", "snapshots", "undo", "resume"]
)
def test_without_a_hub_every_command_says_how_to_make_one(command: str, tmp_path: Path) -> None:
    if Path("/etc/iotops/hub").exists():
        tmp_path = Path("/")  # this machine has a hub of its own: name a place that has none
        told = run(command, "--hub", "/proc", *(["--yes"] if command == "undo" else []))
    else:
        told = run(command, cwd=tmp_path)
    assert told.returncode == 2, told.stderr
    assert "iotops init DIR" in told.stderr and "Traceback" not in told.stderr


def test_init_without_a_word_says_what_can_be_made() -> None:
    told = run("init")
    assert told.returncode == 2 and "iotops init DIR" in told.stderr


def test_a_wrong_time_is_told(tmp_path: Path) -> None:
    (tmp_path / "iotops.toml").write_text(
        '[hub]\nid = "0123456789abcdef"\nname = "h"\nowner = "root"\n'
        f'[data]\nroot = "{tmp_path}/data"\nkind = "folder"\n'
        f'[paths]\nstate = "{tmp_path}"\nrun = "{tmp_path}"\n'
    )
    told = run("restore", "--at", "yesterday", "--hub", str(tmp_path))
    assert told.returncode == 2 and "'yesterday' is no time" in told.stderr


def test_whoever_stops_reading_gets_no_traceback() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "iotops", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    told = child.stderr.read().decode()
    child.stderr.close()
    child.wait()
    assert "Traceback" not in told and "Exception ignored" not in told


# -- exit codes by command ------------------------------------------------------------------------


def exit_codes(*words: str) -> set[int]:
    """The exit codes that a command's help lists."""
    told = run(*words, "--help").stdout.partition("Exit codes:")[2]
    return {int(line.split()[0]) for line in told.splitlines() if line.strip()}


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperHub:
    made = PaperHub(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


@pytest.mark.parametrize("command", ["up", "down", "backup", "undo --yes", "resume"])
def test_while_another_run_goes_on_it_is_11_and_the_help_says_so(
    paper: PaperHub, command: str
) -> None:
    with lock(paper.base / "run", ID, "backup"):
        done = run(*command.split(), "--hub", str(paper.folder))
    assert (done.returncode, "another iotops works on this hub" in done.stderr) == (11, True)
    assert {11, 130} <= exit_codes(command.split()[0])


@pytest.mark.parametrize(
    "command",
    [
        "snapshots",
        "restore --dry-run",
        "init --accept-repository --repository {base}/repository --password-file {base}/password",
    ],
)
def test_without_a_repository_it_is_10_and_the_help_says_so(paper: PaperHub, command: str) -> None:
    done = run(*command.format(base=paper.base).split(), "--hub", str(paper.folder))
    assert done.returncode == 10, done.stderr
    assert {10, 11, 12} <= exit_codes(command.split()[0])


def test_doctor_makes_a_finding_of_what_others_end_with(paper: PaperHub) -> None:
    with lock(paper.base / "run", ID, "backup"):
        done = run("doctor", "--hub", str(paper.folder), "--json")
    assert done.returncode == 1 and "repository.repositorymissing" in done.stdout
    assert exit_codes("doctor") == {0, 1, 2, 130}


def test_status_says_why_a_run_ended_badly_and_what_to_type(paper: PaperHub) -> None:
    assert run("backup", "--hub", str(paper.folder)).returncode == 10
    shutil.rmtree(paper.root)
    gone = run("backup", "--hub", str(paper.folder))
    assert gone.returncode == 1
    told = run("status", "--hub", str(paper.folder)).stdout
    assert f"backup failed: {gone.stderr.splitlines()[0].removeprefix('error: ')}" in told
    assert "next: look: iotops doctor; then again: iotops backup" in told


def test_status_does_not_know_what_is_on_a_disk_that_is_gone(paper: PaperHub) -> None:
    paper.write('[services.notes]\nkind = "files"\n')
    assert "never backed up" in run("status", "--hub", str(paper.folder)).stdout
    hub = paper.open()
    hub.state.update(good={"backup": "2026-03-01T12:00:00+00:00"})
    assert "not in this disk's journal" in run("status", "--hub", str(paper.folder)).stdout
    shutil.rmtree(paper.root)
    told = run("status", "--hub", str(paper.folder))
    assert "notes    not known: the disk is not there" in told.stdout and told.returncode == 1
    assert "never backed up" not in told.stdout and "free on" not in told.stdout
    as_json = json.loads(run("status", "--json", "--hub", str(paper.folder)).stdout)
    assert as_json["free"] is None


def test_a_time_before_all_times_is_a_slip(paper: PaperHub) -> None:
    done = run("restore", "latest", "--at", "0001-01-01", "--dry-run", "--hub", str(paper.folder))
    assert done.returncode == 2 and "is no time" in done.stderr


# -- how things look ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Something with values that JSON does not know."""

    folder: Path
    outcome: Outcome
    when: datetime


def test_long_work_in_json_is_one_line_per_event_and_a_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = render.Screen(json=True)
    screen.report(RunStarted("backup", "r1"))
    screen.report(StepStarted("capture", "mqtt"))
    screen.report(Moved("save", 5, 10))
    screen.report(StepFinished("capture", 0.5, "mqtt"))
    screen.say("not for machines")
    moment = datetime(2026, 3, 1, 13, tzinfo=UTC)
    screen.result(Result(Path("/x"), Outcome.PARTIAL, moment), ["not for machines"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [line["message_type"] for line in lines]
    assert kinds == ["run_started", "step_started", "moved", "step_finished", "result"]
    assert lines[2] == {
        "message_type": "moved",
        "step": "save",
        "done": 5,
        "total": 10,
        "service": "",
    }
    assert lines[4]["folder"] == "/x" and lines[4]["outcome"] == "partial"
    assert lines[4]["when"] == "2026-03-01T13:00:00+00:00"


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = render.Screen()
    screen.report(StepStarted("capture", "mqtt"))
    screen.report(Moved("save", 5, 10))
    screen.report(Noted("warning", "look here", "mqtt"))
    screen.report(StepFinished("capture", 0.5, "mqtt"))
    screen.report(StepFinished("capture", 0.5, "influxdb", "it is down"))
    out, err = capsys.readouterr()
    assert not err and "\x1b" not in out
    assert [line.split()[0] for line in out.splitlines()] == ["!", "✓", "✗"]
    assert "mqtt: look here" in out


def test_quiet_says_nothing_but_the_result_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    for json_too in (False, True):
        screen = render.Screen(json=json_too, quiet=True)
        screen.report(StepFinished("capture", 0.5, "mqtt"))
        screen.result({"a": 1}, ["a"])
        out = capsys.readouterr().out
        assert out == ('{"message_type": "result", "a": 1}\n' if json_too else "")


EVIL = "a\x1b[2Jb\x1b[8mc\x9b1Ad\re\x07f\u202eg"
HARMLESS = "a\\x1b[2Jb\\x1b[8mc\\x9b1Ad\\re\\x07f\\u202eg"


def test_what_steers_a_terminal_is_printed_as_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    """Names come from snapshots that others may have made, from servers and from logs."""
    out = render.Screen()
    out.report(Noted("warning", EVIL, EVIL))
    out.document([], [EVIL])
    render.show_error(EVIL, EVIL, Exit.FAILED, json=False)
    told = capsys.readouterr()
    assert told.out == f"! {HARMLESS}: {HARMLESS}\n{HARMLESS}\n"
    assert told.err == f"error: {HARMLESS}\nnext:  {HARMLESS}\n"
    colours = "\x1b[31m✗\x1b[0m told\n\tby \x1b[1;93mNode-RED\x1b[39m"
    assert render.harmless(colours) == colours


def test_findings_come_worst_first_with_the_next_step() -> None:
    found = [
        Finding("a.b", Severity.INFO, "one", "fine"),
        Finding("a.c", Severity.ERROR, "two", "bad", "do this"),
    ]
    lines = [line.replace("\x1b[31m", "").replace("\x1b[0m", "") for line in render.findings(found)]
    assert lines[0] == "✗ two: bad" and lines[1].strip() == "next: do this" and "one" in lines[2]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (10**15, "1000.0 TB")],
)
def test_sizes(number: int, text: str) -> None:
    assert render.size(number) == text


def test_ages() -> None:
    now = datetime(2026, 3, 2, 12, tzinfo=UTC)
    for seconds, text in (
        (5, "5 s ago"),
        (90, "2 min ago"),
        (7200, "2 h ago"),
        (172800, "2 d ago"),
    ):
        assert render.age(now - timedelta(seconds=seconds), now) == text
    assert render.age(now + timedelta(seconds=5), now) == "in the future"
    assert render.age("") == "never"


def test_exit_codes_are_restics_where_the_meaning_is_the_same() -> None:
    wanted = {"NO_REPOSITORY": 10, "LOCKED": 11, "WRONG_PASSWORD": 12, "INTERRUPTED": 130}
    assert {name: Exit[name].value for name in wanted} == wanted


def test_an_answer_that_cannot_be_written_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "iotops", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize("command", ["--version", "status"])
def test_a_closed_standard_output_is_no_fault(paper: PaperHub, command: str) -> None:
    line = f"{sys.executable} -m iotops {command} >&-"
    env = {**os.environ, "IOTOPS_HUB": str(paper.folder)}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("argv", [["ps", "--json"], ["status"], ["status", "--json"]])
def test_an_answer_on_a_full_disk_is_not_the_works_fault(paper: PaperHub, argv: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "iotops", *argv, "--hub", str(paper.folder)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "the answer could not be written" in done.stderr and "iotops status" in done.stderr


def test_events_that_nobody_can_write_end_in_an_error(paper: PaperHub) -> None:
    """The work goes on without its listener, and what it came to is told by the exit code."""
    body = (
        "from iotops.cli.render import AnswerLost, Screen\n"
        "from iotops.events import Noted\n"
        "out = Screen(json=True)\n"
        "out.report(Noted('info', 'one'))\n"
        "out.report(Noted('info', 'two'))\n"
        "try:\n    out.result({})\n"
        "except AnswerLost as error:\n    raise SystemExit(error.message)\n"
    )
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, "-c", body]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.splitlines()[0].startswith("the answer could not be written: No space left")
