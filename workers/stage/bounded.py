"""Calls with a bound of our own, for a client whose own bounds do not always hold.

librdkafka's `send_offsets_to_transaction` was seen to wait for ever, whatever its timeout, when the broker died with
its request queued. The Kafka thread must come round all the same, or rebalances go unheard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from confluent_kafka import KafkaError, KafkaException

_Answer = SimpleQueue[BaseException | None]


def overdue() -> KafkaException:
    """What is raised for a call that takes longer than it may."""
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, "the client did not return in time"))


class Call:
    """A call that is under way on another thread."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    def result(self, seconds: float) -> None:
        """Wait so long for its end; raises what it raised, and KafkaException (`_TIMED_OUT`) when it has not ended."""
        try:
            error = self._answer.get(timeout=seconds)
        except Empty:
            raise overdue() from None
        if error is not None:
            raise error

    @property
    def has_ended(self) -> bool:
        """Whether `result` has something to say."""
        return not self._answer.empty()


class BoundedCaller:
    """A thread that makes calls, one after the other. A call that is overdue is left behind, and the thread with it."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], _Answer] | None] = SimpleQueue()
        # A daemon: a call that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def start(self, function: Callable[..., Any], *args: Any) -> Call:
        """Have `function` called while the caller goes on."""
        answer: _Answer = SimpleQueue()
        self._calls.put((function, args, answer))
        return Call(answer)

    def call(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        """Call `function`; raises what it raises, and KafkaException (`_TIMED_OUT`) when it is overdue."""
        self.start(function, *args).result(seconds)

    def end(self) -> None:
        """Let the thread end after what it is doing."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, args, answer = call
            try:
                function(*args)
            except BaseException as error:
                answer.put(error)
            else:
                answer.put(None)
