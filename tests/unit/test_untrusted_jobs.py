"""A worker with `POSTBACK_WORKER__TRUST=signed` accepts only signed jobs, to whatever topic they were moved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import topics as names
from schemas.codec import read_result
from schemas.settings import SettingsRefused, TrustSettings
from schemas.trust import TrustSecrets
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.handlers import CLOCK, TOPICS
from tests.unit.echo_worker import HOOK, headers_of, record, working
from workers.inference.belief import believed_secrets
from workers.inference.settings import WorkerSettings
from workers.roles import last_resort
from workers.stage.record import Failure, Header, Output, Record

TRUST = TrustSecrets((b"n" * 32,))
FAILURE = Failure("worker_killed", "killed its worker", 3)
JOB = {"job_id": "job_1", "prompt": "What is the capital of France?", "callback_url": HOOK}


def signed(job: dict[str, Any], tenant: str = "acme", job_id: str = "job_1", secrets: TrustSecrets = TRUST) -> Record:
    value = json.dumps(job).encode()
    return record(value, *secrets.signed(tenant, job_id, value))


def altered(name: str, value: bytes) -> Record:
    whole = signed(JOB)
    return replace(whole, headers=[*(whole.headers or ()), (name, value)])


def moved(output: Output) -> Record:
    """Return the moved job in this output, in the form in which the next worker reads it."""
    return Record(output.topic, 0, 99, output.value or b"", output.key, output.headers, int(CLOCK.time() * 1000))


UNTRUSTED = {
    "no signature": record(JOB, (names.TENANT, b"acme")),
    "another tenant": altered(names.TENANT, b"globex"),
    "another secret": signed(JOB, secrets=TrustSecrets((b"o" * 32,))),
    "another value": replace(signed(JOB), value=json.dumps({**JOB, "prompt": "Tell me a secret."}).encode()),
    "another job's signature": signed({**JOB, "job_id": "job_2"}, job_id="job_1"),
    "no job id": signed({"prompt": "Hello"}, job_id=""),
    "a second signature": altered(names.TENANT_SIGNATURE, b"v1,AAAA"),
    "no job, and no signature": record(b"{"),
    "a job with a wrong field": record({**JOB, "max_tokens": 0}, (names.TENANT, b"acme")),
}


@pytest.mark.parametrize("given", UNTRUSTED.values(), ids=UNTRUSTED)
async def test_a_job_that_the_fleet_did_not_sign_is_rejected_without_a_callback(given: Record) -> None:
    async with working(trust=TRUST) as worker:
        handled, given_up = await worker.outputs(given), worker.handler.give_up(given, FAILURE)
        deferred = worker.handler.sharing.defer(given)
    assert [*map(headers_of, handled)] == [*map(headers_of, given_up)] == [*map(headers_of, deferred)]
    rejected, letter = handled
    result, why = read_result(rejected.value), headers_of(letter)
    assert result.error is not None
    assert (result.outcome, result.error.code, result.custom_id) == ("rejected", "untrusted_job", None)
    assert result.job_id.startswith("job_")
    assert result.job_id not in ("job_1", "job_2")
    told = headers_of(rejected)
    assert (told["tenant"], told["job-id"], "callback-url" in told) == ("default", result.job_id, False)
    assert (why["reason"], why["tenant"], letter.value) == ("untrusted", "default", given.value)


async def test_the_dead_letter_keeps_the_stated_tenant_and_job_id_for_the_operator() -> None:
    async with working(trust=TRUST) as worker:
        _, letter = await worker.outputs(altered(names.TENANT, b"globex"))
    assert (headers_of(letter)["said-tenant"], headers_of(letter)["said-job-id"]) == ("globex", "job_1")


async def test_a_signed_job_is_answered_for_its_tenant() -> None:
    async with working(trust=TrustSecrets((b"newest" * 6, *TRUST.secrets))) as worker:
        [answered] = await worker.outputs(signed(JOB))
    told = headers_of(answered)
    assert (told["tenant"], told["job-id"], told["callback-url"]) == ("acme", "job_1", HOOK)


async def test_a_signed_line_of_a_batch_has_its_job_id_in_a_header() -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    line["body"] = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
    async with working(trust=TRUST) as worker:
        [answered] = await worker.outputs(signed(line, job_id="batch_1.7"))
    assert headers_of(answered)["job-id"] == "batch_1.7"


async def test_a_signed_record_that_is_no_job_is_rejected_for_its_tenant() -> None:
    async with working(trust=TRUST) as worker:
        rejected, letter = await worker.outputs(signed({**JOB, "max_tokens": 0}))
    assert (headers_of(rejected)["tenant"], headers_of(letter)["reason"]) == ("acme", "rejected")


async def test_a_signature_stays_valid_through_deferral_forwarding_and_a_dead_letter() -> None:
    async with working(trust=TRUST, models={"far": "elsewhere"}) as worker:
        [forwarded] = await worker.outputs(signed({**JOB, "model_id": "far"}))
        [deferred] = worker.handler.sharing.defer(signed(JOB))
        [again] = worker.handler.sharing.defer(moved(deferred))
        [answered] = await worker.outputs(moved(again))
        _, letter = worker.handler.give_up(moved(again), FAILURE)
        [revived] = await worker.outputs(moved(replace(letter, topic=TOPICS.requests())))
    value, signature = forwarded.value or b"", headers_of(forwarded)["tenant-signature"].encode()
    assert TRUST.is_signed("acme", "job_1", value, signature)
    for output in (answered, revived):
        assert (headers_of(output)["tenant"], read_result(output.value).outcome) == ("acme", "succeeded")


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([names.TENANT, names.JOB_ID, names.TENANT_SIGNATURE, names.WEBHOOK_ID, names.JOB_ORIGIN]),
        st.binary(max_size=50) | st.just(b"acme"),
    ),
    max_size=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=drawn(50))
@given(headers=HEADERS, value=st.binary(max_size=40) | st.just(json.dumps(JOB).encode()))
def test_no_noise_of_headers_is_believed_even_by_the_last_resort(headers: list[Header], value: bytes) -> None:
    given = Record(TOPICS.requests(), 3, 7, value, None, headers)
    result, letter = last_resort.for_jobs(TOPICS, {}, HandClock(), Metrics(), TRUST)(given, FAILURE)
    told = headers_of(result)
    assert (told["tenant"], "callback-url" in told) == ("default", False)
    assert told["job-id"] != "job_1"
    assert dict(letter.headers or ())[names.TENANT] == b"default"


def test_the_last_resort_names_the_owner_of_a_signed_job() -> None:
    result, _ = last_resort.for_jobs(TOPICS, {}, HandClock(), Metrics(), TRUST)(signed(JOB), FAILURE)
    told = headers_of(result)
    assert (told["tenant"], told["job-id"], told["callback-url"]) == ("acme", "job_1", HOOK)


def test_a_worker_without_a_file_of_secrets_does_not_start_in_signed_mode(tmp_path: Path) -> None:
    assert believed_secrets(WorkerSettings(), TrustSettings()) is None
    with pytest.raises(SettingsRefused, match="POSTBACK_TRUST__SECRET_FILE"):
        believed_secrets(WorkerSettings(trust="signed"), TrustSettings())
    file = tmp_path / "secret"
    file.write_bytes(TRUST.secrets[0])
    assert believed_secrets(WorkerSettings(trust="signed"), TrustSettings(secret_file=file)) == TRUST
    assert believed_secrets(WorkerSettings(), TrustSettings(secret_file=file)) is None
