"""The engines of the registry and their settings, and the echo engine."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from cli.fleet import worker as worker_command
from schemas.job import Message, ResponseFormat
from scripts.publish import chart_reference
from scripts.publish import reference as publish
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.asking import request_of
from tests.process_state import state_kept
from workers.engines import ENGINES
from workers.engines.base import (
    Completion,
    EngineFailed,
    EngineLoad,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
)
from workers.engines.body import plain_text, user_message
from workers.engines.echo import EchoEngine, EchoSettings
from workers.engines.registry import create, engine_settings
from workers.engines.vllm.settings import VllmSettings

# -- engine registry -------------------------------------------------------------------------------------------------
FAKE = '''
from pydantic import Field

from workers.engines.echo import EchoEngine, EchoSettings
from workers.engines.settings import EngineSection


class Settings(EngineSection):
    """An engine of a test."""

    speed: int = Field(default=3, ge=1)
    """How fast the answers come."""


def create(settings, metrics, clock):
    engine = EchoEngine(EchoSettings(model=settings.model), metrics)
    engine.name = "fake"
    return engine
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An engine called `fake`, added by one module and one line."""
    (tmp_path / "fake_engine_of_a_test.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(ENGINES, "fake", "fake_engine_of_a_test")
    importlib.reload(worker_command)
    yield
    monkeypatch.undo()
    importlib.reload(worker_command)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_calls_itself_by_its_registered_name(name: str) -> None:
    assert create(name, engine_settings()(), Metrics(), SystemClock(), model="a-model").name == name


@pytest.mark.usefixtures("fake")
def test_a_worker_makes_a_new_engine_by_its_name_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_ENGINE__FAKE__MODEL", "big")
    engine = create("fake", engine_settings()(), Metrics(), SystemClock())
    assert (engine.name, engine.models) == ("fake", ("big",))


@pytest.mark.usefixtures("fake")
def test_the_command_offers_a_new_engine_and_asks_for_its_model() -> None:
    program = typer.Typer()
    program.command()(worker_command.worker)
    assert "fake" in CliRunner().invoke(program, ["--help"], env={"COLUMNS": "200"}).output
    with state_kept():
        started = CliRunner().invoke(program, ["--engine", "fake"])
    assert started.exit_code == 2
    assert "--engine fake needs a model" in started.output
    assert "POSTBACK_ENGINE__FAKE__MODEL" in started.output


@pytest.mark.usefixtures("fake")
def test_the_settings_page_the_chart_and_its_documentation_have_a_new_engine() -> None:
    texts = {path.name: text for path, text in publish.documents().items()}
    assert "| `POSTBACK_ENGINE__FAKE__SPEED` | `3` | from 1 | How fast the answers come. |" in texts["settings.md"]
    assert "POSTBACK_ENGINE__FAKE__SPEED\n" in texts["variables.txt"]
    schema = json.loads(texts["values.schema.json"])
    assert schema["properties"]["worker"]["properties"]["engine"]["enum"] == [*ENGINES]
    *_, before, last = ENGINES
    assert f"{before} or {last}.\n  engine: echo\n" in texts["values.yaml"]
    sections = engine_settings()()
    alone = " ".join(f'"{name}"' for name in ENGINES if not sections.section(name).needs_model)
    assert f"has .engine (list {alone})" in texts["_roles.tpl"], "the chart asks for the model of any other engine"


def test_a_file_without_a_place_for_the_names_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "values.yaml").write_text("worker: {}\n")
    place = (tmp_path / "values.yaml", "engine: .*", lambda names, alone: "")
    monkeypatch.setattr(chart_reference, "ENGINE_PLACES", (place,))
    with pytest.raises(chart_reference.PlaceGone, match=r"values\.yaml has 0 lines"):
        chart_reference.documents()


