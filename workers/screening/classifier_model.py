"""The classifier's process: `python -m workers.screening.classifier_model FOLDER`; see `processes.serving`.

A task has `seconds`, and a JSON list of texts as its body; the answer has the scores of each text by label, or
`failed`. A task without `seconds` asks for the model's labels.

The model is read from the folder alone: safetensors, no code of the model's own, and no network.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from workers.processes.serving import Answer, serve_model

_MOST_THREADS: Final = 4
_MOST_TOKENS: Final = 512
"""The maximum number of tokens of a window.

Windows are small, because a model's cost grows with the square of their tokens.
"""
_OVERLAP_TOKENS: Final = 64
_WINDOWS_AT_ONCE: Final = 8
_PIECE_CHARS: Final = 16_384
"""Characters that are tokenised at once, so that a long text can be abandoned when its time is up."""
_ALARM_SECONDS: Final = 30.0
"""Seconds after a request's time is up until the process ends itself, in case the parent process is dead."""


class _Late(Exception):  # noqa: N818 - private
    """The request's time is up."""


def main() -> None:
    """Load the model, and answer tasks until the input ends."""
    serve_model(_prepare, _load, "transformers or torch is not installed; install both")


def _prepare() -> list[str]:
    import torch  # noqa: F401 - these run programs and write files while they are imported
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

    return [sys.argv[1]]


def _load() -> Answer:
    model = _ClassifierModel(sys.argv[1])

    def answer(task: dict[str, Any], body: bytes) -> dict[str, Any]:
        if "seconds" not in task:
            return {"labels": model.labels}
        deadline = time.monotonic() + task["seconds"]
        signal.setitimer(signal.ITIMER_REAL, task["seconds"] + _ALARM_SECONDS)
        try:
            return {"scores": [model.scores(text, deadline) for text in json.loads(body)]}
        except _Late:
            return {"failed": "its seconds were over"}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return answer


class _ClassifierModel:
    """A sequence classification model with its tokenizer."""

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(min(_MOST_THREADS, torch.get_num_threads()))
        local = {"local_files_only": True, "trust_remote_code": False}
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True, **local).eval()
        config = self._model.config
        self.labels = [str(config.id2label[number]) for number in range(config.num_labels)]
        self._each_alone = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        positions = getattr(config, "max_position_embeddings", None) or _MOST_TOKENS + 2
        self._tokens = min(_MOST_TOKENS, self._tokenizer.model_max_length, positions - 2)
        self.scores("ready", time.monotonic() + _ALARM_SECONDS)

    def scores(self, text: str, deadline: float) -> dict[str, float]:
        """Return the highest score of each label over the text's windows. Raises _Late."""
        best = dict.fromkeys(self.labels, 0.0)
        for batch in self._batches(text):
            if time.monotonic() > deadline:
                raise _Late
            with self._torch.inference_mode():
                logits = self._model(**batch).logits.float()
            found = logits.sigmoid() if self._each_alone else logits.softmax(-1)
            for label, score in zip(self.labels, found.amax(0).tolist(), strict=True):
                best[label] = max(best[label], score)
        return best

    def _batches(self, text: str) -> Iterator[Any]:
        """Yield the text's tokens in overlapping windows, a few windows at a time."""
        for start in range(0, max(1, len(text)), _PIECE_CHARS):
            piece = text[max(0, start - _OVERLAP_TOKENS) : start + _PIECE_CHARS].encode("utf-8", "replace").decode()
            windows = self._tokenizer(
                piece, truncation=True, max_length=self._tokens, stride=min(_OVERLAP_TOKENS, self._tokens // 4),
                return_overflowing_tokens=True, padding=True, return_tensors="pt",
            )  # fmt: skip
            windows.pop("overflow_to_sample_mapping", None)
            count = len(windows["input_ids"])
            for first in range(0, count, _WINDOWS_AT_ONCE):
                yield {name: values[first : first + _WINDOWS_AT_ONCE] for name, values in windows.items()}


if __name__ == "__main__":
    main()
