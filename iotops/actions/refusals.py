"""Remember a commit that was refused when it was tried out, so that no timer tries it again.

A trial starts scratch brokers; four times an hour they would find the same. What a commit was
judged by is the commit and the files that only this machine has. Anything else here may change as
well: after a day it is tried anew, and by hand at once. Not here: the trial (`candidate.py`), and a
commit that was returned from (`syncback.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from iotops.actions import envcheck
from iotops.actions.syncproject import OVERRIDES
from iotops.clients import files
from iotops.errors import GuardError
from iotops.events import Noted, Report
from iotops.hub import Hub
from iotops.journal import stamp
from iotops.model import Finding, Severity

FILE = "refused.json"
"""File in iotops' own folder."""
KEPT = timedelta(days=1)
PASSING = "candidate.passing"
"""Finding that a look could not be taken at this moment (`errors.passes`): none of the commit."""
_NOT_ITS_FAULT = (PASSING, "image.missing")


def tell(commit: str, found: Sequence[Finding], report: Report) -> GuardError | None:
    """Tell what a trial found; gives the error that refuses the commit, None = it is good."""
    for one in found:
        level = "error" if one.severity is Severity.ERROR else "warning"
        report(Noted(level, one.message, one.subject))
    bad = [one for one in found if one.severity is Severity.ERROR]
    if not bad:
        return None
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    text = f"the commit {commit[:8]} is refused, nothing was touched:"
    text += f" {bad[0].subject}: {bad[0].message}{more}"
    return GuardError(text, hint=bad[0].hint or "commit what mends it, then: iotops sync apply")


def judged(hub: Hub, commit: str) -> str:
    """Give a mark of a commit and of the files that only this machine has."""
    mark = hashlib.sha256(commit.encode())
    for name in (envcheck.FILE, *OVERRIDES):
        with suppress(OSError):
            mark.update(b"\0" + name.encode() + b"\0" + (hub.folder / name).read_bytes())
    return mark.hexdigest()


def remember(hub: Hub, mark: str, found: Sequence[Finding]) -> None:
    """Remember what a trial found: that the commit is refused, or, where it is good, nothing.

    Args:
        mark: by `judged`, taken before the trial began.
    """
    place = hub.layout.folder / FILE
    bad = [one for one in found if one.severity is Severity.ERROR]
    rows = [[one.code, one.severity.value, one.subject, one.message, one.hint] for one in found]
    known = {"looked": stamp(), "judged": mark, "found": rows}
    with suppress(OSError):  # a full disk: it is tried again, no more
        if not bad or any(one.code in _NOT_ITS_FAULT for one in bad):
            place.unlink(missing_ok=True)
        else:
            files.write(place, json.dumps(known).encode(), mode=0o600)


def refuse_again(hub: Hub, commit: str, report: Report) -> None:
    """Refuse a commit as it was refused before, while what it was judged by is the same.

    Raises:
        GuardError: as the trial's, and when that was.
    """
    try:
        document: object = json.loads((hub.layout.folder / FILE).read_bytes())
        known = document if isinstance(document, dict) else {}
        looked = datetime.fromisoformat(str(known.get("looked")))
        age = datetime.now(UTC) - looked
        found = [_finding(row) for row in known.get("found", ())]
    except (OSError, ValueError, TypeError):
        return  # none is known; or it cannot be read, and is looked at again
    # A clock that was set back makes it one of the future.
    if known.get("judged") != judged(hub, commit) or not timedelta(0) <= age < KEPT:
        return
    if (error := tell(commit, found, report)) is not None:
        raise GuardError(
            f"{error.message}\nit was tried at {known['looked']}; a timer tries again when the"
            f" commit or {envcheck.FILE} is another one, or a day has passed",
            hint=f"{error.hint}; or look again at once, by hand: iotops sync apply",
        )


def _finding(row: object) -> Finding:
    if not isinstance(row, list):
        raise ValueError("no finding")
    code, severity, subject, message, hint = row
    return Finding(str(code), Severity(severity), str(subject), str(message), str(hint))
