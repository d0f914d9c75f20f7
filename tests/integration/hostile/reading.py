"""A hostile page, read by one enricher beside an ordinary one."""

from __future__ import annotations

from contextlib import suppress

import psutil

from schemas.job import Sources
from telemetry.clock import Deadline
from tests.integration.raw_server import CLOCK, Script, saying
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence

QUESTION = "When did the Halvorsen bridge open?"
GROWTH_BYTES = 150 * 1024 * 1024
"""Upper bound on the memory that one hostile page may cost, in the readers and in this process, which serves it."""


def moved(location: str) -> Script:
    return saying(b"", f"Location: {location}", status="302 Found")


async def enriched(enricher: Enricher, url: str, budget_seconds: float = 20.0) -> Evidence:
    return await enricher.enrich(Sources(urls=[url]), QUESTION, deadline=Deadline.after(CLOCK, budget_seconds))


def memory_bytes() -> int:
    """Return the resident bytes of this process and its children; a child that ends meanwhile counts as 0."""
    process, total = psutil.Process(), 0
    for one in [process, *process.children()]:
        with suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total
