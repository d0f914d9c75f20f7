"""Short waits, for all tests of the HTTP engine."""

from __future__ import annotations

import pytest

from workers.engines import openai_http


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_http, "FIRST_WAIT_SECONDS", 0.01)
