"""The caller's side of a classifier's process: starts, asks and replaces the process.

A model may crash, hang or grow at a hostile text, so it runs in a process of its own, which may be killed. If the
process is gone, the next job starts another process and waits for it; further jobs queue behind that job.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Timer
from typing import Any, Final

from telemetry.clock import Clock, SystemClock
from telemetry.logs import get_logger

log = get_logger()

START_SECONDS: Final = 300.0
"""Timeout of loading a model."""
GRACE_SECONDS: Final = 5.0
"""Seconds after a rule's time is up until the process is killed as hung. A sound process stops reading on time."""
PAUSE_SECONDS: Final = 10.0
"""For this many seconds after a failed start, jobs get no answer, and the start is not tried again."""
_MOST_ANSWER_BYTES: Final = 16 * 1024 * 1024
_MOST_CONFIG_BYTES: Final = 1024 * 1024
_INHERITED: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "HOME", "OMP_NUM_THREADS")
"""The only variables that the classifier's process gets, because this process's environment holds secrets."""
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Keeps the libraries off the network and off the GPU, which the engine uses."""


class ModelRefused(Exception):  # noqa: N818 - named after the event
    """The model cannot be used. The text names the reason and the fix."""


class ClassifierAway(Exception):  # noqa: N818 - as above
    """The model gave no answer in time."""


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

    def __init__(self, folder: Path, clock: Clock | None = None, *, grace_seconds: float = GRACE_SECONDS) -> None:
        self.folder = folder
        self.labels: tuple[str, ...] = ()
        """The model's labels; empty until the model has been loaded."""
        self._clock = clock or SystemClock()
        self._grace_seconds = grace_seconds
        self._turn = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._not_before = float("-inf")
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process's id, or None while there is none."""
        return self._process.pid if self._process is not None else None

    def start(self, labels: Iterable[str] = ()) -> None:
        """Load the model, and wait until it is loaded, which may take many seconds.

        Raises ModelRefused, also for labels that the model does not have.
        """
        with self._turn:
            if self._connection is None:
                self._load()
        _check_labels(labels, self.labels)

    def close(self) -> None:
        """End the process. A call of `scores` that is waiting for the process raises ClassifierAway."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._turn:
            self._discard()

    def scores(self, texts: Sequence[str], seconds: float) -> list[dict[str, float]]:
        """Return each text's score for each label, from 0 to 1. The call waits for its turn. Raises ClassifierAway.

        `seconds` is the time for reading all texts, counted from the beginning of this call's turn.
        """
        with self._turn:
            connection = self._ready()
            try:
                answer = self._asked(connection, {"texts": texts, "seconds": seconds}, seconds + self._grace_seconds)
            except (OSError, EOFError, ValueError) as error:
                self._discard()
                log.error("A classifier's process is lost.", action="classifier-lost", error=type(error).__qualname__)
                raise ClassifierAway from None
        scores = answer.get("scores")
        if not isinstance(scores, list):
            log.warning("A classifier gave no scores.", action="classifier-failed", error=str(answer.get("failed")))
            raise ClassifierAway
        return scores

    def _ready(self) -> Connection:
        """Return the process's connection, after starting the process if it is gone. Raises ClassifierAway."""
        if self._connection is not None:
            return self._connection
        if self._closed or self._clock.monotonic() < self._not_before:
            raise ClassifierAway
        try:
            connection = self._load()
        except ModelRefused as refused:
            self._not_before = self._clock.monotonic() + PAUSE_SECONDS
            log.error("A classifier's process did not start.", action="classifier-not-started", error=str(refused))
            raise ClassifierAway from None
        log.info("A classifier's process is loaded again.", action="classifier-ready")
        return connection

    def _load(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            passed = {name: os.environ[name] for name in _INHERITED if name in os.environ}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "screening.classifier.child", str(theirs.fileno()), str(self.folder)],
                    pass_fds=(theirs.fileno(),), env={**passed, **_ENVIRONMENT}, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                ours.close()
                raise ModelRefused(f"folder: no process could be started for it ({error.strerror})") from None
        self._connection = Connection(ours.detach())
        try:
            greeting = self._asked(self._connection, None, START_SECONDS)
        except (OSError, EOFError, ValueError):
            self._discard()
            raise ModelRefused(f"folder: the process that loads {self.folder} ended; it may need more memory") from None
        if "refused" in greeting:
            self._discard()
            raise ModelRefused(f"folder: {self.folder} cannot be loaded: {greeting['refused']}")
        self.labels = tuple(map(str, greeting.get("labels", ())))
        return self._connection

    def _asked(self, connection: Connection, request: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Send a request, if there is one, and read an answer. Raises OSError, EOFError and ValueError.

        If the answer is late, a timer kills the process, so that a blocked send or read ends.
        """
        assert self._process is not None  # noqa: S101 - a connection has a process
        late = Timer(seconds, self._process.kill)
        late.start()
        try:
            if request is not None:
                connection.send_bytes(json.dumps(request).encode())
            answer = json.loads(connection.recv_bytes(_MOST_ANSWER_BYTES))
        finally:
            late.cancel()
        if not isinstance(answer, dict):
            raise ValueError("not an object")
        return answer

    def _discard(self) -> None:
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        if connection is not None:
            connection.close()
