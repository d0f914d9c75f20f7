"""A real WebSocket server that plays a browser which a page controls, or another service in the browser's place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.metrics import Metrics
from tests.aiohttp_server import serving
from tests.drawn import drawn
from tests.integration.raw_server import CLOCK, FACT, LOOPBACK
from workers.egress import Guard
from workers.enrichment.evidence import Page
from workers.enrichment.fetching.fetch import Fetcher, Politeness
from workers.enrichment.fetching.robots import Robots
from workers.enrichment.processes.pool import Pool
from workers.enrichment.rendering.renderer import Renderer
from workers.enrichment.rendering.visit import MOST_MESSAGES
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker

SHELL = Page("http://127.0.0.1:1/", "text/html", "utf-8", b"<script src=/app.js></script>")
HTML = f"<p>{FACT}</p>"
RIGHT: dict[str, dict[str, Any]] = {
    "SystemInfo.getInfo": {"commandLine": "chromium --webrtc-ip-handling-policy=disable_non_proxied_udp"},
    "Target.createBrowserContext": {"browserContextId": "context"},
    "Target.createTarget": {"targetId": "target"},
    "Target.attachToTarget": {"sessionId": "session"},
    "Page.navigate": {"frameId": "frame", "loaderId": "loader"},
    "DOM.getDocument": {"root": {"nodeId": 1}},
}
IDLE = json.dumps({"method": "Page.lifecycleEvent", "params": {"name": "networkIdle", "loaderId": "loader"}})
VERSION = json.dumps({"webSocketDebuggerUrl": "ws://elsewhere.example:9/devtools/browser/1"}).encode()

Sent = str | bytes

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["requestId", "resourceType", "request", "name", "loaderId", "url", "method"])
params = st.dictionaries(names, values | st.sampled_from(["Document", "Script", "networkIdle", "loader"]), max_size=5)
paused = st.fixed_dictionaries(
    {
        "requestId": st.text(max_size=5),
        "resourceType": st.sampled_from(["Document", "Script", "XHR", "Image", ""]),
        "request": st.fixed_dictionaries({"url": st.text(max_size=30), "method": st.sampled_from(["GET", "POST"])}),
    }
)
methods = st.sampled_from(["Fetch.requestPaused", "Page.lifecycleEvent", ""])
events = st.fixed_dictionaries({"method": methods, "params": paused | params}).map(json.dumps)
messages = st.one_of(
    events,
    st.fixed_dictionaries({"id": st.integers(), "result": values}).map(json.dumps),
    values.map(json.dumps),
    st.text(max_size=20),
    st.binary(max_size=20),
)
"""Each message that may come unasked."""


@asynccontextmanager
async def browser(
    unasked: Iterable[Sent] = (),
    replies: Iterable[dict[str, Any] | None] = (),
    version: bytes = VERSION,
    html: str = HTML,
) -> AsyncIterator[str]:
    """A browser that sends the next of `unasked` before each result, and the next of `replies` as the result.

    Without these, or with None, the browser keeps to the protocol.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/json/version":
            return web.Response(body=version)
        sending, replying = iter(unasked), iter(replies)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        try:
            async for message in socket:
                command = json.loads(message.data)
                one = next(sending, None)
                if one is not None:
                    await (socket.send_str(one) if isinstance(one, str) else socket.send_bytes(one))
                reply = next(replying, None)
                right = {"outerHTML": html} if command["method"] == "DOM.getOuterHTML" else {}
                result = RIGHT.get(command["method"], right) if reply is None else reply
                await socket.send_json({"id": command["id"], "result": result})
                if command["method"] == "Page.navigate":
                    await socket.send_str(IDLE)
        except ConnectionError:
            pass  # the worker hung up
        return socket

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    async with serving(runner) as origin:
        yield origin


async def rendered(url: str, **limits: float) -> Page | None:
    made = EnrichmentSettings.model_validate({"renderer": url, "robots": False, **limits})
    politeness, guard = Politeness(made, CLOCK), Guard(LOOPBACK)
    fetcher, pool = Fetcher(made, guard, politeness, CLOCK), Pool(made, Metrics())
    robots = Robots(made, fetcher, pool, politeness, CLOCK)
    renderer = Renderer(made, guard, fetcher, robots, pool, politeness, CLOCK, Metrics())
    await fetcher.start()
    await renderer.start()
    try:
        return await renderer.rendered(SHELL, Asker("acme"), 60)
    finally:
        await renderer.close()
        await fetcher.close()


async def of_browser(
    unasked: Iterable[Sent] = (),
    replies: Iterable[dict[str, Any] | None] = (),
    version: bytes = VERSION,
    html: str = HTML,
    **limits: float,
) -> bytes | None:
    async with browser(unasked, replies, version, html) as url:
        page = await rendered(url, **limits)
    return None if page is None else page.body


async def test_a_browser_that_follows_the_protocol_is_read_at_the_operators_address() -> None:
    assert await of_browser() == HTML.encode()


@given(st.lists(st.none() | messages, max_size=15))
@settings(max_examples=drawn(60), deadline=None)
def test_no_message_ends_the_worker(unasked: list[Sent | None]) -> None:
    sent = [IDLE if one is None else one for one in unasked]
    assert asyncio.run(of_browser(sent, renderer_seconds=1)) in (None, HTML.encode())


@given(st.lists(st.none() | st.dictionaries(st.sampled_from([*"abc", "sessionId", "root"]), values), max_size=12))
@settings(max_examples=drawn(60), deadline=None)
def test_no_result_ends_the_worker(replies: list[dict[str, Any] | None]) -> None:
    assert asyncio.run(of_browser((), replies, renderer_seconds=1)) in (None, HTML.encode())


@given(st.binary(max_size=50) | values.map(lambda value: json.dumps({"webSocketDebuggerUrl": value}).encode()))
@settings(max_examples=drawn(60), deadline=None)
def test_no_description_of_a_browser_ends_the_worker(version: bytes) -> None:
    assert asyncio.run(of_browser(version=version, renderer_seconds=1)) in (None, HTML.encode())


@pytest.mark.parametrize(
    "unasked",
    [["x" * 300_000], ["[" * 50_000], ["{}", b"\x00"]],
    ids=["too large", "too deep", "binary"],
)
async def test_a_message_out_of_bounds_ends_the_rendering(unasked: list[Sent]) -> None:
    assert await of_browser(unasked, page_bytes=10_000, renderer_seconds=60) is None


async def test_html_out_of_bounds_is_not_read() -> None:
    assert await of_browser(html="x" * 20_000, page_bytes=10_000, renderer_seconds=60) is None
    assert await of_browser(html="x" * 20_000, page_bytes=30_000, renderer_seconds=60) is not None


async def test_messages_without_end_end_the_rendering() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/json/version":
            return web.Response(body=VERSION)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        try:
            while True:
                sent.append(1)
                await socket.send_str(IDLE)
        except ConnectionError:
            return socket

    sent: list[int] = []
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0)
    async with serving(runner) as origin:
        assert await rendered(origin, renderer_seconds=60) is None
    assert len(sent) >= MOST_MESSAGES
