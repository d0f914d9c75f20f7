"""Compares a sentence with a sentence of a source that has nearly the same words. Pure.

exchanged_words   the source has the sentence's words, but two of them have changed places
other_words       the source has the sentence's words, but another name, subject or adjective in one place
other_half        the source gives two numbers to two things ("38 minutes with A and 9 with B"), and the sentence
                  gives A's number to B
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, takewhile
from typing import Final, NamedTuple

from rapidfuzz.distance import LCSseq

from workers.enrichment.answering.clauses import Token, says_something

_ARTICLES: Final = frozenset({"the", "a", "an"})
_DEFINITE: Final = frozenset({"the", "this", "that", "these", "those", "its", "his", "her", "their"})
_LISTING: Final = frozenset({"and", "or", "nor"})
_EXCHANGEABLE: Final = frozenset({"with", "without"})
MAX_WORDS: Final = 30
"""Cap on the words of a sentence that is compared here, since each pair of its words is tried."""
_MAX_SOURCE_WORDS: Final = 120
_SLACK: Final = 2
"""The most further words between a sentence's words in the source for which the sentence counts as a quotation."""
_MOST_BEGINS: Final = 4
_LONGEST_RUN: Final = 3
_FEWEST_EQUAL: Final = 2
_MOST_IN_HALF: Final = 4
"""Cap on the content words of a shortened second half, besides its number."""


def has_its_words(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if both sentences are short and the source's has all words of the other, as `exchanged_words` needs."""
    is_short = 1 < len(said) <= MAX_WORDS and len(told) <= _MAX_SOURCE_WORDS
    return is_short and {token.stem for token in said} <= {token.stem for token in told}


def exchanged_words(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if the sentence fits the source's words better after two of the sentence's words are exchanged.

    The time grows with the square of the sentence's words.
    """
    mine = _units(said)
    words, source = [word for word, _ in mine], [word for word, _ in _units(told)]
    own = _window(words, source)
    if own is not None and own <= len(words) + _SLACK:
        return False
    times = Counter(words)
    places = [at for at, (word, may_move) in enumerate(mine) if may_move and times[word] == 1]
    for one, other in combinations(places, 2):
        if not _is_listing(words, one, other):
            turned = list(words)
            turned[one], turned[other] = words[other], words[one]
            window = _window(turned, source)
            if window is not None and (own is None or window < own):
                return True
    return False


def _is_listing(words: Sequence[str], one: int, other: int) -> bool:
    """True if only "and", articles and the words before the first place stand between: "in A and in B"."""
    lead = words[max(0, one - _SLACK) : one]
    return all(word in _LISTING or word in _ARTICLES or word in lead for word in words[one + 1 : other])


def _units(tokens: Sequence[Token]) -> list[tuple[str, bool]]:
    """Return each word, and True if the word may be exchanged. A name of several words counts as one word."""
    units: list[tuple[str, bool]] = []
    is_open = False
    for at, token in enumerate(tokens):
        is_name = token.is_name or (token.starts and at + 1 < len(tokens) and tokens[at + 1].is_name)
        if is_name and is_open:
            units[-1] = (f"{units[-1][0]} {token.stem}", True)
        else:
            units.append((token.stem, says_something(token) or token.text in _EXCHANGEABLE))
        is_open = is_name
    return units


def _window(words: Sequence[str], source: Sequence[str]) -> int | None:
    """Return the length of the shortest part of the source that has these words in this order, or None."""
    if LCSseq.similarity(words, source) < len(words):
        return None
    begins = [at for at, word in enumerate(source) if word == words[0]][:_MOST_BEGINS]
    return min((found for begin in begins if (found := _length_from(words, source, begin)) is not None), default=None)


def _length_from(words: Sequence[str], source: Sequence[str], begin: int) -> int | None:
    at = begin
    for wanted in words[1:]:
        try:
            at = source.index(wanted, at + 1)
        except ValueError:
            return None
    return at + 1 - begin


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The stems of a source's names, and all pairs of neighbouring stems, as "flexible spacer"."""

    names: frozenset[str]
    pairs: frozenset[str]

    @classmethod
    def of(cls, sentences: Sequence[Sequence[Token]]) -> Vocabulary:
        """Collect the names and pairs of these sentences."""
        names = frozenset(token.stem for tokens in sentences for token in tokens if token.is_name)
        pairs = (f"{one.stem} {other.stem}" for tokens in sentences for one, other in pairwise(tokens))
        return cls(names, frozenset(pairs))


def other_words(said: Sequence[Token], told: Sequence[Token], sentence: Sequence[Token], source: Vocabulary) -> bool:
    """True if the clause `told` has another name, subject or adjective in one place of the sentence `said`.

    `sentence` is the whole sentence of `told`. The sentence's differing word must occur elsewhere in the source: a word
    that the source lacks may be a synonym.
    """
    mine, its = _without_articles(said), _without_articles(told)
    if len(mine) > MAX_WORDS:
        return False
    return any(_is_other_thing(mine, here, its, there, sentence, source) for here, there in _replaced(mine, its))


def _replaced(mine: Sequence[_Word], its: Sequence[_Word]) -> Iterator[tuple[slice, slice]]:
    """Yield pairs of runs, of the sentence and of the source, that differ between equal words."""
    words, source = [one.token.stem for one in mine], [one.token.stem for one in its]
    saying = [says_something(one.token) for one in mine]
    for offset in range(len(source)):
        begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(words, source[offset:], strict=False)))
        start = offset + begin
        for end in range(begin + 1, min(begin + _LONGEST_RUN, len(words)) + 1):
            if sum(saying[:begin]) + sum(saying[end:]) < _FEWEST_EQUAL:
                break
            for stop in range(start + 1, min(start + _LONGEST_RUN, len(source)) + 1):
                if source[stop : stop + len(words) - end] == words[end:]:
                    yield slice(begin, end), slice(start, stop)


