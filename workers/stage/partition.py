"""A partition while it is assigned to this process. Late work is checked against this object, not a number."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from workers.stage.horizon import Horizon, undone_below
from workers.stage.ledger import Ledger
from workers.stage.progress import Progress, Suspect, begun_of
from workers.stage.record import Record


class Phase(Enum):
    """Where a partition is in its life. ASSIGNED → OPEN → REVOKING → GONE; any phase may turn into GONE."""

    ASSIGNED = "assigned"
    """Assigned to this process; nothing of it was delivered yet, and its progress is not read."""
    OPEN = "open"
    REVOKING = "revoking"
    """No more records are dispatched; the dispatched ones are awaited."""
    GONE = "gone"
    """Another worker owns it. Late completions and records are dropped."""


GAP_SECONDS = 1.0
"""How long a gap alone may wait for a record to be committed with."""


class Partition:
    """One assignment of one partition. A later assignment of the same partition is another object.

    Each field has one writer: the partition's own methods, or the part of the stage that is named above the field.
    """

    def __init__(
        self, topic: str, number: int, generation: int, now: float, *, later: bool = False, paced: bool = False
    ) -> None:
        self.topic = topic
        self.number = number
        self.generation = generation
        """Grows with each assignment of any partition."""
        self.later = later
        """Whether its topic is the later place, in which deferred records wait."""
        self.paced = paced
        """Whether its records are held back until they are due."""

        # Written by the partition's own methods.
        self.phase = Phase.ASSIGNED
        self.ledger = Ledger(Progress(0))
        self.horizon = Horizon(0)
        self.topic_mark: bytes | None = None
        """The mark of the topic that the offsets are of, once the partition is open."""
        self.confirmed = Progress(0)
        """The progress that Kafka has confirmed as committed."""
        self.open_committed = False
        """Whether Kafka knows that this worker has the partition. Nothing is dispatched before."""
        self.begins_anew = False
        """Whether its last owner is alive: this process itself. Then no record of it killed a worker."""
        self.rewind_to: int | None = None
        """Where to seek before resuming, because records were given back untried."""
        self.fetched_to = 0
        """The client's next record is not below this offset: every one below was delivered, or is none."""
        self._gap_since: float | None = None
        self._foreseen = -1

        # Written by `Transactions`.
        self.sent: Progress | None = None
        """The progress that was sent last. It may be committed although no answer said so."""

        # Written by `Fetching`; `resume` and `give_back` take some of it back.
        self.paused = True
        """Until resumed: a partition that is lost and regained stays paused in the client."""
        self.begun = False
        """Whether a record of this assignment was seen: before the first one, any gap may be what retention removed."""
        self.at_end = False
        """Whether the end of the partition was the last thing delivered."""
        self.last_seen = now
        """Monotonic seconds at which anything was delivered."""
        self.position = 0
        """The offset that was delivered last; 0 once another one is sought. The client gives no earlier one by itself,
        unless the log went back."""

        # Written by `Load`.
        self.running = 0
        """Records that the handler has: dispatched, and not returned."""
        self.bytes = 0
        """Bytes of record values that are taken and not settled."""

        # Written by `Lot`.
        self.parked = 0
        """Records that wait for the window."""
        self.parked_bytes = 0
        """Bytes of their values."""

        # Written by `Pacing`.
        self.look_again = 0.0
        """Monotonic seconds before which the first parked record need not be asked about again: it was not due."""

        # Written by `Isolation`; `open` reads them from the committed progress, and `settle` drops what is settled.
        self.suspects: dict[int, Suspect] = {}
        self.alone = False
        """Whether the suspect that is being tried has its whole worker to itself."""
        self.careful_records = 0
        """How many further records belong to the first window after a crash."""

    @property
    def id(self) -> tuple[str, int]:
        """Topic and number."""
        return self.topic, self.number

    @property
    def owned(self) -> bool:
        """Whether this process may still commit its progress."""
        return self.phase is not Phase.GONE

    @property
    def dispatchable(self) -> bool:
        """Whether its parked records may be handed to the handler."""
        return self.phase is Phase.OPEN and self.open_committed

    def open(self, committed: Progress | None, window_records: int, topic_mark: bytes | None = None) -> None:
        """Start from the committed progress. Where the last owner left it open, the first window is suspect."""
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
        """Return the progress to commit once these offsets are done."""
        base, done = self.ledger.after(offsets)
        settled = set(offsets)
        suspects = {o: s for o, s in self.suspects.items() if o >= base and o not in settled}
        limit = self.horizon.next_limit()
        begun = begun_of(undone_below(limit, base, done))
        progress = Progress(base, done, True, self.alone, suspects, self.topic_mark, begun, limit)
        return progress.given_back() if self.phase is Phase.REVOKING else progress

    def has_news(self, now: float) -> bool:
        """Whether the progress is to be committed although no record is complete. `now`: monotonic seconds."""
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
        """Mark these offsets as done: `committed`, which `progress(offsets)` returned, is committed."""
        self.open_committed = committed.open
        self.ledger.settle(offsets)
        self.ledger.gaps_unsettled = not committed.includes(self.ledger.progress)  # one may have come meanwhile
        self.confirmed = committed
        self.horizon.committed(committed.limit)
        for offset in offsets:
            self.suspects.pop(offset, None)
        self._gap_since = None

    def adopt(self, committed: Progress) -> None:
        """Adopt a commit of ours whose answer was lost."""
        self.ledger.adopt(committed)
        self.confirmed = committed
        self.open_committed = self.open_committed and committed.open

    def trust_last_owner(self) -> None:
        """Suspect nothing once the partition opens: its last owner is alive."""
        self.begins_anew = True

    def replace(self, earlier: Partition, base: int) -> None:
        """Take the place of an earlier assignment of which the client knows no end: fetch again, from `base` on."""
        self.trust_last_owner()
        self.paused = earlier.paused
        self.fetch_again(base)

    def close(self) -> None:
        """Let nothing more be dispatched."""
        self.phase = Phase.REVOKING

    def abandon(self) -> None:
        """Leave what is taken undone, for the next owner."""
        for offset in self.ledger.taken:
            self.ledger.drop(offset)

    def drop(self) -> None:
        """Let nothing more be committed: another worker owns the partition."""
        self.phase = Phase.GONE

    def give_back(self, records: Iterable[Record]) -> None:
        """Drop records that were taken and not tried; they are fetched again before the partition is resumed."""
        for record in records:
            self.at_end = False
            self.ledger.drop(record.offset)
            self.fetch_again(record.offset)

    def fetch_again(self, offset: int) -> None:
        """Have the partition sought, to this offset at the latest."""
        if self.rewind_to is None or offset < self.rewind_to:
            self.rewind_to = offset

    def resume(self, now: float) -> None:
        """Note that the partition is fetched from again, and was sought where that was owed."""
        if self.rewind_to is not None:
            self.position, self.fetched_to = 0, self.rewind_to
        self.paused, self.rewind_to = False, None
        self.last_seen = now  # it could give nothing while it was paused

    def foresee(self, offset: int) -> None:
        """Note that the unread record at this offset is of another party than the one that fills the lot."""
        self._foreseen = max(self._foreseen, offset)

    @property
    def foreseen(self) -> bool:
        """Whether another party's record is known further on, and not read yet."""
        return self.ledger.next_offset <= self._foreseen
