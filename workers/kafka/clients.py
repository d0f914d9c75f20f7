"""What every Kafka client of a worker or a delivery process is told."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from threading import Lock
from typing import Any

from schemas.settings import KafkaSettings
from telemetry.clock import Clock, SystemClock

SELDOM_SECONDS = 10.0
MAX_KINDS = 1000

_SYSLOG_CRITICAL = 2


def client_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Properties for a client that is polled: librdkafka's own lines come with that, and stand among ours.

    Without a logger librdkafka writes to standard error, in a form of its own between lines of JSON.
    """
    return {**kafka.client_config(), "logger": _logger}


def asking_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Properties for a client that asks once and is never polled: what it meets it says by its exception."""
    return {**kafka.client_config(), "log_level": _SYSLOG_CRITICAL}


@dataclass(slots=True)
class _Kind:
    passed_at: float = -math.inf
    held_back: int = 0


class Seldom(logging.Filter):
    """Lets one line of a kind pass every 10 s; the next that passes says how many were held back.

    A kind is what librdkafka reports of one broker, numbers aside: while it is away, each of a process' clients says at
    each attempt that it was refused, and a client that was made anew says so all the more.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._lock = Lock()
        self._kinds: dict[tuple[str, ...], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Of a line as confluent-kafka logs it: what happened, which client, and `[thrd:BROKER]: …`."""
        if not isinstance(record.args, tuple) or len(record.args) != 3:
            return True
        what, client, text = map(str, record.args)
        broker, _, happened = text.partition("]: ")
        now = self._clock.monotonic()
        with self._lock:
            if len(self._kinds) >= MAX_KINDS:
                self._kinds.clear()
            kind = self._kinds.setdefault((what, broker, re.sub(r"\d+", "0", happened)), _Kind())
            if now - kind.passed_at < SELDOM_SECONDS:
                kind.held_back += 1
                return False
            if kind.held_back:
                text = f"{text} (and {kind.held_back} more like it before)"
            kind.passed_at, kind.held_back = now, 0
        record.args = (what, client, text)
        return True


_logger = logging.getLogger("librdkafka")
_logger.addFilter(Seldom(SystemClock()))
