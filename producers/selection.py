"""A choice among the stored results and their callbacks, by tenant, endpoint, id and time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from producers.scan import Place, Stored
from schemas import topics
from telemetry.logs import NO_ORIGIN, origin_of

_ORIGIN = re.compile(r"[^:/?#]+://[^/?#]+")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which results: those that fit everything that is said here."""

    tenant: str | None = None
    endpoint: str | None = None
    """A URL; one that ends with its origin stands for everything at that origin."""
    ids: frozenset[str] = frozenset()
    """Job ids and webhook ids."""
    since_ms: int | None = None
    until_ms: int | None = None
    """Settled at this time or later, and before this one: Unix milliseconds."""
    places: frozenset[Place] = frozenset()
    """In `model_results`."""
    undelivered: bool = False
    """Only what was not delivered and is not on its way, which is not for `takes` to say."""
    waiting: bool = False
    """Of the undelivered also what is on its way. It is called back once more when its own time has come."""

    def takes(self, record: Stored) -> bool:
        """Whether this result is meant."""
        return (
            (self.tenant is None or record.tenant == self.tenant)
            and (self.since_ms is None or record.at_ms >= self.since_ms)
            and (self.until_ms is None or record.at_ms < self.until_ms)
            and (not self.ids or not self.ids.isdisjoint(record.ids))
            and (not self.places or record.place in self.places)
            and (self.endpoint is None or is_at(record.header(topics.CALLBACK_URL), self.endpoint))
        )


def is_at(url: str | None, endpoint: str) -> bool:
    """Whether a callback goes to this endpoint, or somewhere at this origin where `endpoint` is no more than one."""
    if url is None:
        return False
    is_origin = _ORIGIN.fullmatch(endpoint) is not None
    return url == endpoint or (is_origin and origin_of(url) == origin_of(endpoint) != NO_ORIGIN)
