"""Pooling models in vLLM through Kafka, each in a lane of its own: embeddings, ranks, scores and labels.

The classifier's probabilities are those of transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.operations.topics import create_topics
from scripts.play.model import embedding_model
from tests.integration.test_vllm_classifying import logits, with_head
from tests.integration.test_vllm_pooling import DOCUMENTS, QUERY
from tests.product import Product, Role, eventually

pytestmark = [pytest.mark.broker, pytest.mark.vllm, pytest.mark.timeout(2_400)]

LABELS = ["news", "sport", "weather"]
LOADING = 600.0
"""Seconds that vLLM may take to load on a busy machine."""
MODELS = {"POSTBACK_WORKER__MODELS": json.dumps({"minilm": "meaning", "topics": "labels"})}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "embed": ("minilm", {"embed": [QUERY, *DOCUMENTS]}),
    "rerank": ("minilm", {"rerank": {"query": QUERY, "documents": DOCUMENTS, "top_n": 2}}),
    "score": ("minilm", {"score": {"queries": [QUERY], "documents": DOCUMENTS}}),
    "classify": ("topics", {"classify": DOCUMENTS}),
    "chat": ("minilm", {"messages": [{"role": "user", "content": "Why?"}]}),
    "mistaken": ("topics", {"embed": DOCUMENTS}),
}
EACH = 4
REASONS = {
    "chat": "messages: this model answers no question; it gives embeddings, ranks, scores",
    "mistaken": "embed: this model gives no embeddings; it gives labels",
}


def lane(product: Product, name: str, folder: Path) -> Role:
    """Start a worker of this lane with the folder's model in vLLM, and wait until the model is loaded."""
    vllm = ("--host", "127.0.0.1", "--engine", "vllm", "--model", str(folder))
    worker = product.worker(name, *vllm, POSTBACK_WORKER__LANE=name, **MODELS)
    eventually(lambda: worker.ready()[0], LOADING, worker.said)
    return worker


def test_each_pooling_job_gets_one_answer_from_its_lanes_model_and_a_job_of_a_wrong_kind_the_reason(
    product: Product, tmp_path: Path
) -> None:
    create_topics(product.kafka, engines=["meaning", "labels"])
    model, tokenizer = with_head(tmp_path / "topics", LABELS)
    probabilities = logits(model, tokenizer, DOCUMENTS).softmax(-1).tolist()
    front = product.worker("front", "--host", "127.0.0.1", "--engine", "echo", **MODELS)
    product.submit(
        {"job_id": f"{name}-{number}", "model_id": model, **body}
        for name, (model, body) in BODIES.items()
        for number in range(EACH)
    )
    for name, folder, number in (("meaning", embedding_model(), 4), ("labels", tmp_path / "topics", 2)):
        worker = lane(product, name, folder)
        before = len(product.results())
        product.wait_for_results(before + number * EACH, 120)
        assert worker.terminate() == 0
    assert front.terminate() == 0

    expected = {name: "rejected" if name in REASONS else "succeeded" for name in BODIES}
    assert product.outcomes() == {f"{name}-{number}": expected[name] for name in BODIES for number in range(EACH)}
    details = sorted(letter["reason-detail"] for letter in product.dead_letters())
    assert details == sorted(reason for reason in REASONS.values() for _ in range(EACH))
    for result in product.results():
        name = result["job_id"].rpartition("-")[0]
        assert result.get("engine") == ("vllm" if name not in REASONS else None)
        match name:
            case "embed":
                assert [len(vector) for vector in result["embeddings"]] == [384] * 4
            case "rerank":
                best, second = result["ranks"]
                assert best["index"] == 1
                assert best["score"] > second["score"]
            case "score":
                assert len(result["scores"]) == 3
                assert max(result["scores"]) == result["scores"][1]
            case "classify":
                given = [each["probabilities"] for each in result["labels"]]
                assert given == [pytest.approx(row, abs=1e-2) for row in probabilities]
                likeliest = [LABELS[row.index(max(row))] for row in probabilities]
                assert [each["label"] for each in result["labels"]] == likeliest
