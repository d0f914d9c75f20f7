"""Judges each callback of the demo, and makes the closing lines, without I/O."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cli.devkit.receiver import Received
from cli.devkit.site import Question

EngineName = Literal["vllm", "echo"]

_QUOTED_AROUND = 40
_QUOTED_MOST = 160
_NAMED = 10


@dataclass(slots=True)
class DemoJob:
    """One question that went out as a job."""

    job_id: str
    question: Question
    source: str
    """The URL of the page that has the answer."""
    sent_at: float = 0.0
    """Unix seconds; set when the job is handed to the producer."""


@dataclass(frozen=True, slots=True)
class DemoVerdict:
    """The judgement of one callback."""

    asked: DemoJob
    text: str
    sources: Sequence[str]
    seconds: float
    """Seconds from submit to callback."""
    problems: tuple[str, ...]
    """The faults of the callback; empty if it is right."""

    def lines(self, place: str) -> Iterator[str]:
        """Lines to print: the question, the answer with its sources, and its problems."""
        yield f"{place}  {self.asked.question.text}"
        indent = " " * (len(place) + 2)
        named = ", ".join(self.sources) or "no source"
        yield f"{indent}{_around(self.text, self.asked.question.answer)}"
        yield f"{indent}{named} · signature verified · {self.seconds:.2f} s"
        for problem in self.problems:
            yield f"{indent}WRONG: {problem}"


def judged(asked: DemoJob, received: Received) -> DemoVerdict:
    """Compare a verified callback with the expected answer and source of its job, and return the verdict."""
    result: dict[str, Any] = received.event["data"]
    text, sources = result.get("text") or "", result.get("sources") or []
    problems = [
        *_outcome_problems(received.event["type"], result),
        *([] if has_answer(text, asked.question.answer) else [f'the answer lacks "{asked.question.answer}"']),
        *([] if asked.source in sources else [f"{asked.source} is not among the sources"]),
    ]
    return DemoVerdict(asked, text, sources, received.received_at - asked.sent_at, tuple(problems))


def _outcome_problems(kind: str, result: Mapping[str, Any]) -> Iterator[str]:
    if kind != "inference.succeeded" or result.get("outcome") != "succeeded":
        error = result.get("error") or {}
        yield f"the outcome is {result.get('outcome')}: {error.get('message', 'no reason given')}"


def has_answer(text: str, answer: str) -> bool:
    """True if the text has the answer, ignoring case. A number inside a longer number is no match."""
    return _found(text, answer) is not None


def _found(text: str, answer: str) -> re.Match[str] | None:
    return re.search(rf"(?<!\d){re.escape(answer)}(?!\d)", text, re.IGNORECASE)


def _around(text: str, answer: str) -> str:
    """Return the text on one line; a long text is cut to the part around the answer."""
    line = " ".join(text.split())
    if len(line) <= _QUOTED_MOST:
        return line or "(nothing)"
    found = _found(line, answer)
    begin = max(0, found.start() - _QUOTED_AROUND) if found else 0
    end = min(len(line), begin + _QUOTED_MOST)
    return f"{'…' if begin else ''}{line[begin:end]}{'…' if end < len(line) else ''}"


@dataclass(slots=True)
class DemoTally:
    """The callbacks so far."""

    asked: dict[str, DemoJob]
    """The jobs by id."""
    verdicts: dict[str, DemoVerdict] = field(default_factory=dict)
    webhook_ids: dict[str, str | None] = field(default_factory=dict)
    repeats: int = 0
    """The number of verified callbacks for jobs that already had a callback, which at-least-once delivery permits."""
    problems: list[str] = field(default_factory=list)
    """Problems that belong to no single answer."""

    @property
    def complete(self) -> bool:
        """True if every job has had a verified callback."""
        return len(self.verdicts) == len(self.asked)

    def add(self, received: Received) -> DemoVerdict | None:
        """Return the verdict on a job's first verified callback; None for any other callback."""
        if not received.verified:
            self.problems.append(f"a callback was not verified: {received.problem}")
            return None
        job_id = received.event["data"]["id"]
        if job_id not in self.asked:
            self.problems.append("a callback came for a job that was not submitted")
            return None
        if job_id in self.verdicts:
            self._repeated(job_id, received.webhook_id)
            return None
        verdict = judged(self.asked[job_id], received)
        self.verdicts[job_id], self.webhook_ids[job_id] = verdict, received.webhook_id
        return verdict

    def _repeated(self, job_id: str, webhook_id: str | None) -> None:
        self.repeats += 1
        if self.webhook_ids[job_id] != webhook_id:
            self.problems.append(f"{job_id} was repeated with another webhook-id")

    def settled(self, results: Counter[str]) -> None:
        """Note a problem for each job without exactly one result. `results` counts the committed results."""
        for job_id in self.asked:
            if results[job_id] != 1:
                self.problems.append(f"{job_id} has {results[job_id]} results in Kafka instead of one")

    @property
    def right(self) -> int:
        """The number of jobs with a right callback."""
        return sum(not verdict.problems for verdict in self.verdicts.values())

    @property
    def well(self) -> bool:
        """True if every callback is right and there are no other problems."""
        return self.right == len(self.asked) and not self.problems

    def summary(self, engine: EngineName) -> Iterator[str]:
        """The closing lines, to print."""
        total, verified = len(self.asked), len(self.verdicts)
        seconds = sorted(verdict.seconds for verdict in self.verdicts.values())
        yield f"{verified} of {total} answered, {self.right} {_RIGHT[engine]}, {verified} signatures verified"
        if not self.problems:
            yield "Kafka has exactly one settled result for each job"
        if self.repeats:
            yield f"{self.repeats} callbacks were repeated with the same webhook-id, as a sender may"
        if seconds:
            percentiles = f"p50 {percentile(seconds, 0.5):.2f} s, p99 {percentile(seconds, 0.99):.2f} s"
            yield f"from submit to callback: {percentiles}, with all jobs submitted at once"
        if engine == "echo":
            yield _ECHO_NOTE
        missing = [job_id for job_id in self.asked if job_id not in self.verdicts]
        for problem in [*(f"{job_id} has had no callback" for job_id in missing), *self.problems][:_NAMED]:
            yield f"WRONG: {problem}"


_RIGHT: dict[EngineName, str] = {"vllm": "right with the right source", "echo": "with the right page in the prompt"}
_ECHO_NOTE = (
    "the echo engine repeats its prompt, so nothing was answered here: the demo checked that the page's fact is in the "
    "prompt, and its URL among the sources; `scripts/demo` without --engine asks a model"
)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the percentile by nearest rank: the smallest value with at least `share` of all values at or below it."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
