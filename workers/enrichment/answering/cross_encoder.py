"""A cross-encoder as the judge of answers, in a process of its own. `entailment` is the process's side.

The process judges one sentence at a time. If it dies or hangs, it is killed, and the next sentence starts another one;
until then, sentences are not judged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from telemetry.logs import get_logger
from workers.enrichment.answering.judging import JudgeAway, Verdict
from workers.enrichment.processes.child import Child, ChildLost, ModelNotLoaded, load_model
from workers.enrichment.settings import ENTAILMENT_SETTING, EnrichmentSettings

log = get_logger()

_MODULE: Final = "workers.enrichment.answering.entailment"
"""The process's side."""
LOAD_SECONDS: Final = 300.0
SENTENCE_SECONDS: Final = 20.0
"""Timeout of one sentence; a process that takes longer counts as hung."""


class EntailmentModelRefused(Exception):  # noqa: N818 - named after the event, as EmbeddingModelRefused is
    """The cross-encoder cannot be used. The text names the setting, the reason and the fix."""


class CrossEncoder:
    """Runs one process with the model of the settings' folder, for all jobs."""

    def __init__(self, folder: str, settings: EnrichmentSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._child: Child | None = None
        self._turn = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model, which takes seconds. Raises EntailmentModelRefused."""
        classes = self._settings.entailment_classes
        arguments = (self._folder, classes) if classes is not None else (self._folder,)
        try:
            self._child = await load_model(
                _MODULE, *arguments, seconds=LOAD_SECONDS, environment={"TOKENIZERS_PARALLELISM": "false"}
            )
        except ModelNotLoaded as reason:
            raise EntailmentModelRefused(
                f"{ENTAILMENT_SETTING} names {self._folder}, which cannot be loaded: {reason}. "
                "Name the model's .onnx file or a folder with it, tokenizer.json and config.json, or unset the variable"
            ) from None

    async def close(self) -> None:
        """End the process."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if self._child is not None:
            await self._child.kill()

    async def judge(self, sentence: str, premises: Sequence[str]) -> Verdict:
        """Ask the model, in turn. Raises JudgeAway."""
        await self._turn.acquire()
        # The turn ends with the answer, even if the job stops waiting: the next answer would be taken for this one.
        asking = asyncio.create_task(self._asked(sentence, premises), name="cross-encoder")
        asking.add_done_callback(self._end_turn)
        return await asyncio.shield(asking)

    def _end_turn(self, asked: asyncio.Task[Verdict]) -> None:
        self._turn.release()
        if not asked.cancelled():
            asked.exception()  # the job may have stopped waiting for it

    async def _asked(self, sentence: str, premises: Sequence[str]) -> Verdict:
        child = self._child
        if child is None:
            raise JudgeAway("the model is being loaded again")
        task = json.dumps({"sentence": sentence, "premises": list(premises)}).encode("utf-8", "replace")
        try:
            async with asyncio.timeout(SENTENCE_SECONDS):
                answer = await child.ask({}, task)
        except (ChildLost, OSError) as lost:  # OSError includes TimeoutError
            kind = type(lost).__qualname__
            log.error("The cross-encoder's process is lost; loading it again.", action="judge-lost", error=kind)
            self._child = None
            await child.kill()
            self._loading = asyncio.create_task(self._load_again(), name="cross-encoder")
            raise JudgeAway("the model failed") from None
        found = answer.get("probabilities")
        if not isinstance(found, dict):
            raise JudgeAway("the model failed")
        return self._verdict(found)

    def _verdict(self, found: dict[str, float]) -> Verdict:
        """Return the verdict by the settings' thresholds. A model without `entailment` knows contradictions only."""
        if found["contradiction"] >= self._settings.entailment_contradicts:
            return Verdict.CONTRADICTED
        if "entailment" not in found:
            return Verdict.NOT_CONTRADICTED
        return Verdict.SUPPORTED if found["entailment"] >= self._settings.entailment_supports else Verdict.UNDECIDED

    async def _load_again(self) -> None:
        try:
            await self.start()
        except EntailmentModelRefused:
            log.exception("The cross-encoder was not loaded again; answers are not judged.", action="judge-lost")
