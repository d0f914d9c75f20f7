"""Tool calls in the answers of each engine: all have one form, and a result can hold every answer."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from schemas.tools import ToolCall
from tests.unit.test_tool_calls import CALL, NOISE, request
from workers.engines.base import Completion, EngineError
from workers.engines.online.anthropic import MessagesApi
from workers.engines.online.gemini import GenerateContentApi
from workers.engines.online.responses import ResponsesApi
from workers.engines.openai_http.answers import TryAgain, outcome


def openai_answer(message: object, reason: object = "tool_calls") -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode()


def anthropic_answer(block: object) -> bytes:
    return json.dumps({"content": [block], "stop_reason": "tool_use", "usage": {}}).encode()


def gemini_answer(part: object) -> bytes:
    return json.dumps({"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]}).encode()


def response(item: object) -> bytes:
    return json.dumps({"status": "completed", "output": [item]}).encode()


def of_openai(body: bytes, **fields: Any) -> Any:
    return outcome(request(**fields), "chat/completions", 200, {}, body, 0.0)


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
    assert calls_in(MessagesApi("m", "2023-06-01").completion(anthropic_answer(block), request())) == [wanted]
    part = {"functionCall": {"name": "clock", "args": {"day": "Monday"}}}
    assert calls_in(GenerateContentApi("m").completion(gemini_answer(part), request())) == [("call_0", *wanted[1:])]
    item = {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": wanted[2]}
    assert calls_in(ResponsesApi("m").completion(response(item), request())) == [wanted]
    assert calls_in(ResponsesApi("m").completion(response({**item, "call_id": None}), request()))[0][0] == "call_0"
    assert of_openai(openai_answer({"tool_calls": [CALL]}), tools=()).tool_calls == ()


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
        lambda: MessagesApi("m", "2023-06-01").completion(anthropic_answer(block), request()),
        lambda: GenerateContentApi("m").completion(gemini_answer(call), request()),
        lambda: ResponsesApi("m").completion(response(item), request()),
    ):
        try:
            completion = read()
        except (EngineError, ValueError):
            continue
        assert not isinstance(completion, TryAgain)
        for each in completion.tool_calls:
            assert ToolCall.model_validate(each.model_dump()) == each
