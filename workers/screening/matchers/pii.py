"""Personal data. Each kind has a check, such as a check digit, so that few order numbers match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from ipaddress import ip_address
from itertools import product
from typing import Final, Literal

from phonenumbers import NumberParseException, is_valid_number, parse

from workers.screening.matchers import Match

PiiKind = Literal["card", "iban", "email", "phone", "ip", "ssn"]
_Spans = Callable[[str], Iterator[tuple[int, int]]]


class Pii:
    """Finds personal data of the given kinds. `regions` are countries whose phone numbers need no `+`."""

    def __init__(self, kinds: tuple[PiiKind, ...], regions: tuple[str, ...] = ()) -> None:
        finders: dict[PiiKind, _Spans] = {
            "card": _cards,
            "iban": _ibans,
            "email": _emails,
            "phone": partial(_phones, regions=regions),
            "ip": _addresses,
            "ssn": _social_security_numbers,
        }
        self._finders = [(kind, finders[kind]) for kind in kinds]

    def matches(self, text: str) -> Iterator[Match]:
        """Yield the places of personal data in the text."""
        for kind, finder in self._finders:
            for start, end in finder(text):
                yield Match(start, end, kind)


# -- payment card numbers ----------------------------------------------------------------------------------------------

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
_card_start = re.compile("[0-9]{13,19}(?![0-9])|[0-9]{4}(?=[ .-][0-9]{3})")
_card_group = re.compile("[ .-][0-9]{3,6}(?![0-9])")


def _cards(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of card numbers (ISO/IEC 7812), by the network's prefix and length, and the Luhn check.

    A number is written in one piece, or in groups with a space, dash or dot between.
    """
    place = 0
    while (found := _card_start.search(text, place)) is not None:
        start, end = found.span()
        place = end
        if _is_inside(text, start):
            place = _end_of_digits(text, end)
            continue
        if not _NETWORK.match(text, start):
            continue
        ends = [end] if end - start > 4 else _card_ends(text, end)
        for candidate in reversed(ends):
            if _is_card(_digits(text[start:candidate])) and not _goes_on(text, candidate):
                yield start, candidate
                place = candidate
                break


def _card_ends(text: str, place: int) -> list[int]:
    """Return the ends of the next one to four groups of digits."""
    ends = []
    for _ in range(4):
        group = _card_group.match(text, place)
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


# -- international bank account numbers --------------------------------------------------------------------------------

