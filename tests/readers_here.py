"""Pages read in the test's process: a reader's process takes a third of a second of processor time to start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from workers.enrichment.processes import member
from workers.enrichment.processes.pool import Pool, understood
from workers.enrichment.turns import Asker


@contextmanager
def readers_here() -> Iterator[None]:
    """Let each pool that is asked during the block answer as its members do, on a thread of this process.

    The answer has no limits of time and memory, and no confinement.
    """

    async def ask(self: Pool, task: dict[str, Any], body: bytes, asker: Asker) -> dict[str, Any]:
        return understood(await asyncio.to_thread(member._answer, member._KINDS, {**task}, body, None))

    async def warm(self: Pool) -> None:
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "ask", ask)
        patch.setattr(Pool, "warm", warm)
        yield
