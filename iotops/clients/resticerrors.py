"""What a failed restic means: one table of its exit codes and words, for all versions.

Exit codes 10 to 12 exist since 0.17; before, everything is 1 and only the words tell. The words
are from restic's source and were seen with 0.14.0, 0.18.0 and 0.19.1. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from iotops.clients.resticanswers import document, words
from iotops.errors import (
    GuardError,
    IotopsError,
    Locked,
    NoSpace,
    ProgramFailed,
    Refused,
    RepositoryDamaged,
    RepositoryMissing,
    SnapshotUnknown,
    Unreachable,
    WrongPassword,
)


@dataclass(frozen=True)
class Meaning:
    """What an exit code or a text of restic means here.

    Attributes:
        code: exit code, since the version in the comment; 0 = restic has none for it.
        pattern: its words, in all versions.
        show: the part of its words that says more than our message.
    """

    code: int
    pattern: re.Pattern[str]
    error: type[IotopsError]
    message: str
    hint: str
    show: re.Pattern[str] | None = None


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_LINE = re.compile(r"[^\n]+")

MEANINGS = (
    Meaning(
        12,  # 0.17.1
        _any("wrong password or no key found", "an empty password is not", "resolving password"),
        WrongPassword,
        "the repository does not open with this password",
        "check repository.password_file in iotops.toml against your kit",
    ),
    Meaning(
        11,  # 0.17.0
        # Not "unable to create lock": that is also a repository that cannot be written to.
        _any("already locked"),
        Locked,
        "the repository is locked by another restic",
        "wait until it has ended; what a dead run left: iotops resume, or restic unlock",
        re.compile(r"(?:exclusively )?by PID [^\n(]+"),
    ),
    Meaning(
        0,
        _any("no space left on device", "disk quota exceeded"),
        NoSpace,
        "there is no space left for the repository, its cache or temporary files",
        "look which disk is full: df -h; then make room on it",
        _LINE,
    ),
    Meaning(
        0,
        # Before "is there a repository": restic < 0.17 asks that when nobody answers, too.
        _any(
            "no such host",
            "connection (?:refused|reset|timed out|closed)",
            "(?:i/o|handshake) timeout",
            "timeout awaiting",
            "client.timeout exceeded",
            "(?:network|host) is (?:unreachable|down)",
            "no route to host",
            "temporary failure in name resolution",
            "could not resolve host",
            "server misbehaving",
            r"http response \((?:502|503|504)\)",  # of a proxy before a server that is down
        ),
        Unreachable,
        "the repository's server does not answer",
        "look at the network, then try again",
        _LINE,
    ),
    Meaning(
        0,
        _any(
            r"unable to open config file:[^\n]*(?:\b40[13]\b|forbidden|unauthorized)",
            r"unable to open config file:[^\n]*(?:access.?denied|signature|access key)",
            r"permission denied \((?:publickey|password|keyboard)",
            "host key verification failed",
        ),
        Refused,
        "the repository's server does not accept our credential",
        "check repository.credentials_file in iotops.toml against your kit",
        _LINE,
    ),
    Meaning(
        0,
        # What is left of an ssh that has ended, where restic did not hear why; see `ssh_unheard`.
        _any("unable to start the sftp session"),
        Unreachable,
        "the repository's server does not answer",
        "look at the network, then try again",
        _LINE,
    ),
    Meaning(
        10,  # 0.17.0
        _any(
            "repository does not exist",
            r"unable to open config file:[^\n]*(?:no such file|does not exist|not ?found|"
            r"no ?such ?key|no ?such ?bucket|\b404\b)",
        ),
        RepositoryMissing,
        "there is no repository at the address",
        "is its disk mounted, is the address right? For a hub that never had one:"
        " iotops init --repository URL",
    ),
    Meaning(
        0,
        _any("config file already exists", "config already initialized"),
        GuardError,
        "there is a repository at the address already",
        "to use it: iotops init --repository URL --accept-repository",
    ),
    Meaning(
        0,
        _any(
            "config file has zero size",
            "ciphertext verification failed",
            "trying to decrypt invalid data",  # a config file cut to less than a header
            "invalid data returned",
            "pack id does not match",
            r"pack \w+: does not exist",
            r"readfull\(<data/",
            r"\bid \w+ not found in repository",
            "hash mismatch",
            "repository contains errors",
            "repository is damaged",
            r"panic: [\s\S]*restic\.LoadConfig",  # a cut-off config file, seen with 0.14 to 0.19
        ),
        RepositoryDamaged,
        "the repository is damaged",
        "copy it aside before anything else, then: restic check --read-data",
        _LINE,
    ),
    Meaning(
        0,
        _any(
            "no matching id found", "failed to (?:find|load) snapshot", "multiple ids with prefix"
        ),
        SnapshotUnknown,
        "the repository has no such snapshot",
        "look: iotops snapshots",
    ),
)
"""One table of restic's exit codes and words. Codes decide before words, words in this order."""

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STACK = re.compile(
    r"^(?:goroutine \d+ .*|\s+\S+\.(?:go|s):\d+.*|(?:runtime|main|\w+\.\w+/\S+?)\.[\w.(*]+.*)$"
)
_NO_BUCKET = _any("bucket does not exist", "no ?such ?bucket")
_RETRY = re.compile(r"returned error, retrying after|repo already locked, waiting")


