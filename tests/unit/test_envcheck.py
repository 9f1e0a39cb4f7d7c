"""What `iotops env check` finds in `.env`, and that no value of it is ever shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from iotops.actions import envcheck
from iotops.clients.composemodel import Variable, has_default, variables
from iotops.errors import SettingsError, StackError
from iotops.model import Finding, Severity
from tests.support.paperhub import PaperHub

pytestmark = pytest.mark.unit

NEEDED = Variable("TOKEN", required=True, has_default=False)
PLAIN = Variable("PLACE", required=False, has_default=False)
LENIENT = Variable("PORT", required=False, has_default=True)

TABLE = """\
NAME                REQUIRED            DEFAULT VALUE       ALTERNATE VALUE
E                   false                                   alt
G                   false               ${H}
H                   false
A                   true
"""
"""As Compose 2.26 prints it."""


def judged(text: str, names: Sequence[Variable] = (), used: Sequence[str] = ()) -> list[Finding]:
    return [*envcheck.judge(text, names, used)]


def codes(found: Sequence[Finding]) -> list[str]:
    return [one.code for one in found]


# ---- the text alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "A='pa$word'",
        "A=pa$$word",
        'A="pa\\$word"',
        "A=word # costs 5$ a month",
        "A='it\\'s $5'",
        "export A='x$y'",
        "  A = 'x$y'  ",
        "A=",
    ],
)
def test_a_value_that_compose_takes_as_it_is(line: str) -> None:
    assert judged(line, used=["A"]) == []


@pytest.mark.parametrize("line", ["A=hid$den", 'A="hid$den"', "A=hid${den}", "A=hidden$", "A=h$1"])
def test_an_unquoted_dollar(line: str) -> None:
    (one,) = judged(line, used=["A"])
    assert (one.code, one.severity) == ("env.dollar", Severity.WARNING)
    assert "A (line 1)" in one.message and "A='...'" in one.hint
    assert "hid" not in one.message + one.hint and "den" not in one.message + one.hint


def test_one_variable_in_anothers_value_is_meant() -> None:
    assert judged("HOST='a'\nURL=http://$HOST\n", used=["URL"]) == []


def test_a_name_set_twice() -> None:
    (one,) = judged("A='one-value'\nB=1\nA='two-value'\n", used=["A", "B"])
    assert one.code == "env.duplicate" and "line 1" in one.message and "line 3" in one.message
    assert "value" not in one.message


@pytest.mark.parametrize("line", ["hunter2secret!", "A-B=hunter2", "A='hunter2", 'A="hunter2'])
def test_a_line_that_is_none(line: str) -> None:
    found = judged(f"# a comment\n{line}\nB=1\n", used=["A", "B"])
    assert codes(found) == ["env.line"] and "line 2" in found[0].message
    assert "hunter2" not in repr(found)


def test_a_value_of_several_lines() -> None:
    text = "KEY='-----BEGIN\nA=$x\n-----END'\nB=1\n"
    assert judged(text, used=["KEY", "B"]) == []
    read, odd = envcheck.entries(text)
    assert [(one.line, one.name) for one in read] == [(1, "KEY"), (4, "B")] and odd == ()


def test_windows_lines_and_a_mark_at_the_front() -> None:
    assert judged("\ufeffA=1\r\nB='2'\r\n", used=["A", "B"]) == []


def test_no_value_in_a_printed_entry() -> None:
    read, _ = envcheck.entries("A=hunter2")
    assert "hunter2" not in repr(read)


# ---- against what needs it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "word"), [("", "missing"), ("TOKEN=", "empty"), ("TOKEN=''", "empty")]
)
def test_a_required_variable_that_is_not_there(text: str, word: str) -> None:
    (one,) = judged(text, [NEEDED])
    assert (one.code, one.severity) == ("env.unset", Severity.ERROR)
    assert word in one.message and "TOKEN='...'" in one.hint


def test_a_variable_without_default_becomes_empty() -> None:
    (one,) = judged("", [PLAIN, LENIENT])
    assert (one.code, one.severity) == ("env.unset", Severity.WARNING) and "PLACE" in one.message
    assert judged("PLACE=", [PLAIN, LENIENT]) == []  # empty on purpose


def test_an_unused_variable() -> None:
    text = "TOKEN='x'\nTOKNE='y'\nCOMPOSE_PROFILES=a\nOURS=1\n"
    (one,) = judged(text, [NEEDED], used=["OURS"])
    assert one.code == "env.unused" and "TOKNE" in one.message
    assert [*envcheck.judge(text, [NEEDED], None)] == []  # nobody knows what else is read


def test_the_table_of_compose() -> None:
    read = {one.name: (one.required, one.has_default) for one in variables(TABLE)}
    assert read == {
        "A": (True, False),
        "E": (False, True),
        "G": (False, True),
        "H": (False, False),
    }
    assert variables("") == variables("{}") == ()


@pytest.mark.parametrize("form", ["${A:-}", "${A-x}", "${A:+y}", "${A+y}"])
def test_an_empty_default_is_one(form: str) -> None:
    assert has_default("A", f'x: "{form}"')
    assert not has_default("A", "x: $A ${A} ${A:?} ${AB:-}")


# ---- the file ------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperHub:
    made = PaperHub(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


def git(hub: PaperHub, *argv: str) -> None:
    name = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", "-C", str(hub.folder), *name, *argv], check=True, capture_output=True)


def found(hub: PaperHub) -> list[str]:
    return codes(envcheck.examine(hub.open()))


def test_a_good_file(hub: PaperHub) -> None:
    git(hub, "init", "-q")
    (hub.folder / ".gitignore").write_text(".env\n")
    assert found(hub) == []


def test_a_file_that_git_would_take(hub: PaperHub) -> None:
    git(hub, "init", "-q")
    assert found(hub) == ["env.unignored"]


def test_a_file_that_git_has(hub: PaperHub) -> None:
    git(hub, "init", "-q")
    git(hub, "add", ".env")
    assert found(hub) == ["env.tracked"]
    git(hub, "commit", "-qm", "x")
    assert found(hub) == ["env.tracked"]
    (hub.folder / ".gitignore").write_text(".env\n")
    assert found(hub) == ["env.tracked"]  # ignoring does not take it out
    git(hub, "rm", "-q", "--cached", ".env")
    git(hub, "commit", "-qm", "y")
    assert found(hub) == ["env.history"]


def test_what_only_iotops_reads_is_used(hub: PaperHub) -> None:
    hub.write('[services.broker]\nkind = "mosquitto"\npassword_env = "BROKER_PW"\n')
    (hub.folder / ".env").write_text("BROKER_PW='geheim'\nIN_THE_CONTAINER=1\nNOBODYS=geheim\n")
    hub.compose({"a": {"image": "a:1", "environment": {"IN_THE_CONTAINER": "1"}}})
    (one,) = envcheck.examine(hub.open())
    assert one.code == "env.unused" and "NOBODYS" in one.message and "geheim" not in repr(one)


def test_what_the_settings_name_must_be_there(hub: PaperHub) -> None:
    hub.write(
        '[services.broker]\nkind = "mosquitto"\npassword_env = "BROKER_PW"\n'
        '[services.influx]\nkind = "influxdb"\ntoken_env = "OPERATOR"\n'
        'reader_token_env = "MADE_BY_UP"\n'
    )
    (hub.folder / ".env").write_text("BROKER_PW=\n")
    found = envcheck.examine(hub.open())
    assert [(one.code, one.severity) for one in found] == [("env.unset", Severity.ERROR)] * 2
    assert found[0].message.startswith("BROKER_PW is empty, and services.broker.password_env")
    assert found[1].message.startswith("OPERATOR is missing, and services.influx.token_env")
    (hub.folder / ".env").write_text("BROKER_PW=a\nOPERATOR=b\n")
    assert envcheck.examine(hub.open()) == ()


def test_a_quote_that_does_not_end_hides_nothing_else(hub: PaperHub) -> None:
    """Compose refuses the whole file, in words that name no line."""
    (hub.folder / ".env").write_text("GOOD=1\nBROKEN='hunter2\n")
    (hub.folder / ".env").chmod(0o644)
    (hub.bin / "docker").write_text(
        '#!/bin/sh\ncase "$*" in *"compose version"*) echo 2.26.1; exit ;; esac\n'
        "echo 'failed to read .env: unexpected character' >&2\nexit 1\n"
    )
    found = envcheck.examine(hub.open())
    assert codes(found) == ["env.open", "env.line"]
    assert "line 2" in found[1].message and all(one.hint for one in found)
    (hub.folder / ".env").write_text("GOOD=1\n")
    found = envcheck.examine(hub.open())  # it is not the fault of .env
    assert codes(found) == ["env.open", "env.compose"] and all(one.hint for one in found)


@pytest.mark.parametrize(
    ("text", "line"),
    [("GOOD=1\nBAD=hun\0ter2\n", 2), ("A='1\n\0hunter2'\n", 2), ("GOOD=1\n\0\0\0\0", 2)],
)
def test_a_nul_byte_is_told_by_its_line(hub: PaperHub, text: str, line: int) -> None:
    """As a power cut leaves it. Compose refuses the whole file, in words that name nothing."""
    (hub.folder / ".env").write_text(text)
    (hub.bin / "docker").write_text(
        '#!/bin/sh\ncase "$*" in *"compose version"*) echo 2.26.1; exit ;; esac\n'
        "echo 'setenv: invalid argument' >&2\nexit 1\n"
    )
    (found,) = envcheck.examine(hub.open())
    assert found.code == "env.line" and f"line {line} of .env holds a NUL byte" in found.message
    assert "hunter2" not in found.message and "iotops restore --into DIR" in found.hint
    with pytest.raises(StackError, match=r"\.env holds a NUL byte") as refused:
        _ = hub.open().model
    assert "iotops env check" in refused.value.hint


def test_a_folder_in_its_place_is_told(hub: PaperHub) -> None:
    """Compose passes over it without a word."""
    (hub.folder / ".env").unlink()
    (hub.folder / ".env").mkdir()
    (found,) = envcheck.examine(hub.open())
    assert (found.code, found.severity) == ("env.folder", Severity.ERROR)
    assert "it is a folder" in found.message and "rmdir" in found.hint
    with pytest.raises(SettingsError, match="it is a folder") as refused:
        _ = hub.open().env
    assert f"rmdir {hub.folder}/.env" in refused.value.hint


def test_the_command(hub: PaperHub) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "iotops", "env", "check", "--hub", str(hub.folder), *argv]
        return subprocess.run(words, capture_output=True, text=True)

    good = run()
    assert good.returncode == 0 and "nothing found" in good.stdout, good.stderr
    (hub.folder / ".env").write_text("A=hid$den\n")
    bad = run("--json")
    assert bad.returncode == 1 and "hid" not in bad.stdout + bad.stderr
    told = json.loads(bad.stdout.splitlines()[-1])["findings"]
    assert [one["code"] for one in told] == ["env.dollar", "env.unused"]
