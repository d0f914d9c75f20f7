"""The records that a worker writes for a job: its result, its dead letter, or the job itself in another lane."""

from __future__ import annotations

from schemas import topics as names
from schemas.codec import InvalidJob, ReceivedJob, rejected_result, write_result
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result
from schemas.topics import Topics
from telemetry.clock import Clock
from telemetry.logs import get_logger, is_debugging
from telemetry.metrics import Metrics
from workers.inference.context import Finish, JobContext
from workers.inference.job_identity import IDENTITY, identity_headers, job_letter, origin_header
from workers.inference.results import Results
from workers.stage.record import Failure, Header, Output, Record

_STAMPS = IDENTITY | {names.DEADLINE, names.JOB_ORIGIN}

log = get_logger()


class Outputs:
    """Makes the records of results and dead letters, and counts both in the metrics."""

    def __init__(self, results: Results, topics: Topics, clock: Clock, metrics: Metrics) -> None:
        self._results = results
        self._topics = topics
        self._clock = clock
        self._outcomes = metrics.jobs.begin()
        self._dead_letters = metrics.dead_letters
        self._dead_letters.begin()

    def of(self, job: JobContext, finish: Finish) -> list[Output]:
        """Return the records of a job's end."""
        if finish.moved is not None:
            return [finish.moved]
        if isinstance(finish.letter, InvalidJob):
            return self.rejected(job.record, finish.letter, by_engine=finish.by_engine)
        if isinstance(finish.letter, Failure):
            return self.given_up(job.record, job.received, finish.letter)
        return self.settled(job.received, finish.result) if finish.result is not None else []

    def settled(self, received: ReceivedJob, result: Result) -> list[Output]:
        """Return the record of `model_results` that has the result.

        If the result is too large for a record, a failed result with the code `result_too_large` replaces it.
        """
        return self.written(received, write_result(result), result.outcome)

    def written(self, received: ReceivedJob, value: bytes, outcome: Outcome) -> list[Output]:
        """Return the record of a result, as `settled` does. `value` is the result as it is written."""
        if len(value) > MAX_RESULT_BYTES:
            message = (
                f"the result has {len(value)} bytes, and {MAX_RESULT_BYTES} are allowed; "
                "lower max_tokens, n, top_logprobs or metadata"
            )
            value, outcome = write_result(self._results.failed(received, "result_too_large", message)), Outcome.FAILED
        self._outcomes[outcome].inc()
        if is_debugging():
            log.debug(
                "A job has its result.",
                action="job-ended",
                job_id=received.job_id,
                webhook_id=received.webhook_id,
                tenant=received.tenant,
                outcome=str(outcome),
                traceparent=received.traceparent,
            )
        return [self._result(received, value, received.job.callback_url)]

    def rejected(self, record: Record, invalid: InvalidJob, *, by_engine: bool = False) -> list[Output]:
        """Return a `rejected` result, and the record as a dead letter.

        If `by_engine` is true, the reason is the engine's own text. The log leaves it out, because it may quote the
        prompt.
        """
        self._outcomes[Outcome.REJECTED].inc()
        reason = f"the engine refuses {invalid.problems[0].field}" if by_engine else str(invalid)
        log.info(
            f"Rejected job {invalid.job_id}: {reason}.",
            action="job-rejected",
            job_id=invalid.job_id,
            fields=[problem.field for problem in invalid.problems],
        )
        value = write_result(rejected_result(invalid, int(self._clock.time())))
        result = self._result(invalid, value, invalid.callback_url)
        return [result, self._dead_letter(record, invalid, invalid.letter_reason, str(invalid), 1)]

    def given_up(self, record: Record, received: ReceivedJob, failure: Failure) -> list[Output]:
        """Return a `failed` result, and the record as a dead letter."""
        result = self._results.failed(received, failure.code, failure.message)
        letter = self._dead_letter(record, received, failure.code, failure.message, failure.attempts)
        return [*self.settled(received, result), letter]

    def _result(self, whose: ReceivedJob | InvalidJob, value: bytes, callback_url: str | None) -> Output:
        headers = identity_headers(whose.tenant, whose.job_id, whose.webhook_id, whose.traceparent)
        if callback_url is not None:
            headers.append((names.CALLBACK_URL, callback_url.encode()))
        return Output(self._topics.results, value, whose.job_id.encode(), headers)

    def _dead_letter(
        self, record: Record, whose: ReceivedJob | InvalidJob, reason: str, detail: str, attempts: int
    ) -> Output:
        self._dead_letters.labels(reason).inc()
        return job_letter(self._topics.dead_letters, record, whose, reason, detail, attempts)


def moved(record: Record, received: ReceivedJob, lane: str, why: Header) -> Output:
    """Return the record for another lane, with the job's identity and deadline from its first lane.

    `why` is the header that counts the job's forwards or deferrals.
    """
    carried = [(name, value) for name, value in record.headers or () if name not in _STAMPS and name != why[0]]
    identity = identity_headers(received.tenant, received.job_id, received.webhook_id, received.traceparent)
    stamps = [*identity, origin_header(received), (names.DEADLINE, str(received.deadline_ms).encode()), why]
    return Output(lane, record.value, record.key, carried + stamps, record.partition)
