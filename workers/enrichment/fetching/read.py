"""Reads one URL: from the cache, or fetched and then parsed by a member of the pool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from telemetry.clock import Clock, Deadline
from workers.egress import EgressRefused, Guard
from workers.enrichment.cache.cache import Cache, Partly, Reading
from workers.enrichment.cache.entry import CacheEntry, lifetime, scope_of
from workers.enrichment.evidence import Page, Unreadable
from workers.enrichment.fetching.fetch import Fetcher, Known
from workers.enrichment.fetching.robots import Robots
from workers.enrichment.processes.pool import Pool
from workers.enrichment.rendering.renderer import Renderer, is_shell
from workers.enrichment.settings import CacheSettings
from workers.enrichment.turns import Asker

_RENDERING_SHARE: Final = 0.8
"""The share of a job's remaining time for rendering a page; the rest is for reading the rendered page."""
_OCR_SHARE: Final = 0.9
"""The share of a job's remaining time for OCR of a page's pictures.

If OCR takes longer, only the page's own text is used.
"""
LATE_FOR_OCR: Final = "its pictures, or those before them in line, took too long to read"
LATE_FOR_BROWSER: Final = "the browser that runs its scripts was late"

OwnText = Callable[[dict[str, Any], str], None]
"""A function that gets the answer about a page as its server sent it, and the reason why a late job gets only this."""


_NO_TEXT: Final = {"text": "", "rest": ""}


@dataclass(frozen=True, slots=True)
class _Text:
    """A pool member's answer about a page."""

    answer: dict[str, Any]
    may_grow: bool = False
    """True if the next reading may find more: a script fills the page, or the job's time was too short."""
    is_rendered: bool = False
    is_cut: bool = False
    """True if a job with more time may find more: its pictures, or the text that its scripts make."""


