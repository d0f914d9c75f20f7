"""Runs a model in a process of its own; `serving` is the process's side.

A model may crash, hang or grow at a hostile text, so its process may be killed at any time. A thread of its own asks
the process, a task at a time: a caller that stops waiting leaves no answer behind that a later caller would get.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread, Timer
from time import monotonic
from typing import IO, Any, Final, TypeVar, cast

from telemetry.logs import get_logger
from workers.processes.child import INHERITED, note_missing
from workers.processes.frames import ask, read_answer

log = get_logger()

T = TypeVar("T")

_ENVIRONMENT: Final = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Hides the GPUs from models, and makes waiting threads sleep, since the worker needs the cores too.

NumPy's threads would start while it is imported, before the process is confined; the models do not compute with them.
"""
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
_MOST_DOUBLINGS: Final = 10
"""Limit on the doublings of the pause, whose number may overflow in a day otherwise."""


class ModelNotLoaded(Exception):  # noqa: N818 - named after the event
    """The model cannot be loaded. The text gives the reason."""


class ModelAway(Exception):  # noqa: N818 - as above
    """The model gives no answer. The text gives the reason."""


class ModelProcess:
    """One process with one model. If the process is lost, another one is started at once, and tried again if it fails.

    `title` names the model in the log. `inherited` names further variables of the environment that the process gets.
    """

    def __init__(
        self,
        title: str,
        module: str,
        *arguments: str,
        load_seconds: float,
        inherited: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.title = title
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._load_seconds = load_seconds
        self._inherited = (*INHERITED, *inherited)
        self._environment = {**_ENVIRONMENT, **(environment or {})}
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """Tasks in their order, each with its future; None at the end."""
        self._thread: Thread | None = None
        self._lock = Lock()
        """Protects what `close` ends: no task is queued and no process starts afterwards."""
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._is_loaded = False
        self._next_load: float | None = None
        """Monotonic time at which a lost model is loaded again; None if none is lost."""
        self._failed_loads = 0
        """Failures since the model was lost, at most _MOST_DOUBLINGS."""

    @property
    def pid(self) -> int | None:
        """The process's id; None while the model is not loaded."""
        process = self._process
        return process.pid if process is not None and self._is_loaded else None

    def load(self) -> Future[None]:
        """Load the model. The future may raise ModelNotLoaded. Raises ModelAway if the process is stopping."""
        return self._queued(self._load)

    async def start(self) -> None:
        """Load the model. If the caller stops waiting, or the model cannot be loaded, end the process.

        Raises ModelNotLoaded.
        """
        try:
            await asyncio.wrap_future(self.load())
        finally:
            if not self._is_loaded:
                await asyncio.to_thread(self.close)

    def ask(
        self, kind: type[T], member: str, task: Mapping[str, Any], body: bytes, seconds: float, *, waits: bool = False
    ) -> Future[T]:
        """Give the process a task when earlier ones are done. Raises ModelAway, also by the future.

        The future gives the answer's `member`, which must be of this kind. If the answer takes more than `seconds`, the
        process counts as hung. While the model is being loaded again, a caller that `waits` is queued, and another one
        is refused.
        """
        if self._failed_loads or not (self._is_loaded or waits):
            raise self._away()

        def answered() -> T:
            if waits and not self._failed_loads:
                self._load_again()
            answer = self._answer(task, body, seconds)
            value = answer.get(member)
            if isinstance(value, kind):
                return value
            log.warning("A model failed.", action="model-failed", model=self.title, error=str(answer.get("failed")))
            raise ModelAway(f"the {self.title} failed")

        return self._queued(answered)

    def close(self) -> None:
        """End the process. Callers that wait get ModelAway or ModelNotLoaded."""
        with self._lock:
            self._closed = True
            self._tasks.put(None)
            if self._process is not None:
                self._process.kill()
        if self._thread is not None:
            self._thread.join()
        self._discard()

    def _queued(self, work: Callable[[], T]) -> Future[T]:
        """Queue a task for the thread, which the first task starts. Raises ModelAway."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise ModelAway("the process is stopping")
            if self._thread is None:
                thread = Thread(target=self._work, name=self.title, daemon=True)
                thread.start()
                self._thread = thread
            self._tasks.put(partial(_done, future, work))
        return future

    def _work(self) -> None:
        """Do the tasks. While none waits, load a lost model again."""
        while True:
            next_load = self._next_load
            try:
                task = self._tasks.get(timeout=None if next_load is None else max(0.0, next_load - monotonic()))
            except Empty:
                self._load_again()
                continue
            if task is None:
                return
            task()

    def _load(self) -> None:
        """Start the process. Raises ModelNotLoaded."""
        process = self._started()
        try:
            greeting = self._in_time(process, self._load_seconds, partial(read_answer, _stream(process.stdout)))
        except _NoAnswer as error:
            self._discard()
            raise ModelNotLoaded(error.of_a_load()) from None
        refused = greeting.get("refused")
        if refused is not None:
            self._discard()
            raise ModelNotLoaded(str(refused))
        note_missing(greeting.get("missing", []))
        self._is_loaded, self._next_load, self._failed_loads = True, None, 0

    def _started(self) -> subprocess.Popen[bytes]:
        """Start the process. Raises ModelNotLoaded."""
        passed = {name: os.environ[name] for name in self._inherited if name in os.environ}
        with self._lock:
            if self._closed:
                raise ModelNotLoaded("the process is stopping")
            try:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    env={**passed, **self._environment}, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise ModelNotLoaded(f"no process could be started ({error.strerror})") from None
            return self._process

    def _answer(self, task: Mapping[str, Any], body: bytes, seconds: float) -> dict[str, Any]:
        """Ask the process. A process that gives no answer is lost. Raises ModelAway."""
        process = self._process
        if process is None:
            raise self._away()
        asking = partial(ask, _stream(process.stdin), _stream(process.stdout), task, body)
        try:
            return self._in_time(process, seconds, asking)
        except _NoAnswer as error:
            self._lose(error.kind)
            raise ModelAway(f"the {self.title} failed") from None

    def _in_time(
        self, process: subprocess.Popen[bytes], seconds: float, talk: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Read an answer. A process that takes longer is killed, so that a blocked read or write ends.

        Raises _NoAnswer.
        """
        late = Timer(seconds, process.kill)
        late.daemon = True
        try:
            late.start()
            return talk()
        except (OSError, EOFError, ValueError, RuntimeError) as error:  # RuntimeError: no thread could be started
            raise _NoAnswer(type(error).__qualname__, took_too_long=late.finished.is_set()) from None
        finally:
            late.cancel()

    def _lose(self, error: str) -> None:
        self._discard()
        if not self._closed:
            log.error(
                "A model's process is lost; loading it again.", action="model-lost", model=self.title, error=error
            )
            self._next_load = monotonic()

    def _load_again(self) -> None:
        """Load a lost model. If that fails, it is tried again after a pause."""
        if self._next_load is None:
            return
        try:
            self._load()
        except ModelNotLoaded as reason:
            if self._closed:
                self._next_load = None
                return
            log.error("A model was not loaded again.", action="model-not-loaded", model=self.title, error=str(reason))
            self._next_load = monotonic() + min(FIRST_PAUSE_SECONDS * 2**self._failed_loads, LONGEST_PAUSE_SECONDS)
            self._failed_loads = min(self._failed_loads + 1, _MOST_DOUBLINGS)
        else:
            log.info("A model is loaded again.", action="model-ready", model=self.title)

    def _away(self) -> ModelAway:
        return ModelAway("the process is stopping" if self._closed else f"the {self.title} is being loaded again")

    def _discard(self) -> None:
        process, self._process, self._is_loaded = self._process, None, False
        if process is not None:
            with contextlib.suppress(OSError), process:  # closes the pipes, and waits for the end
                process.kill()


class _NoAnswer(Exception):  # noqa: N818 - private
    def __init__(self, kind: str, *, took_too_long: bool) -> None:
        self.kind = kind
        self._took_too_long = took_too_long

    def of_a_load(self) -> str:
        """Return the reason why a model was not loaded."""
        return "it took too long" if self._took_too_long else "its process ended; it may need more memory"


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    return cast("IO[bytes]", stream)


def _done(future: Future[T], work: Callable[[], T]) -> None:
    """Do a task, unless its caller has stopped waiting, and hand the future its result."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:  # the caller must get every error, and the thread must go on
        future.set_exception(error)
