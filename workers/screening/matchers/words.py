"""Words of lists, found with an Aho-Corasick automaton, including words disguised by their spelling.

Each text is read in three ways: as it is without case (`Bastard`), with digits and symbols read as letters (`b4$tard`),
and with repeated letters joined (`bastaaard`). A match is a whole word or phrase, or its plural with `s`, so that the
town Scunthorpe does not match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import ahocorasick

from workers.screening.matchers import Match
from workers.screening.plain import latinised

_SEPARATORS: Final = dict.fromkeys("\t\n\v\f\r-_\u2010\u2011\u2012\u2013\u2014\u3000", " ")
"""Characters read as a space, so that `blow-job` is `blow job`."""
_AS_LETTERS: Final = dict(zip("@4831!|l09$57+", "aabeiiiiogsstt", strict=True))
"""Digits and symbols with the letter that each replaces. `l` is read as `i`, because `1` stands for both letters."""
_SUBSTITUTES: Final = frozenset("@4831!|09$57+")
_MOST_AROUND: Final = 64
"""The maximum number of letters that are read on each side of a run of equal letters."""
_PLURAL_FROM: Final = 4
"""The least length of a word that may have a plural `s`, because `as` + `s` is no plural."""

_repeated = re.compile(r"([^\W\d_])\1{2,}")
_doubled = re.compile(r"(.)\1+")


class WordLists:
    """Finds the words and phrases of lists."""

    def __init__(self, words: Iterable[str]) -> None:
        folded = {form for word in words for form in (without_case(word), without_case(word.casefold())) if form}
        self._plain = _automaton(folded)
        self._substituted = _automaton({_replaced(word, _AS_LETTERS) for word in folded})
        self._squeezed = {_squeezed(word) for word in folded if word.isalpha()}

    def matches(self, text: str) -> Iterator[Match]:
        """Return the places of words. A word that two readings find is returned twice."""
        lowered = without_case(text)
        for start, end in self._words(self._plain, lowered, lowered):
            yield Match(start, end, "words")
        for start, end in self._words(self._substituted, _replaced(lowered, _AS_LETTERS), lowered):
            if _is_substituted(lowered[start:end]):
                yield Match(start, end, "words")
        for start, end in self._stretched(lowered):
            yield Match(start, end, "words")

    def _words(self, automaton: Any, view: str, lowered: str) -> Iterator[tuple[int, int]]:
        """Return the places of listed words in `view` that are whole words of the text."""
        if not len(automaton):
            return
        for last, length in automaton.iter(view):
            start, end = last - length + 1, last + 1
            if length >= _PLURAL_FROM and lowered[end : end + 1] == "s":
                end += 1
            if _is_whole(lowered, start, end):
                yield start, end

    def _stretched(self, lowered: str) -> Iterator[tuple[int, int]]:
        """Return words with three or more equal letters in a row that, with these letters joined, are in the lists."""
        done = 0
        for run in _repeated.finditer(lowered):
            if run.start() < done:
                continue
            start, end = run.start(), run.end()
            while start > max(done, run.start() - _MOST_AROUND) and lowered[start - 1].isalpha():
                start -= 1
            while end < min(len(lowered), run.end() + _MOST_AROUND) and lowered[end].isalpha():
                end += 1
            done = end
            if _squeezed(lowered[start:end]) in self._squeezed and _is_whole(lowered, start, end):
                yield start, end


def without_case(text: str) -> str:
    """Return the text in lower case, of the same length: separators as spaces, lookalike letters as Latin ones."""
    lowered = text.lower() if len(text) == len(text.lower()) else "".join(map(_lower, text))
    return latinised(_replaced(lowered, _SEPARATORS))


def _replaced(text: str, characters: Mapping[str, str]) -> str:
    """Return the text with replaced characters. `str.translate` is ten times slower for a text that is not ASCII."""
    for old, new in characters.items():
        text = text.replace(old, new)
    return text


def _lower(character: str) -> str:
    lowered = character.lower()
    return lowered if len(lowered) == 1 else character


def _automaton(words: Iterable[str]) -> Any:
    automaton = ahocorasick.Automaton()
    for word in words:
        automaton.add_word(word, len(word))
    automaton.make_automaton()
    return automaton


def _is_whole(text: str, start: int, end: int) -> bool:
    """True if no letter or digit continues the word on either side.

    Where the word itself begins or ends with a symbol, such as an emoji, any character may stand beside it.
    """
    before = text[start - 1 : start] if text[start].isalnum() else ""
    after = text[end : end + 1] if text[end - 1].isalnum() else ""
    return not before.isalnum() and not after.isalnum()


def _is_substituted(written: str) -> bool:
    """True if symbols or digits replace letters, and at least half of the characters are letters.

    A code such as A55 or a price is no word.
    """
    return not _SUBSTITUTES.isdisjoint(written) and 2 * sum(map(str.isalpha, written)) >= len(written)


def _squeezed(word: str) -> str:
    return _doubled.sub(r"\1", word)
