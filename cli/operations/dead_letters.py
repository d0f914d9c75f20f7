"""Lists dead letters, which are jobs and callbacks that were given up, and puts them back (redrive).

A redrive puts a letter back in one transaction with a mark in `dead_letters.redriven`. All redrives of a fleet share
one transactional.id, so that even simultaneous redrives put each letter back once. A redrive first ends the open
transaction of an earlier redrive, and then reads the marks of all earlier redrives. Marks are kept longer than letters.
Kafka deletes whole segments only, so a letter may still exist after LETTERS_KEPT_MS; such a letter is not put back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from cli.operations.cancel import CancelledJobs
from cli.operations.endpoints import disabled_endpoints
from cli.operations.put_back import MAX_RECORD_BYTES, PutBack, Returning, for_delivery, put_back
from cli.operations.redrive_marks import RedriveMarks, mark
from producers.connection import partition_counts
from producers.scan import Scanner, Stored, StoredPlace, only
from producers.selection import RecordFilter
from producers.times import show_time
from schemas import topics
from schemas.settings import KafkaSettings
from schemas.topics import Topics
from telemetry.clock import Clock, unix_ms
from telemetry.logs import origin_of

REDRIVE = "redrive"
"""The identity of the producer that every redrive uses."""

Kind = Literal["job", "callback", "other"]

_SOURCE = frozenset({topics.SOURCE_TOPIC, topics.SOURCE_PARTITION, topics.SOURCE_OFFSET})
_WHY = _SOURCE | {topics.REASON, topics.REASON_DETAIL, topics.ATTEMPTS}
_SAID = {topics.SAID_TENANT: topics.TENANT, topics.SAID_JOB_ID: topics.JOB_ID}
_LIVED_THROUGH = frozenset({topics.DEFERRED, topics.FORWARDED})
"""Headers that a job got on its way through the lanes. A redrive drops these headers."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    record: Stored
    kind: Kind
    redriven_ms: int | None
    """Time of the letter's redrive, Unix milliseconds; None if it was not put back."""
    disabled: bool = False
    """True if the callback's endpoint is now disabled."""
    expired: bool = False
    """True if the letter is too old to be put back: the mark of an earlier redrive may have been deleted already."""
    lane_gone: bool = False
    """True for a job whose lane no longer exists."""
    cancelled: bool = False
    """True for a cancelled job. Workers may have forgotten the cancellation, and would answer the job."""

    @property
    def place(self) -> StoredPlace:
        """The letter's place in `dead_letters`, which is its id."""
        return self.record.place

    @property
    def ids(self) -> set[str]:
        """The ids by which the letter can be selected: its place, job id and webhook id.

        An id of the form `P:N` is always a place.
        """
        return {str(self.place), *(name for name in self.record.ids if StoredPlace.parse(name) is None)}

    @property
    def reason(self) -> str:
        """The reason for giving up, as a stable code."""
        return self.record.header(topics.REASON) or "unknown"

    @property
    def source(self) -> tuple[str, StoredPlace] | None:
        """Topic and place of the record that was given up; None if unknown."""
        numbers = [self.record.number(name) for name in (topics.SOURCE_PARTITION, topics.SOURCE_OFFSET)]
        topic, (partition, offset) = self.record.header(topics.SOURCE_TOPIC), numbers
        return None if topic is None or partition is None or offset is None else (topic, StoredPlace(partition, offset))

    @property
    def obstacle(self) -> str | None:
        """The reason why a redrive cannot put the letter back; None if there is none."""
        record = self.record
        if self.expired:
            return "expired"
        if record.header(topics.ABRIDGED) is not None:
            return "too_large"
        if not record.value:
            return "empty"
        if Returning("", record.key, record.value, record.headers).size > MAX_RECORD_BYTES:
            return "too_large"
        if self.kind == "callback" and self.disabled:
            return "endpoint_disabled"
        if self.cancelled:
            return "cancelled"
        if self.lane_gone:
            return "lane_gone"
        return "source_unknown" if self.kind == "other" else None

    def summary(self) -> dict[str, object]:
        """Return the letter's entry in a list, without its value, and with the callback's origin instead of its URL."""
        record = self.record
        url = record.header(topics.CALLBACK_URL)
        return {
            "id": str(self.place),
            "kind": self.kind,
            "reason": self.reason,
            "detail": record.header(topics.REASON_DETAIL),
            "tenant": record.tenant,
            "job_id": record.header(topics.JOB_ID),
            "webhook_id": record.header(topics.WEBHOOK_ID),
            "attempts": record.number(topics.ATTEMPTS),
            "origin": origin_of(url) if url else None,
            "at": show_time(record.at_ms),
            "source": {
                "topic": record.header(topics.SOURCE_TOPIC),
                "partition": record.number(topics.SOURCE_PARTITION),
                "offset": record.number(topics.SOURCE_OFFSET),
            },
            "bytes": len(record.value or b""),
            "redriven_at": show_time(self.redriven_ms) if self.redriven_ms is not None else None,
            "obstacle": self.obstacle,
        }


