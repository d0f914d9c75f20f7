"""Answers of each API as streams: cut anywhere, they are the plain answers, and their texts grow towards these."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from telemetry.clock import SystemClock
from tests.any_json import NOISE
from tests.asking import request_of
from tests.drawn import drawn
from tests.unit.test_tool_calls import TOOL
from workers.engines.base import Completion, EngineError
from workers.engines.online.anthropic import AnthropicServer, AnthropicSettings
from workers.engines.online.gemini import GeminiServer, GeminiSettings
from workers.engines.online.responses import ResponsesServer, ResponsesSettings
from workers.engines.openai_http.dialect import OpenAIServer
from workers.engines.openai_http.server import EventCutter, ModelServer
from workers.engines.openai_http.settings import OpenAISettings

CLOCK = SystemClock()
SERVERS: dict[str, ModelServer] = {
    "openai": OpenAIServer(OpenAISettings(model="m"), CLOCK),
    "deepseek": OpenAIServer(OpenAISettings(model="m", family="deepseek-r1"), CLOCK),
    "anthropic": AnthropicServer(AnthropicSettings(model="m"), CLOCK),
    "gemini": GeminiServer(GeminiSettings(model="m"), CLOCK),
    "responses": ResponsesServer(ResponsesSettings(model="m"), CLOCK),
}
ASKED = request_of(prompt="a", tools=[TOOL], n=3, temperature=0.5, top_logprobs=2, max_tokens=50)

# -- plain answers -----------------------------------------------------------------------------------------------------


def of(optional: dict[str, st.SearchStrategy[Any]] | None = None, **members: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these members, each drawn or one value."""
    each = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in members.items()}
    return st.fixed_dictionaries(each, optional=optional or {})


