"""Batches that a broker accepted although they state offsets that their partition does not have."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from telemetry.hand_clock import HandClock
from tests.unit.stage_rig import Intake, stage_with
from workers.stage.intake import PartitionId
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Record

FAR = 1_000_000


class Log(Intake):
    """A log as librdkafka reads it from a position on: batches with their stated offsets; a marker has None.

    A fetch returns whole batches without offsets below the position, and moves the position past the highest offset.
    A position beyond the log's end is reset to its start.
    """

    def __init__(self, batches: Sequence[Sequence[int | None]]) -> None:
        super().__init__()
        self.batches: list[tuple[int, list[int]]] = []
        self.end = self.position = 0
        for deltas in batches:
            stated = [self.end + delta for delta in deltas if delta is not None]
            self.end += len(deltas)
            self.batches.append((self.end, stated))

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        return 0, self.end

    def fetch(self, count: int) -> tuple[list[int], bool]:
        """The stated offsets of the next batches, and whether they reach the end."""
        if self.position > self.end:
            self.position = 0
        found: list[int] = []
        given = [each for each in self.batches if each[0] > self.position][:count]
        for _, stated in given:
            found += [offset for offset in stated if offset >= self.position]
        if given:
            self.position = max(given[-1][0], found[-1] + 1 if found else 0)
        return found, self.position == self.end


def read_to_end(log: Log, per_fetch: int, given_back: set[int]) -> Partition:
    """The partition of a stage that has taken this whole log and settled nothing.

    After each round in `given_back` the stage gives the first record of that round back, as when the window is full.
    """
    stage, _, partition = stage_with(log, HandClock())
    partition.open(Progress(0), 0)
    partition.paused = False
    for turn in range(1_000):
        offsets, ended = log.fetch(per_fetch)
        stage.take([Record("requests", 0, offset, b"") for offset in offsets], [("requests", 0, log.end)] * ended)
        if turn in given_back and partition.ledger.taken:
            partition.give_back([Record("requests", 0, min(partition.ledger.taken), b"")])
        if partition.rewind_to is not None:
            log.position = partition.rewind_to
            partition.resume(0.0)
        elif ended:
            return partition
    raise AssertionError("the stage does not come to the end")


HONEST = st.integers(1, 3).map(lambda count: list(range(count)))
MARKER = st.just([None])
FORGED = st.integers(1, 4).map(lambda count: [FAR] * count)


@example([[0], [FAR], [0], [FAR, FAR], [None], [FAR], [0]], 2, set())
@example([[0], [FAR], [0], [0], [FAR], [0]], 1, {3})
@given(
    st.lists(HONEST | MARKER | FORGED, min_size=1, max_size=8),
    st.integers(1, 4),
    st.sets(st.integers(0, 9), max_size=3),
)
def test_all_other_records_are_taken_and_nothing_past_the_end_is_committed(
    batches: list[list[int | None]], per_fetch: int, given_back: set[int]
) -> None:
    log = Log(batches)
    honest = [o for end, stated in log.batches for o in stated if o < log.end]
    partition = read_to_end(log, per_fetch, given_back)
    assert sorted(partition.ledger.taken) == honest
    assert partition.ledger.after(honest) == (log.end, 0)
