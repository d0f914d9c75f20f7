"""Fetches one URL, behind the egress guard. For each fault of a server, raises an `Unreadable` with the reason.

`PageBytes` bounds the bytes of pages that a worker has in memory, and `Politeness` paces the requests to each site.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Final

import aiohttp
from cachetools import LRUCache
from yarl import URL

from telemetry.clock import Clock
from telemetry.logs import get_logger, origin_of
from telemetry.traces import Kind, annotate, span
from workers.egress import EgressRefused, Guard, ProxyFailed, Refusal, reached_inside
from workers.egress.answers import parse_retry_after
from workers.enrichment.evidence import Page, Unreadable
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker, Turns

_TENANT_SHARE: Final = 0.75
"""The share of the common part that one tenant's pages may hold, so that hung servers of one tenant leave some to the
others."""


@dataclass(slots=True, eq=False)
class HeldPage:
    """The bytes that one page holds."""

    _budget: PageBytes
    tenant: str
    held: int = 0

    async def take(self, count: int) -> None:
        """Wait until `count` more bytes are free, and hold them too."""
        await self._budget.take(self, count)


@dataclass(slots=True, eq=False)
class _Request:
    page: HeldPage
    count: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class PageBytes:
    """The budget of `most` bytes; `largest` is the size of the largest page that is read."""

    def __init__(self, most: int, largest: int) -> None:
        self._common = max(0, most - largest)
        """The bytes that all pages share, besides the one page that has the part set apart."""
        self._alone: HeldPage | None = None
        """The page that has the part set apart."""
        self._used: Counter[str] = Counter()
        """The bytes of the common part that each tenant's pages hold."""
        self._waiting: list[_Request] = []
        """The requests in the order of their arrival."""

    @contextmanager
    def page(self, asker: Asker) -> Iterator[HeldPage]:
        """Yield a page that holds no bytes yet. All that it takes is free again when the context ends."""
        page = HeldPage(self, asker.tenant)
        try:
            yield page
        finally:
            if page is self._alone:
                self._alone = None
            else:
                self._leave_common(page)
            self._give()

    async def take(self, page: HeldPage, count: int) -> None:
        """Wait until the page may hold `count` more bytes. Requests that are cancelled leave the line at once."""
        request = _Request(page, count)
        self._waiting.append(request)
        self._give()
        try:
            await request.granted
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
                self._give()

    def _give(self) -> None:
        """Grant requests as long as the first in line fits; a tenant with fewer bytes goes before one with more."""
        while self._waiting:
            request = min(self._waiting, key=self._order)
            page = request.page
            if page is not self._alone and not self._fits(request):
                if self._alone is not None:
                    return
                self._leave_common(page)
                self._alone = page
            elif page is not self._alone:
                self._used[page.tenant] += request.count
            page.held += request.count
            self._waiting.remove(request)
            if not request.granted.done():
                request.granted.set_result(None)

    def _order(self, request: _Request) -> tuple[bool, int]:
        """The page that is alone is first, since it is what others wait for."""
        return request.page is not self._alone, self._used[request.page.tenant]

    def _fits(self, request: _Request) -> bool:
        of_tenant = self._used[request.page.tenant] + request.count
        return self._used.total() + request.count <= self._common and of_tenant <= self._common * _TENANT_SHARE

    def _leave_common(self, page: HeldPage) -> None:
        self._used[page.tenant] -= page.held
        if not self._used[page.tenant]:
            del self._used[page.tenant]


MAX_HELD_SECONDS: Final = 3600.0
"""Cap on the seconds that a site may ask for by `Retry-After` or `Crawl-delay`."""
_HOSTS: Final = 10_000


