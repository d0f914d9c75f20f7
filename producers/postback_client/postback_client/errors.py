"""Errors of this library.

A program that catches `PostbackError` catches all of them.

    PostbackError
    ├── Unreachable              no answer in time, after all repeats
    │   └── NotTrusted           the gateway's certificate or its TLS is not acceptable
    ├── GatewayRefused           the gateway answered with an error: `status`, `code`, `param`, `request_id`
    │   ├── InvalidRequest       400, 413, 415, 416, 422: the request must be changed
    │   ├── Unauthorized         401: no key, or one that is not valid
    │   ├── Forbidden            403: the key's scopes or the tenant's settings do not allow it
    │   ├── NotFound             404: no such object, or another tenant's
    │   ├── Conflict             409: the object's state does not allow it, or an idempotency key was used before
    │   ├── RateLimited          429, after all repeats
    │   └── GatewayFailed        5xx, after all repeats
    ├── UnreadableAnswer         the answer, event or record does not have its documented form
    ├── UnusableJob              a job cannot be written as JSON
    ├── SubmitFailed             some jobs were not accepted: `accepted`, `doubtful`, and the cause
    ├── StillWaiting             the time is up: `results` that came, and `job_ids` that have none
    ├── BatchStillRunning        the time is up: `batch` in its last known state
    ├── KafkaFailed              Kafka refused a request, or does not answer
    ├── UnusableKey              a text that is no key for callbacks; the error never shows it
    └── CallbackRefused          a callback that is not to be trusted: `reason`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from postback_client.batches import Batch
    from postback_client.wire import Result


class PostbackError(Exception):
    """The base of all errors of this library."""

    outcome_unknown = False
    """True if the gateway may have carried out the request, since not every try got a definite answer."""


class Unreachable(PostbackError):  # noqa: N818 - errors are named after what happened
    """No answer came in time, after all repeats."""


class NotTrusted(Unreachable):
    """The gateway's certificate or its TLS is not acceptable."""


class GatewayRefused(PostbackError):  # noqa: N818
    """The gateway answered with an error. The error's text is the gateway's message."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        problems: Sequence[Mapping[str, Any]] = (),
        request_id: str | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        """A stable name of the error, such as `job_not_found`."""
        self.param = param
        """The name of the field that caused the error."""
        self.problems = problems
        """For a request with several jobs, each problem as `index`, `field` and `reason`."""
        self.request_id = request_id
        """The request's name in the gateway's log."""
        self.final = final
        """True if the gateway stated that a repeated request cannot succeed."""


class InvalidRequest(GatewayRefused):
    """The request must be changed."""


class Unauthorized(GatewayRefused):
    """The request has no valid credential."""


class Forbidden(GatewayRefused):
    """The credential does not allow the request."""


class NotFound(GatewayRefused):
    """The object does not exist, or belongs to another tenant."""


class Conflict(GatewayRefused):
    """The object's state does not allow the request, or another request has used the idempotency key."""


class RateLimited(GatewayRefused):
    """A limit of the tenant or of the gateway was reached."""


class GatewayFailed(GatewayRefused):
    """The gateway could not do its work."""


def refusal_class(status: int) -> type[GatewayRefused]:
    """Return the class of errors with this status."""
    if status >= 500:
        return GatewayFailed
    known: dict[int, type[GatewayRefused]] = {
        401: Unauthorized,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        429: RateLimited,
    }
    return known.get(status, InvalidRequest)


class UnreadableAnswer(PostbackError):  # noqa: N818
    """An answer, event or record does not have its documented form."""


class UnusableJob(PostbackError):  # noqa: N818
    """A job cannot be written as JSON."""

    def __init__(self, index: int, kind: str) -> None:
        super().__init__(f"job {index} (counted from 0) cannot be written as JSON ({kind}); correct its members")


class SubmitFailed(PostbackError):  # noqa: N818
    """Some jobs were not accepted. `__cause__` is the error that ended the submission."""

    def __init__(self, accepted: Sequence[str], doubtful: Sequence[str], cause: Exception) -> None:
        super().__init__(f"{len(accepted)} jobs were accepted before the submission failed: {cause}")
        self.accepted = list(accepted)
        """Ids of the jobs that were certainly accepted."""
        self.doubtful = list(doubtful)
        """Ids of jobs that were sent without a definite answer: they may have been accepted."""


class StillWaiting(PostbackError):  # noqa: N818
    """The time is up, and some jobs have no result yet."""

    def __init__(self, job_ids: Sequence[str], results: Sequence[Result] = ()) -> None:
        super().__init__(f"{len(job_ids)} jobs have no result yet; the jobs go on")
        self.job_ids = list(job_ids)
        """Ids of the jobs without a result."""
        self.results = list(results)
        """Results that came in time; empty in an error of `stream`, which has yielded them already."""


class BatchStillRunning(PostbackError):  # noqa: N818
    """The time is up, and the batch has not ended."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(f"the batch {batch.id} is still {batch.status}; it goes on")
        self.batch = batch


class KafkaFailed(PostbackError):  # noqa: N818
    """Kafka refused a request, or does not answer."""


class UnusableKey(PostbackError):  # noqa: N818
    """A text is not a key for callbacks, or the library for keys of its kind is not installed."""


Reason = Literal[
    "missing_header",
    "malformed_timestamp",
    "timestamp_outside_tolerance",
    "no_matching_signature",
    "malformed_event",
    "other_tenant",
]


class CallbackRefused(PostbackError):  # noqa: N818
    """A callback is not to be trusted. Answer the request with status 401 or 400, and ignore its content."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