def said(tail: Iterable[str]) -> list[str]:
    """Give restic's error lines as plain text: out of their JSON, without stack traces."""
    found: list[str] = []
    for line in tail:
        read = document(line)
        inner = read.get("error")
        text = words(read, "message") or (
            words(inner, "message") if isinstance(inner, dict) else ""
        )
        plain = text if read else _ESCAPES.sub("", line)
        found += [one.rstrip() for one in plain.splitlines() if one.strip()]
    return [line for line in found if not _STACK.match(line)]


def last_words(tail: Iterable[str]) -> tuple[str, ...]:
    """Give restic's error lines without those of attempts that it made again."""
    return tuple(line for line in said(tail) if not _RETRY.search(line))


def ssh_unheard(tail: Sequence[str]) -> bool:
    """Tell whether restic's ssh ended, and restic did not wait for its words (0.14, 0.19, seen)."""
    text = "\n".join(tail)
    return "unable to start the sftp session" in text and "subprocess ssh: " not in text


def classify(code: int, tail: Sequence[str], doing: str) -> IotopsError:
    """Give the error that a failed call means.

    Args:
        code: its exit code.
        tail: what it said at last, free of secrets.
        doing: what was being done.
    """
    final = last_words(tail)
    text = (
        "\n".join((*final, *tail)) if any("panic: " in line for line in final) else "\n".join(final)
    )
    by_code = [meaning for meaning in MEANINGS if code == meaning.code]
    by_words = [meaning for meaning in MEANINGS if meaning.pattern.search(text)]
    for meaning in (*by_code, *by_words):
        return meaning.error(f"{doing}: {_full(meaning, final)}", hint=meaning.hint)
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    message = f"{doing}: restic failed ({how})" + (f": {_reason(final)}" if final else "")
    return ProgramFailed(message, code=code, tail=tail)


def unreachable(tail: Sequence[str], doing: str) -> Unreachable | RepositoryMissing | None:
    """Give the error that retries mean when the time ran out over them, None for others.

    restic since 0.17 tries for a quarter of an hour, also to find a bucket that is not there.
    """
    for meaning in MEANINGS:
        if meaning.error is Unreachable and any(map(meaning.pattern.search, tail)):
            return Unreachable(f"{doing}: {meaning.message}", hint=meaning.hint)
        if meaning.error is RepositoryMissing and any(map(_NO_BUCKET.search, tail)):
            return RepositoryMissing(f"{doing}: {meaning.message}", hint=meaning.hint)
    return None


def _full(meaning: Meaning, final: Sequence[str]) -> str:
    """Complete a message with what restic knows more exactly."""
    if meaning.show is not None:
        for line in final:
            if meaning.pattern.search(line) and (shown := meaning.show.search(line)):
                return f"{meaning.message} ({_bare(shown[0])})"
    return meaning.message


def _reason(final: Sequence[str]) -> str:
    """Choose what tells why: the fatal line, else the last two."""
    fatal = [line for line in final if re.match(r"(?:Fatal|panic): ", line)]
    return _bare(fatal[-1] if fatal else "; ".join(line.strip() for line in final[-2:]))


def _bare(line: str) -> str:
    return re.sub(r"^(?:Fatal: )+", "", line.strip())[:500]


Clean = Callable[[str], str]


def cleaner(secrets: Iterable[str]) -> Clean:
    """Give a function that puts stars in the place of secrets, the longest first.

    Shorter ones than six characters would take other words with them; inside of an address they
    are found by their place.
    """
    known = sorted({secret for secret in secrets if len(secret) >= 6}, key=len, reverse=True)

    def clean(text: str) -> str:
        for secret in known:
            text = text.replace(secret, "***")
        return re.sub(r"(://[^/@:\s]*:)[^/@\s]+@", r"\1***@", text)

    return clean
