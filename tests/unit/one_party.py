"""A sharing for tests of the stage."""

from __future__ import annotations

from collections.abc import Sequence

from workers.stage.record import Output, Record
from workers.stage.sharing import Place


class OneParty:
    """All records belong to one party and to its first place, and cost the same; none may be deferred."""

    later_share = 0.5

    def assess(self, record: Record) -> None:
        record.party = b""

    def place(self, topic: str) -> Place:
        return Place.FIRST

    def defer(self, record: Record) -> Sequence[Output]:
        raise AssertionError(record)
