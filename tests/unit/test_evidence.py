"""Evidence cut to a smaller size."""

from __future__ import annotations

import pytest

from workers.enrichment.evidence import Evidence, NumberedSource


def evidence(*sources: tuple[str, ...]) -> Evidence:
    numbered = [
        NumberedSource(number, f"s{number}", f"https://s{number}.example/", None, passages)
        for number, passages in enumerate(sources, start=1)
    ]
    return Evidence(tuple(numbered), question="Why?")


FULL = evidence(("a" * 100, "b" * 100, "c" * 100), ("d" * 150,), ("e" * 50, "f" * 50))


@pytest.mark.parametrize(
    ("chars", "left"),
    [
        (10_000, {"s1": "ab", "s2": "d", "s3": "ef"}),
        (400, {"s1": "a", "s2": "d", "s3": "ef"}),
        (320, {"s1": "a", "s2": "d", "s3": "e"}),
        (200, {"s1": "a", "s3": "e"}),
        (60, {"s3": "e"}),
        (-5, {}),
    ],
)
def test_the_longest_source_loses_passages_before_a_source_is_left_out(chars: int, left: dict[str, str]) -> None:
    shorter = FULL.shortened(chars)
    assert {source.id: "".join(passage[0] for passage in source.passages) for source in shorter.sources} == left
    assert [source.number for source in shorter.sources] == list(range(1, len(left) + 1))
    assert shorter.chars <= max(0, chars)
    assert shorter.question == "Why?"


def test_each_cut_leaves_less_evidence_until_none_is_left() -> None:
    shorter, count = FULL, 0
    while shorter.sources:
        shorter, count = shorter.shortened(10_000), count + 1
    assert count == 6
