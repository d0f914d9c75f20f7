"""Answers that a server streams over a real socket: whole, refused, broken off, and of another form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from tests.integration.online.scripted import EACH, RESPONSES, OnlineKind, response_answer, scripted
from tests.integration.openai_http.servers import Respond, Server, answers, engine_at, lists, never, problem, says
from tests.integration.test_engine_contract import request
from workers.engines.base import (
    Completion,
    EngineError,
    EngineFailed,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
)

LIMIT = 4096


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engines.openai_http.server.MAX_RESPONSE_BYTES", LIMIT)


def streaming(*events: Any, then: str = "end", pause: float = 0.0) -> Respond:
    """Send the events one by one, then end the stream, abort the connection, or send nothing more."""

    async def respond(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(asked)
        for event in events:
            data = event if isinstance(event, bytes) else b"data: %b\n\n" % json.dumps(event).encode()
            await response.write(data)
            await asyncio.sleep(pause)
        assert asked.transport is not None
        if then == "abort":
            asked.transport.abort()
        elif then == "hang":
            await asyncio.sleep(60)
        return response

    return respond


def said(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
DONE = b"data: [DONE]\n\n"
YES = streaming(said("y"), said("es"), said("", "stop"), USAGE, DONE, pause=0.01)


class Told(list[str]):
    """The texts that `on_delta` has told so far, after each piece."""

    def take(self, piece: str, offset: int) -> None:
        before = self[-1] if offset else ""
        assert len(before) == offset
        self.append(before + piece)

    def request(self, **asked: Any) -> GenerationRequest:
        made = request(**asked)
        made.on_delta = self.take
        return made


async def test_a_streamed_answer_grows_and_is_the_plain_one() -> None:
    server, told = Server(YES, says("yes")), Told()
    async with engine_at(server) as engine:
        streamed = await engine.generate(told.request())
        plain = await engine.generate(request())
    assert (streamed, told) == (plain, ["y", "yes"])
    asked, plainly = server.bodies
    assert asked == plainly | {"stream": True, "stream_options": {"include_usage": True}}


async def test_requests_for_texts_without_a_question_are_never_streamed() -> None:
    server, told = Server(answers(200, {})), Told()
    async with engine_at(server) as engine:
        with pytest.raises(EngineError):
            await engine.complete(told.request(prompt=None, embed=["one"], temperature=None))
    assert all("stream" not in body for body in server.bodies)


CUT = [
    streaming(said("ma"), said("ybe"), then="abort", pause=0.01),
    streaming(said("ma"), said("ybe"), pause=0.01),
    streaming(pause=0.01),
]


@pytest.mark.parametrize("cut", CUT, ids=["aborted", "ended", "empty"])
async def test_a_server_that_dies_in_mid_stream_is_asked_again_and_the_text_begins_again(cut: Respond) -> None:
    server, told = Server(cut, YES), Told()
    async with engine_at(server) as engine:
        assert (await engine.complete(told.request())).text == "yes"
    assert len(server.bodies) == 2
    assert told[-2:] == ["y", "yes"]


@pytest.mark.parametrize("cut", CUT, ids=["aborted", "ended", "empty"])
async def test_a_server_that_always_dies_in_mid_stream_is_away(cut: Respond) -> None:
    server = Server(cut)
    async with engine_at(server) as engine:
        with pytest.raises(EngineUnavailable, match="was not reached: ClientPayloadError") as away:
            await engine.complete(Told().request())
    assert not isinstance(away.value, EngineFailed)
    assert len(server.bodies) == 2


async def test_a_stream_that_stops_is_bounded_by_the_request_s_time() -> None:
    told = Told()
    async with engine_at(Server(streaming(said("y"), then="hang")), request_timeout_seconds=0.2) as engine:
        with pytest.raises(EngineFailed, match=r"did not answer within 0\.2 s") as failed:
            await engine.complete(told.request())
    assert (failed.value.took_too_long, told) == (True, ["y"])


async def test_a_stream_that_flows_is_a_sign_of_life_of_a_server_that_lists_no_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.engines.openai_http.engine.WATCH_SECONDS", 0.5)
    monkeypatch.setattr("workers.engines.openai_http.server.REACH_SECONDS", 0.1)
    flowing = streaming(*[said("y")] * 100, said("", "stop"), DONE, pause=0.03)
    async with engine_at(Server(flowing), Server(lists({"id": "m1"}), never), attempts=1) as engine:
        assert (await engine.complete(Told().request())).text == "y" * 100


async def test_an_aborted_stream_is_an_aborted_answer() -> None:
    async with engine_at(Server(streaming(said("y"), then="hang"))) as engine:
        asked = request()
        asked.on_delta = lambda piece, offset: asked.abort.ask()
        assert await engine.complete(asked) == Completion("", "abort", 0, 0)


def failing(**error: Any) -> Respond:
    return streaming(said("y"), {"error": {"message": "Oh", **error}}, DONE)


@pytest.mark.parametrize(
    ("respond", "error", "why"),
    [
        (streaming(b"data: {no json\n\n"), EngineFailed, "another form"),
        (streaming({"choices": 5}), EngineFailed, "another form"),
        (streaming(DONE), EngineFailed, "another form"),
        (streaming(said("y", "error"), DONE), EngineFailed, "failed while it generated"),
        (failing(code=400, param="top_p"), RequestRejected, "top_p: Oh"),
        (failing(code=500), EngineFailed, "the server answered 500"),
        (failing(code="server_error"), EngineFailed, "the server answered 500"),
        (failing(code=7), EngineFailed, "the server answered 500"),
        (failing(code=504), EngineFailed, "the server answered 504"),
        (failing(code=401), EngineUnavailable, "OPENAI__API_KEY"),
        (failing(type="overloaded_error"), EngineUnavailable, "the server answered 529"),
        (streaming({"error": "out of memory"}), EngineFailed, "the server answered 500"),
        (streaming(*[said("y" * 100)] * 42, said("", "stop")), RequestRejected, "larger than this engine reads"),
        (streaming(*[b": waiting\n"] * 4000, then="hang"), RequestRejected, "larger than this engine reads"),
        (streaming(b"data: " + b"y" * 2 * LIMIT, then="hang"), RequestRejected, "larger than this engine reads"),
    ],
    ids=range(15),
)
async def test_each_failure_in_a_stream_is_the_failure_of_a_plain_answer(
    respond: Respond, error: type[EngineError], why: str
) -> None:
    async with engine_at(Server(respond), attempts=1) as engine:
        with pytest.raises(error, match=why) as failed:
            await engine.complete(Told().request())
    assert type(failed.value) is error


async def test_the_envelopes_of_a_stream_do_not_count_as_its_answer() -> None:
    chunks = [{"id": "x" * 200, **said("y")}] * 100
    async with engine_at(Server(streaming(*chunks, said("", "stop"), DONE))) as engine:
        assert (await engine.complete(Told().request())).text == "y" * 100


@pytest.mark.parametrize(
    ("refusal", "stays"),
    [
        (answers(400, problem("Unknown parameter: stream_options")), {"stream"}),
        (answers(400, problem("Unknown parameter", "stream_options.include_usage")), {"stream"}),
        (answers(422, problem("stream_options: extra fields are not permitted")), {"stream"}),
        (answers(400, problem("Your organization must be verified to stream this model", "stream")), set[str]()),
    ],
    ids=range(4),
)
async def test_a_refused_member_of_a_stream_is_left_out_from_then_on(refusal: Respond, stays: set[str]) -> None:
    server, told = Server(refusal, YES if stays else says("yes")), Told()
    async with engine_at(server) as engine:
        texts = [(await engine.complete(told.request())).text for _ in range(2)]
    assert texts == ["yes", "yes"]
    sent = [{"stream", "stream_options"} & body.keys() for body in server.bodies]
    assert sent == [{"stream", "stream_options"}, stays, stays]
    assert told == (["y", "yes"] * 2 if stays else [])


async def test_a_server_that_ignores_the_wish_for_a_stream_gives_its_plain_answer() -> None:
    told = Told()
    async with engine_at(Server(says("yes"))) as engine:
        assert (await engine.complete(told.request())).text == "yes"
    assert told == []


MESSAGE = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "y"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "es"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
    {"type": "message_stop"},
]
CONTENTS = [
    {"candidates": [{"content": {"parts": [{"text": "y"}]}}]},
    {"candidates": [{"content": {"parts": [{"text": "es"}]}, "finishReason": "STOP"}], "usageMetadata": {}},
]
RESPONSE = [
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message"}},
    {"type": "response.output_text.delta", "output_index": 0, "delta": "y"},
    {"type": "response.output_text.delta", "output_index": 0, "delta": "es"},
    {"type": "response.completed", "response": response_answer("yes")},
]
ONLINE = {"anthropic": MESSAGE, "gemini": CONTENTS, "responses": RESPONSE}


@EACH
async def test_an_online_service_streams_too_and_is_asked_again_if_its_stream_breaks_off(kind: OnlineKind) -> None:
    events, told = ONLINE[kind.name], Told()
    broken = streaming(*events[:-1], then="abort", pause=0.01)
    async with scripted(kind, broken, streaming(*events, pause=0.01)) as (engine, server):
        completion = await engine.complete(told.request())
    assert (completion.text, completion.finish_reason, told[-2:]) == ("yes", "stop", ["y", "yes"])
    assert len(server.bodies) == 2
    assert [body.get("stream") for body in server.bodies] == [None if kind.name == "gemini" else True] * 2


async def test_a_response_that_fails_in_its_stream_is_a_failure() -> None:
    event = {"type": "error", "code": "server_error", "message": "Oh", "param": None}
    async with scripted(RESPONSES, streaming(event)) as (engine, _):
        with pytest.raises(EngineFailed, match="failed while it generated"):
            await engine.complete(Told().request())
