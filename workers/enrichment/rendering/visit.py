"""One page in a browser: the worker answers each request of the page, and reads the HTML that the scripts made.

`DevTools` is the connection to the browser by Chromium's DevTools protocol: commands, results, and events, in JSON
(https://chromedevtools.github.io/devtools-protocol/). A hostile page may take over its browser, so each message counts
as hostile.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any, Final, TypeVar

import aiohttp
from pydantic import Field, ValidationError

from schemas.bounded import BoundedModel
from workers.enrichment.evidence import Page, Unreadable

MOST_MESSAGES: Final = 10_000
"""Cap on the messages of one connection. A page of 200 files has about 1,000."""

Heard = Callable[[str, dict[str, Any]], None]
"""A function that gets an event's name and parameters."""
_Value = TypeVar("_Value")


class BrowserFailed(Exception):  # noqa: N818 - named after the event
    """The browser gave no usable answer. The text gives the reason, without addresses and secrets."""


class _Message(BoundedModel):
    """The result of a command if it has an `id`, else an event."""

    id: int | None = None
    method: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    result: dict[str, Any] | None = None


class DevTools:
    """Speaks the protocol over one WebSocket. While `listen` runs, `heard` is called with each event."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, heard: Heard) -> None:
        self._socket = socket
        self._heard = heard
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        """Run a command, for a page if `session` is given, else for the browser. Return the command's result.

        Raises BrowserFailed. The result arrives only while `listen` runs.
        """
        number = next(self._ids)
        command = {"id": number, "method": method, "params": params}
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send_json(command if session is None else {**command, "sessionId": session})
            return await self._waiting[number]
        except OSError:
            raise BrowserFailed("its connection ended") from None
        finally:
            del self._waiting[number]

    async def listen(self) -> None:
        """Read messages until the connection ends. Always raises BrowserFailed."""
        for _ in range(MOST_MESSAGES):
            received = await self._socket.receive()
            if received.type is not aiohttp.WSMsgType.TEXT:
                raise BrowserFailed("its connection ended, or a message is too large or not text")
            try:
                message = _Message.model_validate_json(received.data)
            except ValidationError:
                raise BrowserFailed("it does not speak the DevTools protocol") from None
            if message.id is None:
                self._heard(message.method, message.params)
            else:
                self._settle(message.id, message.result)
        raise BrowserFailed(f"the page makes it send more than {MOST_MESSAGES} messages")

    def _settle(self, number: int, result: dict[str, Any] | None) -> None:
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return
        if result is None:
            waiting.set_exception(BrowserFailed("it refuses a command"))
        else:
            waiting.set_result(result)


def member(result: dict[str, Any], name: str, kind: type[_Value]) -> _Value:
    """Return the value under `name` in a command's result.

    Raises BrowserFailed for a value of another type than `kind`.
    """
    value = result.get(name)
    if not isinstance(value, kind):
        raise BrowserFailed("it does not speak the DevTools protocol")
    return value


MOST_LOADS: Final = 200
"""Cap on the number of files that one page loads; a large application has about a hundred scripts."""
_LOADED: Final = frozenset({"Script", "XHR", "Fetch"})
"""The kinds of requests that are answered. Images, fonts and frames add no text to the page."""
_NO_NETWORK: Final = {"proxyServer": "http://127.0.0.1:1", "proxyBypassList": "<-loopback>"}
"""The proxy for all connections of the browser, even to the browser's own machine: a reserved port without a listener.

