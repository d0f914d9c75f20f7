"""The worker's way of a job: routes, lanes, rejections, the input filter, answers, and the watch over its engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from postback_client import Result as ClientResult
from postback_client.shapes import parsed
from postback_client.shapes import read as read_shape
from schemas import topics as names
from schemas.codec import Origin, read_result, write_result
from schemas.codes import DEAD_LETTER_REASONS
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.job import Job
from schemas.openai import CHAT_COMPLETIONS, RESPONSES
from schemas.openai_answers import answer_body
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result
from schemas.screening import ScreeningFinding, Verdict, write_findings
from schemas.topics import TENANT
from telemetry.clock import unix_ms
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.any_json import any_json
from tests.drawn import drawn
from tests.handlers import CLOCK, TOPICS, inference_handler
from tests.screening_rules import CARD, pii, regex, screen_of, words
from tests.unit.echo_worker import HOOK, TOPIC_ID, TRACE, assessed, headers_of, record, working
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.endpoint_states import EndpointStates
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy, Guard
from workers.engines.base import (
    Completion,
    EngineDied,
    EngineUnavailable,
    FinishReason,
    GenerationRequest,
    RequestRejected,
    ServedBy,
)
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import EnrichmentSettings
from workers.inference import admission
from workers.inference.admission import MAX_HEADER_BYTES, MOST_WAITING
from workers.inference.engine_watch import EngineWatch
from workers.inference.ground import without_evidence
from workers.inference.input_filter import LONG_JOB_BYTES
from workers.inference.lifetime import Cancellations, Lifetimes
from workers.inference.results import Results
from workers.inference.routing import MAX_FORWARDS, Forward, Registry, UnknownModel
from workers.inference.settings import WorkerSettings
from workers.roles.supervision import alive, readiness_of
from workers.roles.worker import load
from workers.screening.screen import Screen, Screened
from workers.stage.record import Failure, HandlerCrashed, Output, Record
from workers.stage.runner import MAX_OUTPUT_BYTES, is_too_large
from workers.stage.sharing import Place


# -- answered ------------------------------------------------------------------------------------------------------
async def test_a_job_becomes_one_result_with_everything_that_delivery_needs() -> None:
    async with working() as worker:
        given = record(None, ("traceparent", TRACE.encode()), metadata={"for": "me"}, custom_id="mine")
        [output] = await worker.outputs(given)
    origin = Origin(TOPIC_ID, 3, 7)
    assert headers_of(output) == {
        "tenant": "default",
        "job-id": f"job_{origin.digest}",
        "webhook-id": origin.webhook_id(given.value),
        "callback-url": HOOK,
        "traceparent": TRACE,
    }
    result = read_result(output.value)
    assert (result.outcome, result.text) == ("succeeded", "What is the capital of France?")
    assert (result.metadata, result.custom_id, result.engine) == ({"for": "me"}, "mine", "echo")
    assert (result.confidence, result.finish_reason) == (1.0, "stop")
    assert result.timings is not None
    assert result.timings.enrich_ms == 0
    assert worker.sample("postback_jobs_total", outcome="succeeded") == 1
    assert worker.sample("postback_tokens_total", kind="completion") == 6


@pytest.mark.parametrize(
    ("named", "model", "told"), [(None, "big", "big"), ("alias", "big", "alias"), (None, None, "echo")]
)
async def test_a_result_says_which_model_it_is_from_by_the_job_s_name_for_it_or_else_the_engine_s(
    named: str | None, model: str | None, told: str | None
) -> None:
    async with working({"alias": None}) as worker:
        worker.engine.models = (model,) if model else ()
        answered = await worker.result(record(model_id=named))
        expired = await worker.result(record(None, ("deadline", b"1000")))
    assert answered.model_id == told
    assert expired.model_id == (model or "echo")


def refusing(request: GenerationRequest) -> Completion:
    """Refuse the first answer, and give the others."""
    further = (Completion("Paris", "stop", 0, 0, confidence=0.5),) * (request.n - 1)
    return Completion("", "stop", 5, 3, confidence=0.5, refusal="I cannot say.", further=further)


@pytest.mark.parametrize("asked", [{}, {"response_format": {"type": "json_object"}}])
async def test_a_refusal_is_no_text_and_the_job_that_it_ends_has_succeeded(asked: dict[str, Any]) -> None:
    """In an earlier version the refusal was lost: the job succeeded with an empty text, or failed as `unfinished`."""
    async with working() as worker:
        worker.answers_by(refusing)
        one = await worker.result(record(**asked))
        two = await worker.result(record(n=2, temperature=0.5))
    assert (one.outcome, one.text, one.refusal, one.confidence) == ("succeeded", None, "I cannot say.", None)
    assert (two.text, two.refusal) == (None, "I cannot say.")
    assert [(each.text, each.refusal) for each in two.choices or ()] == [("", "I cannot say."), ("Paris", None)]
    body = answer_body(one, CHAT_COMPLETIONS)["choices"][0]["message"]
    assert (body["content"], body["refusal"]) == (None, "I cannot say.")
    [item] = answer_body(one, RESPONSES)["output"]
    assert item["content"] == [{"type": "refusal", "refusal": "I cannot say."}]
    assert read_shape(ClientResult, parsed(write_result(one))).refusal == "I cannot say."


async def test_a_job_without_a_callback_is_only_stored() -> None:
    async with working() as worker:
        [output] = await worker.outputs(record({"prompt": "x", "job_id": "mine"}))
    assert headers_of(output).keys() == {"tenant", "job-id", "webhook-id"}
    assert output.key == b"mine"


async def test_the_same_record_always_has_the_same_identity_and_every_other_record_another_one() -> None:
    async with working() as worker:
        first, again = [headers_of((await worker.outputs(record()))[0]) for _ in range(2)]
        other = headers_of((await worker.outputs(record(offset=8)))[0])
    assert first == again
    assert (first["webhook-id"], first["job-id"]) != (other["webhook-id"], other["job-id"])


# -- in time -------------------------------------------------------------------------------------------------------
async def test_a_job_that_is_too_late_is_not_generated() -> None:
    async with working() as worker:
        result = await worker.result(record(None, ("deadline", b"1000")))
        assert worker.sample("postback_job_seconds_count", phase="infer") == 0
    assert (result.outcome, result.error and result.error.code, result.text) == ("expired", "expired", None)


async def test_a_deadline_in_the_past_or_in_seconds_says_so() -> None:
    """In an earlier version both jobs expired with the words that their `ttl_seconds` had passed."""
    async with working() as worker:
        past = await worker.result(record(None, ("deadline", b"1000")))
        rejected, _ = await worker.outputs(record(None, ("deadline", b"%d" % (CLOCK.time() + 60))))
    assert (past.outcome, past.error and past.error.message) == (
        "expired",
        "the header `deadline` was past when the job's record was written",
    )
    error = read_result(rejected.value).error
    assert error is not None
    assert error.message == "headers.deadline: is in Unix seconds; write Unix milliseconds, a thousand times as many"


async def test_a_header_that_is_written_as_a_field_is_noted_with_its_place() -> None:
    async with working() as worker:
        result = await worker.result(record(tenant="acme", deadline=5))
    said = "(a header of the record, not a field of the job)"
    assert result.notes == [f"unknown fields of the job were ignored: `tenant` {said}, `deadline` {said}"]


async def test_the_log_says_that_a_worker_loads_its_engine_and_that_the_engine_is_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        await load(EchoEngine(EchoSettings(model="big"), Metrics()), CLOCK)
    loading, loaded = caplog.messages
    assert 'Loading "big" on engine echo; taking jobs once it is loaded.' in loading
    assert "The engine is loaded after 0.0 s." in loaded


async def test_only_answered_jobs_say_how_long_an_answer_takes() -> None:
    async with working() as worker:
        await worker.result(record({"prompt": "[[sleep 30]] and on", "ttl_seconds": 0.05}))
        await worker.result(record(None, ("deadline", b"1000")))
        assert worker.handler.answer_times.p99() is None
        answered = await worker.result(record({"prompt": "[[sleep 0.05]] and on"}))
        seconds = worker.handler.answer_times.p99()
    assert answered.timings is not None
    assert seconds == pytest.approx(answered.timings.infer_ms / 1000, abs=1e-5)


async def test_a_job_is_cut_off_at_its_deadline_and_shows_no_part_of_its_answer() -> None:
    async with working() as worker:
        result = await worker.result(record({"prompt": "[[sleep 30]] and on", "ttl_seconds": 0.05}))
        assert worker.engine.load().running == 0
    assert (result.outcome, result.text) == ("expired", None)
    assert worker.sample("postback_tokens_total", kind="completion") == 0


async def test_a_job_that_is_cancelled_leaves_nothing_in_the_engine_and_gives_its_room_back() -> None:
    async with working() as worker:
        room = worker.handler.pace.room()
        running = [asyncio.create_task(worker.outputs(record({"prompt": "[[sleep 30]]"}, offset=n))) for n in range(3)]
        while worker.engine.load().running < 3:
            await asyncio.sleep(0)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert (worker.engine.load().running, worker.handler.pace.room()) == (0, room)


# -- sources -------------------------------------------------------------------------------------------------------
NO_PROVIDER = {"search": {"provider": "nobody", "query": "x"}}


async def test_sources_that_bring_nothing_are_a_note_or_a_failure_if_they_are_required() -> None:
    async with working(waiting_target=10) as worker:
        room = worker.handler.pace.room()
        result = await worker.result(record(sources=NO_PROVIDER))
        required = await worker.result(record(sources={**NO_PROVIDER, "required": True}))
        assert worker.handler.pace.room() == room
    assert (result.outcome, result.sources) == ("succeeded", [])
    assert any("search" in note for note in result.notes)
    assert worker.sample("postback_job_seconds_count", phase="enrich") == 1
    assert (required.outcome, required.error and required.error.code) == ("failed", "no_sources")


# -- room ----------------------------------------------------------------------------------------------------------
async def test_the_engines_queue_is_kept_filled_whatever_is_in_enrichment() -> None:
    async with working(enrich_ahead=2, waiting_target=10) as worker:
        assert worker.handler.pace.room() == worker.engine.load().free + 10
        assert worker.handler.pace.due_ms(record()) is None


# -- forwarded -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("way", "lane"), [("forwarded", "gpu"), ("deferred", "batch")])
async def test_a_job_goes_to_another_lane_as_it_is_with_its_identity_and_deadline(way: str, lane: str) -> None:
    headers = (("tenant", b"acme"), ("traceparent", TRACE.encode()), ("own", b"1"))
    given = record({"prompt": "x", "model_id": "big", "ttl_seconds": 60}, *headers)
    async with working({"big": "gpu" if way == "forwarded" else None}) as worker:
        [output] = await worker.outputs(given) if way == "forwarded" else worker.handler.sharing.defer(given)
    origin = Origin(TOPIC_ID, 3, 7)
    there = (output.topic, output.value, output.key, output.partition)
    assert there == (f"fleet.model_requests.{lane}", given.value, given.key, 3)
    assert headers_of(output) == {
        "own": "1",
        "tenant": "acme",
        "job-id": f"job_{origin.digest}",
        "webhook-id": origin.webhook_id(given.value),
        "traceparent": TRACE,
        "job-origin": str(origin),
        "deadline": str(given.timestamp_ms + 60_000),
        way: "1",
    }
    assert worker.sample("postback_jobs_total", outcome="succeeded") == 0
    assert worker.sample("postback_deferred_total") == (way == "deferred")


async def test_a_bulk_or_spare_job_stays_one_when_it_is_forwarded() -> None:
    for lane, there in zip(TOPICS.requests_of(None), TOPICS.requests_of("gpu"), strict=True):
        given = record({"prompt": "x", "model_id": "big"})
        given.topic = lane
        async with working({"big": "gpu"}) as worker:
            [output] = await worker.outputs(given)
        assert output.topic == there


async def test_a_forwarded_record_is_read_there_as_the_same_job() -> None:
    given = record({"prompt": "x", "model_id": "big"})
    async with working({"big": "gpu"}) as worker, working({"big": None}) as other:
        [output] = await worker.outputs(given)
        there = Record(output.topic, 0, 99, output.value or b"", output.key, output.headers, given.timestamp_ms + 5000)
        [answer] = await other.outputs(there)
    sent, answered = headers_of(output), headers_of(answer)
    assert (sent["job-id"], sent["webhook-id"]) == (answered["job-id"], answered["webhook-id"])


# -- deferred ------------------------------------------------------------------------------------------------------


async def test_a_deferred_job_is_the_same_job_in_the_bulk_lane_and_no_younger() -> None:
    given = record({"prompt": "x", "ttl_seconds": 60}, ("tenant", b"acme"))
    given.timestamp_ms -= 61_000
    async with working() as worker:
        [output] = worker.handler.sharing.defer(given)
        there = Record(output.topic, 0, 99, output.value or b"", output.key, output.headers, int(CLOCK.time() * 1000))
        [answer] = await worker.outputs(there)
    sent, answered = headers_of(output), headers_of(answer)
    assert {name: answered[name] for name in ("tenant", "job-id", "webhook-id")} == {
        name: sent[name] for name in ("tenant", "job-id", "webhook-id")
    }
    assert read_result(answer.value).outcome == "expired"


async def test_a_worker_of_a_lane_defers_into_that_lane_s_bulk_lane() -> None:
    async with working(lane="gpu") as worker:
        [output] = worker.handler.sharing.defer(record())
    assert output.topic == "fleet.model_requests.gpu.batch"


async def test_a_job_put_back_by_hand_and_deferred_again_says_how_often() -> None:
    async with working() as worker:
        [output] = worker.handler.sharing.defer(record(None, ("deferred", b"1")))
    assert [value for name, value in output.headers or () if name == "deferred"] == [b"2"]


async def test_a_job_whose_headers_are_just_within_the_bound_is_answered_after_a_deferral() -> None:
    """A moved job has a worker's headers, too."""
    large = record(None, ("x-large", bytes(MAX_HEADER_BYTES - 64)))
    async with working() as worker:
        [output] = worker.handler.sharing.defer(large)
        [answered] = await worker.outputs(replace(large, headers=output.headers))
    assert read_result(answered.value).outcome == "succeeded"


