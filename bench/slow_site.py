"""A site of slow pages on many loopback addresses, in a separate process, so that only the worker is measured."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from aiohttp import web

HOSTS = 200
"""Number of hosts that serve the jobs' pages in turn. With one host, the limit of requests to it would be measured."""
_PAGE = (
    "<!doctype html><title>Case {number}</title><main><h1>Case {number}</h1>"
    "<p>The case {number} was heard in Tarnby in 1987. Its judge was Ingrid Solvang, who lived there all her life.</p>"
    "<p>The court of Tarnby sits on the first Monday of each month, in the hall above the customs house.</p></main>"
)


@contextmanager
def slow_site(least_seconds: float, most_seconds: float) -> Iterator[Callable[[int], str]]:
    """Serve pages that take `least_seconds` to `most_seconds`; yield a function from a page's number to its URL."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, least_seconds, most_seconds), daemon=True)
    process.start()
    try:
        port = int(ours.recv())
        yield lambda number: f"http://127.0.0.{2 + number % HOSTS}:{port}/case/{number}"
    finally:
        process.terminate()
        process.join()


def _serve(link: Connection, least_seconds: float, most_seconds: float) -> None:
    asyncio.run(_serving(link, least_seconds, most_seconds))


async def _serving(link: Connection, least_seconds: float, most_seconds: float) -> None:
    async def page(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        await asyncio.sleep(least_seconds + (most_seconds - least_seconds) * (number * 37 % 100) / 99)
        return web.Response(text=_PAGE.format(number=number), content_type="text/html")

    app = web.Application()
    app.router.add_get("/case/{number}", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 0, backlog=4096).start()
    link.send(runner.addresses[0][1])
    await asyncio.Event().wait()
