"""Serves the pages over HTTP, each with its own bytes and header."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from bench.evaluation.pages import Page

_HOST: Final = "127.0.0.1"


@asynccontextmanager
async def serving(pages: Sequence[Page]) -> AsyncIterator[str]:
    """Serve these pages on loopback, and yield the site's origin. Other paths give 404."""
    bodies = {page.path: (page.body(), page.content_type) for page in pages}

    async def answer(request: web.Request) -> web.Response:
        if request.path not in bodies:
            raise web.HTTPNotFound
        body, content_type = bodies[request.path]
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, _HOST, 0).start()
        yield f"http://{_HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
