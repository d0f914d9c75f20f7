"""What engines answer: tool calls, several answers, log-probabilities, reasoning, JSON, and the end of generation."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.codec import InvalidJob, Origin, read_job, read_result, write_job, write_result
from schemas.job import MAX_TOKENS, Job, Message, Reasoning, ResponseFormat
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, LOGPROBS_INCLUDED, RESPONSES
from schemas.openai_answers import answer_body, output_line
from schemas.outcome import Outcome
from schemas.result import Result, ResultError, Usage
from schemas.strict import NotAJob, body_job, ignored_members, job_in
from schemas.tools import CalledFunction, ToolCall
from scripts.publish.job_examples import CALLED, CALLING
from telemetry.clock import SystemClock
from tests.any_json import any_json
from tests.asking import request_of
from tests.unit.echo_worker import record, working
from workers.engines.address import with_quirks, without_fence
from workers.engines.answers import Answer, Choice, finish_reason, is_failure
from workers.engines.base import (
    Completion,
    EngineError,
    EngineFailed,
    FinishReason,
    GenerationRequest,
    RequestRejected,
    token_logprob,
)
from workers.engines.families import ReasoningMarks, families
from workers.engines.online.anthropic import AnthropicServer, AnthropicSettings
from workers.engines.online.gemini import GeminiServer, GeminiSettings
from workers.engines.online.responses import ResponsesServer, ResponsesSettings
from workers.engines.openai_http.dialect import OpenAIServer
from workers.engines.openai_http.server import ServerProblem, TryAgain
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.reasoning import Growth, Parted, parted
from workers.engines.vllm.answers import completion_of as vllm_completion
from workers.engines.vllm.chat import VllmChat, calls_of
from workers.inference import generate as generating
from workers.inference.answer_form import UNCHECKED, NotJson, require_form, require_json
from workers.inference.ground import GroundedRequest
from workers.inference.model_rules import Escalate
from workers.inference.results import ReadAnswer, notes_on, read_answers
from workers.screening.texts import rewritten, texts_of

CLOCK = SystemClock()
ANTHROPIC_API = AnthropicServer(AnthropicSettings(model="m"), CLOCK)
GEMINI_API = GeminiServer(GeminiSettings(model="m"), CLOCK)
RESPONSES_API = ResponsesServer(ResponsesSettings(model="m"), CLOCK)

# -- tool calls ------------------------------------------------------------------------------------------------------
PLACE = Origin("topic-uuid", 3, 7)
SCHEMA = {"type": "object", "properties": {"day": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "clock"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"day": "Monday"}'}}
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "9:41"},
    {"role": "user", "content": "So?"},
]
NOISE = any_json(leaves=12)
DIALECT = OpenAIServer(OpenAISettings(model="m1"), CLOCK)


def job(**fields: Any) -> Job:
    return read_job(json.dumps({"messages": CHAT, "tools": [TOOL], **fields}).encode(), [], PLACE, 0).job


def prompt_job(**fields: Any) -> Job:
    return read_job(json.dumps({"prompt": "a", **fields}).encode(), [], PLACE, 0).job


def request(**fields: Any) -> GenerationRequest:
    return request_of(**{"messages": CHAT, "temperature": None, "tools": [TOOL], **fields})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tools": []}, "tools: "),
        ({"tools": [TOOL] * 2}, "two functions with one name"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{**TOOL, "function": {"name": "a b"}}]}, "tools.0.function.name: is not 1 to 64 letters"),
        ({"tools": None, "tool_choice": "auto"}, "`tool_choice` goes with `tools`"),
        ({"tools": None, "parallel_tool_calls": True}, "`parallel_tool_calls` goes with `tools`"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "names a function that `tools`"),
        ({"messages": None, "prompt": "a", "raw": True}, "`tools` goes with a chat"),
        ({"messages": None, "embed": ["a"]}, "`tools` goes with `prompt`"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "`tool_call_id` is required with the role `tool`"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "c1"}]}, "and only there"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "goes with the role `assistant`"),
        ({"messages": [{"role": "assistant"}]}, "`content` is required"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0.tool_calls"),
    ],
)
def test_tools_and_messages_of_calls_have_bounds_that_name_the_field(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidJob, match=problem):
        job(**fields)


def test_a_job_with_tools_survives_its_record_and_the_filter_reads_and_redacts_what_people_wrote() -> None:
    read = job(tool_choice=NAMED)
    assert read_job(write_job(read), [], PLACE, 0).job == read
    assert [(text.field, text.text) for text in texts_of(read)] == [
        ("messages", "When?"),
        ("messages", "Let me see."),
        ("messages", '{"day": "Monday"}'),
        ("messages", "9:41"),
        ("messages", "So?"),
        ("tools", "The time."),
        ("tools", "day"),
    ]
    new = {'{"day": "Monday"}': '{"day": "[redacted:day]"}', "The time.": "[redacted:a]"}
    changed = rewritten(read, lambda text: new.get(text.text))
    assert changed.messages is not None
    assert changed.tools is not None
    [call] = changed.messages[1].tool_calls or []
    assert call.function.arguments == '{"day": "[redacted:day]"}'
    assert changed.tools[0].function.description == "[redacted:a]"
    assert rewritten(read, lambda text: None) is read


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "tools": NOISE
            | st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": NOISE}), max_size=2),
            "tool_choice": NOISE | st.sampled_from(["auto", "none", "required", NAMED]),
            "parallel_tool_calls": NOISE,
            "messages": NOISE | st.lists(st.fixed_dictionaries({"role": NOISE, "tool_calls": NOISE}), max_size=2),
        },
    )
)
def test_any_tools_are_taken_or_refused_by_name(members: dict[str, Any]) -> None:
    for url in (CHAT_COMPLETIONS, RESPONSES):
        try:
            body_job(url, {"messages": CHAT, "input": "a", "tools": [TOOL], **members})
        except NotAJob as refused:
            assert refused.problems
    try:
        job(**members)
    except InvalidJob as invalid:
        assert invalid.problems


def test_an_unknown_member_of_a_tool_or_a_call_is_named() -> None:
    told = {"messages": [CHAT[0], {**CHAT[1], "tool_calls": [{**CALL, "index": 0}]}], "tools": [{**TOOL, "cache": {}}]}
    with pytest.raises(NotAJob) as refused:
        job_in(json.dumps(told).encode())
    assert [problem.field for problem in refused.value.problems] == ["tools.cache", "messages.1.tool_calls.0.index"]
    received = read_job(json.dumps(told).encode(), [], PLACE, 0)
    assert received.unknown is not None
    assert received.unknown.names == ("tools.cache",)


def test_a_response_s_tools_and_calls_are_those_of_a_chat() -> None:
    flat = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item] # a dict of the test's own
    items = [
        {"role": "user", "content": "When?"},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "9:41"},
    ]
    body = {"input": items, "tools": [flat], "tool_choice": {"type": "function", "name": "clock"}}
    read = body_job(RESPONSES, body)
    chat = body_job(
        CHAT_COMPLETIONS,
        {
            "messages": [
                items[0],
                {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "clock", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "9:41"},
            ],
            "tools": [TOOL],
            "tool_choice": NAMED,
        },
    )
    assert read == chat
    assert body_job(RESPONSES, {"input": "a", "tools": [], "tool_choice": "auto"}).tools is None


# -- the whole way -----------------------------------------------------------------------------------------------------
async def test_a_worker_returns_the_demanded_call_and_openai_s_answers_have_it() -> None:
    async with working() as worker:
        result = await worker.result(record({"messages": CHAT, "tools": [TOOL], "tool_choice": "required"}))
        plain = await worker.result(record({"messages": CHAT, "tools": [TOOL]}))
    assert (result.outcome, result.text, result.finish_reason) == ("succeeded", "", "tool_calls")
    [call] = result.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("clock", '{"text": "So?"}')
    assert read_result(write_result(result)) == result
    [choice] = output_line(result, CHAT_COMPLETIONS)["response"]["body"]["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert choice["message"]["tool_calls"] == [call.model_dump()]
    output = output_line(result, RESPONSES)["response"]["body"]["output"]
    assert [(item["type"], item["call_id"], item["name"]) for item in output] == [("function_call", "call_0", "clock")]
    assert (plain.text, plain.tool_calls, plain.finish_reason) == ("So?", None, "stop")


async def test_a_call_needs_no_json_and_one_without_tools_is_no_answer() -> None:
    calls = (ToolCall(id="c1", function=CalledFunction(name="clock", arguments="")),)
    asked = GroundedRequest(
        "a", None, None, response_format=job(response_format={"type": "json_object"}).response_format
    )
    [called] = await read_answers(Completion("", "tool_calls", 0, 0, tool_calls=calls), asked, job())
    [without] = await read_answers(Completion("", "tool_calls", 0, 0), asked, job())
    [withheld] = await read_answers(Completion("", "content_filter", 0, 0, tool_calls=calls), asked, job())
    assert [isinstance(each, ReadAnswer) for each in (called, without, withheld)] == [True, False, False]


async def test_an_answer_that_ended_for_a_call_but_has_none_is_unfinished() -> None:
    [read] = await read_answers(Completion("Let me", "tool_calls", 0, 0), GroundedRequest("a", None, None), job())
    assert read == ResultError(
        code="unfinished",
        message="the model called a tool instead of answering, and no call of the job's tools was found",
    )


def test_the_page_s_job_with_tools_names_the_tool_that_its_result_calls() -> None:
    assert CALLED["tool_calls"][0]["function"]["name"] == CALLING["tool_choice"]["function"]["name"]  # type: ignore[index] # the page's own


def test_a_family_without_system_messages_keeps_what_tools_returned() -> None:
    told = [{"role": "system", "content": "Be brief."}, *CHAT]
    changed = with_quirks(request(messages=told), families()["gemma-2"]).messages
    assert [message["role"] for message in changed] == ["user", "assistant", "tool", "user"]


# -- requests and answers ----------------------------------------------------------------------------------------------
def test_a_server_of_openai_s_protocol_gets_tools_and_calls_as_they_are() -> None:
    dialect = OpenAIServer(OpenAISettings(model="m1"), CLOCK)
    body = dialect.body(request(tool_choice="required", parallel_tool_calls=False))
    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ([TOOL], "required", False)
    assert body["messages"] == CHAT
    assert dialect.body(request(tool_choice=NAMED))["tool_choice"] == NAMED
    with pytest.raises(RequestRejected, match="tools: "):
        OpenAIServer(OpenAISettings(model="m1", api="completions"), CLOCK).body(request())


def test_anthropic_gets_blocks_of_calls_and_their_results() -> None:
    body = ANTHROPIC_API.body(request(tool_choice="required"))
    assert body["tools"] == [{"name": "clock", "description": "The time.", "input_schema": SCHEMA}]
    assert body["tool_choice"] == {"type": "any"}
    assert body["messages"] == [
        {"role": "user", "content": "When?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "clock", "input": {"day": "Monday"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "9:41"},
                {"type": "text", "text": "So?"},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("choice", "single", "anthropic", "gemini"),
    [
        (None, None, {"type": "auto"}, {"mode": "AUTO"}),
        ("none", False, {"type": "none"}, None),
        ("auto", False, {"type": "auto", "disable_parallel_tool_use": True}, None),
        (NAMED, None, {"type": "tool", "name": "clock"}, {"mode": "ANY", "allowedFunctionNames": ["clock"]}),
        ("required", True, {"type": "any"}, {"mode": "ANY"}),
    ],
)
def test_each_service_has_its_own_words_for_the_tool_choice(
    choice: object, single: bool | None, anthropic: object, gemini: object
) -> None:
    asked = request(tool_choice=choice, parallel_tool_calls=single)
    assert ANTHROPIC_API.body(asked)["tool_choice"] == anthropic
    api = GEMINI_API
    if gemini is None:
        with pytest.raises(RequestRejected, match="parallel_tool_calls: "):
            api.body(asked)
    else:
        assert api.body(asked)["toolConfig"] == {"functionCallingConfig": gemini}


def test_gemini_gets_declarations_and_parts_of_calls_and_their_results() -> None:
    body = GEMINI_API.body(request())
    assert body["tools"] == [
        {"functionDeclarations": [{"name": "clock", "description": "The time.", "parametersJsonSchema": SCHEMA}]}
    ]
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "When?"}]},
        {
            "role": "model",
            "parts": [{"text": "Let me see."}, {"functionCall": {"name": "clock", "args": {"day": "Monday"}}}],
        },
        {
            "role": "user",
            "parts": [{"functionResponse": {"name": "clock", "response": {"result": "9:41"}}}, {"text": "So?"}],
        },
    ]


def test_the_responses_api_gets_flat_functions_and_items_of_calls_and_their_results() -> None:
    """A job without `strict` is not strict, but the Responses API is strict unless the request says otherwise."""
    body = RESPONSES_API.body(request(tool_choice=NAMED, parallel_tool_calls=False))
    function = {"type": "function", "name": "clock", "description": "The time.", "parameters": SCHEMA, "strict": False}
    assert (body["tools"], body["parallel_tool_calls"]) == ([function], False)
    assert body["tool_choice"] == {"type": "function", "name": "clock"}
    assert body["input"] == [
        {"type": "message", "role": "user", "content": "When?"},
        {"type": "message", "role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": '{"day": "Monday"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "9:41"},
        {"type": "message", "role": "user", "content": "So?"},
    ]
    bare = [{"type": "function", "function": {"name": "now", "strict": True}}]
    assert RESPONSES_API.body(request(tools=bare))["tools"] == [
        {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}, "strict": True}
    ]


HALF_A_PAIR = '{"a": "\\ud800"}'
"""JSON of half a surrogate pair, for which UTF-8 has no bytes."""


@pytest.mark.parametrize(
    "arguments", ["", "[]", "{", '{"a": NaN}', "[" * 100_000, HALF_A_PAIR, '{"a": ' + "[" * 500 + "]" * 500 + "}"]
)
def test_arguments_that_are_no_object_are_refused_by_the_services_that_want_one(arguments: str) -> None:
    called = Message(
        role="assistant", tool_calls=[ToolCall(id="c1", function=CalledFunction(name="clock", arguments=arguments))]
    )
    for api in (ANTHROPIC_API, GEMINI_API):
        if not arguments:
            api.body(request(messages=(called,)))
            continue
        with pytest.raises(RequestRejected, match="messages: "):
            api.body(request(messages=(called,)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "f" * 257},
        {"name": None},
        {"name": "\ud800"},
        {"arguments": None},
        {"arguments": "\ud800"},
        {"id": "c" * 257},
    ],
)
def test_a_call_in_a_model_s_text_that_a_result_cannot_hold_is_no_call(wrong: dict[str, object]) -> None:
    good = {"id": None, "name": "clock", "arguments": "{}"}
    [call] = calls_of([SimpleNamespace(**good)])
    assert call == ToolCall(id="call_0", function=CalledFunction(name="clock", arguments="{}"))
    with pytest.raises(ValueError, match=r"for CalledFunction|for ToolCall|surrogates not allowed"):
        calls_of([SimpleNamespace(**good), SimpleNamespace(**{**good, **wrong})])


def test_a_result_of_an_unknown_call_is_refused_where_the_service_wants_the_function_s_name() -> None:
    stray = Message(role="tool", tool_call_id="c9", content="9:41")
    with pytest.raises(RequestRejected, match="`tool_call_id` names no call"):
        GEMINI_API.body(request(messages=(stray,)))


# -- answered calls --------------------------------------------------------------------------------------------------
def openai_answer(message: object, reason: object = "tool_calls") -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode()


def anthropic_answer(block: object) -> bytes:
    message = {"type": "message", "content": [block], "stop_reason": "tool_use", "usage": {}}
    return json.dumps(message).encode()


def gemini_answer(part: object) -> bytes:
    return json.dumps({"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]}).encode()


def response(item: object) -> bytes:
    return json.dumps({"status": "completed", "output": [item]}).encode()


def of_openai(body: bytes, **fields: Any) -> Any:
    return DIALECT.outcome(request(**fields), "chat/completions", 200, {}, body)


def calls_in(completion: Completion) -> list[tuple[str, str, str]]:
    assert completion.finish_reason == "tool_calls"
    return [(call.id, call.function.name, call.function.arguments) for call in completion.tool_calls]


def test_each_engine_s_calls_become_calls_of_one_form() -> None:
    wanted = ("c1", "clock", '{"day": "Monday"}')
    assert calls_in(of_openai(openai_answer({"content": None, "tool_calls": [CALL]}))) == [wanted]
    assert calls_in(of_openai(openai_answer({"tool_calls": [CALL]}, "stop"))) == [wanted]
    as_object = {"function": {"name": "clock", "arguments": {"day": "Monday"}}}
    assert calls_in(of_openai(openai_answer({"tool_calls": [as_object]}))) == [("call_0", *wanted[1:])]
    block = {"type": "tool_use", "id": "c1", "name": "clock", "input": {"day": "Monday"}}
    assert calls_in(ANTHROPIC_API.completion(anthropic_answer(block), request())) == [wanted]
    part = {"functionCall": {"name": "clock", "args": {"day": "Monday"}}}
    assert calls_in(GEMINI_API.completion(gemini_answer(part), request())) == [("call_0", *wanted[1:])]
    item = {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": wanted[2]}
    assert calls_in(RESPONSES_API.completion(response(item), request())) == [wanted]
    assert calls_in(RESPONSES_API.completion(response({**item, "call_id": None}), request()))[0][0] == "call_0"
    assert of_openai(openai_answer({"tool_calls": [CALL]}), tools=None).tool_calls == ()


@given(
    NOISE
    | st.fixed_dictionaries({"id": NOISE, "function": NOISE, "name": NOISE, "input": NOISE, "functionCall": NOISE})
    | st.fixed_dictionaries({"name": NOISE | st.text(), "call_id": NOISE, "arguments": NOISE | st.text()})
    | st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": st.text(), "arguments": NOISE})})
)
@example({"type": "tool_use", "id": "", "name": "", "input": {}})
@example({"type": "tool_use", "id": "a" * 256, "name": "b", "input": {"a": float("nan")}})
def test_any_call_of_a_server_becomes_a_result_or_an_engine_s_error(call: object) -> None:
    block = {**call, "type": "tool_use"} if isinstance(call, dict) else call
    item = {**call, "type": "function_call"} if isinstance(call, dict) else call
    for read in (
        lambda: of_openai(openai_answer({"tool_calls": [call]})),
        lambda: ANTHROPIC_API.completion(anthropic_answer(block), request()),
        lambda: GEMINI_API.completion(gemini_answer(call), request()),
        lambda: RESPONSES_API.completion(response(item), request()),
    ):
        try:
            completion = read()
        except (EngineError, ValueError):
            continue
        assert not isinstance(completion, TryAgain)
        for each in completion.tool_calls:
            assert ToolCall.model_validate(each.model_dump()) == each


# -- several answers -------------------------------------------------------------------------------------------------
ASKED = request_of(prompt="Is it?", temperature=0.5, n=3, top_logprobs=2)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"n": 0}, "n: "),
        ({"n": 17}, "n: "),
        ({"n": 2, "temperature": 0}, "n: `n` above 1 needs a `temperature` above 0"),
        ({"top_logprobs": 2}, "top_logprobs: `top_logprobs` goes with `logprobs`"),
        ({"top_logprobs": 2, "logprobs": False}, "`top_logprobs` goes with `logprobs`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: "),
        ({"n": 2, "max_tokens": MAX_TOKENS}, "max_tokens: `max_tokens` may be 65536 at most"),
        ({"n": 16, "logprobs": True, "top_logprobs": 20}, "`max_tokens` may be 390 at most"),
        ({"embed": ["a"], "prompt": None, "n": 2}, "`n` goes with `prompt`"),
        ({"embed": ["a"], "prompt": None, "logprobs": True}, "`logprobs` goes with `prompt`"),
    ],
)
def test_a_job_s_answers_and_log_probabilities_have_bounds_that_name_the_field(
    fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidJob, match=problem):
        prompt_job(**fields)


@given(st.integers(0, 20), st.none() | st.booleans(), st.none() | st.integers(-1, 25), st.integers(1, MAX_TOKENS))
def test_no_job_asks_for_more_log_probabilities_than_the_bound(
    n: int, logprobs: bool | None, top: int | None, most: int
) -> None:
    given_fields = {"n": n, "logprobs": logprobs, "top_logprobs": top, "max_tokens": most}
    try:
        read = prompt_job(**{name: value for name, value in given_fields.items() if value is not None})
    except InvalidJob:
        return
    assert read.n * read.max_tokens * (1 + (read.top_logprobs or 0)) <= MAX_TOKENS


@given(st.fixed_dictionaries({}, optional={"n": NOISE, "logprobs": NOISE, "top_logprobs": NOISE}))
def test_any_members_of_a_job_or_a_body_are_taken_or_refused_by_name(members: dict[str, Any]) -> None:
    for read in (
        partial(prompt_job, **members),
        partial(body_job, CHAT_COMPLETIONS, {"messages": [], **members}),
    ):
        try:
            read()
        except (InvalidJob, NotAJob) as refused:
            assert refused.problems


# -- OpenAI's bodies ---------------------------------------------------------------------------------------------------
SHORT_CHAT = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("url", "body", "wanted"),
    [
        (
            CHAT_COMPLETIONS,
            {"messages": SHORT_CHAT, "n": 2, "logprobs": True, "top_logprobs": 3},
            (2, True, 3),
        ),
        (CHAT_COMPLETIONS, {"messages": SHORT_CHAT, "logprobs": False}, (1, False, None)),
        (COMPLETIONS, {"prompt": "a", "n": 2, "logprobs": 0}, (2, True, 0)),
        (COMPLETIONS, {"prompt": "a", "logprobs": 5}, (1, True, 5)),
        (RESPONSES, {"input": "a", "include": [LOGPROBS_INCLUDED]}, (1, True, None)),
        (RESPONSES, {"input": "a", "top_logprobs": 4}, (1, True, 4)),
        (RESPONSES, {"input": "a", "include": ["other"]}, (1, False, None)),
    ],
)
def test_each_url_of_openai_s_names_these_options_differently(url: str, body: dict[str, Any], wanted: object) -> None:
    read = body_job(url, body)
    assert (read.n, read.logprobs, read.top_logprobs) == wanted
    assert ("`include`" in "".join(ignored_members(url, body))) == (body.get("include") == ["other"])


A_FUNCTION = {"type": "function", "name": "a"}


@pytest.mark.parametrize(
    ("url", "body", "fields"),
    [
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, ["logprobs"]),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, ["logprobs"]),
        (CHAT_COMPLETIONS, {"messages": SHORT_CHAT, "logprobs": 5}, ["logprobs"]),
        (CHAT_COMPLETIONS, {"messages": SHORT_CHAT, "n": 17}, ["n"]),
        (CHAT_COMPLETIONS, {"messages": SHORT_CHAT, "reasoning_effort": "most"}, ["reasoning_effort"]),
        (CHAT_COMPLETIONS, {"messages": SHORT_CHAT, "thinking_token_budget": -1}, ["thinking_token_budget"]),
        (RESPONSES, {"n": 2}, ["n"]),
        (RESPONSES, {"logprobs": True}, ["logprobs"]),
        (RESPONSES, {"reasoning": {"effort": 7}}, ["reasoning.effort"]),
        (RESPONSES, {"reasoning": "high"}, ["reasoning"]),
        (RESPONSES, {"tools": [{"type": "function", "name": "a b"}]}, ["tools.0.name"]),
        (RESPONSES, {"tools": [A_FUNCTION], "tool_choice": {**A_FUNCTION, "name": "a b"}}, ["tool_choice.name"]),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "", "output": "b"}]}, ["input.0.call_id"]),
        (
            RESPONSES,
            {"input": [{"type": "function_call", "call_id": "", "name": "", "arguments": 3}], "instructions": "b"},
            ["input.0.call_id", "input.0.name", "input.0.arguments"],
        ),
    ],
)
def test_a_body_is_refused_by_its_own_members_as_they_were_sent(
    url: str, body: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(NotAJob) as refused:
        body_job(url, {"input": "a", **body} if url == RESPONSES else body)
    assert [problem.field for problem in refused.value.problems] == fields


# -- the whole way -----------------------------------------------------------------------------------------------------
async def test_a_worker_gives_every_answer_with_the_log_probabilities_of_its_tokens() -> None:
    async with working() as worker:
        result = await worker.result(record(prompt="one two", n=3, temperature=0.5, logprobs=True, top_logprobs=1))
        plain = await worker.result(record(prompt="one two", logprobs=True))
    assert (result.outcome, result.text, result.logprobs) == ("succeeded", "one two", None)
    assert result.usage is not None
    assert result.usage.completion_tokens == 6
    assert [(choice.index, choice.text, choice.finish_reason) for choice in result.choices or ()] == [
        (index, "one two", "stop") for index in range(3)
    ]
    assert read_result(write_result(result)) == result
    chat = output_line(result, CHAT_COMPLETIONS)["response"]["body"]["choices"]
    assert [each["message"]["content"] for each in chat] == ["one two"] * 3
    assert chat[2]["logprobs"]["content"][1] == {
        "token": " two",
        "logprob": 0.0,
        "bytes": [*b" two"],
        "top_logprobs": [{"token": " two", "logprob": 0.0, "bytes": [*b" two"]}],
    }
    completion = output_line(result, COMPLETIONS)["response"]["body"]["choices"]
    assert completion[0]["logprobs"] == {
        "tokens": ["one", " two"],
        "token_logprobs": [0.0, 0.0],
        "top_logprobs": [{"one": 0.0}, {" two": 0.0}],
        "text_offset": [0, 3],
    }
    assert plain.choices is None
    [part] = output_line(plain, RESPONSES)["response"]["body"]["output"][0]["content"]
    assert [each["token"] for each in part["logprobs"]] == ["one", " two"]


def test_a_token_that_is_part_of_a_character_has_no_bytes() -> None:
    half = token_logprob("\N{REPLACEMENT CHARACTER}", -1.0)
    result = read_result(b'{"job_id":"a","outcome":"succeeded","created_at":1}').model_copy(update={"logprobs": [half]})
    [token] = output_line(result, CHAT_COMPLETIONS)["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert (token["bytes"], token["top_logprobs"]) == (None, [])


async def test_an_answer_of_no_use_is_left_out_with_a_note_and_more_than_the_job_wants_are_dropped() -> None:
    asked = GroundedRequest("a", None, None, response_format=ResponseFormat(type="json_object"))
    cut = Completion("", "content_filter", 0, 0)
    good = Completion("{}", "stop", 0, 0)
    several = replace(Completion("no", "stop", 1, 9), further=(good, cut, good, good))
    read = await read_answers(several, asked, prompt_job(n=4, temperature=1))
    assert [isinstance(each, ReadAnswer) for each in read] == [False, True, False, True]
    first, _, third, _ = read
    assert isinstance(first, ResultError)
    assert isinstance(third, ResultError)
    assert (first.code, third.code) == ("not_json", "unfinished")
    notes = notes_on(read, 6)
    assert [note.partition(":")[0] for note in notes] == [
        "answer 1 of 6 was left out",
        "answer 3 of 6 was left out",
        "n",
    ]


def test_a_family_s_code_fence_is_removed_from_every_answer() -> None:
    fenced = Completion("```json\n{}\n```", "stop", 0, 0)
    request = request_of(prompt="Is it?", response_format={"type": "json_object"})
    completion = without_fence(replace(fenced, text="{}", further=(fenced,)), request, families()["mistral"])
    assert (completion.text, completion.further[0].text) == ("{}", "{}")


# -- OpenAI's protocol -------------------------------------------------------------------------------------------------
def answered(*choices: object) -> Any:
    body = {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 7}}
    return DIALECT.outcome(ASKED, "chat/completions", 200, {}, json.dumps(body).encode())


def test_a_server_is_asked_in_the_words_of_its_two_apis_and_refuses_in_the_job_s() -> None:
    dialect = OpenAIServer(OpenAISettings(model="m1", log_probabilities=False), CLOCK)
    chat, raw = (
        dialect.body(ASKED),
        dialect.body(request_of(prompt="Is it?", temperature=0.5, n=3, top_logprobs=2, raw=True)),
    )
    assert (chat["n"], chat["logprobs"], chat["top_logprobs"]) == (3, True, 2)
    assert (raw["n"], raw["logprobs"], raw.get("top_logprobs")) == (3, 2, None)
    assert not dialect.learns(ASKED, chat, ServerProblem(param="logprobs"))
    assert not dialect.learns(ASKED, chat, ServerProblem(param="top_logprobs"))


def test_a_server_s_choices_are_put_in_order_and_only_the_wanted_alternatives_are_kept() -> None:
    likely = [{"token": token, "logprob": value} for token, value in (("y", -0.1), ("n", -2.0), ("m", -math.inf))]
    content = [{"token": "y", "logprob": -0.1, "top_logprobs": likely}]
    completion = answered(
        {"index": 1, "message": {"content": "n"}, "finish_reason": "length"},
        {"index": 0, "message": {"content": "y"}, "finish_reason": "stop", "logprobs": {"content": content}},
    )
    assert (completion.text, completion.prompt_tokens, completion.completion_tokens) == ("y", 3, 7)
    assert completion.logprobs == (token_logprob("y", -0.1, [("y", -0.1), ("n", -2.0)]),)
    [second] = completion.further
    assert (second.text, second.finish_reason, second.logprobs) == ("n", "length", None)


def test_log_probabilities_of_a_completion_are_paired_with_tokens() -> None:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -math.inf], "top_logprobs": [None, {"c": -3, "b": -1}]}
    completion = answered({"text": "ab", "finish_reason": "stop", "logprobs": logprobs})
    assert completion.logprobs == (
        token_logprob("a", -9999.0, []),
        token_logprob("b", -9999.0, [("b", -1.0), ("c", -3.0)]),
    )


LOGPROBS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("content", "tokens", "token_logprobs", "top_logprobs"), NOISE)
)
TOKENS = st.lists(
    st.fixed_dictionaries(
        {"token": st.text(max_size=3), "logprob": st.none() | st.floats()},
        optional={"top_logprobs": st.lists(st.fixed_dictionaries({"token": st.text(), "logprob": st.floats()}))},
    ),
    max_size=4,
)


@given(st.lists(LOGPROBS | TOKENS.map(lambda tokens: {"content": tokens}) | NOISE, min_size=1, max_size=3))
@example([{"content": [{"token": "\ud800", "logprob": 1.0}]}])
@example([{"tokens": ["a"], "token_logprobs": [float("nan")], "top_logprobs": []}])
def test_any_log_probabilities_of_a_server_become_a_result_or_an_engine_s_error(found: list[object]) -> None:
    try:
        said = answered(*({"message": {"content": "a"}, "finish_reason": "stop", "logprobs": each} for each in found))
    except EngineError:
        return
    assert not isinstance(said, TryAgain)
    for each in (said, *said.further):
        for token in each.logprobs or ():
            assert -9999.0 <= token.logprob <= 0
            assert all(-9999.0 <= top.logprob <= 0 for top in token.top_logprobs or ())
            json.dumps(token.model_dump(), allow_nan=False)


# -- Gemini ------------------------------------------------------------------------------------------------------------
def test_gemini_is_asked_for_candidates_and_each_chosen_token_is_joined_with_its_alternatives() -> None:
    api = GeminiServer(GeminiSettings(model="gemini-x"), CLOCK)
    options = api.body(ASKED)["generationConfig"]
    assert {name: options[name] for name in ("candidateCount", "responseLogprobs", "logprobs")} == {
        "candidateCount": 3,
        "responseLogprobs": True,
        "logprobs": 2,
    }
    chosen = [{"token": "y", "logProbability": -0.5}, {"token": "es", "logProbability": -1.5}]
    top = [{"candidates": [{"token": "y", "logProbability": -0.5}, {"token": "n", "logProbability": -2}]}]
    candidates = [
        {"index": 1, "content": {"parts": [{"text": "no"}]}, "finishReason": "STOP"},
        {
            "content": {"parts": [{"text": "yes"}]},
            "finishReason": "STOP",
            "logprobsResult": {"chosenCandidates": chosen, "topCandidates": top},
        },
    ]
    completion = api.completion(json.dumps({"candidates": candidates}).encode(), ASKED)
    assert (completion.text, [each.text for each in completion.further]) == ("yes", ["no"])
    assert completion.logprobs == (
        token_logprob("y", -0.5, [("y", -0.5), ("n", -2.0)]),
        token_logprob("es", -1.5),
    )


@given(NOISE | st.fixed_dictionaries({"chosenCandidates": NOISE, "topCandidates": NOISE}))
def test_any_log_probabilities_of_gemini_are_read_or_refused(found: object) -> None:
    candidate = {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", "logprobsResult": found}
    try:
        completion = GEMINI_API.completion(json.dumps({"candidates": [candidate]}).encode(), ASKED)
    except ValueError:
        return
    assert all(-9999.0 <= token.logprob <= 0 for token in completion.logprobs or ())


# -- vLLM's outputs ----------------------------------------------------------------------------------------------------
def vllm_answer(text: str, reason: str, *logprobs: tuple[str, float]) -> SimpleNamespace:
    """One of vLLM's outputs with `FlatLogprobs`: at each place the chosen token and one alternative."""
    flat = SimpleNamespace(
        start_indices=[2 * at for at in range(len(logprobs))],
        end_indices=[2 * at + 2 for at in range(len(logprobs))],
        decoded_tokens=[token for chosen, _ in logprobs for token in (chosen, None)],
        logprobs=[value for _, chosen in logprobs for value in (chosen, -7.0)],
    )
    total = sum(value for _, value in logprobs)
    ids = [*range(len(logprobs))]
    return SimpleNamespace(
        text=text, finish_reason=reason, token_ids=ids, logprobs=flat, cumulative_logprob=total, index=0
    )