async def test_a_job_that_a_worker_would_not_generate_is_not_deferred_and_ends_as_usual() -> None:
    async with working({"big": "gpu"}) as worker:
        rejected, letter = worker.handler.sharing.defer(record(b"{"))
        [forwarded] = worker.handler.sharing.defer(record({"prompt": "x", "model_id": "big"}))
    assert (read_result(rejected.value).outcome, headers_of(letter)["reason"]) == ("rejected", "rejected")
    assert forwarded.topic == "fleet.model_requests.gpu"
    assert worker.sample("postback_deferred_total") == 0


@settings(max_examples=drawn(60))
@given(
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.none() | st.floats(0, 1),
    st.sampled_from(["stop", "length"]),
    st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
    st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)),
    st.dictionaries(*2 * [st.text(st.characters(codec="utf-8"), max_size=9)], max_size=3),
    st.sampled_from([{}, {"custom_id": "c", "model_id": "echo"}]),
    st.none() | st.just(ServedBy("m", "other", 0.25, "EUR")),
)
async def test_a_plain_job_s_result_is_written_as_that_of_any_job(
    text: str,
    confidence: float | None,
    reason: FinishReason,
    tokens: tuple[int, int],
    times: tuple[float, float],
    metadata: dict[str, str],
    fields: dict[str, str],
    served: ServedBy | None,
) -> None:
    """The bytes of a plain job's result are put together without its model and its checks."""
    async with working() as worker:
        results = Results(worker.engine, Lifetimes(Cancellations(CLOCK), CLOCK), HandClock(1.7e9), Metrics())
        received = worker.handler._admission.admitted(record({"prompt": "x", "metadata": metadata, **fields}))
        completion = Completion(text, reason, *tokens, confidence, cached_tokens=tokens[0], served_by=served)
        timings = {"queued_ms": times[0], "enrich_ms": 0.0, "infer_ms": times[1]}
        checked = await results.answered(received, without_evidence(received), completion, timings)
        assert received.is_plain
        assert results.plain(received, completion, timings, checked.created_at) == write_result(checked)
        assert results.plain(received, replace(completion, refusal="no"), timings, 0) is None


