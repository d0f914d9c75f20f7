"""Jobs that a worker forwards to another engine's lane or defers to the bulk lane."""

from __future__ import annotations

from schemas.codec import Origin, read_result
from tests.handlers import CLOCK, TOPICS
from tests.unit.echo_worker import TOPIC_ID, TRACE, headers_of, record, working
from workers.inference.registry import MAX_FORWARDS
from workers.stage.record import Record
from workers.stage.sharing import Place

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
        [output] = worker.handler.sharing.defer(given)
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


async def test_a_job_that_a_worker_would_not_generate_is_not_deferred_and_ends_as_usual() -> None:
    async with working({"big": "gpu"}) as worker:
        rejected, letter = worker.handler.sharing.defer(record(b"{"))
        [forwarded] = worker.handler.sharing.defer(record({"prompt": "x", "model_id": "big"}))
    assert (read_result(rejected.value).outcome, headers_of(letter)["reason"]) == ("rejected", "rejected")
    assert forwarded.topic == "fleet.model_requests.gpu"
    assert worker.sample("postback_deferred_total") == 0


async def test_jobs_count_for_the_tenant_that_their_header_names_and_for_default_where_there_is_none() -> None:
    async with working() as worker:
        party = worker.handler.sharing.party
        assert party([("tenant", b"acme"), ("own", b"1"), ("tenant", b"globex")]) == b"globex"
        assert {party(None), party([]), party([("own", b"1")]), party([("tenant", b"")])} == {b"default"}
        lanes = [lane for engine in (None, "gpu") for lane in TOPICS.requests_of(engine)]
        assert [worker.handler.sharing.place(lane) for lane in lanes] == [Place.FIRST, Place.LATER, Place.SPARE] * 2