@dataclass(frozen=True, slots=True)
class LetterFilter(RecordFilter):
    """A selection of letters. `ids` may also have letters' places; an id of the form `P:N` is always a place."""

    reasons: frozenset[str] = frozenset()
    redriven_too: bool = False
    """If true, letters that were put back are selected too."""

    def takes(self, letter: Letter) -> bool:
        """True if the letter is selected."""
        return (
            (self.redriven_too or letter.redriven_ms is None)
            and (not self.reasons or letter.reason in self.reasons)
            and self.fits(letter.record, letter.ids)
        )


@dataclass(slots=True)
class LetterCounts:
    """The counts of letters for each kind, reason and obstacle."""

    open: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    """For each kind and reason, the number of letters that can be put back."""
    held: Counter[str] = field(default_factory=Counter)
    """For each obstacle, the number of letters that it keeps from being put back."""
    ids: set[str] = field(default_factory=set)
    """The requested ids that were found."""
    held_ids: dict[str, str] = field(default_factory=dict)
    """Maps each requested id of a letter that cannot be put back to the obstacle."""
    tenants: dict[str, set[str]] = field(default_factory=dict)
    """Maps each requested job id or webhook id to the tenants of its letters, also of letters that were put back
    before."""

    @property
    def count(self) -> int:
        """Number of letters that can be put back."""
        return self.open.total()

    def meet(self, letter: Letter, asked: frozenset[str]) -> None:
        """Record the letter's tenant for each id in `asked` by which the letter was requested."""
        for name in (asked & letter.ids) - {str(letter.place)}:
            self.tenants.setdefault(name, set()).add(letter.record.tenant)

    def add(self, letter: Letter, asked: frozenset[str]) -> None:
        """Count a letter, and record which of the requested ids `asked` it has."""
        named = asked & letter.ids
        self.ids |= named
        if letter.obstacle is None:
            self.open[letter.kind, letter.reason] += 1
        else:
            self.held[letter.obstacle] += 1
            self.held_ids |= dict.fromkeys(named, letter.obstacle)


