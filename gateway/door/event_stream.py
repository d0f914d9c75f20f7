"""A stream of a tenant's events in the format of server-sent events.

The stream holds few events in memory: it reads a page of events from the store, and reads the next page when the client
has received the first. The server disconnects a client that reads nothing; this client can go on later with
`Last-Event-ID`.
Source: WHATWG HTML, section 9.2, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gateway.door.door import Door
from gateway.door.leaving import unless_left
from gateway.view.stored_events import EventPage, StoredEvent, events_after

READ_TOGETHER = 50
RECONNECT_MS = 2000
"""A browser connects again after this many milliseconds."""
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
"""The second field keeps nginx from collecting events before it sends them."""
_HEARTBEAT = b": heartbeat\n\n"


class EventStream:
    """A response that ends when its client leaves or the server stops. `ended` is called at the end of the stream."""

    def __init__(self, door: Door, tenant: str, after: int, types: Sequence[str], ended: Callable[[], None]) -> None:
        self._door = door
        self._tenant = tenant
        self._read_to = after
        self._types = types
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client leaves.

        A server that stops cancels the stream; `Observed` then ends the response.
        """
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            if scope["method"] != "HEAD":
                with suppress(ClientDisconnect):
                    await unless_left(receive, self._send_on(send))
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._ended()

    async def _send_on(self, send: Send) -> None:
        """Send events without end, and a comment after a while without events.

        The first block names the position, so that a client that loses the connection before its first event can resume
        there.
        """
        await send(stream_part(b"id: %d\nretry: %d\n\n" % (self._read_to, RECONNECT_MS)))
        seconds = self._door.settings.heartbeat_seconds
        while True:
            page = await self._door.waiting.until((self._tenant, None), self._look, seconds)
            content = b"".join(map(event_text, page.events)) if page is not None else _HEARTBEAT
            await send(stream_part(content))

    async def _look(self) -> EventPage | None:
        """Return the next events; None if there are none."""
        page = await self._door.store.read(
            lambda connection: events_after(connection, self._tenant, self._read_to, self._types, READ_TOGETHER)
        )
        self._read_to = page.read_to
        return page if page.events else None


def event_text(event: StoredEvent) -> bytes:
    """Return an event as lines of the stream. A line break in the event's JSON begins another `data` line."""
    data = b"".join(b"data: %b\n" % line for line in event.data.splitlines())
    return b"id: %d\nevent: %b\n%b\n" % (event.number, event.type.encode(), data)


def stream_part(content: bytes) -> dict[str, object]:
    """Return the message that sends a part of a stream."""
    return {"type": "http.response.body", "body": content, "more_body": True}
