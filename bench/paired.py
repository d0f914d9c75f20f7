"""Estimates a ratio from pairs of measurements, with a confidence interval.

Two consecutive runs share much of the machine's other load, but may still differ by more than the effect in question,
so several pairs are needed. The estimate is Hodges and Lehmann's, and the interval is from Wilcoxon's signed ranks,
both on logarithms. A pair with one side in a slow minute counts as one pair, however slow the minute was.

Source: Hollander, Wolfe, Chicken: Nonparametric Statistical Methods, sections 3.1 to 3.3, in the approximation for
larger samples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

CONFIDENCE = 0.9
"""Confidence of the interval.

If a limit is above the interval, the ratio is below that limit with a confidence of 95 %.
"""
_FEWEST = 5
"""Fewest pairs for an interval: with four pairs, the widest interval contains the ratio in only 87.5 % of all cases."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """An estimated ratio of two sides, and its interval."""

    estimate: float
    low: float
    """Low end of the interval; 0 with too few pairs."""
    high: float
    """High end of the interval; infinite with too few pairs."""

    def __str__(self) -> str:
        return f"{self.estimate:.2f} ({self.low:.2f} to {self.high:.2f} with {CONFIDENCE:.0%})"

    def kept(self, limit: float) -> str:
        """Return a table's verdict on the claim that the ratio is at most `limit`."""
        if self.low > limit:
            return "missed"
        return "met" if self.high <= limit else "not shown"


def ratio(pairs: Sequence[float]) -> Ratio:
    """Estimate the common ratio of the pairs; `pairs` has each pair's ratio."""
    count = len(pairs)
    means = sorted(math.sqrt(one * other) for one, other in combinations_with_replacement(pairs, 2))
    estimate = statistics.median(means)
    if count < _FEWEST:
        return Ratio(estimate, 0.0, math.inf)
    deviations = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    place = max(1, math.floor(len(means) / 2 - deviations * spread))
    return Ratio(estimate, means[place - 1], means[-place])
