"""A partition while it is assigned to this process.

Completions hold this object, not a partition number, so a late completion is recognised after a reassignment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum

from workers.stage.horizon import Horizon, undone_below
from workers.stage.ledger import Ledger
from workers.stage.progress import Progress, Suspect, begun_of
from workers.stage.record import Record
from workers.stage.sharing import Party, Place


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
        self.horizon = Horizon(0)
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

        # `Lot` writes these fields.
        self.parked = 0
        """The number of records that wait for the window."""
        self.parked_bytes = 0
        """Bytes of the values of parked records."""

        # `Pacing` writes this field.
        self.look_again = 0.0
        """The monotonic time at which to check again if the first parked record is due."""

        # `Isolation` writes these fields. `open` reads them from the committed progress, and `settle` drops settled
        # suspects.
        self.suspects: dict[int, Suspect] = {}
        self.alone = False
        """True if the suspect that is being tried runs alone in the worker."""
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
        """True if parked records of the partition may be dispatched."""
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
        self.horizon = Horizon(progress.base + progress.done.bit_length())
        self.careful_records = (progress.begun or window_records) if progress.open else 0
        self.phase = Phase.OPEN

    def progress(self, offsets: list[int]) -> Progress:
        """Return the progress to commit when these offsets have been handled."""
        base, done = self.ledger.after(offsets)
        settled = set(offsets)
        suspects = {o: s for o, s in self.suspects.items() if o >= base and o not in settled}
        limit = self.horizon.next_limit()
        begun = begun_of(undone_below(limit, base, done))
        progress = Progress(base, done, True, self.alone, suspects, self.topic_mark, begun, limit)
        return progress.given_back() if self.phase is Phase.REVOKING else progress

    def has_news(self, now: float) -> bool:
        """Return whether the progress needs a commit even if no record is complete. `now`: monotonic seconds."""
        if self.phase is Phase.REVOKING:
            return self.open_committed and self.ledger.idle
        if self.phase is not Phase.OPEN:
            return False
        if (not self.open_committed and not self.ledger.idle) or self.horizon.held_back:
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
        self.horizon.committed(committed.limit)
        for offset in offsets:
            self.suspects.pop(offset, None)
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