def test_vllm_s_answers_have_their_own_log_probabilities_and_one_abort_aborts_all() -> None:
    first, second = vllm_answer("ab", "stop", ("a", -1.0), ("b", -math.inf)), vllm_answer("c", "length", ("c", -2.0))
    output = SimpleNamespace(outputs=[first, second], num_cached_tokens=1)
    completion = vllm_completion(output, VllmChat(ASKED, None, [1, 2, 3]))
    assert (completion.text, completion.finish_reason, completion.prompt_tokens) == ("ab", "stop", 3)
    assert (completion.completion_tokens, completion.cached_tokens) == (3, 1)
    assert completion.logprobs == (token_logprob("a", -1.0, [("", -7.0)]), token_logprob("b", -9999.0, [("", -7.0)]))
    assert [(each.text, each.finish_reason) for each in completion.further] == [("c", "length")]
    assert vllm_completion(output, VllmChat(request_of(prompt="Is it?"), None, [1])).logprobs is None
    second.finish_reason = "abort"
    assert vllm_completion(output, VllmChat(ASKED, None, [1])).finish_reason == "abort"


# -- bounds of answers -------------------------------------------------------------------------------------------------
MANY = b",".join([b"{}"] * 100_000)
PLACES = b",".join([b'{"top_logprobs":[' + b",".join([b"{}"] * 20) + b"]}"] * 5_000)
PART = b'{"type":"output_text","text":"","logprobs":[%b]}'
RESPONSE = b'{"status":"completed","output":[{"type":"message","content":[%b]}]}' % PART
TOPS = b",".join([b'{"candidates":[' + b",".join([b"{}"] * 20) + b"]}"] * 5_000)


