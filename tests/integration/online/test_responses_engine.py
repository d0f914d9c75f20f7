"""The engine `responses`: the contract of engines, its requests, and each kind of answer and of error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from openai.types.responses import Response
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from schemas.job import Message, Reasoning, ResponseFormat
from schemas.tools import Tool
from tests.integration.online.responses_service import (
    called,
    response,
    response_answer,
    responses_app,
    responses_error,
    said,
    thought,
    usage,
)
from tests.integration.online.scripted import RESPONSES, engine_of, scripted
from tests.integration.online.services import KEY, MODEL, completion_of
from tests.integration.online.test_online_engines import CHAT, FORM, OnlineContract
from tests.integration.openai_http.servers import Respond, answers
from tests.integration.openai_server import serving
from tests.integration.test_engine_contract import request
from tests.unit.test_tool_calls import TOOL
from workers.engines.base import (
    Completion,
    Engine,
    EngineFailed,
    EngineUnavailable,
    RequestRejected,
)


class TestResponses(OnlineContract):
    kind = "responses"

    async def test_the_confidence_is_a_probability(self, engine: Engine) -> None:
        """Reasoning models refuse log-probabilities, so only jobs that ask for them have a confidence."""
        assert (await engine.generate(request())).confidence is None
        confidence = (await engine.generate(request(top_logprobs=0))).confidence
        assert confidence is not None
        assert 0.0 < confidence <= 1.0

    async def test_where_only_the_likeliest_token_may_be_drawn_the_seed_changes_nothing(self, engine: Engine) -> None:
        """The API takes no seed."""
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request(seed=7))
        assert rejected.value.field == "seed"

    async def test_each_of_several_answers_has_its_log_probabilities(self, engine: Engine) -> None:
        """The API gives one answer with its log-probabilities."""
        completion = await engine.generate(request(temperature=1.0, top_logprobs=2))
        assert len(completion.logprobs or ()) == completion.completion_tokens
        assert {1 <= len(each.top_logprobs or ()) <= 2 for each in completion.logprobs or ()} == {True}
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request(n=2))
        assert rejected.value.field == "n"


async def answered(given: Mapping[str, Any], **fields: Any) -> Completion:
    """Return what the engine makes of this response, which OpenAI's own package must be able to read."""
    Response.model_validate(given)
    async with scripted(RESPONSES, answers(200, given)) as (engine, _):
        return await engine.generate(request(**fields))


