"""Messages about many lines or jobs: one for each reason, which names the first lines or jobs and counts the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cli.shared.errors import say

if TYPE_CHECKING:
    from producers.receipts import ReceiptEntry

Entries = Mapping[str, "ReceiptEntry | None"]

SHOWN = 20
"""A command shows at most this many messages of one kind, and counts the rest."""

PLACES = 3
"""A message names at most this many lines or jobs, and counts the rest."""
_MOST_REASONS = 1_000
_OTHER = "ended for other reasons"


def counted(first: Sequence[object], count: int) -> str:
    """Return the first few of `count` items, and the number of the others, as text."""
    more = count - PLACES
    return ", ".join(map(str, first[:PLACES])) + (f" and {more} more" if more > 0 else "")


def lines_named(numbers: Sequence[int], count: int | None = None) -> str:
    """Name the first few lines of a file, and count the others. `count` is the total if `numbers` has only some."""
    count = len(numbers) if count is None else count
    return f"line{'s' if count > 1 else ''} {counted(numbers, count)}"


def say_by_line(groups: Mapping[str, Sequence[int]]) -> None:
    """Print each message once with its lines, in the order of their first lines."""
    for message, numbers in sorted(groups.items(), key=lambda group: group[1][0])[:SHOWN]:
        say(f"{lines_named(numbers)}: {message}")
    say_more(len(groups))


def say_more(found: int, shown: int = SHOWN) -> None:
    """Print the number of messages that are not shown, if there are any."""
    if found > shown:
        say(f"and {found - shown} more")


@dataclass(slots=True)
class JobGroup:
    """The jobs that share one message: their number, and the ids of the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    """The first few job ids."""

    def add(self, job_id: str) -> None:
        """Count another job."""
        self.count += 1
        if self.count <= PLACES:
            self.first.append(job_id)

    def named(self, entries: Entries, verb: str) -> str:
        """Return text that names jobs: by lines, or by ids without a receipt. A single job gets both, and `verb`."""
        known = [entry for job_id in self.first if (entry := entries.get(job_id)) is not None]
        if self.count == 1:
            single = f"{self.first[0]} {verb}" if verb else self.first[0]
            return f"{name_of(known[0])}: {single}" if known else single
        if len(known) == len(self.first):
            return f"{lines_named([entry.line for entry in known], self.count)}:"
        return f"jobs {counted(self.first, self.count)}:"


@dataclass(slots=True)
class Failures:
    """The reasons why jobs did not succeed. After 1,000 different reasons, one text stands for all further reasons."""

    entries: Entries | None
    """The named jobs, in order. None if all jobs since a time are wanted, whose ids might not fit into memory."""
    verb: str = ""
    """A word to print between a single job and the reason, such as `was`."""
    _by_job: dict[str, str] = field(default_factory=dict)
    _groups: defaultdict[str, JobGroup] = field(default_factory=lambda: defaultdict(JobGroup))
    _reasons: dict[str, str] = field(default_factory=dict)

    def add(self, job_id: str, reason: str) -> None:
        """Note the reason of a job that did not succeed. A named job's later reason replaces its earlier one."""
        if len(self._reasons) >= _MOST_REASONS and reason not in self._reasons:
            reason = _OTHER
        reason = self._reasons.setdefault(reason, reason)  # jobs with the same reason refer to one string object
        if self.entries is None:
            self._groups[reason].add(job_id)
        else:
            self._by_job[job_id] = reason

    def discard(self, job_id: str) -> None:
        """Forget the reason of a named job that has a newer result."""
        self._by_job.pop(job_id, None)

    def tell(self) -> None:
        """Print each reason once with its jobs."""
        groups = list(self._grouped())
        for reason, group in groups[:SHOWN]:
            say(f"{group.named(self.entries or {}, self.verb)} {reason}")
        say_more(len(groups))

    def _grouped(self) -> Iterator[tuple[str, JobGroup]]:
        if self.entries is None:
            return iter(self._groups.items())
        groups: defaultdict[str, JobGroup] = defaultdict(JobGroup)
        for job_id in self.entries:
            if (reason := self._by_job.get(job_id)) is not None:
                groups[reason].add(job_id)
        return iter(groups.items())


def name_of(entry: ReceiptEntry) -> str:
    """Return the number of a job's line, with the producer's own name for the job."""
    return f"line {entry.line}" + (f" ({entry.custom_id})" if entry.custom_id is not None else "")
