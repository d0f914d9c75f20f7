"""Results with a callback, as a worker writes them to `model_results`."""

from __future__ import annotations

from schemas import topics as names
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from telemetry.clock import SystemClock

TENANT = "acme"
CLOCK = SystemClock()


def webhook_id(number: int) -> str:
    """Return the `webhook-id` of a result's event."""
    return f"msg_{number:032x}"


def result(number: int) -> bytes:
    """Return a result of 2 KB."""
    return write_result(
        Result(
            job_id=f"job_{number:032x}",
            outcome=Outcome.SUCCEEDED,
            model_id="tiny",
            engine="echo",
            text=f"Case {number}. " + "The page names the place, and the answer says so in one sentence. " * 26,
            created_at=int(CLOCK.time()),
        )
    )


def headers(number: int, url: str) -> list[tuple[str, bytes]]:
    """Return the headers of the result's record."""
    return [
        (names.TENANT, TENANT.encode()),
        (names.JOB_ID, f"job_{number:032x}".encode()),
        (names.WEBHOOK_ID, webhook_id(number).encode()),
        (names.CALLBACK_URL, url.encode()),
        (names.TRACEPARENT, f"00-{number + 1:032x}-{number + 1:016x}-01".encode()),
    ]
