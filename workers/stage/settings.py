"""What a process tells its stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.stage.window import Limits


@dataclass(frozen=True, slots=True)
class StageSettings:
    """The name of a stage, its bounds, and its patience."""

    name: str
    """The consumer group's name without the prefix; also part of the transactional.id."""
    limits: Limits = field(default_factory=Limits)
    drain_seconds: float = 30.0
    """How long a stop waits for dispatched records, and a revocation where `revoke_drain_seconds` is not shorter."""
    revoke_drain_seconds: float | None = None
    """How long a revocation waits for dispatched records. The stage fetches nothing meanwhile: the partitions that
    stay live on their parked records."""
    group_commit_seconds: float = 0.0
    """The least time for which a complete record waits for others to share its transaction. Above 0 only where no
    reader waits for the outputs."""
