"""A small HTTP server behind the door's TLS, in a thread: it answers with the client certificate that it sees."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from gateway.tls import DoorTls, read_peer


async def _answer(door: DoorTls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests until the client hangs up; the gateway does the same."""
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    peer = read_peer(der) if der else None
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            said = {"tenant": peer.tenant, "scopes": sorted(peer.scopes), "serial": peer.serial} if peer else {}
            body = json.dumps({**said, "refusal": door.refusal(peer) if peer else None}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


@contextmanager
def serving(door: DoorTls) -> Iterator[int]:
    """Serve on a free port of 127.0.0.1, and yield the port. The server runs on uvloop, as the gateway does."""
    started: list[int] = []
    ready, loop = threading.Event(), uvloop.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(lambda *ends: _answer(door, *ends), "127.0.0.1", 0, ssl=door.context)
        started.append(server.sockets[0].getsockname()[1])
        ready.set()
        async with server:
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