async def sent(options: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    async with scripted(RESPONSES, answers(200, response_answer("yes")), **(options or {})) as (engine, server):
        await engine.generate(request(**fields))
    [body] = server.bodies
    assert {*body} <= ResponseCreateParamsBase.__annotations__.keys()
    return body


async def test_a_request_to_the_responses_api_has_its_fields_and_is_not_stored() -> None:
    async with scripted(RESPONSES, answers(200, response_answer("yes"))) as (engine, server):
        asked = request(prompt=None, messages=CHAT, response_format=FORM, stop=("\n",), top_p=0.9, top_logprobs=2)
        completion = await engine.generate(asked)
    assert completion_of(completion) == ("yes", "stop", 33, 9)
    assert (completion.cached_tokens, completion.reasoning_tokens, completion.reasoning) == (20, 5, "Hm.")
    assert server.bodies == [
        {
            "model": MODEL,
            "input": [{"type": "message", "role": each.role, "content": each.text} for each in CHAT],
            "max_output_tokens": 8,
            "store": False,
            "temperature": 0.0,
            "top_p": 0.9,
            "text": {"format": {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_any_json_object_is_asked_for_by_its_type() -> None:
    body = await sent(response_format=ResponseFormat(type="json_object"))
    assert body["text"] == {"format": {"type": "json_object"}}


@pytest.mark.parametrize(
    ("asked", "summary", "wanted"),
    [
        (None, None, None),
        (None, "auto", {"summary": "auto"}),
        ({"effort": "high"}, None, {"effort": "high"}),
        ({"effort": "low"}, "detailed", {"effort": "low", "summary": "detailed"}),
        ({"effort": "none"}, "auto", {"effort": "none"}),
        ({"max_tokens": 0}, None, {"effort": "none"}),
    ],
)
async def test_the_effort_and_the_summary_of_the_reasoning_are_sent(
    asked: dict[str, Any] | None, summary: str | None, wanted: dict[str, str] | None
) -> None:
    reasoning = Reasoning.model_validate(asked) if asked is not None else None
    assert (await sent({"reasoning_summary": summary}, reasoning=reasoning)).get("reasoning") == wanted


async def test_a_bound_on_the_tokens_of_the_reasoning_is_refused_by_name() -> None:
    with pytest.raises(RequestRejected) as rejected:
        await sent(reasoning=Reasoning(max_tokens=2048))
    assert rejected.value.field == "reasoning.max_tokens"


async def test_a_reasoning_model_gets_no_temperature_where_the_job_names_none() -> None:
    async with serving(responses_app(takes_temperature=False)) as url:
        engine = engine_of("responses", url)
        await engine.start()
        assert (await engine.generate(request(temperature_is_default=True))).text
        with pytest.raises(RequestRejected, match="'temperature' is not supported") as rejected:
            await engine.generate(request(temperature=0.5))
        assert rejected.value.field == "temperature"
        await engine.close()


async def test_the_smallest_bound_of_the_service_reaches_the_jobs_author() -> None:
    async with serving(responses_app(least=16)) as url:
        engine = engine_of("responses", url)
        await engine.start()
        with pytest.raises(RequestRejected, match="Expected a value >= 16, but got 8 instead") as rejected:
            await engine.generate(request(max_tokens=8))
        assert rejected.value.field == "max_tokens"
        assert (await engine.generate(request(max_tokens=16))).completion_tokens == 16
        await engine.close()


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_messages"}}, "other"),
        ({"status": "incomplete", "incomplete_details": None}, "other"),
        ({"status": "incomplete", "incomplete_details": {}}, "other"),
        ({"status": "cancelled"}, "abort"),
        ({"status": "in_progress"}, "other"),
        ({"usage": None}, "stop"),
    ],
)
async def test_each_status_of_a_response_has_its_finish_reason(fields: dict[str, Any], reason: str) -> None:
    completion = await answered(response_answer("so", **fields))
    assert (completion.text, completion.finish_reason) == ("so", reason)


async def test_a_response_that_used_its_tokens_for_reasoning_has_no_text() -> None:
    cut = response(thought(), status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    completion = await answered({**cut, "usage": usage(5, 8, 0, 8)})
    assert completion_of(completion) == ("", "length", 5, 8)
    assert (completion.reasoning, completion.reasoning_tokens) == (None, 8)


async def test_a_refusal_of_the_model_is_held_back_like_a_filtered_answer() -> None:
    refusal = said("", content=[{"type": "refusal", "refusal": "I cannot help with this."}])
    assert (await answered(response(refusal))).finish_reason == "content_filter"


@pytest.mark.parametrize("code", ["bio_policy", "misalignment_policy_violation", "image_content_policy_violation"])
async def test_a_policy_of_the_service_holds_the_answer_back(code: str) -> None:
    failed = response(status="failed", error={"code": code, "message": "No."}, usage=None)
    assert completion_of(await answered(failed)) == ("", "content_filter", 0, 0)


@pytest.mark.parametrize("code", ["invalid_prompt", "image_too_large", "unsupported_image_media_type"])
async def test_a_refusal_of_the_input_reaches_its_author(code: str) -> None:
    failed = response(status="failed", error={"code": code, "message": "Try\nanother prompt."})
    with pytest.raises(RequestRejected, match="prompt: Try another prompt"):
        await answered(failed)


async def test_a_failed_response_is_a_failure_and_a_spent_rate_is_no_jobs_fault() -> None:
    for error in ({"code": "server_error", "message": "Oh."}, None):
        with pytest.raises(EngineFailed) as failed:
            await answered(response(status="failed", error=error))
        assert failed.value.wasted_tokens == 9
    with pytest.raises(EngineUnavailable) as away:
        await answered(response(status="failed", error={"code": "rate_limit_exceeded", "message": "Slow."}))
    assert not isinstance(away.value, EngineFailed)


async def test_items_and_parts_of_newer_versions_are_left_out() -> None:
    newer = [
        {"type": "compaction_v9", "content": 5, "name": ["x"]},
        said("yes", content=[{"type": "output_hologram", "text": {}}, *said("yes")["content"]]),
        {"type": "reasoning_v2", "summary": "Hm."},
    ]
    async with scripted(RESPONSES, answers(200, response(*newer, novel={"a": 1}))) as (engine, _):
        assert (await engine.generate(request())).text == "yes"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "message"},
        {"type": "message", "content": 5},
        said("", content=[{"type": "output_text", "text": 5}]),
        said("", content=[{"type": "output_text", "text": "a", "logprobs": [{"token": "a", "logprob": "likely"}]}]),
        {"type": "function_call", "arguments": "{}"},
        {"type": "reasoning", "summary": "Hm."},
        {},
        "yes",
        None,
    ],
)
async def test_a_known_item_of_another_form_is_a_failure(item: Any) -> None:
    async with scripted(RESPONSES, answers(200, response(item))) as (engine, _):
        with pytest.raises(EngineFailed, match="another form"):
            await engine.generate(request())


async def test_an_answer_of_a_hundred_thousand_parts_is_a_failure() -> None:
    """If each part became a pydantic model, an answer of 8 MiB would take half a gigabyte."""
    crowd = [{"type": "x"}] * 1000
    for items in ([said("", content=crowd)], [thought(content=crowd)], [*crowd, *crowd]):
        async with scripted(RESPONSES, answers(200, response(*items))) as (engine, _):
            with pytest.raises(EngineFailed, match="another form"):
                await engine.generate(request())


async def test_the_reasoning_itself_comes_before_its_summary() -> None:
    summaries = await answered(response(thought("One.", "Two."), thought("Three."), said("yes")))
    assert (summaries.text, summaries.reasoning) == ("yes", "One.\n\nTwo.\n\nThree.")
    whole = thought("Short.", content=[{"type": "reasoning_text", "text": "Long."}])
    assert (await answered(response(whole, said("yes")))).reasoning == "Long."
    assert (await answered(response(thought(encrypted_content="x"), said("yes")))).reasoning is None


async def test_a_remark_before_the_answer_is_no_part_of_it() -> None:
    remark = said("I look it up.", phase="commentary")
    assert (await answered(response(remark, said("9:41", phase="final_answer")))).text == "9:41"
    assert (await answered(response(remark))).text == "I look it up."


async def test_a_stop_text_cuts_the_answer_that_the_service_gives_whole() -> None:
    whole = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    cut = await answered(response_answer("one, two, three", **whole), stop=("three", ", two"))
    assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("one", "stop", 9)
    uncut = await answered(response_answer("one, two, three", **whole), stop=("four",))
    assert (uncut.text, uncut.finish_reason) == ("one, two, three", "length")


async def test_log_probabilities_come_as_generated_and_only_on_request() -> None:
    tokens = [
        {"token": "y", "bytes": [121], "logprob": -0.5, "top_logprobs": [{"token": "y", "bytes": [], "logprob": -0.5}]},
        {"token": "es", "bytes": [], "logprob": -1.5, "top_logprobs": []},
    ]
    completion = await answered(response(said("yes", tokens)), top_logprobs=1)
    assert [(each.token, each.logprob) for each in completion.logprobs or ()] == [("y", -0.5), ("es", -1.5)]
    assert [len(each.top_logprobs or ()) for each in completion.logprobs or ()] == [1, 0]
    unasked = await answered(response(said("yes", tokens)))
    assert (unasked.logprobs, unasked.confidence) == (None, None)


# -- errors ------------------------------------------------------------------------------------------------------------


def refuses(status: int, message: str, param: str | None = None, code: str | None = None) -> Respond:
    async def respond(_: Any) -> Any:
        return responses_error(status, message, param, code, Retry_After="0")

    return respond


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("max_output_tokens", "max_tokens"),
        ("text.format.schema", "response_format"),
        ("tools[0].parameters", "tools"),
        ("tool_choice", "tool_choice"),
        ("reasoning.effort", "reasoning.effort"),
        ("top_p", "top_p"),
        ("input[0].content[1].image_url", "prompt"),
        ("unheard_of", "prompt"),
        (None, "prompt"),
    ],
)
async def test_a_refused_parameter_is_named_as_the_jobs_field(param: str | None, field: str) -> None:
    async with scripted(RESPONSES, refuses(400, "Invalid value.", param, "invalid_value")) as (engine, _):
        with pytest.raises(RequestRejected, match="Invalid value") as rejected:
            await engine.generate(request())
    assert rejected.value.field == field


