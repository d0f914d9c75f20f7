"""Debian's Chromium as a rendering service: its DevTools endpoint, behind a proxy that asks for a secret."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiohttp import web

from cli.devkit.kafka.jars import program
from tests.aiohttp_server import serving
from tests.loopback_server import LoopbackServer

SECRET = "r3nder-s3cret"


class Chromium(LoopbackServer):
    """A context manager of a browser without a window, with DevTools on a loopback port."""

    fenced: Sequence[str] = ("--webrtc-ip-handling-policy=disable_non_proxied_udp",)

    def command(self) -> Sequence[str | Path]:
        """The browser's command line, as in docs/howto/reading.md."""
        profile = self._folder / "profile"
        shutil.rmtree(profile, ignore_errors=True)
        return [
            program("chromium", "chromium"), "--headless", f"--remote-debugging-port={self.port}",
            *self.fenced, "--disable-gpu", "--no-sandbox", f"--user-data-dir={profile}",
        ]  # fmt: skip


@dataclass
class Front:
    """The rendering service as a worker sees it: the proxy in front of the browser."""

    url: str
    secret: str = SECRET
    refused: int = 0
    opened: int = 0
    """Number of the WebSockets that were opened."""


@asynccontextmanager
async def front(chromium: Chromium) -> AsyncIterator[Front]:
    """Pass a request on to the browser only if it carries the secret."""
    made = Front("")

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {made.secret}":
            made.refused += 1
            return web.Response(status=HTTPStatus.UNAUTHORIZED)
        inside = f"http://127.0.0.1:{chromium.port}{request.path.removeprefix('/chrome')}"
        async with aiohttp.ClientSession() as session:
            if request.headers.get("Upgrade", "").lower() != "websocket":
                async with session.get(inside) as found:
                    return web.Response(status=found.status, body=await found.read())
            made.opened += 1
            outer = web.WebSocketResponse(max_msg_size=0)
            await outer.prepare(request)
            async with session.ws_connect(inside, max_msg_size=0) as inner:
                await passed_on(outer, inner)
            return outer

    async def passed_on(outer: web.WebSocketResponse, inner: aiohttp.ClientWebSocketResponse) -> None:
        async def out() -> None:
            async for message in inner:
                await outer.send_str(message.data)

        async def into() -> None:
            async for message in outer:
                await inner.send_str(message.data)

        ways = [asyncio.create_task(out()), asyncio.create_task(into())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    application = web.Application()
    application.router.add_get("/chrome/{rest:.*}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    async with serving(runner) as origin:
        made.url = f"{origin}/chrome"
        yield made
