"""Replay: put results that `model_results` keeps into delivery again, under the `webhook-id` that they have always had.

A replayed result goes into the smallest tier, not into `model_results`, where a reader counts one result for each job.
Its attempts start anew. Replayed twice, it is called back twice: a consumer knows the repeat by its `webhook-id`. Only
those that were not delivered can be asked for: then what is on its way is left to it, and the dead letters of what is
put back are marked, as a redrive does it and under the same identity, so that neither repeats the other.
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
"""Why a result is not called back: it has no callback, or lost what a callback needs."""
ENDPOINT_DISABLED = "endpoint_disabled"
"""The same: it would be given up at once."""


@dataclass(slots=True)
class Counts:
    """What a selection holds."""

    matching: int = 0
    """Results that can be called back."""
    held: Counter[str] = field(default_factory=Counter)
    """Results that match and are not called back, by why: a standing, where only undelivered ones are wanted, or
    NO_CALLBACK or ENDPOINT_DISABLED."""
    letters: int = 0
    """Dead letters of the results that can be called back, which are marked with it."""
    origins: Counter[str] = field(default_factory=Counter)
    """Where the callbacks go: scheme, host and port."""
    ids: set[str] = field(default_factory=set)
    """Those of the selection's ids that were met."""
    tenants: dict[str, set[str]] = field(default_factory=dict)
    """Whose each of these is."""
    places: set[Place] = field(default_factory=set)
    """Those of the selection's places that were met."""
    held_names: dict[str, str] = field(default_factory=dict)
    """Of these ids and places, those by which a result was asked for that is not called back, with why."""

    def add(self, record: Stored, selection: Selection, obstacle: str | None) -> None:
        """Count one, and note that what was asked for by name is there."""
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
    """One selection, over the results that are there when it is made. Its methods raise ProducerError."""

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
        """Learn how it stands with these results now."""
        self._disabled = disabled_endpoints(self._settings)
        self._undelivered = None  # what is known of many results is not to be kept twice
        if self._selection.undelivered:
            results = filter(_callable, self._matching())
            self._undelivered = Undelivered(self._settings, self._scanner, self._clock, results)

    def count(self) -> Counts:
        """What there is to replay. Changes nothing."""
        counts = Counts()
        for _ in self._chosen(counts):
            pass
        return counts

    def run(self, back: PutBack, per_second: float, on_done: Callable[[int], None], limit: int | None = None) -> Counts:
        """Put them into delivery again, so many at most; what there was up to the last of them.

        All that is matching there is put back now. That may be less than was counted before: only now that `back` is
        made nobody else puts any of them back.
        """
        self._look()
        counts = Counts()
        put_back(back, islice(self.returning(counts), limit), per_second, on_done, self._clock)
        return counts

    def returning(self, counts: Counts) -> Iterator[list[Returning]]:
        """What is put back, each result in a group with the marks of its dead letters."""
        for record, marks in self._chosen(counts):
            now_ms = int(self._clock.time() * 1000)
            returning = for_delivery(self._settings, record.key, record.value, record.headers, now_ms)
            yield [returning, *marks]

    def _chosen(self, counts: Counts) -> Iterator[tuple[Stored, list[Returning]]]:
        """The results that are put back, with their marks; all that match are counted as they are met."""
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
        """Where all are wanted, each counts as undelivered."""
        return self._undelivered.standing(record) if self._undelivered is not None else CallbackStanding.UNDELIVERED

    def _marks(self, record: Stored) -> list[Returning]:
        return self._undelivered.marks(record) if self._undelivered is not None else []

    def _matching(self) -> Iterator[Stored]:
        return filter(self._selection.takes, self._scanner.read(self._ranges))

    def _narrowed(self) -> Iterator[Range]:
        """The partitions, only from the first to the last of the places where places are named."""
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
    """Whether it says where it is called back and as what, and a tier would take it."""
    size = Returning("", record.key, record.value, record.headers).size
    named = record.header(topics.CALLBACK_URL) is not None and record.header(topics.WEBHOOK_ID) is not None
    return named and bool(record.value) and size < MAX_RECORD_BYTES
