"""The door to other programs: nothing hangs, nothing is lost, nothing stays behind."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from iotops.clients import process
from iotops.errors import ProgramFailed, ProgramMissing, TimedOut
from tests.conftest import need

pytestmark = pytest.mark.clients

GENTLE = ((signal.SIGINT, 0.3), (signal.SIGTERM, 0.3), (signal.SIGKILL, 5.0))
"""The usual signals, in a hurry."""


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def awaited(what: Callable[[], bool], *, limit: float = 10) -> bool:
    """Wait until something holds."""
    until = time.monotonic() + limit
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def open_files() -> set[tuple[str, str]]:
    """Give every descriptor with what it leads to; the one that lists them is gone by then."""
    found: set[tuple[str, str]] = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add((link.name, str(link.readlink())))
    return {one for one in found if Path("/proc/self/fd", one[0]).exists()}


def gone(pid: int) -> bool:
    """Tell that no process of that number runs (a zombie nobody has reaped yet does not run)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(")")[2].split()[0] == "Z"


# -- output --------------------------------------------------------------------------------------


def test_output_and_errors_are_kept() -> None:
    ended = process.run(["sh", "-c", "echo one; echo two; echo oops >&2"])
    assert (ended.code, ended.out, ended.tail, ended.err) == (0, "one\ntwo\n", ("oops",), "oops")


@pytest.mark.parametrize("listen", [False, True])
def test_a_talkative_child_does_not_hang(listen: bool) -> None:
    code = "import sys\nfor n in range(20000): sys.stderr.write(f'{n:029d}\\n')\nprint('done')"
    lines: list[str] = []
    ended = process.run(python(code), on_line=lines.append if listen else None, limit=60)
    assert ended.tail[-1] == f"{19999:029d}"
    assert len(ended.tail) == process.TAIL_LINES
    assert (lines if listen else [ended.out.strip()]) == ["done"]


def test_both_pipes_full_at_once() -> None:
    code = (
        "import sys, threading\n"
        "def fill(pipe):\n"
        "    for _ in range(3000): pipe.write('x' * 999 + '\\n')\n"
        "for pipe in (sys.stdout, sys.stderr):\n"
        "    threading.Thread(target=fill, args=(pipe,)).start()"
    )
    assert len(process.run(python(code), limit=60).out) == 3_000_000


def test_lines_come_while_it_runs(tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = (
        f"import os, time\nprint('first')\nwhile not os.path.exists({str(go)!r}): time.sleep(.01)"
    )
    heard: list[str] = []

    def line(text: str) -> None:
        heard.append(text)
        go.touch()  # only this lets the child end

    process.run(python(code), on_line=line, limit=30)
    assert heard == ["first"]


def test_half_lines_and_line_ends() -> None:
    heard: list[str] = []
    process.run(["printf", r"a\r\n\n b \nlast"], on_line=heard.append)
    assert heard == ["a", "", " b ", "last"]


def test_a_line_of_megabytes() -> None:
    heard: list[int] = []
    code = "import sys; sys.stdout.write('y' * 20_000_000)"
    process.run(python(code), on_line=lambda text: heard.append(len(text)))
    assert heard == [20_000_000]


def test_errors_without_line_ends_do_not_fill_the_memory() -> None:
    ended = process.run(python("import sys; sys.stderr.write('z' * 5_000_000)"))
    assert sum(map(len, ended.tail)) <= process.TAIL_LINES * 4000


def test_bytes_come_back_as_they_were() -> None:
    every = bytes(range(256)) * 300
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    ended = process.run(python(code), stdin=every)
    assert ended.out.encode("utf-8", "surrogateescape") == every
    again = process.run(python(code), stdin=ended.out)
    assert again.out == ended.out


def test_a_slow_listener_hears_every_line() -> None:
    heard: list[str] = []

    def line(text: str) -> None:
        time.sleep(0.15)
        heard.append(text)

    process.run(["seq", "30"], on_line=line)
    assert heard == [str(number) for number in range(1, 31)]


# -- input ---------------------------------------------------------------------------------------


def test_input_reaches_the_child() -> None:
    assert process.run(["cat"], stdin="hä\n").out == "hä\n"


def test_without_input_there_is_nothing_to_read() -> None:
    assert process.run(["cat"]).out == ""


def test_a_child_that_does_not_read_its_input() -> None:
    big = "x" * 3_000_000
    assert process.run(["true"], stdin=big).code == 0
    began = time.monotonic()
    with pytest.raises(TimedOut):
        process.run(["sleep", "60"], stdin=big, limit=0.5)
    assert time.monotonic() - began < 10


# -- ends ----------------------------------------------------------------------------------------


def test_an_exit_code_that_is_not_ok() -> None:
    argv = ["sh", "-c", "echo because >&2; echo >&2; exit 4"]
    with pytest.raises(
        ProgramFailed, match=r"^trying it failed \(exit code 4\): because$"
    ) as caught:
        process.run(argv, doing="trying it")
    assert (caught.value.code, caught.value.tail) == (4, ("because", ""))
    assert process.run(argv, ok=(0, 4)).code == 4
    assert process.run(argv, ok=None).code == 4


def test_an_end_by_signal() -> None:
    with pytest.raises(ProgramFailed, match=r"running sh failed \(ended by signal 9\)") as caught:
        process.run(["sh", "-c", "kill -9 $$"])
    assert caught.value.code == -9


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissing, match="looking: the program no-such-thing is not installed"):
        process.run(["no-such-thing"], doing="looking")
    with pytest.raises(ProgramMissing, match="not installed") as caught:
        process.find("no-such-thing", hint="apt-get install it")
    assert caught.value.hint == "apt-get install it"
    assert process.find("sh", hint="") == process.find(process.find("sh", hint=""), hint="")


