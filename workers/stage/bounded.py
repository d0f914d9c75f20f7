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


class BoundedCaller:
    """A thread that makes calls, one after the other. A call that is overdue is left behind, and the thread with it."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], _Answer] | None] = SimpleQueue()
        # A daemon: a call that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        """Call `function`; raises what it raises, and KafkaException (`_TIMED_OUT`) when it is overdue."""
        answer: _Answer = SimpleQueue()
        self._calls.put((function, args, answer))
        try:
            error = answer.get(timeout=seconds)
        except Empty:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the client did not return in time")) from None
        if error is not None:
            raise error

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
