"""Hostile PDFs: each ends within the reader's bounds, with a reason, and the pages beside it are read."""

from __future__ import annotations

import asyncio
import re
import zlib

import pytest

from bench.pdf_files import line, pdf, stream
from schemas.job import Sources
from scripts.play.site import Site
from tests.integration.raw_server import enriching, saying, speaking

pytestmark = pytest.mark.usefixtures("trapped")

PDF = "Content-Type: application/pdf"
FACT = "The Halvorsen bridge opened in 1987."
FORM = "/Type /XObject /Subtype /Form /BBox [0 0 600 900]"
CALL = f"{line(FACT)} /X Do"
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


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (compressed(400), "more memory than allowed|took more than 4 s"),
        # The machine's speed decides which limit is reached first.
        (doubling(12, 10), "more memory than allowed|took more than 4 s"),
        (pdf([line(FACT)]).replace(b"/Kids [6 0 R]", b"/Kids [2 0 R]"), "no visible text"),
        (pdf([line(FACT)]) + b"\0" * 20_000_000, "larger than 20000000 bytes"),
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


@pytest.mark.parametrize(
    "document",
    [drawing_itself(), pdf([line(FACT)]).replace(b"/Count 1", b"/Count 2000000000")],
    ids=["a form that draws itself", "two billion pages"],
)
async def test_a_pdf_with_false_structure_is_read_as_far_as_it_is_valid(document: bytes) -> None:
    async with speaking(saying(document, PDF)) as origin, enriching(member_seconds=5.0) as enricher:
        evidence = await enricher.enrich(Sources(urls=[f"{origin}/x.pdf"]), "When did the bridge open?")
        assert [source.passages for source in evidence.sources] == [(FACT,)]
