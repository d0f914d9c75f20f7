"""Hostile feeds, Office files and workbooks, read by confined processes beside an ordinary page."""

from __future__ import annotations

import asyncio
import random
from base64 import b64encode
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from schemas.job import Sources
from scripts.play.site import Site
from tests.integration.hostile.reading import GROWTH_BYTES, PEAK_BYTES, QUESTION, enriched, measured
from tests.integration.raw_server import CLOCK, FACT, HTML, enriching, saying, speaking
from tests.unit.office_files import document, packed, paragraph, row, workbook
from workers.enrichment.enrich import Enricher

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("trapped")]

WORD = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
XML = "Content-Type: application/xml"
FILE = "Content-Type: application/octet-stream"
ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
BOMBS = {
    "a feed of entities that multiply": (XML, f'<!DOCTYPE rss [<!ENTITY e0 "ha">{ENTITIES}]><rss>&e9;</rss>'.encode()),
    "XML of bare ampersands": (XML, b"<a>" + b"&" * 1_900_000 + b"</a>"),
    "a document of 256 MB of blanks": (FILE, packed({"word/document.xml": WORD + " " * 2**28})),
    "a document with a picture of 256 MB": (
        FILE,
        document(paragraph(FACT), **{"word/media/picture.png": bytes(2**28)}),
    ),
    "a document of 5 million paragraphs": (FILE, packed({"word/document.xml": WORD + "<w:p/>" * 5_000_000})),
    "an archive of 50,000 parts": (FILE, packed({str(number): "" for number in range(50_000)})),
    "a cell of 256 MB": (FILE, workbook({"a": row(1, "a" * 2**28)})),
    "a workbook of 17 billion cells": (
        FILE,
        workbook({"a": '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'}),
    ),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def enricher() -> AsyncIterator[Enricher]:
    async with enriching(member_seconds=2.0) as one:
        yield one


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_costs_one_source_and_bounded_memory(name: str, enricher: Enricher, site: Site) -> None:
    kind, body = BOMBS[name]
    async with speaking(saying(body, kind)) as origin, measured() as growth:
        bomb, fine = await asyncio.gather(
            enriched(enricher, origin), enriched(enricher, site.url(f"/bridge?{CLOCK.monotonic()}"))
        )
    assert len(fine.sources) == 1
    assert bomb.notes or len("".join(bomb.sources[0].passages)) <= 4000
    assert growth.peak_bytes < PEAK_BYTES
    assert growth.kept_bytes < GROWTH_BYTES


async def test_a_documents_pictures_are_not_unpacked(enricher: Enricher) -> None:
    kind, body = BOMBS["a document with a picture of 256 MB"]
    async with speaking(saying(body, kind)) as origin:
        evidence = await enriched(enricher, origin)
    assert FACT in " ".join(evidence.sources[0].passages)


async def test_a_damaged_workbook_costs_one_source(enricher: Enricher) -> None:
    chance = random.Random("workbook")
    whole = workbook({"Bridges": "".join(row(number, "Halvorsen", 1987) for number in range(1, 30))})
    damaged = []
    for number in range(19):
        body = bytearray(whole)
        for _ in range(chance.randint(1, 9)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        damaged.append({"id": f"damaged-{number}", "base64": b64encode(body).decode()})
    good = {"id": "good", "base64": b64encode(document(paragraph(FACT))).decode()}
    evidence = await enricher.enrich(Sources.model_validate({"documents": [*damaged, good]}), QUESTION)
    assert "good" in {source.id for source in evidence.sources}


async def test_a_pdf_or_an_office_file_may_be_larger_than_a_page_whatever_type_it_has() -> None:
    large = document(paragraph(FACT), **{"word/media/picture.png": random.Random(1).randbytes(200_000)})
    async with enriching(page_bytes=100_000) as enricher:
        for kind in (FILE, "Content-Type: application/zip"):
            async with speaking(saying(large, kind)) as origin:
                evidence = await enriched(enricher, origin)
                assert FACT in " ".join(evidence.sources[0].passages)
        async with speaking(saying(b"%PDF-" + large, FILE)) as origin:
            assert "not a PDF that can be read" in (await enriched(enricher, origin)).notes[0]
        async with speaking(saying(f"<p>{FACT}".encode() + b"<p>more" * 20_000 + b"<p>never read", HTML)) as origin:
            evidence = await enriched(enricher, origin)
            assert FACT in " ".join(evidence.sources[0].passages)
            assert "never" not in " ".join(evidence.sources[0].passages)
