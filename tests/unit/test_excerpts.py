"""Excerpts of long texts for ranking, and the fallback if ranking does not end in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.enrichment.choosing.excerpts import beginnings, within
from workers.enrichment.choosing.rank import Budget
from workers.enrichment.choosing.tokens import estimated_tokens


@pytest.mark.parametrize(
    ("sizes", "chars", "left"),
    [
        ((10, 20, 30), 60, (10, 20, 30)),
        ((10, 20, 30), 50, (10, 20, 20)),
        ((30, 30, 30), 60, (20, 20, 20)),
        ((5, 100, 100), 65, (5, 30, 30)),
        ((100,), 7, (7,)),
        ((), 10, ()),
        ((0, 0), 0, (0, 0)),
    ],
)
def test_the_longest_texts_are_cut_alike(sizes: tuple[int, ...], chars: int, left: tuple[int, ...]) -> None:
    assert tuple(len(text) for text in within(["x" * size for size in sizes], chars)) == left


@given(st.lists(st.text(max_size=40), max_size=8), st.integers(0, 200))
def test_the_ranked_texts_are_no_longer_than_allowed_and_begin_as_the_given_ones(texts: list[str], chars: int) -> None:
    cut = within(texts, chars)
    assert all(text.startswith(part) for text, part in zip(texts, cut, strict=True))
    assert sum(map(len, cut)) <= chars
    assert cut == texts or sum(map(len, cut)) > chars - len(texts)


def test_each_text_gives_its_beginning_in_whole_words() -> None:
    texts = ["The Halvorsen\n bridge opened in 1987.", "", "Cheese ripens.", "Incomprehensibilities"]
    chosen = beginnings(texts, Budget(80), 600)
    assert chosen == [["The Halvorsen bridge"], [], ["Cheese ripens."], ["Incomprehensibilitie"]]


@pytest.mark.parametrize("tokens", [0, 20, 60, 200])
def test_beginnings_keep_the_budget_of_tokens(tokens: int) -> None:
    texts = ["The bridge is long. " * 40, "大桥很长。" * 40, "Another one. " * 40]
    chosen = beginnings(texts, Budget(10_000, tokens, 10), 100)
    quoted = [passage for passages in chosen for passage in passages]
    assert sum(map(estimated_tokens, quoted)) + 10 * len(quoted) <= tokens
    assert bool(quoted) == (tokens >= 60)
