"""The error of an operator's file of rules, for callers without the extra `screening`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

_MOST_MISTAKES: Final = 20


class RulesRefused(Exception):  # noqa: N818 - named after the event
    """The file of rules cannot be used. The text has a line for each mistake, with its place and the fix."""

    def __init__(self, path: Path, mistakes: Sequence[str]) -> None:
        shown = [f"{path}: {mistake}" for mistake in mistakes[:_MOST_MISTAKES]]
        more = len(mistakes) - len(shown)
        super().__init__("\n\t".join(shown + ([f"and {more} more mistakes"] if more else [])))
        self.mistakes = tuple(mistakes)
