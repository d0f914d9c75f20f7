"""Finds the quantities and dates of a text, and tells whether a source has their equals. Pure.

Two quantities are equal if their units have one dimension, and their values agree after conversion and rounding. Units
stand in `units.toml`. "At least" and "at most" are opposite bounds; "about" allows a wider rounding.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Final

from rapidfuzz.distance import LCSseq

from workers.enrichment.answering.languages import ENGLISH, Language
from workers.enrichment.answering.sentences import blanked, listed

_FOLDER: Final = Path(__file__).parent
_DAY: Final = 86400.0


def _tables(file: str) -> dict[str, dict[str, str]]:
    with (_FOLDER / file).open("rb") as opened:
        return tomllib.load(opened)


_WORDS: Final = _tables("figures.toml")


def _values(table: str) -> dict[str, float]:
    """Return a table's values by their words. A value may be a fraction, such as 1/3."""
    found: dict[str, float] = {}
    for value, names in _WORDS[table].items():
        number, _, by = value.partition("/")
        found |= dict.fromkeys(names.split(" | "), float(number) / float(by or 1))
    return found


def _any_of(words: Iterable[str]) -> str:
    """Return the pattern of these words, the longest first."""
    return "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in sorted(words, key=len, reverse=True))


_NUMBERS: Final = _values("numbers")
_ALONE: Final = _values("scales")
_SCALES: Final = _ALONE | _values("factors")
_MONEY_SCALES: Final = _values("money")
_FRACTIONS: Final = _values("fractions")
_ORDINALS: Final = _values("ordinals")
_MULTIPLES: Final = _values("multiples")
_PER_DAY: Final = {word: 1 / days for word, days in _values("every").items()}
_CAPITAL_MONTHS: Final = _values("months")
_SMALL_MONTHS: Final = _values("small_months")
_MONTHS: Final = _CAPITAL_MONTHS | _SMALL_MONTHS
_WEEKDAYS: Final = _values("weekdays")
CALENDAR: Final = frozenset((*_MONTHS, *_WEEKDAYS, "q1", "q2", "q3", "q4"))
"""Words of dates, in lower case: months, weekdays and quarters."""

_MONTH: Final = rf"(?:{_any_of(_MONTHS)})\b\.?"
_YEAR: Final = r"(?:1\d{3}|20\d{2}|21\d{2})"
_DATES: Final = (
    re.compile(
        rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th|er|\.)?(?:\s+(?:of|de))?\s+(?P<m>{_MONTH})"
        rf"(?:,?\s+(?:del?\s+)?(?P<y>{_YEAR})\b)?",
        re.IGNORECASE,
    ),
    re.compile(
        rf"\b(?P<m>{_MONTH})\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b(?!\s*[%:.]\d)(?:,?\s+(?P<y>{_YEAR})\b)?",
        re.IGNORECASE,
    ),
    re.compile(rf"\b(?P<y>{_YEAR})-(?P<m>0[1-9]|1[0-2])-(?P<d>[0-3]\d)\b"),
    re.compile(rf"\b(?P<d>[0-3]?\d)\.\s?(?P<m>0?[1-9]|1[0-2])\.\s?(?P<y>{_YEAR})\b"),
    re.compile(rf"\b(?P<d>[0-3]?\d)(?P<mark>[/-])(?P<m>[0-3]?\d)(?P=mark)(?P<y>{_YEAR})\b"),
    re.compile(rf"\b(?P<m>{_MONTH})(?:,?\s+(?:of\s+|del?\s+)?(?P<y>{_YEAR})\b)", re.IGNORECASE),
    re.compile(rf"\b(?P<y>{_YEAR})-(?P<m>0[1-9]|1[0-2])\b(?!-)"),
)
_BARE_MONTH: Final = re.compile(
    rf"\b(?P<m>(?!(?i:may|march|mar|sep|dec|dez|jan)\b)(?i:{_any_of(_CAPITAL_MONTHS)})\b\.?"
    rf"|January|March|May(?=[\s,.;)]|$)|September|December|(?:{_any_of(_SMALL_MONTHS)})\b)"
)
_WEEKDAY: Final = re.compile(rf"\b({_any_of(_WEEKDAYS)})s?\b", re.IGNORECASE)
_DECADE: Final = re.compile(r"\b(?P<y>1\d{2}0|20\d0)(?:'?s|er)\b")
_CENTURY: Final = re.compile(r"\b(?P<n>\d{1,2})(?:(?:st|nd|rd|th)[\s-]century|\.\s?jahrhunderts?)\b", re.IGNORECASE)
_QUARTER: Final = re.compile(r"\bQ(?P<n>[1-4])\b|\b(?P<w>first|second|third|fourth)[\s-]quarter\b", re.IGNORECASE)
_YEARS: Final = re.compile(
    rf"(?<![\w.,$€£¥])(?P<y>{_YEAR})(?:\s?[-/]\s?(?P<z>{_YEAR}|\d{{2}}))?(?![\w%]|[.,]\d|\s?(?:°|%|[a-z]{{1,3}}/))"
)

