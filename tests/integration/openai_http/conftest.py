"""Short waits for all tests of the HTTP engine."""

from __future__ import annotations

import pytest

from workers.engines.openai_http import server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_WAIT_SECONDS", 0.01)
