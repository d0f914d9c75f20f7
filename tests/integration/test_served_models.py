"""Models of a registry over servers on real sockets: addresses, circuits, limits, prices and second tries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.codec import read_result
from schemas.result import Result
from tests.asking import request_of
from tests.handlers import CLOCK, TOPICS
from tests.integration.openai_http.servers import Server, answers, openai_server, says
from tests.integration.registry_rig import ASKED, ESCALATING, Rig, rig, started
from tests.unit.echo_worker import record
from workers.egress import EgressPolicy, Guard
from workers.engines.base import Abort, EngineFailed, EngineLoad, EngineRefused, EngineUnavailable
from workers.engines.openai_http import engine as http_engine
from workers.engines.openai_http.engine import FAILURES
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.handler import InferenceHandler, Parts
from workers.inference.model_rules import ModelRules
from workers.inference.routing import Registry
from workers.inference.settings import WorkerSettings

TWO_ADDRESSES = """
[engines.e]
kind = "openai"
addresses = [{a}, {b}]
attempts = 1
[models.m1]
engine = "e"
aliases = ["other-name"]
cost = { prompt = 1000, completion = 2000, currency = "EUR" }
"""


async def test_a_failing_address_is_passed_over_and_its_circuit_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_engine, "WATCH_SECONDS", 3600)
    broken, good = Server(answers(503, {})), Server(says("yes"))
    async with rig(tmp_path, a=broken, b=good) as around, started(around.engine(TWO_ADDRESSES)) as engine:
        for number in range(2 * FAILURES):
            completion = await engine.generate(replace(ASKED, request_id=f"r{number}", model_id="other-name"))
            assert completion.text == "yes"
        assert completion.served_by is not None
        assert completion.served_by.model == "m1"
        assert (len(broken.bodies), len(good.bodies)) == (FAILURES, 2 * FAILURES)
        assert around.sample("postback_model_circuits_open", model="m1") == 1
        assert around.sample("postback_model_requests_total", model="m1", result="answered") == 2 * FAILURES
        assert around.sample("postback_model_requests_total", model="m1", result="failed") == FAILURES


async def test_an_answer_has_its_price_which_is_counted_too(tmp_path: Path) -> None:
    async with (
        rig(tmp_path, a=Server(says("x")), b=Server(says("x"))) as around,
        started(around.engine(TWO_ADDRESSES)) as engine,
    ):
        served = (await engine.generate(ASKED)).served_by
        assert served is not None
        assert served.cost == pytest.approx(0.009)  # the cost is that of 5 tokens of the prompt and 2 of the answer
        assert served.currency == "EUR"
        assert around.sample("postback_model_cost_total", model="m1", currency="EUR") == pytest.approx(0.009)


async def test_failures_of_a_server_that_answers_nothing_are_not_the_requests_fault(tmp_path: Path) -> None:
    """If these failures counted, the request's job would be given up as soon as another model's server answers."""
    broken, good = Server(answers(500, {})), Server(says("yes"))
    text = """
[engines.a]
kind = "openai"
addresses = [{a}]
attempts = 1
[engines.b]
kind = "openai"
addresses = [{b}]
[models.m1]
engine = "a"
[models.small]
engine = "b"
"""
    async with rig(tmp_path, a=broken, b=good) as around, started(around.engine(text)) as engine:
        for _ in range(4):
            await engine.generate(replace(ASKED, model_id="small"))
            with pytest.raises(EngineUnavailable) as failed:
                await engine.generate(replace(ASKED, model_id="m1"))
            assert not isinstance(failed.value, EngineFailed)
        broken.responses = [answers(500, {}), says("the small request is answered")]
        broken.bodies.clear()
        with pytest.raises(EngineFailed):
            await engine.generate(replace(ASKED, model_id="m1"))


async def test_the_load_counts_models_without_requests_now_and_then_and_used_ones_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage asks for the load hundreds of times a second; an earlier engine summed up all models each time."""
    async with (
        rig(tmp_path, a=Server(says("x")), b=Server(says("y"))) as around,
        started(around.engine(ESCALATING)) as engine,
    ):
        counted: list[str] = []

        def spied(name: str, load: Callable[[], EngineLoad]) -> Callable[[], EngineLoad]:
            def counting() -> EngineLoad:
                counted.append(name)
                return load()

            return counting

        for name, served in engine._served.items():
            monkeypatch.setattr(served, "load", spied(name, served.load))
        before = engine.load()
        await engine.generate(replace(ASKED, model_id="large"))
        counted.clear()
        loads = [engine.load() for _ in range(20)]
        assert {*loads} == {before}
        assert counted.count("large") == 20
        assert counted.count("small") <= 2


