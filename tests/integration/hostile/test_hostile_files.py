"""Hostile feeds, Office files, workbooks and PDFs, read by confined processes beside an ordinary page."""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bench.pdf_files import line, pdf, stream
from schemas.job import Sources
from scripts.play.site import Site
from tests.integration.hostile.reading import GROWTH_BYTES, PEAK_BYTES, QUESTION, enriched, measured
from tests.integration.raw_server import CLOCK, FACT, HTML, enriching, saying, speaking
from tests.unit.office_files import document, packed, paragraph, row, workbook
from workers.enrichment.enrich import Enricher

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


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("trapped")
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


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("trapped")
async def test_a_documents_pictures_are_not_unpacked(enricher: Enricher) -> None:
    kind, body = BOMBS["a document with a picture of 256 MB"]
    async with speaking(saying(body, kind)) as origin:
        evidence = await enriched(enricher, origin)
    assert FACT in " ".join(evidence.sources[0].passages)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("trapped")
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


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("trapped")
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


# -- PDFs ----------------------------------------------------------------------------------------------------------

PDF = "Content-Type: application/pdf"
PDF_FACT = "The Halvorsen bridge opened in 1987."
FORM = "/Type /XObject /Subtype /Form /BBox [0 0 600 900]"
CALL = f"{line(PDF_FACT)} /X Do"
RESOURCES = "/XObject << /X 5 0 R >>"


def compressed(megabytes: int) -> bytes:
    """A PDF page with this many megabytes of unpacked content."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b" " * 2**20) for _ in range(megabytes)) + packer.flush()
    return pdf([CALL], objects=[stream(packed, f"/Filter /FlateDecode {FORM}")], resources=RESOURCES)


def doubling(levels: int, times: int) -> bytes:
    """A PDF of forms that each draw the next one several times: a few kilobytes that would paint for years."""
    inner = [
        stream(b"/X Do " * times, f"{FORM} /Resources << /XObject << /X {6 + level} 0 R >> >>")
        for level in range(levels)
    ]
    return pdf([CALL], objects=[*inner, stream(b"0 0 1 1 re f", FORM)], resources=RESOURCES)


def drawing_itself() -> bytes:
    own = stream(b"/X Do", f"{FORM} /Resources << {RESOURCES} >>")
    return pdf([CALL], objects=[own], resources=RESOURCES)


@pytest.mark.usefixtures("trapped")
@pytest.mark.parametrize(
    ("document", "why"),
    [
        (compressed(400), "more memory than allowed|took more than 4 s"),
        # The machine's speed decides which limit is reached first.
        (doubling(12, 10), "more memory than allowed|took more than 4 s"),
        (pdf([line(PDF_FACT)]).replace(b"/Kids [6 0 R]", b"/Kids [2 0 R]"), "no visible text"),
        (pdf([line(PDF_FACT)]) + b"\0" * 20_000_000, "larger than 20000000 bytes"),
    ],
    ids=["unpacks to 400 MB", "forms in forms", "a tree of pages that holds itself", "20 MB"],
)
async def test_a_pdf_that_would_exhaust_its_reader_is_left_out_and_the_page_beside_it_is_read(
    document: bytes, why: str
) -> None:
    async with (
        Site() as site,
        speaking(saying(document, PDF)) as origin,
        enriching(member_seconds=4.0, member_bytes=2**29) as enricher,
    ):
        hostile, fine = await asyncio.gather(
            enricher.enrich(Sources(urls=[f"{origin}/x.pdf"]), "When did the bridge open?"),
            enricher.enrich(Sources(urls=[site.url("/mine")]), "silver mine"),
        )
        assert hostile.sources == ()
        (note,) = hostile.notes
        assert re.search(why, note)
        assert len(fine.sources) == 1


@pytest.mark.usefixtures("trapped")
@pytest.mark.parametrize(
    "document",
    [drawing_itself(), pdf([line(PDF_FACT)]).replace(b"/Count 1", b"/Count 2000000000")],
    ids=["a form that draws itself", "two billion pages"],
)
async def test_a_pdf_with_false_structure_is_read_as_far_as_it_is_valid(document: bytes) -> None:
    async with speaking(saying(document, PDF)) as origin, enriching(member_seconds=5.0) as enricher:
        evidence = await enricher.enrich(Sources(urls=[f"{origin}/x.pdf"]), "When did the bridge open?")
        assert [source.passages for source in evidence.sources] == [(PDF_FACT,)]