@dataclass(slots=True)
class _Site:
    interval: float
    asked_at: float = float("-inf")
    """The monotonic time of the last turn."""
    held_until: float = float("-inf")
    waiting: int = 0
    """The number of requests that wait for a turn."""
    queue: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the request whose turn is next; the lock lets the others in by order of arrival."""

    @property
    def free_at(self) -> float:
        """The monotonic time from which the next request may go to the site."""
        return max(self.asked_at + self.interval, self.held_until)


class Politeness:
    """Paces the requests of all jobs of this worker to each origin."""

    def __init__(self, settings: EnrichmentSettings, clock: Clock) -> None:
        self._interval = settings.host_interval_seconds
        self._longest = settings.budget_seconds
        self._clock = clock
        self._sites: LRUCache[str, _Site] = LRUCache(_HOSTS)

    async def turn(self, origin: str) -> None:
        """Wait until the next request may go to the site.

        A request that is cancelled uses up no turn: the next one takes its place. Raises Unreadable at once if the wait
        would exceed a job's budget, and at its turn if the site has asked for such a pause meanwhile.
        """
        site = self._site(origin)
        self._seconds_left(site, site.waiting)
        site.waiting += 1
        try:
            async with site.queue:
                seconds = self._seconds_left(site, 0)
                while seconds > 0:
                    await asyncio.sleep(seconds)
                    seconds = self._seconds_left(site, 0)  # the site may have asked for a pause meanwhile
                site.asked_at = self._clock.monotonic()
        finally:
            site.waiting -= 1

    def _seconds_left(self, site: _Site, ahead: int) -> float:
        """Return the wait for the turn behind `ahead` other requests. Raises Unreadable if it is too long."""
        now = self._clock.monotonic()
        seconds = max(now, site.free_at) + ahead * site.interval - now
        if seconds > self._longest:
            raise Unreadable("its site asked for a pause", is_outage=True, is_lasting=False)
        return seconds

    def pace(self, origin: str, seconds: float) -> None:
        """Set the pause between requests to the site from its robots.txt; `seconds` is 0 if the file names no delay."""
        self._site(origin).interval = max(self._interval, min(seconds, MAX_HELD_SECONDS))

    def hold(self, origin: str, seconds: float) -> None:
        """Pause requests to the site for `seconds`, as the site's `Retry-After` asks."""
        site = self._site(origin)
        site.held_until = max(site.held_until, self._clock.monotonic() + min(seconds, MAX_HELD_SECONDS))

    def _site(self, origin: str) -> _Site:
        return self._sites.setdefault(origin, _Site(self._interval))


_CHUNK_BYTES: Final = 64 * 1024
_FIELD_BYTES: Final = 8190
_FIELDS: Final = 128
"""Caps on the bytes of one header line, and on the number of headers. An answer above one of these caps is refused."""

_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_ACCEPT: Final = (
    "text/html,application/xhtml+xml,application/pdf;q=0.9,application/json;q=0.9,text/plain;q=0.8,*/*;q=0.1"
)

_FILES: Final = (b"%PDF-", b"PK\x03\x04")
"""The first bytes of PDFs and Office files, which may be larger than a page.

They are recognised by these bytes, because servers often declare a wrong type.
"""
_PICTURES: Final = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"RIFF")
"""The first bytes of the images that OCR reads."""

NO_PUBLIC_NAME: Final = "its name was not found, or leads to an address that is not public"
"""The reason both for missing names and for names that are not public, so that jobs cannot tell which case it is."""
_SEEN_BY_RESOLVING: Final = frozenset({Refusal.ADDRESS, Refusal.DENIED, Refusal.MIXED})

_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientConnectorCertificateError, "its certificate was not accepted"),
    (aiohttp.ClientSSLError, "TLS with its server failed"),
    (aiohttp.ClientConnectorError, "its server could not be reached"),
    (aiohttp.ClientPayloadError, "its body ended early or could not be decoded"),
    (aiohttp.ServerConnectionError, "its server closed the connection"),
    (aiohttp.ClientResponseError, "its server's answer is not HTTP, or exceeds the worker's limits"),
    (aiohttp.InvalidURL, "its URL cannot be read"),
    (ValueError, "its URL cannot be read"),
)
"""The reason for each class of error. The first class that matches an error is used, so subclasses come first.

The libraries' own texts are not used, since they quote whole URLs.
"""

log = get_logger()

