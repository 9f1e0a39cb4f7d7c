"""Passwords on paper: what a person may get wrong in typing is found, and named, before restic."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops.actions import paper
from iotops.actions.paper import ALPHABET, Mistyped

pytestmark = pytest.mark.unit

PASSWORD = "4E98D-W885Z-QSU4R-AZCTD-6F4ZM-DCF2J"
"""Made once by `generate`, so that a change of the form cannot hide: papers in drawers stay."""
PLACES = [place for place, letter in enumerate(PASSWORD) if letter != "-"]
place = st.sampled_from(PLACES)


def typed_with(changes: dict[int, str]) -> str:
    return "".join(changes.get(at, letter) for at, letter in enumerate(PASSWORD))


def test_what_is_made_is_read() -> None:
    made = [paper.generate() for _ in range(200)]
    assert len(set(made)) == len(made)
    for word in made:
        assert re.fullmatch(rf"([{ALPHABET}]{{5}}-){{5}}[{ALPHABET}]{{5}}", word)
        assert paper.read(word) == word


def test_letters_that_look_alike_are_not_in_it() -> None:
    assert len(ALPHABET) == len(set(ALPHABET)) == 31
    assert not set("01OIL") & set(ALPHABET)


@pytest.mark.parametrize(
    "typed",
    [
        PASSWORD,
        PASSWORD.lower() + "\n",
        PASSWORD.replace("-", " "),
        PASSWORD.replace("-", ""),
        f"  {PASSWORD.replace('-', ' - ')}\t",
        PASSWORD.replace("-", "\u2013"),
        PASSWORD.replace("-", "\u00a0"),
    ],
)
def test_small_letters_blanks_and_dashes_are_no_slip(typed: str) -> None:
    assert paper.read(typed) == PASSWORD


@given(place, st.sampled_from(ALPHABET + "01OIL!"))
def test_every_single_wrong_letter_is_found_in_its_group(at: int, letter: str) -> None:
    if letter == PASSWORD[at]:
        return
    with pytest.raises(Mistyped) as caught:
        paper.read(typed_with({at: letter}))
    assert f"group {at // 6 + 1} " in caught.value.message


@given(place, place)
def test_two_letters_of_a_group_that_changed_places_are_found(one: int, other: int) -> None:
    if one // 6 != other // 6 or PASSWORD[one] == PASSWORD[other]:
        return
    with pytest.raises(Mistyped, match=f"group {one // 6 + 1} "):
        paper.read(typed_with({one: PASSWORD[other], other: PASSWORD[one]}))


@given(st.permutations(PASSWORD.split("-")))
def test_groups_that_changed_places_are_found(groups: list[str]) -> None:
    if groups == PASSWORD.split("-"):
        return
    with pytest.raises(Mistyped) as caught:
        paper.read("-".join(groups))
    wrong = [n for n, group in enumerate(groups, 1) if group != PASSWORD.split("-")[n - 1]]
    assert f"group {', '.join(map(str, wrong))} of" in caught.value.message


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "0 were typed"),
        (PASSWORD[:-1], "29 were typed"),
        (PASSWORD + "A", "31 were typed"),
        (PASSWORD[:14] + PASSWORD[15:], "29 were typed; look at group 3 first"),
        (PASSWORD[:17], "15 were typed"),
    ],
)
def test_a_letter_too_many_or_too_few_is_counted(typed: str, told: str) -> None:
    with pytest.raises(Mistyped) as caught:
        paper.read(typed)
    assert caught.value.message.endswith(told)


@given(st.text(max_size=60))
def test_anything_else_is_refused_and_never_repeated(typed: str) -> None:
    with pytest.raises(Mistyped) as caught:
        paper.read(typed)
    shown = caught.value.message + caught.value.hint
    with pytest.raises(Mistyped) as nothing:
        paper.read("")
    own = nothing.value.message + nothing.value.hint  # "--verify" stands in the hint anyway
    assert len(typed) < 8 or typed not in shown or typed in own
