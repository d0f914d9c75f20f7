"""The interface that both transports have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from postback_client.errors import StillWaiting
from postback_client.job import Job, Lane
from postback_client.result import Result


class PostbackClient(Protocol):
    """Submits jobs, and receives their results. Only one thread at a time may use a client.

    All methods raise PostbackError; `postback_client.errors` lists its subclasses.
    """

    def submit(self, jobs: Iterable[Job | Mapping[str, Any]], *, lane: Lane = "default") -> list[str]:
        """Submit jobs, wait until all are accepted durably, and return their ids in the same order.

        Even if this call has to send a request again, each job is accepted once. A job without a `job_id` gets one.
        Raises SubmitFailed.
        """
        ...

    def stream(self, job_ids: Iterable[str], timeout: float | None = None) -> Iterator[Result]:
        """Yield the result of each job, as soon as the job has one. Raises StillWaiting after `timeout` seconds."""
        ...

    def wait(self, job_ids: Iterable[str], timeout: float | None = None) -> list[Result]:
        """Wait for the results of all jobs, and return them in the order of the ids.

        Raises StillWaiting with the results so far.
        """
        ...

    def cancel(self, job_id: str) -> None:
        """Ask for a job's cancellation. A job that already has a result keeps that result.

        Over HTTPS, raises Conflict if the job already has its result; over Kafka, the client cannot know this.
        """
        ...

    def close(self) -> None:
        """Disconnect."""
        ...

    def __enter__(self) -> Self:
        """Return the client."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        ...


def collected(job_ids: Sequence[str], results: Iterator[Result]) -> list[Result]:
    """Read the stream to its end, and return its results in the order of the ids.

    Raises StillWaiting with the results so far.
    """
    found: dict[str, Result] = {}
    try:
        for result in results:
            found[result.job_id] = result
    except StillWaiting as waiting:
        raise StillWaiting(waiting.job_ids, list(found.values())) from None
    return [found[job_id] for job_id in job_ids]
