"""The context window of the server's model, and prompts that exceed it."""

from __future__ import annotations

import pytest
from aiohttp import web

from tests.integration.answering_worker import AnsweringWorker
from tests.integration.openai_http.servers import Respond, Server, answers, engine_at, lists, problem, says
from tests.integration.raw_server import FACT, HTML, page, saying, speaking
from tests.integration.test_engine_contract import request
from workers.engines.base import RequestRejected
from workers.enrichment.choosing.tokens import estimated_tokens
from workers.inference.ground import CUT_NOTE


@pytest.mark.parametrize(
    ("models", "setting", "window"),
    [
        (lists({"id": "m2", "max_model_len": 100}, {"id": "m1", "max_model_len": 600}), None, 600),
        (lists({"id": "m0", "max_model_len": 600}, {"id": "m1", "max_model_len": None, "parent": "m0"}), None, 600),
        (lists({"id": "m1", "max_model_len": 600}), 500, 500),
        (lists({"id": "m1", "max_model_len": 600}), 8000, 600),
        (lists({"id": "m1"}), 500, 500),
        (lists({"id": "m1"}), None, None),
        (lists({"id": "m2", "max_model_len": 600}), None, None),
        (lists({"id": "m1", "max_model_len": -1}), None, None),
        (lists({"id": "m1", "max_model_len": 0}), 500, 500),
        (answers(200, {"data": "none"}), 500, 500),
        (answers(404, problem("no such path")), 500, 500),
    ],
)
async def test_the_window_is_the_servers_for_its_model_or_the_settings(
    models: Respond, setting: int | None, window: int | None
) -> None:
    async with engine_at(Server(says("yes")), Server(models), context_tokens=setting) as engine:
        assert engine.context_tokens == window


async def test_a_list_of_models_beyond_the_read_limit_is_ignored() -> None:
    models = lists({"id": "m1", "max_model_len": 600, "more": "x" * 10_000})
    async with engine_at(Server(says("yes")), Server(models), max_response_bytes=4096) as engine:
        assert engine.context_tokens is None


async def test_a_server_that_is_coming_up_is_waited_for_and_then_asked() -> None:
    models = Server(answers(503, problem("loading")), answers(502, {}), lists({"id": "m1", "max_model_len": 600}))
    async with engine_at(Server(says("yes")), models) as engine:
        assert engine.context_tokens == 600


async def test_max_tokens_beyond_a_window_that_is_known_do_not_reach_the_server() -> None:
    server = Server(says("yes"))
    async with engine_at(server, Server(lists({"id": "m1", "max_model_len": 600}))) as engine:
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request(max_tokens=600))
    assert (rejected.value.field, server.bodies) == ("max_tokens", [])


async def test_sources_are_cut_to_the_servers_window_and_the_instructions_about_them_are_not() -> None:
    """A vLLM server answers 400 to a prompt beyond its window.

    An earlier version rejected the job because of its sources.
    """
    long = "".join(f"<p>{FACT} It was mentioned in report {number}.</p>" for number in range(100))
    server, question = Server(says("In 1987 [1].")), "Which bridge opened in 1987?"
    models = Server(lists({"id": "m1", "max_model_len": 600}))
    async with (
        speaking(saying(page(long), HTML)) as origin,
        engine_at(server, models) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        result = await worker.answer(question, f"{origin}/a", f"{origin}/b", max_tokens=100)
    [message] = server.bodies[0]["messages"]
    assert message["content"].startswith("Answer the question from the sources")
    assert message["content"].endswith(f"Question: {question}\nAnswer:")
    assert FACT in message["content"]
    assert estimated_tokens(message["content"]) <= 500
    assert (result.outcome, [source.title for source in result.source_details]) == ("succeeded", ["A bridge"])


TOO_LONG = (
    "This model's maximum context length is 600 tokens. However, your prompt contains at least 601 input tokens, which "
    "exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)


def takes(characters: int) -> Respond:
    """A vLLM server with a small window, and a tokenizer that makes more tokens than estimated."""

    async def respond(request: web.Request) -> web.StreamResponse:
        [message] = (await request.json())["messages"]
        is_long = len(message["content"]) > characters
        return await (answers(400, problem(TOO_LONG, "input_tokens")) if is_long else says("In 1987 [1]."))(request)

    return respond


@pytest.mark.parametrize("characters", [1500, 900])
async def test_a_prompt_that_the_server_finds_too_long_is_asked_with_less_evidence(characters: int) -> None:
    long = "".join(f"<p>{FACT} It was mentioned in report {number}.</p>" for number in range(100))
    server, question = Server(takes(characters)), "Which bridge opened in 1987?"
    async with (
        speaking(saying(page(long), HTML)) as origin,
        engine_at(server) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        result = await worker.answer(question, f"{origin}/a", f"{origin}/b")
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert len(asked) > 1
    assert sorted(asked, key=len, reverse=True) == asked
    assert all(one.startswith("Answer the question from the sources") and FACT in one for one in asked)
    assert all(one.endswith(f"Question: {question}\nAnswer:") for one in asked)
    assert (result.outcome, [source.title for source in result.source_details]) == ("succeeded", ["A bridge"])
    assert CUT_NOTE in result.notes


async def test_a_question_that_is_too_long_by_itself_is_rejected_in_the_server_s_words() -> None:
    async with (
        speaking(saying(page(), HTML)) as origin,
        engine_at(Server(takes(10))) as engine,
        AnsweringWorker(engine=engine) as worker,
    ):
        rejected = await worker.answer("Which bridge?", f"{origin}/a")
        failed = await worker.answer("Which bridge?", sources={"urls": [f"{origin}/a"], "required": True})
    assert rejected.error is not None
    assert (rejected.outcome, rejected.error.message) == ("rejected", f"prompt: {TOO_LONG}")
    assert (failed.outcome, failed.error and failed.error.code) == ("failed", "no_sources")