@pytest.mark.parametrize(
    ("openai", "gemini", "response"),
    [
        (b'{"content":[%b]}' % MANY, b'{"chosenCandidates":[%b]}' % MANY, MANY),
        (b'{"content":[%b]}' % PLACES, b'{"chosenCandidates":[{}],"topCandidates":[%b]}' % TOPS, PLACES),
    ],
)
def test_a_server_s_log_probabilities_take_little_memory(openai: bytes, gemini: bytes, response: bytes) -> None:
    """In an earlier version each token became a pydantic model of 1.1 kB: 8 MiB of answer took 2.3 GB and a minute."""
    asked = request_of(prompt="Is it?", top_logprobs=2)
    tracemalloc.start()
    answers = (
        DIALECT.outcome(asked, "chat/completions", 200, {}, b'{"choices":[{"logprobs":%b}]}' % openai),
        GEMINI_API.completion(b'{"candidates":[{"logprobsResult":%b}]}' % gemini, asked),
        RESPONSES_API.completion(RESPONSE % response, asked),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 1024 * 1024
    assert [len(each.logprobs or ()) <= asked.max_tokens for each in answers if isinstance(each, Completion)] == [
        True
    ] * 3


def test_choices_and_tokens_beyond_those_of_the_request_are_left_out() -> None:
    asked = request_of(prompt="Is it?", n=2, max_tokens=3, top_logprobs=2)
    token, candidate = {"token": "a", "logprob": -1}, {"token": "a", "logProbability": -1}
    choices = [{"index": at, "text": "a", "logprobs": {"content": [token] * 4}} for at in range(3)]
    completions = [{"text": "a", "logprobs": {"tokens": ["a"] * 4, "token_logprobs": [-1] * 4}}] * 3
    candidates = [{"index": at, "logprobsResult": {"chosenCandidates": [candidate] * 4}} for at in range(3)]
    answers = (
        DIALECT.outcome(asked, "chat/completions", 200, {}, json.dumps({"choices": choices}).encode()),
        DIALECT.outcome(asked, "completions", 200, {}, json.dumps({"choices": completions}).encode()),
        GEMINI_API.completion(json.dumps({"candidates": candidates}).encode(), asked),
    )
    for each in answers:
        assert isinstance(each, Completion)
        assert [len(one.logprobs or ()) for one in (each, *each.further)] == [3, 3]


# -- reasoning -------------------------------------------------------------------------------------------------------
MARKS = ReasoningMarks(opening="<think>", closing="</think>", parser="qwen3", opened_by="model")
OPEN, CLOSE = MARKS.opening, MARKS.closing
PIECES = st.lists(st.sampled_from([OPEN, CLOSE, "<thi", "nk>", "</", "</think", "a", "b c", "\n", " "]), max_size=12)
PARTS = st.lists(st.sampled_from([OPEN[:4], CLOSE[:5], "a", "\n", " "]), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("output", "reasoning", "text"),
    [
        ("<think>a</think>\n\nb", "a", "b"),
        ("\n<think>\na\n</think>b", "a", "b"),
        ("b", None, "b"),
        (" b", None, " b"),
        ("<think></think>b", "", "b"),
        ("<think>a", "a", ""),
        ("<think>a</think>", "a", ""),
        ("<think>a</thin", "a</thin", ""),
        ("a</think>b", "a", "b"),
        ("<think>a<think>b</think>c</think>d", "ab  c".replace("  ", ""), "d"),
        ("<think>a<think> tag</think>b", "a tag", "b"),
        ("<think>a</think>b<think>c</think>d", "ac", "bd"),
        ("the mark <think> opens it", None, "the mark <think> opens it"),
        ("<think>a</think>write <think> so", "a", "write <think> so"),
        ("", None, ""),
    ],
)
def test_the_reasoning_is_separated_from_the_answer(output: str, reasoning: str | None, text: str) -> None:
    whole = parted(output, MARKS)
    assert (whole.reasoning, whole.text) == (reasoning, text)


def test_an_output_of_many_marks_is_read_in_one_pass() -> None:
    """With a pass for each mark, a model that repeats its opening mark would stop the event loop for minutes."""
    output = f"x{OPEN * 400_000}"
    assert parted(output, MARKS) == Parted(output, None, 0)


@pytest.mark.parametrize(
    ("output", "reasoning", "text"), [("a</think>b", "a", "b"), ("a", "a", ""), ("<think>a</think>b", "a", "b")]
)
def test_a_prompt_that_opened_the_reasoning_is_continued(output: str, reasoning: str, text: str) -> None:
    whole = parted(output, MARKS, is_open=True)
    assert (whole.reasoning, whole.text) == (reasoning, text)


def own_letters(text: str) -> list[str]:
    """The letters that occur in no mark.

    Letters of a mark may vanish from the answer: if a mark is removed, the pieces around it may form another mark.
    """
    return sorted(each for each in text if each.isalpha() and each not in OPEN)


@given(PIECES.map("".join), st.booleans())
@example("<thi<think>nk>", True)
@example("<think>a</think>b<think>c", False)
def test_no_output_leaves_a_closing_mark_or_a_part_of_the_reasoning_in_the_answer(output: str, is_open: bool) -> None:
    whole = parted(output, MARKS, is_open=is_open)
    assert CLOSE not in whole.text
    assert 0 <= whole.end <= len(output)
    assert (whole.reasoning is None) == (whole.end == 0 and not is_open) or output == ""
    if whole.reasoning is None:
        assert whole == Parted(output, None, 0)
    assert own_letters("".join([whole.text, whole.reasoning or ""])) == own_letters(output)


@given(st.text(), st.text(), st.sampled_from([one.reasoning for one in families().values() if one.reasoning]))
def test_the_marks_of_each_family_separate_the_thought_from_the_answer(
    thought: str, said: str, marks: ReasoningMarks
) -> None:
    for mark in (marks.opening, marks.closing):
        thought, said = thought.replace(mark[0], ""), said.replace(mark[0], "")
    whole = parted(f"{marks.opening}{thought}{marks.closing}{said}", marks)
    assert whole == Parted(said.lstrip(), thought.strip(), len(f"{marks.opening}{thought}{marks.closing}"))


@given(st.sampled_from(["", " \n", OPEN, f"\n{OPEN}"]), PARTS, PARTS, st.booleans(), st.integers(1, 9))
def test_an_answer_that_grows_by_pieces_becomes_the_one_in_the_whole_output(
    begin: str, thought: str, said: str, reasons: bool, size: int
) -> None:
    """A mark that two pieces share was once a part of the answer, or each piece was searched with all before it."""
    output = f"{begin}{thought}{CLOSE}{said}" if reasons else said
    growth = Growth(MARKS, reasons=reasons)
    grown = [growth.add(output[at : at + size]) for at in range(0, len(output), size)]
    may_begin_reasoning = not reasons and OPEN.startswith(output.lstrip())
    assert "".join(grown) == ("" if may_begin_reasoning else parted(output, MARKS).text)


@pytest.mark.parametrize(
    ("effort", "deltas", "told"),
    [
        ("none", [{"content": "a"}, {"reasoning": "b"}, {"content": "c"}], ["a", "", "c"]),
        ("low", [{"reasoning": "b"}, {"content": "a"}, {"content": "c"}], ["", "a", "c"]),
        ("low", [{"content": "a"}, {"content": f"b{CLOSE[:3]}"}, {"content": f"{CLOSE[3:]} c"}], ["", "", "c"]),
        ("low", [{"content": "a"}, {"reasoning": "b"}, {"content": "c"}], ["", "a", "c"]),
    ],
)
def test_no_part_of_an_answer_is_told_twice_if_its_server_separates_the_reasoning(
    effort: str, deltas: list[dict[str, str]], told: list[str]
) -> None:
    answer = Answer(request_of(prompt="Is it?", reasoning=Reasoning.model_validate({"effort": effort})), MARKS)
    grown = []
    for delta in deltas:
        DIALECT.read(json.dumps({"choices": [{"delta": delta}]}).encode(), answer)
        grown.append(answer.grown())
    assert grown == told


def read_answer(choice: Mapping[str, object], marks: ReasoningMarks | None = None, **usage: object) -> Completion:
    answer = Answer(request_of(prompt="Is it?"), marks)
    DIALECT.read(json.dumps({"choices": [choice], "usage": usage}).encode(), answer)
    return answer.completion()


@pytest.mark.parametrize("member", ["reasoning", "reasoning_content"])
def test_a_server_s_reasoning_is_taken_from_its_own_member(member: str) -> None:
    details = {"reasoning_tokens": 7}
    choice = {"message": {"content": "b </think>", member: "a"}}
    completion = read_answer(choice, MARKS, completion_tokens=9, completion_tokens_details=details)
    assert (completion.text, completion.reasoning, completion.reasoning_tokens) == ("b </think>", "a", 7)


def test_if_the_server_does_not_separate_the_reasoning_the_family_s_marks_do() -> None:
    choice = {"message": {"content": "<think>a</think>b"}}
    found = [(each.text, each.reasoning) for each in (read_answer(choice, MARKS), read_answer(choice))]
    assert found == [("b", "a"), ("<think>a</think>b", None)]
    assert read_answer({"message": {"content": None, "reasoning": "a"}}).text == ""


@pytest.mark.parametrize(
    ("mean", "confidence"), [(math.nan, None), (-math.inf, 0.0), (0.5, 1.0), (0.0, 1.0), (None, None)]
)
def test_the_confidence_is_a_probability_whatever_mean_an_engine_gives(
    mean: float | None, confidence: float | None
) -> None:
    choice = Choice()
    choice.mean_logprob = mean
    assert choice.confidence == confidence


RESULT = Result(
    job_id="j",
    outcome=Outcome.SUCCEEDED,
    text="b",
    reasoning="a",
    usage=Usage(prompt_tokens=1, completion_tokens=9, total_tokens=10, reasoning_tokens=7),
    created_at=1,
)


def test_openai_s_shapes_show_the_reasoning_beside_the_answer() -> None:
    chat, response = answer_body(RESULT, CHAT_COMPLETIONS), answer_body(RESULT, RESPONSES)
    message = chat["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("b", "a", "a")
    assert chat["usage"]["completion_tokens_details"] == {"reasoning_tokens": 7}
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "a"}]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 7}
    without = RESULT.model_copy(update={"reasoning": None, "usage": None})
    assert "reasoning" not in json.dumps([answer_body(without, url) for url in (CHAT_COMPLETIONS, RESPONSES)])


