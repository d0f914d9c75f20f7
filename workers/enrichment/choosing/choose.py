"""Chooses the passages to quote: by their words, and also by their meaning if the settings name an embedding model.

The choice by words is made first. A job falls back to this choice if the model is late or unavailable.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from telemetry.clock import Clock, Deadline
from telemetry.metrics import Metrics
from workers.enrichment.choosing.embedder import Embedder
from workers.enrichment.choosing.rank import Budget
from workers.enrichment.evidence import Unreadable
from workers.enrichment.processes.pool import Pool
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker
from workers.processes.model_process import ModelAway

BY_WORDS = "the passages were chosen by their words alone"
_TITLE_CHARS = 120


@dataclass(frozen=True, slots=True)
class Choice:
    """The passages to quote, and notes on how they were chosen."""

    passages: tuple[tuple[str, ...], ...]
    """Each document's passages, in text order."""
    steering: tuple[tuple[str, ...], ...]
    """The ways in which each document's title and passages try to steer the model."""
    notes: tuple[str, ...] = ()
    """Notes for the result's reader if the embedding model had too little time or gave no answer."""


class Chooser:
    """Has a member of the pool choose passages, with the help of an embedding model if the settings name one."""

    def __init__(self, settings: EnrichmentSettings, pool: Pool, clock: Clock, metrics: Metrics) -> None:
        self._settings = settings
        self._pool = pool
        self._clock = clock
        self._embedder = Embedder(settings.rerank_model) if settings.rerank_model is not None else None
        self._reranks = metrics.reranks.begin()
        self._seconds = metrics.rerank_seconds

    async def start(self) -> None:
        """Load the model, if the settings name one. Raises EmbeddingModelRefused."""
        if self._embedder is not None:
            await self._embedder.start()

    async def close(self) -> None:
        """End the model's process."""
        if self._embedder is not None:
            await self._embedder.close()

    async def choose(
        self,
        question: str,
        documents: Sequence[Sequence[str | None]],
        budget: Budget,
        passage_chars: int,
        asker: Asker,
        deadline: Deadline,
    ) -> Choice:
        """Choose passages of the documents (title, main text, other text) for the question, see `rank.Ranking`.

        Raises Unreadable if even the choice by words fails, and TimeoutError if it is late.
        """
        task = {
            "kind": "rank",
            "evidence_chars": budget.chars,
            "evidence_tokens": budget.tokens,
            "source_tokens": budget.source_tokens,
            "passage_chars": passage_chars,
        }
        request = json.dumps({"question": question, "documents": documents}, ensure_ascii=False)
        body = request.encode("utf-8", "replace")
        most = self._settings.rerank_passages if self._embedder is not None else 0
        by_words = await self._asked({**task, "candidates": most}, body, asker, deadline)
        if self._embedder is None or len(by_words["candidates"]) < 2:
            return _choice(by_words)
        candidates = by_words["candidates"]
        try:
            order = await self._by_meaning(self._embedder, question, candidates, deadline)
            both = await self._asked({**task, "by_meaning": order}, body, asker, deadline)
        except ModelAway as away:
            return self._told("failed", by_words, f"{BY_WORDS}: {away}")
        except (Unreadable, TimeoutError):
            return self._told("late", by_words, f"{BY_WORDS}: the embedding model was late")
        if len(order) < len(candidates):
            note = f"the embedding model had time for {len(order)} of {len(candidates)} likely passages"
            return self._told("partly", both, note)
        return self._told("done", both)

    async def _asked(self, task: dict[str, Any], body: bytes, asker: Asker, deadline: Deadline) -> dict[str, Any]:
        """Return a pool member's answer to the task. Raises Unreadable and TimeoutError."""
        async with asyncio.timeout(deadline.remaining):
            return await self._pool.ask(task, body, asker)

    async def _by_meaning(
        self, embedder: Embedder, question: str, candidates: Sequence[tuple[int, str, str]], deadline: Deadline
    ) -> list[int]:
        """Return the numbers of the candidates that the model compared in time, the most similar first.

        The model gets `rerank_seconds`, but at most half of the remaining budget. Raises ModelAway, and TimeoutError
        if the model compared no candidate.
        """
        texts = [f"{title[:_TITLE_CHARS]}\n{text}" if title else text for _, title, text in candidates]
        started = self._clock.monotonic()
        seconds = min(self._settings.rerank_seconds, deadline.remaining / 2)
        similarities = await embedder.similarities(question, texts, seconds)
        self._seconds.observe(self._clock.monotonic() - started)
        if not similarities:
            raise TimeoutError
        compared = zip(similarities, candidates[: len(similarities)], strict=True)
        return [index for _, (index, _, _) in sorted(compared, key=lambda pair: -pair[0])]

    def _told(self, result: str, answer: dict[str, Any], *notes: str) -> Choice:
        self._reranks[result].inc()
        return _choice(answer, *notes)


def _choice(answer: dict[str, Any], *notes: str) -> Choice:
    return Choice(tuple(map(tuple, answer["passages"])), tuple(map(tuple, answer["steering"])), notes)
