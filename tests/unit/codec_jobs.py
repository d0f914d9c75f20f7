"""Jobs and headers for the codec."""

from __future__ import annotations

import json

from schemas.codec import Origin, ReceivedJob, read_job

ORIGIN = Origin("u2tSXKJNTn6GAzrYv6bXfQ", 3, 41)
CALLBACK = "https://consumer.example/hook?token=t0ken"
BARE = {"prompt": "Why is the sky blue?", "callback_url": CALLBACK}
TIMESTAMP_MS = 1_700_000_000_000
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def encoded(job: object) -> bytes:
    return json.dumps(job).encode()


def read(job: object, *headers: tuple[str, bytes], origin: Origin = ORIGIN) -> ReceivedJob:
    value = job if isinstance(job, bytes) else encoded(job)
    return read_job(value, list(headers), origin, TIMESTAMP_MS)