_NUMERAL: Final = (
    r"\d{1,3}(?:[,' ]\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3})+,\d+(?!\d)|\d{1,3}(?:\.\d{3}){2,}(?!\d)|\d+(?:[.,]\d+)?"
)
_WORD_NUMBERS: Final = _any_of((*_NUMBERS, *_ALONE))
_WORD_NUMBER: Final = re.compile(rf"\b(?:{_WORD_NUMBERS})\b")
_TOKEN: Final = re.compile(
    rf"(?P<clock>\b(?:[01]?\d|2[0-3])(?:[:.][0-5]\d)?\s?[ap]\.?m\b\.?|\b(?:[01]?\d|2[0-3]):[0-5]\d\b(?![.:]?\d))"
    rf"|(?P<id>\b[A-Za-z]*[A-Z][A-Za-z]*-?\d[\w-]*)"
    rf"|(?P<num>(?<![\w.])(?:{_NUMERAL})(?:\^-?\d+)?)"
    rf"|(?P<words>\b(?:(?:a|an)[\s-]+(?={_any_of(_ALONE)}))?(?:{_WORD_NUMBERS})"
    rf"(?:[\s-]+(?:{_WORD_NUMBERS})|(?<=hundred)\s+and\s+(?:{_WORD_NUMBERS})|(?<=thousand)\s+and\s+(?:{_WORD_NUMBERS}))*\b)"
    rf"|(?P<one>\ban?\s(?=(?:hour|day|week|fortnight|month|year|decade|century)\b))"
    rf"|(?P<word>[^\W\d_]+)",
    re.IGNORECASE,
)
_SCIENTIFIC: Final = re.compile(r"\s?[x*]\s?10\^(-?\d+)")
_SLASHED: Final = re.compile(r"\s?/\s?(\d+)(?![\d/])")
_ORDINAL_SUFFIX: Final = re.compile(r"(?:st|nd|rd|th)\b", re.IGNORECASE)
_CURRENCY_BEFORE: Final = re.compile(
    r"(US\$|AU\$|CA\$|HK\$|[ACR]\$|[$€£¥₹₩₽]|\b(?:USD|EUR|GBP|JPY|CHF|CNY|RMB|INR|AUD|CAD|NOK|SEK|DKK|CZK|PLN))\s?$"
)
_SIGN_BEFORE: Final = re.compile(r"(?:(?<![\w)\]%])([-+])\s?|\b(minus|plus|negative)\s+)(?:[$€£¥]\s?)?$", re.IGNORECASE)
_BELOW_ZERO: Final = re.compile(
    r"[^.;,]{0,20}\b(?:below zero|unter null|sous zéro|bajo cero|sotto zero)\b", re.IGNORECASE
)


def _before(bound: str, marks: str) -> re.Pattern[str]:
    """Return the pattern of a bound's words or marks right before a number."""
    words = _any_of(_WORDS["bounds"][bound].split(" | "))
    return re.compile(rf"(?:\b(?:{words})|{marks})\s*$", re.IGNORECASE)


