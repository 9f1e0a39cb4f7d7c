"""The only door to other programs: run one, hear its lines, end it for certain.

A program is a list of arguments, never a shell line, and no secret stands in it: secrets go by
environment or standard input. Both pipes are drained all the time, so a talkative child never
hangs; its whole process group ends on a time-out or an interruption. Not here: what any program's
output or exit code means (its own client knows).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from iotops import signals
from iotops.errors import ProgramFailed, ProgramMissing, TimedOut

TAIL_LINES = 100
"""Lines of standard error kept for the message of a failure."""

LADDER = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""How a child is ended: restic answers SIGINT cleanly in every version since 0.14, SIGTERM only
since 0.17; seconds to wait after each."""

LINGER = 2.0
"""Seconds that what the child started may still write after the child has ended."""

OnLine = Callable[[str], bool | None]
"""Hears a line; False = the line shows no progress (for `quiet_limit`)."""


@dataclass(frozen=True)
class LastWords:
    """A text on standard error after which a program must end within `patience` seconds."""

    pattern: re.Pattern[str]
    patience: float


@dataclass(frozen=True)
class Result:
    """How a program ended: its exit code (negative = signal), output, and last error lines.

    Attributes:
        memory: most bytes that it had in memory at once, as the kernel counted them: never less
            than what this process had when it started it (getrusage(2), RSS is kept over exec).
    """

    code: int
    out: str
    tail: tuple[str, ...]
    memory: int = 0

    @property
    def err(self) -> str:
        """The kept lines of standard error as one text."""
        return "\n".join(self.tail)


def find(program: str, *, hint: str) -> str:
    """Give the full path of a program on PATH.

    Args:
        program: its name, or a path.
        hint: what to install when it is missing.

    Raises:
        ProgramMissing: it is not there.
    """
    path = shutil.which(program)
    if path is None:
        raise ProgramMissing(f"the program {program} is not installed", hint=hint)
    return path


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | bytes | None = None,
    on_line: OnLine | None = None,
    limit: float = 3600.0,
    quiet_limit: float | None = None,
    ok: Sequence[int] | None = (0,),
    doing: str = "",
    user: tuple[int, int] | None = None,
    ladder: Sequence[tuple[int, float]] = LADDER,
    tied: bool = False,
    last_words: LastWords | None = None,
) -> Result:
    """Run a program to its end.

    Args:
        argv: program and arguments; never a secret among them.
        env: the whole environment of the child; None = ours.
        cwd: the folder to run in.
        stdin: text for its standard input; None = nothing to read.
        on_line: called with each line of standard output as it comes, without the newline. The
            output is then not collected. What it raises ends the child and is raised again; what
            it answers with False does not count as a sign of life.
        limit: wall limit in seconds.
        quiet_limit: seconds without any output after which the child is taken as stalled.
        ok: exit codes that are fine; None = any.
        doing: what is being done, for the message of a failure.
        user: numeric user and group to run as (without supplementary groups); needs root.
        ladder: the signals that end it when it must end early, each with the seconds to wait.
        tied: also when we are killed ourselves it gets the first signal of the ladder, where the
            machine can do that (`setpriv` of util-linux).
        last_words: what it says on standard error before it ends; some hang instead.

    Returns:
        The result; `out` is empty when `on_line` was given. Bytes that are not UTF-8 are kept as
        surrogate escapes.

    Raises:
        ProgramMissing: the program is not there, or cannot run on this machine.
        ProgramFailed: it ended with a code that is not ok, or the folder or user is none.
        TimedOut: a limit was passed, or it hung; the process group has been ended.
    """
    words = [str(word) for word in argv]
    what = doing or f"running {Path(words[0]).name}"
    try:
        child = subprocess.Popen(
            [*(_tie(ladder) if tied else ()), *words],
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            user=None if user is None else user[0],
            group=None if user is None else user[1],
            extra_groups=None if user is None else [],
        )
    except OSError as error:
        raise _not_started(error, what, words[0], cwd, user) from error
    watched = _Watched(child, what, on_line, ladder, last_words)
    _waiting[threading.get_ident()] = watched
    try:
        return watched.finish(stdin, limit, quiet_limit, ok)
    finally:
        _waiting.pop(threading.get_ident(), None)


_waiting: dict[int, _Watched] = {}
"""The program that each thread waits for, by the thread's identifier."""


def end_of(thread: threading.Thread) -> None:
    """End the program that a thread waits for, as a passed limit would; it may wait for none.

    The thread then gets a `ProgramFailed` from its `run`.
    """
    watched = _waiting.get(thread.ident or 0)
    if watched is not None:
        watched.give_up()


