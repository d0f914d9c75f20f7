"""Compares a sentence with a sentence of a source that has nearly the same words. Pure.

exchanged_words   the source has the sentence's words, but two of the words have changed places
other_half        the source gives two numbers to two things ("38 minutes with A and 9 with B"), and the sentence
                  gives A's number to B
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Final

from rapidfuzz.distance import LCSseq

from workers.enrichment.answering.clauses import Token, says_something

_ARTICLES: Final = frozenset({"the", "a", "an"})
_LISTING: Final = frozenset({"and", "or", "nor"})
_EXCHANGEABLE: Final = frozenset({"with", "without"})
MAX_WORDS: Final = 30
"""Cap on the words of a sentence that is compared here, since each pair of its words is tried."""
_MAX_SOURCE_WORDS: Final = 120
_SLACK: Final = 2
"""A sentence counts as a quotation if the source has at most this many other words between the sentence's words."""
_MOST_BEGINS: Final = 4


def has_its_words(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if `exchanged_words` can compare the sentences: both are short, and `told` has all words of `said`."""
    is_short = 1 < len(said) <= MAX_WORDS and len(told) <= _MAX_SOURCE_WORDS
    return is_short and {token.stem for token in said} <= {token.stem for token in told}


def exchanged_words(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if the sentence fits the source's words better after two of the sentence's words are exchanged.

    The time grows with the square of the sentence's words.
    """
    words, source = [token.stem for token in said], [token.stem for token in told]
    own = _window(words, source)
    if own is not None and own <= len(words) + _SLACK:
        return False
    places = [at for at, token in enumerate(said) if says_something(token) or token.text in _EXCHANGEABLE]
    for one, other in combinations(places, 2):
        if not _is_listing(words, one, other):
            turned = list(words)
            turned[one], turned[other] = words[other], words[one]
            window = _window(turned, source)
            if window is not None and (own is None or window < own):
                return True
    return False


def _is_listing(words: Sequence[str], one: int, other: int) -> bool:
    """True if the two places belong to one list: only articles and words such as "and" stand between them."""
    return all(word in _LISTING or word in _ARTICLES for word in words[one + 1 : other])


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


def other_half(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if the source gives two numbers to two things, and the sentence exchanges the numbers.

    After "and", the source leaves out the repeated words: "38 minutes with A and 9 with B".
    """
    numbers = {token.stem for token in said if token.is_number}
    return any(
        (second in numbers) is not (bool(only & {token.stem for token in said}))
        for first, second, only in _halves(told)
        if (first in numbers) is not (second in numbers)
    )


def is_other_half(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if the sentence agrees with the shortened second half: it has the number and the thing of that half."""
    stems = {token.stem for token in said}
    return any(second in stems and first not in stems and only & stems for first, second, only in _halves(told))


def _halves(told: Sequence[Token]) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Yield both numbers of "… 38 minutes … and … 9 minutes", and the words that only the second half has.

    A sentence with more than _MAX_SOURCE_WORDS is not split, since the time grows with the square of the words.
    """
    if len(told) > _MAX_SOURCE_WORDS:
        return
    numbers = [at for at, token in enumerate(told) if token.is_number]
    for first, second in pairwise(numbers):
        joins = [at for at in range(first + 1, second) if told[at].text in _LISTING]
        if len(joins) != 1 or told[first].unit != told[second].unit or told[first].stem == told[second].stem:
            continue
        half = [token for token in told[joins[0] :] if says_something(token) and not token.is_number]
        ahead = {token.stem for token in told[: joins[0]]}
        only = frozenset(token.stem for token in half) - ahead
        if only:
            yield told[first].stem, told[second].stem, only
