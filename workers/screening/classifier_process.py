"""A text classification model of the operator's, in a process of its own. `classifier_model` is the process's side.

If the process is gone, the next job waits until the model is loaded again; further jobs queue behind that job.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from workers.processes.model_process import ModelAway, ModelNotLoaded, ModelProcess

LOAD_SECONDS: Final = 300.0
GRACE_SECONDS: Final = 5.0
"""Seconds after a rule's time is up until the process is killed as hung. A sound process stops reading on time."""
_MOST_CONFIG_BYTES: Final = 1024 * 1024
_ENVIRONMENT: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Keeps the libraries off the network."""


class ModelRefused(Exception):  # noqa: N818 - named after the event
    """The model cannot be used. The text names the reason and the fix."""


def check_folder(folder: Path, labels: Iterable[str]) -> None:
    """Check a model's folder and its labels without loading the model. Raises ModelRefused."""
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(_MOST_CONFIG_BYTES))
    except OSError as error:
        raise ModelRefused(f"folder: {folder} has no config.json that can be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ModelRefused(f"folder: the config.json of {folder} is not JSON") from None
    if not any(folder.glob("*.safetensors")):
        raise ModelRefused(f"folder: {folder} has no *.safetensors; save the model's weights in that format")
    names = config.get("id2label") if isinstance(config, dict) else None
    if isinstance(names, dict):
        _check_labels(labels, [str(name) for name in names.values()])


def _check_labels(wanted: Iterable[str], known: Sequence[str]) -> None:
    missing = [label for label in wanted if label not in known]
    if missing:
        raise ModelRefused(f"labels: the model has no label {missing[0]}; it has {', '.join(known[:16])}")


class Classifier:
    """Runs one process with the model of a folder, for all rules that name it. Several threads may call the methods."""

    def __init__(self, folder: Path, *, grace_seconds: float = GRACE_SECONDS) -> None:
        self.folder = folder
        self.labels: tuple[str, ...] = ()
        """The model's labels; empty until the model has been loaded."""
        self._grace_seconds = grace_seconds
        self._process = ModelProcess(
            f"classifier {folder.name}",
            "workers.screening.classifier_model",
            str(folder),
            load_seconds=LOAD_SECONDS,
            inherited=("HOME", "OMP_NUM_THREADS"),
            environment=_ENVIRONMENT,
        )

    @property
    def pid(self) -> int | None:
        """The process's id; None while the model is not loaded."""
        return self._process.pid

    def start(self, labels: Iterable[str] = ()) -> None:
        """Load the model, and wait until it is loaded, which may take many seconds.

        Raises ModelRefused, also for labels that the model does not have.
        """
        if not self.labels:
            try:
                self._process.load().result()
                known = self._process.ask(list, "labels", {}, b"", self._grace_seconds).result()
                self.labels = tuple(map(str, known))
            except ModelNotLoaded as reason:
                raise ModelRefused(f"folder: {self.folder} cannot be loaded: {reason}") from None
            except ModelAway as reason:
                raise ModelRefused(f"folder: {self.folder} cannot be used: {reason}") from None
        _check_labels(labels, self.labels)

    def close(self) -> None:
        """End the process. A call of `scores` that is waiting for the process raises ModelAway."""
        self._process.close()

    def scores(self, texts: Sequence[str], seconds: float) -> list[dict[str, float]]:
        """Return each text's score for each label, from 0 to 1. The call waits for its turn. Raises ModelAway.

        `seconds` is the time for reading all texts, counted from the beginning of this call's turn.
        """
        body, longest = json.dumps(texts).encode(), seconds + self._grace_seconds
        return self._process.ask(list, "scores", {"seconds": seconds}, body, longest, waits=True).result()
