"""An enricher and an ordinary site, one of each for the tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from scripts.play.site import Site
from tests.integration.raw_server import enriching
from workers.enrichment.enrich import Enricher


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def enricher() -> AsyncIterator[Enricher]:
    async with enriching(member_seconds=4.0) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Site]:
    async with Site() as one:
        yield one
