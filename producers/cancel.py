"""Cancel jobs: every worker follows the same topic, and whoever settles first, the answer or the cancellation, wins."""

from __future__ import annotations

from collections.abc import Sequence

from producers.compacted import put_facts
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, SystemClock

_CLOCK = SystemClock()


def cancel(settings: KafkaSettings, tenant: str, job_ids: Sequence[str], clock: Clock = _CLOCK) -> None:
    """Have these jobs end as `cancelled`, unless they have a result by then. Returns once Kafka has it.

    Raises ProducerError.
    """
    at = round(clock.time() * 1000)
    controls = [JobControl(tenant=tenant, job_id=job_id, state=ControlState.CANCELLED, at=at) for job_id in job_ids]
    put_facts(settings, settings.topics.control, [(job_key_bytes(one.key), write_control(one)) for one in controls])


def take_back(settings: KafkaSettings, tenant: str, job_ids: Sequence[str]) -> None:
    """Have jobs of these ids answered again, also ones that are submitted anew. Returns once Kafka has it.

    A job that ended as `cancelled` meanwhile has its result, and keeps it. Raises ProducerError.
    """
    put_facts(settings, settings.topics.control, [(job_key_bytes((tenant, job_id)), None) for job_id in job_ids])
