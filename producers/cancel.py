"""Cancel jobs: every worker follows the same topic, and whoever settles first, the answer or the cancellation, wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer

from producers.connection import connect, kafka_errors_translated
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, SystemClock

_SENT_SECONDS = 30.0
_CLOCK = SystemClock()


def cancel(settings: KafkaSettings, tenant: str, job_ids: Sequence[str], clock: Clock = _CLOCK) -> None:
    """Have these jobs end as `cancelled`, unless they have a result by then. Returns once Kafka has it.

    Raises ProducerError.
    """
    at = round(clock.time() * 1000)
    controls = [JobControl(tenant=tenant, job_id=job_id, state=ControlState.CANCELLED, at=at) for job_id in job_ids]
    producer: Any = connect(KafkaProducer, settings, acks="all", allow_auto_create_topics=False)
    try:
        with kafka_errors_translated(settings):
            sent = [
                producer.send(settings.topics.control, write_control(one), job_key_bytes(one.key), partition=0)
                for one in controls
            ]
            for each in sent:
                each.get(timeout=_SENT_SECONDS)
    finally:
        producer.close(timeout=0)
