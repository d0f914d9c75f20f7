"""Computes the similarity of texts by meaning, such as passages and a question, with a model in a process of its own.

A worker has only one such process, because a model takes a gigabyte of memory, and all cores that it may use. The
jobs take turns at it, a batch of passages at a time. So when a job's time is up, the job keeps the results of its
finished batches, and a cancelled job wastes at most the running batch.

If the process dies or hangs, another one is started. Loading the model takes many seconds; until the model is loaded,
jobs are refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Final

from schemas.operator_error import OperatorError
from workers.processes.model_process import ModelNotLoaded, ModelProcess

_MODULE: Final = "workers.enrichment.choosing.embedding"
"""The process's side."""
RERANK_SETTING: Final = "POSTBACK_ENRICHMENT__RERANK_MODEL"
BATCH: Final = 8
"""Passages per batch. Larger batches lose more work when a job's time is up, and are hardly faster on two cores."""
BATCH_SECONDS: Final = 20.0
"""Timeout of a batch; a process that takes longer counts as hung."""
LOAD_SECONDS: Final = 1800.0
"""Timeout of loading the model, which may have to be downloaded."""

_INHERITED: Final = (
    "HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE", "OMP_NUM_THREADS",
)  # fmt: skip
"""Variables of the worker's environment that are passed on, since loading a model may need them."""


class EmbeddingModelRefused(OperatorError):  # noqa: N818 - named after the event, as TemplateRefused is
    """The embedding model cannot be used. The text names the setting, the reason and the fix."""


class Embedder:
    """Runs one process with the model of this name or folder, for all jobs. `setting` names the model's variable."""

    def __init__(self, model: str, *, setting: str = RERANK_SETTING, batch_seconds: float = BATCH_SECONDS) -> None:
        self._model = model
        self._setting = setting
        self._batch_seconds = batch_seconds
        self._process = ModelProcess("embedding model", _MODULE, model, load_seconds=LOAD_SECONDS, inherited=_INHERITED)

    async def start(self) -> None:
        """Load the model, which takes many seconds. Raises EmbeddingModelRefused."""
        try:
            await self._process.start()
        except ModelNotLoaded as reason:
            raise EmbeddingModelRefused(
                f"{self._setting} names {self._model}, which cannot be loaded: {reason}. "
                "Name a sentence-transformers model or its folder, or unset the variable, so that words alone decide"
            ) from None

    async def close(self) -> None:
        """End the process."""
        await asyncio.to_thread(self._process.close)

    async def similarities(self, question: str, passages: Sequence[str], seconds: float) -> list[float]:
        """Return the cosine, from -1 to 1, of the question and each passage, in the order of `passages`.

        If time runs out, the last passages have no cosine. Raises ModelAway. May be cancelled.
        """
        found: list[float] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for start in range(0, len(passages), BATCH):
                    batch = json.dumps(passages[start : start + BATCH]).encode()
                    task = {"question": question}
                    asked = self._process.ask(list, "similarities", task, batch, self._batch_seconds)
                    cosines: list[float] = await asyncio.wrap_future(asked)
                    found += cosines
        return found