def _is_other_thing(
    mine: Sequence[_Word],
    here: slice,
    its: Sequence[_Word],
    there: slice,
    sentence: Sequence[Token],
    source: Vocabulary,
) -> bool:
    one, other = [word.token for word in mine[here]], [word.token for word in its[there]]
    stems = {token.stem for token in one}
    if stems & {token.stem for token in other} or any(
        not says_something(token) or token.is_number for token in (*one, *other)
    ):
        return False
    if all(token.is_name for token in other):
        is_whole = there.start == 0 or not its[there.start - 1].is_part_of_name
        return is_whole and stems <= source.names
    if any(token.is_name for token in (*one, *other)) or mine[here.start].is_definite != its[there.start].is_definite:
        return False
    if its[there.start].is_definite:
        following = mine[here.stop].token.stem if here.stop < len(mine) else ""
        return f"{one[-1].stem} {following}" in source.pairs
    return here.start == 0 and stems <= {token.stem for token in sentence}


class _Word(NamedTuple):
    """A token that is no article. `is_definite` is true after "the", "its" and the like."""

    token: Token
    is_definite: bool

    @property
    def is_part_of_name(self) -> bool:
        """True for a name, and for a capitalised first word, which may begin one."""
        return self.token.is_name or self.token.starts


def _without_articles(tokens: Sequence[Token]) -> list[_Word]:
    found: list[_Word] = []
    is_definite = False
    for token in tokens:
        if token.text not in _ARTICLES:
            found.append(_Word(token, is_definite))
        is_definite = token.text in _DEFINITE
    return found


def other_half(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if the source gives two numbers to two things in a shortened "and", and the sentence exchanges them."""
    numbers = {token.stem for token in said if token.is_number}
    return any(
        (second in numbers) is not (bool(only & {token.stem for token in said}))
        for first, second, only in _halves(told)
        if (first in numbers) is not (second in numbers)
    )


def is_other_half(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if the sentence has the number and the thing of the shortened second half."""
    stems = {token.stem for token in said}
    return any(second in stems and first not in stems and only & stems for first, second, only in _halves(told))


def _halves(told: Sequence[Token]) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Yield the first number, the second, and the words of the second half alone: "… 38 minutes … and … 9 minutes".

    The time grows with the square of the words, so a sentence with more than _MAX_SOURCE_WORDS has no halves.
    """
    if len(told) > _MAX_SOURCE_WORDS:
        return
    numbers = [at for at, token in enumerate(told) if token.is_number]
    for first, second in pairwise(numbers):
        joins = [at for at in range(first + 1, second) if told[at].text in _LISTING or told[at].text == "but"]
        if len(joins) != 1 or told[first].unit != told[second].unit or told[first].stem == told[second].stem:
            continue
        end = next((at for at in range(second + 1, len(told)) if told[at].text in _LISTING), len(told))
        half = [token for token in told[joins[0] : end] if says_something(token) and not token.is_number]
        ahead = {token.stem for token in told[: joins[0]]}
        only = frozenset(token.stem for token in half) - ahead
        if only and len(half) <= _MOST_IN_HALF:
            yield told[first].stem, told[second].stem, only
