"""Sites whose text comes from scripts, and servers that no script may reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.aiohttp_server import serving
from tests.integration.raw_server import FACT, speaking

QUESTION = "When did the Halvorsen bridge open?"
SHELL_TEXT = "This application about the Halvorsen bridge needs JavaScript."
SHELL = f"""<!doctype html><html><head><title>Bridge</title></head><body><div id="app">{SHELL_TEXT}</div>
<script src="/app.js"></script></body></html>"""
SHOW = "fetch('/fact').then(r => r.json()).then(v => { document.getElementById('app').textContent = v.fact })"
"""The script of an application that shows the fact."""
ETAG = '"the-shell-never-changes"'


@dataclass
class Application:
    """A server of an application: a page without the fact, its script, and the data that the script loads."""

    origin: str = ""
    fact: str = FACT
    paths: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.origin}/"

    @property
    def port(self) -> int:
        return int(self.origin.rpartition(":")[2])


@asynccontextmanager
async def application(
    script: str = SHOW, shell: str = SHELL, robots: str = "", moved: Mapping[str, str] | None = None
) -> AsyncIterator[Application]:
    """Serve an application on 127.0.0.1. `moved` has the targets of paths that redirect."""
    made = Application()
    answers = {"/": (shell, "text/html"), "/app.js": (script, "text/javascript"), "/robots.txt": (robots, "text/plain")}

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        made.paths.append(request.path)
        made.hosts.append(request.host)
        if moved is not None and request.path in moved:
            return web.Response(status=302, headers={"Location": moved[request.path]})
        if request.path == "/fact":
            return web.json_response({"fact": made.fact})
        if request.path not in answers:
            return web.Response(status=404)
        body, media_type = answers[request.path]
        if request.headers.get("If-None-Match") == ETAG:
            return web.Response(status=304, headers={"ETag": ETAG})
        return web.Response(text=body, content_type=media_type, headers={"ETag": ETAG})

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0)
    async with serving(runner) as origin:
        made.origin = origin
        yield made


@dataclass
class Canary(asyncio.DatagramProtocol):
    """An internal server on one port of TCP and UDP, which records every datagram and connection."""

    port: int = 0
    signs: list[str] = field(default_factory=list)

    def datagram_received(self, data: bytes, client: tuple[str, int]) -> None:
        self.signs.append("datagram")

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Record the connection, and answer with a secret that any script may read."""
        self.signs.append("connection")
        head = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Type: text/html\r\n"
        writer.write(head + b"Content-Length: 15\r\nConnection: close\r\n\r\ninternal secret")
        writer.close()


@asynccontextmanager
async def canary() -> AsyncIterator[Canary]:
    made = Canary()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: made, ("127.0.0.1", made.port))
    try:
        yield made
    finally:
        transport.close()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def connect_proxy(public: str, port: int) -> AsyncIterator[tuple[int, list[str]]]:
    """Serve a proxy that connects to 127.0.0.1:`port` in place of `public`.

    Yields its port, and the requested targets.
    """
    asked: list[str] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not asked[-1].startswith(f"{public}:"):
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copied(reader, far_writer), _copied(far_reader, writer))

    async with speaking(script, targets=asked) as origin:
        yield int(origin.rpartition(":")[2]), asked


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()
