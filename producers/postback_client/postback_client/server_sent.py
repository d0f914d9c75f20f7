"""Server-sent events: their format, and a stream that continues after a lost connection.

Source: WHATWG HTML, section 9.2, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import requests

from postback_client.clock import TimeLimit
from postback_client.http_session import HttpSession

EVENTS = "/v1/events"
SILENCE_SECONDS = 45.0
"""The time of three heartbeats of the gateway. A connection that is silent for longer is closed, and opened again."""
_LIMITED_SILENCE_SECONDS = 2.0
"""Under a time limit, a connection that is silent for this long is opened again, so that the wait exceeds the limit by
at most this time."""
_PIECE_BYTES = 64 * 1024
_AGAIN_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class ServerSent:
    """One block of the stream.

    A block with empty `data` is no event; it states the position or the time to reconnect.
    """

    id: str
    data: str


class ServerSentParser:
    """Parses bytes that arrive in pieces of any size, and returns the events that are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._id = ""
        self._data: list[str] = []
        self._said = False

    def feed(self, piece: bytes) -> list[ServerSent]:
        """Return the events that this piece completes."""
        content = self._rest + piece
        # A carriage return at the end of a piece may be the first half of CR LF.
        held = b"\r" if content.endswith(b"\r") else b""
        lines = content.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        return [event for line in lines for event in self._line(line.decode("utf-8", "replace"))]

    def _line(self, line: str) -> Iterator[ServerSent]:
        if not line:
            if self._data or self._said:
                yield ServerSent(self._id, "\n".join(self._data))
            self._data, self._said = [], False
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id, self._said = value, True
        elif name == "retry":
            self._said = True


class EventFeed:
    """The tenant's events from the feed's opening on. Each event is yielded once, even after a lost connection."""

    def __init__(self, http: HttpSession, types: str, limit: TimeLimit) -> None:
        self._http = http
        self._types = types
        self._limit = limit
        self._silence = _LIMITED_SILENCE_SECONDS if limit.ends else SILENCE_SECONDS
        self._last_id: str | None = None
        self._response: requests.Response | None = None
        self._blocks = self._all()
        self._first: ServerSent | None = None

    def open(self) -> None:
        """Connect, and return when the gateway has fixed the feed's position.

        No later event is missed. Raises PostbackError.
        """
        self._first = next(self._blocks, None)

    def events(self) -> Iterator[ServerSent]:
        """Yield events until the time limit. Raises PostbackError if the gateway cannot be reached for too long."""
        if self._first is not None and self._first.data:
            yield self._first
        yield from (each for each in self._blocks if each.data)

    def close(self) -> None:
        """Close the connection."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _all(self) -> Iterator[ServerSent]:
        while not self._limit.passed:
            yield from self._received()
            self._http.clock.sleep(self._limit.within(_AGAIN_SECONDS))

    def _received(self) -> Iterator[ServerSent]:
        """Yield the blocks of one connection until it ends or is silent, or the time limit passes."""
        response, parser = self._connected(), ServerSentParser()
        chunked = "chunked" in response.headers.get("transfer-encoding", "")
        pieces = response.iter_content(
            _PIECE_BYTES if chunked else 1
        )  # without chunks, a read of more bytes would wait until all of them have come
        while not self._limit.passed:
            try:
                piece = next(pieces, None)
            except requests.RequestException:
                break  # the connection is lost, or silent for too long; the next one continues after the last event
            if piece is None:
                break
            for event in parser.feed(piece):
                self._last_id = event.id or self._last_id
                yield event
        self.close()

    def _connected(self) -> requests.Response:
        headers = {"accept": "text/event-stream"}
        if self._last_id is not None:
            headers["last-event-id"] = self._last_id
        self.close()
        self._response = self._http.call(
            "GET",
            EVENTS,
            params={"types": self._types},
            headers=headers,
            stream=True,
            silence_seconds=max(0.1, self._limit.within(self._silence)),
            limit=self._limit,
        )
        return self._response