async def test_jobs_count_for_the_tenant_that_their_header_names_and_for_default_where_there_is_none() -> None:
    async with working() as worker:
        stated = [("tenant", b"acme"), ("own", b"1"), ("tenant", b"globex")]
        assert assessed(worker, record(None, *stated)).party == b"globex"
        for headers in ([], [("own", b"1")], [("tenant", b"")]):
            assert assessed(worker, record(None, *headers)).party == b"default"
        lanes = [lane for engine in (None, "gpu") for lane in TOPICS.requests_of(engine)]
        assert [worker.handler.sharing.place(lane) for lane in lanes] == [Place.FIRST, Place.LATER, Place.SPARE] * 2


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
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(request: GenerationRequest) -> Completion:
        raise RequestRejected("prompt", f"may not say {request.question}")

    caplog.set_level("INFO")
    async with working() as worker:
        worker.answers_by(refuse)
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
    given, failure = record(job_id="killer"), Failure("worker_killed", "it ended its worker", 3)
    async with working() as worker:
        failed, letter = worker.handler.give_up(given, failure)
        rejected, other_letter = worker.handler.give_up(record(b"{"), failure)
    result, why = read_result(failed.value), headers_of(letter)
    assert (result.job_id, result.outcome, result.error and result.error.code) == ("killer", "failed", "worker_killed")
    assert headers_of(failed)["callback-url"] == HOOK
    assert (why["reason"], why["attempts"]) == ("worker_killed", "3")
    assert why["webhook-id"] == headers_of(failed)["webhook-id"]
    assert letter.value == given.value
    # A record that is no job is rejected instead.
    assert (read_result(rejected.value).outcome, headers_of(other_letter)["reason"]) == ("rejected", "rejected")


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


