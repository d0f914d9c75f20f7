"""Counts results for the caller, writes one line for each, and reports failures by reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from cli.shared.errors import say
from cli.shared.failures import Failures, name_of
from cli.shared.output import without_lines
from cli.shared.terminal import harmless

if TYPE_CHECKING:
    from rich.progress import Progress

    from cli.shared.output import OrderedLines
    from producers.newest import Moment
    from producers.receipts import ReceiptEntry
    from producers.results import Settled
    from schemas.result import Label, Rank, Result


class _Line(NamedTuple):
    """The place of a job's written result: the file, and the line's number in the file, from 0."""

    out: TextIO
    number: int


@dataclass(slots=True)
class Answers:
    """The results received so far."""

    entries: Mapping[str, ReceiptEntry | None] | None
    """Maps the id of each wanted job to the job's entry in a receipt; None if all jobs are wanted."""
    out: TextIO | None
    write: Callable[[Result, ReceiptEntry | None], str]
    """Formats a result as a line."""
    errors: TextIO | None = None
    """The file for results of jobs that did not succeed; None if such results also go to `out`."""
    ordered: OrderedLines | None = None
    """Keeps the lines until `settle` writes them in the order of `entries`."""
    most: int | None = None
    """The largest number of results to write; None to write all."""
    unwritten: int = 0
    """The number of results that were not written because of `most`."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """Outcomes of the named jobs, by job id."""
    failures: Failures = field(init=False)
    counts: Counter[str] = field(default_factory=Counter)
    """The number of jobs with each outcome. It is filled even if all jobs are wanted, when `outcomes` stays empty."""
    _newest: dict[str, Moment] = field(default_factory=dict)
    """Maps a job's id to the moment of the newest of its results that `take` was given."""
    _lines: dict[str, _Line] = field(default_factory=dict)
    """The place of each job's newest line, by job id."""
    _numbers: Counter[TextIO] = field(default_factory=Counter)
    _superseded: list[_Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.failures = Failures(self.entries)

    @property
    def open(self) -> int:
        """The number of jobs without a result."""
        return len(self.entries) - len(self.outcomes) if self.entries is not None else 0

    @property
    def failed(self) -> int:
        """The number of results whose outcome is not `succeeded`."""
        return self.counts.total() - self.counts["succeeded"]

    @property
    def well(self) -> bool:
        """True if every job succeeded."""
        return not self.open and not self.failed

    def add(self, result: Result) -> bool:
        """Count and write a result. A named job's later result replaces its earlier one.

        Return False if the job is not wanted, or if the result replaces an earlier one.
        """
        entry, earlier = None, None
        outcome = result.outcome.value
        if self.entries is not None:
            if result.job_id not in self.entries:
                return False
            entry, earlier = self.entries[result.job_id], self.outcomes.get(result.job_id)
            self.outcomes[result.job_id] = outcome
        self.counts[outcome] += 1
        if earlier is not None:
            self.counts -= Counter({earlier: 1})  # `-=` also removes an outcome whose count becomes 0
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
        """Add the tenant's results, but skip any that is older than an earlier result of its job.

        Return the number of added results that replace no earlier one.
        """
        first = 0
        for owner, result, moment in came:
            newest = self._newest.get(result.job_id)
            if owner != tenant or (newest is not None and moment <= newest):
                continue
            if self.entries is None or result.job_id in self.entries:
                self._newest[result.job_id] = moment
            first += self.add(result)
        return first

    def follow(self, firsts: Iterable[int], progress: Progress) -> None:
        """Show the progress of results that `add` or `take` counts, until every job has one or no more come."""
        bar = progress.add_task("answered", total=self.open, awaits="answers")
        for first in firsts:
            progress.update(bar, advance=first, failed=self.failed)
            self.flush()
            if not self.open:
                return

    def settle(self) -> None:
        """If `ordered` is set, write its lines in order; else remove the lines of superseded results from the files.

        Call this once at the end, also after Ctrl-C. A full disk raises OSError here, before a file has its new name.
        """
        if self.ordered is not None:
            self.ordered.write()
            self.flush()
            return
        stay = 0
        for out in {line.out for line in self._superseded}:
            numbers = {line.number for line in self._superseded if line.out is out}
            if not without_lines(out, numbers):
                stay += len(numbers)
        self._superseded.clear()
        self.flush()
        if stay:
            say(f"{stay} jobs were answered again meanwhile: the last line of each counts")

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
        """Flush both output files, so that other processes can read the lines written so far."""
        for out in (self.out, self.errors):
            if out is not None:
                out.flush()

    def tell(self) -> None:
        """Print the jobs that did not succeed, grouped by reason."""
        self.failures.tell()

    @property
    def found(self) -> str:
        """Text that says how many of the wanted results were found."""
        if self.entries is None:
            return f"{self.counts.total()} results"
        return f"{len(self.outcomes)} of {len(self.entries)} jobs have a result"

    @property
    def summary(self) -> list[str]:
        """The number of jobs with each outcome, as texts such as `3 succeeded`."""
        counts = [f"{count} {outcome}" for outcome, count in sorted(self.counts.items(), reverse=True)]
        return [*counts, *([f"{self.open} without a result"] if self.open else [])]


def as_line(result: Result, entry: ReceiptEntry | None) -> str:
    """Return the result's JSON as it is stored in Kafka."""
    from schemas.codec import write_result

    return write_result(result).decode()


def as_openai_line(result: Result, entry: ReceiptEntry | None) -> str:
    """Return the result as a line of an OpenAI Batch's output file.

    The answer has the format of the endpoint that the job's input line names, or of chat completions if the endpoint is
    unknown.
    """
    from schemas.openai import CHAT_COMPLETIONS
    from schemas.openai_answers import output_line

    url = entry.url if entry is not None and entry.url is not None else CHAT_COMPLETIONS
    return json.dumps(output_line(result, url), ensure_ascii=False)


def as_text(result: Result, entry: ReceiptEntry | None) -> str:
    """Format a result for a terminal: job, outcome and number of sources, and below them the answer or the error.

    Text of a model or a page is escaped and indented, so that it cannot control the terminal or look like a line of
    this command.
    """
    sources = f"{len(result.sources)} source{'' if len(result.sources) == 1 else 's'}"
    named = [name_of(entry)] if entry is not None else []
    head = "  ".join([*named, result.job_id, result.outcome.value, sources])
    text = result.error.message if result.error is not None else result.text or result.refusal or ""
    if result.choices is not None:
        text = "\n".join(f"{choice.index + 1}: {choice.text or choice.refusal or ''}" for choice in result.choices)
    text = in_words(result) or text
    return "\n".join([harmless(head), *(f"    {harmless(line, kept=_TAB)}" for line in text.split("\n"))])


_TAB = "\t"


def in_words(result: Result) -> str | None:
    """Return the answer of a job without a question as lines of text; None for a result without numbers."""
    from schemas.kinds import CLASSIFY, EMBED, KINDS, RERANK, SCORE

    writers: dict[str, Callable[[Any], str]] = {
        EMBED.field: _embeddings,
        RERANK.field: _ranks,
        SCORE.field: _scores,
        CLASSIFY.field: _labels,
    }
    answers = ((kind, getattr(result, kind.answer)) for kind in KINDS)
    return next((writers[kind.field](answer) for kind, answer in answers if answer is not None), None)


def _embeddings(rows: list[list[float]]) -> str:
    return f"{len(rows)} embeddings of {len(rows[0]) if rows else 0} numbers"


def _ranks(ranks: list[Rank]) -> str:
    return "\n".join(f"{rank.score:.4g}  document {rank.index}" for rank in ranks)


def _scores(scores: list[float]) -> str:
    return "\n".join(f"{score:.4g}  document {index}" for index, score in enumerate(scores))


def _labels(labels: list[Label]) -> str:
    return "\n".join(_label(index, each) for index, each in enumerate(labels))


def _label(index: int, label: Label) -> str:
    likeliest = max(label.probabilities, default=0.0)
    number = label.probabilities.index(likeliest) if label.probabilities else 0
    return f"{likeliest:.4g}  text {index}: {label.label or f'class {number}'}"
