"""Sources of `kind = "http_json"`: an HTTP API of the operator's with answers in JSON, such as a FHIR server."""

from __future__ import annotations

from pathlib import Path

import jmespath
from yarl import URL

from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.base import SearchQuery
from workers.enrichment.search.inside import (
    REFUSED_KEY,
    HttpJsonFile,
    InsideSource,
    Items,
    evaluated,
    filled,
    filled_value,
)
from workers.enrichment.search.service import KEY_REFUSED, Refused, ServiceRequest, Web


class HttpJsonSource(InsideSource):
    """Implements `SearchProvider`."""

    def __init__(self, name: str, file: HttpJsonFile, folder: Path, web: Web) -> None:
        super().__init__(name, file, folder)
        self._file = file
        self._service = web.service(file.url, file.per_second)
        self._items = Items(file.read)
        self._next = jmespath.compile(file.next) if file.next is not None else None

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`. Reads one page of results after the other until there are enough results."""
        values = {**self.values_of(query), "page": "1", "offset": "0", "cursor": ""}
        headers = {name: filled(text, self._with_secrets(query, values)) for name, text in self._file.headers.items()}
        url = self._url(values)
        found: list[Found] = []
        seen = 0
        for page in range(1, self._file.pages + 1):
            answer = await self._answer(url, headers, values)
            items = self._items.of(answer)
            found += filter(None, map(self.result_of, items))
            seen += len(items)
            values = {**values, "page": str(page + 1), "offset": str(seen)}
            following = self._following(answer, url, values)
            if len(found) >= query.limit or not items or following is None:
                break
            url = following
        return found[: query.limit]

    async def _answer(self, url: URL, headers: dict[str, str], values: dict[str, str]) -> object:
        body = filled_value(self._file.body, values)
        accepting = {"Accept": "application/json", **headers}
        request = ServiceRequest(url, headers=accepting, method=self._file.method, body=body)
        try:
            return (await self._service.send(request)).json()
        except Refused as refused:
            if refused.answer.status in KEY_REFUSED:
                raise Unreadable(REFUSED_KEY) from None
            raise

    def _following(self, answer: object, url: URL, values: dict[str, str]) -> URL | None:
        """Return the URL of the next page: the one in the answer, or the same with another page, offset or cursor."""
        if self._next is None:
            paged = {"{page}", "{offset}"}
            return self._url(values) if any(name in self._file.url for name in paged) else None
        named = evaluated(self._next, answer)
        if not isinstance(named, str) or not named:
            return None
        if "{cursor}" in self._file.url:
            return self._url({**values, "cursor": named})
        try:
            following = url.join(URL(named))
        except ValueError:
            raise Unreadable("the source's next page has no valid address") from None
        if following.origin() != url.origin():
            raise Unreadable("the source's next page is on another server")  # another server would get the secrets
        return following

    def _url(self, values: dict[str, str]) -> URL:
        return URL(filled(self._file.url, values, encode=True), encoded=True)