async def test_a_model_starts_with_one_address_and_the_others_join_later(tmp_path: Path) -> None:
    async with rig(tmp_path, a=Server(says("x"))) as around:
        around.urls["b"] = "http://127.0.0.1:9/v1"  # nothing listens there
        text = TWO_ADDRESSES.replace("attempts = 1", "attempts = 1\nstart_timeout_seconds = 30")
        async with asyncio.timeout(20), started(around.engine(text)) as engine:
            assert (await engine.generate(ASKED)).text == "x"


async def test_a_server_that_refuses_the_key_ends_the_start(tmp_path: Path) -> None:
    async with rig(tmp_path, a=Server(says("x"))) as around:
        locked = Server(answers(401, {}))
        async with openai_server(locked, locked) as url:
            around.urls["b"] = url
            text = TWO_ADDRESSES.replace("[{a}, {b}]", "[{b}]")
            with pytest.raises(EngineRefused):
                await around.engine(text).start()


async def test_a_request_that_waits_for_its_turn_counts_as_waiting_and_can_be_aborted(tmp_path: Path) -> None:
    server = Server(says("x"))
    text = TWO_ADDRESSES.replace("[{a}, {b}]", "[{a}]") + "limits = { requests_per_second = 0.001 }\n"
    async with rig(tmp_path, a=server) as around, started(around.engine(text)) as engine:
        await engine.generate(ASKED)
        late = replace(ASKED, request_id="r2", abort=Abort())
        waiting = asyncio.create_task(engine.generate(late))
        async with asyncio.timeout(30):
            while not engine.load().waiting:
                await asyncio.sleep(0.01)
        late.abort.ask()
        assert (await waiting).finish_reason == "abort"
        assert len(server.bodies) == 1


async def test_a_family_without_a_system_role_gets_its_rules_in_the_users_message(tmp_path: Path) -> None:
    server = Server(says('```json\n{"a": 1}\n```'))
    text = TWO_ADDRESSES.replace("[{a}, {b}]", "[{a}]") + 'family = "gemma-2"\n'
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    asked = request_of(messages=messages, response_format={"type": "json_object"})
    async with rig(tmp_path, a=server) as around, started(around.engine(text)) as engine:
        completion = await engine.generate(asked)
        assert server.bodies[0]["messages"] == [{"role": "user", "content": "Be brief.\n\nHello?"}]
        assert completion.text == '{"a": 1}'
        plain = await engine.generate(request_of(messages=messages))
        assert plain.text.startswith("```json")


# -- through the handler ---------------------------------------------------------------------------------------------

JSON = {"response_format": {"type": "json_object"}}


async def result_of(around: Rig, **job: object) -> Result:
    async with started(around.engine(ESCALATING)) as engine:
        enricher = Enricher(EnrichmentSettings(), Guard(EgressPolicy()), CLOCK, around.metrics)
        await enricher.start()
        handler = InferenceHandler(
            Parts(
                engine=engine,
                enricher=enricher,
                registry=Registry(engine.models, None, engine.registry.lanes()),
                callback_policy=EgressPolicy(),
                topics=TOPICS,
                topic_ids={},
                settings=WorkerSettings(),
                clock=CLOCK,
                metrics=around.metrics,
                rules=ModelRules(lambda: engine.registry),
            )
        )
        outputs = await handler.handle(record({"prompt": "Hello?", **job}))
        await enricher.close()
    return read_result(outputs[0].value)


async def test_a_job_gets_its_models_defaults_and_its_price(tmp_path: Path) -> None:
    small, large = Server(says("fine")), Server(says("no"))
    async with rig(tmp_path, a=small, b=large) as around:
        result = await result_of(around)
        assert (result.text, result.engine, result.model_id, result.notes) == ("fine", "openai", "small", [])
        assert result.usage is not None
        assert result.usage.cost == pytest.approx(0.007)
        assert result.usage.currency == "USD"
        assert (small.bodies[0]["max_tokens"], small.bodies[0]["temperature"]) == (7, 0.5)
        await result_of(around, max_tokens=3, temperature=0)
        assert (small.bodies[1]["max_tokens"], small.bodies[1]["temperature"]) == (3, 0)


