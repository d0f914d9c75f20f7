"""Reads a server's own counts of its requests, as long as the server reports them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from workers.engines.openai_http.limits import ServerLoad
from workers.engines.openai_http.slots import Slots

LOOK_SECONDS = 1.0
"""Pause between two looks at the counts of a server that has requests of this worker."""
LONGEST_PAUSE_SECONDS = 60.0
"""The longest pause at a server that reports no counts; each pause is twice the one before."""
FAILED_LOOKS = 3
"""After this many failed looks in a row, the last counts are stale.

One failed look is too few, because a busy server may answer one look too late.
"""


async def follow(look: Callable[[], Awaitable[ServerLoad | None]], slots: Slots) -> None:
    """Pass the server's counts to the slots until the task is cancelled.

    While no request holds a slot, the server is not asked.
    """
    failed, pause = 0, LOOK_SECONDS
    while True:
        load = await look()
        if load is not None:
            failed, pause = 0, LOOK_SECONDS
            slots.told(load)
        else:
            failed, pause = failed + 1, min(2 * pause, LONGEST_PAUSE_SECONDS)
            if failed >= FAILED_LOOKS:
                slots.untold()
        await asyncio.sleep(pause)
        await slots.busy.wait()
