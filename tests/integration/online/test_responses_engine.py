"""The engine `responses`: the contract of engines, its requests, and each kind of answer and of error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from openai.types.responses import Response
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from schemas.job import Message, Reasoning, ResponseFormat
from schemas.tools import Tool
from tests.integration.online.scripted import (
    KEY,
    MODEL,
    RESPONSES,
    called,
    completion_of,
    response,
    response_answer,
    said,
    scripted,
    thought,
    usage,
)
from tests.integration.online.test_online_engines import CHAT, FORM
from tests.integration.openai_http.servers import Respond, answers
from tests.integration.test_engine_contract import request
from tests.unit.test_tool_calls import TOOL
from workers.engines.base import (
    Completion,
    EngineError,
    EngineFailed,
    EngineUnavailable,
    RequestRejected,
)


async def answered(given: Mapping[str, Any], **fields: Any) -> Completion:
    """Return what the engine makes of this response, which OpenAI's own package must be able to read."""
    Response.model_validate(given)
    async with scripted(RESPONSES, answers(200, given)) as (engine, _):
        return await engine.complete(request(**fields))


async def sent(options: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    async with scripted(RESPONSES, answers(200, response_answer("yes")), **(options or {})) as (engine, server):
        await engine.complete(request(**fields))
    [body] = server.bodies
    assert {*body} <= ResponseCreateParamsBase.__annotations__.keys()
    return body


async def test_a_request_to_the_responses_api_has_its_fields_and_is_not_stored() -> None:
    async with scripted(RESPONSES, answers(200, response_answer("yes"))) as (engine, server):
        asked = request(prompt=None, messages=CHAT, response_format=FORM, stop=("\n",), top_p=0.9, top_logprobs=2)
        completion = await engine.complete(asked)
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


@pytest.mark.parametrize(
    ("summary", "asked", "member", "wanted"),
    [
        (None, {"response_format": ResponseFormat(type="json_object")}, "text", {"format": {"type": "json_object"}}),
        (None, {}, "reasoning", None),
        ("auto", {}, "reasoning", {"summary": "auto"}),
        (None, {"reasoning": Reasoning(effort="high")}, "reasoning", {"effort": "high"}),
        ("detailed", {"reasoning": Reasoning(effort="low")}, "reasoning", {"effort": "low", "summary": "detailed"}),
        ("auto", {"reasoning": Reasoning(effort="none")}, "reasoning", {"effort": "none"}),
        (None, {"reasoning": Reasoning(max_tokens=0)}, "reasoning", {"effort": "none"}),
        # A chat without a user keeps its system message.
        (
            None,
            {"prompt": None, "messages": (Message(role="system", content="Say yes."),)},
            "input",
            [{"type": "message", "role": "system", "content": "Say yes."}],
        ),
    ],
)
async def test_a_member_of_the_request_follows_from_the_job_and_the_settings(
    summary: str | None, asked: dict[str, Any], member: str, wanted: object
) -> None:
    assert (await sent({"reasoning_summary": summary}, **asked)).get(member) == wanted


async def test_a_bound_on_the_tokens_of_the_reasoning_is_refused_by_name() -> None:
    with pytest.raises(RequestRejected) as rejected:
        await sent(reasoning=Reasoning(max_tokens=2048))
    assert rejected.value.field == "reasoning.max_tokens"


async def test_a_bound_of_the_service_reaches_the_job_s_author_unless_no_job_set_the_parameter() -> None:
    told = "Unsupported parameter: 'temperature' is not supported with this model."
    refusal = answers(400, {"error": {"message": told, "param": "temperature"}})
    less = answers(400, {"error": {"message": "Expected a value >= 16, but got 8.", "param": "max_output_tokens"}})
    responses = [refusal, answers(200, response_answer("so")), refusal, less]
    async with scripted(RESPONSES, *responses) as (engine, server):
        assert (await engine.complete(request(temperature_is_default=True))).text == "so"
        for field, why in (("temperature", "'temperature' is not"), ("max_tokens", "value >= 16")):
            with pytest.raises(RequestRejected, match=why) as rejected:
                await engine.complete(request(temperature=0.5))
            assert rejected.value.field == field
    assert ["temperature" in body for body in server.bodies] == [True, False, True, True]


# -- answers -----------------------------------------------------------------------------------------------------------


def ended(status: str = "incomplete", reason: str | None = None) -> dict[str, Any]:
    """A response that ended in this status."""
    return response_answer("so", status=status, incomplete_details={"reason": reason} if reason else None)


def failed(code: str | None, **fields: Any) -> dict[str, Any]:
    """A response that failed with this code."""
    error = {"code": code, "message": "Try\nanother prompt."}
    return response(status="failed", error=error if code else None, **fields)


POLICIES = ("bio_policy", "misalignment_policy_violation", "image_content_policy_violation")
WASTED = response(thought(), status="incomplete", incomplete_details={"reason": "max_output_tokens"})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (response_answer("so"), ("so", "stop", 33, 9)),
        (ended(reason="max_output_tokens"), ("so", "length", 33, 9)),
        (ended(reason="content_filter"), ("so", "content_filter", 33, 9)),
        (ended(reason="max_messages"), ("so", "other", 33, 9)),
        (ended(), ("so", "other", 33, 9)),
        ({**ended(), "incomplete_details": {}}, ("so", "other", 33, 9)),
        (ended("cancelled"), ("so", "abort", 33, 9)),
        (ended("in_progress"), ("so", "other", 33, 9)),
        (response_answer("so", usage=None), ("so", "stop", 0, 0)),
        # The model used its tokens for reasoning.
        ({**WASTED, "usage": usage(5, 8, 0, 8)}, ("", "length", 5, 8)),
        # A policy of the service holds the answer back.
        *((failed(code, usage=None), ("", "content_filter", 0, 0)) for code in POLICIES),
    ],
)
async def test_each_status_of_a_response_has_its_finish_reason(
    given: dict[str, Any], wanted: tuple[str, str, int, int]
) -> None:
    assert completion_of(await answered(given)) == wanted


