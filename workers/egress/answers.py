"""What a server may say on a connection, and for how long: one answer to each request, and nothing besides.

aiohttp parses whatever arrives on a connection as long as it lies in the pool, and keeps it without a bound; and it
takes any number of interim responses for one answer (RFC 9110, section 15.2). Either lets a server stop the event loop
and fill our memory with a few megabytes a second. Here the first word too many ends the connection.

Bounds of a body count what is in it. Chunk extensions, trailers, and empty lines before a status line are in none: a
server may send them without end. So the bytes on the wire are counted too, and have a bound that follows the body's.

And where one piece of data has an answer and something that is none behind it, aiohttp forgets the answer. Many a
server sends a body with its 204, or more than its Content-Length says, and means well.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

import aiohttp
from aiohttp import ClientPayloadError
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage
from aiohttp.streams import StreamReader

MOST_INTERIM = 16
"""Interim responses before one answer. Servers send one or two: that they go on, or what the page will need."""

OLDEST_SECONDS = 120.0
"""How old a connection may be at its last request. Under steady traffic it would else never end, and whoever moves to
another address, or has another certificate, would never be followed."""
_YOUNGEST_SHARE = 0.75
"""Of that: connections that were opened together do not end together."""

MOST_BESIDES = 512 * 1024
"""Bytes on the wire of one answer that are not in its body: heads, chunk headers, trailers."""
MOST_PER_BODY_BYTE = 8
"""Bytes on the wire, besides those, for each byte of the body: a chunk of one byte takes six."""

_SWITCHING_PROTOCOLS = 101
_HEAD_ENDS = b"\r\n\r\n"


def _is_interim(status: int) -> bool:
    """Whether more is to come: this is not the answer yet."""
    return 100 <= status < 200 and status != _SWITCHING_PROTOCOLS


def bounded_connector(**options: Any) -> aiohttp.TCPConnector:
    """A connector for an operator's service: it may lead anywhere, and no answer on it is without end."""
    connector = aiohttp.TCPConnector(**options)
    answer_once(connector)
    return connector


def answer_once(connector: aiohttp.TCPConnector) -> None:
    """Have this connector's connections be `OneAnswerEach`. Call it before the first of them."""
    # aiohttp has no public way to say this. The tests of what servers say unasked fail where it is not heeded.
    protocol: type[ResponseHandler] = OneAnswerEach
    connector._factory = partial(protocol, loop=connector._loop)


class OneAnswerEach(ResponseHandler):
    """The protocol of one connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._old_at = loop.time() + OLDEST_SECONDS * random.uniform(_YOUNGEST_SHARE, 1)  # noqa: S311 - jitter
        self._interim = 0
        self._received = 0
        """Bytes on the wire since the last request."""
        self._answer: StreamReader | None = None
        """The body of the answer to the last request, once its headers are here."""

    def set_response_params(self, **params: Any) -> None:
        """The next request is about to be sent."""
        self._interim, self._received, self._answer = 0, 0, None
        super().set_response_params(**params)
        if self._loop.time() >= self._old_at:
            self.force_close()

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived; none where aiohttp goes on with what it has."""
        self._received += len(data)
        self._parse(data)
        in_body = self._answer.total_bytes if self._answer is not None else 0
        if self._received > MOST_BESIDES + MOST_PER_BODY_BYTE * in_body and not self.upgraded:
            self._end("its answer is mostly besides its body")

    def _parse(self, data: bytes) -> None:
        if self._answer is None:
            data = self._head_received(data)
            if not data:
                return
        answer = self._answer
        if answer is None:
            super().data_received(data)
        elif data and answer.is_eof() and not self.upgraded:
            self._end("it spoke unasked")
        else:
            super().data_received(data)
            if self.exception() is not None and not answer.is_eof():
                # aiohttp tells only who waits for headers, and whoever reads the body would wait for ever.
                answer.set_exception(ClientPayloadError("the body cannot be read"))

    def _head_received(self, data: bytes) -> bytes:
        """Take what belongs to the heads of interim responses and of the answer, each by itself; returns the rest."""
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
        """Headers were read. One piece of data may hold thousands."""
        if self.is_eof():
            return
        message, body = data
        if self._answer is not None:
            self._end("it answered twice")
        elif not _is_interim(message.code):
            self._answer = body
            super().feed_data(data, size)
        elif self._interim < MOST_INTERIM:
            self._interim += 1  # nobody waits for it, so it goes no further
        else:
            self._end("it sent too many interim responses")

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is over. A body knows its connection: kept here, only the garbage collector would part the two."""
        super().connection_lost(exc)
        self._answer = None

    def _end(self, why: str) -> None:
        """Nothing more is taken from here. What was read before stays readable; who waits for more of it is told."""
        self.set_exception(HttpProcessingError(message=why))
        if self._answer is not None and not self._answer.is_eof():
            self._answer.set_exception(ClientPayloadError(why))
        if self.transport is not None:
            self.transport.abort()
