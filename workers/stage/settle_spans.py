"""Spans of settled records: the transaction's time, as a part of each record's trace."""

from __future__ import annotations

from schemas.topics import TRACEPARENT
from telemetry.traces import collecting, parse_traceparent, past_span
from workers.stage.batch import Batch


def trace_settled(batch: Batch, now: float, seconds: float) -> None:
    """Export a span for each trace that the batch's outputs continue. `now` is the commit's Unix time.

    Outputs of one trace share a span. An output without a `traceparent`, such as the record of an attempt, has none.
    """
    if not collecting():
        return
    headers = (header for output in batch.outputs for header in output.headers or ())
    for carried in {value for name, value in headers if name == TRACEPARENT and value is not None}:
        parent = parse_traceparent(carried.decode("latin-1"))
        if parent is not None:
            past_span("settle", (now - seconds, now), parent, {"records": len(batch.outputs)})
