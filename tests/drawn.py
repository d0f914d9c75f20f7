"""The number of drawn examples of a property test, which follows Hypothesis' profile."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100
"""`max_examples` of the whole suite's profile."""


def drawn(examples: int) -> int:
    """Return this number of examples for the whole suite; fewer, in proportion, under a profile such as `fast`."""
    return max(1, examples * settings().max_examples // _USUAL)
