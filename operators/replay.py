"""Replay: put kept results of `model_results` into delivery again, under their former `webhook-id`.

A replayed result goes into the smallest tier, not into `model_results`, where a reader counts one result for each job.
Its attempts start anew. Two replays call back twice, with one `webhook-id`, by which a consumer drops the repeat. A
selection of undelivered results leaves out those under way. It marks the dead letters of the results that it puts
back, as a redrive does and under the same identity, so that neither repeats the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from operators.endpoints import disabled_endpoints
from operators.put_back import MAX_RECORD_BYTES, PutBack, Returning, for_delivery, put_back
from operators.undelivered import CallbackStanding, Undelivered
from producers.scan import Place, Range, Scanner, Stored
from producers.selection import Selection
from schemas import topics
from schemas.settings import KafkaSettings
from telemetry.clock import Clock
from telemetry.logs import origin_of

NO_CALLBACK = "no_callback"
"""Obstacle: the result has no callback, or lost a part that a callback needs."""
ENDPOINT_DISABLED = "endpoint_disabled"
"""Obstacle: the callback would be given up at once."""


@dataclass(slots=True)
class Counts:
    """The counts of a selection."""

    matching: int = 0
    """Results that can be called back."""
    held: Counter[str] = field(default_factory=Counter)
    """Results that match and are not called back, by obstacle: a standing, if only undelivered ones are selected, or
    NO_CALLBACK or ENDPOINT_DISABLED."""
    letters: int = 0
    """Dead letters of the results that can be called back, marked with them."""
    origins: Counter[str] = field(default_factory=Counter)
    """Origins of the callbacks: scheme, host and port."""
    ids: set[str] = field(default_factory=set)
    """The selection's ids that were found."""
    tenants: dict[str, set[str]] = field(default_factory=dict)
    """Tenants of each of these ids."""
    places: set[Place] = field(default_factory=set)
    """The selection's places that were found."""
    held_names: dict[str, str] = field(default_factory=dict)
    """Requested ids and places whose result is not called back, with the obstacle."""

    def add(self, record: Stored, selection: Selection, obstacle: str | None) -> None:
        """Count one result, and note its requested ids and places as found."""
        ids, places = selection.ids & record.ids, selection.places & {record.place}
        self.ids |= ids
        for name in ids:
            self.tenants.setdefault(name, set()).add(record.tenant)
        self.places |= places
        if obstacle is None:
            self.matching += 1
            self.origins[origin_of(record.header(topics.CALLBACK_URL) or "")] += 1
        else:
            self.held[obstacle] += 1
            self.held_names |= dict.fromkeys((*ids, *map(str, places)), obstacle)


class Replay:
    """One selection, over the results as of construction. Its methods raise ProducerError."""

    def __init__(self, settings: KafkaSettings, scanner: Scanner, selection: Selection, clock: Clock) -> None:
        self._settings = settings
        self._scanner = scanner
        self._selection = selection
        self._clock = clock
        self._ranges = list(self._narrowed())
        self._wanted = {CallbackStanding.UNDELIVERED, *((CallbackStanding.WAITING,) if selection.waiting else ())}
        self._undelivered: Undelivered | None = None
        self._look()

    def _look(self) -> None:
        """Read the current state of these results."""
        self._disabled = disabled_endpoints(self._settings)
        self._undelivered = None  # two copies of many results' states would take too much memory
        if self._selection.undelivered:
            results = filter(_callable, self._matching())
            self._undelivered = Undelivered(self._settings, self._scanner, self._clock, results)

    def count(self) -> Counts:
        """The counts of a replay, without a change."""
        counts = Counts()
        for _ in self._chosen(counts):
            pass
        return counts

    def run(self, back: PutBack, per_second: float, on_done: Callable[[int], None], limit: int | None = None) -> Counts:
        """Put them into delivery again, at most `most`; returns the counts up to the last of them.

        The number may be smaller than counted before: only now `back` fences all other replays and redrives.
        """
        self._look()
        counts = Counts()
        put_back(back, islice(self.returning(counts), limit), per_second, on_done, self._clock)
        return counts

    def returning(self, counts: Counts) -> Iterator[list[Returning]]:
        """The records to put back: each result in a group with the marks of its dead letters."""
        for record, marks in self._chosen(counts):
            now_ms = int(self._clock.time() * 1000)
            returning = for_delivery(self._settings, record.key, record.value, record.headers, now_ms)
            yield [returning, *marks]

    def _chosen(self, counts: Counts) -> Iterator[tuple[Stored, list[Returning]]]:
        """The results to put back, with their marks; all matching ones are counted on the way."""
        for record in self._matching():
            obstacle = self._obstacle(record)
            counts.add(record, self._selection, obstacle)
            if obstacle is None:
                marks = self._marks(record)
                counts.letters += len(marks)
                yield record, marks

    def _obstacle(self, record: Stored) -> str | None:
        if not _callable(record):
            return NO_CALLBACK
        if (standing := self._standing(record)) not in self._wanted:
            return standing
        return ENDPOINT_DISABLED if record.endpoint in self._disabled else None

    def _standing(self, record: Stored) -> CallbackStanding:
        """If all are selected, each counts as undelivered."""
        return self._undelivered.standing(record) if self._undelivered is not None else CallbackStanding.UNDELIVERED

    def _marks(self, record: Stored) -> list[Returning]:
        return self._undelivered.marks(record) if self._undelivered is not None else []

    def _matching(self) -> Iterator[Stored]:
        return filter(self._selection.takes, self._scanner.read(self._ranges))

    def _narrowed(self) -> Iterator[Range]:
        """The partitions' ranges; if places are selected, from the first to the last of them."""
        selection = self._selection
        for each in self._scanner.ranges(self._settings.topics.results, selection.since_ms, selection.until_ms):
            offsets = [place.offset for place in selection.places if place.partition == each.partition]
            if not selection.places:
                yield each
            elif offsets and min(offsets) < each.stop:
                start, stop = max(each.start, min(offsets)), min(each.stop, max(offsets) + 1)
                if start < stop:
                    yield each._replace(start=start, stop=stop)


def _callable(record: Stored) -> bool:
    """True if it has a callback's URL and identity, and a tier would take it."""
    size = Returning("", record.key, record.value, record.headers).size
    named = record.header(topics.CALLBACK_URL) is not None and record.header(topics.WEBHOOK_ID) is not None
    return named and bool(record.value) and size < MAX_RECORD_BYTES
