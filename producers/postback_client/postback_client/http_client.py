"""The client over HTTPS.

with HttpClient("https://postback.example", key) as client:
    job_ids = client.submit([Job(prompt="Why is the sky blue?")])
    for result in client.stream(job_ids):
        print(result.text)
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import quote

from postback_client.batches import Batches
from postback_client.client import PostbackClient, Submitted
from postback_client.clock import MACHINE, ClientClock, TimeLimit
from postback_client.errors import PostbackError, StillWaiting, SubmitFailed, UnreadableAnswer
from postback_client.files import Files
from postback_client.http_session import HttpSession, warn
from postback_client.job import JobState, Lane, NamedJob, named_jobs
from postback_client.server_sent import EventFeed
from postback_client.shapes import parsed, read
from postback_client.wire import Job, Result

JOBS = "/v1/jobs"
JOBS_TOGETHER = 500
"""The maximum number of jobs in one request; the gateway's default limit is 1000."""
BYTES_TOGETHER = 8 * 1024 * 1024
"""The maximum number of bytes of the jobs in one request; the gateway's default limit is 16 MiB."""
PATIENCE_SECONDS = 120.0
_RESULTS = "inference.*"


class HttpClient(PostbackClient):
    """A tenant's client of the gateway, for use by one thread.

    The client keeps connections open. `url` is the gateway's URL, with or without `/v1`. `ca_file` is a file with the
    certificates of a private CA. A request that fails for a transient reason is repeated for up to `patience_seconds`;
    after two seconds without an answer, `tell` gets a sentence that says until when, by default a warning of the logger
    `postback_client`. Another thread may call `tell`. Raises ValueError for a URL that is not `https://`, unless the
    URL leads to this machine.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        ca_file: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        jobs_together: int = JOBS_TOGETHER,
        clock: ClientClock = MACHINE,
        tell: Callable[[str], None] = warn,
    ) -> None:
        self._clock = clock
        self._jobs_together = jobs_together
        self._http = HttpSession(url, key, ca_file=ca_file, patience_seconds=patience_seconds, clock=clock, tell=tell)
        self.files = Files(self._http)
        """The tenant's files, which are requests and answers of batches."""
        self.batches = Batches(self._http, self.files)
        """The tenant's batches. Each is a file of up to 50,000 requests."""

    def submit(
        self,
        jobs: Iterable[Job | Mapping[str, Any]],
        *,
        lane: Lane = "default",
        idempotency_key: str | None = None,
    ) -> list[str]:
        """Submit jobs, wait until all are accepted durably, and return their ids in the same order.

        With an `idempotency_key`, another process may repeat the call later: the gateway accepts the jobs once, and the
        ids are the same. Raises SubmitFailed. The jobs of requests that succeeded before the failure stay accepted.
        """
        key, accepted = idempotency_key or uuid.uuid4().hex, list[str]()
        together: list[NamedJob] = []
        try:
            for number, together in enumerate(self._parts(named_jobs(jobs, self._clock, idempotency_key))):
                self._send(together, lane, f"{key}-{number}")
                accepted += [job.job_id for job in together]
        except PostbackError as error:
            doubtful = [job.job_id for job in together] if error.outcome_unknown else []
            raise SubmitFailed(accepted, doubtful, error) from error
        return accepted

    def result(self, job_id: str) -> Result | None:
        """Return a job's result; None if it has none yet. Raises NotFound."""
        document = self._http.json("GET", _path(job_id))
        found = document.get("result") if isinstance(document, dict) else None
        return read(Result, found) if found is not None else None

    def status(self, job_id: str) -> str:
        """Return `queued`, `cancelling`, or a job's outcome. Raises NotFound."""
        return self.state(job_id).status

    def state(self, job_id: str) -> JobState:
        """Return a job's status, and the time before which it does not start. Raises NotFound."""
        return read(JobState, self._http.json("GET", _path(job_id)))

    def stream(self, job_ids: Iterable[str], timeout: float | None = None) -> Iterator[Result]:
        """Yield the result of each job, as soon as the job has one.

        The gateway is asked once for each job's result, and then its events are read. Raises StillWaiting after
        `timeout` seconds, and NotFound for an unknown job.
        """
        limit, awaited = TimeLimit(self._clock, timeout), dict.fromkeys(job_ids)
        if not awaited:
            return
        with closing(EventFeed(self._http, _RESULTS, limit)) as feed:
            feed.open()  # the feed opens before the requests below, so that later results come as events
            for job_id in list(awaited):
                if (result := self.result(job_id)) is not None:
                    del awaited[job_id]
                    yield result
            for event in feed.events() if awaited else ():
                result = _result_of(event.data)
                if result is not None and result.job_id in awaited:
                    del awaited[result.job_id]
                    yield result
                if not awaited:
                    return
        if awaited:
            raise StillWaiting(list(awaited))

    def cancel(self, job_id: str) -> None:
        """Ask for a job's cancellation.

        Raises Conflict if the job already has its result, and NotFound if it is unknown.
        """
        self._http.call("POST", f"{_path(job_id)}/cancel")

    def close(self) -> None:
        """Disconnect."""
        self._http.close()

    def _send(self, jobs: list[NamedJob], lane: Lane, key: str) -> None:
        with Submitted(jobs[0].job_id if len(jobs) == 1 else None) as submitted:
            self._http.call(
                "POST",
                JOBS,
                params={"lane": lane},
                body=b"[%b]" % b",".join(job.body for job in jobs),
                headers={"content-type": "application/json", "idempotency-key": key, **submitted.headers},
            )

    def _parts(self, jobs: Iterable[NamedJob]) -> Iterator[list[NamedJob]]:
        """Divide jobs into requests.

        The same jobs are always divided in the same way, so that a repeated call sends the same requests.
        """
        part, size = list[NamedJob](), 0
        for job in jobs:
            if part and (len(part) >= self._jobs_together or size + len(job.body) > BYTES_TOGETHER):
                yield part
                part, size = [], 0
            part.append(job)
            size += len(job.body)
        if part:
            yield part


def _path(job_id: str) -> str:
    return f"{JOBS}/{quote(job_id, safe='')}"


def _result_of(data: str) -> Result | None:
    """Return the result of an event; None for an event in an unknown form, which a newer gateway may send."""
    try:
        event = parsed(data)
        return read(Result, event.get("data")) if isinstance(event, dict) else None
    except UnreadableAnswer:
        return None
