"""Bounds on a server's answers: one answer to each request, of bounded size, on a connection of bounded age.

aiohttp parses and keeps all bytes that arrive on a pooled connection, without a bound. aiohttp also accepts any number
of interim responses before one answer (RFC 9110, section 15.2). In both ways a server can block the event loop and fill
the memory with a few megabytes a second. This module ends the connection at the first byte or interim response beyond a
bound.

A bound on a body does not cover chunk extensions, trailers, and empty lines before a status line. A server may send
these without end, so the module also counts the bytes on the wire, against a bound that grows with the body.

aiohttp drops an answer if invalid bytes follow it in the same piece of data. Many well-meaning servers send a body with
their 204, or more bytes than their Content-Length says. So the module feeds each head to aiohttp by itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import aiohttp
from aiohttp import ClientPayloadError
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage
from aiohttp.streams import StreamReader

MOST_INTERIM = 16
"""Limit on interim responses before one answer.

Servers send one or two interim responses, to show progress or to hint at resources.
"""

OLDEST_SECONDS = 120.0
"""Age after which a connection serves one last request.

Without this limit, a connection with steady traffic would never end, and the process would not notice a server's new
address or certificate."""
_YOUNGEST_SHARE = 0.75
"""Lower bound of the random factor on OLDEST_SECONDS, so that connections opened together end at different times."""

MOST_BESIDES = 512 * 1024
"""Limit on the bytes of one answer outside its body: heads, chunk headers, trailers."""
MOST_PER_BODY_BYTE = 8
"""Bytes on the wire that are allowed for each byte of the body, in addition to MOST_BESIDES.

A chunk that contains one byte of the body takes six bytes.
"""

_SWITCHING_PROTOCOLS = 101
_HEAD_ENDS = b"\r\n\r\n"


class BodyTooLarge(Exception):  # noqa: N818 - named after the event
    """A body is longer than its reader allows."""


async def bounded_pieces(response: aiohttp.ClientResponse, most_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body, after decompression, as it comes. Raises BodyTooLarge for more than `most_bytes`."""
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > most_bytes:
            raise BodyTooLarge
        yield piece


async def bounded_body(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """Return the body after decompression. Raises BodyTooLarge for more than `most_bytes`."""
    return b"".join([piece async for piece in bounded_pieces(response, most_bytes)])


def _is_interim(status: int) -> bool:
    """True for an interim response: the final answer follows it."""
    return 100 <= status < 200 and status != _SWITCHING_PROTOCOLS


def answer_once(connector: aiohttp.TCPConnector) -> None:
    """Make the connector use `OneAnswerEach` for its connections. Call this before the first connection."""
    # aiohttp has no public way to set the protocol. The tests of unrequested answers fail if aiohttp ignores
    # `_factory`.
    protocol: type[ResponseHandler] = OneAnswerEach
    connector._factory = partial(protocol, loop=connector._loop)


class OneAnswerEach(ResponseHandler):
    """The protocol of one connection, which enforces the bounds of this module."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._old_at = loop.time() + OLDEST_SECONDS * random.uniform(_YOUNGEST_SHARE, 1)  # noqa: S311 - jitter
        self._interim = 0
        self._received = 0
        """Bytes on the wire since the last request."""
        self.tunnelled_to: tuple[Any, ...] | None = None
        """The destination's socket address, if a proxy carries the connection."""
        self._answer: StreamReader | None = None
        """The body of the answer to the last request; None until the answer's headers were read."""

    def set_response_params(self, **params: Any) -> None:
        """Reset the counts for the next request. An old connection closes after this request."""
        self._interim, self._received, self._answer = 0, 0, None
        super().set_response_params(**params)
        if self._loop.time() >= self._old_at:
            self.force_close()

    def data_received(self, data: bytes) -> None:
        """Count and parse the bytes that arrived.

        If `data` is empty, aiohttp goes on parsing the bytes that it has kept.
        """
        self._received += len(data)
        self._parse(data)
        in_body = self._answer.total_bytes if self._answer is not None else 0
        if self._received > MOST_BESIDES + MOST_PER_BODY_BYTE * in_body and not self.upgraded:
            self._end("its answer has too many bytes outside its body")

    def _parse(self, data: bytes) -> None:
        if self._answer is None:
            data = self._head_received(data)
            if not data:
                return
        answer = self._answer
        if answer is None:
            super().data_received(data)
        elif data and answer.is_eof() and not self.upgraded:
            # End the connection: aiohttp would keep half a head or an empty line, and would still send the next
            # request.
            self._end("it spoke unasked")
        else:
            super().data_received(data)
            if self.exception() is not None and not answer.is_eof():
                # aiohttp reports an error only to a reader of headers; a reader of the body would wait for ever.
                answer.set_exception(ClientPayloadError("the body cannot be read"))

    def _head_received(self, data: bytes) -> bytes:
        """Feed the heads of interim responses and of the answer to aiohttp one by one. Return the remaining bytes."""
        for _ in range(MOST_INTERIM + 1):
            end = data.find(_HEAD_ENDS) + len(_HEAD_ENDS)
            if end < len(_HEAD_ENDS):
                end = len(data)
            super().data_received(data[:end])
            data = data[end:]
            if not data or self._answer is not None or self.exception() is not None:
                break
        return data

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Accept or drop a message whose headers aiohttp has read.

        One piece of data may contain thousands of messages.
        """
        if self.is_eof():
            return
        message, body = data
        if self._answer is not None:
            self._end("it answered twice")
        elif not _is_interim(message.code):
            self._answer = body
            super().feed_data(data, size)
        elif self._interim < MOST_INTERIM:
            self._interim += 1  # drop the message, since no caller waits for an interim response
        else:
            self._end("it sent too many interim responses")

    def connection_lost(self, exc: BaseException | None) -> None:
        """Drop the answer, so that reference counting frees it and the connection.

        The answer's body refers to the connection. If the connection went on referring to the answer, only the garbage
        collector would free the two.
        """
        super().connection_lost(exc)
        self._answer = None

    def _end(self, why: str) -> None:
        """End the connection. Bytes that arrived before stay readable; a reader of later bytes gets an error."""
        self.set_exception(HttpProcessingError(message=why))
        if self._answer is not None and not self._answer.is_eof():
            self._answer.set_exception(ClientPayloadError(why))
        if self.transport is not None:
            self.transport.abort()


MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
"""Longest wait that is obeyed; a longer `Retry-After` is cut to this number of seconds."""


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds to wait, 0 to MAX_RETRY_AFTER_SECONDS; None if the value is neither a number nor a date.

    `Retry-After = HTTP-date / delay-seconds`. `now` is Unix seconds.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        # Ten digits of seconds are over three hundred years; converting thousands of digits would take long.
        return min(float(value[:10]), MAX_RETRY_AFTER_SECONDS) if len(value) <= 10 else MAX_RETRY_AFTER_SECONDS
    try:
        date = parsedate_to_datetime(value)
        at = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, at - now), MAX_RETRY_AFTER_SECONDS)
