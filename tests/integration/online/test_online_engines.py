"""The engines `anthropic` and `gemini`: their requests and answers, and the errors of all online services."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from schemas.job import Message, Reasoning, ResponseFormat
from tests.integration.online.responses_service import responses_app
from tests.integration.online.scripted import (
    ANTHROPIC,
    EACH,
    GEMINI,
    RESPONSES,
    OnlineKind,
    engine_of,
    problem,
    says,
    scripted,
)
from tests.integration.online.services import (
    KEY,
    MODEL,
    anthropic_app,
    completion_of,
    gemini_app,
)
from tests.integration.openai_http.servers import Respond, answers
from tests.integration.openai_server import serving
from tests.integration.test_engine_contract import EngineContract, request
from workers.engines.base import (
    Engine,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    PromptTooLong,
    RequestRejected,
)

APPS = {"anthropic": anthropic_app, "gemini": gemini_app, "responses": responses_app}


class OnlineContract(EngineContract):
    kind: str

    @pytest_asyncio.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        async with serving(APPS[self.kind]()) as url:
            engine = engine_of(self.kind, url)
            await engine.start()
            yield engine
            await engine.close()


class TestAnthropic(OnlineContract):
    kind = "anthropic"

    async def test_the_confidence_is_a_probability(self, engine: Engine) -> None:
        """The API gives no log-probabilities."""
        assert (await engine.generate(request())).confidence is None

    async def test_where_only_the_likeliest_token_may_be_drawn_the_seed_changes_nothing(self, engine: Engine) -> None:
        """The API takes no seed, and temperatures up to 1."""
        for field, value in (("seed", 7), ("temperature", 1.5)):
            with pytest.raises(RequestRejected) as rejected:
                await engine.generate(request(**{field: value}))  # type: ignore[arg-type] # by name
            assert rejected.value.field == field

    async def test_each_of_several_answers_has_its_log_probabilities(self, engine: Engine) -> None:
        """The API gives neither several answers nor log-probabilities."""
        for fields, field in (({"n": 2}, "n"), ({"top_logprobs": 0}, "logprobs")):
            with pytest.raises(RequestRejected) as rejected:
                await engine.generate(request(**fields))  # type: ignore[arg-type] # by name
            assert rejected.value.field == field


class TestGemini(OnlineContract):
    kind = "gemini"


CHAT = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="One?"),
    Message(role="user", content="Two?"),
    Message(role="assistant", content="Two."),
    Message(role="developer", content="No lists."),
    Message(role="user", content="Three?"),
)
FORM = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}})


async def test_a_request_to_the_messages_api_has_its_fields() -> None:
    async with scripted(ANTHROPIC, says(ANTHROPIC, "yes")) as (engine, server):
        asked = request(prompt=None, messages=CHAT, response_format=FORM, stop=("\n",), top_p=0.9)
        completion = await engine.generate(asked)
        assert completion_of(completion) == ("yes", "stop", 33, 4)
        assert completion.cached_tokens == 20
    assert server.bodies == [
        {
            "model": MODEL,
            "max_tokens": 8,
            "system": "Be brief.\n\nNo lists.",
            "messages": [
                {"role": "user", "content": "One?\n\nTwo?"},
                {"role": "assistant", "content": "Two."},
                {"role": "user", "content": "Three?"},
            ],
            "temperature": 0.0,
            "top_p": 0.9,
            "stop_sequences": ["\n"],
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        }
    ]
    assert server.headers[0]["x-api-key"] == KEY


async def test_a_request_to_the_gemini_api_has_its_fields() -> None:
    async with scripted(GEMINI, says(GEMINI, "yes", avgLogprobs=-0.5)) as (engine, server):
        asked = request(prompt=None, messages=CHAT, response_format=FORM, stop=("\n",), top_p=0.9, seed=2**31 + 7)
        completion = await engine.generate(asked)
        assert completion_of(completion) == ("yes", "stop", 33, 9)
        assert (completion.confidence, completion.cached_tokens) == (math.exp(-0.5), 20)
    assert server.bodies == [
        {
            "systemInstruction": {"parts": [{"text": "Be brief.\n\nNo lists."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "One?\n\nTwo?"}]},
                {"role": "model", "parts": [{"text": "Two."}]},
                {"role": "user", "parts": [{"text": "Three?"}]},
            ],
            "generationConfig": {
                "maxOutputTokens": 8,
                "temperature": 0.0,
                "topP": 0.9,
                "stopSequences": ["\n"],
                "seed": 7,
                "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "object"},
            },
        }
    ]
    assert server.headers[0]["x-goog-api-key"] == KEY


@pytest.mark.parametrize(
    ("kind", "asked", "sent"),
    [
        (ANTHROPIC, {"effort": "none"}, {"thinking": {"type": "disabled"}}),
        (ANTHROPIC, {"max_tokens": 2048}, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        (ANTHROPIC, {"effort": "xhigh"}, {"output_config": {"effort": "max"}}),
        (GEMINI, {"max_tokens": 0}, {"thinkingBudget": 0}),
        (GEMINI, {"max_tokens": 2048}, {"thinkingBudget": 2048, "includeThoughts": True}),
        (GEMINI, {"effort": "minimal"}, {"thinkingLevel": "minimal", "includeThoughts": True}),
    ],
)
async def test_the_bounds_of_reasoning_are_sent(kind: OnlineKind, asked: dict[str, Any], sent: dict[str, Any]) -> None:
    async with scripted(kind, says(kind, "yes")) as (engine, server):
        await engine.generate(request(reasoning=Reasoning.model_validate(asked)))
    [body] = server.bodies
    if kind is GEMINI:
        assert body["generationConfig"]["thinkingConfig"] == sent
    else:
        assert {name: body.get(name) for name in ("thinking", "output_config") if name in body} == sent


async def test_reasoning_comes_apart_from_the_answer() -> None:
    blocks = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "yes"}]
    parts = [{"text": "Hm.", "thought": True}, {"text": "yes"}]
    for kind, fields in (
        (ANTHROPIC, {"content": blocks}),
        (GEMINI, {"content": {"parts": parts, "role": "model"}}),
    ):
        async with scripted(kind, says(kind, "", **fields)) as (engine, _):
            completion = await engine.generate(request())
        assert (completion.text, completion.reasoning) == ("yes", "Hm.")


@EACH
async def test_a_raw_prompt_is_rejected_since_the_services_answer_chats(kind: OnlineKind) -> None:
    async with scripted(kind) as (engine, _):
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request(is_raw=True))
    assert rejected.value.field == "raw"


@EACH
async def test_system_messages_without_a_question_are_sent_as_the_question(kind: OnlineKind) -> None:
    async with scripted(kind, says(kind, "yes")) as (engine, server):
        await engine.generate(request(prompt=None, messages=(Message(role="system", content="Say yes."),)))
    [body] = server.bodies
    assert "Say yes." in json.dumps([body.get(name) for name in ("messages", "contents", "input")])


@EACH
@pytest.mark.parametrize("status", [429, 529, 503, 502, 500])
async def test_an_overload_is_tried_again_after_its_retry_after(kind: OnlineKind, status: int) -> None:
    busy = problem(kind, status, "Overloaded", Retry_After="0")
    async with scripted(kind, busy, says(kind, "yes")) as (engine, server):
        assert (await engine.generate(request())).text == "yes"
    assert len(server.bodies) == 2


@EACH
async def test_an_overloaded_service_counts_as_unavailable_and_a_failing_one_as_failed(kind: OnlineKind) -> None:
    async with scripted(kind, problem(kind, 529, Retry_After="0")) as (engine, server):
        with pytest.raises(EngineUnavailable) as away:
            await engine.generate(request())
        assert not isinstance(away.value, EngineFailed)
        server.responses = [problem(kind, 500, Retry_After="0")]
        with pytest.raises(EngineFailed):
            await engine.generate(request())
        server.responses = [problem(kind, 504)]
        with pytest.raises(EngineFailed) as late:
            await engine.generate(request())
        assert late.value.took_too_long


@EACH
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "invalid x-api-key"),
        (402, "billing"),
        (403, "no permission"),
        (404, "no model"),
        (400, "API key not valid. Please pass a valid API key."),
        (400, "Your credit balance is too low to access the Anthropic API."),
    ],
)
async def test_a_refusal_of_the_account_or_the_model_is_no_jobs_fault(
    kind: OnlineKind, status: int, message: str
) -> None:
    async with scripted(kind, problem(kind, status, message)) as (engine, server):
        with pytest.raises(EngineUnavailable) as away:
            await engine.generate(request())
        assert f"POSTBACK_ENGINE__{kind.name.upper()}__API_KEY" in str(away.value)
        assert KEY not in str(away.value)
    assert len(server.bodies) == 1


@EACH
async def test_a_refusal_of_the_request_reaches_its_author_in_the_services_words(kind: OnlineKind) -> None:
    async with scripted(kind, problem(kind, 400, "max_tokens: 9 > 8,\nwhich is the most")) as (engine, _):
        with pytest.raises(RequestRejected, match="max_tokens: 9 > 8, which is the most"):
            await engine.generate(request())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ANTHROPIC, "prompt is too long: 205000 tokens > 200000 maximum"),
        (GEMINI, "The input token count (1100) exceeds the maximum number of tokens allowed (1000)."),
        (RESPONSES, "Your input exceeds the context window of this model. Please adjust your input and try again."),
    ],
)
async def test_a_prompt_with_sources_that_is_too_long_may_be_shortened(kind: OnlineKind, message: str) -> None:
    async with scripted(kind, problem(kind, 400, message)) as (engine, _):
        with pytest.raises(PromptTooLong):
            await engine.generate(request(is_whole=True))
        with pytest.raises(RequestRejected):
            await engine.generate(request())


@EACH
async def test_a_model_that_takes_no_temperature_gets_none_where_the_job_names_none(kind: OnlineKind) -> None:
    refusal = problem(kind, 400, "`temperature` is deprecated for this model.")
    async with scripted(kind, refusal, says(kind, "yes")) as (engine, server):
        assert (await engine.generate(request(temperature_is_default=True))).text == "yes"
        await engine.generate(request(temperature_is_default=True))
    assert ["temperature" in json.dumps(body) for body in server.bodies] == [True, False, False]


def cut(body: bytes, length: int) -> Respond:
    async def respond(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(length), "Content-Type": "application/json"})
        await response.prepare(asked)
        await response.write(body)
        assert asked.transport is not None
        asked.transport.close()
        return response

    return respond


@EACH
async def test_an_answer_that_is_cut_off_is_asked_for_again(kind: OnlineKind) -> None:
    async with scripted(kind, cut(b'{"content": [', 1000), says(kind, "yes")) as (engine, server):
        assert (await engine.generate(request())).text == "yes"
    assert len(server.bodies) == 2


@EACH
@pytest.mark.parametrize("body", [{}, [], "x", {"content": 1}, {"candidates": 1}, {"candidates": []}])
async def test_an_answer_of_another_form_is_a_failure(kind: OnlineKind, body: Any) -> None:
    async with scripted(kind, answers(200, body)) as (engine, _):
        with pytest.raises(EngineFailed):
            await engine.generate(request())


@EACH
async def test_an_answer_beyond_the_limit_is_not_read(kind: OnlineKind) -> None:
    async with scripted(kind, says(kind, "x" * 4000), max_response_bytes=2000) as (engine, _):
        with pytest.raises(RequestRejected, match="larger than this engine reads"):
            await engine.generate(request())


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (ANTHROPIC, {"stop_reason": "max_tokens"}, "length"),
        (ANTHROPIC, {"stop_reason": "stop_sequence"}, "stop"),
        (ANTHROPIC, {"stop_reason": "model_context_window_exceeded"}, "length"),
        (ANTHROPIC, {"stop_reason": "refusal"}, "content_filter"),
        (ANTHROPIC, {"stop_reason": "tool_use"}, "tool_calls"),
        (ANTHROPIC, {"stop_reason": "pause_turn"}, "other"),
        (GEMINI, {"finishReason": "MAX_TOKENS"}, "length"),
        (GEMINI, {"finishReason": "SAFETY"}, "content_filter"),
        (GEMINI, {"finishReason": "RECITATION"}, "content_filter"),
        (GEMINI, {"finishReason": "PROHIBITED_CONTENT"}, "content_filter"),
        (GEMINI, {"finishReason": "MALFORMED_FUNCTION_CALL"}, "other"),
        (GEMINI, {"finishReason": None}, "other"),
    ],
)
async def test_each_finish_reason_of_a_service_is_known(kind: OnlineKind, fields: dict[str, Any], reason: str) -> None:
    async with scripted(kind, says(kind, "so", **fields)) as (engine, _):
        assert (await engine.generate(request())).finish_reason == reason


async def test_a_blocked_prompt_is_held_back_by_the_filter() -> None:
    blocked = answers(200, {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 7}})
    async with scripted(GEMINI, blocked) as (engine, _):
        assert completion_of(await engine.generate(request())) == ("", "content_filter", 7, 0)


@pytest.mark.parametrize("kind", APPS)
async def test_a_wrong_key_and_an_unknown_model_end_the_start(kind: str) -> None:
    async with serving(APPS[kind]()) as url:
        with pytest.raises(EngineRefused, match=f"POSTBACK_ENGINE__{kind.upper()}__API_KEY"):
            await engine_of(kind, url, api_key="sk-other").start()
        lack = (
            r"does not list the model unheard-of, but \S*" if kind == "responses" else r"answered 404 to \S*unheard-of"
        )
        mend = f"POSTBACK_ENGINE__{kind.upper()}__BASE_URL .* --model"
        with pytest.raises(EngineRefused, match=rf"{lack}, and a first request failed \(.*\): {mend}"):
            await engine_of(kind, url, model="unheard-of").start()
