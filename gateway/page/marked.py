"""An answer's text in pieces, so that a page can mark the text that rests on sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.result import Citation, Result, Support

_WEAKEST_FIRST = tuple(reversed(Support))


@dataclass(frozen=True, slots=True)
class Reference:
    """A citation's source, shown after the cited place."""

    number: int | None
    """The source's place in the list of sources, from 1; None if the source is not in the list."""
    source: str
    support: Support


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer's text. Pieces do not overlap."""

    text: str
    support: Support | None
    """The weakest support of the citations that cover the piece; None for a piece without a citation."""
    references: Sequence[Reference]
    """The citations whose cited place ends where the piece ends."""


def pieces(result: Result) -> Iterator[Piece]:
    """Yield the pieces of the answer's text.

    The pieces together are the whole text, even if citations name places outside the text.
    """
    text = result.text or ""
    numbers = {source: number for number, source in reversed(list(enumerate(result.sources, 1)))}
    begins, ends = _edges(result.citations, len(text))
    covering: Counter[Support] = Counter()
    place = 0
    for edge in sorted({0, len(text), *begins, *ends}):
        if edge > place:
            support = next((each for each in _WEAKEST_FIRST if covering[each]), None)
            ending = [Reference(numbers.get(each.source), each.source, each.support) for each in ends.get(edge, ())]
            yield Piece(text[place:edge], support, ending)
        for each in ends.get(edge, ()):
            covering[each.support] -= 1
        for each in begins.get(edge, ()):
            covering[each.support] += 1
        place = edge


def _edges(citations: Sequence[Citation], length: int) -> tuple[dict[int, list[Citation]], dict[int, list[Citation]]]:
    """Return two mappings to the citations: from the starts, and from the ends, of their cited places.

    Citations that cover no text are left out.
    """
    begins: dict[int, list[Citation]] = {}
    ends: dict[int, list[Citation]] = {}
    for each in citations:
        end = min(each.end, length)
        if each.start < end:
            begins.setdefault(each.start, []).append(each)
            ends.setdefault(end, []).append(each)
    return begins, ends
