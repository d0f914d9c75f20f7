"""Calls of the Kafka client with a second timeout, because the client's own timeout does not always work.

librdkafka's `send_offsets_to_transaction` was seen to ignore its timeout and wait for ever, when the broker died while
the request was queued. If the Kafka thread waited for ever, the stage would miss rebalances.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from confluent_kafka import KafkaError, KafkaException

_Answer = SimpleQueue[BaseException | None]


def overdue() -> KafkaException:
    """Return the error for a call that exceeds its timeout."""
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, "the client did not return in time"))


class Call:
    """A call that is under way on another thread."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    def result(self, seconds: float) -> None:
        """Wait for the call to end. Raises the call's error, and KafkaException (`_TIMED_OUT`) after `seconds`."""
        try:
            error = self._answer.get(timeout=seconds)
        except Empty:
            raise overdue() from None
        if error is not None:
            raise error

    @property
    def has_ended(self) -> bool:
        """True if the call has returned or raised, so that `result` does not wait."""
        return not self._answer.empty()


class BoundedCaller:
    """A thread that makes calls one after the other. The caller abandons the whole thread if a call is overdue."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], _Answer] | None] = SimpleQueue()
        # The thread is a daemon, because a call that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def start(self, function: Callable[..., Any], *args: Any) -> Call:
        """Queue a call of `function` for the thread, and return at once."""
        answer: _Answer = SimpleQueue()
        self._calls.put((function, args, answer))
        return Call(answer)

    def call(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        """Call `function` and wait. Raises the function's error, and KafkaException (`_TIMED_OUT`) after `seconds`."""
        self.start(function, *args).result(seconds)

    def end(self) -> None:
        """End the thread after its present call."""
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