@pytest.mark.parametrize(
    ("code", "error", "wasted"),
    [
        *((code, RequestRejected, 0) for code in ("invalid_prompt", "image_too_large", "unsupported_image_media_type")),
        ("server_error", EngineFailed, 9),
        (None, EngineFailed, 9),
        # A spent rate is no job's fault.
        ("rate_limit_exceeded", EngineUnavailable, 0),
    ],
)
async def test_a_failed_response_is_an_error_of_the_input_the_service_or_the_account(
    code: str | None, error: type[EngineError], wasted: int
) -> None:
    with pytest.raises(error) as caught:
        await answered(failed(code))
    assert (type(caught.value), getattr(caught.value, "wasted_tokens", 0)) == (error, wasted)
    assert error is not RequestRejected or str(caught.value) == "prompt: Try another prompt."


async def test_items_and_parts_of_newer_versions_are_left_out() -> None:
    newer = [
        {"type": "compaction_v9", "content": 5, "name": ["x"]},
        said("yes", content=[{"type": "output_hologram", "text": {}}, *said("yes")["content"]]),
        {"type": "reasoning_v2", "summary": "Hm."},
    ]
    async with scripted(RESPONSES, answers(200, response(*newer, novel={"a": 1}))) as (engine, _):
        assert (await engine.complete(request())).text == "yes"


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
            await engine.complete(request())


async def test_an_answer_of_a_hundred_thousand_parts_is_a_failure() -> None:
    """If each part became a pydantic model, an answer of 8 MiB would take half a gigabyte."""
    crowd = [{"type": "x"}] * 1000
    for items in ([said("", content=crowd)], [thought(content=crowd)], [*crowd, *crowd]):
        async with scripted(RESPONSES, answers(200, response(*items))) as (engine, _):
            with pytest.raises(EngineFailed, match="another form"):
                await engine.complete(request())


async def test_the_reasoning_itself_comes_before_its_summary() -> None:
    summaries = await answered(response(thought("One.", "Two."), thought("Three."), said("yes")))
    assert (summaries.text, summaries.reasoning) == ("yes", "One.\n\nTwo.\n\nThree.")
    whole = thought("Short.", content=[{"type": "reasoning_text", "text": "Long."}])
    assert (await answered(response(whole, said("yes")))).reasoning == "Long."
    assert (await answered(response(thought(encrypted_content="x"), said("yes")))).reasoning is None
    wasted = await answered({**WASTED, "usage": usage(5, 8, 0, 8)})
    assert (wasted.reasoning, wasted.reasoning_tokens) == (None, 8)


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


def refusing(status: int, message: str, param: str | None = None, code: str | None = None) -> Respond:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return answers(status, {"error": error}, Retry_After="0")


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
    async with scripted(RESPONSES, refusing(400, "Invalid value.", param, "invalid_value")) as (engine, _):
        with pytest.raises(RequestRejected, match="Invalid value") as rejected:
            await engine.complete(request())
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
    async with scripted(RESPONSES, refusing(status, message, param, code)) as (engine, server):
        with pytest.raises(EngineUnavailable, match="POSTBACK_ENGINE__RESPONSES__API_KEY") as away:
            await engine.complete(request())
    assert not isinstance(away.value, EngineFailed)
    assert len(server.bodies) == 1


async def test_a_spent_rate_is_tried_again() -> None:
    busy = refusing(429, "Rate limit reached for requests.", None, "rate_limit_exceeded")
    async with scripted(RESPONSES, busy, answers(200, response_answer("yes"))) as (engine, server):
        assert (await engine.complete(request())).text == "yes"
    assert len(server.bodies) == 2


# -- calls -------------------------------------------------------------------------------------------------------------


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
