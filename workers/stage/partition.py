"""A partition while it is assigned to this process.

Completions hold this object, not a partition number, so a late completion is recognised after a reassignment.

`InFlightBound` is an offset limit on the records that may begin before the next commit. After a crash the next owner
suspects every record that may have been running. Without a limit the owner would suspect a whole window of each
partition: with twelve partitions, twelve times as many records as ran. So each commit states how many of the first
undone records may have begun, and no other record begins before the next commit. The *limit* is an offset, a margin
above the highest record that has begun. The margin follows the pace: a commit allows twice the records that began since
the last commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from workers.stage.ledger import Ledger
from workers.stage.progress import Progress, Suspect, begun_of
from workers.stage.record import Party, Record
from workers.stage.sharing import Place

LEAST_MARGIN = 32
"""The smallest margin, in offsets."""
MOST_MARGIN = 8_192
"""The largest margin, in offsets: the size of the largest window."""
_DECAY = 7 / 8
"""A commit leaves at least this share of the margin. The share is near 1, so that a lull does not limit the next
burst."""


class InFlightBound:
    """The limit of one partition during one assignment. Only the Kafka thread calls the methods."""

    def __init__(self, start: int) -> None:
        """`start`: earlier owners may have begun records below this offset, and none from this offset on."""
        self._above = start
        """The offset after the highest record that has begun."""
        self._above_before = start
        """The value of `_above` at the last commit."""
        self._wanted = start
        """The offset after the highest record that waits for the next commit."""
        self._margin = LEAST_MARGIN
        self._limit: int | None = None
        """Only records below this offset may begin. The value is None before the first commit."""
        self.held_back = False
        """True if only the limit keeps a record from beginning, so that a commit is needed."""

    def allows(self, record: Record) -> bool:
        """Return whether the record may begin now. If not, the next commit will allow it."""
        if self._limit is None or record.offset < self._limit:
            return True
        self._wanted = max(self._wanted, record.offset + 1)
        self.held_back = True
        return False

    def begun(self, offset: int) -> None:
        """Note that the stage dispatches the record at this offset."""
        self._above = max(self._above, offset + 1)

    def next_limit(self) -> int:
        """Return the limit that the next commit allows."""
        is_far = self._wanted > self._above + self._margin
        return max(self._limit or 0, (self._wanted if is_far else self._above) + self._margin)

    def committed(self, limit: int) -> None:
        """Allow records below `limit` to begin. Call this when the commit that states this limit has returned."""
        used, self._above_before = self._above - self._above_before, self._above
        wanted = 2 * self._margin if self.held_back else max(2 * used, int(self._margin * _DECAY))
        self._margin = min(MOST_MARGIN, max(LEAST_MARGIN, wanted))
        self._limit, self.held_back = max(self._limit or 0, limit), False


def undone_below(limit: int, base: int, done: int) -> int:
    """Return how many offsets from `base` to below `limit` are not done. `done` is a bitmap that starts at `base`."""
    width = max(0, limit - base)
    if width < done.bit_length():
        done &= (1 << width) - 1
    return width - done.bit_count()


class Phase(Enum):
    """The phases of an assignment: ASSIGNED → OPEN → REVOKING → GONE. Every phase may change to GONE."""

    ASSIGNED = "assigned"
    """The partition is assigned. Kafka has delivered no record yet, and the committed progress is not read."""
    OPEN = "open"
    REVOKING = "revoking"
    """The stage dispatches no more records, and waits for the dispatched records."""
    GONE = "gone"
    """Another worker owns the partition. The stage drops late completions and records."""


GAP_SECONDS = 1.0
"""The time for which a gap waits to share the commit of a record, before the gap is committed alone."""


class Partition:
    """One assignment of one partition. A later assignment of the same partition is another object.

    Each field has one writer: the partition's own methods, or the part of the stage that is named above the field.
    """

    def __init__(self, topic: str, number: int, generation: int, now: float, place: Place = Place.FIRST) -> None:
        self.topic = topic
        self.number = number
        self.generation = generation
        """A number that grows with each assignment of any partition."""
        self.place = place
        """Where the topic's records wait."""

        # The partition's own methods write these fields.
        self.phase = Phase.ASSIGNED
        self.ledger = Ledger(Progress(0))
        self.bound = InFlightBound(0)
        self.topic_mark: bytes | None = None
        """The mark of the topic, set when the partition is opened."""
        self.confirmed = Progress(0)
        """The progress that Kafka has confirmed as committed."""
        self.open_committed = False
        """True if the last commit states that this worker has the partition open. Until then, none of its records is
        dispatched."""
        self.begins_anew = False
        """True if the last owner was this same process, so that no record of the partition can have killed it."""
        self.rewind_to: int | None = None
        """The offset to seek to before resuming; None if no seek is needed."""
        self.fetched_to = 0
        """The client's next record has at least this offset, because all records below were delivered."""
        self._gap_since: float | None = None

        # `Transactions` writes this field.
        self.sent: Progress | None = None
        """The progress that was sent last. The commit may have succeeded although no answer came."""

        # `Fetching` writes these fields, and `resume`, `replace` and `give_back` reset some of them.
        self.paused = True
        """True until the first resume. In the client, a partition that was lost and regained may still be paused."""
        self.begun = False
        """True if this assignment has delivered a record. Before the first record, any gap may be due to retention."""
        self.at_end = False
        """True if the last delivery was the end of the partition."""
        self.last_seen = now
        """The monotonic time of the last delivery."""
        self.position = 0
        """The last delivered offset; 0 after a seek.

        Without a seek, the client delivers a lower offset only if the partition's log was truncated or created
        again."""

        # `Load` writes these fields.
        self.running = 0
        """The number of records that are dispatched and not yet complete."""
        self.outside: Counter[Party] = Counter()
        """The running records of each party that may wait for servers outside the fleet."""
        self.bytes = 0
        """Bytes of the values of taken, unsettled records."""

        # `Window` writes this field.
        self.is_wide = False
        """True if the ledger's span is near the bounds of a commit, so that no further record is fetched."""

        # `Isolation` writes these fields. `open` reads them from the committed progress, and `settle` drops settled
        # suspects.
        self.suspects: dict[int, Suspect] = {}
        self.alone = False
        """True if the suspect that is being tried runs alone in the worker."""
        self.most_together = 1
        """Cap on the size of a cohort of the suspects that the last owner committed as running."""
        self.careful_records = 0
        """The number of further records that belong to the first window after a crash."""

    @property
    def id(self) -> tuple[str, int]:
        """The partition's topic and number."""
        return self.topic, self.number

    @property
    def owned(self) -> bool:
        """True if this process may still commit the partition's progress."""
        return self.phase is not Phase.GONE

    @property
    def dispatchable(self) -> bool:
        """True if queued records of the partition may be dispatched."""
        return self.phase is Phase.OPEN and self.open_committed

    def open(self, committed: Progress | None, window_records: int, topic_mark: bytes | None = None) -> None:
        """Start from the committed progress. If the last owner left the partition open, the first window is suspect."""
        self.topic_mark = topic_mark
        progress = committed or Progress(0)
        if self.begins_anew:
            progress = progress.given_back()
        self.ledger, self.confirmed = Ledger(progress), progress
        self.fetched_to = progress.base
        self.suspects = dict(progress.suspects)
        self.alone = progress.alone
        self.bound = InFlightBound(progress.base + progress.done.bit_length())
        self.careful_records = (progress.begun or window_records) if progress.open else 0
        self.phase = Phase.OPEN

    def progress(self, offsets: list[int]) -> Progress:
        """Return the progress to commit when these offsets have been handled."""
        base, done = self.ledger.after(offsets)
        settled = set(offsets)
        suspects = {o: s for o, s in self.suspects.items() if o >= base and o not in settled}
        limit = self.bound.next_limit()
        begun = begun_of(undone_below(limit, base, done))
        progress = Progress(base, done, True, self.alone, suspects, self.topic_mark, begun, limit)
        return progress.given_back() if self.phase is Phase.REVOKING else progress

    def has_news(self, now: float) -> bool:
        """Return whether the progress needs a commit even if no record is complete. `now`: monotonic seconds."""
        if self.phase is Phase.REVOKING:
            return self.open_committed and self.ledger.idle
        if self.phase is not Phase.OPEN:
            return False
        if (not self.open_committed and not self.ledger.idle) or self.bound.held_back:
            return True
        if not self.ledger.gaps_unsettled:
            return False
        if self._gap_since is None:
            self._gap_since = now
        return now - self._gap_since >= GAP_SECONDS

    def settle(self, offsets: list[int], committed: Progress) -> None:
        """Mark these offsets as done: Kafka has committed `committed`, the value of `progress(offsets)`."""
        self.open_committed = committed.open
        self.ledger.settle(offsets)
        # A gap that the client delivered during the commit still needs a commit.
        self.ledger.gaps_unsettled = not committed.includes(self.ledger.progress)
        self.confirmed = committed
        self.bound.committed(committed.limit)
        if self.suspects:  # retention may have removed suspects below base
            gone = set(offsets)
            self.suspects = {o: s for o, s in self.suspects.items() if o >= committed.base and o not in gone}
        self._gap_since = None

    def adopt(self, committed: Progress) -> None:
        """Adopt a commit of this worker whose answer was lost."""
        self.ledger.adopt(committed)
        self.confirmed = committed
        self.open_committed = self.open_committed and committed.open

    def trust_last_owner(self) -> None:
        """Make `open` suspect no record, because the last owner is alive."""
        self.begins_anew = True

    def replace(self, earlier: Partition, base: int) -> None:
        """Replace `earlier`, and fetch again from `base` on. The client sees no change of assignment."""
        self.trust_last_owner()
        self.paused = earlier.paused
        self.fetch_again(base)

    def close(self) -> None:
        """Enter REVOKING: no more records are dispatched."""
        self.phase = Phase.REVOKING

    def abandon(self) -> None:
        """Leave the taken records undone, for the next owner."""
        for offset in self.ledger.taken:
            self.ledger.drop(offset)

    def drop(self) -> None:
        """Enter GONE: another worker owns the partition, so nothing more is committed."""
        self.phase = Phase.GONE

    def give_back(self, records: Iterable[Record]) -> None:
        """Drop records that were taken and not tried, and schedule a seek back to the first of these records."""
        for record in records:
            self.at_end = False
            self.ledger.drop(record.offset)
            self.fetch_again(record.offset)

    def fetch_again(self, offset: int) -> None:
        """Schedule a seek to `offset`, or keep a scheduled seek to a lower offset."""
        if self.rewind_to is None or offset < self.rewind_to:
            self.rewind_to = offset

    def resume(self, now: float) -> None:
        """Note that the client fetches from the partition again, after the scheduled seek if there was one."""
        if self.rewind_to is not None:
            self.position, self.fetched_to = 0, self.rewind_to
        self.paused, self.rewind_to = False, None
        self.last_seen = now  # a pause does not count as silence, so no seek follows


