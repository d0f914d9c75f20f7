"""Results on their way to who asked for them: counted, written one a line, and told of where they are no success."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TextIO

from console.errors import say
from console.grouped import SHOWN, say_more
from console.output import without_lines

if TYPE_CHECKING:
    from producers.newest import Moment
    from producers.receipts import ReceiptEntry
    from producers.results import Settled
    from schemas.result import Result


class _Line(NamedTuple):
    """Where a job's result was written: the file, and the line in it, from 0."""

    out: TextIO
    number: int


@dataclass(slots=True)
class Answers:
    """What came back of jobs."""

    entries: Mapping[str, ReceiptEntry | None] | None
    """What is known of the jobs that are wanted, by id; None where all are."""
    out: TextIO | None
    write: Callable[[Result, ReceiptEntry | None], str]
    """A result's line."""
    errors: TextIO | None = None
    """Where lines go of what did not succeed, if not to `out`."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """By job id, of the jobs that were named."""
    _of_all: Counter[str] = field(default_factory=Counter)
    """How many results of each outcome, where all are wanted: those of a week would not fit into memory by id."""
    _unsuccessful: dict[str, str] = field(default_factory=dict)
    """A sentence for each job that did not succeed, as many as are shown."""
    _newest: dict[str, Moment] = field(default_factory=dict)
    """By job id, the moment of the result that counts, of those that `take` was given."""
    _lines: dict[str, _Line] = field(default_factory=dict)
    """By job id, of the same."""
    _written: Counter[TextIO] = field(default_factory=Counter)
    _superseded: list[_Line] = field(default_factory=list)

    @property
    def open(self) -> int:
        """How many jobs have no result yet."""
        return len(self.entries) - len(self.outcomes) if self.entries is not None else 0

    @property
    def well(self) -> bool:
        """Whether every job succeeded."""
        return not self.open and self.counts.keys() <= {"succeeded"}

    def add(self, result: Result) -> bool:
        """Whether it is wanted, and the first of its job where jobs are named. A later one of a job counts instead."""
        entry, is_first = None, True
        outcome = result.outcome.value
        if self.entries is None:
            self._of_all[outcome] += 1
        elif result.job_id not in self.entries:
            return False
        else:
            entry, is_first = self.entries[result.job_id], result.job_id not in self.outcomes
            self.outcomes[result.job_id] = outcome
        self._unsuccessful.pop(result.job_id, None)
        if outcome != "succeeded":
            self._note_failure(result, entry)
        out = self.errors if self.errors is not None and outcome != "succeeded" else self.out
        if out is not None:
            self._write(out, self.write(result, entry), result.job_id)
        return is_first

    def take(self, came: Iterable[Settled], tenant: str) -> int:
        """Add those of a tenant that are the newest of their jobs so far; how many are the first of a wanted job."""
        first = 0
        for owner, result, moment in came:
            newest = self._newest.get(result.job_id)
            if owner != tenant or (newest is not None and moment <= newest):
                continue
            if self.entries is None or result.job_id in self.entries:
                self._newest[result.job_id] = moment
            first += self.add(result)
        return first

    def settle(self) -> None:
        """Take the lines out again whose jobs have a newer result, where they stand in files: call it at the end."""
        stay = 0
        for out in {line.out for line in self._superseded}:
            numbers = {line.number for line in self._superseded if line.out is out}
            if not without_lines(out, numbers):
                stay += len(numbers)
        self._superseded.clear()
        if stay:
            say(f"{stay} jobs were answered again meanwhile: of their lines the last ones count")

    def _write(self, out: TextIO, line: str, job_id: str) -> None:
        out.write(line + "\n")
        if self.entries is None:
            return
        if (earlier := self._lines.get(job_id)) is not None:
            self._superseded.append(earlier)
        self._lines[job_id] = _Line(out, self._written[out])
        self._written[out] += 1

    def flush(self) -> None:
        """Have what is written be where others see it."""
        for out in (self.out, self.errors):
            if out is not None:
                out.flush()

    def _note_failure(self, result: Result, entry: ReceiptEntry | None) -> None:
        if len(self._unsuccessful) < SHOWN:
            name = f"{name_of(entry)}: " if entry is not None else ""
            why = f": {result.error.message}" if result.error else ""
            self._unsuccessful[result.job_id] = f"{name}{result.job_id} {result.outcome}{why}"

    def tell(self) -> None:
        """Say which jobs did not succeed."""
        for sentence in self._unsuccessful.values():
            say(sentence)
        say_more(self.counts.total() - self.counts["succeeded"], len(self._unsuccessful))

    @property
    def found(self) -> str:
        """How much of what was asked for is there, as people read it."""
        if self.entries is None:
            return f"{self._of_all.total()} results"
        return f"{len(self.outcomes)} of {len(self.entries)} jobs have a result"

    @property
    def counts(self) -> Counter[str]:
        """How many jobs ended in each outcome."""
        return Counter(self.outcomes.values()) if self.entries is not None else self._of_all

    @property
    def summary(self) -> list[str]:
        """The counts as people read them."""
        counts = [f"{count} {outcome}" for outcome, count in sorted(self.counts.items(), reverse=True)]
        return [*counts, *([f"{self.open} without a result"] if self.open else [])]


def name_of(entry: ReceiptEntry) -> str:
    """What the producer knows a job by."""
    return f"line {entry.line}" + (f" ({entry.custom_id})" if entry.custom_id is not None else "")


def as_line(result: Result, entry: ReceiptEntry | None) -> str:
    """A result as it stands in Kafka."""
    from schemas.codec import write_result

    return write_result(result).decode()


def as_openai_line(result: Result, entry: ReceiptEntry | None) -> str:
    """A line of an OpenAI Batch's output file, in the shape of what the job's own line asked where that is known."""
    from schemas.openai import CHAT_COMPLETIONS, output_line

    url = entry.url if entry is not None and entry.url is not None else CHAT_COMPLETIONS
    return json.dumps(output_line(result, url), ensure_ascii=False)
