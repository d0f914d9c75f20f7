"""Of long texts, what is looked at to rank them, and what stands in for their passages where ranking did not end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from workers.enrichment.choosing.rank import Budget

MAX_RANKED_CHARS: Final = 600_000
"""Code points of all texts of a job together that are ranked; so many take a process a quarter of a second."""


def within(texts: Sequence[str], chars: int) -> list[str]:
    """The texts, the longest of them cut alike until all of them together have no more than `chars` code points."""
    left, most = chars, len(texts)
    limit = 0
    for size in sorted(map(len, texts)):
        limit = left // most
        if size > limit:
            break
        left, most = left - size, most - 1
    return [text[:limit] for text in texts]


def beginnings(texts: Sequence[str], budget: Budget, passage_chars: int) -> list[list[str]]:
    """For each text one passage at the most: its beginning, as far as all of them fit.

    Each is as long as a passage, and shorter where there are many texts for the budget.
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
    """The first words, of at most `size` code points together and with single spaces between them."""
    words = " ".join(text[: size + 1].split())
    if len(words) <= size:
        return words
    return words[:size].rpartition(" ")[0] or words[:size]
