"""Search services whose answers in JSON name links, as `services.toml` describes them: SearXNG, Brave and Wikipedia."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from http import HTTPStatus
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.reading.particulars import iso_date
from workers.enrichment.search.base import SearchProvider, SearchQuery, distinct, plain_excerpt, shortened
from workers.enrichment.search.service import (
    KEY_REFUSED,
    MOST_RESULTS,
    Refused,
    Service,
    ServiceAnswer,
    Web,
    asked_to_wait,
    retry_after,
)
from workers.enrichment.settings import BraveSettings, SearchSettings, SearxngSettings, WikipediaSettings

_SERVICES: Final[dict[str, dict[str, Any]]] = tomllib.loads(
    Path(__file__).with_name("services.toml").read_text(encoding="utf-8")
)
_MOST_RESULTS: Final = 50
_WINDOWS: Final = ("Limit", "Remaining", "Reset")
_ANOTHER_FORM: Final = "the search service's answer has another form than its documentation says"


class JsonService:
    """Implements `SearchProvider` for one service."""

    def __init__(self, about: Mapping[str, Any], service: Service, key: SecretStr | None) -> None:
        self._about = about
        self._service = service
        self._key = key
        self.filters = frozenset(
            {*(("since", "until") if "days" in about else ()), *(("language",) if "language" in about else ())}
        )

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`."""
        headers = {"Accept": "application/json"}
        if self._key is not None:
            headers[self._about["key"]] = self._key.get_secret_value()
        try:
            answer = await self._service.get(
                self._parameters(query), path=self._about.get("path", ""), headers=headers, overloaded=self._overloaded
            )
        except Refused as refused:
            raise self._explained(refused) from None
        value = answer.json()
        if isinstance(value, dict) and "error" in value:
            raise Unreadable("the search service refuses the query")
        found = distinct(map(self._found, self._items(value)), query.limit)
        if not found and isinstance(value, dict) and value.get(self._about.get("silent", "")):
            raise Unreadable("none of the search service's engines answered")
        return found

    def _parameters(self, query: SearchQuery) -> dict[str, str]:
        about = self._about
        sent = {**about.get("parameters", {}), about["query"]: self._text(query)}
        if "limit" in about:
            sent[about["limit"]] = str(min(query.limit + about.get("spare", 0), _MOST_RESULTS))
        if "days" in about and (days := query.days(about["first_day"], about["last_day"])) is not None:
            sent[about["days"]] = "to".join(days)
        if "language" in about and query.language is not None:
            sent[about["language"]] = query.language
        return sent

    def _text(self, query: SearchQuery) -> str:
        """Return the query as the service takes it: cut, with a `site:` operator for as many domains as fit."""
        if "most_chars" not in self._about:
            return query.text
        chars, words = self._about["most_chars"], self._about.get("most_words", 1000)
        most = len(query.domains) if self._about.get("has_sites") else 0
        for number in range(most, 0, -1):
            sites = f" ({' OR '.join(f'site:{domain}' for domain in query.domains[:number])})"
            if len(sites) <= chars // 2 and number * 2 <= words // 2:
                return shortened(query.text, chars - len(sites), words - len(sites.split())) + sites
        return shortened(query.text, chars, words)

    def _items(self, value: object) -> list[dict[str, Any]]:
        """Return the results of an answer in their order. Raises Unreadable."""
        for name in self._about["items"]:
            if not isinstance(value, dict):
                raise Unreadable(_ANOTHER_FORM)
            value = value.get(name)
            if value is None and not self._about.get("must_have_items"):
                return []
        if not isinstance(value, list) or len(value) > MOST_RESULTS or not all(isinstance(one, dict) for one in value):
            raise Unreadable(_ANOTHER_FORM)
        if "without" in self._about:
            outer, inner = self._about["without"]
            value = [one for one in value if inner not in (one.get(outer) or {})]
        order = self._about.get("order")
        return sorted(value, key=lambda one: _number(one.get(order))) if order is not None else value

    def _found(self, item: Mapping[str, Any]) -> Found:
        about = self._about
        link = next((text for name in about["link"] if (text := _text(item.get(name))) is not None), "")
        texts = [item.get(name) for name in about.get("excerpts", ())]
        flat = [part for text in texts for part in (text if isinstance(text, list) else [text])]
        return Found(
            link,
            title=_text(item.get("title")) or None,
            excerpt=plain_excerpt(*map(_text, flat[:MOST_RESULTS])),
            particulars=Particulars(iso_date(item.get(about.get("date", "")))),
        )

    def _explained(self, refused: Refused) -> Unreadable:
        """Return an error with the reason for the refusal. Brave's status 422 means a wrong key or a wrong query."""
        status, reasons = refused.answer.status, self._about.get("refused", {})
        if self._key is not None and (status in KEY_REFUSED or self._names_key(refused.answer)):
            return Unreadable("the search service refuses the operator's key")
        return Unreadable(reasons[str(status)]) if str(status) in reasons else refused

    def _names_key(self, answer: ServiceAnswer) -> bool:
        if answer.status != HTTPStatus.UNPROCESSABLE_ENTITY:
            return False
        value = answer.json()
        error = value.get("error") if isinstance(value, dict) else None
        return isinstance(error, dict) and error.get("code") == self._about["wrong_key"]

    def _overloaded(self, answer: ServiceAnswer) -> float | None:
        """Return the seconds that an overloaded service asks to wait; None if the service is not overloaded.

        Without `Retry-After`, these are the seconds until all exhausted windows are reset, which Brave states in
        `X-RateLimit-…` with one number for each window (second, month). A limit of 0 means no limit.
        """
        busy = self._about.get("busy")
        if busy is not None and answer.headers.get(busy["header"]) in busy["codes"]:
            return retry_after(answer)
        wait = asked_to_wait(answer)
        if wait is None or "Retry-After" in answer.headers:
            return wait
        limits, remaining, resets = (_numbers(answer.headers.get(f"X-RateLimit-{name}", "")) for name in _WINDOWS)
        over = [
            reset for limit, left, reset in zip_longest(limits, remaining, resets) if limit != 0 and left == 0 and reset
        ]
        return max(over, default=wait)


def json_service(name: str, settings: SearchSettings, web: Web) -> SearchProvider | None:
    """Return the provider `name`; None if the settings lack the URL of its instance, or its key."""
    own: SearxngSettings | BraveSettings | WikipediaSettings = getattr(settings, name)
    about, key = _SERVICES[name], own.api_key if isinstance(own, BraveSettings) else None
    if own.base_url is None or ("key" in about and key is None):
        return None
    return JsonService(about, web.service(own.base_url, own.per_second / settings.workers), key)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> float:
    return value if isinstance(value, int) else _MOST_RESULTS


def _numbers(header: str) -> list[float | None]:
    return [float(part) if part.isdecimal() else None for part in header.replace(" ", "").split(",")]
