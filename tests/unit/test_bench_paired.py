"""Statistics of paired measurements: textbook values, and the stated confidence."""

from __future__ import annotations

import math
import random

import pytest

from bench.paired import Ratio, ratio


def test_pairs_that_agree_give_a_narrow_interval_and_a_verdict() -> None:
    shown = ratio([1.05] * 8)
    assert (shown.estimate, shown.low, shown.high) == pytest.approx((1.05, 1.05, 1.05))
    assert (shown.kept(1.1), shown.kept(1.0)) == ("met", "MISSED")


def test_one_slow_minute_does_not_move_the_interval() -> None:
    shown = ratio([1.0] * 9 + [30.0])
    assert (shown.estimate, shown.low, shown.high) == (1.0, 1.0, 1.0)


def test_pairs_with_large_differences_give_no_verdict() -> None:
    assert ratio([0.8, 1.3, 0.9, 1.2, 1.0, 1.1]).kept(1.1) == "not shown"


def test_few_pairs_give_no_verdict_however_well_they_agree() -> None:
    shown = ratio([1.0] * 4)
    assert shown == Ratio(1.0, 0.0, math.inf)
    assert shown.kept(1.1) == "not shown"


@pytest.mark.parametrize("count", [5, 8, 20])
def test_the_interval_contains_the_ratio_as_often_as_stated(count: int) -> None:
    chance = random.Random(count)
    held = 0
    for _ in range(1000):
        shown = ratio([math.exp(chance.gauss(0.0, 0.2)) for _ in range(count)])
        held += shown.low <= 1.0 <= shown.high
    assert 870 <= held <= 970
