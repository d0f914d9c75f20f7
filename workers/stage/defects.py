"""Defects: exceptions from code that a record met and that should have raised none.

No record may end a stage, so each defect has a way on, and none goes unseen: it is an error in the log, and it is
counted in `postback_handler_defects_total`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Literal

from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.stage.record import Failure, Output, Record

HANDLER_DEFECT = "handler_defect"
"""The failure's code, and the dead letter's reason, where the handler could not even give a record up."""

LastResort = Callable[[Record, Failure], Sequence[Output]]
"""The outputs for a record that its handler can neither handle nor give up. Called on the event loop; never raises."""

Call = Literal["handle", "defer", "give_up", "last_resort", "due_ms", "party"]
"""The call that raised, or that returned outputs that no broker takes: the metric's label."""

_SAID: dict[Call, tuple[str, str]] = {
    "handle": ("handler-raised", "The handler raised; the record is given up."),
    "defer": ("handler-raised", "The handler raised at a deferral; the record is given up."),
    "give_up": ("give-up-raised", "The handler could not give a record up; the last resort writes its dead letter."),
    "last_resort": ("record-passed-over", "The last resort raised; the record is settled without a dead letter."),
    "due_ms": ("pace-raised", "The pace raised at a record; the record counts as due."),
    "party": ("sharing-raised", "The sharing raised at a record; the record counts for no party."),
}

log = get_logger()


class Defects:
    """Reports the defects of one stage. May be called from any thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._counts = {call: metrics.handler_defects.labels(call) for call in _SAID}

    def met(self, call: Call, record: Record, error: Exception) -> None:
        """Log and count that this call raised at this record."""
        self._counts[call].inc()
        action, sentence = _SAID[call]
        log.error(
            sentence,
            action=action,
            error=type(error).__qualname__,  # its text may quote the prompt
            stack="".join(traceback.format_tb(error.__traceback__)),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
