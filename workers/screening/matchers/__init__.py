"""Matchers: each finds one kind of text, in time linear in the text's length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Match(NamedTuple):
    """A place in a plain text, [start, end), which is not empty."""

    start: int
    end: int
    kind: str
    """The matcher's name, as findings state it."""


class Matcher(Protocol):
    """Finds matches in a text that `screening.plain` has folded. Never raises, whatever the text."""

    def matches(self, text: str) -> Iterator[Match]:
        """Return the matches in any order; they may overlap."""
