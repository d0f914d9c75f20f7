"""The cache of tenants' entries: a full cache evicts an entry of the tenant that has the most entries."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from workers.delivery.tenant_lru import TenantLru

KEYS = st.tuples(st.sampled_from("abc"), st.sampled_from("1234567"))
STEPS = st.lists(st.tuples(st.sampled_from(["put", "put", "get", "pop"]), KEYS), min_size=20, max_size=200)


def test_the_largest_tenant_loses_its_least_recently_used_value() -> None:
    remembered = TenantLru[int](4)
    for number, own in enumerate("123"):
        remembered.put(("many", own), number)
    remembered.put(("few", "1"), 3)
    assert remembered.get(("many", "1")) == 0
    remembered.put(("other", "1"), 4)
    assert [("many", own) in remembered for own in "123"] == [True, False, True]
    assert (remembered.get(("few", "1")), remembered.get(("other", "1")), len(remembered)) == (3, 4, 4)


def test_a_new_value_of_the_largest_tenant_replaces_its_own_oldest() -> None:
    remembered = TenantLru[int](10)
    remembered.put(("few", "1"), 0)
    for number in range(1000):
        remembered.put(("many", str(number)), number)
    assert ("few", "1") in remembered
    assert [number for number in range(1000) if ("many", str(number)) in remembered] == list(range(991, 1000))


@given(most=st.integers(1, 8), steps=STEPS)
def test_the_cache_is_a_plain_mapping_that_drops_the_oldest_value_of_the_largest_tenant(
    most: int, steps: list[tuple[str, tuple[str, str]]]
) -> None:
    remembered, plain = TenantLru[int](most), OrderedDict[tuple[str, str], int]()
    for number, (step, key) in enumerate(steps):
        if step == "put":
            before = set(plain)
            remembered.put(key, number)
            plain[key] = number
            plain.move_to_end(key)
            if len(plain) > most:
                held = {tenant: sum(one == tenant for one, _ in plain) for tenant, _ in plain}
                [gone] = [one for one in plain if one not in remembered]
                assert held[gone[0]] == max(held.values())
                assert gone == next(one for one in plain if one[0] == gone[0])
                assert gone in before | {key}
                del plain[gone]
        elif step == "get":
            assert remembered.get(key) == plain.get(key)
            if key in plain:
                plain.move_to_end(key)
        else:
            assert remembered.pop(key) == plain.pop(key, None)
        assert len(remembered) == len(plain)
        assert all(one in remembered for one in plain)
