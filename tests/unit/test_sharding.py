"""Shuffle sharding: one tenant's flood fills few partitions, and each other tenant has further partitions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.sharding import shard_of


def test_a_tenants_shard_never_changes() -> None:
    # These shards stay the same, because every tenant's queue would move if a new version chose other shards.
    assert shard_of("acme", 12) == (0, 1, 3, 10)
    assert shard_of("globex", 12) == (0, 2, 3, 9)


def test_jobs_without_a_tenant_use_every_partition() -> None:
    assert shard_of("default", 5) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(("partitions", "size"), [(1, 1), (2, 2), (4, 2), (12, 4), (100, 33)])
def test_a_shard_is_a_third_of_the_partitions_and_at_least_two(partitions: int, size: int) -> None:
    assert len(shard_of("acme", partitions)) == size


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True), st.integers(1, 64))
def test_a_shard_holds_distinct_partitions_that_exist(tenant: str, partitions: int) -> None:
    shard = shard_of(tenant, partitions)
    assert list(shard) == sorted(set(shard))
    assert set(shard) <= set(range(partitions))


def test_an_added_partition_takes_at_most_one_place_of_a_shard() -> None:
    for tenant in (f"t{number}" for number in range(200)):
        assert len(set(shard_of(tenant, 12)) - set(shard_of(tenant, 13))) <= 1


def test_tenants_are_spread_evenly_and_seldom_share_a_whole_shard() -> None:
    shards = [shard_of(f"t{number}", 12) for number in range(1200)]
    load = Counter(partition for shard in shards for partition in shard)
    assert min(load.values()) > 0.8 * 400
    assert max(load.values()) < 1.2 * 400
    assert Counter(shards).most_common(1)[0][1] <= 12
