"""SIGINT, SIGTERM and SIGHUP as one exception, at a time when it does no harm.

The first signal raises `Interrupted` in the main thread; further ones are ignored, because by then
things are being put right. Inside `shield()` the exception waits for the end of the block. Not
here: what is put right (`actions/`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from iotops.errors import Interrupted

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


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _waiting
    for other in HEARD:
        signal.signal(other, signal.SIG_IGN)
    name = signal.Signals(number).name
    if _depth:
        _waiting = name
        return
    raise Interrupted(f"interrupted by {name}")


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
