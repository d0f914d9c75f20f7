"""The body of a request, read with a limit, and its JSON.

The server bounds the time of a body: `receive` raises ApiError (408) for a slow body, and ApiError (400) for malformed
chunks. The limits here bound the body's size.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json
from starlette.requests import Request

from gateway.door.errors import ApiError


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return the whole body of at most `limit_bytes`.

    A body with a larger Content-Length is refused unread; any other body is refused once its bytes exceed the limit.
    Raises ApiError (400, 408, 413, 415) and ClientDisconnect.
    """
    expect_body(request, limit_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def expect_body(request: Request, limit_bytes: int) -> None:
    """Check the headers of a body before it is read. Raises ApiError (413, 415).

    Routes that read `request.stream()` themselves call this. They also count the bytes, because chunked bodies have no
    length.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ApiError(415, "unsupported_content_encoding", "Send the body without a Content-Encoding.")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > limit_bytes:
        raise too_large(limit_bytes)


def too_large(limit_bytes: int) -> ApiError:
    """Return the 413 of a body that exceeds its limit."""
    return ApiError(413, "body_too_large", f"The body has more than {limit_bytes} bytes; send a smaller one.")


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text. Raises ApiError (400), which names the place and repeats no input."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"The body is not JSON: {error}.") from None
