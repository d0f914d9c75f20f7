"""The range of a partition's records that may begin before the next commit, and the mark of that range in a commit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from workers.stage.horizon import LEAST_MARGIN, MOST_MARGIN, undone_below
from workers.stage.partition import Partition
from workers.stage.progress import Progress, begun_of
from workers.stage.record import Record


def records(*offsets: int) -> list[Record]:
    return [Record("requests", 0, offset, b"") for offset in offsets]


def opened(progress: Progress | None = None) -> Partition:
    """A partition whose first commit has returned."""
    partition = Partition("requests", 0, 1, 0.0)
    partition.open(progress, 1024)
    partition.settle([], partition.progress([]))
    return partition


def begun(partition: Partition, offsets: range) -> list[int]:
    """Take these records and begin as many as allowed; return the begun offsets."""
    waiting = records(*offsets)
    for record in waiting:
        partition.ledger.take(record.offset)
    allowed = partition.horizon.allowed(waiting, len(waiting))
    for record in waiting[:allowed]:
        partition.horizon.begun(record.offset)
    return [record.offset for record in waiting[:allowed]]


def test_before_the_next_commit_only_a_margin_of_records_is_begun() -> None:
    partition = opened()
    assert begun(partition, range(100)) == list(range(LEAST_MARGIN))
    assert partition.horizon.held_back


def test_the_margin_grows_with_the_pace_and_shrinks_again() -> None:
    partition, at, sizes = opened(), 0, []
    for _ in range(12):
        sizes.append(len(begun(partition, range(at, at + MOST_MARGIN + 1))))
        at += sizes[-1]
        partition.settle([], partition.progress([]))
    assert sizes[:6] == [32, 32, 64, 128, 256, 512]
    assert sizes[-1] == MOST_MARGIN
    first = at
    for _ in range(400):  # thirty records begin after a commit, and the next commit settles all
        assert len(begun(partition, range(at, at + 30))) == 30
        recent = list(range(at, at + 30)) if at > first else list(range(at + 30))
        partition.settle(recent, partition.progress(recent))
        at += 30
    assert partition.progress([]).begun <= 64


def test_a_record_far_beyond_a_gap_is_allowed_by_the_next_commit() -> None:
    """Compaction leaves gaps of any width, so a fixed margin above the begun records might never reach the next one."""
    partition, far = opened(), records(5_000_000)
    assert partition.horizon.allowed(far, 1) == 0
    partition.ledger.reach(5_000_000)
    partition.settle([], partition.progress([]))
    assert partition.horizon.allowed(far, 1) == 1


def test_a_commit_names_at_most_the_running_records_and_the_margin_as_begun() -> None:
    partition = opened()
    begun(partition, range(LEAST_MARGIN))
    done = [offset for offset in range(LEAST_MARGIN) if offset != 3]
    progress = partition.progress(done)
    assert Progress.decode(progress.base, progress.encode()).begun == begun_of(1 + LEAST_MARGIN)


def test_the_next_owner_of_an_open_partition_suspects_as_many_as_may_have_been_begun() -> None:
    """In an earlier version, the next owner of twelve partitions suspected a whole window of records in each."""
    partition = opened()
    begun(partition, range(20))
    committed = partition.progress(list(range(10)))
    found = Partition("requests", 0, 2, 0.0)
    found.open(Progress.decode(committed.base, committed.encode()), 1024)
    assert found.careful_records == begun_of(10 + LEAST_MARGIN) == 64
    found.open(Progress(0, open=True), 1024)
    assert found.careful_records == 1024, "an owner of an earlier release said nothing"


@settings(max_examples=drawn(60), deadline=None)
@given(st.data())
def test_begun_records_are_always_among_the_first_undone_ones_of_the_last_commit(data: st.DataObject) -> None:
    """Records begin and end in any order, some commits never return, and the owner dies at any point."""
    partition = opened()
    committed = partition.confirmed
    taken, ran, ended, waiting = 0, set[int](), set[int](), list[Record]()
    for _ in range(data.draw(st.integers(1, 15), label="steps")):
        for record in records(*range(taken, taken + data.draw(st.integers(0, 80), label="come"))):
            partition.ledger.take(record.offset)
            waiting.append(record)
            taken += 1
        parties = data.draw(st.sampled_from([1, 3]), label="parties")
        for party in range(parties):  # each party has its own queue, so a later record may go first
            mine = [record for record in waiting if record.offset % parties == party]
            for record in mine[: partition.horizon.allowed(mine, data.draw(st.integers(0, 60), label="room"))]:
                partition.horizon.begun(record.offset)
                ran.add(record.offset)
                waiting.remove(record)
        ended |= set(data.draw(st.lists(st.sampled_from(sorted(ran)), max_size=40)) if ran else ())
        settled = sorted(ended & partition.ledger.taken)
        progress = partition.progress(settled)
        fate = data.draw(st.sampled_from(["returned", "applied", "lost"]), label="commit")
        if fate != "lost":
            committed = Progress.decode(progress.base, progress.encode())
        if fate == "returned":
            partition.settle(settled, progress)
        undone = [offset for offset in range(committed.base, taken) if not _is_done(committed, offset)]
        assert {offset for offset in ran if not _is_done(committed, offset)} <= set(undone[: committed.begun])


def _is_done(progress: Progress, offset: int) -> bool:
    return offset < progress.base or bool(progress.done >> (offset - progress.base) & 1)


def test_only_undone_offsets_below_the_limit_are_counted() -> None:
    assert undone_below(110, 100, 0b1010) == 8
    assert undone_below(102, 100, 0b1010) == 1
    assert undone_below(100, 100, 0b1010) == undone_below(90, 100, 0) == 0


def test_a_number_of_records_is_written_as_the_next_power_of_two() -> None:
    assert [begun_of(records) for records in (0, 1, 2, 3, 33, 64, 65, 1 << 20)] == [2, 2, 2, 4, 64, 64, 128, 1 << 15]