The browser hands only the page's own HTTP requests to the worker. WebSockets, workers, windows and early
connections of the browser need a network: they fail at this proxy.
"""

_NO_DATAGRAMS: Final = "--webrtc-ip-handling-policy=disable_non_proxied_udp"
"""The browser's option that stops the datagrams of a page's WebRTC, which would bypass the proxy."""

Load = Callable[[str], Awaitable[Page]]
"""A function that fetches the file at a URL. Raises Unreadable."""


class _Request(BoundedModel):
    url: str
    method: str


class _Paused(BoundedModel):
    """The parameters of the event `Fetch.requestPaused`."""

    request_id: str = Field(alias="requestId")
    kind: str = Field(alias="resourceType")
    request: _Request


class Visit:
    """A page in a browser context of its own, which ends with the connection."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, page: Page, load: Load, settled_seconds: float) -> None:
        self._devtools = DevTools(socket, self._heard)
        self._page = page
        self._load = load
        self._settled_seconds = settled_seconds
        self.is_settled = False
        """True if the page made no more requests when its HTML was read."""
        self._session = ""
        self._opened = False
        self._loads = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._idle: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """An event for each document of the page. The event is set after half a second without a request."""

    async def html(self) -> str:
        """Return the page's HTML when the page makes no more requests, or after `settled_seconds`.

        Raises BrowserFailed. A script that runs without end blocks this call, so the caller must limit the time of the
        call.
        """
        listening = asyncio.create_task(self._devtools.listen(), name="devtools")
        visiting = asyncio.create_task(self._visited(), name="visit")
        try:
            await asyncio.wait((listening, visiting), return_when=asyncio.FIRST_COMPLETED)
            if visiting.done():
                return visiting.result()
            listening.result()
            raise AssertionError("listening ends only by an error")
        finally:
            tasks = (listening, visiting, *self._answering)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _visited(self) -> str:
        call = self._devtools.call
        await self._open()
        navigated = await call("Page.navigate", self._session, url=self._page.url)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settled_seconds):
                await self._idle[member(navigated, "loaderId", str)].wait()
                self.is_settled = True
        document = await call("DOM.getDocument", self._session, depth=0)
        node = member(member(document, "root", dict), "nodeId", int)
        return member(await call("DOM.getOuterHTML", self._session, nodeId=node), "outerHTML", str)

    async def _open(self) -> None:
        """Open an empty page. From then on, this object answers all requests of the page."""
        call = self._devtools.call
        if _NO_DATAGRAMS not in member(await call("SystemInfo.getInfo"), "commandLine", str).split():
            raise BrowserFailed(f"it was started without {_NO_DATAGRAMS}")
        made = await call("Target.createBrowserContext", disposeOnDetach=True, **_NO_NETWORK)
        context = member(made, "browserContextId", str)
        await call("Browser.setDownloadBehavior", behavior="deny", browserContextId=context)
        target = await call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await call("Target.attachToTarget", targetId=member(target, "targetId", str), flatten=True)
        self._session = member(attached, "sessionId", str)
        await call("Fetch.enable", self._session, patterns=[{"urlPattern": "*"}])
        await call("Page.enable", self._session)
        await call("Page.setLifecycleEventsEnabled", self._session, enabled=True)

    # -- events ----------------------------------------------------------------------------------------------------

    def _heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Fetch.requestPaused":
            task = asyncio.create_task(self._answer(params), name="browser-request")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif method == "Page.lifecycleEvent" and params.get("name") == "networkIdle":
            self._idle[str(params.get("loaderId"))].set()

    async def _answer(self, params: dict[str, Any]) -> None:
        """Answer one request of the browser, or refuse it."""
        with suppress(ValidationError, BrowserFailed):  # the page is gone, or the message does not fit the protocol
            paused = _Paused.model_validate(params)
            file = await self._file(paused)
            if file is None:
                # The reason `Aborted` leaves the page as it is. With another reason, the browser would show an error
                # instead.
                refused = {"requestId": paused.request_id, "errorReason": "Aborted"}
                await self._devtools.call("Fetch.failRequest", self._session, **refused)
                return
            await self._devtools.call(
                "Fetch.fulfillRequest",
                self._session,
                requestId=paused.request_id,
                responseCode=200,
                responseHeaders=_headers(file),
                body=b64encode(file.body).decode(),
            )

    async def _file(self, paused: _Paused) -> Page | None:
        """Return the page itself for the first request, and a file for a script's GET; None for refused requests."""
        if paused.kind == "Document" and not self._opened:
            self._opened = True
            return self._page
        if paused.kind not in _LOADED or paused.request.method != "GET" or self._loads == MOST_LOADS:
            return None
        self._loads += 1
        with suppress(Unreadable):
            return await self._load(paused.request.url)
        return None


def _headers(file: Page) -> list[dict[str, str]]:
    """Return the headers of a file.

    The headers let any page read the file. This is safe, since the worker requested the file without cookies and keys.
    """
    charset = f"; charset={file.charset}" if file.charset is not None else ""
    headers = {"Content-Type": file.media_type + charset, "Access-Control-Allow-Origin": "*"}
    return [{"name": name, "value": value} for name, value in headers.items() if value]
