"""SIGINT, SIGTERM and SIGHUP as one exception, at a time when it does no harm.

The first signal raises `Interrupted` in the main thread; further ones are ignored, because by then
things are being put right. Inside `shield()` the exception waits for the end of the block. Where
Python has nobody to give an exception to (a weak reference's callback, a finaliser: the import
system has such callbacks), it drops it with a printed "Exception ignored"; it is then raised again
a moment later. Not here: what is put right (`actions/`).
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from iotops.errors import Interrupted

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_depth = 0
_waiting: str = ""


HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP is how a run by hand ends whose terminal goes away (a lost SSH session)."""


def install() -> None:
    """Make the signals raise `Interrupted`; for the process's own command line only."""
    for number in HEARD:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # started by nohup: it shall go on without its terminal
        signal.signal(number, _on_signal)
    sys.unraisablehook = _on_dropped


def _on_signal(number: int, frame: FrameType | None) -> None:
    for other in HEARD:
        signal.signal(other, signal.SIG_IGN)
    _raise(signal.Signals(number).name, frame)


def _raise(name: str, frame: FrameType | None) -> None:
    global _waiting
    if _depth:
        _waiting = name
        return
    while frame is not None:
        if frame.f_code is _on_dropped.__code__:
            _later(name)  # what is raised in that hook is dropped for good
            return
        frame = frame.f_back
    raise Interrupted(f"interrupted by {name}")


UNTIL_AGAIN = 0.005
"""Seconds from a dropped `Interrupted` to the next try; a callback that drops one is shorter."""


def _on_dropped(dropped: UnraisableHookArgs) -> None:
    error = dropped.exc_value
    if not isinstance(error, Interrupted):
        sys.__unraisablehook__(dropped)
        return
    _later(error.message.removeprefix("interrupted by "))


def _later(name: str) -> None:
    signal.signal(signal.SIGALRM, lambda _number, frame: _raise(name, frame))
    signal.setitimer(signal.ITIMER_REAL, UNTIL_AGAIN)


@contextmanager
def shield() -> Iterator[None]:
    """Let a block finish before a signal is heard; that is the main thread's to do."""
    global _depth, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield  # nothing is raised here, and what is raised there shall not wait for us
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        # Also when the block failed: a signal that was put off must not be heard at the end of
        # some later block, in the middle of putting things right.
        if _waiting and not _depth:
            name, _waiting = _waiting, ""
            raise Interrupted(f"interrupted by {name}")