@pytest.mark.parametrize(
    ("url", "body", "asked"),
    [
        (CHAT_COMPLETIONS, {"messages": SHORT_CHAT, "reasoning_effort": "low"}, Reasoning(effort="low")),
        (CHAT_COMPLETIONS, {"messages": SHORT_CHAT, "thinking_token_budget": 9}, Reasoning(max_tokens=9)),
        (CHAT_COMPLETIONS, {"messages": SHORT_CHAT}, None),
        (RESPONSES, {"input": "Why?", "reasoning": {"effort": "high", "summary": "auto"}}, Reasoning(effort="high")),
        (RESPONSES, {"input": "Why?", "reasoning": {"summary": "auto"}}, None),
    ],
)
def test_openai_s_members_bound_the_reasoning(url: str, body: dict[str, object], asked: Reasoning | None) -> None:
    assert body_job(url, body).reasoning == asked


@given(st.sampled_from(["none", "low", None]), st.none() | st.integers(0, MAX_TOKENS))
def test_no_reasoning_is_wanted_where_the_effort_is_none_or_the_tokens_are_0(
    effort: str | None, tokens: int | None
) -> None:
    job = Job.model_validate({"prompt": "a", "reasoning": {"effort": effort, "max_tokens": tokens}})
    assert job.reasoning is not None
    assert job.reasoning.is_wanted == (effort != "none" and tokens != 0)


