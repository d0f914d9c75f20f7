"""The engines of online services: their starts, requests and answers, and the errors of all of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from aiohttp import web

from schemas.job import Message, Reasoning, ResponseFormat
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.online.scripted import (
    ANTHROPIC,
    EACH,
    GEMINI,
    KEY,
    MODEL,
    RESPONSES,
    OnlineKind,
    completion_of,
    problem,
    says,
    scripted,
)
from tests.integration.openai_http.servers import Respond, Server, answers, lists
from tests.integration.test_engine_contract import request
from workers.engines.base import (
    Engine,
    EngineError,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    PromptTooLong,
    RequestRejected,
)


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engines.openai_http.server.MAX_RESPONSE_BYTES", 4096)


async def refuses(engine: Engine, name: str, **asked: Any) -> None:
    """Assert that the engine rejects a request with these fields, and names this one."""
    with pytest.raises(RequestRejected) as rejected:
        await engine.generate(request(**asked))
    assert rejected.value.field == name


@EACH
async def test_members_that_a_service_lacks_are_left_out_and_named(kind: OnlineKind) -> None:
    lacking = {"anthropic": ("min_p", "seed"), "gemini": ("min_p",), "responses": ("min_p", "seed")}
    async with scripted(kind, says(kind, "yes")) as (engine, server):
        completion = await engine.generate(request(seed=7, min_p=0.1, top_p=0.5))
    assert completion.left_out == lacking[kind.name]
    assert not {"min_p", "minP"} & (server.bodies[0] | server.bodies[0].get("generationConfig", {})).keys()


async def test_a_service_with_one_answer_gives_one_and_no_log_probabilities() -> None:
    async with scripted(ANTHROPIC, says(ANTHROPIC, "yes")) as (engine, server):
        completion = await engine.generate(request(n=2, top_logprobs=0))
        await refuses(engine, "temperature", temperature=1.5)
    assert (completion.further, completion.logprobs, completion.confidence) == ((), None, None)
    assert not {"n", "logprobs", "top_logprobs"} & server.bodies[0].keys()


# -- starts ------------------------------------------------------------------------------------------------------------

NO_PATH = answers(404, {"detail": "Not Found"})


async def started(kind: OnlineKind, models: Respond, *responses: Respond, **options: Any) -> tuple[int | None, Server]:
    """Start an engine; return the model's context window, and the server, which has the engine's first requests."""
    async with scripted(kind, *responses, models=models, **options) as (engine, server):
        return engine.context_tokens, server


@EACH
@pytest.mark.parametrize(
    "models", [NO_PATH, answers(405, {}), answers(501, {}), answers(200, [1]), answers(200, {"data": "none"})]
)
async def test_a_service_without_a_description_of_the_model_is_asked_for_a_few_tokens(
    kind: OnlineKind, models: Respond, caplog: pytest.LogCaptureFixture
) -> None:
    window, server = await started(kind, models, problem(kind, 503), says(kind, "Hello."))
    assert (window, len(server.bodies)) == (None, 2)
    assert "does not list the model" in caplog.text


@pytest.mark.parametrize(
    ("models", "window", "first_requests"),
    [
        (lists({"id": "other"}, {"id": MODEL}), None, []),
        (lists({"id": "other"}, {"id": MODEL, "max_model_len": 600}), 600, []),
        (lists({"id": "other"}), None, [(MODEL, 16)]),
        (lists({"id": MODEL, "more": "x" * 10_000}), None, [(MODEL, 16)]),
    ],
    ids=["openai", "vllm", "not listed", "too long a list"],
)
async def test_a_server_of_responses_that_lists_its_models_is_asked_only_if_the_list_lacks_the_model(
    models: Respond, window: int | None, first_requests: list[tuple[str, int]]
) -> None:
    """In an earlier version, the engine asked for the description of one model, which only OpenAI's service has."""
    found, server = await started(RESPONSES, models, says(RESPONSES, "Hello."))
    asked = [(body["model"], body["max_output_tokens"]) for body in server.bodies]
    assert (found, asked) == (window, first_requests)


async def test_a_model_that_does_not_answer_ends_the_start_with_the_names_of_the_service_s_models() -> None:
    why = rf"does not list the model {MODEL}, but other, and .* \(.* 404.*\): \S*URL"
    with pytest.raises(EngineRefused, match=why):
        await started(RESPONSES, lists({"id": "other"}), problem(RESPONSES, 404, "The model 'x' does not exist"))


@EACH
async def test_a_key_that_may_generate_but_not_read_descriptions_starts_the_engine(kind: OnlineKind) -> None:
    _, server = await started(kind, problem(kind, 403, "Missing scopes: api.model.read"), says(kind, "Hello."))
    assert len(server.bodies) == 1