def _tie(ladder: Sequence[tuple[int, float]]) -> tuple[str, ...]:
    """Give the words before a program that let the kernel end it when we end (prctl(2),
    PR_SET_PDEATHSIG; of the thread that starts it, which waits here for its end)."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    return (setpriv, "--pdeathsig", signal.Signals(ladder[0][0]).name.removeprefix("SIG"))


def _not_started(
    error: OSError, what: str, program: str, cwd: Path | None, user: tuple[int, int] | None
) -> ProgramMissing | ProgramFailed:
    """Tell why a program did not even begin."""
    if cwd is not None and not os.access(f"{cwd}/.", os.X_OK):
        return ProgramFailed(f"{what}: {cwd} is no folder that can be entered", code=127)
    if error.errno == errno.ENOENT and not os.access(program, os.X_OK):
        return ProgramMissing(f"{what}: the program {program} is not installed")
    if error.errno in (errno.ENOEXEC, errno.ENOENT):  # ENOENT: its loader or interpreter
        return ProgramMissing(
            f"{what}: {program} does not run on this machine",
            hint="install the program for this processor: uname -m",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        if user is not None and os.access(program, os.X_OK):
            return ProgramFailed(f"{what}: only root can run it as user {user[0]}", code=126)
        return ProgramMissing(f"{what}: {program} may not be executed")
    return ProgramFailed(f"{what}: {program} cannot be started: {error.strerror}", code=126)


class _Watched:
    """A running child whose pipes are served by threads of their own."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        what: str,
        on_line: OnLine | None,
        ladder: Sequence[tuple[int, float]],
        last_words: LastWords | None,
    ) -> None:
        self.ladder = ladder
        self.last_words = last_words
        self.patience: threading.Timer | None = None
        self.child = child
        self.what = what
        self.on_line = on_line
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.out: list[bytes] = []
        self.heard = time.monotonic()
        self.trouble: BaseException | None = None
        self.busy = False
        self.wake = threading.Event()
        """Set when the child has ended, or `on_line` has raised."""

    def give_up(self) -> None:
        """Have `finish` end the program and raise; for another thread to call."""
        if self.trouble is None:
            self.trouble = ProgramFailed(f"{self.what}: ended before it was done", code=130)
        self.wake.set()

    def _read_out(self, pipe: IO[bytes]) -> None:
        if self.on_line is None:
            while chunk := os.read(pipe.fileno(), 1 << 16):
                self.heard = time.monotonic()
                self.out.append(chunk)
            return
        for raw in pipe:
            if self.trouble is not None:
                continue  # drained all the same: a full pipe would keep the child from ending
            self.busy = True
            try:
                if self.on_line(_text(raw)) is not False:
                    self.heard = time.monotonic()
            except BaseException as error:  # noqa: BLE001 - raised again by finish()
                self.trouble = error
                self.wake.set()
            self.busy = False

    def _read_err(self, pipe: IO[bytes]) -> None:
        while raw := pipe.readline(4000):  # what has no line ends is kept in pieces
            self.heard = time.monotonic()
            self.tail.append(_text(raw))
            if self.patience is None and self.last_words is not None:
                if self.last_words.pattern.search(self.tail[-1]):
                    self.patience = threading.Timer(self.last_words.patience, self._hangs)
                    self.patience.daemon = True
                    self.patience.start()

    def _hangs(self) -> None:
        """It has said its last words, long ago, and is still there."""
        if self.trouble is None and not _has_ended(self.child):
            self.trouble = self._late("did not end after it had failed")
        self.wake.set()

    def _await_end(self) -> None:
        # The child is left unreaped, so that the number of its group stays its own until the
        # group has been emptied.
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        self.wake.set()

    def finish(
        self,
        stdin: str | bytes | None,
        limit: float,
        quiet_limit: float | None,
        ok: Sequence[int] | None,
    ) -> Result:
        """Feed, wait, judge; whatever happens, no process of the group stays behind."""
        threads: list[threading.Thread] = []
        memory = 0
        try:
            with signals.shield():  # a thread that nobody knows of would read a closed pipe
                threads = self._serve(stdin)
            self._wait(limit, quiet_limit)
            if self.trouble is None:
                self._hear_out(threads)
        finally:
            memory = end_group(self.child, self.ladder)
            self._close(threads)
            if self.patience is not None:
                self.patience.cancel()
        if self.trouble is not None:
            raise self.trouble
        code = self.child.returncode
        result = Result(code, _decode(b"".join(self.out)), tuple(self.tail), memory)
        if ok is not None and code not in ok:
            last = next((line for line in reversed(result.tail) if line.strip()), "")
            how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
            message = f"{self.what} failed ({how})" + (f": {last.strip()}" if last else "")
            raise ProgramFailed(message, code=code, tail=result.tail)
        return result

    def _serve(self, stdin: str | bytes | None) -> list[threading.Thread]:
        """Start the threads: the last one feeds, where there is something to feed."""
        out, err = self.child.stdout, self.child.stderr
        assert out is not None
        assert err is not None
        threads = [
            threading.Thread(target=self._read_out, args=(out,), daemon=True),
            threading.Thread(target=self._read_err, args=(err,), daemon=True),
            threading.Thread(target=self._await_end, daemon=True),
        ]
        if stdin is not None:
            data = stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
            threads.append(threading.Thread(target=self._feed, args=(data,), daemon=True))
        for thread in threads:
            thread.start()
        return threads

    def _feed(self, data: bytes) -> None:
        # In a thread: a child that never reads must not keep us from seeing its time-out.
        assert self.child.stdin is not None
        with suppress(BrokenPipeError):  # it ended without reading; its exit code tells why
            self.child.stdin.write(data)
        with suppress(BrokenPipeError):
            self.child.stdin.close()

    def _wait(self, limit: float, quiet_limit: float | None) -> None:
        began = time.monotonic()
        while True:
            now = time.monotonic()
            left = began + limit - now
            calm = left if quiet_limit is None else self.heard + quiet_limit - now
            if left <= 0:
                self._too_long(f"took more than {limit:g} s")
            if calm <= 0:
                self._too_long(f"made no progress for {quiet_limit:g} s")
            if self.wake.wait(min(left, calm, 3600.0)):
                return

    def _hear_out(self, threads: Sequence[threading.Thread]) -> None:
        """Read what is still in the pipes; a straggler of the group may hold them open."""
        until = time.monotonic() + LINGER
        for thread in threads[:2]:
            thread.join(timeout=max(0.0, until - time.monotonic()))

    def _close(self, threads: Sequence[threading.Thread]) -> None:
        for thread in threads:
            thread.join(timeout=2)
            while self.busy and thread.is_alive():  # a slow listener gets to hear every line
                thread.join(timeout=2)
        if any(thread.is_alive() for thread in threads):
            return  # something outside of the group holds a pipe; closing it here would block
        for pipe in (self.child.stdout, self.child.stderr, self.child.stdin):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _too_long(self, how: str) -> None:
        end_group(self.child, self.ladder)
        raise self._late(how)

    def _late(self, how: str) -> TimedOut:
        return TimedOut(
            f"{self.what}: {Path(self._name()).name} {how} and was ended",
            code=124,
            tail=tuple(self.tail),
        )

    def _name(self) -> str:
        args = self.child.args
        return str(args[0]) if isinstance(args, list) else str(args)


