"""Search services on loopback, with scripted answers in the formats of the real services' documentation."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

from telemetry.clock import SystemClock
from workers.enrichment.search.base import SearchProvider
from workers.enrichment.search.providers import providers
from workers.enrichment.search.service import Web
from workers.enrichment.settings import SearchSettings

CLOCK = SystemClock()
FAST = 1000.0
"""Requests per second that a service allows: so many that only the tests of pace have to wait."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a service."""

    body: bytes
    media_type: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def in_json(value: object, status: int = 200, /, **headers: str) -> Reply:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(json.dumps(value).encode(), "application/json", status, named)


def page_of_html(status: int = 200) -> Reply:
    return Reply(b"<!DOCTYPE html><title>Sorry</title><p>Something went wrong.</p>", "text/html", status)


@dataclass(slots=True)
class Service:
    """Gives the scripted answers in order, repeats the last one, and remembers the requests."""

    replies: list[Reply]
    url: str = ""
    asked: list[web.Request] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        if request.can_read_body:
            self.bodies.append(await request.json())
        return _sent(self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])

    @property
    def queries(self) -> list[dict[str, str]]:
        """The query parameters of each request."""
        return [dict(request.query) for request in self.asked]


@asynccontextmanager
async def answering(*replies: Reply) -> AsyncIterator[Service]:
    """A service with these answers on a free port."""
    service = Service(list(replies))
    async with served(service.answer) as service.url:
        yield service


