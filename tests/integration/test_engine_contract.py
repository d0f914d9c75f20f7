"""The contract of every engine. The same tests run over echo, over HTTP and over vLLM itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from schemas.job import Message
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.asking import request_of
from tests.integration import openai_server
from workers.engines.base import Abort, Engine, GenerationRequest, RequestRejected
from workers.engines.registry import create, engine_settings
from workers.engines.vllm import VllmEngine

QUESTION = "Which river meets the sea near the old house, and who wrote the book about it?"
IDLE = (0, 0)


def request(request_id: str = "r1", prompt: str | None = QUESTION, **fields: object) -> GenerationRequest:
    return request_of(request_id, prompt=prompt, **fields)


async def busy(engine: Engine, count: int) -> None:
    """Wait until the engine has this many requests."""
    async with asyncio.timeout(30):
        while (load := engine.load()).running + load.waiting != count:
            await asyncio.sleep(0.01)


class EngineContract:
    """The contract's tests. A subclass provides an engine, and a request that takes long on this engine."""

    slow = request("slow", f"{QUESTION} [[sleep 60]]", max_tokens=400)

    async def test_a_prompt_is_answered_and_its_tokens_are_counted(self, engine: Engine) -> None:
        completion = await engine.generate(request())
        assert completion.text
        assert completion.prompt_tokens > 0
        assert 0 < completion.completion_tokens <= 8
        assert completion.finish_reason in ("stop", "length")

    async def test_an_answer_has_at_most_max_tokens(self, engine: Engine) -> None:
        completion = await engine.generate(request(max_tokens=3))
        assert (completion.completion_tokens, completion.finish_reason) == (3, "length")

    async def test_each_of_several_answers_has_its_log_probabilities(self, engine: Engine) -> None:
        completion = await engine.generate(request(temperature=1.0, n=3, top_logprobs=2))
        answers = (completion, *completion.further)
        tokens = [len(each.logprobs or ()) for each in answers]
        assert (len(answers), min(tokens) > 0) == (3, True)
        assert completion.completion_tokens == sum(tokens)
        for each in (token for answer in answers for token in answer.logprobs or ()):
            assert each.logprob <= 0
            assert 1 <= len(each.top_logprobs or ()) <= 2
        one = await engine.generate(request(top_logprobs=0))
        assert [each.top_logprobs for each in one.logprobs or ()] == [None] * one.completion_tokens
        assert (await engine.generate(request())).logprobs is None

    async def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(self, engine: Engine) -> None:
        whole = await engine.generate(request())
        first, second = whole.text[3:6], whole.text[9:12]
        stopped = await engine.generate(request(stop=(second, first)))
        assert (stopped.text, stopped.finish_reason) == (whole.text.split(first)[0].split(second)[0], "stop")

    async def test_where_only_the_likeliest_token_may_be_drawn_the_seed_changes_nothing(self, engine: Engine) -> None:
        drawn = [request(f"r{seed}", temperature=1.5, top_p=1e-6, seed=seed) for seed in range(4)]
        completions = [await engine.generate(one) for one in drawn]
        assert len({completion.text for completion in completions}) == 1

    async def test_the_confidence_is_a_probability(self, engine: Engine) -> None:
        completion = await engine.generate(request())
        assert completion.confidence is not None
        assert 0.0 < completion.confidence <= 1.0

    async def test_messages_are_answered(self, engine: Engine) -> None:
        messages = (Message(role="system", content="Be brief."), Message(role="user", content=QUESTION))
        completion = await engine.generate(request(prompt=None, messages=messages))
        assert completion.text
        assert completion.prompt_tokens > 0

    async def test_the_same_question_gets_the_same_answer(self, engine: Engine) -> None:
        assert await engine.generate(request("first")) == await engine.generate(request("second"))

    async def test_many_requests_at_once_are_all_answered_and_nothing_stays_behind(self, engine: Engine) -> None:
        completions = await asyncio.gather(*(engine.generate(request(f"r{n}", f"{n} {QUESTION}")) for n in range(24)))
        assert [completion.finish_reason for completion in completions] == ["length"] * 24
        assert (engine.load().running, engine.load().waiting) == IDLE

    async def test_an_aborted_request_completes_as_aborted(self, engine: Engine) -> None:
        asked = replace(self.slow, abort=Abort())
        generating = asyncio.create_task(engine.generate(asked))
        await busy(engine, 1)
        asked.abort.ask()
        completion = await generating
        assert completion.finish_reason == "abort"
        assert completion.completion_tokens < asked.max_tokens
        assert (engine.load().running, engine.load().waiting) == IDLE

    async def test_aborting_an_answered_request_changes_nothing(self, engine: Engine) -> None:
        asked = request()
        await engine.generate(asked)
        asked.abort.ask()
        assert (await engine.generate(request())).finish_reason == "length"

    async def test_a_cancelled_request_raises_and_leaves_nothing_behind(self, engine: Engine) -> None:
        generating = asyncio.create_task(engine.generate(self.slow))
        await busy(engine, 1)
        generating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await generating
        assert (engine.load().running, engine.load().waiting) == IDLE

    async def test_an_unknown_adapter_is_rejected_by_name_of_the_field(self, engine: Engine) -> None:
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request(adapter="unheard-of"))
        assert rejected.value.field == "adapter"

    async def test_a_context_window_without_room_for_the_prompt_is_rejected(self, engine: Engine) -> None:
        with pytest.raises(RequestRejected) as rejected:
            await engine.generate(request(max_tokens=32, context_window=32))
        assert rejected.value.field == "context_window"
        assert (engine.load().running, engine.load().waiting) == IDLE


class TestEcho(EngineContract):
    @pytest_asyncio.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        engine = create("echo", engine_settings()(), Metrics(), SystemClock())
        await engine.start()
        yield engine
        await engine.close()


class _OverHttp(EngineContract):
    api = "chat"

    @pytest_asyncio.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        async with openai_server.serving(openai_server.echo_app()) as url:
            settings = engine_settings().model_validate({"openai": {"base_url": url, "api": self.api}})
            engine = create("openai", settings, Metrics(), SystemClock(), model=openai_server.MODEL)
            await engine.start()
            yield engine
            await engine.close()


class TestChatOverHttp(_OverHttp):
    api = "chat"


class TestCompletionsOverHttp(_OverHttp):
    api = "completions"


@pytest.mark.vllm
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(1_200)  # the first test waits for the engine, which takes minutes to load on a busy machine
class TestVllm(EngineContract):
    @pytest_asyncio.fixture(loop_scope="session")
    async def engine(self, vllm_engine: VllmEngine) -> Engine:
        return vllm_engine