class DeadLetters:
    """The fleet's dead letters at the time of construction: those since `since_ms`, or the one at `place`.

    Methods raise ProducerError.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        scanner: Scanner,
        clock: Clock,
        since_ms: int | None = None,
        place: StoredPlace | None = None,
    ) -> None:
        self._settings = settings
        self._topics = settings.topics
        self._scanner = scanner
        self._clock = clock
        # The end offsets of the letters are read before the marks, so that no letter's mark is missed.
        self._ranges = only(scanner.ranges(self._topics.dead_letters, since_ms), place)
        self._look()

    def _look(self) -> None:
        """Read the current state of the letters: endpoints, lanes, cancellations and marks."""
        self._disabled = disabled_endpoints(self._settings)
        self._lanes = frozenset(self._topics.lanes(self._scanner.topics()))
        self._kept_from_ms = unix_ms(self._clock) - topics.LETTERS_KEPT_MS
        self._cancelled = CancelledJobs(self._scanner.read(self._scanner.ranges(self._topics.control)))
        self._marks = RedriveMarks(self._ranges)
        for record in self._scanner.read(self._scanner.ranges(self._topics.redriven)):
            self._marks.add(record)

    def letters(self, wanted: LetterFilter) -> Iterator[Letter]:
        """Yield the selected letters, in order within each partition."""
        for record in self._scanner.read(self._ranges):
            letter = self._letter(record)
            if wanted.takes(letter):
                yield letter

    def _letter(self, record: Stored) -> Letter:
        kind = kind_of(record, self._topics)
        return Letter(
            record,
            kind,
            self._marks.of(record),
            record.endpoint in self._disabled,
            record.at_ms < self._kept_from_ms,
            kind == "job" and record.header(topics.SOURCE_TOPIC) not in self._lanes,
            kind == "job" and self._cancelled.holds(record.tenant, record.header(topics.JOB_ID) or ""),
        )

    def tally(self, wanted: LetterFilter) -> LetterCounts:
        """Count the letters that a redrive would put back. Nothing is changed."""
        tally = LetterCounts()
        for _ in self._counted(wanted, tally):
            pass
        return tally

    def redrive(
        self,
        wanted: LetterFilter,
        back: PutBack,
        per_second: float,
        on_done: Callable[[int], None],
        *,
        as_new_events: bool = False,
        limit: int | None = None,
    ) -> LetterCounts:
        """Put back at most `limit` of the selected letters that have no obstacle; return the counts up to there.

        Fewer letters may be put back than an earlier `tally` counted, because this method reads the marks again after
        `back` has fenced all other redrives. With `as_new_events`, a job's next result has a new `webhook-id`. With the
        old one, a consumer that has the job's former result would drop the next result as a repeat.
        """
        self._look()
        tally, partitions = LetterCounts(), _Partitions(self._settings, self._clock)
        groups = (
            [returning(letter, self._settings, unix_ms(self._clock), partitions, as_new_events), self._mark(letter)]
            for letter in self._counted(wanted, tally)
        )
        put_back(back, islice(groups, limit), per_second, on_done, self._clock)
        return tally

    def _counted(self, wanted: LetterFilter, tally: LetterCounts) -> Iterator[Letter]:
        """Yield the letters that can be put back, and count all selected letters."""
        for letter in self.letters(replace(wanted, redriven_too=True)):
            tally.meet(letter, wanted.ids)
            if letter.redriven_ms is None:
                tally.add(letter, wanted.ids)
                if letter.obstacle is None:
                    yield letter

    def _mark(self, letter: Letter) -> Returning:
        record = letter.record
        return mark(self._topics, letter.place, record.at_ms, letter.reason, record.headers, unix_ms(self._clock))


class _Partitions:
    """Maps topics to their numbers of partitions. Each topic is looked up once."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._counts: dict[str, int] = {}

    def __getitem__(self, topic: str) -> int:
        if topic not in self._counts:
            self._counts |= partition_counts(self._settings, [topic], self._clock)
        return self._counts[topic]


def kind_of(record: Stored, names: Topics) -> Kind:
    """Return the kind of the record that was given up, by its source topic."""
    source = record.header(topics.SOURCE_TOPIC) or ""
    if source in (names.results, names.events) or source.startswith(f"{names.prefix}callback_retries."):
        return "callback"
    return "job" if names.lanes([source]) else "other"


def returning(
    letter: Letter, settings: KafkaSettings, now_ms: int, partitions: _Partitions, as_new_event: bool
) -> Returning:
    """Return the record that a redrive writes for a letter.

    A callback goes into the smallest tier, and its count of attempts starts again. A job goes to its former lane and
    partition. The job keeps its identity. If the rejected record stated a tenant or job id that differs from its
    letter's, the new record states the same again. A deadline that has passed is left out, so that `ttl_seconds` count
    from now.
    """
    record = letter.record
    headers = [(name, value) for name, value in record.headers if name not in _WHY]
    if letter.kind == "callback":
        return for_delivery(settings, record.key, record.value, headers, now_ms)
    deadline = record.number(topics.DEADLINE)
    if deadline is not None and deadline <= now_ms:
        headers = [(name, value) for name, value in headers if name != topics.DEADLINE]
    dropped = _LIVED_THROUGH | ({topics.WEBHOOK_ID, topics.JOB_ORIGIN} if as_new_event else set())
    dropped |= {_SAID[name] for name, _ in headers if name in _SAID}
    headers = [(_SAID.get(name, name), value) for name, value in headers if name not in dropped]
    lane, number = record.header(topics.SOURCE_TOPIC) or "", record.number(topics.SOURCE_PARTITION)
    partition = number if number is not None and number < partitions[lane] else None
    return Returning(lane, record.key, record.value, headers, partition)
