"""Compares the order of parties and of events in two clauses. Pure.

Two parties are exchanged if the clauses have them in opposite orders around the same word. A passive ("was bought by")
reverses the order. The words "before" and "after" show which of two events came first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, takewhile
from typing import Final

from workers.enrichment.answering.clauses import Token, says_something

_PLACES_WORDS: Final = "in on at during near since until throughout across within around before after under above of"
_PLACES: Final = frozenset(_PLACES_WORDS.split())
_ARTICLES_WORDS: Final = "the a an this that its their his her these those"
_ARTICLES: Final = frozenset(_ARTICLES_WORDS.split())
_SUBORDINATING: Final = frozenset({"when", "while", "if", "once"})
"""Words that begin a clause of condition or time. Such a clause has its own verb and parties."""
_COMPARING: Final = frozenset({"than", "as", "versus"})
_PASSIVE_WORDS: Final = "is are was were be been being"
_PASSIVE: Final = frozenset(_PASSIVE_WORDS.split())


def exchanged(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if both clauses have the same two words around the same relating word, but in opposite orders."""
    mine, its = _parties(said), _parties(told)
    for one, other in combinations([word for word in mine if word in its], 2):
        if (mine[one] < mine[other]) == (its[one] < its[other]):
            continue
        if _relations(said, mine[one], mine[other]) & _relations(told, its[one], its[other]):
            return True
    return False


def _parties(tokens: Sequence[Token]) -> dict[str, int]:
    """Return the positions of possible parties: content words that name no place, time or condition."""
    begin = bool(tokens) and tokens[0].text in _SUBORDINATING
    main = takewhile(lambda pair: pair[0] < begin or pair[1].text not in _SUBORDINATING, enumerate(tokens))
    return {token.stem: at for at, token in main if says_something(token) and not _is_place(tokens, at)}


def _is_place(tokens: Sequence[Token], at: int) -> bool:
    """True if "in" or the like stands before the token; articles and parts of the token's name may be in between."""
    before = at - 1
    while before >= 0 and (tokens[before].text in _ARTICLES or (tokens[before].is_name and tokens[at].is_name)):
        before -= 1
    return before >= 0 and tokens[before].text in _PLACES


def _relations(tokens: Sequence[Token], one: int, other: int) -> frozenset[str]:
    between = tokens[min(one, other) + 1 : max(one, other)]
    return frozenset(
        token.stem for token in between if (says_something(token) and not token.is_number) or token.text in _COMPARING
    )


def is_passive(tokens: Sequence[Token]) -> bool:
    """True if a form of "to be" stands before a "by" that no number follows."""
    forms = [at for at, token in enumerate(tokens) if token.text in _PASSIVE]
    return any(
        forms and forms[0] < at and at + 1 < len(tokens) and not tokens[at + 1].is_number
        for at, token in enumerate(tokens)
        if token.text == "by"
    )


def other_time(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if the clauses put two events in opposite orders."""
    (first, then), (its_first, its_then) = _events(said), _events(told)
    return bool((first - then) & (its_then - its_first)) and bool((then - first) & (its_first - its_then))


def _events(tokens: Sequence[Token]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the words of the earlier event and of the later event; both are empty without "before" or "after"."""
    at = next((at for at, token in enumerate(tokens) if token.text in ("before", "after")), None)
    if at is None:
        return frozenset(), frozenset()
    ahead, behind = (
        frozenset(token.stem for token in some if says_something(token)) for some in (tokens[:at], tokens[at + 1 :])
    )
    return (ahead, behind) if tokens[at].text == "before" else (behind, ahead)
