"""The input filter at the door: a rejected job is not stored, a redacted one is stored redacted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from gateway.accept.outbox import unpacked
from gateway.door.app import create_app
from gateway.store.tables import jobs, outbox
from schemas.screening import read_findings
from schemas.topics import SCREENING
from screening.screen import Screen
from telemetry.audit import Audit
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

[[rule]]
name = "codename"
kind = "regex"
verdict = "flag"
patterns = ["falcon"]
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    with gateway_rig(tmp_path) as made:
        audit = Audit(tmp_path / "audit.jsonl", made.clock, "gateway")
        door = replace(made.door, screen=Screen.load(file), audit=audit)
        yield replace(made, door=door, app=create_app(door))
        audit.close()


def post(rig: Rig, path: str, body: Any) -> httpx.Response:
    return asyncio.run(rig.request("POST", path, rig.key(), json=body))


def stored(rig: Rig) -> tuple[int, str]:
    """The number of stored jobs, and the text of all stored requests and of all records on their way to Kafka."""
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


def audited(rig: Rig) -> dict[str, Any]:
    """The newest line of the audit."""
    said: dict[str, Any] = json.loads((rig.folder / "audit.jsonl").read_text().splitlines()[-1])
    return said


def found_in_records(rig: Rig) -> list[list[tuple[str, str, str]]]:
    """Rule, verdict and field of each finding in the header of each record on its way to Kafka."""
    packed = rig.store.read_now(
        lambda connection: connection.execute(select(outbox.c.headers).order_by(outbox.c.number)).scalars().all()
    )
    headers = [dict(unpacked(each)).get(SCREENING, b"[]").decode() for each in packed]
    return [[(one.rule, one.verdict, one.field) for one in read_findings(each)] for each in headers]


def test_the_audit_and_the_record_name_the_rules_that_match(rig: Rig) -> None:
    jobs_ = [{"prompt": "harmless"}, {"prompt": f"pay {CARD}"}, {"prompt": "falcon"}]
    assert post(rig, "/v1/jobs", jobs_).status_code == 202
    assert (audited(rig)["postback.verdict"], audited(rig)["postback.rules"]) == ("redact", ["cards", "codename"])
    assert found_in_records(rig) == [[], [("cards", "redact", "prompt")], [("codename", "flag", "prompt")]]
    sample = rig.door.metrics.registry.get_sample_value
    counts = [sample("postback_screened_total", {"verdict": name}) for name in ("pass", "flag", "redact")]
    assert counts == [1, 1, 1]


def test_the_audit_says_that_no_rule_matches_and_names_the_rule_of_a_refusal(rig: Rig) -> None:
    assert post(rig, "/v1/jobs", {"prompt": "harmless"}).status_code == 202
    assert audited(rig)["postback.verdict"] == "pass"
    assert "postback.rules" not in audited(rig)
    assert post(rig, "/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}]}).status_code == 400
    assert (audited(rig)["postback.verdict"], audited(rig)["postback.rules"]) == ("reject", ["launch"])
    assert SECRET not in (rig.folder / "audit.jsonl").read_text()
