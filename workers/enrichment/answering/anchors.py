"""Compares the numbers, units and names of two clauses. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from workers.enrichment.answering.clauses import Token, says_something

_DIRECTIONS: Final = frozenset({"from", "to"})


def other_value(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if sentence and source have different numbers or names at the same place.

    Two places are the same if the words before them, or the words after them, are equal. If the source has the
    sentence's value elsewhere, both the words before and the words after must be equal.
    """
    mine, its = _anchors(said), _anchors(told)
    said_stems, told_stems = {token.stem for token in said}, {token.stem for token in told}
    for one in mine:
        for other in its:
            if one.is_number != other.is_number or not other.words - said_stems:
                continue
            if one.words - told_stems and one.is_beside_the_same(other):
                return True
            if one.is_number and one.words != other.words and one.is_between_the_same(other):
                return True
    return False


@dataclass(frozen=True, slots=True)
class _Anchor:
    """A number or a run of names, with the nearest content words before and after it."""

    words: frozenset[str]
    is_number: bool
    before: str
    behind: str

    def is_beside_the_same(self, other: _Anchor) -> bool:
        """True if the same word stands before both anchors, or the same word stands after both."""
        return bool(self.before and self.before == other.before) or bool(self.behind and self.behind == other.behind)

    def is_between_the_same(self, other: _Anchor) -> bool:
        """True if the same words stand before and after both anchors."""
        return bool(self.before and self.behind) and (self.before, self.behind) == (other.before, other.behind)


def _anchors(tokens: Sequence[Token]) -> list[_Anchor]:
    saying = [token for token in tokens if says_something(token)]
    found: list[_Anchor] = []
    at = 0
    while at < len(saying):
        end = at + 1
        if not (saying[at].is_number or saying[at].is_name):
            at = end
            continue
        while saying[at].is_name and end < len(saying) and saying[end].is_name:
            end += 1
        words = frozenset(token.stem for token in saying[at:end])
        before = saying[at - 1].stem if at else ""
        behind = saying[end].stem if end < len(saying) else ""
        found.append(_Anchor(words, saying[at].is_number, before, behind))
        at = end
    return found


def other_unit(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if a number of the sentence has a unit, and the source gives the same number only with other units."""
    units: dict[str, set[str]] = defaultdict(set)
    for token in told:
        if token.is_number:
            units[token.stem].add(token.unit)
    return any(
        token.is_number and token.unit and units.get(token.stem)
        and not any(_fits(token.unit, unit) for unit in units[token.stem])
        for token in said
    )  # fmt: skip


def _fits(unit: str, other: str) -> bool:
    """True if the parts that both units have are equal: the unit of "5 mg" fits the unit of "5 mg per day"."""
    parts = zip(unit.split(" per "), other.split(" per "), strict=False)
    return all(set(one.split()) <= set(two.split()) or set(two.split()) <= set(one.split()) for one, two in parts)


def other_direction(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if a number follows "from" in one clause and "to" in the other clause."""
    mine, its = _directions(said), _directions(told)
    return any(number in its and its[number] != direction for number, direction in mine.items())


def _directions(tokens: Sequence[Token]) -> dict[str, str]:
    return {
        token.stem: before.text for before, token in pairwise(tokens) if token.is_number and before.text in _DIRECTIONS
    }
