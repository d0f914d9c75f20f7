"""A job for a model that no worker serves waits a little before its rejection."""

from __future__ import annotations

import asyncio

from schemas.codec import read_result
from tests.handlers import CLOCK, inference_handler
from tests.unit.echo_worker import record, working
from workers.inference.registry import Registry
from workers.inference.settings import WorkerSettings
from workers.inference.unserved import MOST_WAITING, UnservedJobs


async def test_a_job_is_answered_if_its_model_is_served_within_the_time() -> None:
    async with working() as worker:
        routes = Registry({"echo"}, None, {})
        handler = inference_handler(
            worker.engine,
            worker.enricher,
            worker.metrics,
            settings=WorkerSettings(unserved_seconds=60),
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
    async with working({"large": None}, unserved_seconds=0.2) as worker:
        result, _ = await worker.outputs(record(model_id="unheard-of"))
        rejected = read_result(result.value)
        assert rejected.outcome == "rejected"
        assert rejected.error is not None
        assert 'no engine of this fleet has the model "unheard-of"; there is ' in rejected.error.message
        assert '"large"' in rejected.error.message


async def test_an_old_record_is_rejected_at_once() -> None:
    async with working(unserved_seconds=600) as worker:
        late = record(model_id="unheard-of")
        late.timestamp_ms -= 601_000
        async with asyncio.timeout(30):
            result, _ = await worker.outputs(late)
        assert read_result(result.value).outcome == "rejected"


async def test_a_flood_of_unknown_names_does_not_take_the_whole_window() -> None:
    unserved = UnservedJobs(600, CLOCK)
    asked = record()
    waiting = [
        asyncio.create_task(unserved.served_later(asked, lambda: False, lambda: False)) for _ in range(MOST_WAITING)
    ]
    await asyncio.sleep(0)
    assert not await unserved.served_later(asked, lambda: True, lambda: False)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len({task.cancelled() for task in waiting}) == 1


async def test_a_job_that_is_over_does_not_wait_for_its_model() -> None:
    async with working(unserved_seconds=60) as worker, asyncio.timeout(30):
        outputs = await worker.outputs(record(model_id="unheard-of", ttl_seconds=0.3))
        assert read_result(outputs[0].value).outcome == "expired"