_ABOUT: Final = _before("about", "[~≈]")
_AT_LEAST: Final = _before("at_least", "[>≥]=?")
_AT_MOST: Final = _before("at_most", "[<≤]=?")
_BEFORE_MONTH: Final = re.compile(
    r"(?:\b(?:en|de|del|du|des|fin|début|mi|in|a|al|di|dal|nel|em|desde|depuis|hasta|até|sinds|vanaf|eind|begin)\s|\b[dl]')$"
)
"""Words before a month without a capital, since "mars" is a verb too."""
_OR_MORE: Final = re.compile(
    r"[^.;,]{0,24}?\b(?:or|and|oder|ou|o) (?:more|above|over|older|longer|higher|greater|mehr|älter|plus|más|più)\b",
    re.IGNORECASE,
)
_OR_LESS: Final = re.compile(
    r"[^.;,]{0,24}?\b(?:or|and|oder|ou|o) "
    r"(?:less|fewer|below|under|younger|lower|shorter|weniger|jünger|moins|menos|meno)\b",
    re.IGNORECASE,
)
_AND_A_PART: Final = re.compile(
    r"\s+(?:and\s+(?:a\s+(?P<part>half|quarter)|three[\s-]quarters)"
    r"|(?P<half>et demie?|y medi[ao]|e mezz[ao]|e mei[ao]))\b",
    re.IGNORECASE,
)
_AND: Final = re.compile(r",?\s+(?:(?:and|und|et|y|e|en)\s+)?")
_DIVIDED_BY: Final = re.compile(r"\s?/\s?(\d+)?\s?|\s+(?:per|pro|par|por)\s+(\d+)?\s?", re.IGNORECASE)
_SCALED: Final = re.compile(r"[\s-]?(?:of\s+an?\s+|an?\s+)?([^\W\d_]+)")
_NOUN: Final = re.compile(r"[\s-]+(?:[a-z]+ly\s+)?([^\W\d_]+)")
_NEXT_WORD_ANY: Final = re.compile(r"[\s-]+([a-z]+)", re.IGNORECASE)
_OF_ONE: Final = re.compile(r"\s+(?:of\s+)?(?:an?|one)\b")
_OF_UNIT: Final = re.compile(r"\s+(?:de\s|di\s|d')")
_PART: Final = re.compile(r"\s(\d)/(\d{1,2})\b")
_SCALED_AGAIN: Final = re.compile(r"[\s-]?([^\W\d_]+)")
_NEXT_WORD: Final = re.compile(r"[\s-]+([^\W\d_]+)")
_GAP: Final = re.compile(r"[\s-]{0,2}")
_SPACE: Final = re.compile(r"[\s-]")
_BEFORE_CHARS: Final = 28
_NO_PLURALS: Final = frozenset(listed("was is has as its this des les plus"))
_NEAR: Final = 20
_PER: Final = re.compile(
    r"\s*(?:/|\b(?:per|a la|à la|al|alla|an?|each|every|pro|je|am|im|par|por|ao)\b)\s*(\d+(?:\.\d+)?)?\s*",
    re.IGNORECASE,
)
_LIST: Final = re.compile(
    r"\s*(?:,|-|/|(?:,\s*)?(?:and|or|to|through|versus|vs\.?)\b)\s*(?:(?:from|to|and|or)\s+)?[$€£¥]?", re.IGNORECASE
)
_OF: Final = re.compile(
    r"(?:\s+[a-z]+)?\s+(?:(?:out\s+)?of\s+(?:the\s+|all\s+)?|in\s+(?:every\s+)?|von\s+|sur\s+|su\s+|de\s+(?:cada\s+)?|van\s+(?:de\s+)?)$"
    r"|\s*/\s*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit, in the unit of its dimension."""

    text: str
    value: float
    dimension: str = ""
    """Empty for a count or a unit that no table has."""
    raw: float = 0.0
    """The value as written, before the unit's factor."""
    step: float = 0.0
    """The place of the last written digit, in the dimension's unit: 0.1 for "2.5", 1e8 for "1.2 billion"."""
    bound: int = 0
    """1 for "at least", -1 for "at most"."""
    is_about: bool = False
    per_day: float | None = None
    """The times a day, for a quantity with a rate."""
    noun: str = ""
    """The word behind a count."""
    is_soft: bool = False
    """True for words like "two" or "half", which a true sentence may add: they only count against a rival."""
    others: tuple[float, ...] = ()
    """Other readings of the number, such as a point that separates thousands."""
    start: int = 0
    end: int = 0
    lead: int | None = None
    """The start of the words before the number that bound it, such as "at least"."""

    def equals(self, told: Quantity) -> bool:
        """True if a source's quantity bears this one."""
        if self.bound and told.bound and self.bound != told.bound:
            return False
        if self.per_day is not None and told.per_day is not None and not _near(self.per_day, told.per_day, 0.03):
            return False
        if self.dimension == told.dimension:
            return self._has_value(self.value, told.value) or any(
                _near(one, other, 1e-9) for one in (self.value, *self.others) for other in (told.value, *told.others)
            )
        if not self.dimension and not self.noun and told.dimension != "ordinal":
            return self._has_value(self.raw, told.raw) or self._has_value(self.raw, told.value)
        if not told.dimension and not told.noun and self.dimension != "ordinal":
            return _near(self.raw, told.raw, 1e-9)
        if not self.dimension and told.dimension in _CURRENCIES:
            return self._has_value(self.value, told.value)
        return False

    def _has_value(self, said: float, told: float) -> bool:
        if _near(said, told, 1e-6):
            return True
        if said * told < 0 or not said or not told:
            return False
        apart = abs(said - told) / abs(told)
        if self.bound and not self.is_about:
            return (told - said) * self.bound > 0 and apart <= 0.2
        rounding = 0.5 * self.step * (1 + 1e-9)
        if self.is_about:
            return apart <= 0.12 if self.is_soft or self.dimension == "ratio" else apart <= 0.06
        return abs(said - told) <= rounding and apart <= 0.05

    def is_like(self, told: Quantity) -> bool:
        """True if both quantities measure the same."""
        return self.dimension == told.dimension and (bool(self.dimension) or self.noun == told.noun)

    def rivals(self, told: Quantity) -> bool:
        """True if a source's quantity stands where this one stands, with another value."""
        if self.dimension != told.dimension:
            return False
        if self.dimension:
            return self.dimension in ("times", "ordinal") or (self.dimension == "ratio" and self.bound * told.bound < 0)
        return bool(self.noun) and self.noun == told.noun


@dataclass(frozen=True, slots=True)
class Date:
    """A date, as exact as it is written. A decade or century is the span of its years."""

    text: str
    year: int | None = None
    month: int | None = None
    day: int | None = None
    last_year: int | None = None
    weekday: int | None = None
    quarter: int | None = None
    start: int = 0
    end: int = 0

    @property
    def years(self) -> tuple[int, int] | None:
        """The first and the last year; None for a date without a year."""
        return None if self.year is None else (self.year, self.last_year or self.year)

    @property
    def is_year(self) -> bool:
        """True for a date of years only."""
        return self.month is None and self.quarter is None and self.weekday is None

    def equals(self, told: Date, years: Sequence[tuple[int, int]]) -> bool:
        """True if the source's date bears this one. `years` are the years that the source names elsewhere."""
        for mine, theirs in ((self.month, told.month), (self.day, told.day), (self.weekday, told.weekday),
                             (self.quarter, told.quarter)):  # fmt: skip
            if mine is not None and mine != theirs:
                return False
        if (said := self.years) is None:
            return True
        return any(_overlap(said, one) for one in ([told.years] if told.years is not None else years))

    def is_like(self, told: Date) -> bool:
        """True if both dates say the same kind of thing, such as a year."""
        return any(
            mine is not None and theirs is not None
            for mine, theirs in (
                (self.year, told.year),
                (self.month, told.month),
                (self.weekday, told.weekday),
                (self.quarter, told.quarter),
            )
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """The quantities and dates of a text, and the text without them."""

    text: str
    quantities: tuple[Quantity, ...] = ()
    dates: tuple[Date, ...] = ()
    derived: tuple[Quantity, ...] = ()
    """Quantities that follow from those of the text: the share of "3 of 4", the difference of two percentages."""

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The places of all figures, with the words that bound them."""
        leads = [(one.start if one.lead is None else one.lead, one.end) for one in self.quantities]
        return leads + [(one.start, one.end) for one in self.dates]


def figures(text: str, language: Language = ENGLISH) -> Figures:
    """Return the figures of a normalised text. Its language says which mark separates thousands."""
    dates = list(_dates(text))
    rest = blanked(text, ((date.start, date.end) for date in dates), "\0")
    found = _summed(_with_shared_units(list(_quantities(rest, language)), text), text)
    return Figures(text, tuple(found), tuple(dates), tuple(_derived(found, text)))


def missing(said: Figures, told: Sequence[Figures], years: Sequence[tuple[int, int]]) -> list[str]:
    """Return the figures of a sentence that have no equal in the source's sentences `told`.

    `years` are the years of the whole source.
    """
    theirs = [one for each in told for one in (*each.quantities, *each.derived)]
    shares = [one for one in said.derived if one.dimension == "ratio" and any(one.equals(other) for other in theirs)]
    lost = [
        one.text
        for one in said.quantities
        if not _is_borne(one, theirs) and not any(share.start <= one.start < share.end for share in shares)
    ]
    dates = [one for each in told for one in each.dates]
    raw = {one.raw for each in told for one in each.quantities}
    return lost + [
        date.text
        for date in said.dates
        if not any(date.equals(one, years) for one in dates) and not (date.is_year and date.year in raw)
    ]


def rivals(said: Figures, told: Figures) -> list[str]:
    """Return the figures of a sentence in whose place a clause has another one of the same kind.

    A figure of the clause that equals any figure of the sentence is no rival.
    """
    theirs = [one for one in told.quantities if not any(mine.equals(one) for mine in said.quantities)]
    here = (*told.quantities, *told.derived)
    found = [
        one.text
        for one in said.quantities
        if (one.dimension or one.noun)
        and not any(one.equals(other) for other in here)
        and any(one.is_like(o) for o in theirs)
    ]
    years = years_of(told.dates)
    other_dates = [one for one in told.dates if not any(mine.equals(one, years) for mine in said.dates)]
    return found + [
        date.text
        for date in said.dates
        if not any(date.equals(one, years) for one in told.dates) and any(date.is_like(one) for one in other_dates)
    ]


def swapped(said: Figures, told: Figures) -> list[str]:
    """Return two figures of a sentence that stand in each other's place in the source.

    "2% in Rome and 3% in Oslo" and "3% in Rome and 2% in Oslo" have the same order of words, but not of figures.
    """
    theirs: list[Quantity | Date] = [*told.quantities, *told.dates]
    mine: list[Quantity | Date] = [*said.quantities, *said.dates]
    placed = sorted(
        ((one, found) for one in mine if (found := next((o for o in theirs if same(one, o)), None)) is not None),
        key=lambda pair: pair[0].start,
    )
    words = _words_around(told, 0, len(told.text))
    for (one, here), (other, there) in combinations(placed, 2):
        if there.start >= here.start or same(one, other) or not _are_like(one, other):
            continue
        near = [word for word in _words_around(said, one.start - _NEAR, other.end + _NEAR) if word in words]
        if LCSseq.similarity(near, words) == len(near):
            return [one.text, other.text]
    return []


def same(one: Quantity | Date, other: Quantity | Date) -> bool:
    """True if both are one figure."""
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return one.equals(other)
    return isinstance(one, Date) and isinstance(other, Date) and one.equals(other, ())


def _are_like(one: Quantity | Date, other: Quantity | Date) -> bool:
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return one.is_like(other)
    return isinstance(one, Date) and isinstance(other, Date) and one.is_like(other)


def _words_around(some: Figures, begin: int, end: int) -> list[str]:
    """Return the stems of the words between these places, without figures."""
    words = re.findall(r"[^\W\d_]+", blanked(some.text, some.spans)[max(0, begin) : end])
    return [ENGLISH.stem(word.lower()) for word in words]


def years_of(dates: Sequence[Date]) -> list[tuple[int, int]]:
    """Return the spans of the years that the dates name."""
    return [one.years for one in dates if one.years is not None]


def _is_borne(said: Quantity, told: Sequence[Quantity]) -> bool:
    if any(said.equals(one) for one in told):
        return True
    return said.is_soft and not any(said.rivals(one) for one in told)


def _near(one: float, other: float, share: float) -> bool:
    return abs(one - other) <= share * max(abs(one), abs(other))


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


# -- dates -----------------------------------------------------------------------------------------------------------


def _dates(text: str) -> Iterator[Date]:
    """Yield the dates; a place of the text is part of one date only, the most exact one."""
    taken: list[tuple[int, int]] = []
    for read in (_full_dates, _spans_of_years, _quarters, _years, _bare_months, _weekdays):
        found = [one for one in read(text) if _is_free(one, taken)]
        taken += [(one.start, one.end) for one in found]
        yield from found


def _is_free(date: Date, taken: Sequence[tuple[int, int]]) -> bool:
    return not any(start < date.end and date.start < end for start, end in taken)


def _full_dates(text: str) -> Iterator[Date]:
    taken: list[tuple[int, int]] = []
    for pattern in _DATES:
        for found in pattern.finditer(text):
            date = _date(found)
            if date is not None and _is_free(date, taken):
                taken.append(found.span())
                yield date


def _spans_of_years(text: str) -> Iterator[Date]:
    for found in _DECADE.finditer(text):
        year = int(found["y"])
        last = year + (99 if year % 100 == 0 and year < 2000 else 9)
        yield Date(found.group(), year, last_year=last, start=found.start(), end=found.end())
    for found in _CENTURY.finditer(text):
        last = 100 * int(found["n"])
        yield Date(found.group(), last - 100, last_year=last, start=found.start(), end=found.end())


def _quarters(text: str) -> Iterator[Date]:
    for found in _QUARTER.finditer(text):
        number = int(found["n"] or _ORDINALS[found["w"].lower()])
        yield Date(found.group(), quarter=number, start=found.start(), end=found.end())


def _years(text: str) -> Iterator[Date]:
    for found in _YEARS.finditer(text):
        if _counts(text, found):
            continue
        first, last = int(found["y"]), found["z"]
        yield Date(found.group(), first, start=found.start(), end=found.end())
        if last is not None:
            end = int(last) if len(last) == 4 else first // 100 * 100 + int(last)
            yield Date(found.group(), end, start=found.start(), end=found.end())


def _bare_months(text: str) -> Iterator[Date]:
    for found in _BARE_MONTH.finditer(text):
        word = found["m"]
        is_small = word in _SMALL_MONTHS and _BEFORE_MONTH.search(text[: found.start()][-_NEAR:]) is not None
        if is_small or (word[0].isupper() and not _is_modal(text, found)):
            month = int(_MONTHS[word.lower().rstrip(".")])
            yield Date(found.group(), month=month, start=found.start(), end=found.end())


def _weekdays(text: str) -> Iterator[Date]:
    for found in _WEEKDAY.finditer(text):
        day = int(_WEEKDAYS[found[1].lower()])
        yield Date(found.group(), weekday=day, start=found.start(), end=found.end())


def _date(found: re.Match[str]) -> Date | None:
    groups = found.groupdict()
    year = int(groups["y"]) if groups.get("y") else None
    month = groups["m"]
    number = int(month) if month.isdigit() else int(_MONTHS[month.lower().rstrip(".")])
    day = int(groups["d"]) if groups.get("d") else None
    if number > 12 and day is not None and day <= 12:  # the month comes first in America
        number, day = day, number
    if not month.isdigit() and month[0].islower() and month.lower() in ("may", "march", "mar", "sep", "dec", "jan"):
        return None
    if number > 12 or (day is not None and not 1 <= day <= 31):
        return None
    return Date(found.group(), year, number, day, start=found.start(), end=found.end())


def _counts(text: str, found: re.Match[str]) -> bool:
    """True if the digits count something: "1500 patients" rather than the year 1500."""
    if found["z"] is not None:
        return False
    before = text[max(0, found.start() - 12) : found.start()].lower()
    if re.search(
        r"\b(?:in|since|of|until|till|by|from|during|early|late|after|before|mid|between|and|to|en|im|jahr|seit|ab|bis|año|"
        r"depuis|desde|nel|dal|em)[\s-]+$",
        before,
    ):
        return False
    behind = _NEXT_WORD.match(text, found.end())
    if behind is None:
        return False
    word = behind[1]
    is_plural = word.islower() and word.endswith("s") and word not in _NO_PLURALS
    return is_plural or word.lower() in _SCALES or _unit_of(word) is not None


def _is_modal(text: str, found: re.Match[str]) -> bool:
    """True for the verb "may" or "march" at the start of a sentence, and for names such as "April"."""
    if found["m"].lower() not in ("may", "march"):
        return False
    before = text[max(0, found.start() - 12) : found.start()].lower()
    return (
        re.search(r"\b(?:in|since|of|until|by|from|during|early|late|after|before|mid|last|next|and|to)[\s-]+$", before)
        is None
    )


# -- quantities ------------------------------------------------------------------------------------------------------


@cache
def _units() -> tuple[dict[str, tuple[str, float]], dict[str, tuple[str, float]], int]:
    exact: dict[str, tuple[str, float]] = {}
    folded: dict[str, tuple[str, float]] = {}
    for dimension, rows in _tables("units.toml").items():
        for factor, names in rows.items():
            for name in names.split(" | "):
                exact[name] = (dimension, float(factor))
                folded.setdefault(name.casefold(), (dimension, float(factor)))
    return exact, folded, max(name.count(" ") for name in exact) + 1


_CURRENCIES: Final = frozenset(listed("usd eur gbp jpy cny chf inr krw rub aud cad hkd crown brl zloty rand"))


def _unit_of(name: str) -> tuple[str, float] | None:
    """Return the dimension and factor of the unit with this name; None for any other word."""
    exact, folded, _ = _units()
    return exact.get(name) or folded.get(name.casefold())


_UNIT_WORD: Final = re.compile(
    r"[^\W\d_]+(?:\^-?\d|\d(?!\d))?(?:/[^\W\d_]+)?|[%‰°$€£¥₹](?:[CFcf]\b|-points?\b)?|U\.S\."
)


def _unit_at(text: str, at: int) -> tuple[str, float, int] | None:
    """Return the dimension and factor of the longest unit at `at`, and its end."""
    _, _, most = _units()
    gap = _GAP.match(text, at)
    start = at if gap is None else gap.end()
    ends: list[int] = []
    here = start
    for _ in range(most):
        word = _UNIT_WORD.match(text, here)
        if word is None:
            break
        ends.append(word.end())
        space = _SPACE.match(text, word.end())
        if space is None:
            break
        here = space.end()
    for end in reversed(ends):
        if (unit := _unit_of(text[start:end].replace("-", " "))) is not None:
            return *unit, end
    slash = text.find("/", start, ends[0]) if ends else -1
    if slash >= 0 and (unit := _unit_of(text[start:slash])) is not None:  # "mg/dL": two units
        return *unit, slash
    return None


def _quantities(text: str, language: Language) -> Iterator[Quantity]:
    position = 0
    while (found := _TOKEN.search(text, position)) is not None:
        position = found.end()
        if (read := _read(found, text, language)) is not None:
            quantity, position = read
            yield quantity


def _read(found: re.Match[str], text: str, language: Language) -> tuple[Quantity, int] | None:
    """Return the quantity that begins with this token, and its end; None for a token that begins none."""
    kind = found.lastgroup
    if kind == "id":
        return None
    if kind == "word":
        return _read_word(found, text)
    start, end = found.span()
    if kind == "clock":
        minutes = _minutes(found.group())
        return Quantity(found.group(), minutes, "clock", minutes, start=start, end=end), end
    others: tuple[float, ...] = ()
    if kind == "one":  # "within a year"
        quantity, stop = _finished(text, start, end - 1, 1.0, 0.0)
        return replace(quantity, is_soft=True), stop
    if kind == "num":
        value, step, others = _numeral(found.group(), language)
        if (suffix := _ORDINAL_SUFFIX.match(text, end)) is not None:
            return Quantity(
                text[start : suffix.end()], value, "ordinal", value, start=start, end=suffix.end()
            ), suffix.end()
        if (exponent := _SCIENTIFIC.match(text, end)) is not None:
            factor = _power_of_ten(exponent[1])
            value, step, end = value * factor, step * factor, exponent.end()
        elif (slash := _SLASHED.match(text, end)) is not None and 0 < value < float(slash[1]) <= 20:
            value, step, end = value / float(slash[1]), 0.0, slash.end()
    else:
        value, step = _worded(found.group()), 0.0
    if (more := _AND_A_PART.match(text, end)) is not None:
        value, end, step = value + _part_of(more), more.end(), 0.0
    elif kind == "num" and (part := _PART.match(text, end)) is not None and float(part[2]):
        value, end, step = value + float(part[1]) / float(part[2]), part.end(), 0.0
    after = _NOUN.match(text, end) if kind == "words" and value < 20 else None
    if after is not None and (fraction := _FRACTIONS.get(after[1].lower())) is not None:
        return _finished(text, start, after.end(), value * fraction, 0.0, is_fraction=True)
    return _finished(text, start, end, value, step, is_word=kind == "words", others=others)


def _part_of(more: re.Match[str]) -> float:
    """Return the value of "and a half", "and a quarter" or "and three quarters"."""
    return 0.5 if more["half"] else _FRACTIONS.get((more["part"] or "").lower(), 0.75)


def _minutes(clock: str) -> float:
    """Return the minutes since midnight of a time of day, such as "2:30 p.m." or "14:30"."""
    hour, *more = map(int, re.findall(r"\d+", clock))
    half = re.search(r"[ap]", clock, re.IGNORECASE)
    hour = hour if half is None else hour % 12 + 12 * (half.group().lower() == "p")
    return float(60 * hour + (more[0] if more else 0))


def _read_word(found: re.Match[str], text: str) -> tuple[Quantity, int] | None:
    word, (start, end) = found.group().lower(), found.span()
    if word in _FRACTIONS:
        before = text[max(0, start - 8) : start].lower()
        is_named = re.search(r"\b(?:an?|one|each|eine?|einem|einer|eines|une?|uma?)[\s-]+$", before) is not None
        if word in _ORDINALS and not is_named:
            return Quantity(word, _ORDINALS[word], "ordinal", _ORDINALS[word], start=start, end=end), end
        if word in ("quarter", "quarters", "viertel", "quart", "quarts") and not is_named:
            return None
        return _finished(text, start, end, _FRACTIONS[word], 0.0, is_fraction=True)
    if word in _ORDINALS:
        if word == "second" and re.search(r"[\d.]\s*$", text[max(0, start - 4) : start]):
            return None
        value = float(_ORDINALS[word])
        return Quantity(word, value, "ordinal", value, is_soft=value <= 3, start=start, end=end), end
    if word in _MULTIPLES:
        value = _MULTIPLES[word]
        per_day, stop = _rate(text, end)
        is_soft = per_day is None or value == 1
        return Quantity(text[start:stop], value, "times", value, per_day=None if per_day is None else value * per_day,
                        is_soft=is_soft, start=start, end=stop), stop  # fmt: skip
    if word in _PER_DAY:
        return Quantity(word, 1.0, "times", 1.0, per_day=_PER_DAY[word], is_soft=True, start=start, end=end), end
    return None


def _rate(text: str, at: int) -> tuple[float | None, int]:
    """Return the times a day of "daily", "a week" or "per month" at `at`, and its end."""
    if (word := _NEXT_WORD_ANY.match(text, at)) is not None and word[1].lower() in _PER_DAY:
        return _PER_DAY[word[1].lower()], word.end()
    per = _PER.match(text, at)
    if per is None:
        return None, at
    unit = _unit_at(text, per.end())
    if unit is None or unit[0] != "time":
        return None, at
    return _DAY / (unit[1] * float(per[1] or 1)), unit[2]


def _finished(
    text: str,
    start: int,
    end: int,
    value: float,
    step: float,
    *,
    is_word: bool = False,
    is_fraction: bool = False,
    others: tuple[float, ...] = (),
) -> tuple[Quantity, int]:
    """Return the quantity of a number at this place, with its scale, unit, sign and bound, and the end of all."""
    currency = _CURRENCY_BEFORE.search(text[max(0, start - 5) : start])
    begin = start - (len(currency.group()) if currency is not None else 0)
    scale = _SCALED.match(text, end)
    while scale is not None and (factor := _scale(scale[1], text, end, is_money=currency is not None)) is not None:
        value, step, end = value * factor, step * factor, scale.end()
        others = tuple(one * factor for one in others)
        if len(scale[1]) <= 3 and text[end : end + 2] == ". ":  # "5 Mio. Euro"
            end += 1
        scale = _SCALED_AGAIN.match(text, end)
        is_fraction = False  # "half a million" is a number as others
    raw = value
    dimension, noun, per_day = "", "", None
    if currency is not None:
        unit = _unit_of(currency[1])
        dimension = unit[0] if unit is not None else ""
    else:
        of = _OF_ONE.match(text, end) if is_fraction else None
        of = of or _OF_UNIT.match(text, end)
        unit_at = _unit_at(text, of.end() if of is not None else end)
        if unit_at is not None and not (is_fraction and of is None and unit_at[0] != "ratio"):
            dimension, factor, end = unit_at
            if (more := _AND_A_PART.match(text, end)) is not None:  # "two hours and a half"
                value, end = value + _part_of(more), more.end()
            value, step = value * factor, step * factor
            others = tuple(one * factor for one in others)
            dimension, value, step, end = _divided(text, dimension, value, step, end)
        elif is_fraction:
            dimension = "ratio"
        elif (word := _NOUN.match(text, end)) is not None:
            noun = ENGLISH.stem(word[1].lower())
    rate, stop = _rate(text, end)
    if rate is not None:
        per_day, end = raw * rate if dimension in ("times", "") else rate, stop
    sign = _SIGN_BEFORE.search(text[max(0, begin - 10) : begin])
    is_negative = sign is not None and (sign[1] == "-" or (sign[2] or "").lower() in ("minus", "negative"))
    if is_negative or (dimension in ("temperature", "degrees", "fahrenheit") and _BELOW_ZERO.match(text, end)):
        value, raw, others = -value, -raw, tuple(-one for one in others)
    if dimension in ("fahrenheit", "kelvin"):
        value = (value - 32) / 1.8 if dimension == "fahrenheit" else value - 273.15
        dimension, step = "temperature", max(step, 1.0)
    bound, is_about, lead = _bounds(text, begin, end)
    is_soft = (is_word and not dimension and raw <= 10) or (is_fraction and dimension == "ratio")
    return Quantity(text[begin:end], value, dimension, raw, step, bound, is_about, per_day, noun, is_soft, others,
                    begin, end, lead), end  # fmt: skip


def _scale(word: str, text: str, end: int, *, is_money: bool) -> float | None:
    factor = _SCALES.get(word.lower())
    if factor is not None:
        return factor if word.lower() != "k" or not text[end : end + 1].isspace() else None
    is_attached = not text[end : end + 1].isspace()  # "1.8m tonnes"
    if is_money or (is_attached and (after := _NEXT_WORD.match(text, end + len(word))) and _unit_of(after[1])):
        return _MONEY_SCALES.get(word.lower())
    return None


def _divided(text: str, dimension: str, value: float, step: float, end: int) -> tuple[str, float, float, int]:
    """Return the quantity divided by the unit after "/" or "per", unless that is a time: a rate stays apart."""
    per = _DIVIDED_BY.match(text, end)
    if per is None:
        return dimension, value, step, end
    unit = _unit_at(text, per.end())
    if unit is None or unit[0] == "time":
        return dimension, value, step, end
    by = unit[1] * float(per[1] or per[2] or 1)
    return f"{dimension}/{unit[0]}", value / by, step / by, unit[2]


def _bounds(text: str, begin: int, end: int) -> tuple[int, bool, int]:
    """Return the bound of a number, whether it is rounded, and the start of the words that say so."""
    offset = max(0, begin - _BEFORE_CHARS)
    before = text[offset:begin]
    about, least, most = (pattern.search(before) for pattern in (_ABOUT, _AT_LEAST, _AT_MOST))
    lead = offset + min((one.start() for one in (about, least, most) if one is not None), default=len(before))
    if least is not None and (most is None or least.start() < most.start()):  # "no less than" has "less than"
        return 1, about is not None, lead
    if most is not None or _OR_LESS.match(text, end) is not None:
        return -1, about is not None, lead
    return int(_OR_MORE.match(text, end) is not None), about is not None, lead


def _numeral(text: str, language: Language) -> tuple[float, float, tuple[float, ...]]:
    """Return the value of digits, the place of the last digit, and other readings."""
    digits, _, exponent = text.partition("^")
    plain = re.sub(r"[' ]", "", digits)
    thousands, decimal = (".", ",") if language.has_decimal_comma else (",", ".")
    others: tuple[float, ...] = ()
    marks = re.findall(r"[.,]", plain)
    if len(set(marks)) == 2:
        thousands, decimal = marks[0], marks[-1]
    elif len(marks) > 1:
        thousands = marks[0]
    elif marks == [decimal] and re.fullmatch(r"[1-9]\d{0,2}[.,]\d{3}", plain):
        others = (float(plain.replace(decimal, "")),)
    elif marks == [thousands] and not re.fullmatch(r"\d{1,3}[.,]\d{3}", plain):
        thousands, decimal = decimal, thousands
    plain = plain.replace(thousands, "").replace(decimal, ".")
    value = float(plain)
    decimals = len(plain.partition(".")[2])
    step = _power_of_ten(-decimals)
    if not decimals and value:
        zeros = len(plain) - len(plain.rstrip("0"))
        step = _power_of_ten(zeros)
    if exponent and abs(float(exponent)) < 30:
        try:
            value **= float(exponent)
        except (OverflowError, ZeroDivisionError):
            value = math.inf
    return value, step, others


def _power_of_ten(exponent: str | int) -> float:
    """Return a power of ten; infinity if a float cannot hold it."""
    return float(f"1e{exponent}")


def _worded(text: str) -> float:
    """Return the value of number words, such as "two hundred and twelve"."""
    total, group = 0.0, 0.0
    for word in _WORD_NUMBER.findall(text.lower()):
        scale = _ALONE.get(word)
        if scale is None:
            group += _NUMBERS[word]
        elif scale == 100:
            group = (group or 1) * scale
        else:
            total += (group or 1) * scale
            group = 0.0
    return total + group


def _with_shared_units(found: list[Quantity], text: str) -> list[Quantity]:
    """Give "5" in "5 to 11 mg", and "25" in "25, 50 and 75 mg", the unit of the number behind it."""
    for at in range(len(found) - 2, -1, -1):
        one, after = found[at], found[at + 1]
        between = text[one.end : after.start]
        if after.dimension == "ordinal" or one.dimension or one.noun not in ("", "to", "and", "or"):
            continue
        if after.dimension and _LIST.fullmatch(between):
            factor = after.value / after.raw if after.raw and after.dimension != "temperature" else 1.0
            found[at] = replace(one, dimension=after.dimension, value=one.value * factor, step=one.step * factor,
                                noun="", is_soft=False)  # fmt: skip
        elif not after.dimension and _LIST.fullmatch(between):
            found[at] = replace(one, noun=after.noun)
    return found


def _summed(found: Sequence[Quantity], text: str) -> list[Quantity]:
    """Return "2 hours and 15 minutes" as one quantity."""
    parts: list[Quantity] = []
    for one in found:
        before = parts[-1] if parts else None
        if (
            before is not None
            and before.dimension == one.dimension == "time"
            and one.value < before.value / before.raw
            and _AND.fullmatch(text[before.end : one.start])
        ):
            whole = before.value + one.value
            parts[-1] = replace(before, text=text[before.start : one.end], value=whole, step=one.step, end=one.end)
        else:
            parts.append(one)
    return parts


def _derived(found: Sequence[Quantity], text: str) -> Iterator[Quantity]:
    """Yield the share of "412 of 1,030" and of "one in fifty", and the difference of two percentages."""
    for one, after in pairwise(found):
        if 0 < one.raw <= after.raw and not after.dimension and _OF.fullmatch(text[one.end : after.start]):
            share = one.raw / after.raw
            yield Quantity(text[one.start : after.end], share, "ratio", share, start=one.start, end=after.end)
    shares = [one for one in found if one.dimension == "ratio"]
    for at, one in enumerate(shares):
        for other in shares[at + 1 :]:
            apart = abs(one.value - other.value) * 100
            yield Quantity(f"{one.text} and {other.text}", apart, "points", apart)
