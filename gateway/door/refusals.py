"""Builds responses to input that is no request. No application can answer it, so the responses are bytes."""

from __future__ import annotations

import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.door.errors import ApiError
from gateway.door.headers import REQUEST_ID, SECURITY, new_request_id


def refusal_bytes(error: ApiError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return a whole response in OpenAI's error shape, after which the connection ends."""
    body = json.dumps(error.body).encode()
    fields = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (REQUEST_ID.encode(), new_request_id().encode()),
        *SECURITY,
        (b"connection", b"close"),
    ]
    head = b"".join(b"%b: %b\r\n" % field for field in fields)
    return STATUS_LINE[error.status] + head + b"\r\n" + body
