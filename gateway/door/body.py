"""The body of a request, read with a limit, and JSON of requests and responses.

The server bounds the time of a body: `receive` raises ApiError (408) for a slow body, and ApiError (400) for malformed
chunks. The limits here bound the body's size.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import ApiError, unavailable
from schemas.payload import MAX_VALUES, has_too_many_values

MOST_VALUES = 4 * MAX_VALUES
"""The maximum number of values of a JSON body, which may hold many jobs."""
BODIES = "held_bytes"
"""The key, in the ASGI scope's state, of the bytes that the request holds."""


class BodyBudget:
    """The bytes of bodies that the requests of one process hold together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0


class HeldBytes:
    """The bytes that one request holds until its end."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._bytes = 0

    def take(self, size: int) -> None:
        """Hold more bytes. Raises ApiError (503)."""
        if self._budget.taken + size > self._budget.most:
            message = "The gateway holds as many bytes of requests as it may; repeat the request."
            raise unavailable("busy", message)
        self._budget.taken += size
        self._bytes += size

    def release(self) -> None:
        """Give all bytes back."""
        self._budget.taken -= self._bytes
        self._bytes = 0


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return the whole body of at most `limit_bytes`.

    A body with a larger Content-Length is refused unread; any other body is refused once its bytes exceed the limit.
    Raises ApiError (400, 408, 413, 415, 503) and ClientDisconnect.
    """
    expect_body(request, limit_bytes)
    chunks: list[bytes] = []
    size = 0
    held: HeldBytes = request.scope["state"][BODIES]
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        held.take(len(chunk))
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


def require_few_values(body: bytes) -> None:
    """Refuse JSON that would take many times its size of memory when it is parsed. Raises ApiError (400)."""
    if len(body) > MOST_VALUES and has_too_many_values(body, MOST_VALUES):
        message = f"The body has more than {MOST_VALUES} values; send fewer or longer texts."
        raise ApiError(400, "too_many_values", message)


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text. Raises ApiError (400), which names the place and repeats no input."""
    require_few_values(body)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"The body is not JSON: {error}.") from None


def json_response(value: object) -> Response:
    """Return the response with this JSON."""
    return Response(to_json(value), media_type="application/json")
