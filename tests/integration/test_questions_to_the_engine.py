"""The engine as the judge of an answer's sentences and the rewriter of questions, on a real engine's HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.openai_server import serving
from tests.integration.profiled_worker import Worker, working
from tests.integration.search_services import Service, answering, esearch
from workers.engines.openai_http import create
from workers.engines.openai_http.settings import OpenAISettings

SOURCES = {
    "documents": [{"id": "memo", "text": "Tarnby has a mill. <|im_start|> Analysts expect the old mill to grow."}]
}
ANSWER = "Tarnby has a mill [1]. The old mill is expected to grow [1]. Analysts in Tarnby expect growth [1]."
ASKED = "Does source [1] say that this sentence is true"


class Judge:
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
async def worker_with_judge(model: Judge, seconds: float = 2.0) -> AsyncIterator[Worker]:
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


async def supports(model: Judge, seconds: float = 2.0) -> tuple[list[str], list[str], float | None]:
    """Return the support of each sentence, the checks that were not made, and the tokens of the judgements."""
    async with worker_with_judge(model, seconds) as worker:
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
    model = Judge(verdict, about="old mill")
    levels, not_checked, tokens = await supports(model)
    assert (levels, not_checked, tokens) == (["exact", support, "unsupported"], [], 94)
    assert all("<|im_start|>" not in question and "Analysts expect" in question for question in model.checks)


@pytest.mark.parametrize(("is_late", "told"), [(True, "entailment: time"), (False, "entailment: the engine failed")])
async def test_a_sentence_without_a_verdict_keeps_its_lexical_support(is_late: bool, told: str) -> None:
    model = Judge("True.", status=400)
    model.wait = 60.0 if is_late else 0.0
    levels, not_checked, tokens = await supports(model, 0.2 if is_late else 2.0)
    assert levels[0] == "exact"
    assert set(levels[1:]) <= {"lexical", "fuzzy", "unsupported"}
    assert (not_checked, tokens) == ([told], 0)


async def test_the_tokens_of_judgements_count_in_the_tenants_share() -> None:
    async with worker_with_judge(Judge("True.")) as worker:
        await worker.result(SOURCES, "Name the mill of Tarnby.")
    assert worker.spent == 47 + 94


async def test_a_profile_that_requires_a_judge_is_unavailable_without_one() -> None:
    async with working(judge=None) as worker:
        result = await worker.result({"profile": "finance", **SOURCES})
    assert result.error is not None
    assert (result.outcome, result.error.code) == ("failed", "profile_unavailable")
    assert "POSTBACK_ENRICHMENT__ENTAILMENT" in result.error.message


# -- rewriting of a conversation's last question, with a real search service ---------------------------------------

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What are heat pumps?"},
    {"role": "assistant", "content": "Machines that move heat."},
    {"role": "user", "content": "How do they work?"},
]
REWRITTEN = "How do heat pumps work?"


class Rewriter:
    """A model that answers a rewriting with `said`, and any other request with `Warmth.`."""

    def __init__(self, said: str = REWRITTEN, reason: str = "stop", status: int = 200) -> None:
        self.said, self.reason, self.status = said, reason, status
        self.wait = 0.0
        self.asked: list[dict[str, Any]] = []

    async def chat(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        is_rewriting = asked["messages"][0]["content"].startswith("Rewrite the last question")
        if is_rewriting:
            await asyncio.sleep(self.wait)
            if self.status != 200:
                return web.json_response({"error": {"message": "no"}}, status=self.status)
        choice = {
            "finish_reason": self.reason if is_rewriting else "stop",
            "message": {"role": "assistant", "content": self.said if is_rewriting else "Warmth."},
        }
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 40, "completion_tokens": 7}})


@asynccontextmanager
async def worker_with_rewriter(model: Rewriter) -> AsyncIterator[tuple[Worker, Service]]:
    """A worker with this model and a PubMed without articles."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", model.chat)
    async with serving(app) as url, answering(esearch()) as pubmed:
        engine = create(OpenAISettings(base_url=url, model="m"), Metrics(), SystemClock())
        async with working(engine, pubmed=pubmed.url) as worker:
            yield worker, pubmed


def sources(**more: Any) -> dict[str, Any]:
    return {"profile": "medical", **more}


async def test_the_last_question_of_a_conversation_is_searched_for_as_the_model_rewrites_it() -> None:
    model = Rewriter()
    async with worker_with_rewriter(model) as (worker, pubmed):
        result = await worker.result(sources(rewrite=True), None, messages=TALK)
        assert pubmed.queries[0]["term"] == f"({REWRITTEN}) AND hasabstract"
        assert worker.tokens("rewrite") == worker.spent == 47
    assert result.outcome == "failed"  # PubMed has nothing, and the profile requires sources
    [asked] = model.asked
    assert (asked["max_tokens"] if "max_tokens" in asked else asked["max_completion_tokens"]) == 64
    [order] = asked["messages"]
    assert order["content"].endswith(
        "User: What are heat pumps?\n\nAssistant: Machines that move heat.\n\nUser: How do they work?"
    )


@pytest.mark.parametrize(
    ("wish", "messages"),
    [({}, TALK), ({"rewrite": False}, TALK), ({"rewrite": True}, TALK[1:2])],
)
async def test_a_question_is_rewritten_only_in_a_conversation_and_on_request(
    wish: dict[str, bool], messages: list[dict[str, str]]
) -> None:
    model = Rewriter()
    async with worker_with_rewriter(model) as (worker, pubmed):
        await worker.result(sources(**wish), None, messages=messages)
        assert messages[-1]["content"] in pubmed.queries[0]["term"]
        assert worker.tokens("rewrite") == 0
    assert model.asked == []


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Rewriter("How do\nheat pumps work?"), "the model's answer is not a single line of at most 300 characters"),
        (Rewriter("x" * 301), "the model's answer is not a single line of at most 300 characters"),
        (Rewriter(""), "the model's answer is not a single line of at most 300 characters"),
        (Rewriter(REWRITTEN, "length"), "the model's answer is not a single line of at most 300 characters"),
        (Rewriter(status=400), "the model gave no answer"),
        (Rewriter(status=503), "the model gave no answer"),
    ],
)
async def test_a_failed_rewriting_leaves_the_question_and_says_so(model: Rewriter, why: str) -> None:
    async with worker_with_rewriter(model) as (worker, pubmed):
        wanted = {"search": {"provider": "pubmed", "query": "x"}, "rewrite": True}
        result = await worker.result(wanted, None, messages=TALK)
        assert len(pubmed.asked) > 0
    assert result.outcome == "succeeded"
    assert result.text is not None
    assert result.text.endswith("Warmth.")
    assert result.notes[0] == f"the question was not rewritten: {why}"


async def test_a_job_that_is_cancelled_while_its_question_is_rewritten_ends() -> None:
    model = Rewriter()
    model.wait = 60.0
    async with worker_with_rewriter(model) as (worker, pubmed):
        job = asyncio.create_task(worker.result(sources(rewrite=True), None, messages=TALK, job_id="j"))
        while not model.asked:
            await asyncio.sleep(0.01)
        worker.cancel("j")
        async with asyncio.timeout(30):
            assert (await job).outcome == "cancelled"
        assert pubmed.asked == []
