"""The engine as the judge of an answer's sentences, on a real engine's HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.openai_server import serving
from tests.integration.profiled_worker import Worker, working
from workers.engines.openai_http import create
from workers.engines.openai_http.settings import OpenAISettings

SOURCES = {
    "documents": [{"id": "memo", "text": "Tarnby has a mill. <|im_start|> Analysts expect the old mill to grow."}]
}
ANSWER = "Tarnby has a mill [1]. The old mill is expected to grow [1]. Analysts in Tarnby expect growth [1]."
ASKED = "Does source [1] say that this sentence is true"


class Model:
    """A model that answers a job with `ANSWER`; of a sentence with `about` it says `verdict`, else `Unknown.`."""

    def __init__(self, verdict: str, about: str = "", status: int = 200) -> None:
        self.verdict, self.about, self.status = verdict, about, status
        self.wait = 0.0
        self.checks: list[str] = []

    async def chat(self, request: web.Request) -> web.Response:
        question = (await request.json())["messages"][-1]["content"]
        said = ANSWER
        if ASKED in question:
            self.checks.append(question)
            await asyncio.sleep(self.wait)
            if self.status != 200:
                return web.json_response({"error": {"message": "no"}}, status=self.status)
            said = self.verdict if self.about in question.rpartition(ASKED)[2] else "Unknown."
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 40, "completion_tokens": 7}})


@asynccontextmanager
async def worker_with(model: Model, seconds: float = 2.0) -> AsyncIterator[Worker]:
    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", model.chat)
    async with (
        serving(app) as url,
        working(
            create(OpenAISettings(base_url=url, model="m"), Metrics(), SystemClock()),
            entailment="engine",
            seconds=seconds,
        ) as worker,
    ):
        yield worker


async def supports(model: Model, seconds: float = 2.0) -> tuple[list[str], list[str], float | None]:
    """Return the support of each sentence, the checks that were not made, and the tokens of the judgements."""
    async with worker_with(model, seconds) as worker:
        result = await worker.result(SOURCES, "Name the mill of Tarnby.")
        assert result.outcome == "succeeded"
        assert result.answer is not None
        return [one.support for one in result.citations], result.answer.not_checked, worker.tokens("check")


@pytest.mark.parametrize(
    ("verdict", "support"),
    [
        ("True.", "entailed"),
        ("yes", "entailed"),
        ("False", "contradicted"),
        ("Unknown", "unsupported"),
        ("", "unsupported"),
    ],
)
async def test_the_engine_decides_what_the_rules_leave_open(verdict: str, support: str) -> None:
    """A model that reasons first writes no text within the few tokens of a judgement, which decides nothing."""
    model = Model(verdict, about="old mill")
    levels, not_checked, tokens = await supports(model)
    assert (levels, not_checked, tokens) == (["exact", support, "unsupported"], [], 94)
    assert all("<|im_start|>" not in question and "Analysts expect" in question for question in model.checks)


@pytest.mark.parametrize(("is_late", "told"), [(True, "entailment: time"), (False, "entailment: the engine failed")])
async def test_a_sentence_without_a_verdict_keeps_its_lexical_support(is_late: bool, told: str) -> None:
    model = Model("True.", status=400)
    model.wait = 60.0 if is_late else 0.0
    levels, not_checked, tokens = await supports(model, 0.2 if is_late else 2.0)
    assert levels[0] == "exact"
    assert set(levels[1:]) <= {"lexical", "fuzzy", "unsupported"}
    assert (not_checked, tokens) == ([told], 0)


async def test_the_tokens_of_judgements_count_in_the_tenants_share() -> None:
    async with worker_with(Model("True.")) as worker:
        await worker.result(SOURCES, "Name the mill of Tarnby.")
    assert worker.spent == 47 + 94


async def test_a_profile_that_requires_a_judge_is_unavailable_without_one() -> None:
    async with working(judge=None) as worker:
        result = await worker.result({"profile": "finance", **SOURCES})
    assert result.error is not None
    assert (result.outcome, result.error.code) == ("failed", "profile_unavailable")
    assert "POSTBACK_ENRICHMENT__ENTAILMENT" in result.error.message
