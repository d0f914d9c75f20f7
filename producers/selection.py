"""A selection of stored results and their callbacks, by tenant, endpoint, id and time."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

from producers.scan import Stored, StoredPlace
from schemas import topics
from telemetry.logs import NO_ORIGIN, origin_of

_ORIGIN = re.compile(r"[^:/?#]+://[^/?#]+")


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """A selection of records: those that match every field that is set."""

    tenant: str | None = None
    endpoint: str | None = None
    """The callback's URL. An origin without a path selects all URLs of that origin."""
    ids: frozenset[str] = frozenset()
    """Job ids and webhook ids."""
    since_ms: int | None = None
    until_ms: int | None = None
    """Select only records that were written at `since_ms` or later, and before `until_ms`, Unix milliseconds."""

    def fits(self, record: Stored, ids: Set[str]) -> bool:
        """True if a record with these ids matches the fields."""
        return (
            (self.tenant is None or record.tenant == self.tenant)
            and (self.since_ms is None or record.at_ms >= self.since_ms)
            and (self.until_ms is None or record.at_ms < self.until_ms)
            and (not self.ids or not self.ids.isdisjoint(ids))
            and (self.endpoint is None or is_at(record.header(topics.CALLBACK_URL), self.endpoint))
        )


@dataclass(frozen=True, slots=True)
class Selection(RecordFilter):
    """A selection of results."""

    places: frozenset[StoredPlace] = frozenset()
    """Places in `model_results`."""
    undelivered: bool = False
    """Select only results that are neither delivered nor still being tried. The caller checks this; `takes` does
    not."""
    waiting: bool = False
    """Also select undelivered results that are still being tried. Their scheduled attempts still take place."""

    def takes(self, record: Stored) -> bool:
        """True if this result is selected; ignores `undelivered` and `waiting`."""
        return self.fits(record, record.ids) and (not self.places or record.place in self.places)


def is_at(url: str | None, endpoint: str) -> bool:
    """True if a callback's URL is `endpoint`, or has this origin if `endpoint` is an origin."""
    if url is None:
        return False
    is_origin = _ORIGIN.fullmatch(endpoint) is not None
    return url == endpoint or (is_origin and origin_of(url) == origin_of(endpoint) != NO_ORIGIN)
