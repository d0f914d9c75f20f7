"""What pairs of measurements show of a ratio, and what they do not.

Two runs of which one follows the other share much of what else the machine does, and still differ by more than what is
looked for. The estimate is that of Hodges and Lehmann, the interval that of Wilcoxon's signed ranks (Hollander, Wolfe,
Chicken: Nonparametric Statistical Methods, sections 3.1 to 3.3, in the approximation for larger samples), both on
logarithms: a pair of which one side met a slow minute counts as one pair, however slow that was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

CONFIDENCE = 0.9
"""Of the interval, so that a limit that it keeps is kept with 95 %: what is beyond its other end does no harm."""
_FEWEST = 5
"""Pairs that can have an interval: of four the widest holds the ratio in 87.5 % of all cases."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """What pairs say of the ratio of their sides."""

    estimate: float
    low: float
    """0 where there are too few pairs."""
    high: float
    """Infinite where there are too few pairs."""

    def __str__(self) -> str:
        return f"{self.estimate:.2f} ({self.low:.2f} to {self.high:.2f} with {CONFIDENCE:.0%})"

    def kept(self, limit: float) -> str:
        """Whether it is `limit` at the most, as a table says it."""
        if self.low > limit:
            return "MISSED"
        return "met" if self.high <= limit else "not shown"


def ratio(pairs: Sequence[float]) -> Ratio:
    """What these ratios, each of one pair, say of the ratio that all have in common."""
    count = len(pairs)
    means = sorted(math.sqrt(one * other) for one, other in combinations_with_replacement(pairs, 2))
    estimate = statistics.median(means)
    if count < _FEWEST:
        return Ratio(estimate, 0.0, math.inf)
    deviations = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    place = max(1, math.floor(len(means) / 2 - deviations * spread))
    return Ratio(estimate, means[place - 1], means[-place])
