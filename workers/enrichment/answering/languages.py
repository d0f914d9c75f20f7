"""Tells the language of a text, and what the rules of judging need of each language. Pure.

`languages.toml` has the words. A text of another language is read as English: figures and names are checked in it, but
its negations are not known.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import Stemmer

_FILE: Final = Path(__file__).with_name("languages.toml")
_WORD: Final = re.compile(r"[^\W\d_]+")
_SAMPLE_CHARS: Final = 800
"""The language of a text is that of its beginning."""
_SHORT_WORD: Final = 5
_FEWEST_HITS: Final = 2


@dataclass(frozen=True, eq=False, repr=False)
class Language:
    """The words of a language, in lower case."""

    code: str
    """The code of ISO 639-1."""
    common: frozenset[str]
    """Words without content."""
    negations: frozenset[str]
    turned: frozenset[str]
    """Words before a run of words that may turn its meaning, so that it bears no sentence as it stands."""
    compared: frozenset[str]
    """Words behind a negation that then denies nothing: "no less than", "not only"."""
    opposing: tuple[str, ...]
    """The beginnings of words that mean the opposite of the rest: "incompatible"."""
    has_concord: bool
    """True if several negations in one sentence are one."""
    elides: bool
    """True if articles are joined to words by an apostrophe: "l'année"."""
    has_decimal_comma: bool
    """True if "1.200" is a thousand, and "1,2" is more than one."""
    has_capital_nouns: bool
    """True if all nouns have capitals, so that a capital shows no name."""
    participle: str
    """The beginning of participles, such as "ge"; empty if they have none."""
    _stemmer: Any = field(repr=False)

    def stem(self, word: str) -> str:
        """Return the stem of a word in lower case."""
        return _stem(self, word)

    def content(self, word: str) -> str:
        """Return the word without an elided article."""
        head, mark, rest = word.partition("'")
        return rest if self.elides and mark and rest and head in self.common else word

    def negates(self, words: Iterable[str]) -> bool:
        """True if a sentence of these words denies something. In English two negations cancel each other out."""
        some = [self.content(word) for word in words]
        count = sum(
            (word in self.negations or f"{word}_{after}" in self.negations or word.endswith("n't"))
            and after not in self.compared
            for word, after in zip(some, (*some[1:], ""), strict=False)
        )
        return count > 0 if self.has_concord else count % 2 == 1

    def opposites(self, words: Iterable[str]) -> frozenset[str]:
        """Return the opposites of the words that have one by their beginning: "compatible" for "incompatible"."""
        return frozenset(word.removeprefix(one) for word in words for one in self.opposing if word.startswith(one))


@lru_cache(maxsize=20_000)
def _stem(language: Language, word: str) -> str:
    if language.participle and len(word) > _SHORT_WORD:
        word = word.removeprefix(language.participle)
    return str(language._stemmer.stemWord(word))


def _read() -> dict[str, Language]:
    with _FILE.open("rb") as file:
        tables = tomllib.load(file)
    return {
        code: Language(
            code=code,
            common=frozenset(table["common"].split()),
            negations=frozenset(table["negations"].split()),
            turned=frozenset((table["negations"] + " " + table["turned"]).split()),
            compared=frozenset(table["compared"].split()),
            opposing=tuple(table["opposing"].split()),
            has_concord=table.get("concord", False),
            elides=table.get("elides", False),
            has_decimal_comma=table.get("decimal_comma", False),
            has_capital_nouns=table.get("capital_nouns", False),
            participle=table.get("participle", ""),
            _stemmer=Stemmer.Stemmer(table["stemmer"], 0),
        )
        for code, table in tables.items()
    }


LANGUAGES: Final = _read()
ENGLISH: Final = LANGUAGES["en"]


def language_of(text: str, otherwise: Language = ENGLISH) -> Language:
    """Return the language that has most of the words at the text's beginning among its common words.

    A text with too few of them to tell has the language `otherwise`.
    """
    words = set(_WORD.findall(text[:_SAMPLE_CHARS].casefold()))
    hits = {code: len(words & each.common) for code, each in LANGUAGES.items()}
    best = max(hits, key=lambda code: hits[code])
    return LANGUAGES[best] if hits[best] >= _FEWEST_HITS else otherwise
