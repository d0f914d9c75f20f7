"""Replay: put kept results of `model_results` into delivery again, under the same `webhook-id`.

A replayed result goes into the smallest tier, and the count of its attempts starts again. A replayed result is not
written to `model_results` again, because readers of that topic expect one result for each job. After two replays a
consumer gets two callbacks with the same `webhook-id`, and drops the second. A selection of undelivered results does
not include results that are still being tried. A replay of undelivered results marks their dead letters, as a redrive
does, under the identity of redrives. So a result is not put back both by a replay and by a redrive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from cli.operations.endpoints import disabled_endpoints
from cli.operations.put_back import MAX_RECORD_BYTES, PutBack, Returning, for_delivery, put_back
from cli.operations.undelivered import CallbackStanding, Undelivered
from producers.scan import Range, Scanner, Stored, StoredPlace
from producers.selection import Selection
from schemas import topics
from schemas.settings import KafkaSettings
from telemetry.clock import Clock
from telemetry.logs import origin_of

NO_CALLBACK = "no_callback"
"""Obstacle: the result has no callback, or lacks a part that a callback needs."""
ENDPOINT_DISABLED = "endpoint_disabled"
"""Obstacle: the endpoint is disabled, so delivery would give the callback up at once."""


@dataclass(slots=True)
class Counts:
    """The counts of the results in a selection."""

    count: int = 0
    """Number of results that can be put back."""
    held: Counter[str] = field(default_factory=Counter)
    """For each obstacle, the number of selected results that it keeps from being put back. Obstacles are NO_CALLBACK,
    ENDPOINT_DISABLED and, if only undelivered results are selected, a CallbackStanding."""
    letters: int = 0
    """Number of dead letters that get a mark because their results are put back."""
    origins: Counter[str] = field(default_factory=Counter)
    """For each origin (scheme, host and port), the number of its callbacks that can be put back."""
    ids: set[str] = field(default_factory=set)
    """The selection's ids that were found."""
    tenants: dict[str, set[str]] = field(default_factory=dict)
    """Maps each found id to the tenants whose results have the id."""
    places: set[StoredPlace] = field(default_factory=set)
    """The selection's places that were found."""
    held_names: dict[str, str] = field(default_factory=dict)
    """Maps each selected id or place whose result is not put back to the obstacle."""

    def add(self, record: Stored, selection: Selection, obstacle: str | None) -> None:
        """Count a result, and record which of the selected ids and places it has."""
        ids, places = selection.ids & record.ids, selection.places & {record.place}
        self.ids |= ids
        for name in ids:
            self.tenants.setdefault(name, set()).add(record.tenant)
        self.places |= places
        if obstacle is None:
            self.count += 1
            self.origins[origin_of(record.header(topics.CALLBACK_URL) or "")] += 1
        else:
            self.held[obstacle] += 1
            self.held_names |= dict.fromkeys((*ids, *map(str, places)), obstacle)


class Replay:
    """A replay of one selection from the results at the time of construction. All methods raise ProducerError."""

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
        """Read the current state of the selected results."""
        self._disabled = disabled_endpoints(self._settings)
        self._undelivered = None  # frees the former states first, because two copies could take too much memory
        if self._selection.undelivered:
            results = filter(has_callback, self._matching())
            self._undelivered = Undelivered(self._settings, self._scanner, self._clock, results)

    def count(self) -> Counts:
        """Count the results that a replay would put back. Nothing is changed."""
        counts = Counts()
        for _ in self._chosen(counts):
            pass
        return counts

    def run(self, back: PutBack, per_second: float, on_done: Callable[[int], None], limit: int | None = None) -> Counts:
        """Put at most `limit` results into delivery again; return the counts up to the last of them.

        The number may be smaller than in an earlier `count`, because this method reads the state again after `back` has
        fenced all other replays and redrives.
        """
        self._look()
        counts = Counts()
        put_back(back, islice(self.returning(counts), limit), per_second, on_done, self._clock)
        return counts

    def returning(self, counts: Counts) -> Iterator[list[Returning]]:
        """Yield a group of records for each result to put back: the result, and the marks of its dead letters."""
        for record, marks in self._chosen(counts):
            now_ms = int(self._clock.time() * 1000)
            returning = for_delivery(self._settings, record.key, record.value, record.headers, now_ms)
            yield [returning, *marks]

    def _chosen(self, counts: Counts) -> Iterator[tuple[Stored, list[Returning]]]:
        """Yield the results to put back with their marks, and count all selected results."""
        for record in self._matching():
            obstacle = self._obstacle(record)
            counts.add(record, self._selection, obstacle)
            if obstacle is None:
                marks = self._marks(record)
                counts.letters += len(marks)
                yield record, marks

    def _obstacle(self, record: Stored) -> str | None:
        if not has_callback(record):
            return NO_CALLBACK
        if (standing := self._standing(record)) not in self._wanted:
            return standing
        return ENDPOINT_DISABLED if record.endpoint in self._disabled else None

    def _standing(self, record: Stored) -> CallbackStanding:
        """Return the result's state. If delivered results are selected too, every result is treated as undelivered."""
        return self._undelivered.standing(record) if self._undelivered is not None else CallbackStanding.UNDELIVERED

    def _marks(self, record: Stored) -> list[Returning]:
        return self._undelivered.marks(record) if self._undelivered is not None else []

    def _matching(self) -> Iterator[Stored]:
        return filter(self._selection.takes, self._scanner.read(self._ranges))

    def _narrowed(self) -> Iterator[Range]:
        """Yield the partitions' ranges, narrowed to the range of the selected places if places are selected."""
        selection = self._selection
        for each in self._scanner.ranges(self._settings.topics.results, selection.since_ms, selection.until_ms):
            offsets = [place.offset for place in selection.places if place.partition == each.partition]
            if not selection.places:
                yield each
            elif offsets and min(offsets) < each.stop:
                start, stop = max(each.start, min(offsets)), min(each.stop, max(offsets) + 1)
                if start < stop:
                    yield each._replace(start=start, stop=stop)


def has_callback(record: Stored) -> bool:
    """True if the result has a callback's URL and a `webhook-id`, and is small enough for a tier."""
    size = Returning("", record.key, record.value, record.headers).size
    named = record.header(topics.CALLBACK_URL) is not None and record.header(topics.WEBHOOK_ID) is not None
    return named and bool(record.value) and size < MAX_RECORD_BYTES