LONG_DESCRIPTION = answers(200, {"data": [{"id": MODEL}], "more": "x" * 10_000})


@EACH
@pytest.mark.parametrize(
    ("models", "status", "why"),
    [
        (LONG_DESCRIPTION, 404, r"more than 4096 bytes, and a first request"),
        (NO_PATH, 401, r"API_KEY .*must be a key that may use it"),
        (answers(403, {}), 403, r"API_KEY .*must be a key that may use it"),
    ],
)
async def test_a_model_that_only_the_first_request_shows_to_be_out_of_reach_ends_the_start(
    kind: OnlineKind, models: Respond, status: int, why: str
) -> None:
    with pytest.raises(EngineRefused, match=why) as refused:
        await started(kind, models, problem(kind, status, f"{KEY} is unknown"))
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "description", "window"),
    [
        (ANTHROPIC, {"id": MODEL, "max_input_tokens": 1000}, 1000),
        (GEMINI, {"name": f"models/{MODEL}", "inputTokenLimit": 1000, "outputTokenLimit": 24}, 1024),
        (GEMINI, {"name": f"models/{MODEL}"}, None),
    ],
)
async def test_the_window_is_read_from_the_model_s_description(
    kind: OnlineKind, description: dict[str, Any], window: int | None
) -> None:
    assert (await started(kind, answers(200, description)))[0] == window


@EACH
async def test_a_wrong_key_ends_the_start_with_the_setting_to_mend(kind: OnlineKind) -> None:
    with pytest.raises(EngineRefused, match=f"set POSTBACK_ENGINE__{kind.name.upper()}__API_KEY"):
        await started(kind, problem(kind, 401, "invalid key"))


# -- requests ----------------------------------------------------------------------------------------------------------

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
        completion = await engine.complete(asked)
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
        completion = await engine.complete(asked)
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
        await engine.complete(request(reasoning=Reasoning.model_validate(asked)))
    [body] = server.bodies
    if kind is GEMINI:
        assert body["generationConfig"]["thinkingConfig"] == sent
    else:
        assert {name: body.get(name) for name in ("thinking", "output_config") if name in body} == sent


@EACH
async def test_reasoning_comes_apart_from_the_answer(kind: OnlineKind) -> None:
    async with scripted(kind, says(kind, "yes")) as (engine, _):
        completion = await engine.complete(request())
    assert (completion.text, completion.reasoning) == ("yes", "Hm.")


@EACH
async def test_system_messages_without_a_question_are_sent_as_the_question(kind: OnlineKind) -> None:
    async with scripted(kind, says(kind, "yes")) as (engine, server):
        await engine.complete(request(prompt=None, messages=(Message(role="system", content="Say yes."),)))
    [body] = server.bodies
    assert "Say yes." in json.dumps([body.get(name) for name in ("messages", "contents", "input")])


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
@pytest.mark.parametrize("status", [429, 529, 503, 502, None])
async def test_an_overload_is_tried_again_after_its_retry_after_and_an_answer_that_is_cut_off_too(
    kind: OnlineKind, status: int | None
) -> None:
    failing = cut(b'{"content": [', 1000) if status is None else problem(kind, status, Retry_After="0")
    async with scripted(kind, failing, says(kind, "yes")) as (engine, server):
        assert (await engine.complete(request())).text == "yes"
    assert len(server.bodies) == 2


@EACH
@pytest.mark.parametrize(
    ("status", "message", "error", "why", "requests"),
    [
        (529, "", EngineUnavailable, "529", 2),
        (500, "", EngineFailed, "500", 1),
        (504, "", EngineFailed, "504", 1),
        (400, "max_tokens: 9 > 8,\nwhich is the most", RequestRejected, "max_tokens: 9 > 8, which is the most", 1),
        # A refusal of the account or of the model is no job's fault.
        (401, "invalid x-api-key", EngineUnavailable, "{key}", 1),
        (402, "billing", EngineUnavailable, "{key}", 1),
        (403, "no permission", EngineUnavailable, "{key}", 1),
        (404, "no model", EngineUnavailable, "{key}", 1),
        (400, "API key not valid. Please pass a valid API key.", EngineUnavailable, "{key}", 1),
        (400, "Your credit balance is too low to access the Anthropic API.", EngineUnavailable, "{key}", 1),
    ],
)
async def test_each_refusal_of_a_service_has_its_error(
    kind: OnlineKind, status: int, message: str, error: type[EngineError], why: str, requests: int
) -> None:
    async with scripted(kind, problem(kind, status, message, Retry_After="0")) as (engine, server):
        with pytest.raises(error, match=why.format(key=f"POSTBACK_ENGINE__{kind.name.upper()}__API_KEY")) as refused:
            await engine.complete(request())
    assert (type(refused.value), len(server.bodies)) == (error, requests)
    assert getattr(refused.value, "took_too_long", False) == (status == 504)
    assert KEY not in str(refused.value)


