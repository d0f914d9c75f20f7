"""The settings of a stage, which its process chooses."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.stage.window import Limits


@dataclass(frozen=True, slots=True)
class StageSettings:
    """The name of a stage, the bounds of its window, and its waiting times."""

    name: str
    """The consumer group's name without the prefix; also part of the transactional.id."""
    limits: Limits = field(default_factory=Limits)
    drain_seconds: float = 30.0
    """The longest time for which a stop or a revocation waits for dispatched records."""
    revoke_drain_seconds: float | None = None
    """The time for which a revocation waits for dispatched records.

    Meanwhile the stage fetches no records: partitions that stay assigned go on with queued records only. None means
    `drain_seconds`."""
    group_commit_seconds: float = 0.0
    """The shortest time for which a complete record waits for other records to share its transaction.

    Set it above 0 only if no reader waits for the outputs.
    """
    suffix: str = ""
    """The last part of the transactional.id. Two stages of one process and group need different suffixes."""
