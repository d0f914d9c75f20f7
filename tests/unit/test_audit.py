"""The audit: one line a request, with ids and hashes; no prompt, no answer, no key."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.access import Scope
from gateway.door.app import create_app
from telemetry.audit import Audit, AuditEvent
from telemetry.clock import SystemClock
from tests.drawn import drawn
from tests.unit.gateway_rig import Rig, gateway_rig

PROMPT = "Why is the secret sky blue?"
EVENT = AuditEvent("createJobs", "creation", succeeded=True, user="key:1", tenant="acme")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def rig(tmp_path: Path, file: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path) as made:
        audit = Audit(file, made.clock, "gateway")
        door = replace(made.door, audit=audit)
        yield replace(made, door=door, app=create_app(door))
        audit.close()


def ask(rig: Rig, method: str, path: str, key: str | None, **arguments: Any) -> Any:
    return asyncio.run(rig.request(method, path, key, **arguments))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_submission_is_a_line_with_the_credential_the_ids_and_the_hashes(rig: Rig, file: Path) -> None:
    key = rig.key("acme")
    answer = ask(rig, "POST", "/v1/jobs", key, json={"prompt": PROMPT, "job_id": "job-1"})
    [line] = lines(file)
    assert line["user.id"] == f"key:{key.split('_')[1]}"
    assert (line["organization.id"], line["event.outcome"], line["event.type"]) == ("acme", "success", ["creation"])
    assert (line["postback.objects"], line["http.request.id"]) == (["job-1"], answer.headers["x-request-id"])
    assert len(line["postback.prompt_sha256"][0]) == hashlib.sha256().digest_size * 2
    assert PROMPT not in file.read_text()
    assert key not in file.read_text()


def test_reading_cancelling_and_deleting_name_their_object(rig: Rig, file: Path) -> None:
    key = rig.key("acme")
    ask(rig, "POST", "/v1/jobs", key, json={"prompt": PROMPT, "job_id": "job-1"})
    uploaded = asyncio.run(rig.upload(b'{"custom_id": "1"}\n', key)).json()["id"]
    ask(rig, "GET", "/v1/jobs/job-1", key)
    ask(rig, "POST", "/v1/jobs/job-1/cancel", key)
    ask(rig, "DELETE", f"/v1/files/{uploaded}", key)
    said = [(line["event.type"][0], line["postback.objects"]) for line in lines(file)[1:]]
    assert said == [
        ("creation", [uploaded]),
        ("access", ["job-1"]),
        ("change", ["job-1"]),
        ("deletion", [uploaded]),
    ]


def test_a_repeat_with_an_idempotency_key_claims_no_new_job(rig: Rig, file: Path) -> None:
    key = rig.key("acme")
    for _ in range(2):
        ask(rig, "POST", "/v1/jobs", key, json={"prompt": PROMPT}, headers={"idempotency-key": "once"})
    first, second = lines(file)
    assert len(first["postback.objects"]) == 1
    assert "postback.objects" not in second


def test_refusals_are_lines_too(rig: Rig, file: Path) -> None:
    ask(rig, "GET", "/v1/jobs", None)
    ask(rig, "POST", "/v1/jobs", rig.key("acme", Scope.READ), json={"prompt": PROMPT})
    unknown, unscoped = lines(file)
    assert (unknown["event.type"], unknown["http.response.status_code"]) == (["denied"], 401)
    assert "user.id" not in unknown
    assert (unscoped["organization.id"], unscoped["event.outcome"]) == ("acme", "failure")


def test_a_rotated_file_is_replaced_by_a_new_one(tmp_path: Path, file: Path) -> None:
    with gateway_rig(tmp_path) as made:
        audit = Audit(file, made.clock, "gateway")
        audit.record(EVENT)
        file.rename(tmp_path / "audit.1")
        made.clock.sleep(2)
        audit.record(EVENT)
        audit.close()
    assert (len(lines(tmp_path / "audit.1")), len(lines(file))) == (1, 1)
    assert file.stat().st_mode & 0o777 == 0o600


def test_lines_of_many_threads_do_not_mix(file: Path) -> None:
    audit = Audit(file, SystemClock(), "gateway")
    event = replace(EVENT, objects=[f"job-{number}" for number in range(200)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: audit.record(event), range(200)))
    audit.close()
    assert len(lines(file)) == 200


@settings(max_examples=drawn(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_one_line(file: Path, user: str, identifier: str) -> None:
    audit = Audit(file, SystemClock(), "gateway")
    audit.record(replace(EVENT, user=user, objects=[identifier]))
    audit.close()
    assert lines(file)[-1]["postback.objects"] == [identifier]


def test_a_line_that_cannot_be_written_is_reported_and_stops_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(file, SystemClock(), "gateway")
    audit.close()
    audit.record(EVENT)
    assert "audit line cannot be written" in caplog.text
