from __future__ import annotations

import asyncio
import json

import pytest
from pydantic import ValidationError

from schemas.job import Message, ResponseFormat
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.engines.base import Completion, EngineLoad, GenerationRequest, PromptTooLong, RequestRejected
from workers.engines.echo import EchoEngine, EchoSettings
from workers.engines.prompts import plain_text
from workers.engines.registry import create, engine_settings
from workers.engines.vllm.settings import VllmSettings


def request(prompt: str | None, request_id: str = "r1", **fields: object) -> GenerationRequest:
    values: dict[str, object] = {"messages": None, "max_tokens": 8, "temperature": 0.0, **fields}
    return GenerationRequest(request_id=request_id, prompt=prompt, **values)  # type: ignore[arg-type] # by name


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(EchoSettings(), Metrics())


async def test_the_answer_is_the_question_and_tokens_are_words(engine: EchoEngine) -> None:
    assert await engine.generate(request("who wrote  the\nbook?")) == Completion(
        "who wrote the book?", "stop", 4, 4, 1.0
    )


async def test_the_answer_is_cut_to_max_tokens(engine: EchoEngine) -> None:
    assert await engine.generate(request("a b c d", max_tokens=2)) == Completion("a b", "length", 4, 2, 1.0)


async def test_of_messages_the_last_of_the_user_is_echoed(engine: EchoEngine) -> None:
    messages = (
        Message(role="user", content="first"),
        Message(role="user", content="second"),
        Message(role="assistant", content="an answer"),
    )
    assert (await engine.generate(request(None, messages=messages))).text == "second"


async def test_where_no_user_spoke_the_last_message_is_echoed(engine: EchoEngine) -> None:
    alone = (Message(role="system", content="be brief"),)
    assert (await engine.generate(request(None, messages=alone))).text == "be brief"


async def test_a_prompt_that_is_too_long_keeps_its_end(engine: EchoEngine) -> None:
    completion = await engine.generate(request("a b c d e f", max_tokens=20, context_window=23))
    assert (completion.text, completion.prompt_tokens) == ("d e f", 3)


async def test_a_prompt_that_is_too_long_and_may_not_be_cut_is_not_answered(engine: EchoEngine) -> None:
    with pytest.raises(PromptTooLong) as long:
        await engine.generate(request("a b c d e f", max_tokens=20, context_window=23, is_whole=True))
    assert long.value.fits == 0.5
    whole = await engine.generate(request("a b c", max_tokens=20, context_window=23, is_whole=True))
    assert whole.text == "a b c"


async def test_a_json_object_is_json(engine: EchoEngine) -> None:
    completion = await engine.generate(request('say "hello"', response_format=ResponseFormat(type="json_object")))
    assert json.loads(completion.text) == {"text": 'say "hello"'}


async def test_a_schema_is_rejected_since_echo_cannot_follow_one(engine: EchoEngine) -> None:
    wanted = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}})
    with pytest.raises(RequestRejected) as rejected:
        await engine.generate(request("hello", response_format=wanted))
    assert rejected.value.field == "response_format"


async def test_a_sleeping_request_is_aborted_at_once(engine: EchoEngine) -> None:
    generating = asyncio.create_task(engine.generate(request("wait [[sleep 600]]")))
    await asyncio.sleep(0)
    assert engine.load() == EngineLoad(running=1, waiting=0, free=1023)
    await engine.abort("r1")
    assert await generating == Completion("", "abort", 3, 0)
    assert engine.load() == EngineLoad(running=0, waiting=0, free=1024)


async def test_requests_beyond_the_places_wait_and_start_in_order_once_a_place_is_free() -> None:
    engine = EchoEngine(EchoSettings(latency_seconds=600, places=2), Metrics())
    tasks = {f"r{n}": asyncio.create_task(engine.generate(request("hello", request_id=f"r{n}"))) for n in range(5)}
    await asyncio.sleep(0)
    assert engine.load() == EngineLoad(running=2, waiting=3, free=0)
    await engine.abort("r2")  # r2 is still waiting in the queue
    assert (await tasks["r2"]).finish_reason == "abort"
    assert engine.load() == EngineLoad(running=2, waiting=2, free=0)
    for name in ("r0", "r1", "r3"):
        await engine.abort(name)
        await tasks[name]
    assert engine.load() == EngineLoad(running=1, waiting=0, free=1)
    await engine.close()
    await tasks["r4"]
    assert engine.load() == EngineLoad(running=0, waiting=0, free=2)


async def test_a_short_sleep_ends_with_the_answer(engine: EchoEngine) -> None:
    assert (await engine.generate(request("wait [[sleep 0.01]]"))).finish_reason == "stop"


async def test_the_latency_is_that_of_every_answer() -> None:
    engine = EchoEngine(EchoSettings(latency_seconds=600), Metrics())
    generating = asyncio.create_task(engine.generate(request("hello")))
    await asyncio.sleep(0)
    assert engine.load().running == 1
    await engine.close()
    assert (await generating).finish_reason == "abort"


@pytest.mark.parametrize("prompt", ["[[sleep]]", "[[sleep -1]]", "[[sleep 1e9]]", "[[ sleep 600 ]]", "[[unknown]]"])
async def test_text_that_only_looks_like_a_directive_is_text(engine: EchoEngine, prompt: str) -> None:
    assert (await engine.generate(request(prompt))).text == prompt


def test_one_message_stands_as_it_is_where_a_model_has_no_chat_template() -> None:
    assert plain_text([Message(role="user", content="Sources …\nAnswer:")]) == "Sources …\nAnswer:"


def test_a_conversation_names_its_speakers_where_a_model_has_no_chat_template() -> None:
    messages = [
        Message(role="developer", content="Be brief."),
        Message(role="user", content="Who?"),
        Message(role="assistant", content="She."),
        Message(role="user", content="Why?"),
    ]
    assert plain_text(messages) == "System: Be brief.\n\nUser: Who?\n\nAssistant: She.\n\nUser: Why?\n\nAssistant:"


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_ENGINE__ECHO__LATENCY_SECONDS", "0.5")
    monkeypatch.setenv("POSTBACK_ENGINE__VLLM__STOP", '["\\n"]')
    monkeypatch.setenv("POSTBACK_ENGINE__VLLM__EXTRA", '{"tensor_parallel_size": 2}')
    monkeypatch.setenv("POSTBACK_ENGINE__OPENAI__API_KEY", "sk-private")
    settings = engine_settings()()
    assert settings.section("echo") == EchoSettings(latency_seconds=0.5)
    assert settings.section("vllm") == VllmSettings(stop=("\n",), extra={"tensor_parallel_size": 2})
    assert "sk-private" not in repr(settings)


def test_a_refused_setting_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_ENGINE__OPENAI__BASE_URL", "user:sk-private@host")
    with pytest.raises(ValidationError) as refused:
        engine_settings()()
    assert "sk-private" not in str(refused.value)


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_an_engine_without_a_model_says_so(kind: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        create(kind, engine_settings()(), Metrics(), SystemClock())


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError):
        VllmSettings.model_validate({"modle": "x"})