Permit = Callable[[str, Asker], Awaitable[None]]
Counted = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Known:
    """A cached copy of a page, with the validators (RFC 9110, section 8.8) that the server sent for it."""

    url: str
    etag: str | None
    last_modified: str | None

    @property
    def conditions(self) -> dict[str, str]:
        """The headers of a conditional request; empty if the server sent no validator."""
        named = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The options of one call of `Fetcher.fetch`."""

    permit: Permit | None
    cut_at_bytes: int | None
    known: Known | None
    counted: Counted | None
    accept: str | None
    held: HeldPage | None

    def conditions(self, url: URL) -> dict[str, str]:
        """Return the headers that make a request to this URL conditional; empty if no copy of this URL is known."""
        return self.known.conditions if self.known is not None and self.known.url == str(url) else {}


class BadStatus(Unreadable):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, retry_after_seconds: float | None = None) -> None:
        is_outage = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
        super().__init__(f"its server answered {status}", is_outage=is_outage)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        """The pause that a 429 or 503 asks for; None for other statuses and without `Retry-After`."""


class Fetcher:
    """Fetches pages for all jobs of a worker. The number of connections is limited in total and for each site.

    A job may use a connection until the job's budget ends. So some connections are reserved for tenants with few
    connections, and some for jobs without a connection.
    """

    def __init__(
        self,
        settings: EnrichmentSettings,
        guard: Guard,
        politeness: Politeness,
        clock: Clock,
        page_bytes: PageBytes | None = None,
    ) -> None:
        largest = max(settings.page_bytes, settings.pdf_bytes)
        self.page_bytes = page_bytes or PageBytes(settings.in_flight_bytes, largest)
        """The worker's budget of bytes in memory; a worker's second fetcher is given that of the first."""
        self._settings = settings
        self._politeness = politeness
        self._clock = clock
        self._guard = guard
        self._session: aiohttp.ClientSession | None = None
        self._large = _FILES if settings.ocr is None else (*_FILES, *_PICTURES)
        self._turns = _turns(settings.connections)
        self._at_sites: dict[str, Turns] = {}

    async def start(self) -> None:
        """Open the session; nothing is connected yet."""
        self._session = self._guard.session(
            limit=self._settings.connections,
            limit_per_host=self._settings.connections_per_host,
            headers={"User-Agent": self._settings.named, "Accept": _ACCEPT, "Accept-Encoding": "gzip, deflate"},
            max_line_size=_FIELD_BYTES,
            max_field_size=_FIELD_BYTES,
            max_headers=_FIELDS,
            timeout=aiohttp.ClientTimeout(total=None),  # the caller's budget is the only time limit
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def fetch(
        self,
        url: str,
        asker: Asker,
        *,
        permit: Permit | None = None,
        cut_at_bytes: int | None = None,
        known: Known | None = None,
        counted: Counted | None = None,
        accept: str | None = None,
        held: HeldPage | None = None,
    ) -> Page:
        """Fetch the page at the end of the redirects. Only the caller can limit the time, by cancelling the call.

        `permit` checks each URL after the guard and before the request, and raises Unreadable to refuse the URL. A body
        is read up to `cut_at_bytes`, or else up to the settings' size of a page, and cut there; a PDF, an Office file
        or a picture that is larger than the settings allow raises Unreadable instead. If the function `counted` is
        given, it replaces these limits: it is called with the size of each piece, and raises Unreadable to end the
        fetch. If `accept` is given, it replaces the value of the header `Accept` for pages. A
        request to the URL of a `known` copy is conditional (RFC 9110, section 13).

        The page takes its bytes from the worker's budget, in the name of `held` until the caller lets `held` go, or
        without it until the call ends. A page with `counted` takes none, since the caller bounds such pages together.
        Raises Unreadable.
        """
        own = self.page_bytes.page(asker) if held is None and counted is None else nullcontext(held)
        with span("fetch", None, {"url.origin": origin_of(url)}, kind=Kind.CLIENT), own as page:
            try:
                return await self._follow(url, asker, _Wanted(permit, cut_at_bytes, known, counted, accept, page))
            except EgressRefused as refused:
                raise Unreadable(f"it may not be fetched: {refused}", is_lasting=False) from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise Unreadable(_reason(error), is_outage=_is_outage(error)) from None

    async def _follow(self, url: str, asker: Asker, wanted: _Wanted) -> Page:
        current = self._guard.check_url(url)
        for _ in range(self._settings.redirects + 1):
            if wanted.permit is not None:
                await wanted.permit(str(current), asker)
            conditions = wanted.conditions(current)
            headers = conditions if wanted.accept is None else {**conditions, "Accept": wanted.accept}
            async with self._asked(current, asker, headers, is_paced=wanted.permit is not None) as response:
                if conditions and response.status == HTTPStatus.NOT_MODIFIED:
                    return replace(_described(response, b""), is_unchanged=True)
                if response.status not in _MOVED:
                    return await self._page(response, wanted)
                location = response.headers.get("Location")
            if location is None:
                raise Unreadable("it redirects without a target")
            current = self._guard.check_reference(current, location)
        raise Unreadable(f"it redirects more than {self._settings.redirects} times")

    @asynccontextmanager
    async def _asked(
        self, url: URL, asker: Asker, headers: dict[str, str], *, is_paced: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Wait for a place at the site and for a connection. Yield the response, whose body is not read yet."""
        origin = str(url.origin())
        at_site = self._at_sites.setdefault(origin, _turns(self._settings.connections_per_host))
        try:
            async with at_site.place(asker):
                if is_paced:
                    await self._politeness.turn(origin)
                async with self._turns.place(asker), await self._answered(url, headers) as response:
                    yield response
        finally:
            if at_site.is_idle:
                self._at_sites.pop(origin, None)

    async def _answered(self, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Send the request, and return the response, whose body is not read yet.

        Raises Unreadable for a name without a public address. Passes on all other errors of aiohttp and of the guard.
        """
        if self._session is None:
            raise RuntimeError("the fetcher has not been started")
        try:
            return await self._session.get(url, allow_redirects=False, headers=headers)
        except aiohttp.ClientConnectorDNSError:
            raise _without_public_address(url, "no such name") from None
        except EgressRefused as refused:
            if refused.reason not in _SEEN_BY_RESOLVING:
                raise
            raise _without_public_address(url, str(refused.reason)) from None

    async def _page(self, response: aiohttp.ClientResponse, wanted: _Wanted) -> Page:
        annotate({"http.response.status_code": response.status})
        if response.status != HTTPStatus.OK:
            raise BadStatus(response.status, self._heeded(response))
        body = bytearray()
        limit, is_file = wanted.cut_at_bytes or self._settings.page_bytes, False
        # The chunks are decompressed, so the limit also stops compression bombs.
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            if wanted.held is not None:
                await wanted.held.take(len(chunk))
            body += chunk
            if wanted.counted is not None:
                wanted.counted(len(chunk))
                continue
            if wanted.cut_at_bytes is None and body.startswith(self._large):
                limit, is_file = self._settings.pdf_bytes, True
            if len(body) > limit:
                break
        if wanted.counted is not None:
            return _described(response, bytes(body))
        if is_file and len(body) > limit:
            raise Unreadable(f"it is larger than {limit} bytes")
        del body[limit:]
        return _described(response, bytes(body))

    def _heeded(self, response: aiohttp.ClientResponse) -> float | None:
        """Pause requests to an origin that answers 429 or 503 with `Retry-After` (RFC 9110, section 10.2.3).

        Returns the seconds of the pause; None if the answer asks for none.
        """
        if response.status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            return None
        seconds = parse_retry_after(response.headers.get("Retry-After", ""), self._clock.time())
        if seconds is not None:
            self._politeness.hold(str(response.url.origin()), seconds)
        return seconds


def _without_public_address(url: URL, reason: str) -> Unreadable:
    """Return the same error for missing names and for names that are not public: jobs cannot tell which case it is."""
    log.info(
        "A source's name has no address that may be fetched; hiding the reason from the job.",
        action="source-name-refused",
        origin=origin_of(str(url)),
        reason=reason,
    )
    return Unreadable(NO_PUBLIC_NAME, is_outage=True, is_lasting=False)


def _turns(connections: int) -> Turns:
    """Return a queue for `connections` places.

    A quarter is reserved for tenants with few places, and a quarter for jobs without a place, see `turns`.
    """
    return Turns(connections, kept=connections // 4)


def _described(response: aiohttp.ClientResponse, body: bytes) -> Page:
    headers = response.headers
    return Page(
        url=str(response.url),
        media_type=response.content_type.lower() if "Content-Type" in headers else "",
        charset=response.charset,
        body=body,
        etag=headers.get("ETag"),
        last_modified=headers.get("Last-Modified"),
        cache_control=", ".join(headers.getall("Cache-Control", [])),
        expires=headers.get("Expires"),
        date=headers.get("Date"),
        age=headers.get("Age"),
        is_inside=reached_inside(),
    )


def _is_outage(error: Exception) -> bool:
    """Return False if the URL is at fault, and True if the server or the network is at fault.

    An SSLCertVerificationError is a ValueError, but is treated as an outage, because the server may renew its
    certificate.
    """
    return isinstance(error, ssl.SSLError) or not isinstance(error, ValueError)


def _reason(error: Exception) -> str:
    if isinstance(error, ProxyFailed):
        return str(error)
    return next((text for kind, text in _REASONS if isinstance(error, kind)), "the connection to its server failed")