# -- registry --------------------------------------------------------------------------------------------------------
SHARED = Registry(("small", "vllm", "default"), None, {"big": "gpu", "mine": None})
GPU = Registry(("big", "vllm", "default"), "gpu", {"small": None, "alias": "gpu"})


@pytest.mark.parametrize(
    ("registry", "model", "forwarded", "route"),
    [
        # A job without a model, or for a model of this worker, is answered here.
        *((SHARED, model, None, None) for model in (None, "vllm", "default", "small", "mine")),
        # A model of another lane is forwarded there, and one that the registry puts into this lane is answered here.
        (SHARED, "big", None, Forward("gpu", 1)),
        (GPU, "small", None, Forward(None, 1)),
        (GPU, "alias", None, None),
        # A model that is served here is never forwarded, whatever the registry says and however often it was.
        (Registry({"small"}, None, {"small": "gpu"}), "small", None, None),
        (SHARED, "small", "99", None),
    ],
)
def test_a_job_is_answered_where_its_model_is_served_and_forwarded_to_another_lane_otherwise(
    registry: Registry, model: str | None, forwarded: str | None, route: Forward | None
) -> None:
    assert registry.route(model, forwarded) == route


def test_a_model_that_no_engine_has_is_named_beside_those_that_there_are() -> None:
    with pytest.raises(UnknownModel) as unknown:
        SHARED.route("gpt-17", None)
    assert str(unknown.value) == (
        'no engine of this fleet has the model "gpt-17"; there is "small", "big", "mine": name one of these or leave '
        "it out (`postback submit --model` does either), or have the operator add an alias to POSTBACK_WORKER__MODELS "
        "or the registry"
    )


