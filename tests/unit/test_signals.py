"""Signals in a process of its own: heard once, put off by a shield, and SIGHUP as nohup left it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

HEARD = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

PROGRAM = """
import os, signal, sys
from iotops import signals
from iotops.errors import Interrupted

def say(text):
    print(text, flush=True)

def send(name):
    # To this very thread, so that the handler has run before the next line.
    signal.raise_signal(getattr(signal, name))

signals.install()
try:
{body}
except Interrupted as error:
    say(f"heard: {{error.message}}")
"""


def told(body: str, *argv: str) -> list[str]:
    """Run a body under the product's handlers and give the lines that it wrote."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    done = subprocess.run(
        [*argv, sys.executable, "-c", PROGRAM.format(body=lines)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path.cwd(),
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("number", HEARD)
def test_every_signal_ends_the_work(number: signal.Signals) -> None:
    assert told(f"send('{number.name}')\nsay('not reached')") == [
        f"heard: interrupted by {number.name}"
    ]


def test_only_the_first_signal_is_heard() -> None:
    body = """
try:
    send('SIGTERM')
finally:
    send('SIGINT'); send('SIGHUP'); send('SIGTERM')
    say('put right')
"""
    assert told(body) == ["put right", "heard: interrupted by SIGTERM"]


@pytest.mark.parametrize("number", HEARD)
def test_a_shield_lets_its_block_finish(number: signal.Signals) -> None:
    body = f"""
with signals.shield():
    send('{number.name}')
    say('renamed')
    with signals.shield():
        say('noted')
    say('still inside')
say('not reached')
"""
    wanted = ["renamed", "noted", "still inside", f"heard: interrupted by {number.name}"]
    assert told(body) == wanted


def test_a_shield_whose_block_fails_puts_nothing_off_beyond_it() -> None:
    body = """
try:
    with signals.shield():
        send('SIGINT')
        raise ValueError
except Interrupted:
    say('at its end')
with signals.shield():
    say('a later block')
say('goes on')
"""
    assert told(body) == ["at its end", "a later block", "goes on"]


def test_a_shield_of_another_thread_keeps_nothing_from_the_main_one() -> None:
    body = """
import threading
inside, done = threading.Event(), threading.Event()

def work():
    with signals.shield():
        inside.set(); done.wait(10)
    say('ended quietly')

other = threading.Thread(target=work)
other.start(); inside.wait(10)
try:
    send('SIGTERM')
    say('not reached')
finally:
    done.set(); other.join()
"""
    assert told(body) == ["ended quietly", "heard: interrupted by SIGTERM"]


def test_a_shield_without_a_signal_changes_nothing() -> None:
    assert told("with signals.shield():\n    say('inside')\nsay('after')") == ["inside", "after"]


def test_under_nohup_the_terminal_may_go_and_other_signals_are_heard() -> None:
    body = "send('SIGHUP')\nsay('goes on')\nsend('SIGTERM')"
    assert told(body, "nohup") == ["goes on", "heard: interrupted by SIGTERM"]


DROPS = {
    "a weak reference's callback": """
import weakref
class Lock: pass
lock = Lock()
def callback(_reference):
    send('SIGTERM')
reference = weakref.ref(lock, callback)
del lock
""",
    "a finaliser": """
class Held:
    def __del__(self):
        send('SIGTERM')
held = Held()
del held
""",
}


def test_a_signal_is_heard_where_the_hook_for_dropped_ones_is_slow() -> None:
    """Seen on a busy machine: the next try came before the hook had returned."""
    body = (
        """
import time
later = signals._later
def slow(name):
    signals._later = later
    later(name)
    for _ in range(10):
        time.sleep(0.005)
signals._later = slow
"""
        + DROPS["a finaliser"]
        + """
for _ in range(2000):
    time.sleep(0.005)
say('went on')
"""
    )
    assert told(body) == ["heard: interrupted by SIGTERM"]


def test_a_signal_is_heard_that_comes_while_another_exception_is_dropped() -> None:
    body = """
import sys, time
def hook(dropped):
    send('SIGTERM')
    say('told')
sys.__unraisablehook__ = hook
class Held:
    def __del__(self):
        raise OSError('no such thing')
held = Held()
del held
for _ in range(2000):
    time.sleep(0.005)
say('went on')
"""
    assert told(body) == ["told", "heard: interrupted by SIGTERM"]


@pytest.mark.parametrize("where", DROPS)
def test_a_signal_is_heard_where_python_drops_exceptions(where: str) -> None:
    """Seen at an import in a restore's last step: it went on and ended with exit 0."""
    wait = """
import time
for _ in range(2000):
    time.sleep(0.005)
say('went on')
"""
    assert told(DROPS[where] + wait) == ["heard: interrupted by SIGTERM"]


def test_a_dropped_signal_waits_for_the_shield_too() -> None:
    shielded = """
import time
deadline = 1000
with signals.shield():
    while not signals._waiting and (deadline := deadline - 1):
        time.sleep(0.005)
    say('renamed')
say('went on')
"""
    body = "signals.UNTIL_AGAIN = 0.2\n" + DROPS["a finaliser"] + shielded
    assert told(body) == ["renamed", "heard: interrupted by SIGTERM"]


def test_other_dropped_exceptions_are_told_as_ever() -> None:
    body = """
class Held:
    def __del__(self):
        raise OSError('no such thing')
def hook(dropped):
    say(repr(dropped.exc_value))
sys.__unraisablehook__ = hook
held = Held()
del held
say('went on')
"""
    assert told(body) == ["OSError('no such thing')", "went on"]
