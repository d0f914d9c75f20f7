"""Finds the names of a sentence, and tells whether a source has them. Pure.

Names are compared as whole words: "Niger" is not "Nigeria". A table of demonyms joins "Slovak" and "Slovakia"; initials
join "WHO" and "World Health Organization".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from workers.enrichment.answering.languages import Language
from workers.enrichment.answering.quantities import CALENDAR
from workers.enrichment.answering.sentences import listed

_FILE: Final = Path(__file__).with_name("demonyms.toml")
_WORD: Final = re.compile(r"(?:[^\W\d_]\.){2,}|[^\W\d_][\w]*(?:[&'][^\W_]+|-\w+)*|\d\w*[^\W\d_]\w*")
_OPENS: Final = re.compile(r"(?:^|[.!?:;]\s|[\"(|]\s*|^\W+)$")
_TITLES: Final = frozenset(listed("mr mrs ms dr prof sir lord lady st i"))


@dataclass(frozen=True, slots=True)
class Name:
    """A name as written. `is_sure` is False for a sentence's first word, whose capital may be due to its place."""

    text: str
    is_sure: bool = True


@cache
def _places() -> dict[str, str]:
    with _FILE.open("rb") as file:
        rows = tomllib.load(file)["places"].strip().splitlines()
    known: dict[str, str] = {}
    for row in rows:
        place, *words = (one.strip().casefold() for one in row.split("|"))
        known |= dict.fromkeys((place, *words), place)
    return known


@lru_cache(maxsize=20_000)
def canonical(word: str) -> str:
    """Return a name's one form: in lower case, without a possessive, and the place instead of its people."""
    plain = word.casefold().rstrip(".").removesuffix("'s").removesuffix("'")
    return _places().get(plain, plain)


@cache
def _long_places() -> re.Pattern[str]:
    """Match the places of several words, or with points."""
    long = sorted((one for one in _places() if not one.isalpha()), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:the\s+)?({'|'.join(map(re.escape, long))})(?!\w)", re.IGNORECASE)


def in_one_word(text: str) -> str:
    """Return the text with the table's one word for each place of several words: "America" for "United States"."""
    return _long_places().sub(lambda found: _places()[found[1].casefold()].capitalize(), text)


def names(text: str, language: Language) -> list[Name]:
    """Return the names of a normalised sentence, without months and days; none where all nouns have capitals."""
    if language.has_capital_nouns:
        return []
    text = in_one_word(text)
    found: list[Name] = []
    for match in _WORD.finditer(text):
        word = match.group()
        plain = word.casefold().removesuffix("'s").removesuffix("'")
        if plain in CALENDAR or plain in _TITLES or plain in language.common or not _is_capital(word):
            continue
        before = text[: match.start()]
        opens = _OPENS.search(before[-3:]) is not None or not before.strip(" \"'(|*-")
        is_sure = not opens or canonical(word) in _places().values() or not word[1:].islower()
        found.append(Name(word, is_sure))
    return found


def _is_capital(word: str) -> bool:
    """True for "Anna", "mRNA" and "B12", but not for "5mg" or "a"."""
    return not word[0].isdigit() and any(letter.isupper() for letter in word)


class NamesOf:
    """The words of a source as names."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._words: set[str] = set()
        self._capitals: list[str] = []
        self._spelled: set[str] = set()
        for text in map(in_one_word, texts):
            for match in _WORD.finditer(text):
                self._add(match.group())
        self._initials = "".join(word[0] for word in self._capitals).casefold()

    def _add(self, word: str) -> None:
        self._words.add(canonical(word))
        if not word.isalnum():
            self._words.update(map(canonical, _parts(word)))
        if word[0].isupper():
            self._capitals.append(word)

    def has(self, name: str) -> bool:
        """True if the source has this name as a whole word, as initials, or part by part."""
        plain = canonical(name)
        if plain in self._words or (name[:-1].isupper() and plain.removesuffix("s") in self._words):  # "MRIs"
            return True
        letters = re.sub(r"[^A-Za-z]", "", name)
        if 2 <= len(letters) <= 6 and letters.isupper() and letters.casefold() in self._initials:
            return True
        if len(letters) == 1 == len(plain):
            return any(word[0].casefold() == plain for word in self._capitals)  # "J. R. Okafor"
        parts = _parts(name)
        return len(parts) > 1 and all(canonical(part) in self._words or part.islower() for part in parts)


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[-&']", name) if part]