# -- finish reasons --------------------------------------------------------------------------------------------------
WORDS: dict[str, FinishReason] = {
    **dict.fromkeys(["stop", "STOP", "eos", "eos_token", "stop_sequence", "end_turn", "COMPLETE"], "stop"),
    **dict.fromkeys(["length", "model_length", "max_tokens", "MAX_TOKENS"], "length"),
    **dict.fromkeys(["content_filter", "RECITATION", "SAFETY"], "content_filter"),
    **dict.fromkeys(["tool_calls", "function_call", "tool_use"], "tool_calls"),
    **dict.fromkeys(["abort"], "abort"),
    **dict.fromkeys(["repetition"], "repetition"),
    **dict.fromkeys(["load", "pause_turn", "unknown", "halt"], "other"),
}


def answer_of(said: str | None) -> Completion:
    """The completion for a server's answer with this finish reason."""
    choice = {"message": {"content": "half a"}, "finish_reason": said}
    return read_answer(choice, prompt_tokens=3, completion_tokens=2)


@pytest.mark.parametrize(("said", "reason"), [(None, "stop"), ("", "stop"), *WORDS.items()])
def test_a_server_s_finish_reason_becomes_the_completion_s(said: str | None, reason: FinishReason) -> None:
    assert answer_of(said).finish_reason == reason


