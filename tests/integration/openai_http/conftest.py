"""Short waits for all tests of the HTTP engine."""

from __future__ import annotations

import pytest

from workers.engines.openai_http import engine, server
from workers.inference import generate


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(engine, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(generate, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(generate, "LONGEST_RETRY_SECONDS", 0.02)