@asynccontextmanager
async def served(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A server on a free port whose every request gets its answer from `answer`; yields the server's URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


def _sent(reply: Reply) -> web.Response:
    headers = {"Content-Type": reply.media_type, **reply.headers}
    return web.Response(body=reply.body, status=reply.status, headers=headers)


@asynccontextmanager
async def configured(name: str, base_url: str, **section: Any) -> AsyncIterator[SearchProvider]:
    """One search provider, made from an operator's settings."""
    settings = SearchSettings.model_validate({name: {"base_url": base_url, "per_second": FAST, **section}})
    connections = Web("Postback-tests/1", CLOCK, "me@example.com")
    await connections.start()
    try:
        yield providers(settings, connections)[name]
    finally:
        await connections.close()


# -- PubMed: the E-utilities --------------------------------------------------------------------


def esearch(*ids: str) -> Reply:
    result = {
        "count": str(len(ids)),
        "retmax": str(len(ids)),
        "retstart": "0",
        "idlist": list(ids),
        "translationset": [],
    }
    return in_json({"header": {"type": "esearch", "version": "0.3"}, "esearchresult": result})


def pubmed_article(number: str, title: str, abstract: str, *, more: str = "", kind: str = "D016428") -> str:
    """One article of efetch; `abstract` is the content of its Abstract element, which is omitted if empty."""
    return f"""<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{number}</PMID>
<Article PubModel="Print"><Journal><ISSN>0000-0000</ISSN><JournalIssue CitedMedium="Internet"><Volume>7</Volume>
<PubDate><Year>2019</Year><Month>Mar</Month><Day>5</Day></PubDate></JournalIssue><Title>A journal</Title></Journal>
<ArticleTitle>{title}</ArticleTitle>{f"<Abstract>{abstract}</Abstract>" if abstract else ""}
<PublicationTypeList><PublicationType UI="{kind}">Any Type</PublicationType></PublicationTypeList></Article>
<CommentsCorrectionsList><CommentsCorrections RefType="Cites"><PMID Version="1">999</PMID></CommentsCorrections>
</CommentsCorrectionsList></MedlineCitation><PubmedData><ArticleIdList>
<ArticleId IdType="pubmed">{number}</ArticleId><ArticleId IdType="doi">10.1000/test.{number}</ArticleId></ArticleIdList>
<ReferenceList><Reference><ArticleIdList><ArticleId IdType="doi">10.9999/cited</ArticleId></ArticleIdList></Reference>
</ReferenceList></PubmedData>{more}</PubmedArticle>"""


def efetch(*articles: str) -> Reply:
    document = f"""<?xml version="1.0" ?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" "https://dtd.nlm.nih.gov/x.dtd">
<PubmedArticleSet>{"".join(articles)}</PubmedArticleSet>"""
    return Reply(document.encode(), "text/xml; charset=UTF-8")


class PacedPubmed:
    """E-utilities with many articles. Like NCBI, they enforce a pace, and answer faster requests with 429.

    The article of question n is n; a search for all words of an odd-numbered question finds none.
    """

    def __init__(self, per_second: int, answer_seconds: float = 0.0) -> None:
        self.url = ""
        self.answered: list[str] = []
        self.refused = 0
        self._per_second = per_second
        self._answer_seconds = answer_seconds
        self._came: deque[float] = deque()

    async def answer(self, request: web.Request) -> web.Response:
        now = CLOCK.monotonic()
        while self._came and self._came[0] <= now - 1.0:
            self._came.popleft()
        self._came.append(now)
        if len(self._came) > self._per_second:
            self.refused += 1
            return _sent(
                in_json({"error": "API rate limit exceeded", "count": "4", "limit": "3"}, 429, Retry_After="2")
            )
        self.answered.append(request.path)
        await asyncio.sleep(self._answer_seconds)
        if request.path == "/esearch.fcgi":
            return _sent(esearch(*self._ids(request.query["term"])))
        text = "<AbstractText>Aspirin lowered the risk of stroke number {0} by {0} percent.</AbstractText>"
        ids = request.query["id"].split(",")
        return _sent(efetch(*(pubmed_article(one, f"Stroke {one}", text.format(one)) for one in ids)))

    @staticmethod
    def _ids(term: str) -> list[str]:
        number = next(word for word in re.findall(r"\d+", term))
        return [number] if int(number) % 2 == 0 or " OR " in term else []


@asynccontextmanager
async def pubmed_at_its_pace(per_second: int, answer_seconds: float = 0.0) -> AsyncIterator[PacedPubmed]:
    """Paced E-utilities on a free port."""
    service = PacedPubmed(per_second, answer_seconds)
    async with served(service.answer) as service.url:
        yield service


# -- arXiv: Atom --------------------------------------------------------------------


def atom(*entries: str, total: int | None = None) -> Reply:
    count = len(entries) if total is None else total
    document = f"""<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom">
<link href="http://arxiv.org/api/query?search_query%3Dx" rel="self" type="application/atom+xml"/>
<title type="html">ArXiv Query: search_query=x</title><id>http://arxiv.org/api/x</id>
<updated>2026-01-05T00:00:00-05:00</updated>
<os:totalResults xmlns:os="http://a9.com/-/spec/opensearch/1.1/">{count}</os:totalResults>
{"".join(entries)}</feed>"""
    return Reply(document.encode(), "application/atom+xml; charset=UTF-8")


def paper(name: str, title: str, summary: str, *, doi: str | None = None) -> str:
    link = f'<arxiv:doi xmlns:arxiv="http://arxiv.org/schemas/atom">{doi}</arxiv:doi>' if doi else ""
    return f"""<entry><id>http://arxiv.org/abs/{name}</id><updated>2023-06-01T17:59:59Z</updated>
<published>2023-05-20T10:00:00Z</published><title>{escape(title)}</title><summary>  {escape(summary)}
</summary><author><name>A. Author</name></author>{link}
<link href="http://arxiv.org/abs/{name}" rel="alternate" type="text/html"/></entry>"""


ATOM_ERROR = """<entry><id>http://arxiv.org/api/errors#incorrect_id_format_for_1234.12345</id><title>Error</title>
<summary>incorrect id format for 1234.12345</summary><updated>2026-01-05T00:00:00-05:00</updated>
<link href="http://arxiv.org/api/errors#incorrect_id_format_for_1234.12345" rel="alternate" type="text/html"/>
<author><name>arXiv api core</name></author></entry>"""


# -- services of JSON ---------------------------------------------------------------------


def searxng(*results: dict[str, Any], unresponsive: Sequence[Sequence[str]] = ()) -> Reply:
    return in_json(
        {
            "query": "x", "number_of_results": 0, "results": list(results), "answers": [], "corrections": [],
            "infoboxes": [], "suggestions": [], "unresponsive_engines": list(unresponsive),
        }
    )  # fmt: skip


def wiki_page(number: int, index: int, title: str, **pageprops: str) -> dict[str, Any]:
    name = title.replace(" ", "_")
    page = {
        "pageid": number, "ns": 0, "title": title, "index": index, "contentmodel": "wikitext", "pagelanguage": "en",
        "fullurl": f"https://en.wikipedia.org/wiki/{name}", "canonicalurl": f"https://en.wikipedia.org/wiki/{name}",
        "editurl": f"https://en.wikipedia.org/w/index.php?title={name}&action=edit",
    }  # fmt: skip
    return page | ({"pageprops": pageprops} if pageprops else {})


def wikipedia(*pages: dict[str, Any]) -> Reply:
    """The answer of Wikipedia's API; without results it has no `query`."""
    return in_json({"batchcomplete": True, **({"query": {"pages": list(pages)}} if pages else {})})


def wiki_error(code: str, info: str, **headers: str) -> Reply:
    error = {"code": code, "info": info, "docref": "See https://en.wikipedia.org/w/api.php for API usage."}
    return in_json({"error": error, "servedby": "mw1"}, MediaWiki_API_Error=code, **headers)


def brave(*results: dict[str, Any]) -> Reply:
    web_part = {"web": {"type": "search", "results": list(results), "family_friendly": True}} if results else {}
    return in_json({"type": "search", "query": {"original": "x", "more_results_available": False}, **web_part})


def brave_error(status: int, code: str, **headers: str) -> Reply:
    error = {"id": "c1", "status": status, "code": code, "detail": "…", "meta": {"component": "authentication"}}
    return in_json({"type": "ErrorResponse", "error": error, "time": 1767600000}, status, **headers)