@pytest.mark.parametrize("said", ["error", "ERROR", "insufficient_system_resource"])
def test_a_server_that_says_that_it_failed_has_not_answered(said: str) -> None:
    with pytest.raises(EngineFailed, match="failed while it generated") as failed:
        answer_of(said)
    assert failed.value.wasted_tokens == 2


@given(st.text(min_size=1))
def test_an_unknown_finish_reason_leaves_no_answer(said: str) -> None:
    known = said.lower() in {word.lower() for word in WORDS} | {"completed", "safety", "cancelled"}
    assert known or is_failure(said) or finish_reason(said) == "other"


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "repetition", "other"])
async def test_an_answer_that_is_not_whole_is_a_failure_that_says_why_and_shows_no_text(
    reason: FinishReason,
) -> None:
    async with working() as worker:
        worker.answers_by(lambda _: Completion("half a", reason, 3, 2))
        result = await worker.result(record())
    assert (result.outcome, result.text, result.finish_reason) == ("failed", None, reason)
    assert (result.error and result.error.code, result.usage and result.usage.total_tokens) == ("unfinished", 5)


@pytest.mark.parametrize("said", ["abort", "error"])
async def test_a_request_that_the_engine_ends_by_itself_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(generating, "FIRST_RETRY_SECONDS", 0.001)
    words = [said, said, "stop"]
    async with working() as worker:
        worker.answers_by(lambda _: answer_of(words.pop(0)))
        result = await worker.result(record())
    assert (result.outcome, result.text) == ("succeeded", "half a")
    assert worker.sample("postback_tokens_total", kind="wasted") == 4


