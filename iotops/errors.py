"""The ways in which iotops can fail, and the exit codes that tell them apart.

An error says what was being done to what (`message`) and the next command to type (`hint`).
Constructors neither print nor log; the one boundary in `cli/` speaks. Not here: partial success
and differences, which are outcomes (values), not exceptions.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar


class Exit(IntEnum):
    """What the exit code of a command means; 10 to 12 and 130 are restic's own numbers."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    DIFFERENT = 4
    NO_REPOSITORY = 10
    LOCKED = 11
    WRONG_PASSWORD = 12
    SKIPPED = 75
    INTERRUPTED = 130


EXIT_MEANING: dict[Exit, str] = {
    Exit.DONE: "done",
    Exit.FAILED: "failed, a guard refused, an error was found, or data is not as recorded",
    Exit.USAGE: "usage or settings",
    Exit.PARTIAL: "partial: something was not captured, or is not in the snapshot",
    Exit.DIFFERENT: "differences or a conflict",
    Exit.NO_REPOSITORY: "no repository at the address",
    Exit.LOCKED: "repository locked, or another iotops is running",
    Exit.WRONG_PASSWORD: "wrong repository password",
    Exit.SKIPPED: "skipped for now",
    Exit.INTERRUPTED: "interrupted",
}
"""One line per exit code, as shown in every `--help` and in the reference."""


class IotopsError(Exception):
    """Root of every failure that a user can cause or meet.

    Args:
        message: what was being done to what, and what went wrong. Never a secret.
        hint: the next command to type or thing to do; may be empty.
    """

    exit: ClassVar[Exit] = Exit.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        # A file name may hold bytes that are no text: they are shown, and can be written as JSON.
        self.message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(self.message)
        self.hint = hint.encode("utf-8", "backslashreplace").decode()


class UsageError(IotopsError):
    """The command line asks for something that cannot be."""

    exit = Exit.USAGE


class SettingsError(IotopsError):
    """`iotops.toml` is missing or wrong; `faults` holds every fault with its path."""

    exit = Exit.USAGE

    def __init__(self, message: str, *, faults: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.faults = tuple(faults)


class Skipped(IotopsError):
    """It cannot be done now, and may well be later; the staleness alarm tells when that lasts."""

    exit = Exit.SKIPPED


class GuardError(IotopsError):
    """A guard refused: going on could capture the wrong thing or destroy the right one."""


class ProgramMissing(IotopsError):
    """A program that is needed is not installed or too old; the hint names the package."""


class ProgramFailed(IotopsError):
    """A program ended with an error.

    Args:
        code: its exit code; negative = ended by that signal.
        tail: the last lines of its standard error.
    """

    def __init__(
        self, message: str, *, code: int = 1, tail: Sequence[str] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.tail = tuple(tail)


class TimedOut(ProgramFailed):
    """A program passed its wall limit or was silent for too long, and was ended."""


class GitError(ProgramFailed):
    """Git refused something in a worktree of the hub; a remote's own refusals are ServerErrors."""


class RepositoryMissing(IotopsError):
    """There is no restic repository at the address; a backup never creates one."""

    exit = Exit.NO_REPOSITORY


class RepositoryNotOurs(IotopsError):
    """The repository is a different one than this hub recorded."""


class RepositoryDamaged(IotopsError):
    """restic found the repository itself damaged; `said` is what it said about it."""

    def __init__(self, message: str, *, said: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.said = tuple(said)


class Locked(IotopsError):
    """The repository is locked, or another iotops works on this hub."""

    exit = Exit.LOCKED


class WrongPassword(IotopsError):
    """The repository does not open with the password given."""

    exit = Exit.WRONG_PASSWORD


class SnapshotUnknown(IotopsError):
    """No snapshot, or more than one, fits what was asked for."""


class ManifestError(IotopsError):
    """A snapshot's manifest is missing, damaged or of a newer format."""


class ServerError(IotopsError):
    """A service's server could not do what it was asked."""


class Unreachable(ServerError):
    """Nothing answers at the address."""


class Refused(ServerError):
    """The server does not accept our token or its rights (401, 403)."""


class Conflict(ServerError):
    """Somebody else changed the thing in between (409)."""

    exit = Exit.DIFFERENT


class CaptureError(IotopsError):
    """A service's data could not be captured consistently."""


class LoadError(IotopsError):
    """A captured folder cannot be made into the service's data again."""


class FlowsError(IotopsError):
    """A Node-RED flows document is not what it must be."""


class StackError(IotopsError):
    """Containers could not be started, stopped or asked.

    Args:
        services: the Compose services it is about, where known.
    """

    def __init__(self, message: str, *, services: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.services = tuple(services)


class RestoreError(IotopsError):
    """A restore stopped; what was changed has been put back unless the message says otherwise."""


class NoSpace(IotopsError):
    """There is not enough free space for what is about to be written."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM asked the run to end.

    No `IotopsError`: code that turns a service's failure into its record must not swallow it.
    """

    exit: ClassVar[Exit] = Exit.INTERRUPTED

    def __init__(self, message: str = "interrupted", *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def passes(error: OSError | IotopsError) -> bool:
    """Tell whether a failure is of this moment, and says nothing against what was being tried: a
    disk is full or failing, a program or a server does not do its work. A timer tries again."""
    if isinstance(error, OSError):
        return error.errno in _OF_THE_DISK
    return isinstance(error, (ProgramFailed, NoSpace, StackError, Unreachable))
