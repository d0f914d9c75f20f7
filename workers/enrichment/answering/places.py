"""Tells whether figures and names stand at the same words in a sentence and in its source. Pure.

A sentence may have all figures and names of its source, and give them to each other's things: "3% in Rome and 2% in
Oslo" for "2% in Rome and 3% in Oslo". The order of the words does not matter, as they are compared by nearness.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Final

from workers.enrichment.answering.languages import Language
from workers.enrichment.answering.names import canonical, names
from workers.enrichment.answering.quantities import Date, Figures, Quantity, same

_WORD: Final = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_STOP: Final = re.compile(r"[,;:()]|\s[-—]\s|\s(?:and|but|while|und|aber|et|mais|y|pero|e|ma|mas|en|maar)\s")
_STOP_CHARS: Final = 20
"""A comma or a conjunction between two words parts them as so many characters do."""
_MOST_ANCHORS: Final = 8
_MOST_WORDS: Final = 40
"""Caps for one sentence, since each pair of anchors is compared at each word."""
_BESIDE_CHARS: Final = 14
"""A word within this distance of a figure says whose figure it is."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A figure or a name at its place."""

    what: Quantity | Date | frozenset[str]
    """The figure, or the words of the name in lower case."""
    text: str
    start: int
    end: int

    @property
    def is_amount(self) -> bool:
        """True for dates, and for quantities that are no ordinal."""
        return isinstance(self.what, Date) or (isinstance(self.what, Quantity) and self.what.dimension != "ordinal")

    def is_same(self, other: Anchor) -> bool:
        """True if both are one figure or one name."""
        mine, theirs = self.what, other.what
        if isinstance(mine, frozenset):
            return isinstance(theirs, frozenset) and not mine.isdisjoint(theirs)
        return not isinstance(theirs, frozenset) and same(mine, theirs)

    def is_like(self, other: Anchor) -> bool:
        """True if both are of one kind, such as two lengths, two dates or two names."""
        if isinstance(self.what, Quantity):
            return isinstance(other.what, Quantity) and self.what.dimension == other.what.dimension
        if isinstance(self.what, Date):
            return isinstance(other.what, Date) and self.what.is_like(other.what)
        return isinstance(other.what, frozenset)


class Placed:
    """The figures, names and content words of a sentence, each with its place."""

    def __init__(self, text: str, figures: Figures, language: Language) -> None:
        found: list[Quantity | Date] = [*figures.quantities, *figures.dates]
        self._stops = [stop.start() for stop in _STOP.finditer(text)]
        self.anchors = [Anchor(one, one.text, one.start, one.end) for one in found]
        known = {word.casefold() for name in names(text, language) for word in _WORD.findall(name.text)}
        taken = figures.spans
        words = [
            word for word in _WORD.finditer(text) if not any(a < word.end() and word.start() < b for a, b in taken)
        ]
        self.anchors += _names([word for word in words if word.group().casefold() in known], text)
        self.anchors = self.anchors[:_MOST_ANCHORS]
        named = [(one.start, one.end) for one in self.anchors]
        stems = [
            (language.stem(plain), word.start(), word.end())
            for word in words
            if not any(a < word.end() and word.start() < b for a, b in named)
            and (plain := language.content(word.group().casefold())) not in language.common
        ]
        often = Counter(stem for stem, _, _ in stems)
        single = ((stem, (start, end)) for stem, start, end in stems if often[stem] == 1)
        self.words = dict(islice(single, _MOST_WORDS))
        """The place of each content word that stands once."""

    def distance(self, word: str, anchor: Anchor) -> int:
        """Return the characters between a word and an anchor, of which commas count more."""
        return self._gap(*self.words[word], anchor)

    def _gap(self, start: int, end: int, anchor: Anchor) -> int:
        begin, stop = (end, anchor.start) if end <= anchor.start else (anchor.end, start)
        return stop - begin + _STOP_CHARS * (bisect_left(self._stops, stop) - bisect_left(self._stops, begin))

    def stands_at(self, figure: Anchor, said: Placed) -> bool:
        """True if a name of another sentence, or a word beside the figure there, stands right at this figure here."""
        own = self.find(figure)
        if own is None:
            return False
        names = [self.find(one) for one in said.anchors if isinstance(one.what, frozenset)]
        beside = [one for one in said.words.keys() & self.words.keys() if said.distance(one, figure) <= _BESIDE_CHARS]
        like = [one for one in self.anchors if one.is_like(own)]
        return any(one is not None and self._gap(own.start, own.end, one) <= _BESIDE_CHARS for one in names) or any(
            self.distance(word, own) <= min(_BESIDE_CHARS, *(self.distance(word, one) for one in like))
            for word in beside
        )

    def find(self, anchor: Anchor) -> Anchor | None:
        """Return this sentence's anchor that is the same."""
        return next((one for one in self.anchors if one.is_same(anchor)), None)


def _names(words: Sequence[re.Match[str]], text: str) -> Iterator[Anchor]:
    """Yield the names: words that follow each other are one."""
    run: list[re.Match[str]] = []
    for word in (*words, None):
        if run and (word is None or word.start() - run[-1].end() > 1):
            start, end = run[0].start(), run[-1].end()
            yield Anchor(frozenset(canonical(one.group()) for one in run), text[start:end], start, end)
            run = []
        if word is not None:
            run.append(word)


def exchanged(said: Placed, told: Placed) -> list[str]:
    """Return two figures or names that have changed places: words of each are nearer to the other one in the source."""
    words = said.words.keys() & told.words.keys()
    for one, other in combinations(said.anchors, 2):
        here, there = told.find(one), told.find(other)
        if here is None or there is None or here is there or one.is_same(other) or not one.is_like(other):
            continue
        sides = [
            (
                said.distance(word, one) - said.distance(word, other),
                told.distance(word, here) - told.distance(word, there),
            )
            for word in words
        ]
        crossed = [mine < 0 for mine, theirs in sides if mine * theirs < 0]
        if len(set(crossed)) == 2 and len(crossed) > sum(mine * theirs > 0 for mine, theirs in sides):
            return [one.text, other.text]
    return []


def misplaced(said: Placed, told: Sequence[Placed]) -> list[str]:
    """Return figures whose word belongs to another figure of the source, which the sentence lacks.

    A figure that stands at a name or another word of the sentence in the source too is in its place: "3% in Rome" for
    "rents rose by 2% in Oslo and by 3% in Rome".
    """
    found = []
    for anchor in said.anchors:
        if not anchor.is_amount or any(placed.stands_at(anchor, said) for placed in told):
            continue
        beside = [word for word in said.words if said.distance(word, anchor) <= _BESIDE_CHARS]
        word = min(beside, key=lambda one: said.distance(one, anchor), default=None)
        if word is None:
            continue
        own, rival = _nearest(word, anchor, said, told)
        if rival <= _BESIDE_CHARS and rival < own:
            found.append(anchor.text)
    return found


def _nearest(word: str, anchor: Anchor, said: Placed, told: Sequence[Placed]) -> tuple[int, int]:
    """Return the least distances of a word from the same figure, and from another one that the sentence lacks."""
    own, rival = 1_000_000, 1_000_000
    for placed in told:
        if word not in placed.words:
            continue
        for other in placed.anchors:
            if other.is_same(anchor):
                own = min(own, placed.distance(word, other))
            elif other.is_like(anchor) and said.find(other) is None:
                rival = min(rival, placed.distance(word, other))
    return own, rival
