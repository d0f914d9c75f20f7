"""Results of jobs whose answer is not generated text (embeddings, scores, ranks): a function for each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from schemas.job import Job
from schemas.kinds import CLASSIFY, EMBED, RERANK, SCORE
from workers.engines.pooling import Pooled


def answer_of(job: Job, pooled: Pooled) -> dict[str, object]:
    """Return the result's field with the answer; an empty dict for a job whose answer is a text."""
    return {job.kind.answer: _ANSWERS[job.kind.field](job, pooled)} if job.kind is not None else {}


def _embeddings(job: Job, pooled: Pooled) -> object:
    return pooled.rows


def _ranks(job: Job, pooled: Pooled) -> object:
    """Return the best documents, the best first. Of documents with equal scores, the earlier one is first."""
    scores = [score for (score,) in pooled.rows]
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    most = job.rerank.top_n if job.rerank is not None else None
    return [{"index": index, "score": scores[index]} for index in order[:most]]


def _scores(job: Job, pooled: Pooled) -> object:
    return [score for (score,) in pooled.rows]


def _labels(job: Job, pooled: Pooled) -> object:
    pairs = zip(pooled.labels, pooled.rows, strict=True)
    return [{"label": label, "probabilities": row} for label, row in pairs]


_ANSWERS: Final[dict[str, Callable[[Job, Pooled], object]]] = {
    EMBED.field: _embeddings,
    RERANK.field: _ranks,
    SCORE.field: _scores,
    CLASSIFY.field: _labels,
}
