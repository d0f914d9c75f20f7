"""The number of examples of a property test, which follows Hypothesis' profile, and any JSON value to draw."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

_USUAL = 100
"""Hypothesis' own number of examples, to which the numbers in the tests relate."""


def drawn(examples: int) -> int:
    """Return this number of examples, in proportion to the profile's: fewer by default, ten times more for `hunt`."""
    return max(1, examples * settings().max_examples // _USUAL)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=9), some, max_size=3),
    max_leaves=8,
)
"""Any JSON value; NaN and infinity are among the numbers, as in what Python's `json` writes."""
