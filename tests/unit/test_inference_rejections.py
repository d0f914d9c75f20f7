"""Records that a worker rejects or gives up: result and dead letter name their owner and the reason."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network
from typing import Any

import pytest

from schemas.codec import Origin, read_result
from schemas.codes import DEAD_LETTER_REASONS
from schemas.result import MAX_RESULT_BYTES
from tests.handlers import TOPICS
from tests.unit.echo_worker import HOOK, TOPIC_ID, headers_of, record, working
from workers.egress import EgressPolicy
from workers.engines.base import Completion, GenerationRequest, RequestRejected
from workers.inference import admission
from workers.inference.admission import MAX_HEADER_BYTES
from workers.stage.record import Failure, HandlerCrashed, Record

# -- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field", "told"),
    [
        (record(b"{"), "value", False),
        (record({"callback_url": HOOK}), "prompt", True),
        (record(model_id="unheard-of"), "model_id", True),
        (record(adapter="polite"), "adapter", True),
        (record(context_window=16, max_tokens=100), "context_window", True),
        (record(response_format={"type": "json_schema", "json_schema": {"schema": {}}}), "response_format", True),
        (record(callback_url="http://169.254.169.254/"), "callback_url", False),
        (record(callback_url="http://127.0.0.1:8080/"), "callback_url", False),
        (record(None, ("deadline", b"soon")), "headers.deadline", True),
        (record(None, ("x-large", bytes(MAX_HEADER_BYTES))), "headers", True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_record_that_is_no_job_is_rejected_and_kept_with_a_reason_that_names_the_field(
    given: Record, field: str, told: bool
) -> None:
    async with working() as worker:
        rejected, letter = await worker.outputs(given)
    result, why = read_result(rejected.value), headers_of(letter)
    assert (result.outcome, result.engine, result.metadata) == ("rejected", None, {})
    assert result.error is not None
    assert result.error.message.startswith(f"{field}: ")
    assert ("callback-url" in headers_of(rejected)) == told
    assert (letter.topic, letter.value, letter.key) == (TOPICS.dead_letters, given.value, given.key)
    assert (why["reason"], why["reason-detail"]) == ("rejected", result.error.message)
    assert (why["source-topic"], why["source-partition"], why["source-offset"]) == (TOPICS.requests(), "3", "7")
    identity = {"tenant", "job-id", "webhook-id"}
    assert {name: why[name] for name in identity} == {name: headers_of(rejected)[name] for name in identity}
    assert "secret" not in result.error.message
    assert worker.sample("postback_dead_letters_total", reason="rejected") == 1


async def test_the_count_of_each_reason_begins_with_0() -> None:
    async with working() as worker:
        [metric] = worker.metrics.dead_letters.collect()
    assert {(each.labels["reason"], each.value) for each in metric.samples if each.name.endswith("_total")} == {
        (reason, 0) for reason in DEAD_LETTER_REASONS
    }


async def test_the_log_says_which_job_is_rejected_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with working() as worker:
        await worker.outputs(record(job_id="mine", model_id="gpt-4o-mini"))
    assert 'Rejected job mine: model_id: no engine of this fleet has the model "gpt-4o-mini"' in caplog.text
    assert "capital of France" not in caplog.text


async def test_the_log_leaves_out_the_words_of_an_engine_that_refuses_a_job_since_they_may_quote_the_prompt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(request: GenerationRequest) -> Completion:
        raise RequestRejected("prompt", f"may not say {request.prompt}")

    caplog.set_level("INFO")
    async with working() as worker:
        monkeypatch.setattr(worker.engine, "generate", generate)
        rejected, letter = await worker.outputs(record(job_id="mine"))
    error = read_result(rejected.value).error
    assert error is not None
    assert error.message == "prompt: may not say What is the capital of France?"
    assert headers_of(letter)["reason-detail"] == error.message
    assert "Rejected job mine: the engine refuses prompt." in caplog.text
    assert "capital of France" not in caplog.text


async def test_a_letter_has_the_ids_of_its_result_and_the_records_own_ids_beside_them() -> None:
    """A letter is found by its tenant and job id, so neither may be the hostile value that caused the rejection."""
    hostile = (("tenant", b"\x1b]0;p\x07"), ("job-id", b"b"), ("traceparent", b"none"), ("said-tenant", b"acme"))
    async with working() as worker:
        rejected, letter = await worker.outputs(record(None, *hostile, job_id="a"))
    identity = {name: value for name, value in headers_of(rejected).items() if name != "callback-url"}
    assert (identity["tenant"], identity["job-id"]) == ("default", "a")
    said = {name: value for name, value in headers_of(letter).items() if not name.startswith(("reason", "source"))}
    stamped = {"said-tenant": "\x1b]0;p\x07", "said-job-id": "b", "attempts": "1"}
    assert said == {**identity, **stamped, "job-origin": str(Origin(TOPIC_ID, 3, 7))}
    assert len(letter.headers or ()) == len(headers_of(letter))


async def test_a_dead_letter_that_no_topic_would_take_says_where_its_record_is() -> None:
    huge = record(b"x" * 3_000_000, ("x-large", bytes(10_000)))
    async with working() as worker:
        _, letter = await worker.outputs(huge)
    why = headers_of(letter)
    assert (letter.value, letter.key, why["abridged"]) == (None, None, "1")
    assert (why["source-topic"], why["source-offset"]) == (TOPICS.requests(), "7")
    assert "x-large" not in why


async def test_an_internal_callback_is_taken_where_the_operator_allows_it() -> None:
    async with working(callbacks=EgressPolicy(allow=(ip_network("10.0.0.0/8"),))) as worker:
        result = await worker.result(record(callback_url="https://10.0.0.1/hook"))
    assert result.outcome == "succeeded"


async def test_an_answer_that_is_too_large_is_a_failure_that_says_so() -> None:
    large = {"prompt": '"' * 250_000, "response_format": {"type": "json_object"}, "metadata": {"for": "me"}}
    async with working() as worker:
        [output] = await worker.outputs(record(large))
    assert output.value is not None
    assert len(output.value) < MAX_RESULT_BYTES
    result = read_result(output.value)
    assert (result.outcome, result.text, result.metadata) == ("failed", None, {"for": "me"})
    assert result.error is not None
    assert result.error.code == "result_too_large"
    assert worker.sample("postback_jobs_total", outcome="failed") == 1
    assert worker.sample("postback_jobs_total", outcome="succeeded") == 0


# -- the engine dies, the record kills -----------------------------------------------------------------------------


async def test_the_stage_judges_all_jobs_of_an_engine_that_died() -> None:
    async with working() as worker:
        neighbour = asyncio.create_task(worker.outputs(record({"prompt": "[[sleep 30]]"})))
        while worker.engine.load().running == 0:
            await asyncio.sleep(0)
        for dying in (worker.outputs(record({"prompt": "[[crash-engine]]"}, offset=8)), neighbour):
            with pytest.raises(HandlerCrashed):
                await dying
        assert (await worker.result(record(offset=9))).outcome == "succeeded"


@pytest.mark.parametrize(
    ("job", "shows"),
    [
        ({"prompt": "What is it?"}, True),
        ({"prompt": ""}, False),
        ({"prompt": "What is it?", "model_id": "another"}, False),
        ({"prompt": "[[sleep 30]]", "ttl_seconds": 1}, False),
    ],
)
async def test_a_result_shows_that_the_engine_works_only_where_the_engine_made_it(
    job: dict[str, Any], shows: bool
) -> None:
    given = record(job)
    async with working() as worker:
        await worker.outputs(given)
    assert given.shows_health is shows


async def test_a_job_that_is_given_up_gets_a_failed_result_and_a_dead_letter_with_its_attempts() -> None:
    given = record(job_id="killer")
    async with working() as worker:
        failed, letter = worker.handler.give_up(given, Failure("worker_killed", "it ended its worker", 3))
    result, why = read_result(failed.value), headers_of(letter)
    assert (result.job_id, result.outcome, result.error and result.error.code) == ("killer", "failed", "worker_killed")
    assert headers_of(failed)["callback-url"] == HOOK
    assert (why["reason"], why["attempts"]) == ("worker_killed", "3")
    assert why["webhook-id"] == headers_of(failed)["webhook-id"]
    assert letter.value == given.value


async def test_a_record_that_is_given_up_and_is_no_job_is_rejected() -> None:
    async with working() as worker:
        rejected, letter = worker.handler.give_up(record(b"{"), Failure("worker_killed", "it ended its worker", 3))
    assert read_result(rejected.value).outcome == "rejected"
    assert headers_of(letter)["reason"] == "rejected"


# -- records that must not end a stage -----------------------------------------------------------------------------


ODD_HOOK = "https://[2001:db8::1::2]/hook"
"""A URL that the published pattern accepts, with an impossible address."""


async def test_a_callback_that_only_looks_like_a_url_is_rejected_with_its_field() -> None:
    async with working() as worker:
        result, letter = await worker.outputs(record(callback_url=ODD_HOOK))
    read = read_result(result.value)
    assert (read.outcome, read.error and read.error.message) == (
        "rejected",
        "callback_url: not a URL that can be read",
    )
    assert "callback-url" not in headers_of(result)
    assert headers_of(letter)["reason"] == "rejected"


async def test_giving_a_job_up_judges_no_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_url(url: str, policy: EgressPolicy) -> None:
        pytest.fail("the callback was judged")

    monkeypatch.setattr(admission, "check_url", check_url)
    async with working() as worker:
        result, letter = worker.handler.give_up(record(callback_url=ODD_HOOK), Failure("internal_error", "why", 1))
    assert read_result(result.value).outcome == "failed"
    assert headers_of(result)["callback-url"] == ODD_HOOK
    assert headers_of(letter)["reason"] == "internal_error"
