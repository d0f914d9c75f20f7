"""Helpers for one attempt at a callback: a scripted server on a loopback port, and a poster, on both event loops."""

from __future__ import annotations

import asyncio
import functools
import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, cast

import pytest
import uvloop
from aiohttp.abc import AbstractResolver, ResolveResult

from telemetry.clock import SystemClock
from workers.delivery.post import FailedDelivery, FailureReason, Poster, PostOutcome
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy

LOOPBACK = EgressPolicy(allow=(ip_network("127.0.0.0/8"),), development=True)
TENANT = "acme"
HEADERS = {"webhook-id": "msg_1", "webhook-timestamp": "1", "traceparent": "00-x"}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@dataclass
class Peer:
    """The server's side of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: Server
    number: int

    @property
    def transport(self) -> asyncio.Transport:
        """The connection's transport, for both directions."""
        # Cast, because uvloop's transport has another base class.
        return cast(asyncio.Transport, self.writer.transport)

    async def request(self) -> bytes | None:
        """Read one whole request; None if the client is gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self.server.requests.append((head, body))
        return body

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with a reset, not with an orderly close."""
        linger_off = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_off)
        self.writer.close()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Server:
    """Runs a script for each connection, and remembers the requests."""

    script: Script
    scheme: str = "http"
    port: int = 0
    connections: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    client_left: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hooks?token=x"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.script(Peer(reader, writer, self, self.connections))
        except ConnectionError:
            self.client_left.set()
        except asyncio.CancelledError:
            pass
        finally:
            self.tasks.discard(task)
            writer.close()


Start = Callable[..., Awaitable[Server]]


@asynccontextmanager
async def starting() -> AsyncIterator[Start]:
    servers: list[tuple[Server, asyncio.Server]] = []

    async def start(script: Script, tls: ssl.SSLContext | None = None) -> Server:
        server = Server(script, scheme="https" if tls else "http")
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
        server.port = listener.sockets[0].getsockname()[1]
        servers.append((server, listener))
        return server

    try:
        yield start
    finally:
        for server, listener in servers:
            listener.close()
            for task in list(server.tasks):
                task.cancel()
            await asyncio.gather(*server.tasks, return_exceptions=True)


@asynccontextmanager
async def posting(deadline_seconds: float = 20.0) -> AsyncIterator[Poster]:
    poster = Poster(DeliverySettings(deadline_seconds=deadline_seconds), LOOPBACK, SystemClock())
    try:
        yield poster
    finally:
        await poster.close()


SUPPLIES: dict[str, Callable[[], AbstractAsyncContextManager[Any]]] = {
    "start": starting,
    "poster": posting,
    "hasty": lambda: posting(deadline_seconds=0.3),
    "unhurried": lambda: posting(deadline_seconds=1.5),
}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on asyncio's loop and on uvloop, which raise different errors for the same broken connection.

    The arguments `start`, `poster` (deadline 20 s), `hasty` (0.3 s) and `unhurried` (1.5 s) are made on that loop;
    pytest supplies the others.
    """
    signature = inspect.signature(test)
    supplied = [name for name in signature.parameters if name in SUPPLIES]

    async def scenario(arguments: dict[str, Any]) -> None:
        async with AsyncExitStack() as stack:
            made = {name: await stack.enter_async_context(SUPPLIES[name]()) for name in supplied}
            await test(**arguments, **made)

    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(scenario(arguments))

    asked = [parameter for name, parameter in signature.parameters.items() if name not in supplied]
    factory = inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(parameters=[factory, *asked])  # type: ignore[attr-defined]  # inspect reads it
    factories = [asyncio.new_event_loop, uvloop.new_event_loop]
    on_each: Callable[..., None] = pytest.mark.parametrize("loop_factory", factories, ids=["asyncio", "uvloop"])(run)
    return on_each


def always(answer: bytes) -> Script:
    """A script that answers each request of a connection with `answer`."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(answer)

    return script


def status(code: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} Whatever", *headers, *([] if code in (101, 204, 304) else ["content-length: 0"])]
    return "\r\n".join([*lines, "", ""]).encode()


async def post(poster: Poster, url: str) -> PostOutcome:
    return await poster.post(url, b'{"a":1}', HEADERS, TENANT)


def failure(outcome: PostOutcome) -> tuple[FailureReason, int | None]:
    assert isinstance(outcome, FailedDelivery)
    return outcome.reason, outcome.status


Answer = str | tuple[str, ...] | OSError | None


class Answers(AbstractResolver):
    """A resolver with one answer: addresses, an error, or endless silence."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if isinstance(self._answer, OSError):
            raise self._answer
        if self._answer is None:
            await asyncio.Event().wait()
        addresses = (self._answer,) if isinstance(self._answer, str) else self._answer or ()
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        pass


async def post_by_name(
    answer: Answer, policy: EgressPolicy, port: int, site: str = "http://hooks.example"
) -> PostOutcome:
    settings = DeliverySettings(deadline_seconds=0.3 if answer is None else 20.0)
    poster = Poster(settings, policy, SystemClock(), resolver=Answers(answer))
    try:
        return await post(poster, f"{site}:{port}/")
    finally:
        await poster.close()