@given(st.from_regex(r"\A[\x21-\x7e]{1,256}\Z"), st.lists(st.from_regex(r"\A[\x21-\x7e]{1,256}\Z"), max_size=50))
def test_whatever_a_model_is_called_the_refusal_is_short_and_holds_nothing_but_plain_names(
    name: str, others: list[str]
) -> None:
    registry = Registry(("small", "/private/place"), None, dict.fromkeys(others))
    assume(name not in {"small", "/private/place", *others})
    with pytest.raises(UnknownModel) as unknown:
        registry.route(name, None)
    said = str(unknown.value)
    assert len(said) < 1_000
    assert "/private/place" not in said or "/private/place" in "".join((name, *others))
    assert not set(said) & set("<>&'\\$%")


def test_forwarding_is_counted_and_a_circle_ends() -> None:
    forwarded = None
    for times in range(1, MAX_FORWARDS + 1):
        assert SHARED.route("big", forwarded) == Forward("gpu", times)
        forwarded = str(times)
    with pytest.raises(UnknownModel, match="in a circle"):
        SHARED.route("big", forwarded)


@pytest.mark.parametrize("header", ["", "-1", "1.5", "x", "²", "9" * 5000])
def test_a_count_that_is_no_number_of_ours_does_not_end_the_worker(header: str) -> None:
    """Any producer can write the header with the number of forwards; an absurd number counts as too many."""
    try:
        assert SHARED.route("big", header) == Forward("gpu", 1)
    except UnknownModel:
        assert header.isdecimal()


# -- unserved models -------------------------------------------------------------------------------------------------
async def test_a_job_is_answered_if_its_model_is_served_within_the_time() -> None:
    async with working() as worker:
        routes = Registry({"echo"}, None, {})
        handler = inference_handler(
            worker.engine,
            worker.enricher,
            worker.metrics,
            settings=WorkerSettings(model_wait_seconds=60),
            registry=routes,
        )
        handling = asyncio.create_task(handler.handle(record(model_id="new")))
        await asyncio.sleep(0.05)
        assert not handling.done()
        assert handler.pace.room() > 0, "a waiting job takes no place of a job for the engine"
        routes.replace({"echo"}, None, {"new": None})
        async with asyncio.timeout(30):
            [output] = await handling
        assert read_result(output.value).outcome == "succeeded"


async def test_a_job_is_rejected_after_the_time_and_its_result_names_the_served_models() -> None:
    async with working({"large": None}, model_wait_seconds=0.2) as worker:
        result, _ = await worker.outputs(record(model_id="unheard-of"))
        rejected = read_result(result.value)
        assert rejected.outcome == "rejected"
        assert rejected.error is not None
        assert 'no engine of this fleet has the model "unheard-of"; there is ' in rejected.error.message
        assert '"large"' in rejected.error.message


async def test_an_old_record_is_rejected_at_once() -> None:
    async with working(model_wait_seconds=600) as worker:
        late = record(model_id="unheard-of")
        late.timestamp_ms -= 601_000
        async with asyncio.timeout(30):
            result, _ = await worker.outputs(late)
        assert read_result(result.value).outcome == "rejected"


async def test_a_flood_of_unknown_names_does_not_take_the_whole_window() -> None:
    async with working(model_wait_seconds=600) as worker:
        waiting = [
            asyncio.create_task(worker.outputs(record(model_id="soon", offset=offset)))
            for offset in range(MOST_WAITING)
        ]
        await asyncio.sleep(0)
        rejected, _ = await worker.outputs(record(model_id="soon"))
        assert read_result(rejected.value).outcome == "rejected"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert {task.cancelled() for task in waiting} == {True}


async def test_a_job_that_is_over_does_not_wait_for_its_model() -> None:
    async with working(model_wait_seconds=60) as worker, asyncio.timeout(30):
        outputs = await worker.outputs(record(model_id="unheard-of", ttl_seconds=0.3))
        assert read_result(outputs[0].value).outcome == "expired"


# -- engine watch ----------------------------------------------------------------------------------------------------
AWAY = EngineUnavailable("the server answered 503")


def reasons(watch: EngineWatch) -> tuple[str, ...]:
    return readiness_of([], [watch]).reasons


def test_an_engine_that_is_away_for_more_than_ten_seconds_is_a_reason_until_it_answers() -> None:
    clock = HandClock()
    watch = EngineWatch(clock)
    watch.asking = 1
    watch.failed(AWAY)
    clock.now += 10.0
    assert reasons(watch) == ()
    clock.now += 2.0
    watch.failed(EngineUnavailable("the server was not reached: ClientConnectorError"))
    assert reasons(watch) == ("the engine has not answered for 12 s: the server was not reached: ClientConnectorError",)
    assert alive([], [watch])
    watch.answered()
    assert reasons(watch) == ()
    watch.failed(AWAY)
    assert reasons(watch) == ()


def test_an_engine_that_fails_now_and_then_and_answers_in_between_is_no_reason() -> None:
    clock = HandClock()
    watch = EngineWatch(clock)
    watch.asking = 1
    for _ in range(10):
        watch.failed(AWAY)
        clock.now += 6.0
        watch.answered()
        clock.now += 6.0
        assert reasons(watch) == ()


