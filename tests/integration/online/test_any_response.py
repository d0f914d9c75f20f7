"""Any response to a request, of each status and over a real socket: an answer that results can hold, or an error.

The engines are those of online services, and the engine of servers with chat completions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.tools import Tool, ToolCall
from telemetry.clock import SystemClock
from tests.drawn import drawn
from tests.integration.online.scripted import (
    ANTHROPIC,
    GEMINI,
    MODEL,
    RESPONSES,
    OnlineKind,
    called,
    response,
    scripted,
)
from tests.integration.openai_http import servers
from tests.integration.test_engine_contract import request
from tests.unit.test_tool_calls import CALL, TOOL
from workers.engines.base import Completion, EngineError
from workers.engines.online.responses import ResponsesServer, ResponsesSettings

CLOCK = SystemClock()

STATUSES = (200, 201, 204, 302, 400, 401, 404, 408, 413, 422, 429, 500, 503, 504, 529)
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(("completed", "incomplete", "failed", "STOP", "end_turn", "max_output_tokens", "message"))
NAMES = (
    "arguments", "call_id", "candidates", "code", "content", "error", "finishReason", "incomplete_details", "input",
    "logprobs", "message", "name", "output", "param", "parts", "reason", "status", "stop_reason", "summary", "text",
    "type", "usage",
)  # fmt: skip
TYPES = ("function_call", "message", "output_text", "reasoning", "refusal", "text", "thinking", "tool_use", "new")
ERRORS = st.fixed_dictionaries(
    {"error": st.fixed_dictionaries({}, optional={"message": NOISE, "param": NOISE, "code": NOISE | WORDS})}
)


def described(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """JSON with the members and the types of the services, in any places."""
    typed = st.fixed_dictionaries({"type": st.sampled_from(TYPES)}, optional=dict.fromkeys(NAMES[:8], inner))
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4) | typed


LIKE_ANSWERS = st.recursive(NOISE | WORDS, described, max_leaves=12)


def mutated(answer: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A valid answer in which other values replace some of the values."""
    places = st.sampled_from(sorted(_places(answer), key=str))
    return st.lists(st.tuples(places, LIKE_ANSWERS), min_size=1, max_size=3).map(lambda edits: _edited(answer, edits))


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from _places(each, (*place, key))


def _edited(answer: Any, edits: list[tuple[tuple[str | int, ...], Any]]) -> Any:
    changed = json.loads(json.dumps(answer))
    for place, value in edits:
        changed = _with(changed, place, value)
    return changed


def _with(whole: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """Return the JSON with the value at this place, or unchanged JSON if an earlier edit removed the place."""
    if not place:
        return value
    key, *rest = place
    if isinstance(whole, dict) and key in whole:
        return {**whole, key: _with(whole[key], tuple(rest), value)}
    if isinstance(whole, list) and isinstance(key, int) and key < len(whole):
        return [*whole[:key], _with(whole[key], tuple(rest), value), *whole[key + 1 :]]
    return whole


OPENAI = OnlineKind("openai", servers.says, servers.problem)
ANSWERS = {
    OPENAI.name: {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "yes", "reasoning": "Hm.", "tool_calls": [CALL]},
                "logprobs": {"content": [{"token": "yes", "logprob": -0.5, "top_logprobs": []}]},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}},
    },
    ANTHROPIC.name: ANTHROPIC.said("yes"),
    GEMINI.name: GEMINI.said("yes"),
    RESPONSES.name: response(
        *RESPONSES.said("yes")["output"],
        called("clock", "{}"),
        incomplete_details={"reason": "max_output_tokens"},
        error={"code": "server_error", "message": "Oh."},
    ),
}


KINDS = (OPENAI, ANTHROPIC, GEMINI, RESPONSES)
Ask = Callable[[OnlineKind, int, bytes, str], Completion]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """A function that lets a service answer with a status, a body and `Retry-After`; it returns the engine's answer."""
    given_now: dict[str, Any] = {}

    async def respond(_: web.Request) -> web.StreamResponse:
        headers = {"Retry-After": given_now["after"], "Location": "/elsewhere"}
        return web.Response(status=given_now["status"], body=given_now["body"], headers=headers)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        engines = {
            kind.name: runner.run(stack.enter_async_context(scripted(kind, respond, attempts=1)))[0] for kind in KINDS
        }

        def answered(kind: OnlineKind, status: int, body: bytes, after: str) -> Completion:
            given_now.update(status=status, body=body, after=after)
            asked = request(tools=(Tool.model_validate(TOOL),), stop=("e",), temperature_is_default=True)
            return runner.run(engines[kind.name].generate(asked))

        yield answered
        runner.run(stack.aclose())


def require_usable(completion: Completion) -> None:
    """Assert that a result can hold the completion."""
    json.dumps(completion.text).encode()
    completion.text.encode()
    assert completion.confidence is None or 0 <= completion.confidence <= 1
    for count in (completion.prompt_tokens, completion.completion_tokens, completion.cached_tokens):
        assert count is None or 0 <= count < 2**33
    for call in completion.tool_calls:
        assert ToolCall.model_validate(call.model_dump()) == call


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=drawn(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_response_of_a_service_is_an_answer_or_an_engine_s_error(
    ask: Ask, kind: OnlineKind, data: st.DataObject
) -> None:
    bodies = st.binary(max_size=60) | (NOISE | ERRORS | LIKE_ANSWERS | mutated(ANSWERS[kind.name])).map(_written)
    body = data.draw(bodies)
    status = data.draw(st.just(200) | st.sampled_from(STATUSES))
    after = data.draw(st.sampled_from(("", "0", "-1", "1e400", "Wed, 21 Oct 2015 07:28:00 GMT", "soon")))
    try:
        completion = ask(kind, status, body, after)
    except EngineError:
        return
    require_usable(completion)


def _written(answer: Any) -> bytes:
    return json.dumps(answer).encode()


MODELS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("data", "id", "parent", "max_model_len")), inner, max_size=4)
    ),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {"id": st.just(MODEL) | st.text(max_size=5)},
    optional={"parent": st.none() | st.just(MODEL), "max_model_len": st.none() | st.integers(-2, 2**70)},
)
LISTS = st.fixed_dictionaries({"data": st.lists(ENTRIES, max_size=4)})


@settings(max_examples=drawn(200))
@given(st.one_of((LISTS | MODELS).map(lambda body: json.dumps(body).encode()), st.binary(max_size=20)))
def test_any_list_of_models_gives_a_window_or_an_error_that_the_start_expects(body: bytes) -> None:
    try:
        window = ResponsesServer(ResponsesSettings(model=MODEL), CLOCK).window_in(body)
    except (ValidationError, LookupError):
        return
    assert window is None or window > 0