class Reader:
    """Reads pages for jobs. Before each reading, `guard` checks the URL, even the URL of a cached page."""

    def __init__(
        self,
        fetcher: Fetcher,
        robots: Robots,
        pool: Pool,
        guard: Guard,
        cache: Cache,
        settings: CacheSettings,
        clock: Clock,
        renderer: Renderer | None = None,
    ) -> None:
        self._allowed = (*map(str, guard.policy.allow), *guard.policy.names)
        self._denied = (*map(str, guard.policy.deny), *guard.policy.denied_names)
        self._fetcher = fetcher
        self._robots = robots
        self._pool = pool
        self._guard = guard
        self._cache = cache
        self._settings = settings
        self._clock = clock
        self._renderer = renderer

    async def read(self, url: str, asker: Asker, patience_seconds: float) -> Reading:
        """Return the page from the cache that the tenant's scope shares, or else fetch the page. Raises Unreadable.

        If the server is late and the cache has a stale copy that may be served, return this copy.
        """
        try:
            self._guard.check_url(url)
        except EgressRefused as refused:
            raise Unreadable(f"it may not be fetched: {refused}", is_lasting=False) from None
        scope = scope_of(asker.tenant, self._allowed, self._denied)
        deadline = Deadline.after(self._clock, patience_seconds)

        async def read(older: CacheEntry | None, hand_over: Callable[[Partly], None]) -> CacheEntry:
            return await self._anew(url, older, asker, deadline, hand_over)

        return await self._cache.read(url, scope, read, patience_seconds, asker.max_age_seconds)

    async def _anew(
        self,
        url: str,
        older: CacheEntry | None,
        asker: Asker,
        deadline: Deadline,
        hand_over: Callable[[Partly], None],
    ) -> CacheEntry:
        patience_seconds = deadline.remaining
        asked_at = self._clock.time()
        known = Known(older.url, older.etag, older.last_modified) if older is not None else None
        with self._fetcher.page_bytes.page(asker) as held:
            page = await self._fetcher.fetch(url, asker, permit=self._robots.check, known=known, held=held)
            headers = replace(page, body=b"")
            if older is not None and page.is_unchanged:
                return self._entry(url, headers, _Text(older.answer or {}), asked_at, older)

            def partly(answer: dict[str, Any], late: str) -> CacheEntry:
                own = _own_text(answer, Unreadable(late, is_ours=True))
                return self._entry(url, headers, _Text(own, may_grow=True), asked_at)

            text = await self._text(page, older, asker, deadline, lambda *own: hand_over(partial(partly, *own)))
        entry = self._entry(url, headers, text, asked_at)
        return replace(entry, cut_seconds=patience_seconds) if text.is_cut else entry

    def _entry(
        self, url: str, page: Page, text: _Text, asked_at: float, unchanged: CacheEntry | None = None
    ) -> CacheEntry:
        """Return the entry of a page that was read, or whose older copy `unchanged` the server confirmed."""
        life = lifetime(page, self._settings, asked_at)
        if text.may_grow:
            page = replace(page, etag=None, last_modified=None)  # so that no 304 keeps the incomplete text
        if text.may_grow and not text.is_rendered and life is not None:
            life = replace(life, fresh=min(life.fresh, self._settings.negative_seconds))
        if unchanged is not None and not page.cache_control and page.expires is None:
            life = unchanged.life  # a 304 without new freshness keeps the old freshness (RFC 9111, section 4.3.4)
        fresh_until = asked_at + life.fresh if life is not None else asked_at
        kept_until = fresh_until + self._settings.stale_seconds if life is not None else asked_at
        named = unchanged or page
        return CacheEntry(
            asked_at, fresh_until, kept_until, url, named.url, page.etag or named.etag,
            page.last_modified or named.last_modified, text.answer, life=life,
        )  # fmt: skip

    async def _text(
        self,
        page: Page,
        older: CacheEntry | None,
        asker: Asker,
        deadline: Deadline,
        own_text: OwnText,
    ) -> _Text:
        """Return the page's text, or if scripts fill the page, the text that the scripts make. Raises Unreadable."""
        answer: dict[str, Any] | None = None
        reason, is_cut = Unreadable(""), False
        try:
            answer = await self.extracted(page, asker, deadline, own_text)
            is_cut = answer.pop("unfinished", False)
        except Unreadable as unreadable:
            reason = unreadable
        if self._renderer is not None and not reason.is_ours and is_shell(page, answer):
            own_text(answer or _NO_TEXT, LATE_FOR_BROWSER)
            rendered = await self._renderer.rendered(page, asker, deadline.remaining * _RENDERING_SHARE)
            if rendered.page is not None:
                with suppress(Unreadable):
                    answer = await self.extracted(rendered.page, asker, deadline)
            elif rendered.is_cut and (answer is None or (older is not None and older.may_be_served_late)):
                raise Unreadable(LATE_FOR_BROWSER, is_ours=True)
            elif older is not None and older.may_be_served_late:
                raise Unreadable("the browser that runs its scripts failed", is_outage=True, is_lasting=False)
            if answer is not None:
                is_rendered = rendered.page is not None
                return _Text(answer, may_grow=True, is_rendered=is_rendered, is_cut=rendered.is_cut)
        if answer is None:
            raise reason
        return _Text(answer, may_grow=is_cut, is_cut=is_cut)

    async def extracted(
        self,
        page: Page,
        asker: Asker,
        deadline: Deadline,
        own_text: OwnText = lambda *own: None,
    ) -> dict[str, Any]:
        """Return the page's title, text and particulars, as a member of the pool extracts them. Raises Unreadable.

        If OCR is configured, pictures of text are read too, and `own_text` is called before with the answer without
        their text. An answer that lacks the text of some pictures has `unfinished`.
        """
        recognition = self._pool.recognition
        task = {"kind": "extract", "media_type": page.media_type, "charset": page.charset, "url": page.url}
        answer = await self._pool.ask({**task, "ocr": recognition is not None}, page.body, asker)
        if recognition is None or not answer.pop("pictures", False):
            return answer
        own_text(answer, LATE_FOR_OCR)
        try:
            return await recognition.read(page, asker, deadline.remaining * _OCR_SHARE)
        except Unreadable as reason:
            return {**_own_text(answer, reason), "unfinished": True}


def _own_text(answer: dict[str, Any], reason: Unreadable) -> dict[str, Any]:
    """Return the answer about a page whose pictures are not read. Raises `reason` if the page has no other text."""
    if not answer["text"] and not answer["rest"]:
        raise reason
    return answer
