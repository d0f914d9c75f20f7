"""The loop of the embedding model's process: `python -m workers.enrichment.choosing.embedding MODEL`.

A task has a `question`, and a JSON list of texts as its body. The answer is the cosine of each text with the question,
or `failed`; see `workers.processes.serving`.

The model runs on the CPU, since the engine uses the GPU. Three caps bound the process's memory: tokens of a text, texts
at once, and bytes of cached vectors.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from cachetools import LRUCache

from workers.processes.serving import Answer, serve_model

if TYPE_CHECKING:  # numpy comes with the extra `rerank`; main() reports a missing numpy
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

_MOST_THREADS: Final = 4
_MOST_TOKENS: Final = 512
"""Cap on the tokens of one text, since a model's cost grows with their square, and some models accept 8,192."""
_MOST_CHARS: Final = 8 * _MOST_TOKENS
_KEPT_BYTES: Final = 32 * 1024 * 1024


def main() -> None:
    """Load the model, and answer tasks until the input ends."""
    serve_model(_load, "sentence-transformers is not installed; install postback with the extra rerank")


def _load() -> Answer:
    """Load the model, and encode one text to test the model."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(min(_MOST_THREADS, torch.get_num_threads()))
    model = SentenceTransformer(sys.argv[1], device="cpu")
    model.max_seq_length = min(model.max_seq_length or _MOST_TOKENS, _MOST_TOKENS)
    texts = Texts(model)
    texts.similarities("ready", ["ready"])
    return lambda task, body: {"similarities": texts.similarities(task["question"], json.loads(body))}


class Texts:
    """The model and an LRU cache of its vectors, which is useful because jobs often ask about the same pages."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: LRUCache[bytes, Vector] = LRUCache(_KEPT_BYTES, getsizeof=lambda vector: int(vector.nbytes))

    def similarities(self, question: str, passages: Sequence[str]) -> list[float]:
        """Return the cosine of the question and each passage.

        Raises the model's errors, and ValueError if a cosine is NaN.
        """
        (asked,) = self._vectors(self._model.encode_query, "question", [question])
        told = self._vectors(self._model.encode_document, "passage", passages)
        found = [float(vector @ asked) for vector in told]
        if not all(map(math.isfinite, found)):
            raise ValueError("no numbers")
        return found

    def _vectors(self, encode: Any, kind: str, texts: Sequence[str]) -> list[Vector]:
        keys = [hashlib.blake2b(f"{kind}\n{text}".encode("utf-8", "replace")).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._kept}
        made = dict(zip(missing, _encoded(encode, list(missing.values())), strict=True)) if missing else {}
        vectors = [made[key] if key in made else self._kept[key] for key in keys]
        self._kept.update(made)
        return vectors


def _encoded(encode: Any, texts: Sequence[str]) -> list[Vector]:
    """Encode each text as a vector of length 1."""
    cut = [text[:_MOST_CHARS].encode("utf-8", "replace").decode() for text in texts]  # tokenizers refuse surrogates
    vectors = encode(cut, normalize_embeddings=True, show_progress_bar=False)
    return [vector.copy() for vector in vectors]  # a view would keep the whole batch in memory


if __name__ == "__main__":
    main()