@dataclass(slots=True)
class Load:
    """Counts the records of one stage. Only this class writes `Partition.running` and `Partition.bytes`."""

    running: int = 0
    """The number of records that are dispatched and not yet complete."""
    bytes: int = 0
    """Bytes of the values of taken, unsettled records."""
    outside: Counter[Party] = field(default_factory=Counter)
    """The running records of each party that may wait for servers outside the fleet."""

    def take(self, partition: Partition, record: Record) -> None:
        """Add a record that was taken."""
        size = len(record.value)
        partition.bytes += size
        self.bytes += size

    def let_go(self, partition: Partition, record: Record) -> None:
        """Subtract a record that is settled or given back."""
        size = len(record.value)
        partition.bytes -= size
        self.bytes -= size

    def begin(self, partition: Partition, record: Record) -> None:
        """Count a record of the partition as running, because the stage dispatches it."""
        partition.running += 1
        self.running += 1
        if record.outside is not None:
            partition.outside[record.outside] += 1
            self.outside[record.outside] += 1

    def end(self, partition: Partition, record: Record) -> None:
        """Count a record of the partition as no longer running, because the handler has returned."""
        partition.running -= 1
        self.running -= 1
        if record.outside is not None:
            _subtract(partition.outside, record.outside, 1)
            _subtract(self.outside, record.outside, 1)

    def forget(self, partition: Partition) -> None:
        """Subtract all records of a partition that another worker owns. The partition's own counts stay."""
        self.running -= partition.running
        self.bytes -= partition.bytes
        for party, records in partition.outside.items():
            _subtract(self.outside, party, records)


def _subtract(counts: Counter[Party], party: Party, records: int) -> None:
    """Subtract from a party's count. Forget a party without records, because a worker may see any number of parties."""
    counts[party] -= records
    if not counts[party]:
        del counts[party]
