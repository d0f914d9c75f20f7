"""Searches with Brave Search (https://api-dashboard.search.brave.com/app/documentation/web-search)."""

from __future__ import annotations

from http import HTTPStatus
from itertools import zip_longest

from pydantic import Field, SecretStr

from schemas.bounded import BoundedModel
from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.reading.particulars import iso_date
from workers.enrichment.search.base import SearchProvider, SearchQuery, distinct, plain_excerpt, shortened
from workers.enrichment.search.service import MOST_RESULTS, Refused, Service, ServiceAnswer, Web, asked_to_wait
from workers.enrichment.settings import SearchSettings

MAX_QUERY_CHARS = 400
MAX_QUERY_WORDS = 50
"""Caps on the characters and the words of a query: Brave answers longer queries with status 422."""
_KEY_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_KEY_INVALID = "SUBSCRIPTION_TOKEN_INVALID"

_WINDOWS = ("Limit", "Remaining", "Reset")


class _BraveResult(BoundedModel):
    url: str | None = None
    title: str | None = None
    description: str | None = None
    extra_snippets: list[str] = Field(default=[], max_length=MOST_RESULTS)
    page_age: str | None = None
    """The page's date in ISO 8601."""

    @property
    def found(self) -> Found:
        """The result as a `Found`, with excerpt and date."""
        excerpt = plain_excerpt(self.description, *self.extra_snippets)
        published = Particulars(iso_date(self.page_age))
        return Found(self.url or "", title=self.title or None, excerpt=excerpt, particulars=published)


class _Web(BoundedModel):
    results: list[_BraveResult] = Field(default=[], max_length=MOST_RESULTS)


class _BraveAnswer(BoundedModel):
    web: _Web = _Web()
    """The results; absent if Brave found nothing."""


class _BraveError(BoundedModel):
    code: str = ""


class _ErrorAnswer(BoundedModel):
    error: _BraveError = _BraveError()


class Brave:
    """Implements `SearchProvider`."""

    filters = frozenset({"since", "until", "language"})

    def __init__(self, service: Service, key: SecretStr) -> None:
        self._service = service
        self._key = key

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`."""
        params = {"q": _with_sites(query), "count": str(query.limit)}
        if (days := query.days("1990-01-01", "2999-12-31")) is not None:
            params["freshness"] = "to".join(days)
        if query.language is not None:
            params["search_lang"] = query.language
        headers = {"X-Subscription-Token": self._key.get_secret_value(), "Accept": "application/json"}
        try:
            answer = await self._service.get(params, headers=headers, overloaded=_overloaded)
        except Refused as refused:
            raise _explained(refused) from None
        return distinct((result.found for result in answer.read(_BraveAnswer).web.results), query.limit)


def _with_sites(query: SearchQuery) -> str:
    """Return the query with a `site:` operator for each domain, or for as many domains as fit."""
    sites, words, chars = "", MAX_QUERY_WORDS, MAX_QUERY_CHARS
    for number in range(len(query.domains), 0, -1):
        sites = f" ({' OR '.join(f'site:{domain}' for domain in query.domains[:number])})"
        if len(sites) <= MAX_QUERY_CHARS // 2 and number * 2 <= MAX_QUERY_WORDS // 2:
            break
        sites = ""
    return shortened(query.text, chars - len(sites), words - len(sites.split())) + sites


def _explained(refused: Refused) -> Unreadable:
    """Return an error with the reason for the refusal. Status 422 means a wrong key or a wrong query."""
    if refused.answer.status in _KEY_REFUSED:
        return Unreadable("the search service refuses the operator's key")
    if refused.answer.status != HTTPStatus.UNPROCESSABLE_ENTITY:
        return refused
    if refused.answer.read(_ErrorAnswer).error.code == _KEY_INVALID:
        return Unreadable("the search service refuses the operator's key")
    return Unreadable("the search service refuses the query")


def _overloaded(answer: ServiceAnswer) -> float | None:
    """Return the seconds that an overloaded service asks to wait; None if the service is not overloaded.

    If `Retry-After` is absent, return the seconds until all exhausted windows are reset. The headers `X-RateLimit-…`
    have one number for each window (second, month). A limit of 0 means no limit.
    """
    wait = asked_to_wait(answer)
    if wait is None or "Retry-After" in answer.headers:
        return wait
    limits, remaining, resets = (_numbers(answer.headers.get(f"X-RateLimit-{name}", "")) for name in _WINDOWS)
    over = [
        reset for limit, left, reset in zip_longest(limits, remaining, resets) if limit != 0 and left == 0 and reset
    ]
    return max(over, default=wait)


def _numbers(header: str) -> list[float | None]:
    return [float(part) if part.isdecimal() else None for part in header.replace(" ", "").split(",")]


def make(settings: SearchSettings, web: Web) -> SearchProvider | None:
    """Return the provider; None if the settings have no key."""
    own = settings.brave
    return Brave(web.service(own.base_url, own.per_second), own.api_key) if own.api_key is not None else None
