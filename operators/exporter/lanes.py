"""The waiting jobs of all lanes, or the waiting callbacks of all topics that delivery reads.

Each record is read at most once, and a record that is done before the reader reaches it is never read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from operators.backlog import GroupProgress
from operators.exporter.open_jobs import DeadlineOf, OpenJobs, job_deadline
from operators.exporter.visible import Visible
from producers.scan import Range, Scanner
from schemas.topics import Topics

DoneOffsets = Callable[[int, str], int]
"""Reads a ledger from its base and a commit's metadata. Returns a bitmap whose bit i stands for offset base + i."""


class Lanes:
    """Follows the partitions of one group's topics."""

    def __init__(
        self,
        topics: Topics,
        done_offsets: DoneOffsets,
        read_records: int,
        known_jobs: int,
        deadline_of: DeadlineOf = job_deadline,
    ) -> None:
        self._topics = topics
        self._done_offsets = done_offsets
        self._read_records = read_records
        self._known_jobs = known_jobs
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
        room = self._known_jobs - sum(each.known for each in self._partitions.values())
        share = min(self._read_records, room) // max(1, len(unread))
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
