"""Phone numbers, as Google's libphonenumber validates them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Final

from phonenumbers import NumberParseException, is_valid_number, parse

_MOST_CHECKS: Final = 20_000
"""The maximum number of candidates of one text that are validated, at 50 µs each. Further candidates are reported
as phone numbers without validation, because such a text lists phone numbers.
"""
_LEAST_DIGITS: Final = 7
_MOST_DIGITS: Final = 15
"""The maximum number of digits of a phone number (E.164)."""

# Nothing that can fail follows an unbounded repetition in these patterns, so that no text causes long backtracking.
_international = re.compile(r"\+[0-9(][0-9() ./-]{0,40}")
_national = re.compile(r"(?<![\w.,+:/-])[0-9(][0-9() ./-]{0,40}")
_no_phone = re.compile(r"[0-9]+(?:\.[0-9]+)?|\(?[0-9]{4}-[0-9]{2}-[0-9]{2}.*|(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]).*")
"""Numbers, amounts, dates and IP addresses, which are not phone numbers unless a `+` precedes them."""
_goes_on = re.compile(r"[^\W\d]|@|[:,][0-9]")
_end_of_group = re.compile(r"[0-9]\)?(?![0-9)])")


def phones(text: str, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each phone number.

    A number with `+` may be of any country. A number without `+` must be valid as written in one of the
    `regions` (ISO 3166-1).
    """
    checks = 0
    for pattern, given in ((_international, (None,)), (_national, regions)):
        place = 0
        while given and (found := pattern.search(text, place)) is not None:
            start, place = found.span()
            for end, region in product(_ends(text, found, international=pattern is _international), given):
                checks += 1
                if checks > _MOST_CHECKS or _is_number(text[start:end], region):
                    yield start, end
                    place = end
                    break


def _ends(text: str, found: re.Match[str], *, international: bool) -> list[int]:
    """Return the ends of the groups of digits at which a number may end; the longest first.

    Digits after a phone number may look like a part of it, as in `+49 30 1234567 2 times`.
    """
    digits = last = 0
    ends: list[int] = []
    for group in _end_of_group.finditer(found[0]):
        digits += sum(map(str.isdigit, found[0][last : group.end()]))
        last = group.end()
        if digits > _MOST_DIGITS:
            break
        if digits >= _LEAST_DIGITS and (international or not _no_phone.fullmatch(found[0][:last])):
            ends.append(found.start() + last)
    if ends and _goes_on.match(text, ends[-1]):
        ends.pop()  # drops the last group, which belongs to a word, an address or an amount
    return ends[::-1]


@lru_cache(maxsize=4096)
def _is_number(written: str, region: str | None) -> bool:
    try:
        return is_valid_number(parse(written, region))
    except NumberParseException:
        return False
