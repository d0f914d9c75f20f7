"""Jobs that a worker answers in time, with sources, at the engine's pace."""

from __future__ import annotations

import asyncio

import pytest

from schemas.codec import Origin, read_result
from tests.unit.echo_worker import HOOK, TOPIC_ID, TRACE, headers_of, record, working

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
    ("named", "model", "told"), [(None, "big", "big"), ("alias", "big", "alias"), (None, None, None)]
)
async def test_a_result_says_which_model_it_is_from_by_the_job_s_name_for_it_or_else_the_engine_s(
    named: str | None, model: str | None, told: str | None
) -> None:
    async with working({"alias": None}) as worker:
        worker.engine.models = (model,) if model else ()
        answered = await worker.result(record(model_id=named))
        expired = await worker.result(record(None, ("deadline", b"1000")))
    assert answered.model_id == told
    assert expired.model_id == model


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


async def test_sources_that_bring_nothing_are_a_note() -> None:
    async with working() as worker:
        result = await worker.result(record(sources=NO_PROVIDER))
    assert (result.outcome, result.sources) == ("succeeded", [])
    assert any("search" in note for note in result.notes)
    assert worker.sample("postback_job_seconds_count", phase="enrich") == 1


async def test_sources_that_are_required_and_bring_nothing_are_a_failure() -> None:
    async with working() as worker:
        room = worker.handler.pace.room()
        result = await worker.result(record(sources={**NO_PROVIDER, "required": True}))
        assert worker.handler.pace.room() == room
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_sources")


# -- room ----------------------------------------------------------------------------------------------------------


async def test_the_engines_queue_is_kept_filled_whatever_is_in_enrichment() -> None:
    async with working(enrich_ahead=2, waiting_target=10) as worker:
        assert worker.handler.pace.room() == worker.engine.load().free + 10
        assert worker.handler.pace.due_ms(record()) is None
