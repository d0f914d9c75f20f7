"""A page's cache entry: its content, lifetime and memory. The tests of the cache's levels are in tests/integration."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import pytest

from workers.enrichment.cache.entry import (
    CacheEntry,
    Key,
    Lifetime,
    decoded,
    encoded,
    lifetime,
    scope_of,
    target_of_host,
    target_of_url,
)
from workers.enrichment.cache.flights import Flights
from workers.enrichment.cache.memory import Memory
from workers.enrichment.cache.settings import CacheSettings
from workers.enrichment.evidence import Page

ANSWER: dict[str, Any] = {"title": None, "text": "A bridge.", "rest": "", "particulars": {"doi": None}}
URL = "https://a.example/x"
ENTRY = CacheEntry(100.0, 200.0, 300.0, URL, "https://b.example/y", '"v1"', None, ANSWER, life=Lifetime(100.0))


def test_an_entry_is_the_same_when_it_is_read_back() -> None:
    negative = CacheEntry(100.0, 200.0, 200.0, URL, URL, reason="its server answered 404")
    assert [decoded(encoded(one)) for one in (ENTRY, negative)] == [ENTRY, negative]


def fields(**changes: Any) -> bytes:
    return zlib.compress(json.dumps(json.loads(zlib.decompress(encoded(ENTRY))) | changes).encode())


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        encoded(ENTRY)[:-5],
        zlib.compress(b"[]"),
        zlib.compress(b"{"),
        zlib.compress(b"[" * 100_000),
        fields(format=1),
        fields(unknown=1),
        fields(answer=None),
        fields(answer={"text": 1}),
        fields(answer={**ANSWER, "particulars": {"nonsense": 1}}),
        fields(asked_at="now"),
        fields(fresh_until=float("nan")),
        fields(url=None),
        fields(life=1),
        fields(life={"fresh": "long"}),
    ],
)
def test_bytes_that_are_no_entry_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="not an entry"):
        decoded(value)


def test_an_entry_that_unpacks_to_too_much_is_refused() -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(b" " * 2**20) for _ in range(100)) + packer.flush()
    with pytest.raises(ValueError, match="not an entry"):
        decoded(bomb)


DATE = "Thu, 01 Jan 1970 00:00:00 GMT"
LATER = "Thu, 01 Jan 1970 00:10:00 GMT"


@pytest.mark.parametrize(
    ("cache_control", "headers", "expected"),
    [
        ("", {}, Lifetime(3600.0)),
        ("max-age=60", {}, Lifetime(60.0)),
        ("public, MAX-AGE = 60", {}, Lifetime(60.0)),
        ("max-age=60, s-maxage=90", {}, Lifetime(90.0, may_be_served_late=False)),
        ("max-age=999999999", {}, Lifetime(86400.0)),
        ("max-age=nonsense", {}, Lifetime(3600.0)),
        ("no-cache", {}, Lifetime(0.0, may_be_served_late=False)),
        ("max-age=60, must-revalidate", {}, Lifetime(60.0, may_be_served_late=False)),
        ("Proxy-Revalidate", {}, Lifetime(3600.0, may_be_served_late=False)),
        ("no-store", {}, None),
        ("max-age=60, private", {}, None),
        ('private="set-cookie"', {}, None),
        ("", {"expires": "0"}, Lifetime(0.0)),
        ("", {"expires": DATE, "date": LATER}, Lifetime(0.0)),
        ("", {"expires": LATER, "date": DATE}, Lifetime(600.0)),
        ("", {"expires": LATER}, Lifetime(500.0)),
        ("", {"expires": LATER, "date": DATE, "age": "200"}, Lifetime(400.0)),
        ("max-age=60", {"expires": "0"}, Lifetime(60.0)),
        ("max-age=60", {"age": "45"}, Lifetime(15.0)),
        ("max-age=60", {"age": "61"}, Lifetime(0.0)),
        ("max-age=60", {"age": "-1"}, Lifetime(60.0)),
        ("max-age=60", {"age": "9" * 5000}, Lifetime(60.0)),
    ],
)
def test_a_server_says_how_long_its_page_is_good(
    cache_control: str, headers: dict[str, str], expected: Lifetime | None
) -> None:
    page = Page(URL, "text/html", None, b"", cache_control=cache_control, **headers)  # type: ignore[arg-type]
    assert lifetime(page, CacheSettings(), 100.0) == expected


def test_public_pages_are_shared_by_all_tenants_and_others_by_none() -> None:
    assert scope_of("one", ()) == scope_of("two", ()) == "public"
    scopes = {scope_of(tenant, networks) for tenant in ("one", "two") for networks in (("10.0.0.0/8",), ("::/0",))}
    assert len(scopes) == 4
    assert scope_of("one", ("a", "b")) == scope_of("one", ("b", "a"))


def test_pages_read_before_a_denial_are_read_again() -> None:
    assert scope_of("one", (), ("a",)) == scope_of("two", (), ("a",)) != "public"
    lists = [((), ("a",)), ((), ("a", "b")), (("a",), ()), (("a",), ("b",)), (("a", "b"), ())]
    assert len({scope_of("one", allowed, denied) for allowed, denied in lists}) == len(lists)


def test_a_fragment_names_no_other_page() -> None:
    assert Key.of(f"{URL}#part", "public") == Key.of(URL, "public")
    assert target_of_url(f"{URL}#part") == target_of_url(URL)


def test_an_entry_is_invalidated_by_its_requested_and_by_its_final_url() -> None:
    named = [target_of_url(url) for url in (URL, "https://b.example/y")]
    hosts = [target_of_host(host) for host in ("A.example.", "b.example")]
    assert set(ENTRY.targets) == {*named, *hosts}


def page_of(text: str) -> bytes:
    return encoded(replace(ENTRY, answer={**ANSWER, "text": text}))


@pytest.mark.parametrize(
    "text", ["A bridge. " * 30_000, "桥" * 300_000, "A bridge."], ids=["packs well", "wide", "short"]
)
def test_memory_stays_within_its_size_as_the_process_measures_it(text: str) -> None:
    """An earlier version counted packed bytes but kept unpacked text, so 64 MiB held gigabytes of well-packed pages."""
    memory, value = Memory(4_000_000), page_of(text)
    tracemalloc.start()
    for number in range(4000 if len(text) < 1000 else 40):
        memory.put(Key("public", f"{number:064}"), decoded(value))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2_000_000 < taken < 4_400_000


def test_memory_evicts_the_least_recently_used_entry_and_keeps_none_larger_than_itself() -> None:
    memory = Memory(1_000_000)
    one, two, three = (Key("public", name) for name in "123")
    page = decoded(page_of("x" * 400_000))
    memory.put(one, page)
    memory.put(two, page)
    assert memory.get(one) is page
    memory.put(three, page)
    assert [memory.get(key) for key in (one, two, three)] == [page, None, page]
    memory.put(one, decoded(page_of("x" * 1_100_000)))
    assert [memory.get(key) for key in (one, two, three)] == [None, None, page]


async def test_a_cancelled_waiter_does_not_stop_the_others() -> None:
    flights: Flights[str, str] = Flights()
    go, begun = asyncio.Event(), 0

    async def work() -> str:
        nonlocal begun
        begun += 1
        await go.wait()
        return "done"

    first, second = (asyncio.create_task(flights.join("x", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    go.set()
    assert await second == "done"
    assert begun == 1


async def test_the_work_stops_when_its_last_waiter_leaves() -> None:
    flights: Flights[str, None] = Flights()
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = [asyncio.create_task(flights.join("x", work)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert ended.is_set()


async def test_every_waiter_gets_the_failure() -> None:
    flights: Flights[str, None] = Flights()

    async def work() -> None:
        raise LookupError("no")

    outcomes = await asyncio.gather(*(flights.join("x", work) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LookupError] * 3


def test_a_host_has_one_name_however_it_is_spelled() -> None:
    assert target_of_host("BÜCHER.example.") == target_of_host("xn--bcher-kva.example")
    assert target_of_host("[::1]") == target_of_host("::1")
    assert target_of_host("a.example") != target_of_host("b.a.example")
