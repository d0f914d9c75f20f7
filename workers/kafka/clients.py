"""Properties of every Kafka client of a worker or a delivery process."""

from __future__ import annotations

import logging
import re
from typing import Any

from schemas.settings import KafkaSettings
from telemetry.clock import Clock, SystemClock
from telemetry.throttle import LogThrottle

REPEAT_SECONDS = 10.0

_SYSLOG_CRITICAL = 2


def client_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return properties of a client that is polled. Each poll writes librdkafka's log lines to this process' log.

    Without a logger librdkafka writes lines in another format to standard error, between the process' JSON lines.
    """
    return {**kafka.client_config(), "logger": _logger}


def asking_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return properties of a client that makes queries and is never polled: its errors arrive as exceptions."""
    return {**kafka.client_config(), "log_level": _SYSLOG_CRITICAL}


class RepeatFilter(logging.Filter):
    """Passes one line of each kind every 10 s. This line states how many lines of its kind were held back before.

    Lines of one kind have the same event, the same broker, and the same text apart from numbers. While a broker is
    away, each client of a process reports a refusal at each attempt.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._throttle = LogThrottle(REPEAT_SECONDS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this line passes. confluent-kafka logs the event, the client, and `[thrd:BROKER]: …`."""
        if not isinstance(record.args, tuple) or len(record.args) != 3:
            return True
        what, client, text = map(str, record.args)
        broker, _, happened = text.partition("]: ")
        kind = (what, broker, re.sub(r"\d+", "0", happened))
        held_back = self._throttle.admit(self._clock.monotonic(), kind)
        if held_back is None:
            return False
        if held_back:
            text = f"{text} (and {held_back} more like it before)"
        record.args = (what, client, text)
        return True


_logger = logging.getLogger("librdkafka")
_logger.addFilter(RepeatFilter(SystemClock()))
