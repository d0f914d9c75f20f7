"""Defects: unexpected exceptions from a handler, a pace or a sharing.

No record may end a stage, so the stage goes on after each defect. The stage logs an error, and counts the defect in
`postback_handler_defects_total`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Literal

from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.record import Failure, Output, Record

HANDLER_DEFECT = "handler_defect"
"""The code of the failure, and the reason of the dead letter, if the handler's `give_up` raised too."""

LastResort = Callable[[Record, Failure], Sequence[Output]]
"""Returns the outputs for a record if its handler raised in `handle` and in `give_up`. The event loop calls it."""

Call = Literal["handle", "defer", "give_up", "last_resort", "due_ms", "assess"]
"""The call that raised, or that returned outputs too large for a broker. Its name is a label of the metric."""

_SAID: dict[Call, tuple[str, str]] = {
    "handle": ("handler-raised", "The handler raised; giving the record up."),
    "defer": ("handler-raised", "The handler raised while it deferred a record; giving the record up."),
    "give_up": ("give-up-raised", "The handler could not give a record up; writing its dead letter as a last resort."),
    "last_resort": ("record-passed-over", "The last resort raised; settling the record without a dead letter."),
    "due_ms": ("pace-raised", "The pace raised at a record; dispatching the record at once."),
    "assess": ("sharing-raised", "The sharing raised at a record; counting the record for no party."),
}

log = get_logger()


class Defects:
    """Reports the defects of one stage. Any thread may call `met`."""

    def __init__(self, metrics: Metrics) -> None:
        self._counts = metrics.handler_defects.begin()

    def met(self, call: Call, record: Record, error: Exception) -> None:
        """Log and count the exception that `call` raised for `record`."""
        self._counts[call].inc()
        action, sentence = _SAID[call]
        log.error(
            sentence,
            action=action,
            error=type(error).__qualname__,  # the error's text may quote the prompt
            stack="".join(traceback.format_tb(error.__traceback__)),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
