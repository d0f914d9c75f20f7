"""International bank account numbers (ISO 13616): the country's length, and the check of ISO 7064, MOD 97-10."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_LENGTHS: Final = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
"""Number of an IBAN's characters by its country, from the IBAN registry (ISO 13616-2). Costa Rica has 22."""

_first = re.compile(r"(?<![^\W_])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])")
_rest = re.compile("[ -]?[A-Za-z0-9]")


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of IBANs, in one piece or in groups with a space or dash between."""
    for found in _first.finditer(text):
        length = _LENGTHS.get(found[0][:2].upper())
        end = _end(text, found.end(), length - 4) if length is not None else None
        if end is not None and _is_valid(text[found.start() : end]):
            yield found.start(), end


def _end(text: str, place: int, characters: int) -> int | None:
    """Return the end of a number with exactly this many further characters, else None."""
    for _ in range(characters):
        found = _rest.match(text, place)
        if found is None:
            return None
        place = found.end()
    return None if text[place : place + 1].isalnum() else place


def _is_valid(written: str) -> bool:
    characters = written.replace(" ", "").replace("-", "")
    return int("".join(str(int(character, 36)) for character in characters[4:] + characters[:4])) % 97 == 1
