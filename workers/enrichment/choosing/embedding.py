"""The loop of the embedding model's process: `python -m workers.enrichment.choosing.embedding MODEL`.

The process takes tasks from standard input and answers on standard output, as `frames` describes. If the model cannot
be loaded, the first answer is `refused` with the reason; else the answer lists the fences that this kernel lacks
(`missing`).

A task has a `question`, and a JSON list of texts as its body. The answer is the cosine of each text with the question,
or `failed`.

The texts are untrusted. Once the model is loaded, the process cannot open sockets, and can read only files of Python
and of the system's libraries.

The model runs on the CPU, since the engine uses the GPU. Three caps bound the process's memory: tokens of a text, texts
at once, and bytes of cached vectors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from cachetools import LRUCache

from workers.enrichment.processes.confinement import confine
from workers.enrichment.processes.frames import receive, send

if TYPE_CHECKING:  # numpy comes with the extra `rerank`; main() reports a missing numpy
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

_MOST_THREADS: Final = 4
_MOST_TOKENS: Final = 512
"""Cap on the tokens of one text, since a model's cost grows with their square, and some models accept 8,192."""
_MOST_CHARS: Final = 8 * _MOST_TOKENS
_MOST_REASON_CHARS: Final = 200
_KEPT_BYTES: Final = 32 * 1024 * 1024
_LOOKED_UP: Final = ("/etc/ld.so.cache", "/sys/devices/system/cpu", "/proc/cpuinfo", "/proc/meminfo")


def main() -> None:
    """Load the model, and answer tasks until the input ends."""
    output = own_output()
    try:
        texts = Texts(_loaded(sys.argv[1]))
    except ImportError:
        send(output, {"refused": "sentence-transformers is not installed; install postback with the extra rerank"})
    except Exception as error:  # the libraries raise many kinds of error for a missing or broken model
        send(output, {"refused": reason_of(error)})
    else:
        send(output, {"missing": confine(readable())})
        while (request := receive(sys.stdin.buffer)) is not None:
            send(output, _answer(texts, *request))


def readable() -> list[str]:
    """List the files that libraries read late: Python's folders, and the system's files about cores and memory.

    The listed folders and files hold no secrets, unlike the rest of `/proc` and the worker's own folder.
    """
    python = [path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name))]
    ours = str(Path(__file__).parents[2])
    return [*dict.fromkeys((*python, ours, "/usr/lib", "/usr/local/lib", "/lib", "/lib64", *_LOOKED_UP))]


def own_output() -> BinaryIO:
    """Reserve standard output for answers, since text that a library prints would break the answers' framing."""
    own = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return own


def _loaded(name: str) -> Any:
    """Load the model, and encode one text to test the model."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(min(_MOST_THREADS, torch.get_num_threads()))
    model = SentenceTransformer(name, device="cpu")
    model.max_seq_length = min(model.max_seq_length or _MOST_TOKENS, _MOST_TOKENS)
    Texts(model).similarities("ready", ["ready"])
    return model


def reason_of(error: Exception) -> str:
    """Return an error's kind and first line, in a few words."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__qualname__}: {first}"[:_MOST_REASON_CHARS]


def _answer(texts: Texts, task: dict[str, Any], body: bytes) -> dict[str, Any]:
    try:
        return {"similarities": texts.similarities(task["question"], json.loads(body))}
    except Exception as error:  # a failure at one text must not end the process, which serves all jobs
        return {"failed": type(error).__qualname__}


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
