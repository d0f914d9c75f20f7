"""vLLM in the worker with a real embedding model, all-MiniLM-L6-v2: embeddings, scores and ranks of texts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from schemas.job import Job
from scripts.play.model import embedding_model
from telemetry.metrics import Metrics
from workers.engines.base import Completion, GenerationRequest, RequestRejected, request_for
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.settings import VllmSettings

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1_200)]

QUERY = "Which river meets the sea?"
DOCUMENTS = ["The cat sleeps on the mat.", "The Rhine flows into the North Sea.", "Bread is baked from flour."]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    one = VllmEngine(VllmSettings(model=str(embedding_model()), max_concurrency=16), Metrics())
    await one.start()
    try:
        yield one
    finally:
        await one.close()


def request(**fields: object) -> GenerationRequest:
    job = Job.model_validate(fields)
    return request_for(job, "r1")


def rows(completion: Completion) -> list[list[float]]:
    assert completion.pooled is not None
    assert (completion.finish_reason, completion.completion_tokens) == ("stop", 0)
    return [[*row] for row in completion.pooled.rows]


async def test_texts_are_embedded_in_their_order_and_a_score_is_the_cosine(engine: VllmEngine) -> None:
    embedded = await engine.generate(request(embed=[QUERY, *DOCUMENTS]))
    query, *documents = rows(embedded)
    assert {len(query), *map(len, documents)} == {384}
    assert math.hypot(*query) == pytest.approx(1, abs=1e-3)
    assert embedded.prompt_tokens > len(" ".join([QUERY, *DOCUMENTS]).split())

    scored = rows(await engine.generate(request(score={"queries": [QUERY], "documents": DOCUMENTS})))
    cosines = [sum(one * other for one, other in zip(query, each, strict=True)) for each in documents]
    assert [row[0] for row in scored] == pytest.approx(cosines, abs=1e-3)
    assert max(scored) == scored[1]

    ranked = await engine.generate(request(rerank={"query": QUERY, "documents": DOCUMENTS, "top_n": 1}))
    assert rows(ranked) == [pytest.approx(row, abs=1e-3) for row in scored]
    pairs = rows(await engine.generate(request(score={"queries": DOCUMENTS, "documents": DOCUMENTS})))
    assert [row[0] for row in pairs] == pytest.approx([1, 1, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompt": "Why?"}, "prompt: this model answers no question; it gives embeddings, ranks, scores"),
        ({"classify": ["a"]}, "classify: this model gives no labels; it gives embeddings, ranks, scores"),
        ({"embed": ["a"], "dimensions": 8}, "dimensions: this model's embeddings have one length"),
        ({"embed": ["a", "word " * 9000]}, "embed: "),
        ({"score": {"queries": ["a"], "documents": ["word " * 9000]}}, "score: "),
    ],
    ids=["question", "classify", "dimensions", "long", "long document"],
)
async def test_a_request_that_the_model_cannot_answer_names_its_field(
    engine: VllmEngine, fields: dict[str, object], problem: str
) -> None:
    with pytest.raises(RequestRejected, match=problem) as refused:
        await engine.generate(request(**fields))
    assert str(embedding_model()) not in str(refused.value)


async def test_an_abort_ends_every_text_and_the_next_request_is_answered(engine: VllmEngine) -> None:
    many = request(embed=["many words " * 100] * 64)
    answering = asyncio.create_task(engine.generate(many))
    while not engine.load().running:
        await asyncio.sleep(0)
    many.abort.ask()
    assert (await answering).finish_reason == "abort"
    assert len(rows(await engine.generate(request(embed=["a"])))) == 1
    assert engine.load().running == 0
