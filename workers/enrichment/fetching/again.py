"""Tries a fetch again if its server fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from workers.enrichment.evidence import Unreadable

T = TypeVar("T")

PAUSES = (0.5, 2.0)
"""Seconds before each further try of a server that failed."""


async def tried_again(fetch: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `fetch()`, which is called again after an outage. Raises the last call's Unreadable."""
    for pause in PAUSES:
        try:
            return await fetch()
        except Unreadable as unreadable:
            if not unreadable.is_outage:
                raise
        await asyncio.sleep(pause)
    return await fetch()
