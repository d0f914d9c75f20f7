"""`GET /v1/events`: the tenant's events as they happen, for clients that cannot receive callbacks.

The stream begins after `Last-Event-ID`, else after the parameter `after`, else with the next event. `after=0` begins
with the oldest event that is stored. `types` chooses by type: `types=inference.failed,batch.*`.

The stream ends when its credential does, or when the store is away. The client then connects again, with
`Last-Event-ID`, and gets the status that says why.

The stream holds few events in memory: it reads a page of events from the store, and reads the next page when the client
has received the first. The server disconnects a client that reads nothing; this client can go on later with
`Last-Event-ID`. Source: WHATWG HTML, section 9.2, "Server-sent events".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from gateway.access import CredentialRefused
from gateway.access.principal import IssuerAway
from gateway.door import query
from gateway.door.awaiting import unless_left
from gateway.door.endpoint import Call
from gateway.errors import ApiError, StoreAway
from gateway.view.stored_events import EventPage, StoredEvent, events_after, last_number

_NUMBER = re.compile(r"[0-9]{1,18}")
_TYPE = re.compile(r"[a-z_]{1,64}(\.[a-z_]{1,64}){0,4}(\.\*)?")
_MOST_TYPES = 32


async def stream(call: Call) -> EventStream:
    """Stream the tenant's events.

    Server-sent events. `id` is the event's number, `data` is the body of the webhook.
    """
    door, tenant, streams = call.door, call.tenant, call.door.streams
    types, after = _types(call.request), _after(call.request)
    if after is None:
        after = await call.read(last_number)
    if streams[tenant] >= door.settings.event_streams:
        message = f"The tenant has {door.settings.event_streams} open streams of events; close one of them."
        raise ApiError(429, "too_many_streams", message, headers={"retry-after": "10"})
    streams[tenant] += 1

    def ended() -> None:
        streams[tenant] -= 1
        if not streams[tenant]:
            del streams[tenant]

    return EventStream(call, after, types, ended)


def _after(request: Request) -> int | None:
    text = request.headers.get("last-event-id", request.query_params.get("after"))
    if text is not None and not _NUMBER.fullmatch(text):
        raise query.invalid("after", "is not the number of an event; take the last event's `id`")
    return int(text) if text is not None else None


def _types(request: Request) -> tuple[str, ...]:
    types = tuple(filter(None, request.query_params.get("types", "").split(",")))
    if len(types) > _MOST_TYPES or not all(map(_TYPE.fullmatch, types)):
        raise query.invalid("types", "is not a list of types with commas, such as `inference.failed,batch.*`")
    return types


READ_TOGETHER = 50
READ_BYTES = 1024 * 1024
"""A page ends with the event that reaches this size."""
RECONNECT_MS = 2000
"""A browser connects again after this many milliseconds."""
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
"""The second field keeps nginx from collecting events before it sends them."""
_HEARTBEAT = b": heartbeat\n\n"


_ENDS = (ClientDisconnect, CredentialRefused, StoreAway, IssuerAway)
"""Errors after which a stream ends as a whole response."""


class EventStream:
    """A response that ends when its client leaves, its credential ends, or the store or the server stops.

    `ended` is called at the end of the stream.
    """

    def __init__(self, call: Call, after: int, types: Sequence[str], ended: Callable[[], None]) -> None:
        self._call = call
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
                with suppress(*_ENDS):
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
        door, tenant = self._call.door, self._call.tenant
        while True:
            page = await door.waiting.until((tenant, None), self._look, door.settings.heartbeat_seconds)
            await self._call.require_credential()
            content = b"".join(map(event_text, page.events)) if page is not None else _HEARTBEAT
            await send(stream_part(content))

    async def _look(self) -> EventPage | None:
        """Return the next events; None if there are none."""
        page = await self._call.read(events_after, self._read_to, self._types, READ_TOGETHER, READ_BYTES)
        self._read_to = page.read_to
        return page if page.events else None


def event_text(event: StoredEvent) -> bytes:
    """Return an event as lines of the stream. A line break in the event's JSON begins another `data` line."""
    data = b"".join(b"data: %b\n" % line for line in event.data.splitlines())
    return b"id: %d\nevent: %b\n%b\n" % (event.number, event.type.encode(), data)


def stream_part(content: bytes) -> dict[str, object]:
    """Return the message that sends a part of a stream."""
    return {"type": "http.response.body", "body": content, "more_body": True}