def test_an_engine_whose_process_died_is_a_reason_while_jobs_wait_for_it_to_be_loaded() -> None:
    clock = HandClock()
    watch = EngineWatch(clock)
    watch.asking = 1
    watch.failed(EngineDied("the engine's process ended with this request in flight"))
    watch.asking = 0
    clock.now += 60.0
    assert reasons(watch) == ()
    watch.asking = 1
    assert reasons(watch) == (
        "the engine has not answered for 60 s: the engine's process ended with this request in flight",
    )


def test_an_absence_that_the_engine_knows_is_a_reason_at_once_and_without_a_job() -> None:
    absence = ["the model is loaded again"]
    watch = EngineWatch(HandClock(), lambda: absence[0] if absence else None)
    assert reasons(watch) == ("the model is loaded again",)
    absence.clear()
    assert reasons(watch) == ()


def test_many_retries_log_one_line_in_ten_seconds_and_their_end_logs_one_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    clock = HandClock()
    watch = EngineWatch(clock)
    watch.asking = 2
    for _ in range(250):
        watch.failed(AWAY)
        clock.now += 0.1
    watch.answered()
    watch.answered()
    lines = [cast("dict[str, Any]", record.msg) for record in caplog.records]
    assert [(line["level"], line["action"]) for line in lines] == [
        ("warning", "engine-unavailable"),
        ("warning", "engine-unavailable"),
        ("warning", "engine-unavailable"),
        ("info", "engine-back"),
    ]
    assert (lines[0]["why"], lines[0]["jobs"], lines[-1]["away_seconds"]) == ("the server answered 503", 2, 25)


# -- any record ------------------------------------------------------------------------------------------------------
NOBODY = EgressPolicy(ports=frozenset())
"""A policy that refuses every URL, so nothing is called."""
FAILURE = Failure("worker_killed", "it ended its worker", 3)
SMALL = (
    st.integers(0, 10**16).map(str) | st.text(max_size=12) | st.sampled_from(["-1", "٣", "1e3", "https://a.example/"])
)
NAMED = st.tuples(
    st.sampled_from([value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]),
    st.none() | st.binary(max_size=12) | SMALL.map(str.encode),
)
HEADERS = st.none() | st.lists(NAMED | st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=9)), max_size=8)
WHOLE = st.lists(NAMED, max_size=4).map(
    lambda more: [
        (names.CALLBACK_URL, b"https://a.example/hook"),
        (names.JOB_ID, b"a"),
        (names.WEBHOOK_ID, b"msg_1"),
        *more,
    ]
)
"""The headers that every callback has, beside further headers of any content."""
TIMES = st.sampled_from([-1, 0, 1, 2**62]) | st.integers(1_700_000_000_000, 2_000_000_000_000)
RESULTS = st.builds(
    lambda job_id, text: Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text=text, created_at=1).model_dump_json(),
    st.text(max_size=9),
    st.text(max_size=9),
).map(str.encode)
FIELDS = ["messages", "job_id", "custom_id", "callback_url", "model_id", "max_tokens", "metadata"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
THINGS = any_json(scalars=LEAVES, leaves=4)
JOBS = st.fixed_dictionaries({"prompt": st.text(max_size=9) | THINGS}, optional=dict.fromkeys(FIELDS, THINGS)).map(
    lambda job: json.dumps(job).encode()
)


def records(*topics: str) -> st.SearchStrategy[Record]:
    values = st.binary(max_size=40) | RESULTS | JOBS
    offsets = st.sampled_from([0, 7, 2**62])
    keys = st.none() | st.binary(max_size=9)
    unreadable = st.none() | st.none() | st.just("have a name that is not UTF-8")
    return st.builds(
        Record, st.sampled_from(topics), st.just(3), offsets, values, keys, HEADERS, TIMES, unreadable
    ).map(_as_the_client_gives_it)


def _as_the_client_gives_it(record: Record) -> Record:
    if record.unreadable is not None:
        record.headers = None
    return record


def ensure_producible(outputs: Sequence[Output]) -> None:
    assert not any(map(is_too_large, outputs)), f"larger than {MAX_OUTPUT_BYTES} bytes"


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=drawn(100))


def test_inference_answers_defers_and_gives_up_every_record(loop: asyncio.AbstractEventLoop) -> None:
    metrics = Metrics()
    engine = EchoEngine(EchoSettings(), metrics)
    enricher = Enricher(EnrichmentSettings(), Guard(NOBODY), CLOCK, metrics)
    handler = inference_handler(engine, enricher, metrics, lanes={"another": "lane"}, callbacks=NOBODY)

    @ANY
    @example(Record(TOPICS.requests(), 3, 7, b'{"prompt":"x","callback_url":"https://[2001:db8::1::2]/hook"}'))
    @given(records(TOPICS.requests(), TOPICS.requests(bulk=True)))
    def each(record: Record) -> None:
        handler.sharing.assess(record)
        assert isinstance(record.party, bytes)
        assert record.cost >= 1
        assert record.urgency >= 0
        assert handler.pace.due_ms(record) is None
        for outputs in (loop.run_until_complete(handler.handle(record)), handler.sharing.defer(record)):
            ensure_producible(outputs)
            assert len(outputs) in (1, 2)
        ensure_producible(handler.give_up(record, FAILURE))

    each()


