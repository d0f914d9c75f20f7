"""Reads the models that the fleet's workers announce, for a check before jobs are sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from producers.scan import Scanner, Stored
from schemas.settings import KafkaSettings
from schemas.worker import LIVE_SECONDS, InvalidAnnouncement, WorkerAnnouncement, read_announcement
from telemetry.clock import Clock, SystemClock

_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Announced:
    """All models that the workers of the shared lanes announce, and the adapters of all workers."""

    models: tuple[str, ...]
    more: bool
    """True if one of the workers has more models or adapters than it announces."""
    adapters: tuple[str, ...] = ()
    """All workers' adapters; all lanes count, because a job is forwarded to its model's lane."""


def announced_models(settings: KafkaSettings, clock: Clock = _CLOCK) -> Announced | None:
    """Return the models that a submitted job may name; None if no worker has announced itself within three minutes.

    Only the models of workers of the shared lanes are returned, because these workers read each submitted job and
    forward it to an engine's lane if needed. Raises ProducerError.
    """
    since_ms = int((clock.time() - LIVE_SECONDS) * 1000)
    with Scanner(settings, clock) as scanner:
        workers = live_workers(scanner.read(scanner.ranges(settings.topics.workers, since_ms)), since_ms)
    shared = [worker for worker in workers if worker.lane is None]
    if not shared:
        return None
    models = dict.fromkeys(model for worker in shared for model in worker.models)
    adapters = dict.fromkeys(name for worker in workers for name in worker.adapters)
    more = any(worker.more for worker in shared) or any(worker.more for worker in workers if worker.adapters)
    return Announced(tuple(models), more, tuple(adapters))


def live_workers(records: Iterable[Stored], since_ms: int) -> list[WorkerAnnouncement]:
    """Return each worker's last announcement since `since_ms`, unless the worker has withdrawn it.

    `since_ms` is by the broker's clock. Unreadable records are skipped.
    """
    last: dict[bytes | None, WorkerAnnouncement] = {}
    for record in records:
        if record.value is None:
            last.pop(record.key, None)
        elif record.at_ms >= since_ms:
            try:
                last[record.key] = read_announcement(record.key, record.value)
            except InvalidAnnouncement:
                continue
    return sorted(last.values(), key=lambda worker: worker.replica)
