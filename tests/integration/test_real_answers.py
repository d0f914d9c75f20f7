"""The small real model in a worker's handler: its results with sources, without them, and under a schema.

The model is a base model of 270M parameters and follows no instruction reliably. The tests check facts that hold for
any model.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from schemas.result import Result, Support
from scripts.play.model import small_model
from scripts.play.site import Question, Site, questions
from telemetry.metrics import Metrics
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.raw_server import PATIENT
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.settings import VllmSettings
from workers.enrichment.answering.profile import FOLDER

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1500),  # on a bare machine, the model is downloaded and unpacked first
]

NOTICE = "No source could be used: this answer rests on no source."
ASKED = questions()
CLOSE = (Support.EXACT, Support.FUZZY)
FINANCE_MAX_TOKENS = 7_000
"""One token for each of the 6,200 characters that the profile's schema allows in strings, and some for the JSON around
them. This model likes to fill the strings with digits: one answer in six took more than a thousand tokens."""
MOSTLY = 16
"""At least this many of the twenty answers must stand in the source page, exactly or nearly.

A paraphrase does not count.
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gemma() -> AsyncIterator[VllmEngine]:
    """The engine, loaded once for the module. A newline ends an answer, since a base model goes on after it."""
    settings = VllmSettings(model=str(small_model()), context_tokens=8192, max_concurrency=16, stop=("\n",))
    engine = VllmEngine(settings, Metrics())
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def worker(gemma: VllmEngine) -> AsyncIterator[AnsweringWorker]:
    async with AnsweringWorker(engine=gemma) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def lenient(gemma: VllmEngine, tmp_path: Path) -> AsyncIterator[AnsweringWorker]:
    """A worker without a judge, whose profile `chain` is `finance` without the need for one."""
    shutil.copy(FOLDER / "finance.schema.json", tmp_path)
    finance = (FOLDER / "finance.toml").read_text()
    (tmp_path / "chain.toml").write_text(finance.replace('requires = ["entailment"]', ""))
    enrichment = PATIENT.model_copy(update={"profiles_folder": tmp_path})
    async with AnsweringWorker(engine=gemma, enrichment=enrichment) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def site() -> AsyncIterator[Site]:
    async with Site() as started:
        yield started


def has(result: Result, question: Question) -> bool:
    return re.search(rf"(?<!\d){re.escape(question.answer)}(?!\d)", result.text or "") is not None


def rests_on_nothing(result: Result) -> bool:
    return any("rests on no source" in note for note in result.notes)


async def test_questions_whose_answers_only_a_page_has_are_answered_and_cited(
    worker: AnsweringWorker, site: Site
) -> None:
    results = await asyncio.gather(
        *(worker.answer(question.text, site.url(question.path), max_tokens=24) for question in ASKED)
    )
    for question, result in zip(ASKED, results, strict=True):
        assert result.outcome == "succeeded", result.error
        assert has(result, question), (question, result.text)
        assert result.sources == [site.url(question.path)], (question, result.text)
        assert {citation.source for citation in result.citations} == set(result.sources)
        assert not rests_on_nothing(result)
    close = [result for result in results if all(citation.support in CLOSE for citation in result.citations)]
    assert len(close) >= MOSTLY, [result.text for result in results if result not in close]


async def test_beside_another_page_an_answer_is_attributed_to_the_right_page_or_to_none(
    worker: AnsweringWorker, site: Site
) -> None:
    asked = ASKED[1::4] + ASKED[:1]
    others = [site.url(question.path) for question in [*asked[1:], asked[0]]]
    results = await asyncio.gather(
        *(
            worker.answer(question.text, other, site.url(question.path), max_tokens=24)
            for question, other in zip(asked, others, strict=True)
        )
    )
    for question, result in zip(asked, results, strict=True):
        expected = [] if rests_on_nothing(result) else [site.url(question.path)]
        assert result.sources == expected, (question, result.text)
        assert has(result, question) or rests_on_nothing(result), (question, result.text)
    assert sum(has(result, question) for question, result in zip(asked, results, strict=True)) >= len(asked) // 2


async def test_answers_without_a_readable_page_say_that_they_rest_on_no_source(
    worker: AnsweringWorker, site: Site
) -> None:
    asked = ASKED[::3]
    results = await asyncio.gather(
        *(worker.answer(question.text, site.url("/gone"), max_tokens=24) for question in asked)
    )
    for question, result in zip(asked, results, strict=True):
        assert result.outcome == "succeeded", result.error
        assert (result.text or "").startswith(NOTICE)
        assert not has(result, question), result.text
        assert (result.sources, result.source_details, result.citations) == ([], [], [])
        assert result.notes[-1] == "the answer rests on no source: no source could be used"
        assert result.confidence is not None
        assert result.confidence <= 0.5


async def test_a_job_without_sources_gets_no_note_about_sources(worker: AnsweringWorker) -> None:
    result = await worker.answer(f"Question: {ASKED[0].text}\nAnswer:", sources=None, max_tokens=24)
    assert result.outcome == "succeeded", result.error
    assert not has(result, ASKED[0])
    assert NOTICE not in (result.text or "")
    assert (result.sources, result.citations, result.notes) == ([], [], [])


async def test_a_finance_answer_follows_its_schema_and_its_quotes_are_checked(
    lenient: AnsweringWorker, site: Site
) -> None:
    asked = "How risky is it to buy the silver mine of Corrow?"
    urls = site.url("/mine"), site.url("/bridge")
    result = await lenient.answer(asked, *urls, profile="chain", max_tokens=FINANCE_MAX_TOKENS)
    assert (result.outcome, result.finish_reason) == ("succeeded", "stop"), result.error
    judged = json.loads(result.text or "")
    assert list(judged) == ["summary", "evidence", "risk_score", "risk_level"]
    assert 0 <= judged["risk_score"] <= 100
    assert judged["risk_level"] in ("low", "medium", "high")
    assert len(judged["summary"]) <= 600
    for item in judged["evidence"]:
        assert list(item) == ["claim", "source", "quote"]
        assert item["source"] in (1, 2), "the schema allows no source that is not there"
    assert len(result.citations) == len([item for item in judged["evidence"] if item["quote"].strip()])
    for citation in result.citations:
        assert citation.source in urls
        quoted = (result.text or "")[citation.start : citation.end]
        assert quoted in [json.dumps(item["quote"], ensure_ascii=False)[1:-1] for item in judged["evidence"]]
    borne = {citation.source for citation in result.citations if citation.support != Support.UNSUPPORTED}
    assert set(result.sources) == borne
    assert bool(borne) != rests_on_nothing(result)


async def test_json_that_max_tokens_cuts_short_is_a_failure_that_says_what_to_do(
    lenient: AnsweringWorker, site: Site
) -> None:
    result = await lenient.answer("How risky is it?", site.url("/mine"), profile="chain", max_tokens=12)
    assert (result.outcome, result.text, result.finish_reason) == ("failed", None, "length")
    assert result.error is not None
    assert result.error.code == "not_json"
    assert result.error.message == "max_tokens: the answer's JSON was not whole after 12 tokens; raise it"
    assert result.usage is not None
    assert result.usage.completion_tokens == 12
