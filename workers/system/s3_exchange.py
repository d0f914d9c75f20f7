"""Ends calls of S3 clients from another thread. Importing this module needs no boto3."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Exchange:
    """The calls that one thread makes of clients; another thread can end them.

    boto3 limits only each wait for bytes. A storage that sends a byte every few seconds, in a head or in the body of an
    error, would keep a thread for hours.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.is_over = False
        """True after `end`."""

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """Within this context, `end` also ends the calls that this thread makes."""
        _here.exchange = self
        try:
            yield
        finally:
            _here.exchange = None
            with self._lock:
                while self._sockets:
                    self._sockets.pop().close()

    def end(self) -> None:
        """Shut down the connections of the calls: each pending or later wait for bytes finds their end."""
        with self._lock:
            self.is_over = True
            for one in self._sockets:
                _shut(one)

    def watch(self, connection: socket.socket) -> None:
        """Let `end` shut down this connection, too."""
        # A duplicate can be shut down by another thread, also after urllib3 has let go of the socket.
        own = socket.socket(fileno=os.dup(connection.fileno()))
        with self._lock:
            self._sockets.append(own)
            if self.is_over:
                _shut(own)


_here = threading.local()
"""Has the attribute `exchange` in a thread whose calls another thread may end."""


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side has closed the connection
        connection.shutdown(socket.SHUT_RDWR)


def watched(connection: socket.socket) -> None:
    """Let the exchange of this thread, if it has one, end the waits for this connection."""
    exchange: Exchange | None = getattr(_here, "exchange", None)
    if exchange is not None:
        exchange.watch(connection)
