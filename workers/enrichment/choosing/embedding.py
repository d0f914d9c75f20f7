"""The loop of the embedding model's process: `python -m workers.enrichment.choosing.embedding MODEL`.

MODEL is a folder, or a name of the Hugging Face hub.

A task has a `question`, and a JSON list of texts as its body. The answer is the cosine of each text with the question,
or `failed`; see `workers.processes.serving`.

The model runs on the CPU, since the engine uses the GPU. Three caps bound the process's memory: tokens of a text, texts
at once, and bytes of cached vectors.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cachetools import LRUCache

from workers.processes.confinement import end_with
from workers.processes.serving import Answer, Refused, reason_of, serve_model

if TYPE_CHECKING:  # numpy comes with the extra `rerank`; main() reports a missing numpy
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

_DOWNLOAD: Final = "--download"
_PACKAGES: Final = "sentence-transformers is not installed; install postback with the extra rerank"
_MOST_THREADS: Final = 4
_MOST_TOKENS: Final = 512
"""Cap on the tokens of one text, since a model's cost grows with their square, and some models accept 8,192."""
_MOST_CHARS: Final = 8 * _MOST_TOKENS
_KEPT_BYTES: Final = 32 * 1024 * 1024


def main() -> None:
    """Load the model, and answer tasks until the input ends; or only download the model."""
    if _DOWNLOAD in sys.argv:
        end_with(os.getppid())
        sys.stdout.write(json.dumps(_downloaded()))
    else:
        serve_model(_prepare, _load, _PACKAGES)


def _prepare() -> list[str]:
    """Import the libraries, and return the folder with the model's files. Raises Refused and ImportError."""
    folder = Path(sys.argv[1])
    if not folder.is_dir():
        folder = _in_cache(sys.argv[1])
        sys.argv[1] = str(folder)
        folder = folder.parents[1]  # the snapshot has links to files that are kept beside it
    importlib.import_module("sentence_transformers")  # it runs programs and writes files while it is imported
    return [str(folder)]


def _in_cache(model: str) -> Path:
    """Return the folder in the hub's cache into which a model is downloaded, unless it is there. Raises Refused.

    Another process downloads it, since this process must not have threads yet.
    """
    command = [sys.executable, "-P", "-m", "workers.enrichment.choosing.embedding", model, _DOWNLOAD]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise Refused("the process that downloads it ended")
    found = json.loads(done.stdout)
    if "refused" in found:
        raise Refused(found["refused"])
    return Path(found["folder"])


def _downloaded() -> dict[str, str]:
    """Load the model once, so that the hub's cache has all that loading needs, and return its folder there."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import LocalEntryNotFoundError
            from sentence_transformers import SentenceTransformer

            SentenceTransformer(name := sys.argv[1], device="cpu")
            with contextlib.suppress(LocalEntryNotFoundError):
                return {"folder": snapshot_download(name, local_files_only=True)}
            return {"folder": snapshot_download(f"sentence-transformers/{name}", local_files_only=True)}
    except ImportError:
        return {"refused": _PACKAGES}
    except Exception as error:  # the libraries raise many kinds of error for a missing or broken model
        return {"refused": reason_of(error)}


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
