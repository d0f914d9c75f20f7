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
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock, Timer
from typing import IO, Any, Final, TypeVar, cast

from telemetry.logs import get_logger
from workers.processes.child import INHERITED, note_missing
from workers.processes.frames import ask, read_answer

log = get_logger()

T = TypeVar("T")

_ENVIRONMENT: Final = {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
"""Hides the GPUs from models, and makes waiting threads sleep, since the worker needs the cores too."""
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0


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
        self._thread = ThreadPoolExecutor(1, title)
        self._lock = Lock()
        """Protects the process's start from `close`: no process starts after the end."""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_loaded = False
        self._is_paused = False
        self._closed = False
        self._next_try: Timer | None = None

    @property
    def pid(self) -> int | None:
        """The process's id; None while the model is not loaded."""
        process = self._process
        return process.pid if process is not None and self._is_loaded else None

    def load(self) -> Future[None]:
        """Load the model. The future may raise ModelNotLoaded."""
        return self._thread.submit(self._load)

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
        if self._closed:
            raise ModelAway("the process is stopping")
        if self._is_paused or not (self._is_loaded or waits):
            raise ModelAway(f"the {self.title} is being loaded again")

        def answered() -> T:
            if waits and not self._is_paused:
                self._load_again(FIRST_PAUSE_SECONDS)
            answer = self._answer(task, body, seconds)
            value = answer.get(member)
            if isinstance(value, kind):
                return value
            log.warning("A model failed.", action="model-failed", model=self.title, error=str(answer.get("failed")))
            raise ModelAway(f"the {self.title} failed")

        return self._thread.submit(answered)

    def close(self) -> None:
        """End the process. Callers that wait get ModelAway or ModelNotLoaded."""
        with self._lock:
            self._closed = True
            if self._next_try is not None:
                self._next_try.cancel()
            if self._process is not None:
                self._process.kill()
        self._thread.shutdown()
        self._discard()

    def _load(self) -> None:
        greeting = self._greeting()
        refused = greeting.get("refused")
        if refused is not None:
            self._discard()
            raise ModelNotLoaded(str(refused))
        note_missing(greeting.get("missing", []))
        self._is_loaded = True
        self._is_paused = False

    def _greeting(self) -> dict[str, Any]:
        """Start the process, and return its first answer. Raises ModelNotLoaded."""
        passed = {name: os.environ[name] for name in self._inherited if name in os.environ}
        try:
            with self._lock:
                if self._closed:
                    raise ModelNotLoaded("the process is stopping")
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    env={**passed, **self._environment}, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise ModelNotLoaded(f"no process could be started ({error.strerror})") from None
        late = self._killing_after(self._load_seconds)
        try:
            return read_answer(cast("IO[bytes]", self._process.stdout))
        except (OSError, EOFError, ValueError):
            reason = "its process ended; it may need more memory" if late.is_alive() else "it took too long"
            self._discard()
            raise ModelNotLoaded(reason) from None
        finally:
            late.cancel()

    def _answer(self, task: Mapping[str, Any], body: bytes, seconds: float) -> dict[str, Any]:
        process = self._process
        if process is None:
            raise ModelAway(f"the {self.title} is being loaded again")
        late = self._killing_after(seconds)
        try:
            return ask(cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout), task, body)
        except (OSError, EOFError, ValueError) as error:
            self._lose(type(error).__qualname__)
            raise ModelAway(f"the {self.title} failed") from None
        finally:
            late.cancel()

    def _killing_after(self, seconds: float) -> Timer:
        """Start a timer that kills the process, so that a blocked read or write ends."""
        assert self._process is not None  # noqa: S101 - the callers have started one
        late = Timer(seconds, self._process.kill)
        late.daemon = True
        late.start()
        return late

    def _lose(self, error: str) -> None:
        self._discard()
        if not self._closed:
            log.error(
                "A model's process is lost; loading it again.", action="model-lost", model=self.title, error=error
            )
            self._try_again(FIRST_PAUSE_SECONDS)

    def _try_again(self, pause: float) -> None:
        """Load the model after the tasks that wait already; if this fails, again after `pause` seconds."""
        with contextlib.suppress(RuntimeError):  # the thread has been shut down
            self._thread.submit(self._load_again, pause)

    def _load_again(self, pause: float) -> None:
        if self._is_loaded:
            return
        try:
            self._load()
        except ModelNotLoaded as reason:
            if self._closed:
                return
            log.error("A model was not loaded again.", action="model-not-loaded", model=self.title, error=str(reason))
            self._is_paused = True
            longer = min(2 * pause, LONGEST_PAUSE_SECONDS)
            with self._lock:
                if not self._closed:
                    self._next_try = Timer(pause, partial(self._try_again, longer))
                    self._next_try.daemon = True
                    self._next_try.start()
        else:
            log.info("A model is loaded again.", action="model-ready", model=self.title)

    def _discard(self) -> None:
        process, self._process, self._is_loaded = self._process, None, False
        if process is not None:
            with contextlib.suppress(OSError), process:  # closes the pipes, and waits for the end
                process.kill()
