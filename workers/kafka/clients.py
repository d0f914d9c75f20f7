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
    """Properties of a client that is polled: polling brings librdkafka's lines, which go to this process' log.

    Without a logger librdkafka writes to standard error, in a form of its own between lines of JSON.
    """
    return {**kafka.client_config(), "logger": _logger}


def asking_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Properties of a client that asks once and is never polled: its exception says why it failed."""
    return {**kafka.client_config(), "log_level": _SYSLOG_CRITICAL}


class RepeatFilter(logging.Filter):
    """Passes one line of a kind every 10 s; the next one states how many were held back.

    A kind is one report of librdkafka about one broker, numbers aside. While a broker is away, each client of a process
    reports a refusal at each attempt, and so does each new client.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._throttle = LogThrottle(REPEAT_SECONDS)

    def filter(self, record: logging.LogRecord) -> bool:
        """True if this line passes. confluent-kafka logs the event, the client, and `[thrd:BROKER]: …`."""
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
