"""A partition while it is assigned to this process: the object that late work is checked against."""

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
    """Ours, but nothing of it was delivered yet: its progress is not read."""
    OPEN = "open"
    REVOKING = "revoking"
    """Nothing more is dispatched; what is dispatched is awaited."""
    GONE = "gone"
    """Another worker's. Whatever still comes in for it is dropped."""


class Partition:
    """One assignment of one partition. A later assignment of the same partition is another object."""

    def __init__(
        self, topic: str, number: int, generation: int, now: float, *, later: bool = False, paced: bool = False
    ) -> None:
        self.topic = topic
        self.number = number
        self.generation = generation
        self.phase = Phase.ASSIGNED
        self.ledger = Ledger(Progress(0))
        self.horizon = Horizon(0)
        self.confirmed = Progress(0)
        """What Kafka has said to be committed."""
        self.sent: Progress | None = None
        """The progress that was sent last. It may be committed although no answer said so."""
        self.later = later
        """Whether its topic is the later place, in which deferred records wait."""
        self.paced = paced
        """Whether its records are held back until they are due."""
        self.parked = 0
        """Taken and waiting for the window."""
        self.parked_bytes = 0
        """Of these."""
        self.look_again = 0.0
        """Monotonic seconds before which the first of these need not be asked about again: it was not due."""
        self.running = 0
        """Dispatched, and the handler has not returned."""
        self.bytes = 0
        """Of the record values that are taken and not settled."""
        self.begins_anew = False
        """Whether it was this process's before: then nobody died who had it open."""
        self.begun = False
        """Whether a record of this assignment was seen: before the first one, any gap may be what retention removed."""
        self.open_committed = False
        """Whether Kafka knows that we have it. Nothing is dispatched before."""
        self.suspects: dict[int, Suspect] = {}
        self.alone = False
        self.careful_records = 0
        """How many further records belong to the first window after a crash."""
        self.paused = True
        """Until resumed: a partition that is lost and regained stays paused in the client."""
        self.at_end = False
        self.last_seen = now
        """Monotonic seconds at which anything was delivered."""
        self.rewind_to: int | None = None
        """Where to seek before resuming, because records were given back untried."""
        self.gap_since: float | None = None
        self.topic_mark: bytes | None = None
        """Of the topic that its offsets are of, once it is open."""
        self.position = 0
        """The offset that was delivered last; 0 once another one is sought. The client gives no earlier one by itself,
        unless the log went back."""
        self._foreseen = -1

    @property
    def id(self) -> tuple[str, int]:
        """Topic and number."""
        return self.topic, self.number

    @property
    def owned(self) -> bool:
        """Whether its progress is still ours to commit."""
        return self.phase is not Phase.GONE

    @property
    def dispatchable(self) -> bool:
        """Whether its parked records may be handed to the handler."""
        return self.phase is Phase.OPEN and self.open_committed

    def open(self, committed: Progress | None, window_records: int, topic_mark: bytes | None = None) -> None:
        """Start from what is committed. Where the last owner left it open, the first window is run carefully."""
        self.topic_mark = topic_mark
        progress = committed or Progress(0)
        if self.begins_anew:
            progress = progress.given_back()
        self.ledger, self.confirmed = Ledger(progress), progress
        self.suspects = dict(progress.suspects)
        self.alone = progress.alone
        self.horizon = Horizon(progress.base + progress.done.bit_length())
        self.careful_records = (progress.begun or window_records) if progress.open else 0
        self.phase = Phase.OPEN

    def progress(self, offsets: list[int]) -> Progress:
        """What to commit once these offsets are done."""
        base, done = self.ledger.after(offsets)
        settled = set(offsets)
        suspects = {o: s for o, s in self.suspects.items() if o >= base and o not in settled}
        limit = self.horizon.next_limit()
        begun = begun_of(undone_below(limit, base, done))
        progress = Progress(base, done, True, self.alone, suspects, self.topic_mark, begun, limit)
        return progress.given_back() if self.phase is Phase.REVOKING else progress

    def settle(self, offsets: list[int], committed: Progress) -> None:
        """The commit of `committed`, which was `progress(offsets)` when it began, has returned."""
        self.ledger.settle(offsets)
        self.ledger.gaps_unsettled = not committed.includes(self.ledger.progress)  # one may have come meanwhile
        self.confirmed = committed
        self.horizon.committed(committed.limit)
        for offset in offsets:
            self.suspects.pop(offset, None)
        self.gap_since = None

    def adopt(self, committed: Progress) -> None:
        """Take over what was committed in our name unknown to us."""
        self.ledger.adopt(committed)
        self.confirmed = committed
        self.open_committed = self.open_committed and committed.open

    def give_back(self, records: Iterable[Record]) -> None:
        """These were taken and not tried; they are fetched again before resuming."""
        for record in records:
            self.at_end = False
            self.ledger.drop(record.offset)
            if self.rewind_to is None or record.offset < self.rewind_to:
                self.rewind_to = record.offset

    def foresee(self, offset: int) -> None:
        """Another party than the one that fills the lot has the record at this offset, which is not read yet."""
        self._foreseen = max(self._foreseen, offset)

    @property
    def foreseen(self) -> bool:
        """Whether another party's record is still ahead."""
        return self.ledger.next_offset <= self._foreseen
