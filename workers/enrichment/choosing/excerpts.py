"""Cuts long texts before ranking, and quotes the beginnings of texts if ranking fails or is late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from workers.enrichment.choosing.rank import Budget

MAX_RANKED_CHARS: Final = 600_000
"""Cap on the code points of all texts of a job together. Ranking this many takes a quarter of a second."""


def within(texts: Sequence[str], chars: int) -> list[str]:
    """Cut the longest texts to a common length, so that all texts together have at most `chars` code points."""
    left, most = chars, len(texts)
    limit = 0
    for size in sorted(map(len, texts)):
        limit = left // most
        if size > limit:
            break
        left, most = left - size, most - 1
    return [text[:limit] for text in texts]


def beginnings(texts: Sequence[str], budget: Budget, passage_chars: int) -> list[list[str]]:
    """Return the beginning of each text as the text's only passage, as long as the budget has room.

    A beginning is as long as a passage, or shorter if many texts share the budget.
    """
    chosen: list[list[str]] = []
    size = min(passage_chars, budget.chars // max(1, len(texts)))
    for text in texts:
        passage = _beginning(text, size)
        left = budget.without(passage, is_first=True) if passage else None
        chosen.append([passage] if left is not None else [])
        budget = left or budget
    return chosen


def _beginning(text: str, size: int) -> str:
    """Return as many of the text's first words as fit into `size` code points, with single spaces."""
    words = " ".join(text[: size + 1].split())
    if len(words) <= size:
        return words
    return words[:size].rpartition(" ")[0] or words[:size]
