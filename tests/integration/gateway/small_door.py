"""Runs the door's server with a small application on a thread of its own, and sends raw bytes to this server."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvloop
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.door.app import Observed
from gateway.door.body import parse_json, read_body
from gateway.door.door import PEER, address_of
from gateway.door.handlers import add_handlers
from gateway.door.server import DoorServer
from gateway.door.settings import GatewaySettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics

BODY_LIMIT = 1024 * 1024
PATIENCE_SECONDS = 60.0
"""The longest wait for a response, or for the connection's end; far above every bound that a test sets."""
STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")


@dataclass
class Served:
    """A running server. `release` lets the requests to `/wait` go on."""

    port: int
    metrics: Metrics
    tls: ssl.SSLContext | None
    release: threading.Event = field(default_factory=threading.Event)
    seen: list[str] = field(default_factory=list)
    """The paths of requests that reached the application."""
    _stop: Any = None
    _ended: Future[None] = field(default_factory=Future)

    def stop(self) -> None:
        """Stop as at SIGTERM, and wait for the end."""
        if not self._ended.done():
            self._stop()
        self._ended.result(PATIENCE_SECONDS)

    def counted(self, name: str) -> dict[str, float]:
        """Map the labels of each sample of a metric, as text, to the sample's value."""
        lines = generate_latest(self.metrics.registry).decode().splitlines()
        found = (line.rpartition(" ") for line in lines if line.startswith(f"{name}{{"))
        return {labels.removeprefix(name): float(value) for labels, _, value in found}

    def connect(self, context: ssl.SSLContext | None = None) -> socket.socket:
        """A connection to the server, over TLS if a context is given."""
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS)
        return plain if context is None else context.wrap_socket(plain, server_hostname="127.0.0.1")

    def talk(self, sent: bytes) -> bytes:
        """Send bytes, and return everything that comes until the server ends the connection."""
        with self.connect() as connection:
            with suppress(OSError):  # the server may have ended the connection already
                connection.sendall(sent)
            return received(connection)

    def statuses(self, sent: bytes) -> list[int]:
        """The statuses of the responses to these bytes, until the server ends the connection."""
        return statuses_in(self.talk(sent))


def received(connection: socket.socket) -> bytes:
    """Everything that comes until the end of the connection, or its reset."""
    parts = []
    with suppress(ConnectionError, ssl.SSLError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def statuses_in(content: bytes) -> list[int]:
    return [int(found) for found in STATUS.findall(content)]


@contextmanager
def serving(tls: ssl.SSLContext | None = None, **settings: Any) -> Iterator[Served]:
    """A server with these settings; it is stopped at the block's end."""
    bound = socket.create_server(("127.0.0.1", 0))
    served = Served(bound.getsockname()[1], Metrics(), tls)
    started = threading.Event()
    thread = threading.Thread(target=_run, args=(served, bound, GatewaySettings(**settings), started))
    thread.start()
    started.wait(PATIENCE_SECONDS)
    try:
        yield served
    finally:
        served.release.set()
        served.stop()
        thread.join()


def _run(served: Served, bound: socket.socket, settings: GatewaySettings, started: threading.Event) -> None:
    async def main() -> None:
        clock, loop = SystemClock(), asyncio.get_running_loop()
        server = DoorServer(_application(served, clock), bound, served.tls, settings, clock, served.metrics)
        task = asyncio.create_task(server.ended())
        served._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        started.set()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    try:
        uvloop.run(main())
    except BaseException as error:
        served._ended.set_exception(error)
        raise
    served._ended.set_result(None)


def _application(served: Served, clock: SystemClock) -> Observed:
    app = Starlette(routes=[*_plain_routes(), *_long_routes(served)])
    app.router.redirect_slashes = False
    add_handlers(app)

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        served.seen.append(scope["path"])
        await app(scope, receive, send)

    return Observed(noted, served.metrics, clock)


def _plain_routes() -> list[Route]:
    async def echo(request: Request) -> Response:
        body = await read_body(request, BODY_LIMIT)
        return JSONResponse({"bytes": len(body), "authorization": request.headers.get("authorization")})

    async def take_json(request: Request) -> Response:
        return JSONResponse(parse_json(await read_body(request, BODY_LIMIT)))

    async def hello(request: Request) -> Response:
        return JSONResponse({"query": request.url.query, "peer": request.scope.get(PEER) is not None})

    async def client(request: Request) -> Response:
        return JSONResponse(address_of(request))

    async def broken(request: Request) -> Response:
        raise ValueError(f"the error repeats the body: {await request.body()!r}")

    return [
        Route("/hello", hello),
        Route("/client", client),
        Route("/echo", echo, methods=["POST"]),
        Route("/json", take_json, methods=["POST"]),
        Route("/broken", broken, methods=["POST"]),
        Route("/items/{item}", hello, methods=["GET"]),
        Route("/items/{item}", echo, methods=["DELETE"]),
    ]


def _long_routes(served: Served) -> list[Route]:
    async def wait(_request: Request) -> Response:
        while not served.release.is_set():
            await asyncio.sleep(0.01)
        return JSONResponse({"waited": True})

    async def events(_request: Request) -> Response:
        async def forever() -> AsyncIterator[str]:
            yield "data: 1\n\n"
            await asyncio.Event().wait()

        return StreamingResponse(forever(), media_type="text/event-stream")

    async def stream(_request: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "first "
            yield "second"

        return StreamingResponse(parts(), media_type="text/plain")

    async def much(_request: Request) -> Response:
        return Response(bytes(64 * 1024 * 1024))

    return [Route(f"/{one.__name__}", one) for one in (wait, events, stream, much)]
