"""Computes the similarity of texts by meaning, such as passages and a question, with a model in a process of its own.

A worker has only one such process, because a model takes a gigabyte of memory, and all cores that it may use. The
process serves one job at a time, see `NewestFirst`. Passages are sent in batches. So when a job's time is up, the job
keeps the results of the finished batches. A cancelled job wastes at most the running batch.

If the process dies or hangs, the embedder kills it and starts another one. Loading the model takes many seconds; until
the model is loaded, jobs are refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from telemetry.clock import Clock
from workers.processes.model_process import ModelAway, ModelNotLoaded, ModelProcess

T = TypeVar("T")

_MODULE: Final = "workers.enrichment.choosing.embedding"
"""The process's side."""
RERANK_SETTING: Final = "POSTBACK_ENRICHMENT__RERANK_MODEL"
BATCH: Final = 8
"""Passages per batch. Larger batches lose more work when a job's time is up, and are hardly faster on two cores."""
BATCH_SECONDS: Final = 20.0
"""Timeout of a batch; a process that takes longer counts as hung."""
LOAD_SECONDS: Final = 1800.0
"""Timeout of loading the model, which may have to be downloaded."""
_NEWEST_WEIGHT: Final = 0.25
"""Weight of the last request in the average time of one request."""

_INHERITED: Final = (
    "HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE", "OMP_NUM_THREADS",
)  # fmt: skip
"""Variables of the worker's environment that are passed on, since loading a model may need them."""


class EmbeddingModelRefused(Exception):  # noqa: N818 - named after the event, as TemplateRefused is
    """The embedding model cannot be used. The text names the setting, the reason and the fix."""


class EmbedderAway(Exception):  # noqa: N818 - as above
    """The model gives no answer. The text tells the result's reader the reason."""


@dataclass(slots=True, eq=False)
class _Request:
    question: str
    passages: Sequence[str]
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    found: list[float] = field(default_factory=list)

    def end(self, reason: str | None = None) -> None:
        """Wake the waiting job. The job gets the similarities found so far, or EmbedderAway if `reason` is given."""
        if not self.ended.done():
            self.ended.set_exception(EmbedderAway(reason)) if reason is not None else self.ended.set_result(None)


class Embedder:
    """Runs one process with the model of this name or folder, for all jobs. `setting` names the model's variable."""

    def __init__(
        self, model: str, clock: Clock, *, setting: str = RERANK_SETTING, batch_seconds: float = BATCH_SECONDS
    ) -> None:
        self._model = model
        self._setting = setting
        self._clock = clock
        self._batch_seconds = batch_seconds
        self._process = ModelProcess("embedding model", _MODULE, model, load_seconds=LOAD_SECONDS, inherited=_INHERITED)
        self._working: asyncio.Task[None] | None = None
        self._line: NewestFirst[_Request] = NewestFirst()
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Load the model, which takes many seconds. Raises EmbeddingModelRefused."""
        try:
            await self._process.start()
        except ModelNotLoaded as reason:
            raise EmbeddingModelRefused(
                f"{self._setting} names {self._model}, which cannot be loaded: {reason}. "
                "Name a sentence-transformers model or its folder, or unset the variable, so that words alone decide"
            ) from None
        self._working = asyncio.create_task(self._work(), name="embedder")

    async def close(self) -> None:
        """End the process."""
        if self._working is not None:
            self._working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._working
        self._end_all("the worker is stopping")
        await asyncio.to_thread(self._process.close)

    async def similarities(self, question: str, passages: Sequence[str], seconds: float) -> list[float]:
        """Return the cosine, from -1 to 1, of the question and each passage, in the order of `passages`.

        If time runs out, the last passages have no cosine. If newer requests evict this request, the list is
        empty at once. Raises EmbedderAway. May be cancelled.
        """
        if self._process.pid is None:
            raise EmbedderAway("the embedding model is being loaded again")
        request = _Request(question, passages)
        for crowded in self._line.put(request, seconds):
            crowded.end()
        self._news.set()
        try:
            async with asyncio.timeout(seconds):
                await request.ended
        except TimeoutError:
            pass
        finally:
            self._line.leave(request)
        return list(request.found)

    async def _work(self) -> None:
        while True:
            while not self._line:
                self._news.clear()
                await self._news.wait()
            request, started = self._line.next(), self._clock.monotonic()
            try:
                await self._answer(request)
            except ModelAway as away:
                request.end(str(away))
                if self._process.pid is None:
                    self._end_all(str(away))
            finally:
                request.end()
            self._line.served(self._clock.monotonic() - started)

    async def _answer(self, request: _Request) -> None:
        """Compare a request's passages with its question. Raises ModelAway."""
        for start in range(0, len(request.passages), BATCH):
            if request.ended.done():  # the job has stopped waiting
                return
            batch = json.dumps(request.passages[start : start + BATCH]).encode()
            task = {"question": request.question}
            asked = self._process.ask(list, "similarities", task, batch, self._batch_seconds)
            cosines = await asyncio.wrap_future(asked)
            request.found += cosines

    def _end_all(self, reason: str) -> None:
        for request in self._line.clear():
            request.end(reason)


class NewestFirst(Generic[T]):
    """A queue of requests with short deadlines, for a server that may be too slow for all requests. Falsy when empty.

    The newest request is served next. If the oldest were served next, a long queue would make each request just too
    late (Maurer, "Fail at Scale", 2015, "adaptive LIFO"). The queue holds only as many requests as the server can serve
    within a request's time. Requests that cannot be served in time are thus evicted at once.
    """

    def __init__(self) -> None:
        self._waiting: list[T] = []
        self._one_seconds: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: T, seconds: float) -> list[T]:
        """Add a request that must be served within `seconds`.

        Return the oldest requests, which are evicted because they would be late.
        """
        self._waiting.append(request)
        served = seconds / self._one_seconds if self._one_seconds else float(len(self._waiting))
        crowded = max(0, len(self._waiting) - max(1, int(served)))
        gone, self._waiting = self._waiting[:crowded], self._waiting[crowded:]
        return gone

    def next(self) -> T:
        """Remove and return the newest request. Raises IndexError if none waits."""
        return self._waiting.pop()

    def served(self, seconds: float) -> None:
        """Record the service time of one request."""
        before = seconds if self._one_seconds is None else self._one_seconds
        self._one_seconds = before + _NEWEST_WEIGHT * (seconds - before)

    def leave(self, request: T) -> None:
        """Remove the request if it is still in the queue."""
        if request in self._waiting:
            self._waiting.remove(request)

    def clear(self) -> list[T]:
        """Remove and return all waiting requests."""
        gone, self._waiting = self._waiting, []
        return gone