def none_or(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def few(values: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=least, max_size=4)


SPECIAL = ["", "\r\n\r\ndata: [DONE]", "Since.</think>Yes.", "<think>a</think> b\u2028", "é🌉"]
TEXTS = st.text(max_size=12) | st.sampled_from(SPECIAL)
NAMES = st.sampled_from(["clock", "map"])
OBJECTS = st.dictionaries(st.text(max_size=3), st.integers() | TEXTS, max_size=2)
ARGUMENTS = OBJECTS.map(json.dumps)
COUNT = st.integers(0, 9)
LOGPROB = st.floats(-9, 0)

TOKENS = few(of(token=TEXTS, logprob=LOGPROB, top_logprobs=few(of(token=TEXTS, logprob=LOGPROB))))
CALLS = few(of(id=none_or(st.just("")), function=of(name=NAMES, arguments=ARGUMENTS)))
SAID = of(content=none_or(TEXTS), refusal=none_or(TEXTS), reasoning=none_or(TEXTS), tool_calls=none_or(CALLS))
ENDS = st.sampled_from(["stop", "length", "tool_calls", "content_filter", "refusal", "error", "new"])
CHOICES = of(message=SAID, finish_reason=ENDS, logprobs=none_or(of(content=none_or(TOKENS))))
CHATS = of(choices=few(CHOICES, 1), usage=none_or(of(prompt_tokens=COUNT, completion_tokens=COUNT)))

MESSAGES = of(
    type="message",
    content=few(
        of(type="text", text=TEXTS)
        | of(type="thinking", thinking=TEXTS)
        | of(type="tool_use", id=NAMES, name=NAMES, input=OBJECTS)
        | of(type="redacted_thinking")
    ),
    stop_reason=st.sampled_from(["end_turn", "max_tokens", "tool_use", "refusal"]),
    stop_details=none_or(of(explanation=TEXTS)),
    usage=of(input_tokens=COUNT, cache_read_input_tokens=COUNT, output_tokens=COUNT),
)

PARTS = few(of(text=TEXTS, optional={"thought": st.booleans()}) | of(functionCall=of(name=NAMES, args=OBJECTS)))
LIKELY = of(chosenCandidates=few(of(token=TEXTS, logProbability=LOGPROB)))
CANDIDATES = of(
    content=of(parts=PARTS),
    finishReason=st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY"]),
    optional={"avgLogprobs": LOGPROB, "logprobsResult": LIKELY},
)

PHASES = st.sampled_from([None, "commentary", "final_answer"])
ITEMS = (
    of(type="message", phase=PHASES, content=few(of(type="output_text", text=TEXTS)))
    | of(type="reasoning", summary=few(of(type="summary_text", text=TEXTS)))
    | of(type="function_call", name=NAMES, arguments=ARGUMENTS)
)

ANSWERS: dict[str, st.SearchStrategy[Any]] = {
    "openai": CHATS,
    "deepseek": CHATS,
    "anthropic": MESSAGES,
    "gemini": of(candidates=few(CANDIDATES, 1), usageMetadata=of(promptTokenCount=COUNT, candidatesTokenCount=COUNT)),
    "responses": of(
        status=st.sampled_from(["completed", "incomplete", "failed"]),
        output=few(ITEMS),
        error=none_or(of(code=st.sampled_from(["server_error", "cyber_policy", "rate_limit_exceeded"]))),
        usage=none_or(of(input_tokens=COUNT, output_tokens=COUNT)),
    ),
}

# -- the same answers as events ----------------------------------------------------------------------------------------


Whole = TypeVar("Whole", str, bytes, list[Any])


def cut(whole: Whole, chance: random.Random) -> list[Whole]:
    """Cut a text or a list at random places; the pieces may be empty."""
    ends: list[int] = sorted(chance.randint(0, len(whole)) for _ in range(chance.randint(0, 4)))
    return [whole[start:end] for start, end in zip([0, *ends], [*ends, len(whole)], strict=True)]


def mixed(groups: list[list[Any]], chance: random.Random) -> Iterator[Any]:
    """Yield the items of the groups in a random order that keeps the order of each group."""
    left = [iter(group) for group in groups]
    while left:
        group = chance.choice(left)
        try:
            yield next(group)
        except StopIteration:
            left.remove(group)


def chat_events(answer: Any, chance: random.Random) -> Iterator[Any]:
    def pieces(index: int, choice: Any) -> Iterator[Any]:
        message = choice["message"]
        yield {"delta": {"role": "assistant", "content": ""}}
        for name in ("reasoning", "content", "refusal"):
            yield from ({"delta": {name: piece}} for piece in cut(message[name] or "", chance))
        for at, call in enumerate(message["tool_calls"] or ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            yield {"delta": {"tool_calls": [{**call, "index": at, "function": {"name": name, "arguments": ""}}]}}
            for piece in cut(arguments, chance):
                yield {"delta": {"tool_calls": [{"index": at, "function": {"arguments": piece}}]}}
        if choice["logprobs"] is not None:
            content = choice["logprobs"]["content"]
            for tokens in cut(content, chance) if content is not None else [None]:
                yield {"delta": {}, "logprobs": {"content": tokens}}
        yield {"delta": {}, "finish_reason": choice["finish_reason"]}

    choices = [[{"index": at, **each} for each in pieces(at, choice)] for at, choice in enumerate(answer["choices"])]
    for piece in mixed(choices, chance):
        yield {"choices": [piece], "usage": None}
    yield {"choices": [], "usage": answer["usage"]}


def message_events(answer: Any, chance: random.Random) -> Iterator[Any]:
    deltas = {
        "text": ("text_delta", "text"),
        "thinking": ("thinking_delta", "thinking"),
        "input": ("input_json_delta", "partial_json"),
    }
    yield {"type": "message_start", "message": {"usage": {**answer["usage"], "output_tokens": 1}}}
    for index, block in enumerate(answer["content"]):
        grows = next((name for name in deltas if name in block), None)
        empty = {} if grows == "input" else ""
        yield {
            "type": "content_block_start",
            "index": index,
            "content_block": {**block, **({grows: empty} if grows else {})},
        }
        whole = block[grows] if grows else ""
        for piece in cut(json.dumps(whole, ensure_ascii=False) if grows == "input" and whole else whole or "", chance):
            kind, member = deltas[grows or "text"]
            yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, member: piece}}
        yield {"type": "ping"}
    end = {name: answer[name] for name in ("stop_reason", "stop_details")}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": answer["usage"]["output_tokens"]}}
    yield {"type": "message_stop"}


def gemini_events(answer: Any, chance: random.Random) -> Iterator[Any]:
    def pieces(index: int, candidate: Any) -> Iterator[Any]:
        for part in candidate["content"]["parts"]:
            for text in cut(part["text"], chance) if "text" in part else [None]:
                said = part if text is None else {**part, "text": text}
                yield {"index": index, "content": {"parts": [said]}}
        if "logprobsResult" in candidate:
            for tokens in cut(candidate["logprobsResult"]["chosenCandidates"], chance):
                yield {"index": index, "logprobsResult": {"chosenCandidates": tokens}}
        yield {
            "index": index,
            **{name: candidate[name] for name in ("finishReason", "avgLogprobs") if name in candidate},
        }

    candidates = [[*pieces(at, each)] for at, each in enumerate(answer["candidates"])]
    for piece in mixed(candidates, chance):
        yield {"candidates": [piece], "usageMetadata": {"promptTokenCount": 1}}
    yield {"usageMetadata": answer["usageMetadata"]}