def test_a_file_that_may_not_be_executed(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    with pytest.raises(ProgramMissing, match="may not be executed"):
        process.run([plain])


@pytest.mark.parametrize("content", [b"\x7fELF not for this machine", b"#!/no/such/interpreter\n"])
def test_a_program_for_another_machine(tmp_path: Path, content: bytes) -> None:
    program = tmp_path / "program"
    program.write_bytes(content)
    program.chmod(0o755)
    with pytest.raises(ProgramMissing, match="does not run on this machine"):
        process.run([program])


@pytest.mark.parametrize("make", [None, "file"])
def test_a_folder_that_is_none(tmp_path: Path, make: str | None) -> None:
    folder = tmp_path / "folder"
    if make:
        folder.touch(0o755)
    with pytest.raises(ProgramFailed, match="is no folder that can be entered"):
        process.run(["true"], cwd=folder)


def test_the_environment_is_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTIC_REPOSITORY", "elsewhere")
    assert process.run(["/usr/bin/env"], env={"ONLY": "this"}).out == "ONLY=this\n"
    assert "RESTIC_REPOSITORY=elsewhere\n" in process.run(["/usr/bin/env"]).out


def test_another_user(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        assert process.run(["id", "-u", "-n"], user=(0, 0)).out == "root\n"
        assert process.run(["sh", "-c", "id -u; id -G"], user=(1234, 4321)).out == "1234\n4321\n"
    else:
        with pytest.raises(ProgramFailed, match="only root"):
            process.run([process.find("true", hint="")], user=(0, 0))


# -- limits --------------------------------------------------------------------------------------


def family(tmp_path: Path, *, stubborn: bool = False) -> tuple[list[str], Path]:
    """A child with a grandchild that holds the pipes; writes both numbers into a file."""
    note = tmp_path / "pids"
    trap = "trap '' INT TERM; " if stubborn else ""
    script = (
        f"{trap}sh -c '{trap}sleep 300 & wait; sleep 300' & echo $$ $! > {note}; wait; sleep 300"
    )
    return ["sh", "-c", script], note


def test_the_wall_limit_ends_grandchildren_too(tmp_path: Path) -> None:
    argv, note = family(tmp_path)
    began = time.monotonic()
    with pytest.raises(
        TimedOut, match=r"working: sh took more than 0\.5 s and was ended"
    ) as caught:
        process.run(argv, limit=0.5, doing="working", ladder=GENTLE)
    assert time.monotonic() - began < 5
    assert caught.value.code == 124
    for pid in note.read_text().split():
        assert awaited(lambda pid=int(pid): gone(pid)), f"{pid} still runs"  # type: ignore[misc]


def test_who_ignores_signals_is_killed(tmp_path: Path) -> None:
    argv, note = family(tmp_path, stubborn=True)
    with pytest.raises(TimedOut):
        process.run(argv, limit=0.5, ladder=GENTLE)
    for pid in note.read_text().split():
        assert awaited(lambda pid=int(pid): gone(pid)), f"{pid} still runs"  # type: ignore[misc]


def test_the_signals_come_in_their_order(tmp_path: Path) -> None:
    note = tmp_path / "heard"
    code = (
        "import signal, time\n"
        "def hear(number, frame):\n"
        f"    open({str(note)!r}, 'a').write(f'{{number}} ')\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, hear)\n"
        "print('ready')\n"
        "while True: time.sleep(1)"
    )
    with pytest.raises(TimedOut):
        process.run(python(code), quiet_limit=1.0, ladder=GENTLE)
    assert note.read_text() == f"{signal.SIGINT:d} {signal.SIGTERM:d} "


def test_a_silent_child_is_stalled() -> None:
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"made no progress for 0\.6 s"):
        process.run(["sh", "-c", "echo hello; exec sleep 300"], quiet_limit=0.6, limit=60)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("pipe", ["1", "2"])
def test_a_child_that_talks_is_not_stalled(pipe: str) -> None:
    talk = f"for n in 1 2 3 4 5 6 7 8; do echo $n >&{pipe}; sleep 0.25; done"
    assert process.run(["sh", "-c", talk], quiet_limit=1.2).code == 0


def test_lines_without_progress_are_no_sign_of_life() -> None:
    heard: list[str] = []

    def line(text: str) -> bool:
        heard.append(text)
        return text not in heard[:-1]

    with pytest.raises(TimedOut, match="made no progress"):
        process.run(
            ["sh", "-c", "while :; do echo same; sleep 0.1; done"],
            on_line=line,
            quiet_limit=0.7,
            limit=60,
        )
    assert len(heard) > 3


HANGS = "echo 'it failed: all of it' >&2; "


def test_a_child_that_hangs_after_its_last_words_is_ended() -> None:
    words = process.LastWords(re.compile("^it failed: "), 0.3)
    with pytest.raises(TimedOut, match="did not end after it had failed") as caught:
        process.run(["sh", "-c", HANGS + "exec sleep 300"], last_words=words, limit=60)
    assert caught.value.tail == ("it failed: all of it",)


def test_a_child_that_ends_after_its_last_words_is_judged_as_ever() -> None:
    words = process.LastWords(re.compile("^it failed: "), 300)
    assert process.run(["sh", "-c", HANGS + "exit 3"], last_words=words, ok=None).code == 3
    assert process.run(["sh", "-c", "echo it failed: no >&2"], last_words=words).code == 0


# -- troubles ------------------------------------------------------------------------------------


def test_what_the_listener_raises_ends_the_child(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    began = time.monotonic()

    def line(text: str) -> None:
        raise ValueError(f"no {text}")

    with pytest.raises(ValueError, match=r"^no go$"):
        process.run(
            ["sh", "-c", f"echo $$ > {note}; echo go; while :; do echo more; done"],
            on_line=line,
            ladder=GENTLE,
        )
    assert time.monotonic() - began < 5
    assert gone(int(note.read_text()))


def test_the_listeners_error_wins_over_a_good_end() -> None:
    def line(text: str) -> None:
        raise ValueError(text)

    with pytest.raises(ValueError, match="one"):
        process.run(["echo", "one"], on_line=line)


class Stop(BaseException):
    """An interruption, as the signal handler raises it."""


def test_an_interruption_ends_the_group(tmp_path: Path) -> None:
    argv, note = family(tmp_path)

    def handler(number: int, frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert awaited(lambda: note.exists() and len(note.read_text().split()) == 2)
        signal.pthread_kill(main, signal.SIGUSR1)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        with pytest.raises(Stop):
            process.run(argv, limit=60, ladder=GENTLE)
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
    for pid in note.read_text().split():
        assert awaited(lambda pid=int(pid): gone(pid)), f"{pid} still runs"  # type: ignore[misc]


def test_a_second_interruption_kills_at_once(tmp_path: Path) -> None:
    argv, note = family(tmp_path, stubborn=True)

    def handler(number: int, frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert awaited(lambda: note.exists() and len(note.read_text().split()) == 2)
        signal.pthread_kill(main, signal.SIGUSR1)
        time.sleep(0.3)  # the first one is being worked off: the ladder waits a minute
        signal.pthread_kill(main, signal.SIGUSR1)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    began = time.monotonic()
    try:
        with pytest.raises(Stop):
            process.run(argv, limit=60, ladder=((signal.SIGINT, 60.0),))
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - began < 20
    for pid in note.read_text().split():
        assert awaited(lambda pid=int(pid): gone(pid)), f"{pid} still runs"  # type: ignore[misc]


def test_stragglers_neither_delay_nor_survive(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    began = time.monotonic()
    ended = process.run(["sh", "-c", f"sleep 300 & echo $! > {note}; echo said"])
    assert ended.out == "said\n"
    assert time.monotonic() - began < process.LINGER + 5
    assert awaited(lambda: gone(int(note.read_text())))


def test_a_daemon_that_left_the_group_is_left_alone(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    began = time.monotonic()
    leave = f"setsid sh -c 'echo $$ > {note}; exec sleep 300' &"
    script = f"{leave} while [ ! -s {note} ]; do :; done; echo said"
    ended = process.run(["sh", "-c", script])
    pid = int(note.read_text())
    try:
        assert ended.out == "said\n"
        assert time.monotonic() - began < 15
        assert not gone(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_run_is_not_delayed() -> None:
    began = time.monotonic()
    for _ in range(20):
        process.run(["true"])
    assert time.monotonic() - began < 2


def test_nothing_stays_open() -> None:
    process.run(["true"], stdin="x")
    gc.collect()
    before = open_files()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            process.run(["sh", "-c", "echo a; echo b >&2"], stdin="x")
            with pytest.raises(TimedOut):
                process.run(["sleep", "60"], limit=0.02)
        gc.collect()
    # Others may close theirs meanwhile: what earlier tests left ends when it is collected.
    assert not open_files() - before
    assert not [one for one in threading.enumerate() if one.name.endswith(("_read_out", "_feed"))]


def test_runs_side_by_side() -> None:
    found: list[str] = []

    def work(number: int) -> None:
        found.append(process.run(["sh", "-c", f"sleep 0.1; echo {number}"]).out.strip())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=int) == [str(number) for number in range(12)]


def test_what_another_thread_waits_for_can_be_ended(tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    script = f"trap 'touch {mark}; exit 130' INT; echo up; while :; do sleep 0.05; done"
    heard = threading.Event()
    errors: list[ProgramFailed] = []

    def wait() -> None:
        try:
            process.run(["sh", "-c", script], on_line=lambda line: heard.set(), doing="waiting")
        except ProgramFailed as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    process.end_of(thread)  # waits for nothing yet
    thread.start()
    assert heard.wait(10)
    process.end_of(thread)
    thread.join(10)
    assert not thread.is_alive()
    assert mark.exists(), "it was asked to end, not killed"
    assert "before it was done" in errors[0].message


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_program_ends_when_we_are_killed(tmp_path: Path, tied: bool) -> None:
    need("setpriv")
    told = tmp_path / "pid"
    script = f"echo $$ > {told}.new; mv {told}.new {told}; exec sleep 600"
    code = f"from iotops.clients import process; process.run(['sh', '-c', {script!r}], tied={tied})"
    us = subprocess.Popen([sys.executable, "-c", code])
    assert awaited(told.exists, limit=30)
    pid = int(told.read_text())
    us.kill()
    us.wait()
    if tied:
        assert awaited(lambda: gone(pid))
    else:
        assert not gone(pid)
        os.kill(pid, signal.SIGKILL)


def test_the_most_memory_of_each_program_is_its_own() -> None:
    """Not the most of all children so far, which getrusage would give."""
    found = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    ours = int(found[0]) * 1024  # a child's is never less than what it was started from
    block = ours + (200 << 20)
    large = process.run(python(f"x = bytearray({block})"))
    small = process.run(python(""))
    assert block < large.memory < block + (200 << 20)
    assert 1 << 20 < small.memory < ours + (100 << 20)
