"""The worker's handler with a real engine and a real enricher, record by record, without Kafka."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import pytest

from schemas.codec import Origin, read_result
from schemas.result import MAX_RESULT_BYTES, Result
from schemas.topics import Topics
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy, Guard
from workers.engines.echo import EchoEngine
from workers.engines.settings import EchoSettings
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.handler import MAX_HEADER_BYTES, InferenceHandler
from workers.inference.registry import MAX_FORWARDS, Registry
from workers.inference.settings import WorkerSettings
from workers.stage.record import Failure, HandlerCrashed, Output, Record

CLOCK = SystemClock()
TOPICS = Topics("fleet.")
TOPIC_ID = "topic-uuid"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HOOK = "https://example.com/hook?token=secret"


def record(
    body: dict[str, Any] | bytes | None = None, *headers: tuple[str, bytes], offset: int = 7, **fields: Any
) -> Record:
    """A job as it lies in `model_requests`; `fields` are added to the plain one."""
    job = body if body is not None else {"prompt": "What is the capital of France?", "callback_url": HOOK, **fields}
    value = job if isinstance(job, bytes) else json.dumps(job).encode()
    return Record(TOPICS.requests(), 3, offset, value, b"key", list(headers), int(CLOCK.time() * 1000))


class Worker:
    """The handler and what it is made of."""

    def __init__(self, settings: WorkerSettings, models: dict[str, str | None], callbacks: EgressPolicy) -> None:
        self.metrics = Metrics()
        self.engine = EchoEngine(EchoSettings(), self.metrics)
        self.enricher = Enricher(EnrichmentSettings(), Guard(EgressPolicy()), CLOCK, self.metrics)
        registry = Registry({"echo", "default"}, None, models)
        self.handler = InferenceHandler(
            self.engine,
            self.enricher,
            registry,
            callbacks,
            TOPICS,
            {TOPICS.requests(): TOPIC_ID},
            settings,
            CLOCK,
            self.metrics,
        )

    async def outputs(self, given: Record) -> Sequence[Output]:
        return await self.handler.handle(given)

    async def result(self, given: Record) -> Result:
        """The one result of a record that ends in nothing else."""
        [output] = await self.outputs(given)
        assert (output.topic, output.partition) == (TOPICS.results, None)
        result = read_result(output.value)
        assert output.key == result.job_id.encode()
        return result

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def working(
    models: dict[str, str | None] | None = None, callbacks: EgressPolicy | None = None, **settings: Any
) -> AsyncIterator[Worker]:
    worker = Worker(WorkerSettings(**settings), models or {}, callbacks or EgressPolicy())
    await worker.engine.start()
    await worker.enricher.start()
    try:
        yield worker
    finally:
        await worker.enricher.close()
        await worker.engine.close()


def headers_of(output: Output) -> dict[str, str]:
    return {name: value.decode() for name, value in output.headers or ()}


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


async def test_the_same_record_has_the_same_identity_each_time_and_another_has_another() -> None:
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


async def test_a_job_is_cut_off_at_its_deadline_and_says_nothing_of_what_it_had() -> None:
    async with working() as worker:
        result = await worker.result(record({"prompt": "[[sleep 30]] and on", "ttl_seconds": 0.05}))
        assert worker.engine.load().running == 0
    assert (result.outcome, result.text) == ("expired", None)
    assert worker.sample("postback_tokens_total", kind="completion") == 0


async def test_a_job_that_is_cancelled_leaves_nothing_in_the_engine_and_gives_its_room_back() -> None:
    async with working() as worker:
        room = worker.handler.room()
        running = [asyncio.create_task(worker.outputs(record({"prompt": "[[sleep 30]]"}, offset=n))) for n in range(3)]
        while worker.engine.load().running < 3:
            await asyncio.sleep(0)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert (worker.engine.load().running, worker.handler.room()) == (0, room)


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


async def test_a_letter_is_whose_its_result_is_and_what_the_record_said_instead_stands_beside() -> None:
    """By its tenant and its id a letter is found again, and neither may be what the record was refused for."""
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


# -- forwarded -----------------------------------------------------------------------------------------------------


async def test_a_job_of_another_engine_goes_to_its_lane_as_it_is_with_its_identity_and_deadline() -> None:
    given = record(
        {"prompt": "x", "model_id": "big", "ttl_seconds": 60}, ("traceparent", TRACE.encode()), ("own", b"1")
    )
    async with working({"big": "gpu"}) as worker:
        [output] = await worker.outputs(given)
    origin = Origin(TOPIC_ID, 3, 7)
    assert (output.topic, output.value, output.key, output.partition) == (
        "fleet.model_requests.gpu",
        given.value,
        given.key,
        3,
    )
    assert headers_of(output) == {
        "own": "1",
        "tenant": "default",
        "job-id": f"job_{origin.digest}",
        "webhook-id": origin.webhook_id(given.value),
        "traceparent": TRACE,
        "job-origin": str(origin),
        "deadline": str(given.timestamp_ms + 60_000),
        "forwarded": "1",
    }
    assert worker.sample("postback_jobs_total", outcome="succeeded") == 0


async def test_a_bulk_job_stays_a_bulk_job_when_it_is_forwarded() -> None:
    given = record({"prompt": "x", "model_id": "big"})
    given.topic = TOPICS.requests(bulk=True)
    async with working({"big": "gpu"}) as worker:
        [output] = await worker.outputs(given)
    assert output.topic == "fleet.model_requests.gpu.batch"


async def test_what_is_forwarded_is_read_there_as_the_same_job() -> None:
    given = record({"prompt": "x", "model_id": "big"})
    async with working({"big": "gpu"}) as worker, working({"big": None}) as other:
        [output] = await worker.outputs(given)
        there = Record(output.topic, 0, 99, output.value or b"", output.key, output.headers, given.timestamp_ms + 5000)
        [answer] = await other.outputs(there)
    sent, answered = headers_of(output), headers_of(answer)
    assert (sent["job-id"], sent["webhook-id"]) == (answered["job-id"], answered["webhook-id"])


async def test_a_job_that_is_forwarded_in_a_circle_is_rejected() -> None:
    given = record({"prompt": "x", "model_id": "big"}, ("forwarded", str(MAX_FORWARDS).encode()))
    async with working({"big": "gpu"}) as worker:
        rejected, letter = await worker.outputs(given)
    assert read_result(rejected.value).outcome == "rejected"
    assert "in a circle" in headers_of(letter)["reason-detail"]


# -- deferred ------------------------------------------------------------------------------------------------------


async def test_a_deferred_job_goes_to_the_bulk_lane_as_it_is_with_its_identity_and_deadline() -> None:
    given = record(
        {"prompt": "x", "ttl_seconds": 60}, ("tenant", b"acme"), ("traceparent", TRACE.encode()), ("own", b"1")
    )
    async with working() as worker:
        [output] = worker.handler.defer(given)
    origin = Origin(TOPIC_ID, 3, 7)
    there = (output.topic, output.value, output.key, output.partition)
    assert there == ("fleet.model_requests.batch", given.value, given.key, 3)
    assert headers_of(output) == {
        "own": "1",
        "tenant": "acme",
        "job-id": f"job_{origin.digest}",
        "webhook-id": origin.webhook_id(given.value),
        "traceparent": TRACE,
        "job-origin": str(origin),
        "deadline": str(given.timestamp_ms + 60_000),
        "deferred": "1",
    }
    assert worker.sample("postback_deferred_total") == 1


async def test_a_deferred_job_is_the_same_job_in_the_bulk_lane_and_no_younger() -> None:
    given = record({"prompt": "x", "ttl_seconds": 60}, ("tenant", b"acme"))
    given.timestamp_ms -= 61_000
    async with working() as worker:
        [output] = worker.handler.defer(given)
        there = Record(output.topic, 0, 99, output.value or b"", output.key, output.headers, int(CLOCK.time() * 1000))
        [answer] = await worker.outputs(there)
    sent, answered = headers_of(output), headers_of(answer)
    assert {name: answered[name] for name in ("tenant", "job-id", "webhook-id")} == {
        name: sent[name] for name in ("tenant", "job-id", "webhook-id")
    }
    assert read_result(answer.value).outcome == "expired"


async def test_a_worker_of_a_lane_defers_into_that_lane_s_bulk_lane() -> None:
    async with working(lane="gpu") as worker:
        [output] = worker.handler.defer(record())
    assert output.topic == "fleet.model_requests.gpu.batch"


async def test_a_job_put_back_by_hand_and_deferred_again_says_how_often() -> None:
    async with working() as worker:
        [output] = worker.handler.defer(record(None, ("deferred", b"1")))
    assert [value for name, value in output.headers or () if name == "deferred"] == [b"2"]


async def test_what_a_worker_would_not_generate_is_not_deferred_but_ends_where_it_does_anyway() -> None:
    async with working({"big": "gpu"}) as worker:
        rejected, letter = worker.handler.defer(record(b"{"))
        [forwarded] = worker.handler.defer(record({"prompt": "x", "model_id": "big"}))
    assert (read_result(rejected.value).outcome, headers_of(letter)["reason"]) == ("rejected", "rejected")
    assert forwarded.topic == "fleet.model_requests.gpu"
    assert worker.sample("postback_deferred_total") == 0


async def test_jobs_count_for_the_tenant_that_their_header_names_and_for_default_where_there_is_none() -> None:
    async with working() as worker:
        party = worker.handler.party
        assert party([("tenant", b"acme"), ("own", b"1"), ("tenant", b"globex")]) == b"globex"
        assert {party(None), party([]), party([("own", b"1")]), party([("tenant", b"")])} == {b"default"}
        lanes = [TOPICS.requests(engine, bulk=bulk) for engine in (None, "gpu") for bulk in (False, True)]
        assert [worker.handler.is_later(lane) for lane in lanes] == [False, True, False, True]


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
        room = worker.handler.room()
        result = await worker.result(record(sources={**NO_PROVIDER, "required": True}))
        assert worker.handler.room() == room
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_sources")


# -- the engine dies, the record kills -----------------------------------------------------------------------------


async def test_a_job_in_an_engine_that_dies_is_the_stage_s_to_judge_and_so_are_its_neighbours() -> None:
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


# -- room ----------------------------------------------------------------------------------------------------------


async def test_the_engines_queue_is_kept_filled_whatever_is_in_enrichment() -> None:
    async with working(enrich_ahead=2, waiting_target=10) as worker:
        assert worker.handler.room() == 10
        assert worker.handler.due_ms(record()) is None


# -- records that must not end a stage -----------------------------------------------------------------------------

ODD_HOOK = "https://[2001:db8::1::2]/hook"
"""The published pattern takes it, and no address is spelled so."""


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


async def test_giving_a_job_up_judges_no_callback() -> None:
    async with working() as worker:
        worker.handler._check_callback = None  # type: ignore[assignment]  # it is not to be called
        result, letter = worker.handler.give_up(record(callback_url=ODD_HOOK), Failure("internal_error", "why", 1))
    assert read_result(result.value).outcome == "failed"
    assert headers_of(result)["callback-url"] == ODD_HOOK
    assert headers_of(letter)["reason"] == "internal_error"
