"""A consumer on a real broker knows whether it is a member of its group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from cli.operations.topics import configure_groups
from schemas.settings import KafkaSettings
from tests.product import eventually
from workers.stage.source import GroupSource, PartitionId

pytestmark = pytest.mark.broker


class Held:
    """A listener that remembers its partitions."""

    def __init__(self) -> None:
        self.partitions: set[PartitionId] = set()

    def assigned(self, partitions: Sequence[PartitionId]) -> None:
        self.partitions |= set(partitions)

    def revoked(self, partitions: Sequence[PartitionId]) -> None:
        self.partitions -= set(partitions)

    lost = revoked


@pytest.fixture
def intakes(fleet: KafkaSettings) -> Iterator[tuple[GroupSource, GroupSource]]:
    """Two consumers of a topic with one partition, before either has joined."""
    group = f"{fleet.topic_prefix}contact"
    configure_groups(fleet, [group])
    with ExitStack() as stack:
        made = [
            GroupSource(fleet.client_config(), group, [fleet.topics.control], on_error=lambda error: None)
            for _ in range(2)
        ]
        for intake in made:
            stack.callback(intake.leave)
        yield made[0], made[1]


def test_a_consumer_is_a_member_once_it_is_admitted_even_without_partitions(
    intakes: tuple[GroupSource, GroupSource],
) -> None:
    first, second = intakes
    holds_first, holds_second = Held(), Held()

    def is_member(intake: GroupSource, *others: GroupSource) -> bool:
        for one in (intake, *others):
            one.consume(1, 0.02)
        return intake.contact().member

    first.join(holds_first)
    assert not first.contact().member  # Kafka has not answered the first member's request to join yet
    assert not second.contact().member
    eventually(lambda: is_member(first) and bool(holds_first.partitions), 20, "the first is not let in")

    second.join(holds_second)
    eventually(lambda: is_member(second, first), 20, "the second is not let in")
    assert len(holds_first.partitions) + len(holds_second.partitions) == 1
    assert first.contact().silent_seconds == second.contact().silent_seconds == 0
