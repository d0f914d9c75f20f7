"""What every Kafka client of a worker or a delivery process is told."""

from __future__ import annotations

import logging
from typing import Any

from schemas.settings import KafkaSettings

_SYSLOG_CRITICAL = 2


def client_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Properties for a client that is polled: librdkafka's own lines come with that, and stand among ours.

    Without a logger librdkafka writes to standard error, in a form of its own between lines of JSON.
    """
    return {**kafka.client_config(), "logger": logging.getLogger("librdkafka")}


def asking_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Properties for a client that asks once and is never polled: what it meets it says by its exception."""
    return {**kafka.client_config(), "log_level": _SYSLOG_CRITICAL}
