"""The partitions to which a transaction's outputs go."""

from collections import defaultdict

from workers.stage.batch import OUTPUTS_A_HOME, Batch
from workers.stage.partition import Partition
from workers.stage.record import Output


def batch_of(outputs: int, sources: list[int]) -> Batch:
    """A batch in which each source partition settles one record."""
    offsets = defaultdict(list, {Partition("t", number, 1, 0.0): [7] for number in sources})
    return Batch(offsets, [Output("out", b"x")] * outputs)


def test_a_small_transaction_writes_to_one_partition_another_each_turn() -> None:
    batch = batch_of(3, [5, 2, 9])
    assert [batch.homes(turn) for turn in range(4)] == [[2], [5], [9], [2]]


def test_a_large_transaction_is_spread_but_never_over_more_than_its_sources() -> None:
    batch = batch_of(2 * OUTPUTS_A_HOME, [1, 2, 3, 4])
    assert batch.homes(3) == [4, 1, 2]
    assert sorted(batch_of(100 * OUTPUTS_A_HOME, [1, 2]).homes(0)) == [1, 2]


def test_only_partitions_that_settle_a_record_are_written_to() -> None:
    """A dead worker's open transaction must block readers only of partitions that the worker owned."""
    batch = batch_of(1, [4])
    batch.offsets[Partition("t", 8, 1, 0.0)] = []  # this partition settles no record, but commits its state
    assert {home for turn in range(5) for home in batch.homes(turn)} == {4}
