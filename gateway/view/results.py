"""A result as the view stores it, and the functions that are called in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from schemas.result import Result


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result of `model_results` whose row the view has written in the present transaction."""

    tenant: str
    job_id: str
    batch_id: str | None
    """The batch that the job's id names. Only the rows of `batches` show whether the tenant has such a batch."""
    line: int | None
    """The line in the batch's input, from 0."""
    url: str
    """The API by which the job came in; `kafka` for a job that the gateway did not accept."""
    result: Result
    value: bytes
    """The result's record."""
    webhook_id: str | None
    at_ms: int
    """The record's timestamp, Unix milliseconds."""
    has_callback: bool
    """True if delivery sends the result to a callback of the job's own."""
    first: bool
    """True for a job's first result. A job that an operator put back gets a further result."""


OnResults = Callable[[Connection, Sequence[StoredResult]], None]
"""A function that the view calls with results, in their order, in the transaction that writes their rows.

The function may run more than once for a transaction, and must have no effect but its rows. If the function raises, the
view calls it for each result alone; a result that fails again is written without the call.
"""
