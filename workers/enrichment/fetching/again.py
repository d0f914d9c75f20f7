"""Repeats a fetch if the server fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from workers.enrichment.evidence import Unreadable

T = TypeVar("T")

PAUSES = (0.5, 2.0)
"""The pauses, in seconds, before the second and the third try."""


async def tried_again(fetch: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `fetch()`. After an outage, call it again. Raises the Unreadable of the last call."""
    for pause in PAUSES:
        try:
            return await fetch()
        except Unreadable as unreadable:
            if not unreadable.is_outage:
                raise
        await asyncio.sleep(pause)
    return await fetch()