@EACH
@pytest.mark.parametrize("body", [{}, [], "x", {"content": 1}, {"candidates": 1}, {"candidates": []}])
async def test_an_answer_of_another_form_is_a_failure(kind: OnlineKind, body: Any) -> None:
    async with scripted(kind, answers(200, body)) as (engine, _):
        with pytest.raises(EngineFailed):
            await engine.complete(request())


@EACH
async def test_a_raw_prompt_and_an_answer_beyond_the_limit_are_refused(kind: OnlineKind) -> None:
    async with scripted(kind, says(kind, "x" * 5000)) as (engine, _):
        await refuses(engine, "raw", is_raw=True)
        with pytest.raises(RequestRejected, match="larger than this engine reads"):
            await engine.complete(request())


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
            await engine.complete(request(is_whole=True))
        with pytest.raises(RequestRejected):
            await engine.complete(request())


@EACH
async def test_a_model_that_takes_no_temperature_gets_none_where_the_job_names_none(kind: OnlineKind) -> None:
    refusal = problem(kind, 400, "`temperature` is deprecated for this model.")
    async with scripted(kind, refusal, says(kind, "yes")) as (engine, server):
        assert (await engine.complete(request(temperature_is_default=True))).text == "yes"
        await engine.complete(request(temperature_is_default=True))
    assert ["temperature" in json.dumps(body) for body in server.bodies] == [True, False, False]


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (ANTHROPIC, {"stop_reason": "max_tokens"}, "length"),
        (ANTHROPIC, {"stop_reason": "stop_sequence"}, "stop"),
        (ANTHROPIC, {"stop_reason": "model_context_window_exceeded"}, "length"),
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
        assert (await engine.complete(request())).finish_reason == reason


@pytest.mark.parametrize(
    ("kind", "fields", "refusal"),
    [
        (ANTHROPIC, {"stop_reason": "refusal"}, "the model refused to answer"),
        (ANTHROPIC, {"stop_reason": "refusal", "stop_details": {"explanation": "It is a weapon."}}, "It is a weapon."),
        (
            RESPONSES,
            {"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "I cannot."}]}]},
            "I cannot.",
        ),
    ],
)
async def test_a_refusal_of_a_model_is_a_whole_answer_without_a_text(
    kind: OnlineKind, fields: dict[str, Any], refusal: str
) -> None:
    """In an earlier version, a refusal was a failure like an answer that a content filter held back."""
    async with scripted(kind, says(kind, "So", **fields)) as (engine, _):
        completion = await engine.complete(request())
    assert (completion.text, completion.refusal, completion.finish_reason) == ("", refusal, "stop")


async def test_a_field_that_a_service_does_not_take_is_left_out_and_named_in_the_result() -> None:
    """In an earlier version, the job was rejected."""
    async with (
        scripted(ANTHROPIC, says(ANTHROPIC, "yes")) as (engine, server),
        AnsweringWorker(engine=engine) as worker,
    ):
        result = await worker.answer("Which bridge?", sources=None, min_p=0.1, top_p=0.5)
    assert result.outcome == "succeeded"
    assert result.notes == ["min_p: the engine has no such parameter; the answer was generated without it"]
    assert ("min_p" in server.bodies[0], server.bodies[0]["top_p"]) == (False, 0.5)


@pytest.mark.parametrize(
    ("kind", "message", "field"),
    [
        (ANTHROPIC, "max_tokens: 9000000 > 8192, which is the maximum", "max_tokens"),
        (ANTHROPIC, "stop_sequences: each stop sequence must contain non-whitespace", "stop"),
        (ANTHROPIC, "messages.0.content: Field required", "prompt"),
        (GEMINI, "Invalid value at 'generation_config.top_p' (TYPE_FLOAT), 7", "top_p"),
        (GEMINI, "* GenerateContentRequest.generation_config.max_output_tokens: must be positive", "max_tokens"),
        (GEMINI, "Something is odd", "prompt"),
    ],
)
async def test_a_refusal_of_a_service_names_the_field_at_fault(kind: OnlineKind, message: str, field: str) -> None:
    async with scripted(kind, problem(kind, 400, message)) as (engine, _):
        await refuses(engine, field)


async def test_a_blocked_prompt_is_held_back_by_the_filter() -> None:
    blocked = answers(200, {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 7}})
    async with scripted(GEMINI, blocked) as (engine, _):
        assert completion_of(await engine.complete(request())) == ("", "content_filter", 7, 0)