# -- engine models ---------------------------------------------------------------------------------------------------
def test_a_model_has_the_settings_name_unless_the_command_line_names_another(tmp_path: Path) -> None:
    """A model's folder is called by its name, and may be called by its path. Echo has a model only if one is named."""
    (tmp_path / "small").mkdir()
    path = f"{tmp_path}/small/"
    named = {"vllm": {"model": "acme/small"}, "openai": {"model": "acme/small"}}
    for kind, values, model, models in (
        *((kind, named, None, ("acme/small",)) for kind in named),
        *((kind, named, "big", ("big",)) for kind in named),
        ("echo", {}, None, ()),
        ("echo", {}, "big", ("big",)),
        ("vllm", {}, path, ("small", path)),
    ):
        settings = engine_settings().model_validate(values)
        assert create(kind, settings, Metrics(), SystemClock(), model=model).models == models


def request(prompt: str | None, request_id: str = "r1", **fields: object) -> GenerationRequest:
    return request_of(request_id, prompt=prompt, **fields)


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(EchoSettings(), Metrics())


def said(*turns: tuple[str, str]) -> dict[str, object]:
    return {
        "prompt": None,
        "messages": tuple(Message.model_validate({"role": role, "content": text}) for role, text in turns),
    }


@pytest.mark.parametrize(
    ("asked", "completion"),
    [
        # The answer is the question, tokens are words, and the answer is cut to `max_tokens`.
        ({"prompt": "who wrote  the\nbook?"}, Completion("who wrote the book?", "stop", 4, 4, 1.0)),
        ({"prompt": "a b c d", "max_tokens": 2}, Completion("a b", "length", 4, 2, 1.0)),
        # Of messages the user's last one is echoed, or else the last one.
        (said(("user", "a"), ("user", "b c"), ("assistant", "d")), Completion("b c", "stop", 2, 2, 1.0)),
        (said(("system", "be brief")), Completion("be brief", "stop", 2, 2, 1.0)),
        # A prompt that is too long keeps its end, and one that may not be cut fits as a whole.
        ({"prompt": "a b c d e f", "max_tokens": 20, "context_window": 23}, Completion("d e f", "stop", 3, 3, 1.0)),
        (
            {"prompt": "a b c", "max_tokens": 20, "context_window": 23, "is_whole": True},
            Completion("a b c", "stop", 3, 3, 1.0),
        ),
        *(
            # A short sleep ends with the answer, and text that only looks like a directive is text.
            ({"prompt": text}, Completion(text, "stop", len(text.split()), len(text.split()), 1.0))
            for text in (
                "wait [[sleep 0.01]]",
                "[[sleep]]",
                "[[sleep -1]]",
                "[[sleep 1e9]]",
                "[[ sleep 600 ]]",
                "[[x]]",
            )
        ),
    ],
)
async def test_the_echo_engine_answers_with_the_question(
    engine: EchoEngine, asked: dict[str, Any], completion: Completion
) -> None:
    assert await engine.generate(request(**asked)) == completion


async def test_a_prompt_that_is_too_long_and_may_not_be_cut_is_not_answered(engine: EchoEngine) -> None:
    with pytest.raises(PromptTooLong) as long:
        await engine.generate(request("a b c d e f", max_tokens=20, context_window=23, is_whole=True))
    assert long.value.fits == 0.5


async def test_a_json_object_is_json(engine: EchoEngine) -> None:
    completion = await engine.generate(request('say "hello"', response_format=ResponseFormat(type="json_object")))
    assert json.loads(completion.text) == {"text": 'say "hello"'}


async def test_a_schema_is_rejected_since_echo_cannot_follow_one(engine: EchoEngine) -> None:
    wanted = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}})
    with pytest.raises(RequestRejected) as rejected:
        await engine.generate(request("hello", response_format=wanted))
    assert rejected.value.field == "response_format"


async def test_a_sleeping_request_is_aborted_at_once(engine: EchoEngine) -> None:
    asked = request("wait [[sleep 600]]")
    generating = asyncio.create_task(engine.generate(asked))
    await asyncio.sleep(0)
    assert engine.load() == EngineLoad(running=1, waiting=0, free=1023)
    asked.abort.ask()
    assert await generating == Completion("", "abort", 3, 0)
    assert engine.load() == EngineLoad(running=0, waiting=0, free=1024)


