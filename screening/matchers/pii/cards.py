"""Payment card numbers (ISO/IEC 7812): the network's prefix and length, and the Luhn check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_NETWORKS: Final = (
    (re.compile("4"), (13, 16, 19)),  # Visa
    (re.compile("5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),  # Mastercard
    (re.compile("3[47]"), (15,)),  # American Express
    (re.compile("3(?:0[0-5]|095|[689])"), (14, 16, 19)),  # Diners Club
    (re.compile("6(?:011|4[4-9]|5)"), (16, 19)),  # Discover
    (re.compile("35(?:2[89]|[3-8])"), (16, 19)),  # JCB
    (re.compile("62|81"), (16, 17, 18, 19)),  # UnionPay
    (re.compile("5018|5020|5038|5893|6304|6759|676[1-3]"), (13, 14, 15, 16, 17, 18, 19)),  # Maestro
)
"""Prefixes of the networks, with the lengths of their numbers."""
_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)

_NETWORK: Final = re.compile("|".join(prefix.pattern for prefix, _ in _NETWORKS))
_first = re.compile("[0-9]{13,19}(?![0-9])|[0-9]{4}(?=[ .-][0-9]{3})")
_group = re.compile("[ .-][0-9]{3,6}(?![0-9])")


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of card numbers, written in one piece or in groups with a space, dash or dot between."""
    place = 0
    while (found := _first.search(text, place)) is not None:
        start, end = found.span()
        place = end
        if _is_inside(text, start):
            place = _end_of_digits(text, end)
            continue
        if not _NETWORK.match(text, start):
            continue
        ends = [end] if end - start > 4 else _ends(text, end)
        for candidate in reversed(ends):
            if _is_card(_digits(text[start:candidate])) and not _goes_on(text, candidate):
                yield start, candidate
                place = candidate
                break


def _ends(text: str, place: int) -> list[int]:
    """Return the ends of the next one to four groups of digits."""
    ends = []
    for _ in range(4):
        group = _group.match(text, place)
        if group is None:
            break
        place = group.end()
        ends.append(place)
    return ends


def _digits(written: str) -> str:
    return written.replace(" ", "").replace("-", "").replace(".", "")


def _is_inside(text: str, start: int) -> bool:
    """True if the digits continue a word or a decimal fraction."""
    before = text[max(0, start - 2) : start]
    return before[-1:].isalnum() or (before[-1:] in (".", ",") and before[:1].isdigit())


def _goes_on(text: str, end: int) -> bool:
    """True if a word or a decimal fraction continues the digits."""
    after = text[end : end + 2]
    return after[:1].isalnum() or (after[:1] in (".", ",") and after[1:].isdigit())


def _end_of_digits(text: str, place: int) -> int:
    while place < len(text) and text[place].isdigit():
        place += 1
    return place


def _is_card(digits: str) -> bool:
    networks = (lengths for prefix, lengths in _NETWORKS if prefix.match(digits))
    return any(len(digits) in lengths for lengths in networks) and _luhn(digits)


def _luhn(digits: str) -> bool:
    """True if the check digit is right (ISO/IEC 7812-1, annex B).

    Every second digit from the right is doubled; then the sum must be a multiple of ten.
    """
    values = [int(digit) for digit in reversed(digits)]
    return (sum(values[::2]) + sum(_DOUBLED[value] for value in values[1::2])) % 10 == 0
