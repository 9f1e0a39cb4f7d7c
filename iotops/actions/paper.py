"""Passwords on paper: made so that they can be typed, read so that a slip is found at once.

Six groups of five letters, none of which looks like another. The last letter of each group is a
check of the four before it and of the group's place: one wrong letter, two that changed places
and two groups that did are all found, and the group is named, before restic is asked. Pure. Not
here: whose key it is (`kit.py`), the page that it is printed on (`kitpage.py`).
"""

from __future__ import annotations

import re
import secrets

from iotops.errors import UsageError

ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""31 letters, without 0 O, 1 I L; a prime number, so that the check finds what it promises."""
GROUPS = 6
SIZE = 5
"""24 letters are free: 118 bits."""


class Mistyped(UsageError):
    """What was typed cannot be a password from paper; restic has not been asked."""


def generate() -> str:
    """Make a new password, in the form in which it is printed and in which restic gets it."""
    return "-".join(_group(number) for number in range(GROUPS))


def _group(number: int) -> str:
    letters = "".join(secrets.choice(ALPHABET) for _ in range(SIZE - 1))
    return letters + _check(number, letters)


def _check(number: int, letters: str) -> str:
    """Give the check letter of a group: every place has a weight of its own, modulo a prime."""
    total = (SIZE + 1) * (number + 1)
    for place, letter in enumerate(letters, 2):
        total += place * ALPHABET.index(letter)
    return ALPHABET[total % len(ALPHABET)]


def read(typed: str) -> str:
    """Give the password that somebody typed from paper.

    Small letters, blanks and missing or additional dashes are no slip.

    Raises:
        Mistyped: it cannot be one; says which group is wrong, and never what was typed.
    """
    letters = re.sub(r"[\s_\-\u2010-\u2015]", "", typed).upper()  # whatever looks like a dash
    groups = [letters[start : start + SIZE] for start in range(0, len(letters), SIZE)]
    wrong = [
        number + 1
        for number, group in enumerate(groups[:GROUPS])
        if len(group) == SIZE and not _fits(number, group)
    ]
    if len(letters) != GROUPS * SIZE:
        after = f"; look at group {wrong[0]} first" if wrong else ""
        raise Mistyped(
            f"a kit's password has {GROUPS * SIZE} letters, {len(letters)} were typed{after}",
            hint="type it again, all six groups: iotops kit --verify",
        )
    if wrong:
        which = ", ".join(map(str, wrong))
        raise Mistyped(
            f"group {which} of the password is mistyped",
            hint="compare it with the paper, letter by letter; there is no 0, O, 1, I or L in it",
        )
    return "-".join(groups)


def _fits(number: int, group: str) -> bool:
    known = all(letter in ALPHABET for letter in group)
    return known and _check(number, group[:-1]) == group[-1]