def end_group(child: subprocess.Popen[bytes], ladder: Sequence[tuple[int, float]] = LADDER) -> int:
    """End a child and everything it started: SIGINT, then SIGTERM, then SIGKILL.

    Args:
        child: a process that leads its own group (`start_new_session`).
        ladder: other signals, each with the seconds to wait after it.

    Returns:
        The most memory that the child took, in bytes; 0 = not known.
    """
    memory = 0
    try:
        for number, patience in ladder:
            if _has_ended(child):
                break
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)
            if _ends_within(child, patience):
                break
    finally:
        # Also when a second interruption comes: grandchildren may outlive the leader, and the
        # group is emptied in every case, while the unreaped leader still owns its number.
        if child.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            memory = _reap(child)
    return memory


def _reap(child: subprocess.Popen[bytes]) -> int:
    """Take an ended child away; give the most memory that it took, in bytes (0 = not known)."""
    if not _ends_within(child, 5.0):
        return 0  # it hangs in the kernel
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except ChildProcessError:
        child.poll()  # somebody else took it away
        return 0
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * 1024


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Look, without reaping it."""
    if child.returncode is not None:
        return True
    try:
        options = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, child.pid, options) is not None
    except ChildProcessError:
        return True


def _ends_within(child: subprocess.Popen[bytes], patience: float) -> bool:
    until = time.monotonic() + patience
    pause = 0.001
    while not _has_ended(child):
        if time.monotonic() >= until:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return True


def _text(raw: bytes) -> str:
    return _decode(raw).rstrip("\r\n")


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
