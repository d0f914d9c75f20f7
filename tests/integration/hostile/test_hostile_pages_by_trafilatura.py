"""Hostile pages for trafilatura, in a real confined reader: each is read, in bounded time and memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.hostile.reading import GROWTH_BYTES, enriched, measured
from tests.integration.raw_server import FACT, HTML, enriching, page, saying, speaking
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Document
from workers.enrichment.reading.by_trafilatura import MAX_CHARS, MAX_TAGS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("trapped")]

PAGES = {
    "short paragraphs": "<p>short" * 50_000,
    "links in one paragraph": "<p>" + "<a href=/x>a link</a> " * 20_000,
    "links below the cap": "<p>" + "<a href=/x>a link</a> " * (MAX_TAGS // 2 - 20),
    "cells that span thousands": "<table>" + "<tr><td colspan=1000 rowspan=1000>a" * (MAX_TAGS // 6),
    "nested tables": ("<table><tr><td>" * 60 + "x" + "</table>" * 60) * (MAX_TAGS // 500),
    "nested lists": ("<ul><li>" * 150 + "x" + "</ul>" * 150) * (MAX_TAGS // 700),
    "one word after the other": "<p>" + "word " * (MAX_CHARS // 5 - 100),
    "spaces": "<p>a" + " " * (MAX_CHARS - 1000) + "b",
    "one long word": "<p>" + "a" * (MAX_CHARS - 1000),
    "entities": "<p>" + "&lt;p&gt;" * (MAX_CHARS // 9 - 100),
    "an element of trafilatura's own names": "<form>A bridge.<item><!--x--></item></form>",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def enricher() -> AsyncIterator[Enricher]:
    async with enriching(extractor="trafilatura") as one:
        yield one


@pytest.mark.parametrize("shape", PAGES)
async def test_a_hostile_page_is_read(shape: str, enricher: Enricher) -> None:
    async with speaking(saying(page(), HTML)) as origin:
        await enriched(enricher, origin)  # starts a reader process before the memory is measured
    async with speaking(saying(page(PAGES[shape]), HTML)) as origin, measured() as growth:
        evidence = await enriched(enricher, origin)
    assert FACT in " ".join(passage for source in evidence.sources for passage in source.passages), evidence.notes
    assert growth.peak_bytes < GROWTH_BYTES


async def test_a_confined_reader_has_all_that_trafilatura_needs(enricher: Enricher) -> None:
    """Trafilatura compares a short page's main text with justext's result, and justext reads word lists from files."""
    advert = "<div class='newsletter-signup'><p>Our newsletter brings you bridges, every week, for free.</p></div>"
    html = f"<html><body><article><h1>A bridge</h1><p>{FACT}</p></article>{advert}</body></html>"
    async with speaking(saying(html.encode(), HTML)) as origin:
        (document,) = await enricher.read([origin], 20)
    assert isinstance(document, Document)
    assert (FACT in document.text, "newsletter" in document.text) == (True, False)
