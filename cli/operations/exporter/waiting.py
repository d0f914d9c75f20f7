"""The waiting work of all lanes, or of all topics that delivery reads, with its times and deadlines.

A record takes 24 bytes. Each record is read at most once, and a record that is done before the reader reaches it is
never read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from cli.operations.backlog import DoneOffsets, GroupProgress
from producers.scan import Range, Scanner, Stored
from schemas import topics
from schemas.codec import InvalidJob, Origin, read_job
from schemas.topics import Topics

READ_RECORDS = 10_000
"""The largest number of records that one reading reads, to learn their age and deadline. Further records are only
counted, and are read later."""
KNOWN_JOBS = 200_000
"""The largest number of records whose age and deadline are kept in memory. Further records are counted, and assumed to
be due after the known ones."""
NO_DEADLINE = 2**62
"""The deadline of an invalid job. A worker rejects an invalid job at once, so an invalid job has no deadline to
miss."""
DeadlineOf = Callable[[Stored, str], int | None]
"""Returns a record's deadline in Unix milliseconds, or None for a record that is no work. Gets the topic's UUID."""
Visible = Mapping[tuple[str, int], tuple[int, int]]
"""Maps a topic and partition to the first offset and to the offset after the last visible record."""


def job_deadline(record: Stored, topic_id: str) -> int:
    """Return the deadline of a record of a lane; each record is work."""
    origin = Origin(topic_id, record.place.partition, record.place.offset)
    try:
        job = read_job(record.value, record.headers, origin, record.at_ms)
    except InvalidJob:
        return NO_DEADLINE
    return min(max(job.deadline_ms, 0), NO_DEADLINE)


def callback_deadline(record: Stored, _: str) -> int | None:
    """Return NO_DEADLINE for a callback, and None for a result without one, which delivery only passes by."""
    return NO_DEADLINE if any(name == topics.CALLBACK_URL for name, _ in record.headers) else None


class OpenJobs:
    """The jobs between the ledger's base and `position` that are not done."""

    def __init__(self, topic_id: str, base: int, deadline_of: DeadlineOf = job_deadline) -> None:
        self.topic_id = topic_id
        self._deadline_of = deadline_of
        self.position = base
        """The next offset to read."""
        self.end = base
        """The offset after the partition's last record."""
        self.base = base
        self.done = 0
        """The ledger's bitmap: bit i stands for offset base + i."""
        self._offsets, self._arrived_ms, self._deadlines_ms = array("q"), array("q"), array("q")

    def advance(self, base: int, done: int, end: int) -> None:
        """Apply the ledger's present state, and forget the jobs that are done. The base never moves backwards."""
        same, self.end = (base, done) == (self.base, self.done), end
        if same:
            return
        self.base, self.done = base, done
        self.position = max(self.position, base)
        below = bisect_left(self._offsets, base)
        marks = done.to_bytes((done.bit_length() + 7) // 8, "little")
        reach = len(marks) * 8
        kept = [
            index
            for index in range(below, len(self._offsets))
            if (above := self._offsets[index] - base) >= reach or not marks[above >> 3] >> (above & 7) & 1
        ]
        if len(kept) < len(self._offsets):
            for name in ("_offsets", "_arrived_ms", "_deadlines_ms"):
                column = getattr(self, name)
                setattr(self, name, array("q", (column[index] for index in kept)))

    def add(self, record: Stored) -> None:
        """Add the next record, even if it is no valid job; skip a record that is done."""
        offset = record.place.offset
        if offset < self.position:
            return
        self.position = offset + 1
        if self.done >> (offset - self.base) & 1:
            return
        deadline_ms = self._deadline_of(record, self.topic_id)
        if deadline_ms is None:
            return
        self._offsets.append(offset)
        self._arrived_ms.append(record.at_ms)
        self._deadlines_ms.append(deadline_ms)

    @property
    def known(self) -> int:
        """The number of waiting jobs that were read."""
        return len(self._offsets)

    @property
    def unread(self) -> int:
        """The number of offsets neither read nor done. Transaction markers count like jobs until they are read."""
        return max(0, self.end - self.position - (self.done >> (self.position - self.base)).bit_count())

    @property
    def estimated(self) -> int:
        """The known work, and of the unread offsets the share that was work among the read ones; all before a reading.

        An offset that is no work is a transaction marker, or a result without a callback.
        """
        reach = self.position - self.base
        read = reach - (self.done & ((1 << reach) - 1)).bit_count()
        return self.known + (round(self.unread * self.known / read) if read else self.unread)

    @property
    def finished(self) -> int:
        """The number of offsets that are done."""
        return self.base + self.done.bit_count()

    def times(self) -> list[tuple[int, int]]:
        """Return the time of arrival and the deadline of each known job, Unix milliseconds, in the order of offsets."""
        return list(zip(self._arrived_ms, self._deadlines_ms, strict=True))


class Lanes:
    """Follows the partitions of one group's topics."""

    def __init__(self, topics: Topics, done_offsets: DoneOffsets, deadline_of: DeadlineOf = job_deadline) -> None:
        self._topics = topics
        self._done_offsets = done_offsets
        self._deadline_of = deadline_of
        self._partitions: dict[tuple[str, int], OpenJobs] = {}

    def advance(self, found: Sequence[GroupProgress]) -> None:
        """Apply the present ledgers of the group's partitions."""
        partitions: dict[tuple[str, int], OpenJobs] = {}
        for each in found:
            place = each.topic, each.partition
            known = self._partitions.get(place)
            if known is None or known.topic_id != each.topic_id or each.base < known.base:
                # The topic is new, or the group's offset was set back: read the partition again.
                known = OpenJobs(each.topic_id, each.base, self._deadline_of)
            known.advance(each.base, self._done_offsets(each.base, each.metadata), each.end)
            partitions[place] = known
        self._partitions = partitions

    def read(self, scanner: Scanner, visible: Visible) -> None:
        """Read the next jobs, the same number in each partition. Raises ProducerError."""
        unread = {
            place: (each.position, stop)
            for place, each in self._partitions.items()
            if each.position < (stop := visible.get(place, (0, 0))[1])
        }
        room = KNOWN_JOBS - sum(each.known for each in self._partitions.values())
        share = min(READ_RECORDS, room) // max(1, len(unread))
        if share <= 0:
            return
        ranges = [Range(*place, start, min(stop, start + share)) for place, (start, stop) in unread.items()]
        for record in scanner.read(ranges):
            self._partitions[record.topic, record.place.partition].add(record)
        for one in ranges:
            each = self._partitions[one.topic, one.partition]
            each.position = max(each.position, one.stop)

    def by_pool(self) -> dict[str | None, dict[str, list[OpenJobs]]]:
        """Return the partitions by engine, then by topic. The engine None stands for the lanes of the whole fleet."""
        found: dict[str | None, dict[str, list[OpenJobs]]] = defaultdict(lambda: defaultdict(list))
        for (topic, _), each in sorted(self._partitions.items()):
            found[self._topics.engine_of(topic)][topic].append(each)
        return found

    def estimated(self) -> dict[str, int]:
        """Return the number of waiting records by topic, estimated from the records that were read."""
        found: dict[str, int] = defaultdict(int)
        for (topic, _), each in self._partitions.items():
            found[topic] += each.estimated
        return dict(found)
