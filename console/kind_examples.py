"""Examples of jobs without a question, for the reference of jobs; a table has one row for each kind of job."""

from __future__ import annotations

from typing import Any, Final

from schemas.kinds import CLASSIFY, EMBED, RERANK, SCORE

KIND_JOBS: Final[dict[str, dict[str, Any]]] = {
    EMBED.field: {"embed": ["Aspirin lowers the risk.", "Statins do too."], "dimensions": 256},
    RERANK.field: {
        "rerank": {
            "query": "Does aspirin lower the risk of a stroke?",
            "documents": ["Statins are taken in the evening.", "Aspirin lowers the risk."],
            "top_n": 2,
        }
    },
    SCORE.field: {
        "score": {
            "queries": ["Does aspirin lower the risk of a stroke?"],
            "documents": ["Statins are taken in the evening.", "Aspirin lowers the risk."],
        }
    },
    CLASSIFY.field: {"classify": ["Aspirin lowers the risk.", "Buy now!"]},
}
"""A job of each kind."""
_DONE = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "usage": {"prompt_tokens": 24, "completion_tokens": 0, "total_tokens": 24},
    "finish_reason": "stop",
    "engine": "openai",
    "created_at": 1764022104,
}
KIND_RESULTS: Final[dict[str, dict[str, Any]]] = {
    EMBED.field: {**_DONE, "embeddings": [[0.12, -0.98, 0.05], [0.31, -0.77, 0.11]]},
    RERANK.field: {**_DONE, "ranks": [{"index": 1, "score": 0.93}, {"index": 0, "score": 0.02}]},
    SCORE.field: {**_DONE, "scores": [0.02, 0.93]},
    CLASSIFY.field: {
        **_DONE,
        "labels": [
            {"label": "medicine", "probabilities": [0.96, 0.04]},
            {"label": "advertising", "probabilities": [0.01, 0.99]},
        ],
    },
}
"""The result of the job of each kind; real embeddings have hundreds of numbers."""
