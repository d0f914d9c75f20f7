"""Search results whose pages cannot be read: the service's excerpt and date stand in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.job import Search, Sources
from telemetry.metrics import Metrics
from tests.integration.raw_server import CLOCK, FACT, HTML, LOOPBACK, page, saying, speaking
from tests.integration.search.asking import found
from tests.integration.search_services import brave, searxng
from workers.egress import Guard
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence, Found, Particulars
from workers.enrichment.search.base import MAX_EXCERPT_CHARS, SearchQuery, plain_excerpt
from workers.enrichment.settings import EnrichmentSettings

EXCERPT = "The Halvorsen bridge opened in 1987 & was repaired."
MARKED = "The <strong>Halvorsen</strong> bridge opened in 1987 &amp; was repaired."


async def test_searxng_and_brave_give_excerpts_and_dates() -> None:
    whole = Found("https://a.example/1", title="One", excerpt=EXCERPT, particulars=Particulars("2004-05-06"))
    link = {"url": "https://a.example/1", "title": "One"}
    dated = {**link, "content": MARKED, "publishedDate": "2004-05-06T00:00:00"}
    assert await found("searxng", searxng(dated)) == [whole]
    assert await found("searxng", searxng({**link, "content": None, "publishedDate": None})) == [
        Found("https://a.example/1", title="One")
    ]
    described = {**link, "description": MARKED, "extra_snippets": [MARKED], "page_age": "2004-05-06T10:00:00"}
    assert await found("brave", brave(described)) == [whole]


class OneResult:
    """Implements `SearchProvider` with one result for each query."""

    def __init__(self, result: Found) -> None:
        self._result = result

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`."""
        return [self._result]


async def searched(url: str, excerpt: str | None) -> Evidence:
    settings = EnrichmentSettings(robots=False, budget_seconds=20.0, member_seconds=10.0)
    result = Found(url, title="A bridge", excerpt=excerpt, particulars=Particulars("2004-05-06"))
    enricher = Enricher(settings, Guard(LOOPBACK), CLOCK, Metrics(), {"brave": OneResult(result)})
    await enricher.start()
    try:
        wanted = Sources(search=Search(provider="brave", query="Halvorsen bridge"))
        return await enricher.enrich(wanted, "When did the Halvorsen bridge open?")
    finally:
        await enricher.close()


async def test_the_excerpt_of_a_page_that_cannot_be_read_is_the_source_with_a_note() -> None:
    async with speaking(saying(b"", status="403 Forbidden")) as origin:
        evidence = await searched(origin, EXCERPT)
        nothing = await searched(origin, None)
    (source,) = evidence.sources
    assert (source.title, source.passages, source.particulars.published) == ("A bridge", (EXCERPT,), "2004-05-06")
    assert evidence.notes == (f"source 1 ({origin}) is only the search service's excerpt: its server answered 403",)
    assert nothing.sources == ()


async def test_the_excerpt_of_a_page_that_can_be_read_is_not_used() -> None:
    async with speaking(saying(page(), HTML)) as origin:
        evidence = await searched(origin, "Another excerpt of the Halvorsen bridge.")
    assert FACT in " ".join(evidence.sources[0].passages)
    assert "Another excerpt" not in " ".join(evidence.sources[0].passages)


@pytest.mark.parametrize("texts", [("",), (None,), ("<b></b>", None), ()])
def test_an_excerpt_without_text_does_not_count(texts: tuple[str | None, ...]) -> None:
    assert plain_excerpt(*texts) is None


@given(st.lists(st.none() | st.text(alphabet="<>/ab &;#x1\u200b", max_size=300) | st.text(), max_size=4))
def test_any_excerpt_is_one_line_without_tags(texts: list[str | None]) -> None:
    excerpt = plain_excerpt(*texts)
    assert excerpt is None or (0 < len(excerpt) <= MAX_EXCERPT_CHARS and excerpt == " ".join(excerpt.split()))
