"""Results on their way to the person who asked for them: counted, written one a line, and told of where they failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TextIO

from console.errors import say
from console.failures import Failures, name_of
from console.output import without_lines
from console.terminal import harmless

if TYPE_CHECKING:
    from console.ordered import OrderedLines
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
    """The results of jobs, as far as they have come."""

    entries: Mapping[str, ReceiptEntry | None] | None
    """The jobs that are wanted, by id, with their entries in a receipt; None where all jobs are."""
    out: TextIO | None
    write: Callable[[Result, ReceiptEntry | None], str]
    """A result's line."""
    errors: TextIO | None = None
    """The file for results that did not succeed, if it is not `out`."""
    ordered: OrderedLines | None = None
    """Keeps the lines until `settle` writes them in the order of `entries`."""
    most: int | None = None
    """How many results are written at most; None for all."""
    unwritten: int = 0
    """How many results were not written because of that."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """By job id, of the jobs that were named."""
    failures: Failures = field(init=False)
    counts: Counter[str] = field(default_factory=Counter)
    """Jobs by outcome. Where all are wanted, no more is kept: ids of a week's results would not fit into memory."""
    _newest: dict[str, Moment] = field(default_factory=dict)
    """By job id, the moment of the newest result that `take` was given."""
    _lines: dict[str, _Line] = field(default_factory=dict)
    """By job id, the line of that result."""
    _numbers: Counter[TextIO] = field(default_factory=Counter)
    _superseded: list[_Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.failures = Failures(self.entries)

    @property
    def open(self) -> int:
        """How many jobs have no result yet."""
        return len(self.entries) - len(self.outcomes) if self.entries is not None else 0

    @property
    def failed(self) -> int:
        """How many results are no success."""
        return self.counts.total() - self.counts["succeeded"]

    @property
    def well(self) -> bool:
        """Whether every job succeeded."""
        return not self.open and not self.failed

    def add(self, result: Result) -> bool:
        """Count and write a result. True if it is the first of a named job; a later one of the job replaces it."""
        entry, earlier = None, None
        outcome = result.outcome.value
        if self.entries is not None:
            if result.job_id not in self.entries:
                return False
            entry, earlier = self.entries[result.job_id], self.outcomes.get(result.job_id)
            self.outcomes[result.job_id] = outcome
        self.counts[outcome] += 1
        if earlier is not None:
            self.counts -= Counter({earlier: 1})  # drops an outcome that no job has any more
        self.failures.discard(result.job_id)
        if outcome != "succeeded":
            self.failures.add(result.job_id, f"{outcome}: {result.error.message}" if result.error else outcome)
        out = self.errors if self.errors is not None and outcome != "succeeded" else self.out
        if out is not None and (self.most is None or self.counts.total() <= self.most):
            self._write(out, self.write(result, entry), result.job_id)
        elif out is not None:
            self.unwritten += 1
        return earlier is None

    def take(self, came: Iterable[Settled], tenant: str) -> int:
        """Add a tenant's results that are the newest of their jobs so far; returns how many are a job's first."""
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
        """Leave each job one line, that of its newest result, and write lines that were kept for their order.

        Call it at the end, however that comes.
        """
        if self.ordered is not None:
            self.ordered.write()
            return
        stay = 0
        for out in {line.out for line in self._superseded}:
            numbers = {line.number for line in self._superseded if line.out is out}
            if not without_lines(out, numbers):
                stay += len(numbers)
        self._superseded.clear()
        if stay:
            say(f"{stay} jobs were answered again meanwhile: of their lines the last ones count")

    def _write(self, out: TextIO, line: str, job_id: str) -> None:
        if self.ordered is not None:
            self.ordered.put(out, line, job_id)
            return
        out.write(line + "\n")
        if self.entries is None:
            return
        if (earlier := self._lines.get(job_id)) is not None:
            self._superseded.append(earlier)
        self._lines[job_id] = _Line(out, self._numbers[out])
        self._numbers[out] += 1

    def flush(self) -> None:
        """Make the lines visible to other readers of the files."""
        for out in (self.out, self.errors):
            if out is not None:
                out.flush()

    def tell(self) -> None:
        """Say which jobs did not succeed, grouped by reason."""
        self.failures.tell()

    @property
    def found(self) -> str:
        """How many of the wanted results are there, for people."""
        if self.entries is None:
            return f"{self.counts.total()} results"
        return f"{len(self.outcomes)} of {len(self.entries)} jobs have a result"

    @property
    def summary(self) -> list[str]:
        """The counts, for people."""
        counts = [f"{count} {outcome}" for outcome, count in sorted(self.counts.items(), reverse=True)]
        return [*counts, *([f"{self.open} without a result"] if self.open else [])]


def as_line(result: Result, entry: ReceiptEntry | None) -> str:
    """A result as it stands in Kafka."""
    from schemas.codec import write_result

    return write_result(result).decode()


def as_openai_line(result: Result, entry: ReceiptEntry | None) -> str:
    """A line of an OpenAI Batch's output file, in the shape that the job's own line asked for where that is known."""
    from schemas.openai import CHAT_COMPLETIONS, output_line

    url = entry.url if entry is not None and entry.url is not None else CHAT_COMPLETIONS
    return json.dumps(output_line(result, url), ensure_ascii=False)


def as_text(result: Result, entry: ReceiptEntry | None) -> str:
    """A result for a person at a terminal: job, outcome and number of sources, below them the answer or the error.

    No text of a model or a page can steer the terminal, or pass for a line of this command.
    """
    sources = f"{len(result.sources)} source{'' if len(result.sources) == 1 else 's'}"
    named = [name_of(entry)] if entry is not None else []
    head = "  ".join([*named, result.job_id, result.outcome.value, sources])
    text = result.error.message if result.error is not None else result.text or ""
    return "\n".join([harmless(head), *(f"    {harmless(line, kept=_TAB)}" for line in text.split("\n"))])


_TAB = "\t"
