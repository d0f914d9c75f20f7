"""The loop of the cross-encoder's process: `python -m workers.enrichment.answering.entailment MODEL [CLASSES]`.

The body of a task is JSON: a `sentence` and its `premises`, which are joined to one text. The answer has the
probability of each class by its name, or `failed`; see `processes.model`. MODEL is a folder with one `.onnx` file, or
this file. Beside it, or one folder away, stand `tokenizer.json`, and a `config.json` whose `id2label` names the
classes, unless CLASSES does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from workers.processes.serving import Answer, serve_model

NEEDED: Final = "contradiction"
"""The class that a model must have. With `entailment` too, it also finds support; all others decide nothing."""
_MOST_TOKENS: Final = 512
_MOST_THREADS: Final = 2

Probabilities = Callable[[str, str], dict[str, float]]


def main() -> None:
    """Load the model, and answer tasks until the input ends."""
    serve_model(_places, _load, "onnxruntime or tokenizers is not installed; install postback with entailment")


def _places() -> list[str]:
    """Return the model's file or folder, and the folder beside which `_found` looks."""
    place = Path(sys.argv[1])
    return [str(place), str(place.parent)]


def _load() -> Answer:
    """Load the model, and judge one sentence to test the model. Raises ValueError, and the libraries' errors."""
    probabilities = _loaded(Path(sys.argv[1]), sys.argv[2].split(",") if len(sys.argv) > 2 else None)
    probabilities("It rains.", "It rains.")

    def answer(_: dict[str, Any], body: bytes) -> dict[str, Any]:
        task = json.loads(body)
        return {"probabilities": probabilities(" ".join(task["premises"]), task["sentence"])}

    return answer


def _loaded(folder: Path, stated: list[str] | None) -> Probabilities:
    """Load the model and its tokenizer. Raises ValueError for unusable classes, and the libraries' errors."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    file = _found(folder, "*.onnx")
    classes = stated or _classes(file.parent)
    if NEEDED not in classes:
        raise ValueError(f"its classes are {', '.join(classes)}; state them, {NEEDED} among them")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _MOST_THREADS
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}
    length = session.get_inputs()[0].shape[-1]  # a number if the model reads texts of one length only
    tokenizer = Tokenizer.from_file(str(_found(file.parent, "tokenizer.json")))
    tokenizer.enable_truncation(length if isinstance(length, int) else _MOST_TOKENS, strategy="only_first")
    if isinstance(length, int):
        tokenizer.enable_padding(length=length)
    else:
        tokenizer.no_padding()

    def probabilities(premise: str, sentence: str) -> dict[str, float]:
        encoded = tokenizer.encode(premise, sentence)
        known = {
            "input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids
        }  # fmt: skip
        inputs = {name: np.array([values], dtype=np.int64) for name, values in known.items() if name in names}
        logits = np.asarray(session.run(None, inputs)[0][0], dtype=np.float64)
        if len(logits) != len(classes):
            raise ValueError(f"the model has {len(logits)} classes, and {len(classes)} are named")
        powers = np.exp(logits - logits.max())
        return dict(zip(classes, (powers / powers.sum()).tolist(), strict=True))

    return probabilities


def _found(place: Path, name: str) -> Path:
    """Return the file at `place`, in it, or one folder away. Raises ValueError."""
    if place.is_file():
        return place
    found = sorted(
        {*place.glob(name), *place.glob(f"*/{name}"), *place.parent.glob(name)}, key=lambda one: len(str(one))
    )
    if not found:
        raise ValueError(f"{place} has no {name}")
    return found[0]


def _classes(folder: Path) -> list[str]:
    """Return the classes of `config.json` in their order, in lower case."""
    labels = json.loads(_found(folder, "config.json").read_bytes()).get("id2label") or {}
    return [str(labels[number]).lower() for number in sorted(labels, key=int)]


if __name__ == "__main__":
    main()
