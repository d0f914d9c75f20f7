"""Results on their way to who asked for them: counted, written one a line, and told of where they are no success."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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
    """What came back of jobs."""

    entries: Mapping[str, Entry | None] | None
    """What is known of the jobs that are wanted, by id; None where all are."""
    out: TextIO | None
    write: Callable[[Result, Entry | None], str]
    """A result's line."""
    errors: TextIO | None = None
    """Where lines go of what did not succeed, if not to `out`."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """By job id, of the jobs that were named; of the last one where a job has several results."""
    _of_all: Counter[str] = field(default_factory=Counter)
    """How many results of each outcome, where all are wanted: those of a week would not fit into memory by id."""
    unsuccessful: list[str] = field(default_factory=list)
    """A sentence for each of them, as many as are shown."""
    _failures: int = 0

    @property
    def open(self) -> int:
        """How many jobs have no result yet."""
        return len(self.entries) - len(self.outcomes) if self.entries is not None else 0

    @property
    def well(self) -> bool:
        """Whether every job succeeded."""
        return not self.open and self.counts.keys() <= {"succeeded"}

    def add(self, result: Result) -> bool:
        """Whether it is wanted, and the first of its job where jobs are named."""
        entry, is_first = None, True
        if self.entries is None:
            self._of_all[result.outcome.value] += 1
        elif result.job_id not in self.entries:
            return False
        else:
            entry, is_first = self.entries[result.job_id], result.job_id not in self.outcomes
            self.outcomes[result.job_id] = result.outcome.value
        if result.outcome.value != "succeeded":
            self._note_failure(result, entry)
        out = self.errors if self.errors is not None and result.outcome.value != "succeeded" else self.out
        if out is not None:
            out.write(self.write(result, entry) + "\n")
        return is_first

    def take(self, came: Iterable[tuple[str, Result]], tenant: str) -> int:
        """Add those of a tenant; how many of them are the first of a job that is wanted."""
        return sum(self.add(result) for owner, result in came if owner == tenant)

    def flush(self) -> None:
        """Have what is written be where others see it."""
        for out in (self.out, self.errors):
            if out is not None:
                out.flush()

    def _note_failure(self, result: Result, entry: Entry | None) -> None:
        self._failures += 1
        if len(self.unsuccessful) < SHOWN:
            name = f"{name_of(entry)}: " if entry is not None else ""
            why = f": {result.error.message}" if result.error else ""
            self.unsuccessful.append(f"{name}{result.job_id} {result.outcome}{why}")

    def tell(self) -> None:
        """Say which jobs did not succeed."""
        for sentence in self.unsuccessful:
            say(sentence)
        say_more(self._failures)

    @property
    def found(self) -> str:
        """How much of what was asked for is there, as people read it."""
        if self.entries is None:
            return f"{self._of_all.total()} results"
        return f"{len(self.outcomes)} of {len(self.entries)} jobs have a result"

    @property
    def counts(self) -> Counter[str]:
        """How many jobs, or results where no jobs are named, ended in each outcome."""
        return Counter(self.outcomes.values()) if self.entries is not None else self._of_all

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


def as_line(result: Result, entry: Entry | None) -> str:
    """A result as it stands in Kafka."""
    from schemas.codec import write_result

    return write_result(result).decode()


def as_openai_line(result: Result, entry: Entry | None) -> str:
    """A line of an OpenAI Batch's output file, in the shape of what the job's own line asked where that is known."""
    from schemas.openai import CHAT_COMPLETIONS, output_line

    url = entry.url if entry is not None and entry.url is not None else CHAT_COMPLETIONS
    return json.dumps(output_line(result, url), ensure_ascii=False)
