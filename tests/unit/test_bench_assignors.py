"""The assignor bench's counts of moved, needed and concentrated partitions."""

from __future__ import annotations

from bench.assignors import Place, Step, compared


def owners(**topics: str) -> dict[Place, int]:
    """The owner of each partition; each topic's text lists members' numbers in the order of its partitions."""
    return {(topic, number): int(owner) for topic, names in topics.items() for number, owner in enumerate(names)}


def test_moves_to_a_newcomer_are_needed_and_others_are_not() -> None:
    before, after = owners(a="0011", b="0011"), owners(a="0122", b="1120")
    assert compared(before, after, {0, 1, 2}) == Step(moved=7, needed=2, largest_part=1.5, spread=1)


def test_the_partitions_of_a_member_that_left_have_to_move() -> None:
    before, after = owners(a="0012", b="0122"), owners(a="0011", b="0111")
    assert compared(before, after, {0, 1}) == Step(moved=3, needed=3, largest_part=1.5, spread=2)


def test_a_member_with_a_whole_topic_has_as_many_equal_parts_as_there_are_members() -> None:
    before = owners(a="0000", b="1111", c="2222")
    assert compared(before, before, {0, 1, 2}) == Step(moved=0, needed=0, largest_part=3.0, spread=0)


def test_a_member_without_any_partition_counts_in_the_spread() -> None:
    before = owners(a="0011")
    assert compared(before, before, {0, 1, 2}).spread == 2