# -- json answers ----------------------------------------------------------------------------------------------------
def answer(text: str, reason: Literal["stop", "length", "abort"] = "stop") -> Completion:
    return Completion(text, reason, 1, 1)


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", "7", f"[{'9' * 5000}]", ' {"a": null}\n'])
def test_json_is_taken_also_where_max_tokens_fell_on_its_end(text: str) -> None:
    require_json(answer(text), prompt_job(max_tokens=8))
    require_json(answer(text, "length"), prompt_job(max_tokens=8))


@pytest.mark.parametrize("text", ['{"a": ', "", "[NaN]", "{'a': 1}", "[" * 100_000, '{"a": 1} {'])
def test_an_answer_that_is_not_json_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(NotJson, match=r"max_tokens: the answer's JSON was not whole after 8 tokens; raise it"):
        require_json(answer(text, "length"), prompt_job(max_tokens=8))
    with pytest.raises(NotJson, match="response_format: the engine's answer is not JSON"):
        require_json(answer(text), prompt_job(max_tokens=8))


OF_AN_A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
BY_SCHEMA: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {"schema": OF_AN_A}}}
TAKING_A = {"type": "function", "function": {"name": "clock", "parameters": OF_AN_A}}
REQUIRED: dict[str, Any] = {"tools": [TAKING_A], "tool_choice": "required"}
GOOD, BAD, WORSE = answer('{"a": 1}'), answer('{"a": "one"}'), answer("no JSON")