@pytest.mark.parametrize(
    ("status", "message", "param", "code"),
    [
        (429, "You exceeded your current quota.", None, "insufficient_quota"),
        (400, "The requested model 'gpt-x' does not exist.", "model", "model_not_found"),
        (400, "Your organization must be verified to generate reasoning summaries.", "reasoning.summary", None),
    ],
)
async def test_an_empty_account_and_a_wrong_model_are_no_jobs_fault_and_are_not_tried_again(
    status: int, message: str, param: str | None, code: str | None
) -> None:
    async with scripted(RESPONSES, refuses(status, message, param, code)) as (engine, server):
        with pytest.raises(EngineUnavailable, match="POSTBACK_ENGINE__RESPONSES__API_KEY") as away:
            await engine.generate(request())
    assert not isinstance(away.value, EngineFailed)
    assert len(server.bodies) == 1


async def test_a_spent_rate_is_tried_again() -> None:
    busy = refuses(429, "Rate limit reached for requests.", None, "rate_limit_exceeded")
    async with scripted(RESPONSES, busy, answers(200, response_answer("yes"))) as (engine, server):
        assert (await engine.generate(request())).text == "yes"
    assert len(server.bodies) == 2


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_a_chat_without_a_user_keeps_its_system_message() -> None:
    body = await sent(prompt=None, messages=(Message(role="system", content="Say yes."),))
    assert body["input"] == [{"type": "message", "role": "system", "content": "Say yes."}]


async def test_calls_come_with_their_ids_if_the_job_has_tools() -> None:
    tools = (Tool.model_validate(TOOL),)
    given = response(thought(), called("clock", '{"day": "Monday"}'), called("clock", "", call_id="c2"))
    completion = await answered(given, tools=tools)
    assert completion.finish_reason == "tool_calls"
    assert [(call.id, call.function.arguments) for call in completion.tool_calls] == [
        ("c1", '{"day": "Monday"}'),
        ("c2", ""),
    ]
    assert (await answered(given)).tool_calls == ()
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert (await answered({**given, **cut}, tools=tools)).finish_reason == "length"
