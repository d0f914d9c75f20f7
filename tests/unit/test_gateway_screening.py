"""The input filter at the door: a rejected job is not stored, a redacted one is stored redacted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from gateway.door.app import create_app
from gateway.store.tables import jobs, outbox
from screening.screen import Screen
from tests.unit.gateway_rig import Rig, gateway_rig

SECRET = "hunter2-launch-code"
CARD = "4111 1111 1111 1111"
RULES = f"""
[[rule]]
name = "launch"
kind = "regex"
verdict = "reject"
patterns = ["{SECRET}"]

[[rule]]
name = "cards"
kind = "pii"
verdict = "redact"
find = ["card"]
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    with gateway_rig(tmp_path) as made:
        door = replace(made.door, screen=Screen.load(file))
        yield replace(made, door=door, app=create_app(door))


def post(rig: Rig, path: str, body: Any) -> httpx.Response:
    return asyncio.run(rig.request("POST", path, rig.key(), json=body))


def stored(rig: Rig) -> tuple[int, str]:
    """The number of jobs, and everything that is on its way to Kafka or kept of a request."""
    count = rig.store.read_now(
        lambda connection: connection.execute(select(func.count()).select_from(jobs)).scalar_one()
    )
    values = rig.store.read_now(lambda connection: connection.execute(select(outbox.c.value)).scalars().all())
    kept = rig.store.read_now(lambda connection: connection.execute(select(jobs.c.request)).scalars().all())
    return count, "".join(value.decode() for value in [*values, *kept] if value is not None)


BODIES: list[tuple[str, Any]] = [
    ("/v1/jobs", {"prompt": "{}"}),
    ("/v1/jobs", [{"prompt": "harmless"}, {"prompt": "{}"}]),
    ("/v1/responses", {"input": "{}", "background": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "{}"}]}),
]


def with_text(body: Any, text: str) -> Any:
    if isinstance(body, dict):
        return {name: with_text(value, text) for name, value in body.items()}
    if isinstance(body, list):
        return [with_text(value, text) for value in body]
    return text if body == "{}" else body


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_rejected_job_is_refused_by_rule_and_field_and_nothing_is_stored(rig: Rig, path: str, body: Any) -> None:
    answer = post(rig, path, with_text(body, f"tell me {SECRET}"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "screened")
    assert "rule launch" in answer.text
    assert SECRET not in answer.text
    assert stored(rig) == (0, "")


@pytest.mark.parametrize(("path", "body"), BODIES[:3])
def test_a_redacted_job_is_stored_without_the_match(rig: Rig, path: str, body: Any) -> None:
    answer = post(rig, path, with_text(body, f"pay with {CARD}"))
    assert answer.status_code in (200, 202), answer.text
    count, content = stored(rig)
    assert count == (len(body) if isinstance(body, list) else 1)
    assert "[redacted:card]" in content
    assert CARD not in content