async def test_requests_beyond_the_places_wait_and_start_in_order_once_a_place_is_free() -> None:
    engine = EchoEngine(EchoSettings(latency_seconds=600, max_concurrency=2), Metrics())
    asked = [request("hello", request_id=f"r{n}") for n in range(5)]
    tasks = [asyncio.create_task(engine.complete(each)) for each in asked]
    await asyncio.sleep(0)
    assert engine.load() == EngineLoad(running=2, waiting=3, free=0)
    asked[2].abort.ask()  # it is still waiting in the queue
    assert (await tasks[2]).finish_reason == "abort"
    assert engine.load() == EngineLoad(running=2, waiting=2, free=0)
    for number in (0, 1, 3):
        asked[number].abort.ask()
        await tasks[number]
    assert engine.load() == EngineLoad(running=1, waiting=0, free=1)
    await engine.close()
    await tasks[4]
    assert engine.load() == EngineLoad(running=0, waiting=0, free=2)


async def test_the_latency_is_that_of_every_answer() -> None:
    engine = EchoEngine(EchoSettings(latency_seconds=600), Metrics())
    generating = asyncio.create_task(engine.complete(request("hello")))
    await asyncio.sleep(0)
    assert engine.load().running == 1
    await engine.close()
    assert (await generating).finish_reason == "abort"


class Failing(EchoEngine):
    """An engine that answers each question with its text, or fails at it."""

    def __init__(self) -> None:
        super().__init__(EchoSettings(), Metrics())
        self.fails = {"poison": EngineFailed("status 500", wasted_tokens=3)}
        self.asked: list[str | None] = []
        self.answered: asyncio.Event | None = None

    async def complete(self, request: GenerationRequest) -> Completion:
        self.asked.append(request.question)
        if request.question == "slow" and self.answered is not None:
            await self.answered.wait()
        if request.question in self.fails:
            raise self.fails[request.question]
        if request.question == "aborted":
            return Completion("", "abort", 1, 0)
        return await super().complete(request)


async def error_of(engine: Failing, prompt: str, request_id: str = "r1") -> EngineUnavailable:
    with pytest.raises(EngineUnavailable) as failed:
        await engine.generate(request(prompt, request_id))
    return failed.value


async def test_a_failure_is_the_request_s_fault_only_while_the_engine_answers_a_small_request() -> None:
    engine = Failing()
    assert isinstance(await error_of(engine, "poison"), EngineFailed)
    assert isinstance(await error_of(engine, "aborted"), EngineFailed)
    engine.fails["Hello."] = EngineFailed("status 500")
    error = await error_of(engine, "poison")
    assert (type(error), str(error), error.wasted_tokens) == (EngineUnavailable, "status 500", 3)
    assert engine.asked == ["poison", "Hello.", "aborted", "Hello.", "poison", "Hello."]


async def test_a_timeout_is_the_request_s_fault_only_if_a_later_request_was_answered_meanwhile() -> None:
    """A slow server answers a small request, too, only later than the requests before it."""
    engine = Failing()
    engine.fails["slow"] = EngineFailed("too slow", took_too_long=True)
    await engine.generate(request("early"))
    assert type(await error_of(engine, "slow")) is EngineUnavailable
    engine.answered = asyncio.Event()
    failing = asyncio.create_task(error_of(engine, "slow", "r2"))
    await asyncio.sleep(0)
    await engine.generate(request("late", "r3"))
    engine.answered.set()
    assert isinstance(await failing, EngineFailed)
    assert "Hello." not in engine.asked


def test_a_conversation_names_its_speakers_where_a_model_has_no_chat_template_and_one_message_stands_alone() -> None:
    assert plain_text([user_message("Sources …\nAnswer:")]) == "Sources …\nAnswer:"
    roles = {"developer": "Be brief.", "user": "Who?", "assistant": "She.", "tool": "9:41"}
    said = plain_text([{"role": role, "content": text} for role, text in roles.items()])
    assert said == "System: Be brief.\n\nUser: Who?\n\nAssistant: She.\n\nTool: 9:41\n\nAssistant:"


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
