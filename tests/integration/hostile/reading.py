"""A hostile page, read by one enricher beside an ordinary one."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.job import Sources
from telemetry.clock import Deadline
from tests.integration.raw_server import CLOCK, Script, saying
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence
from workers.enrichment.settings import EnrichmentSettings

QUESTION = "When did the Halvorsen bridge open?"
GROWTH_BYTES = 150 * 1024 * 1024
"""Upper bound on the memory that one hostile page may cost, in the readers and in this process, which serves it."""
PEAK_BYTES = EnrichmentSettings().member_bytes
"""Upper bound on the memory that one hostile file may take while it is read: the limit of one reader process."""
_PAUSE_SECONDS = 0.01


def moved(location: str) -> Script:
    return saying(b"", f"Location: {location}", status="302 Found")


async def enriched(enricher: Enricher, url: str, budget_seconds: float = 20.0) -> Evidence:
    return await enricher.enrich(Sources(urls=[url]), QUESTION, deadline=Deadline.after(CLOCK, budget_seconds))


@dataclass(slots=True)
class Growth:
    """Bytes of memory above those at the beginning of a measurement."""

    peak_bytes: int = 0
    kept_bytes: int = 0
    """The bytes at the end."""


@asynccontextmanager
async def measured() -> AsyncIterator[Growth]:
    """Measure the memory of this process and its children while the block runs; the values are final at its end.

    `pytest -rP` shows the peak of each test.
    """
    before, growth = _memory_bytes(), Growth()

    async def sample() -> None:
        while True:
            growth.peak_bytes = max(growth.peak_bytes, _memory_bytes() - before)
            await asyncio.sleep(_PAUSE_SECONDS)

    sampling = asyncio.create_task(sample())
    try:
        yield growth
    finally:
        sampling.cancel()
        growth.kept_bytes = _memory_bytes() - before
        growth.peak_bytes = max(growth.peak_bytes, growth.kept_bytes)
        sys.stdout.write(f"peak of memory: {growth.peak_bytes >> 20} MiB more than before\n")


def _memory_bytes() -> int:
    """Return the resident bytes of this process and its children; a child that ends meanwhile counts as 0.

    A sample by psutil takes 10 ms, since psutil looks for children among all processes.
    """
    own = str(os.getpid())
    children = Path(f"/proc/self/task/{own}/children").read_text().split()
    return sum(_resident_pages(pid) for pid in (own, *children)) * resource.getpagesize()


def _resident_pages(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
