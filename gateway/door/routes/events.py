"""`GET /v1/events`: the tenant's events as they happen, for clients that cannot receive callbacks.

The stream begins after `Last-Event-ID`, else after the parameter `after`, else with the next event. `after=0` begins
with the oldest event that is stored. `types` chooses by type: `types=inference.failed,batch.*`.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from gateway.door import query
from gateway.door.endpoint import Call
from gateway.door.event_stream import EventStream
from gateway.errors import ApiError
from gateway.view.stored_events import last_number

_NUMBER = re.compile(r"[0-9]{1,18}")
_TYPE = re.compile(r"[a-z_]{1,64}(\.[a-z_]{1,64}){0,4}(\.\*)?")
_MOST_TYPES = 32


async def stream(call: Call) -> EventStream:
    """Answer with the stream of events."""
    door, tenant, streams = call.door, call.tenant, call.door.streams
    types, after = _types(call.request), _after(call.request)
    if after is None:
        after = await door.store.read(lambda connection: last_number(connection, tenant))
    if streams[tenant] >= door.settings.event_streams:
        message = f"The tenant has {door.settings.event_streams} open streams of events; close one of them."
        raise ApiError(429, "too_many_streams", message, headers={"retry-after": "10"})
    streams[tenant] += 1

    def ended() -> None:
        streams[tenant] -= 1
        if not streams[tenant]:
            del streams[tenant]

    return EventStream(door, tenant, after, types, ended)


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
