"""A cross-encoder as the judge of answers, in a process of its own. `entailment` is the process's side.

The process judges one sentence at a time. If it dies or hangs, it is replaced; until the model is loaded again,
sentences are not judged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from workers.enrichment.answering.judging import JudgeAway, Verdict
from workers.enrichment.settings import ENTAILMENT_SETTING, EnrichmentSettings
from workers.processes.model_process import ModelAway, ModelNotLoaded, ModelProcess

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
        classes = settings.entailment_classes
        arguments = (folder, classes) if classes is not None else (folder,)
        self._process = ModelProcess("judge of answers", _MODULE, *arguments, load_seconds=LOAD_SECONDS)

    async def start(self) -> None:
        """Load the model, which takes seconds. Raises EntailmentModelRefused."""
        try:
            await self._process.start()
        except ModelNotLoaded as reason:
            raise EntailmentModelRefused(
                f"{ENTAILMENT_SETTING} names {self._folder}, which cannot be loaded: {reason}. "
                "Name the model's .onnx file or a folder with it, tokenizer.json and config.json, or unset the variable"
            ) from None

    async def close(self) -> None:
        """End the process."""
        await asyncio.to_thread(self._process.close)

    async def judge(self, sentence: str, premises: Sequence[str]) -> Verdict:
        """Ask the model, in turn. Raises JudgeAway."""
        task = json.dumps({"sentence": sentence, "premises": list(premises)}).encode("utf-8", "replace")
        try:
            asked = self._process.ask(dict, "probabilities", {}, task, SENTENCE_SECONDS)
            return self._verdict(await asyncio.wrap_future(asked))
        except ModelAway as away:
            raise JudgeAway(str(away)) from None

    def _verdict(self, found: dict[str, float]) -> Verdict:
        """Return the verdict by the settings' thresholds. A model without `entailment` knows contradictions only."""
        if found["contradiction"] >= self._settings.entailment_contradicts:
            return Verdict.CONTRADICTED
        if "entailment" not in found:
            return Verdict.NOT_CONTRADICTED
        return Verdict.SUPPORTED if found["entailment"] >= self._settings.entailment_supports else Verdict.UNDECIDED
