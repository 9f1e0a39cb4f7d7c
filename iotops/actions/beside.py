"""Work in a thread beside the main work, for calls that mostly wait for another program.

Not here: what is worth it (a call of restic derives a key for half a second, on one core).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from iotops.clients import process

T = TypeVar("T")


class Beside(Generic[T]):
    """Something that runs in a thread beside other work; `result()` gives or raises."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            self._error = error

    def stop(self) -> None:
        """End it, with the program that it waits for: nobody wants its result any more."""
        while self._thread.is_alive():
            process.end_of(self._thread)
            self._thread.join(0.2)

    def result(self) -> T:
        """Wait for the end and give the result.

        Raises:
            whatever the work raised.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value[0]
