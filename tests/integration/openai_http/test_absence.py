"""A server that fails, hangs or comes back: whose fault a failure is, and when jobs go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from telemetry.metrics import Metrics
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.openai_http.servers import Server, answers, engine_at, says
from tests.integration.test_engine_contract import request
from workers.engines.openai_http import server as server_module
from workers.engines.openai_http.slots import FIRST
from workers.inference import generate

POISON = "Which bridge is poisonous?"


def away(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("postback_engine_away", {"engine": "openai"})


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.005)


@dataclass
class Backend:
    """A server behind a proxy: a status for each question, and a switch that lets it hang."""

    all_fail_with: int = 200
    hangs: set[str] = field(default_factory=set)
    """The kinds of requests that get no answer: `models` and `questions`."""
    asked: list[str] = field(default_factory=list)
    works: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the server no longer hangs."""

    async def respond(self, asked: web.Request) -> web.StreamResponse:
        question = (await asked.json())["messages"][0]["content"]
        self.asked.append(question)
        if "questions" in self.hangs:
            await asyncio.sleep(60)
        status = 500 if question == POISON else self.all_fail_with
        return await (says("yes") if status == 200 else answers(status, {}))(asked)

    async def models(self, asked: web.Request) -> web.StreamResponse:
        if "models" in self.hangs:
            await asyncio.sleep(60)
        return web.json_response({"data": [{"id": "m1"}]})

    def engine(self, **settings: Any) -> Any:
        return engine_at(Server(self.respond), Server(self.models), attempts=1, **settings)


async def test_a_job_that_alone_fails_is_given_up_after_five_answers_even_if_no_other_job_is_asked() -> None:
    """An earlier worker asked until the job's TTL, was not ready meanwhile, and gave a wrong reason."""
    backend = Backend()
    async with backend.engine() as engine, AnsweringWorker(engine=engine) as worker, asyncio.timeout(30):
        result = await worker.answer(POISON, sources=None)
        assert (await worker.answer("Which bridge?", sources=None)).outcome == "succeeded"
    assert result.error is not None
    assert (result.outcome, result.error.code) == ("failed", "engine_error")
    assert result.error.message.endswith("the server answered 500")
    assert backend.asked.count(POISON) == generate.FAILURES
    assert worker.engine_watch.reasons() == []


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_proxy_before_a_dead_server_costs_no_job_and_the_last_failure_stands_in_an_expired_result(
    status: int,
) -> None:
    backend = Backend(all_fail_with=status)
    async with backend.engine() as engine, AnsweringWorker(engine=engine) as worker, asyncio.timeout(30):
        waiting = [asyncio.create_task(worker.answer(f"Bridge {n}?", sources=None)) for n in range(8)]
        expired = await worker.answer("Which bridge?", sources=None, ttl_seconds=1)
        assert not any(task.done() for task in waiting)
        backend.all_fail_with = 200
        assert {result.outcome for result in await asyncio.gather(*waiting)} == {"succeeded"}
        assert engine.load().free == FIRST, "a server that was away has its places again"
    assert expired.error is not None
    assert expired.outcome == "expired"
    assert expired.error.message.endswith(f"the engine's last failure: the server answered {status}")


async def test_a_server_that_fails_every_request_gets_one_small_request_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the circuit, each waiting job asks such a server every few seconds."""
    monkeypatch.setattr("workers.engines.openai_http.engine.WATCH_SECONDS", 0.2)
    backend = Backend(all_fail_with=503)
    async with backend.engine() as engine, AnsweringWorker(engine=engine) as worker:
        waiting = [asyncio.create_task(worker.answer(f"Bridge {n}?", sources=None)) for n in range(50)]
        await until(lambda: "Hello." in backend.asked)
        before = len(backend.asked)
        await until(lambda: backend.asked.count("Hello.") > 3)
        assert len(backend.asked) - before == 3
        backend.all_fail_with = 200
        assert {result.outcome for result in await asyncio.gather(*waiting)} == {"succeeded"}


async def test_the_first_answer_ends_the_pauses_of_all_waiting_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(all_fail_with=503)
    monkeypatch.setattr(generate, "FIRST_RETRY_SECONDS", 3600.0)
    monkeypatch.setattr(generate, "LONGEST_RETRY_SECONDS", 3600.0)
    async with backend.engine() as engine, AnsweringWorker(engine=engine) as worker, asyncio.timeout(30):
        waiting = [asyncio.create_task(worker.answer(f"Bridge {n}?", sources=None)) for n in range(3)]
        await until(lambda: len(backend.asked) == 3)
        backend.all_fail_with = 200
        assert (await worker.answer("Which bridge?", sources=None)).outcome == "succeeded"
        assert {result.outcome for result in await asyncio.gather(*waiting)} == {"succeeded"}


async def test_a_hung_server_is_seen_while_all_slots_are_full_and_its_jobs_move_on_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An earlier worker stayed ready for ten minutes, and some workers were stuck after the server came back."""
    monkeypatch.setattr(server_module, "REACH_SECONDS", 0.1)
    backend, shown = Backend(hangs={"questions"}), Metrics()
    async with (
        backend.engine(max_concurrency=2, shown=shown) as engine,
        AnsweringWorker(engine=engine) as worker,
        asyncio.timeout(30),
    ):
        backend.hangs |= {"models"}
        waiting = [asyncio.create_task(worker.answer(f"Bridge {n}?", sources=None)) for n in range(6)]
        await until(lambda: worker.engine_watch.reasons() != [])
        assert "no answer to a request for its models" in worker.engine_watch.reasons()[0]
        assert away(shown) == 1
        await until(lambda: engine.load().running == 0)
        assert engine.load().free == 0, "the worker takes jobs that other workers' servers could answer"
        asked = len(backend.asked)
        backend.hangs.clear()
        assert {result.outcome for result in await asyncio.gather(*waiting)} == {"succeeded"}
        assert worker.engine_watch.reasons() == []
        assert away(shown) == 0
        assert asked == 2, "a server that hangs gets no more requests"


async def test_a_long_answer_of_a_server_that_gives_signs_of_life_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REACH_SECONDS", 0.1)
    looks, done = 0, asyncio.Event()

    async def models(asked: web.Request) -> web.StreamResponse:
        nonlocal looks
        looks += 1
        return web.json_response({"data": [{"id": "m1"}]})

    async def slowly(asked: web.Request) -> web.StreamResponse:
        await done.wait()
        return await says("yes")(asked)

    async with engine_at(Server(slowly), Server(models)) as engine:
        answering = asyncio.create_task(engine.complete(request()))
        await until(lambda: looks > 4)
        assert engine.load().away is None
        done.set()
        assert (await answering).text == "yes"