def test_delivery_handles_and_gives_up_every_record_and_knows_when_it_is_due(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    keyring = Keyring.create(tmp_path / "keyring.json", CLOCK)
    delivery = DeliverySettings()
    handler = DeliveryHandler(TOPICS, keyring, Poster(delivery, NOBODY, CLOCK), CLOCK, Metrics(), delivery)

    @ANY
    @given(records(TOPICS.results, *TOPICS.tiers.values()))
    def each(record: Record) -> None:
        due_ms = handler.due_ms(record)
        assert (due_ms is None) == (record.topic == TOPICS.results)
        ensure_producible(loop.run_until_complete(handler.handle(record)))
        ensure_producible(handler.give_up(record, FAILURE))

    each()
    loop.run_until_complete(handler.close())


TEXTS = st.binary(max_size=30) | THINGS.map(lambda thing: json.dumps(thing).encode())
KEYS = st.none() | TEXTS | st.tuples(st.text(max_size=5), st.text(max_size=5)).map(lambda key: json.dumps(key).encode())
FACTS = TEXTS | st.fixed_dictionaries(
    {},
    optional={
        "tenant": st.just("acme") | st.text(max_size=3),
        "job_id": st.just("a") | st.text(max_size=3),
        "url": st.text(max_size=9),
        "state": st.sampled_from(["cancelled", "disabled", "failing", "enabled", "x"]),
        "at": st.integers() | st.just(2**70) | st.floats(),
        "reason": st.sampled_from(["gone", "failing", "operator", "x"]),
    },
).map(lambda fact: json.dumps(fact).encode())


@ANY
@given(st.lists(st.tuples(KEYS, st.none() | FACTS), max_size=5))
def test_records_of_compacted_topics_are_taken_in_or_skipped(said: list[tuple[bytes | None, bytes | None]]) -> None:
    cancellations, states = Cancellations(CLOCK), EndpointStates(DeliverySettings(), Metrics())
    for key, value in said:
        cancellations.apply(key, value)
        states.apply(key, value)


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    return screen_of(
        tmp_path,
        pii(more='fields = ["prompt", "messages", "search", "metadata"]', name="private"),
        regex("falcon", "reject", name="project"),
        words(name="toxicity"),
    )


@pytest.mark.parametrize("filler", ["", " lorem ipsum" * LONG_JOB_BYTES], ids=["short", "long"])
async def test_a_redacted_job_is_answered_from_its_redacted_text(screen: Screen, filler: str) -> None:
    async with working(screen=screen) as worker:
        result = await worker.result(record(prompt=f"pay {CARD}{filler}", metadata={"card": CARD}, max_tokens=100_000))

    assert result.outcome is Outcome.SUCCEEDED
    assert result.text is not None and "pay [redacted:card]" in result.text
    assert result.metadata == {"card": "[redacted:card]"}
    assert result.screening == [
        ScreeningFinding(rule="private", kind="card", verdict=Verdict.REDACT, field=field, count=1)
        for field in ("prompt", "metadata")
    ]
    assert worker.sample("postback_screened_total", verdict="redact") == 1


async def test_a_flagged_job_is_answered_and_its_result_names_the_rule(screen: Screen) -> None:
    async with working(screen=screen) as worker:
        result = await worker.result(record(prompt="Who is the bastard?"))

    assert result.outcome is Outcome.SUCCEEDED
    assert result.text is not None and "bastard" in result.text
    assert result.screening == [
        ScreeningFinding(rule="toxicity", kind="words", verdict=Verdict.FLAG, field="prompt", count=1)
    ]


FROM_GATEWAY = [
    ScreeningFinding(rule="toxicity", kind="words", verdict=Verdict.FLAG, field="prompt", count=9),
    ScreeningFinding(rule="codename", kind="regex", verdict=Verdict.FLAG, field="prompt", count=1),
]


@pytest.mark.parametrize("filtered", [True, False])
async def test_a_result_has_the_findings_of_gateway_and_worker_each_once(screen: Screen, filtered: bool) -> None:
    header = ("screening", write_findings(FROM_GATEWAY))
    body = {"prompt": "Who is the bastard?", "callback_url": HOOK}
    async with working(screen=screen if filtered else None) as worker:
        result = await worker.result(record(body, header))

    found = [(one.rule, one.count) for one in result.screening or ()]
    assert found == [("toxicity", 1 if filtered else 9), ("codename", 1)]


async def test_a_rejected_job_ends_with_its_own_code_and_echoes_no_input(screen: Screen) -> None:
    async with working(screen=screen) as worker:
        output, letter = await worker.outputs(
            record(prompt="the secret falcon", custom_id="row-1", metadata={"a": "b"})
        )

    result = read_result(output.value)
    assert (result.outcome, result.custom_id, result.text, result.metadata) == (Outcome.REJECTED, "row-1", None, {})
    assert result.error is not None and result.error.code == "screened"
    assert result.error.message == "prompt: the rule project of the input filter rejects it"
    assert [(found.rule, found.verdict) for found in result.screening or ()] == [("project", Verdict.REJECT)]
    assert headers_of(output)["callback-url"] == HOOK
    assert "secret" not in (output.value or b"").decode()
    assert letter.topic == TOPICS.dead_letters
    assert headers_of(letter)["reason"] == "screened"
    assert worker.sample("postback_screened_total", verdict="reject") == 1
    assert worker.sample("postback_jobs_total", outcome="rejected") == 1


async def test_a_search_is_redacted_before_it_leaves(screen: Screen) -> None:
    """The unknown provider's error would come with the search, so the rejection shows that the filter came first."""
    async with working(screen=screen) as worker:
        sources = {"search": {"provider": "none", "query": "falcon"}}
        output, _ = await worker.outputs(record(prompt="hello", sources=sources))

    error = read_result(output.value).error
    assert error is not None
    assert error.message == "sources.search.query: the rule project of the input filter rejects it"


async def test_a_job_without_a_match_has_no_findings(screen: Screen) -> None:
    async with working(screen=screen) as worker:
        [output] = await worker.outputs(record())

    assert b"screening" not in (output.value or b"")
    assert worker.sample("postback_screened_total", verdict="pass") == 1


async def test_a_job_for_another_engine_is_forwarded_unread(screen: Screen) -> None:
    """The other engine's worker screens the job by its own rules, since each worker's operator may have other rules."""
    async with working({"other": "other"}, screen=screen) as worker:
        [output] = await worker.outputs(record(model_id="other", prompt="falcon"))

    assert output.topic == TOPICS.requests("other")
    assert worker.sample("postback_screened_total", verdict="reject") == 0


@pytest.fixture
def reading(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until this event is set, the filter goes on reading each job."""
    check, may_end = screen.check, threading.Event()

    def checked(tenant: str, job: Job) -> Screened:
        may_end.wait()
        return check(tenant, job)

    monkeypatch.setattr(screen, "check", checked)
    yield may_end
    may_end.set()


LONG = "lorem ipsum" * LONG_JOB_BYTES


@pytest.mark.parametrize("before", [0, 2], ids=["read", "waiting"])
async def test_a_job_that_expires_in_the_filter_ends_at_its_deadline_without_its_metadata(
    screen: Screen, reading: threading.Event, before: int
) -> None:
    """The filter has two threads. If `before` is 2, both are taken, and the job waits for a thread."""
    async with working(screen=screen) as worker, asyncio.timeout(120):
        others = [asyncio.ensure_future(worker.result(record(prompt=LONG))) for _ in range(before)]
        await asyncio.sleep(0)  # lets the other jobs reach the filter first
        result = await worker.result(record(prompt=LONG, metadata={"card": CARD}, custom_id="row-1", ttl_seconds=0.3))
        reading.set()
        ended = await asyncio.gather(*others, worker.result(record(prompt=LONG)))

    assert (result.outcome, result.error and result.error.code) == (Outcome.EXPIRED, "expired")
    assert (result.custom_id, result.metadata) == ("row-1", {})
    assert {other.outcome for other in ended} == {Outcome.SUCCEEDED}


async def test_a_job_that_is_cancelled_in_the_filter_ends_at_once(screen: Screen, reading: threading.Event) -> None:
    async with working(screen=screen) as worker, asyncio.timeout(120):
        running = asyncio.ensure_future(worker.result(record(prompt=LONG, job_id="job_1", metadata={"card": CARD})))
        await asyncio.sleep(0)
        said = JobControl(tenant="default", job_id="job_1", state=ControlState.CANCELLED, at=unix_ms(CLOCK))
        worker.handler.cancellations.apply(job_key_bytes(said.key), write_control(said))
        result = await running

    assert (result.outcome, result.metadata) == (Outcome.CANCELLED, {})


async def test_a_tenants_long_jobs_leave_the_threads_to_other_tenants_in_turn(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, tenants, may_end = screen.check, list[str](), threading.Semaphore(0)

    def checked(tenant: str, job: Job) -> Screened:
        tenants.append(tenant)
        may_end.acquire()
        return check(tenant, job)

    monkeypatch.setattr(screen, "check", checked)
    jobs = [record(None, (TENANT, name), prompt="lorem ipsum" * LONG_JOB_BYTES) for name in [*[b"flood"] * 6, b"other"]]
    async with working(screen=screen) as worker, asyncio.timeout(120):
        ending = asyncio.gather(*map(worker.result, jobs))
        while len(tenants) < 2:
            await asyncio.sleep(0.001)
        for _ in jobs:
            may_end.release()
        await ending
    assert sorted(tenants) == ["flood"] * 6 + ["other"]
    assert tenants.index("other") <= 3