def calls(*arguments: str, name: str = "clock") -> Completion:
    made = [
        ToolCall(id=f"c{at}", function=CalledFunction(name=name, arguments=text)) for at, text in enumerate(arguments)
    ]
    return Completion("", "tool_calls", 1, 1, tool_calls=tuple(made))


@pytest.mark.parametrize(
    ("fields", "answers", "code", "seeds"),
    [
        (BY_SCHEMA, [GOOD], None, [None]),
        (BY_SCHEMA, [BAD, GOOD], None, [None, 1]),
        ({**BY_SCHEMA, "seed": 7}, [WORSE, GOOD], None, [7, 8]),
        ({**BY_SCHEMA, "seed": 2**63 - 1}, [BAD, WORSE], "invalid_output", [2**63 - 1, 0]),
        (BY_SCHEMA, [answer('{"a": ', "length")], "not_json", [None]),
        (BY_SCHEMA, [replace(GOOD, text="", refusal="No.")], None, [None]),
        ({"response_format": {"type": "json_object"}}, [WORSE, WORSE], "not_json", [None, 1]),
        (REQUIRED, [answer("It is 9:41."), calls('{"a": 1}')], None, [None, 1]),
        (REQUIRED, [calls('{"a": 1}', "[]"), calls('{"b": 1}')], "invalid_output", [None, 1]),
        (REQUIRED, [calls('{"a": 1}', name="watch"), calls('{"a": 1}')], None, [None, 1]),
        (REQUIRED, [replace(calls('{"a"'), finish_reason="length")], None, [None]),
        (
            {**REQUIRED, "parallel_tool_calls": False},
            [calls('{"a": 1}', '{"a": 2}'), calls('{"a": 1}')],
            None,
            [None, 1],
        ),
        ({**REQUIRED, "tool_choice": "none"}, [calls('{"a": 1}'), answer("It is 9:41.")], None, [None, 1]),
        ({**BY_SCHEMA, "n": 2, "temperature": 1}, [replace(BAD, further=(GOOD,))], None, [None]),
    ],
)
async def test_an_answer_that_breaks_its_jobs_schema_or_tools_is_asked_for_once_more_with_another_seed(
    fields: dict[str, Any], answers: list[Completion], code: str | None, seeds: list[int | None]
) -> None:
    """In an earlier version such an answer succeeded without a note."""
    asked, left = list[int | None](), [*answers]

    def next_answer(request: GenerationRequest) -> Completion:
        asked.append(request.body.get("seed"))
        return left.pop(0)

    async with working() as worker:
        worker.answers_by(next_answer)
        result = await worker.result(record(**fields))
        assert worker.sample("postback_job_seconds_count", phase="infer") == 1
    assert (result.error and result.error.code, asked) == (code, seeds)
    assert result.usage is not None
    assert result.usage.total_tokens == 2 * len(answers)
    assert ("the model was asked once more" in " ".join(result.notes)) == (len(answers) == 2)
    if code == "invalid_output":
        assert (result.text, result.tool_calls) == (answers[-1].text, [*answers[-1].tool_calls] or None)


async def test_a_job_without_a_seed_is_not_told_that_its_service_takes_none() -> None:
    left = [BAD, replace(GOOD, left_out=("seed",))]
    async with working() as worker:
        worker.answers_by(lambda _: left.pop(0))
        result = await worker.result(record(**BY_SCHEMA))
    assert (result.outcome, len(result.notes)) == ("succeeded", 1)


DOUBLING: dict[str, Any] = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(40)}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#"}, 1),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, 1),
        ({"$ref": "#/$defs/d0", "$defs": {**DOUBLING, "d40": {}}}, 1),
        ({"uniqueItems": True}, [{"a": number} for number in range(1000)]),
        ({"items": {"enum": [*range(1000)]}}, [999] * 1000),
        ({"type": 7}, 1),
        ({"required": 7}, {}),
    ],
    ids=["circle", "another server", "doubling", "unique", "enum", "no type", "no list"],
)
def test_a_schema_that_would_hold_the_worker_up_leaves_its_answer_unchecked_with_a_note(
    schema: dict[str, Any], value: object
) -> None:
    asked = prompt_job(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert require_form(answer(json.dumps(value)), asked) == [f"response_format: {UNCHECKED}"]


def test_regular_expressions_of_a_schema_are_not_run() -> None:
    """Python's would take longer than the universe for this text."""
    slow = "(a+)+$"
    schema = {"pattern": slow, "patternProperties": {slow: False}, "additionalProperties": False, "type": "object"}
    asked = prompt_job(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert require_form(answer(json.dumps({"a" * 60 + "!": 1})), asked) == []


# -- escalated usage -------------------------------------------------------------------------------------------------
COUNTS = st.integers(0, 1000)
OPTIONAL = st.none() | COUNTS
USAGES = st.builds(
    Usage,
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    total_tokens=COUNTS,
    cached_tokens=OPTIONAL,
    reasoning_tokens=OPTIONAL,
)


def result(outcome: Outcome, usage: Usage) -> Result:
    return Result(job_id="j", outcome=outcome, created_at=0, usage=usage)


@given(USAGES, USAGES, st.sampled_from(Outcome), st.sampled_from(Outcome))
def test_each_count_is_the_sum_of_both_tries_and_absent_only_if_neither_states_it(
    first: Usage, second: Usage, before: Outcome, after: Outcome
) -> None:
    escalate = Escalate("small", "large", "not_json")
    usage = escalate.chosen(result(before, first), result(after, second)).usage
    assert usage is not None
    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"):
        told = [count for count in (getattr(first, name), getattr(second, name)) if count is not None]
        assert getattr(usage, name) == (sum(told) if told else None)
