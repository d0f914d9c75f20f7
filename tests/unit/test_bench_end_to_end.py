"""The bench detects a run's end by existing results, not by the number of settled records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench import end_to_end
from bench.end_to_end import DEFERRED, SETTLED
from bench.fleet import Kafka, Sample
from schemas.settings import KafkaSettings

JOBS = 10


class Worker:
    """A worker whose samples give the numbers of settled and deferred records; the last sample repeats."""

    def __init__(self, *said: tuple[int, int]) -> None:
        self._said = list(said)

    def sample(self) -> Sample:
        settled, deferred = self._said.pop(0) if len(self._said) > 1 else self._said[0]
        return Sample(float(settled), {SETTLED: settled, DEFERRED: deferred}, 0.0)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of results that the bench finds at each look; the last number repeats."""
    counts: list[int] = []

    def found(kafka: KafkaSettings) -> Iterator[str]:
        return map(str, range(counts.pop(0) if len(counts) > 1 else counts[0]))

    monkeypatch.setattr(end_to_end, "answered_jobs", found)
    monkeypatch.setattr(end_to_end, "LOOK_SECONDS", 0.0)
    return counts


def finished(worker: Worker) -> float:
    """The number of settled records at which the run ended."""
    commands: Any = [worker]
    samples, _ = end_to_end.wait_until_finished(KafkaSettings(), Kafka("nowhere"), commands, JOBS)
    return samples[0].at


def test_a_run_ends_when_every_job_is_settled_and_has_a_result(results: list[int]) -> None:
    results += [JOBS]
    assert finished(Worker((4, 0), (JOBS, 0))) == JOBS


def test_deferred_jobs_are_settled_twice_and_end_no_run_before_they_have_results(results: list[int]) -> None:
    results += [3, 7, JOBS]
    assert finished(Worker((JOBS, 7), (13, 7), (17, 7))) == 17


def test_results_that_are_seen_late_do_not_lengthen_the_run(results: list[int]) -> None:
    results += [9, 9, JOBS]
    assert finished(Worker((JOBS, 0), (JOBS + 5, 0))) == JOBS


def test_a_run_with_missing_results_ends_with_their_number(results: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    results += [9]
    monkeypatch.setattr(end_to_end, "STILL_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="10 jobs have 9 results"):
        finished(Worker((JOBS, 0)))