async def test_an_answer_that_is_not_json_is_tried_once_more_with_the_next_model(tmp_path: Path) -> None:
    small, large = Server(says("no JSON")), Server(says('{"a": 1}'))
    async with rig(tmp_path, a=small, b=large) as around:
        result = await result_of(around, **JSON)
        assert (result.outcome, result.text) == ("succeeded", '{"a": 1}')
        assert result.notes == ["escalated: not_json with model small; model large answered"]
        assert result.usage is not None
        assert result.usage.total_tokens == 14
        # In an earlier version the job was counted and timed twice, and the exporter wanted more workers.
        assert around.sample("postback_job_seconds_count", phase="infer") == 1
        assert result.usage.cost == pytest.approx(0.021)


async def test_a_job_is_escalated_at_most_once(tmp_path: Path) -> None:
    small, large = Server(says("no JSON")), Server(says("none either"))
    async with rig(tmp_path, a=small, b=large) as around:
        result = await result_of(around, **JSON)
        assert result.error is not None
        assert (result.outcome, result.error.code) == ("failed", "not_json")
        assert result.notes == ["escalated: not_json with model small; model large gave no answer either"]
        assert (len(small.bodies), len(large.bodies)) == (1, 1)


@pytest.mark.parametrize(
    ("second", "text", "end"),
    [
        (says("sure"), "sure", "model large answered"),
        (
            says("", finish_reason="content_filter"),
            "unsure",
            "model large gave no answer; the first answer stands",
        ),
        (answers(400, {}), "unsure", "model large refused the job; the first result stands"),
    ],
)
async def test_an_unsure_answer_is_kept_if_the_next_model_gives_none(
    second: object, text: str, end: str, tmp_path: Path
) -> None:
    unsure = says("unsure", logprobs={"content": [{"logprob": -2.0}]})
    async with rig(tmp_path, a=Server(unsure), b=Server(second)) as around:  # type: ignore[arg-type] # a response
        result = await result_of(around)
        assert (result.outcome, result.text) == ("succeeded", text)
        assert result.notes == [f"escalated: the confidence was below 0.5 with model small; {end}"]


async def test_a_lanes_worker_serves_the_models_of_its_lane_only(tmp_path: Path) -> None:
    text = ESCALATING.replace("escalate", "# escalate").replace('engine = "b"', 'engine = "b"\nlane = "big"')
    async with rig(tmp_path, a=Server(says("x")), b=Server(says("y"))) as around:
        assert around.engine(text).models == ("small",)
        assert around.engine(text, "big").models == ("large",)
        with pytest.raises(ValueError, match="no model of lane other"):
            around.engine(text, "other")


async def test_requests_whose_prompts_begin_alike_go_to_one_address(tmp_path: Path) -> None:
    servers = {"a": Server(says("x")), "b": Server(says("x"))}
    async with rig(tmp_path, **servers) as around, started(around.engine(TWO_ADDRESSES)) as engine:
        went = []
        # The ports decide which address gets a prefix. One run in eight million sends all 24 prefixes to the same
        # address.
        for number in range(72):
            before = len(servers["a"].bodies)
            await engine.generate(replace(ASKED, request_id=f"r{number}", prefix_key=bytes([number % 24])))
            went.append(len(servers["a"].bodies) > before)
        assert went == went[:24] * 3
        assert len(set(went)) == 2


async def test_a_single_prefix_uses_all_addresses_once_one_is_busy(tmp_path: Path) -> None:
    servers = {"a": Server(says("x")), "b": Server(says("x"))}
    async with rig(tmp_path, **servers) as around, started(around.engine(TWO_ADDRESSES)) as engine:
        requests = [replace(ASKED, request_id=f"r{number}", prefix_key=b"same") for number in range(60)]
        await asyncio.gather(*map(engine.generate, requests))
        assert min(len(server.bodies) for server in servers.values()) >= 10