_IBAN_LENGTHS: Final = {
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

_iban_start = re.compile(r"(?<![^\W_])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])")
_iban_character = re.compile("[ -]?[A-Za-z0-9]")


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of IBANs (ISO 13616), by the country's length, and the check of ISO 7064, MOD 97-10.

    A number is written in one piece, or in groups with a space or dash between.
    """
    for found in _iban_start.finditer(text):
        length = _IBAN_LENGTHS.get(found[0][:2].upper())
        end = _iban_end(text, found.end(), length - 4) if length is not None else None
        if end is not None and _is_iban(text[found.start() : end]):
            yield found.start(), end


def _iban_end(text: str, place: int, characters: int) -> int | None:
    """Return the end of a number with exactly this many further characters, else None."""
    for _ in range(characters):
        found = _iban_character.match(text, place)
        if found is None:
            return None
        place = found.end()
    return None if text[place : place + 1].isalnum() else place


def _is_iban(written: str) -> bool:
    characters = written.replace(" ", "").replace("-", "")
    return int("".join(str(int(character, 36)) for character in characters[4:] + characters[:4])) % 97 == 1


# -- e-mail addresses --------------------------------------------------------------------------------------------------

_MOST_LOCAL: Final = 64
_MOST_DOMAIN: Final = 253
_SYMBOLS: Final = frozenset("!#$%&'*+/=?^_`{|}~.-")
"""Symbols of a local part without quotes."""

_domain = re.compile(r"[^\W_](?:[\w-]{0,61}[^\W_])?(?:\.[^\W_](?:[\w-]{0,61}[^\W_])?)+")
_end_of_domain = re.compile(r"\.(?:[^\W\d_]{2,}|xn--[a-z0-9-]+)$", re.IGNORECASE)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of e-mail addresses: the usual form of RFC 5321, with letters of all scripts (RFC 6531).

    A bounded number of characters is read on both sides of each `@`.
    """
    done = 0
    place = text.find("@")
    while place >= 0:
        start = _local_start(text, place, done)
        domain = _domain.match(text, place + 1, place + 1 + _MOST_DOMAIN) if start < place else None
        if domain is not None and _end_of_domain.search(domain[0]):
            done = domain.end()
            yield start, done
        place = text.find("@", place + 1)


def _local_start(text: str, end: int, least: int) -> int:
    """Return the beginning of the local part that ends here; `end` itself if there is none."""
    start = end
    while start > max(least, end - _MOST_LOCAL) and (text[start - 1].isalnum() or text[start - 1] in _SYMBOLS):
        start -= 1
    while start < end and not text[start].isalnum() and text[start] != "_":
        start += 1  # skips an opening quote or dash in front of the address
    return end if text[end - 1 : end] == "." else start


# -- phone numbers -----------------------------------------------------------------------------------------------------

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
_phone_goes_on = re.compile(r"[^\W\d]|@|[:,][0-9]")
_end_of_group = re.compile(r"[0-9]\)?(?![0-9)])")


def _phones(text: str, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each phone number that Google's libphonenumber finds valid.

    A number with `+` may be of any country. A number without `+` must be valid as written in one of the
    `regions` (ISO 3166-1).
    """
    checks = 0
    for pattern, given in ((_international, (None,)), (_national, regions)):
        place = 0
        while given and (found := pattern.search(text, place)) is not None:
            start, place = found.span()
            for end, region in product(_phone_ends(text, found, international=pattern is _international), given):
                checks += 1
                if checks > _MOST_CHECKS or _is_phone(text[start:end], region):
                    yield start, end
                    place = end
                    break


def _phone_ends(text: str, found: re.Match[str], *, international: bool) -> list[int]:
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
    if ends and _phone_goes_on.match(text, ends[-1]):
        ends.pop()  # drops the last group, which belongs to a word, an address or an amount
    return ends[::-1]


@lru_cache(maxsize=4096)
def _is_phone(written: str, region: str | None) -> bool:
    try:
        return is_valid_number(parse(written, region))
    except NumberParseException:
        return False


# -- IP addresses ------------------------------------------------------------------------------------------------------

_version_4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w]|\.[0-9])")
_version_6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{4,39}(?![\w:])")
_of_software = re.compile(r"(?:version|release|build|firmware|ver\.?|section|chapter|§)[ :=]{0,3}$", re.IGNORECASE)
"""Words after which four numbers with dots are a version or a section, and no address."""
_LOOKED_BACK: Final = 16


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of public IP addresses, of version 4 (RFC 1123) and 6 (RFC 4291).

    Private addresses identify no person.
    """
    for found in _version_4.finditer(text):
        if _is_public(found[0]) and not _of_software.search(text[max(0, found.start() - _LOOKED_BACK) : found.start()]):
            yield found.span()
    for found in _version_6.finditer(text):
        if found[0].count(":") >= 2 and any(map(str.isdigit, found[0])) and _is_public(found[0]):
            yield found.span()


@lru_cache(maxsize=4096)
def _is_public(written: str) -> bool:
    try:
        return ip_address(written).is_global
    except ValueError:
        return False


# -- social security numbers -------------------------------------------------------------------------------------------

_social_security = re.compile(
    r"(?<![\w])(?<![0-9][.-])(?!000|666|9)[0-9]{3}(?P<between>[ -])(?!00)[0-9]{2}(?P=between)(?!0000)[0-9]{4}"
    r"(?![\w]|[.-][0-9])"
)


def _social_security_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of social security numbers of the United States, which have three groups, 3-2-4.

    The Social Security Administration issues no area 000, 666 or 9xx, and no group of zeros.
    """
    for found in _social_security.finditer(text):
        yield found.span()
