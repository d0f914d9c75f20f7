"""Jobs with tools: fields, messages of calls, requests to each engine, calls in answers and results, OpenAI's forms."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.job_examples import CALLED, CALLING
from schemas.codec import InvalidJob, Origin, read_job, read_result, write_job, write_result
from schemas.job import Job, Message
from schemas.openai import CHAT_COMPLETIONS, RESPONSES
from schemas.openai_answers import output_line
from schemas.result import ResultError
from schemas.strict import NotAJob, body_job, job_in
from schemas.tools import CalledFunction, Tool, ToolCall
from screening.texts import texts_of, with_texts
from tests.unit.echo_worker import record, working
from workers.engines.base import Completion, GenerationRequest, RequestRejected
from workers.engines.families import families
from workers.engines.families.quirks import with_quirks
from workers.engines.online.anthropic import MessagesApi
from workers.engines.online.gemini import GenerateContentApi
from workers.engines.online.responses import ResponsesApi
from workers.engines.openai_http.dialect import Dialect
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.vllm.calling import calls_of
from workers.inference.choices import ReadAnswer, read_answers
from workers.inference.ground import GroundedRequest

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
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def job(**fields: Any) -> Job:
    return read_job(json.dumps({"messages": CHAT, "tools": [TOOL], **fields}).encode(), [], PLACE, 0).job


def request(**fields: Any) -> GenerationRequest:
    messages = tuple(Message.model_validate(message) for message in CHAT)
    return replace(GenerationRequest("r1", None, messages, 8, None, tools=(Tool.model_validate(TOOL),)), **fields)


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
    assert [(text.place, text.text) for text in texts_of(read)] == [
        (("messages", 0), "When?"),
        (("messages", 1), "Let me see."),
        (("messages", "1.0"), '{"day": "Monday"}'),
        (("messages", 2), "9:41"),
        (("messages", 3), "So?"),
        (("tools", 0), "The time."),
    ]
    changed = with_texts(read, {("messages", "1.0"): '{"day": "[redacted:day]"}', ("tools", 0): "[redacted:a]"})
    assert changed.messages is not None
    assert changed.tools is not None
    [call] = changed.messages[1].tool_calls or []
    assert call.function.arguments == '{"day": "[redacted:day]"}'
    assert changed.tools[0].function.description == "[redacted:a]"
    assert with_texts(read, {}) == read


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


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"tools": [{"type": "function", "name": "a b"}]}, ["tools.0.name"]),
        (
            {"tools": [{"type": "function", "name": "a"}], "tool_choice": {"type": "function", "name": "a b"}},
            ["tool_choice.name"],
        ),
        (
            {"input": [{"type": "function_call", "call_id": "", "name": "", "arguments": 3}], "instructions": "b"},
            ["input.0.call_id", "input.0.name", "input.0.arguments"],
        ),
        ({"input": [{"type": "function_call_output", "call_id": "", "output": "b"}]}, ["input.0.call_id"]),
    ],
)
def test_a_refusal_names_the_members_of_a_response_s_tools_as_they_were_sent(
    body: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(NotAJob) as refused:
        body_job(RESPONSES, {"input": "a", **body})
    assert [problem.field for problem in refused.value.problems] == fields


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
        "a", None, None, 0.0, response_format=job(response_format={"type": "json_object"}).response_format
    )
    [called] = await read_answers(Completion("", "tool_calls", 0, 0, tool_calls=calls), asked, job())
    [without] = await read_answers(Completion("", "tool_calls", 0, 0), asked, job())
    [withheld] = await read_answers(Completion("", "content_filter", 0, 0, tool_calls=calls), asked, job())
    assert [isinstance(each, ReadAnswer) for each in (called, without, withheld)] == [True, False, False]


async def test_an_answer_that_ended_for_a_call_but_has_none_is_unfinished() -> None:
    [read] = await read_answers(Completion("Let me", "tool_calls", 0, 0), GroundedRequest("a", None, None, 0.0), job())
    assert read == ResultError(
        code="unfinished",
        message="the model called a tool instead of answering, and no call of the job's tools was found",
    )


def test_the_page_s_job_with_tools_names_the_tool_that_its_result_calls() -> None:
    assert CALLED["tool_calls"][0]["function"]["name"] == CALLING["tool_choice"]["function"]["name"]  # type: ignore[index] # the page's own


def test_a_family_without_system_messages_keeps_what_tools_returned() -> None:
    told = (Message(role="system", content="Be brief."), *(request().messages or ()))
    changed = with_quirks(request(messages=told), families()["gemma-2"]).messages or ()
    assert [message.role for message in changed] == ["user", "assistant", "tool", "user"]


# -- requests and answers ----------------------------------------------------------------------------------------------


def test_a_server_of_openai_s_protocol_gets_tools_and_calls_as_they_are() -> None:
    dialect = Dialect("m1", OpenAISettings())
    body = dialect.body(request(tool_choice="required", parallel_tool_calls=False))
    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ([TOOL], "required", False)
    assert body["messages"] == CHAT
    assert dialect.body(request(tool_choice=job(tool_choice=NAMED).tool_choice))["tool_choice"] == NAMED
    with pytest.raises(RequestRejected, match="tools: "):
        Dialect("m1", OpenAISettings(api="completions")).body(request())


def test_anthropic_gets_blocks_of_calls_and_their_results() -> None:
    body = MessagesApi("m", "2023-06-01").body(request(tool_choice="required"), with_temperature=False)
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
    asked = request(tool_choice=job(tool_choice=choice).tool_choice if choice else None, parallel_tool_calls=single)
    assert MessagesApi("m", "2023-06-01").body(asked, with_temperature=False)["tool_choice"] == anthropic
    api = GenerateContentApi("m")
    if gemini is None:
        with pytest.raises(RequestRejected, match="parallel_tool_calls: "):
            api.body(asked, with_temperature=False)
    else:
        assert api.body(asked, with_temperature=False)["toolConfig"] == {"functionCallingConfig": gemini}


def test_gemini_gets_declarations_and_parts_of_calls_and_their_results() -> None:
    body = GenerateContentApi("m").body(request(), with_temperature=False)
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
    named = job(tool_choice=NAMED).tool_choice
    body = ResponsesApi("m").body(request(tool_choice=named, parallel_tool_calls=False), with_temperature=False)
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
    bare = (Tool.model_validate({"type": "function", "function": {"name": "now", "strict": True}}),)
    assert ResponsesApi("m").body(request(tools=bare), with_temperature=False)["tools"] == [
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
    for api in (MessagesApi("m", "2023-06-01"), GenerateContentApi("m")):
        if not arguments:
            api.body(request(messages=(called,)), with_temperature=False)
            continue
        with pytest.raises(RequestRejected, match="messages: "):
            api.body(request(messages=(called,)), with_temperature=False)


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
        GenerateContentApi("m").body(request(messages=(stray,)), with_temperature=False)