def response_events(answer: Any, chance: random.Random) -> Iterator[Any]:
    yield {"type": "response.created", "response": {"status": "in_progress", "output": [], "error": None}}
    for at, item in enumerate(answer["output"]):
        empty = {**item, "content": []} if item["type"] == "message" else item
        yield {"type": "response.output_item.added", "output_index": at, "item": empty}
        for part in item["content"] if item["type"] == "message" else ():
            for piece in cut(part["text"], chance):
                yield {"type": "response.output_text.delta", "output_index": at, "delta": piece}
    yield {"type": f"response.{answer['status']}", "response": answer}


EVENTS: dict[str, Callable[[Any, random.Random], Iterator[Any]]] = {
    "openai": chat_events,
    "deepseek": chat_events,
    "anthropic": message_events,
    "gemini": gemini_events,
    "responses": response_events,
}


def written(events: Iterator[Any], chance: random.Random, *, is_openai: bool) -> bytes:
    """Return the events as a body, with one of the line ends, and with comments, fields and data of several lines."""
    body, end = "", chance.choice(["\n", "\r\n", "\r"])
    for event in events:
        text = json.dumps(event, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, None, 1]))
        body += chance.choice(["", f": waiting{end}", f": waiting{end}{end}", f"event: new{end}id: 7{end}"])
        body += "".join(f"data:{chance.choice(['', ' '])}{line}{end}" for line in text.split("\n")) + end
    return (body + (f"data: [DONE]{end}{end}" if is_openai else "")).encode()


# -- tests -------------------------------------------------------------------------------------------------------------


def outcome(server: ModelServer, body: bytes) -> Completion | tuple[str, str]:
    try:
        completion = server.outcome(ASKED, "path", 200, {}, body)
    except EngineError as error:
        return type(error).__name__, str(error)
    assert isinstance(completion, Completion)
    return completion


def gathered(server: ModelServer, pieces: list[bytes]) -> tuple[Completion | tuple[str, str], list[str], bool]:
    """Return the outcome of a stream, the texts after each piece, and whether the stream was whole."""
    answer, cutter, texts = server.answer(ASKED), EventCutter(), [""]
    try:
        for piece in filter(None, pieces):
            for event in cutter.events(piece):
                server.read(event, answer)
            texts.append(texts[-1] + answer.grown())
        return answer.completion(), texts, answer.is_whole
    except EngineError as error:
        return (type(error).__name__, str(error)), texts, True


@pytest.mark.parametrize("kind", ANSWERS)
@settings(max_examples=drawn(60), deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_a_stream_that_is_cut_anywhere_is_the_plain_answer(kind: str, data: st.DataObject, seed: int) -> None:
    server, chance = SERVERS[kind], random.Random(seed)
    answer = data.draw(ANSWERS[kind])
    plain = answer | {
        name: [{"index": at, **each} for at, each in enumerate(answer[name])]
        for name in ("choices", "candidates")
        if name in answer
    }
    body = written(EVENTS[kind](answer, chance), chance, is_openai=kind in ("openai", "deepseek"))
    pieces = cut(body, chance) if chance.random() < 0.8 else [bytes([byte]) for byte in body]
    expected = outcome(server, to_json(plain))
    got, texts, is_whole = gathered(server, pieces)
    assert got == expected
    assert is_whole
    if isinstance(got, Completion) and got.refusal is None:
        assert all(got.text.startswith(text) for text in texts), texts
        if kind in ("openai", "anthropic", "gemini"):
            assert texts[-1] == got.text


STREAMS = st.lists(
    st.sampled_from(["data:", "data: ", "\n", "\r", "\n\n", ":", "[DONE]", '{"choices":[', "]}"])
    | NOISE.map(json.dumps)
)


@pytest.mark.parametrize("kind", SERVERS)
@settings(max_examples=drawn(60), deadline=None)
@given(
    st.lists(
        NOISE | st.dictionaries(st.sampled_from(["choices", "delta", "index", "type", "candidates", "usage"]), NOISE)
    ),
    STREAMS,
)
@example([{"choices": [{"delta": {"tool_calls": [{"index": -1}] * 9}}]}], [])
@example([{"type": "content_block_delta", "index": 3, "delta": {"text": "a"}}], [])
def test_any_stream_is_an_answer_or_has_another_form(kind: str, events: list[Any], noise: list[str]) -> None:
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "".join(noise)
    try:
        gathered(SERVERS[kind], [body.encode("utf-8", "replace")])
    except ValueError:
        return


def test_the_bytes_of_an_event_without_an_end_are_counted() -> None:
    cutter = EventCutter()
    assert [*cutter.events(b"data: 1\n\ndata: 2")] == [b"1"]
    assert [*cutter.events(b"3\ndata: 4\n" + b":" * 100)] == []
    assert cutter.pending == 110
    assert [*cutter.events(b"\n\n")] == [b"23\n4"]
    assert cutter.pending == 0
