"""Rigs of batches: the application, the clerk and the expansion's handler over one store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.unit.batches.batch_rig import BatchRig, batch_rig


@pytest_asyncio.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BatchRig]:
    monkeypatch.setattr("gateway.batches.clerk.POLL_SECONDS", 0.02)
    async with batch_rig(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def both(tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BatchRig]:
    """A rig on SQLite, and one on PostgreSQL."""
    monkeypatch.setattr("gateway.batches.clerk.POLL_SECONDS", 0.02)
    async with batch_rig(tmp_path, store_url) as made:
        yield made
