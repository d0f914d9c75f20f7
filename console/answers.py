"""Results on their way to who asked for them: counted, written one a line, and told of where they are no success."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from console.errors import say

if TYPE_CHECKING:
    from producers.receipts import Entry
    from schemas.result import Result

SHOWN = 20
"""Problems that are spelled out; more help nobody."""


@dataclass(slots=True)
class Answers:
    """What came back of the jobs of a receipt."""

    entries: Mapping[str, Entry]
    """By job id."""
    out: TextIO | None
    write: Callable[[Result, Entry | None], str]
    """A result's line."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """By job id."""
    unsuccessful: list[str] = field(default_factory=list)
    """A sentence for each of them, as many as are shown."""

    @property
    def open(self) -> int:
        """How many jobs have no result yet."""
        return len(self.entries) - len(self.outcomes)

    @property
    def well(self) -> bool:
        """Whether every job succeeded."""
        return not self.open and all(outcome == "succeeded" for outcome in self.outcomes.values())

    def add(self, result: Result) -> bool:
        """Whether somebody waited for it."""
        entry = self.entries.get(result.job_id)
        if entry is None or result.job_id in self.outcomes:
            return False
        self.outcomes[result.job_id] = result.outcome.value
        if result.outcome.value != "succeeded" and len(self.unsuccessful) < SHOWN:
            why = f": {result.error.message}" if result.error else ""
            self.unsuccessful.append(f"{name_of(entry)}: {result.job_id} {result.outcome}{why}")
        if self.out is not None:
            self.out.write(self.write(result, entry) + "\n")
        return True

    def tell(self) -> None:
        """Say which jobs did not succeed."""
        for sentence in self.unsuccessful:
            say(sentence)
        say_more(len(self.outcomes) - self.counts["succeeded"])

    @property
    def counts(self) -> Counter[str]:
        """How many jobs ended in each outcome."""
        return Counter(self.outcomes.values())

    @property
    def summary(self) -> list[str]:
        """The counts as people read them."""
        counts = [f"{count} {outcome}" for outcome, count in sorted(self.counts.items(), reverse=True)]
        return [*counts, *([f"{self.open} without a result"] if self.open else [])]


def name_of(entry: Entry) -> str:
    """What the producer knows a job by."""
    return f"line {entry.line}" + (f" ({entry.custom_id})" if entry.custom_id is not None else "")


def say_more(found: int) -> None:
    """Where not all that were found are shown, how many are not."""
    if found > SHOWN:
        say(f"and {found - SHOWN} more")
