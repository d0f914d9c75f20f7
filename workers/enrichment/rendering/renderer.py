"""Lets the operator's Chromium run the scripts of a page. The worker fetches all that the scripts ask for.

A rendered page is a program of a stranger. If this program could read a page of the inside network, it could send that
page's text away. So a public page loads only from public addresses, and a page in the egress guard's allow lists only
from its own origin.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
from pydantic import Field, ValidationError
from yarl import URL

from schemas.bounded import BoundedModel
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.throttle import LogThrottle
from telemetry.traces import Kind, span
from workers.egress import Guard, bounded_connector, is_listed, is_named
from workers.egress.answers import BodyTooLarge, bounded_body
from workers.enrichment.evidence import Page, Unreadable
from workers.enrichment.fetching.attached import Room
from workers.enrichment.fetching.fetch import Fetcher, Politeness
from workers.enrichment.fetching.robots import Robots
from workers.enrichment.processes.pool import Pool
from workers.enrichment.reading.extract import HTML_TYPES
from workers.enrichment.rendering.visit import BrowserFailed, Visit
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker, Turns

SHELL_CHARS: Final = 200
"""A page with a script is rendered if it has fewer characters of text than this."""
_SETTLED_SHARE: Final = 0.7
"""Share of a rendering's time after which the HTML is read even if the page still loads."""
_SCRIPT: Final = re.compile(rb"<script[\s>/]", re.IGNORECASE)
_SAY_SECONDS: Final = 60.0
_MESSAGE_BYTES: Final = 64 * 1024
"""Cap on the bytes of the answer of `/json/version`, and of the part of a message that is not HTML."""

log = get_logger()


class _Version(BoundedModel):
    """The answer of `/json/version`."""

    socket_url: str = Field(alias="webSocketDebuggerUrl")


def is_shell(page: Page, answer: dict[str, Any] | None) -> bool:
    """True if a script may fill this page: it is HTML with a script and hardly any text.

    `answer` is a pool member's answer about the page; None if the page has no text.
    """
    chars = 0 if answer is None else len(answer["text"]) + len(answer["rest"])
    return chars < SHELL_CHARS and page.media_type in HTML_TYPES and _SCRIPT.search(page.body) is not None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The outcome of one rendering."""

    page: Page | None = None
    """The page with the HTML that its scripts made, encoded as UTF-8; None if the browser failed or was late."""
    is_cut: bool = False
    """True if more time may give more: the browser was late, or the page still loaded when its HTML was read."""


class Renderer:
    """The operator's browser, for all jobs of a worker. A bounded number of pages is rendered at once."""

    def __init__(
        self,
        settings: EnrichmentSettings,
        guard: Guard,
        fetcher: Fetcher,
        robots: Robots,
        pool: Pool,
        politeness: Politeness,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._policy = guard.policy
        public = replace(guard, policy=replace(guard.policy, allow=(), names=frozenset()))
        self._inside = fetcher
        self._public = Fetcher(settings, public, politeness, clock, fetcher.page_bytes)
        self._inside_robots, self._public_robots = robots, Robots(settings, self._public, pool, politeness, clock)
        self._clock = clock
        self._results = metrics.renderings.begin()
        self._turns = Turns(settings.renderer_pages)
        self._throttle = LogThrottle(_SAY_SECONDS)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the sessions; nothing is connected yet."""
        await self._public.start()
        secret = self._settings.renderer_secret
        self._session = aiohttp.ClientSession(
            connector=bounded_connector(),
            headers={} if secret is None else {"Authorization": f"Bearer {secret.get_secret_value()}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # the caller's time is the only limit
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._public_robots.close()
        await self._public.close()
        if self._session is not None:
            await self._session.close()

    async def rendered(self, page: Page, asker: Asker, seconds: float) -> Rendered:
        """Return the page as its scripts fill it. The browser is late after `seconds`, or the time in the settings."""
        has_more_time = seconds < self._settings.renderer_seconds
        seconds = min(seconds, self._settings.renderer_seconds)
        try:
            with span("render", None, kind=Kind.CLIENT):
                async with asyncio.timeout(seconds), self._turns.place(asker):
                    html, is_settled = await self._html(page, asker, seconds * _SETTLED_SHARE)
        except TimeoutError:
            self._results["late"].inc()
            return Rendered(is_cut=has_more_time)
        except (BrowserFailed, aiohttp.ClientError, OSError, ValueError) as error:
            self._results["failed"].inc()
            self._say(error)
            return Rendered()
        self._results["rendered"].inc()
        return Rendered(replace(page, body=html, charset="utf-8"), is_cut=has_more_time and not is_settled)

    async def _html(self, page: Page, asker: Asker, settled_seconds: float) -> tuple[bytes, bool]:
        """Return the page's HTML, and whether it had loaded all. Raises BrowserFailed, and aiohttp's errors."""
        most = self._settings.page_bytes
        # A message may be twice as long as its HTML: JSON escapes quotes and the ends of lines.
        size = 2 * most + _MESSAGE_BYTES
        async with self._opened().ws_connect(await self._socket_url(), max_msg_size=size) as socket:
            visit = Visit(socket, page, self._loader(page, asker), settled_seconds)
            html = await visit.html()
        encoded = html.encode("utf-8", "replace")
        if len(encoded) > most:
            raise BrowserFailed(f"the rendered page is larger than {most} bytes")
        return encoded, visit.is_settled

    async def _socket_url(self) -> URL:
        """Ask the browser for the path of its WebSocket, which is new at each start. Raises BrowserFailed."""
        base = URL(str(self._settings.renderer))
        async with self._opened().get(base / "json" / "version", allow_redirects=False) as response:
            if response.status != 200:
                raise BrowserFailed(f"it answered {response.status}")
            try:
                body = await bounded_body(response, _MESSAGE_BYTES)
                path = URL(_Version.model_validate_json(body).socket_url).path
            except (BodyTooLarge, ValidationError, ValueError):
                raise BrowserFailed("it does not speak the DevTools protocol") from None
        return base.with_path(base.path.rstrip("/") + path)  # only the path of the answer's URL is used

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the renderer has not been started")
        return self._session

    def _loader(self, page: Page, asker: Asker) -> Callable[[str], Awaitable[Page]]:
        """Return a function that fetches a page's files, from allowed addresses only, and up to a number of bytes."""
        url = URL(page.url)
        is_inside = is_named(url.raw_host or "", self._policy) or is_listed(url.host or "", self._policy)
        if page.is_inside and not is_inside:
            return _load_nothing  # the name's owner may point it at any address, so not even its origin is safe
        fetcher = self._inside if is_inside else self._public
        robots = self._inside_robots if is_inside else self._public_robots
        room = Room(self._settings.renderer_bytes, "the page loads more bytes than the settings allow")

        async def permit(wanted: str, asker: Asker) -> None:
            if is_inside and URL(wanted).origin() != url.origin():
                raise Unreadable("it is not of the page's own origin")
            await robots.check(wanted, asker)

        async def load(wanted: str) -> Page:
            return await fetcher.fetch(wanted, asker, permit=permit, counted=room.take, accept="*/*")

        return load

    def _say(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, BrowserFailed) else type(error).__name__
        if self._throttle.admit(self._clock.monotonic(), reason) is not None:
            log.warning(
                "The renderer failed; using an older copy of the page, or the page as its server sent it.",
                action="renderer-failed",
                reason=reason,
            )


async def _load_nothing(_wanted: str) -> Page:
    raise Unreadable("the page came from an internal address, but the lists lack its name")
