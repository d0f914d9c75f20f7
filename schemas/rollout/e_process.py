"""A test of a mean that may be looked at after each value: a betting e-process.

Source: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal
Statistical Society B, 2024 (arXiv:2010.09686): the capital process of section 4 with the bets of appendix B.3 (aGRAPA).
"""

from __future__ import annotations

from math import exp, log1p

DECIDED = 20.0
"""The e-value from which the evidence decides. A wrong claim reaches this e-value with a probability of at most 1/20
(Ville's inequality).
"""
_MOST_OF_CAPITAL = 0.75
"""The largest part of the capital that one bet may lose."""
_LONGEST = 700.0
"""The logarithm of the largest e-value that is shown, because a float cannot represent a much larger number."""
_PRIOR_VARIANCE = 0.25
"""A prior: one imagined value with this variance, so that early bets are small."""


class EProcess:
    """Evidence that the mean of values from -1 to 1 lies below `bound`, and evidence that the mean lies above.

    `below` is the e-value against "the mean is at least the bound", and `above` the e-value against "the mean is at
    most the bound". Raises ValueError for a bound outside of -1 to 1.
    """

    def __init__(self, bound: float) -> None:
        if not -1 < bound < 1:
            raise ValueError("the bound must be above -1 and below 1")
        self.bound = bound
        self.count = 0
        self._sum, self._squares = 0.0, _PRIOR_VARIANCE
        self._log_below = self._log_above = 0.0

    def take(self, value: float) -> None:
        """Bet on the value as the earlier values suggest, then learn from the value.

        Raises ValueError for a value outside of -1 to 1.
        """
        if not -1 <= value <= 1:
            raise ValueError("the value must be from -1 to 1")
        lead = self.mean - self.bound
        bet = lead / (self._squares / (self.count + 1) + lead * lead)
        gain = value - self.bound
        self._log_above += log1p(min(max(bet, 0.0), _MOST_OF_CAPITAL / (1 + self.bound)) * gain)
        self._log_below += log1p(min(max(-bet, 0.0), _MOST_OF_CAPITAL / (1 - self.bound)) * -gain)
        self.count += 1
        self._sum += value
        self._squares += (value - self.mean) ** 2

    @property
    def mean(self) -> float:
        """The mean of the values and of one imagined zero."""
        return self._sum / (self.count + 1)

    @property
    def below(self) -> float:
        """The e-value for a mean below the bound."""
        return exp(max(-_LONGEST, min(_LONGEST, self._log_below)))

    @property
    def above(self) -> float:
        """The e-value for a mean above the bound."""
        return exp(max(-_LONGEST, min(_LONGEST, self._log_above)))
