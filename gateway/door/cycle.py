"""One request and its response on a connection: uvicorn's cycle, which also refuses a faulty body.

The connection finds a slow or malformed body while the application waits in `receive`. The cycle raises the refusal in
`receive`, so that the application answers as for any other error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.errors import ApiError


class Outlet:
    """The transport that a connection gives its cycles: `close` lets the connection end in order."""

    def __init__(self, transport: asyncio.Transport, finish: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = finish


class Cycle(RequestResponseCycle):
    """A request whose body may be refused while it arrives."""

    fault: ApiError | None = None
    _until_end = False
    _events = False
    _task: asyncio.Task[None] | None = None

    def fail(self, error: ApiError) -> None:
        """Refuse the rest of the body: `receive` raises the error, and the connection ends after the response."""
        self.fault = error
        self.keep_alive = False
        self.message_event.set()

    async def run_asgi(self, app: Any) -> None:
        """Run the application.

        The application answers its own errors; if the application breaks off a response, the connection ends.
        """
        self._task = asyncio.current_task()
        try:
            await app(self.scope, self.receive, self.send)
        finally:
            if not self.response_complete and not self.disconnected:
                self.transport.close()
            self.on_response = _nothing

    async def receive(self) -> Any:
        """Return the next part of the body. Raises ApiError (400, 408) for a malformed or slow body."""
        message = await super().receive() if self.fault is None else None
        if self.fault is None:
            return message
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        raise self.fault

    async def send(self, message: Any) -> None:
        """Send a part of the response.

        A connection with an unread body ends after the response. An HTTP/1.0 client knows no chunks, so the end
        of the connection marks the end of a response without a length (RFC 9112, section 6.3).
        """
        if message["type"] == "http.response.start":
            if self.more_body:
                self.keep_alive = False
            fields = {name.lower(): value for name, value in message.get("headers", ())}
            self._events = fields.get(b"content-type", b"").startswith(b"text/event-stream")
            if self.scope["http_version"] == "1.0" and b"content-length" not in fields:
                self.chunked_encoding, self._until_end = False, True
        elif self._until_end:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)

    def end_events(self) -> None:
        """End a stream of events, which never ends by itself; its client connects again to another gateway."""
        if self._events and self._task is not None and not self.response_complete:
            self._task.cancel()


def _nothing() -> None:
    """Do nothing. This replaces the callback of a response when the cycle has ended."""
