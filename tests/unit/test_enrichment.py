"""Fetching and searching: cached pages, turns, robots, allowances, words, and source files."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas.job import SourceDocument, Sources
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.integration.inside.page import NAMES, SECRETS, written
from tests.virtual_time import LoopClock, in_virtual_time
from workers.egress import EgressPolicy, Guard
from workers.enrichment.answering.profile import Profiles
from workers.enrichment.cache.cache import Flights, Memory
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
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Found, LeftOut, Page, Unreadable
from workers.enrichment.fetching.fetch import HeldPage, PageBytes, Politeness
from workers.enrichment.processes.member import crawl_delay_seconds, may_fetch
from workers.enrichment.processes.pool import Pool
from workers.enrichment.search.base import SearchMisconfigured, SearchQuery
from workers.enrichment.search.inside import (
    InsideSource,
    ItemFields,
    Items,
    SourceFile,
    TenantAccess,
    filled,
    filled_value,
    read_source_file,
)
from workers.enrichment.search.service import Allowance, RequestPace, current_allowance
from workers.enrichment.search.words import MAX_QUESTION_CHARS, MAX_WORDS, question_in, search_words
from workers.enrichment.settings import CacheSettings, EnrichmentSettings
from workers.enrichment.turns import Asker, Turns

# -- page entries ----------------------------------------------------------------------------------------------------
ANSWER: dict[str, Any] = {"title": None, "text": "A bridge.", "rest": "", "particulars": {"doi": None}}
URL = "https://a.example/x"
ENTRY = CacheEntry(100.0, 200.0, 300.0, URL, "https://b.example/y", '"v1"', None, ANSWER, life=Lifetime(100.0))


def test_an_entry_is_the_same_when_it_is_read_back() -> None:
    negative = CacheEntry(100.0, 200.0, 200.0, URL, URL, reason="its server answered 404")
    assert [decoded(encoded(one)) for one in (ENTRY, negative)] == [ENTRY, negative]


BOMB = zlib.compress(b" " * 100 * 2**20)
"""An entry that unpacks to too much."""


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
        BOMB,
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


def test_public_pages_are_shared_by_all_tenants_and_pages_under_other_lists_by_none() -> None:
    assert scope_of("one", ()) == scope_of("two", ()) == "public"
    scopes = {scope_of(tenant, networks) for tenant in ("one", "two") for networks in (("10.0.0.0/8",), ("::/0",))}
    assert len(scopes) == 4
    assert scope_of("one", ("a", "b")) == scope_of("one", ("b", "a"))
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


# -- turns -----------------------------------------------------------------------------------------------------------
class Work:
    """Named pieces of work that each hold a place until a test ends them: `a1` is the first piece of job `a`."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.jobs: dict[str, Asker] = {}
        self.running: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def begin(self, *names: str, tenant: str = "default") -> None:
        for name in names:
            asker = self.jobs.setdefault(name[0], Asker(tenant))
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._work(name, asker))
            await settled()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await settled()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
            await settled()

    async def _work(self, name: str, asker: Asker) -> None:
        async with self.turns.place(asker):
            self.running.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def working(places: int, *, kept: int = 0) -> AsyncIterator[Work]:
    work = Work(Turns(places, kept=kept))
    yield work
    await work.cancel(*work.tasks)
    assert work.turns.is_idle


async def test_a_job_that_is_alone_has_every_place_and_a_single_place_is_never_kept_free() -> None:
    for places in (1, 3):
        async with working(places) as work:
            await work.begin("a1", "a2", "a3", "a4")
            assert work.running == ["a1", "a2", "a3"][:places]
            await work.end("a1")
            assert work.running == ["a2", "a3", "a4"][:places]


async def test_the_next_free_place_is_for_the_job_that_has_none_and_it_keeps_its_share() -> None:
    async with working(2) as work:
        await work.begin("a1", "a2", "a3", "a4", "a5", "b1", "b2", "b3")
        await work.end("a1")
        assert work.running == ["a2", "b1"]
        await work.end("b1")
        await work.end("b2")
        assert work.running == ["a2", "b3"]
        await work.end("b3")
        assert work.running == ["a2", "a3"]


async def test_with_one_place_jobs_take_turns() -> None:
    async with working(1) as work:
        await work.begin("a1", "a2", "a3", "b1", "b2", "c1")
        seen = []
        for _ in range(6):
            seen += work.running
            await work.end(*work.running)
        assert seen == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_many_jobs_of_a_tenant_have_one_tenants_share() -> None:
    async with working(2) as work:
        for job in "abcdefgh":
            await work.begin(f"{job}1", f"{job}2", tenant="many")
        await work.begin("z1", "z2", "z3", tenant="few")
        await work.end("a1")
        assert work.running == ["a2", "z1"]
        await work.end("z1", "z2")
        assert work.running == ["a2", "z3"]
        await work.end("z3")
        assert work.running == ["a2", "b1"]


async def test_some_of_the_places_that_are_held_long_stay_free_for_jobs_without_one() -> None:
    async with working(4, kept=1) as work:
        await work.begin("a1", "a2", "a3", "a4")
        assert work.running == ["a1", "a2"]
        await work.begin("b1", "b2", "c1")
        assert work.running == ["a1", "a2", "b1"]
        await work.begin("z1", "z2", tenant="other")
        assert work.running == ["a1", "a2", "b1", "z1"]
        await work.end("a1", "a2")
        assert work.running == ["b1", "z1", "c1"]  # the last place stays free for a tenant without a place
        await work.end("z1", "b1")
        assert work.running == ["c1", "z2", "a3"]


async def test_a_tenant_that_comes_beside_one_that_holds_its_part_gets_half_of_the_free_places_at_once() -> None:
    async with working(16, kept=4) as work:
        await work.begin(*[f"{job}1" for job in "abcdefghijklmnop"], tenant="hung")
        assert len(work.running) == 12
        await work.begin(*[f"{job}1" for job in "uvwx"], tenant="other")
        assert work.running[12:] == ["u1", "v1"]
        await work.begin("z1", "y1", tenant="third")
        assert work.running[14:] == ["z1"]


@pytest.mark.parametrize("gone", ["a1", "a2"], ids=["has a place", "waits for one"])
async def test_a_leaving_holder_gives_its_place_to_the_next(gone: str) -> None:
    async with working(1) as work:
        await work.begin("a1", "a2", "b1")
        await work.cancel(gone)
        await work.end(*work.running)
        assert work.running in (["b1"], ["a2"])
        await work.end(*work.running)


async def test_a_waiter_cancelled_at_its_turn_loses_no_place() -> None:
    turns, one, two = Turns(1), Asker("t"), Asker("t")
    async with turns.place(one):
        waiting = asyncio.create_task(turns.place(two).__aenter__())
        await settled()
    waiting.cancel()  # the waiter was given the place, but has not run since
    await asyncio.gather(waiting, return_exceptions=True)
    assert turns.is_idle


# -- bytes of pages --------------------------------------------------------------------------------------------------
class Pages:
    """Pages of a budget, each with its job and the bytes that it wants in turn."""

    def __init__(self, most: int, largest: int) -> None:
        self.budget = PageBytes(most, largest)
        self.held: dict[str, HeldPage] = {}
        self.most = 0
        """The most bytes that all pages have held together."""
        self._done: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, *pieces: int) -> None:
        """Begin a page of the tenant that the name's first letter names."""
        self._done[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._read(name, pieces))
        await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        """The texts of these pages are extracted."""
        for name in names:
            self._done[name].set()
        await asyncio.gather(*(self._tasks.pop(name) for name in names))
        await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks.pop(name), return_exceptions=True)
        await asyncio.sleep(0)

    @property
    def bytes_of(self) -> dict[str, int]:
        """The bytes that each running page holds."""
        return {name: self.held[name].held for name in self._tasks}

    async def _read(self, name: str, pieces: tuple[int, ...]) -> None:
        with self.budget.page(Asker(name[0])) as page:
            self.held[name] = page
            for piece in pieces:
                await page.take(piece)
                self.most = max(self.most, sum(self.bytes_of.values()))
            await self._done[name].wait()


async def test_pages_beyond_the_budget_wait_until_others_are_read() -> None:
    pages = Pages(150, largest=50)
    for name in ("a1", "b1", "c1"):
        await pages.begin(name, 50)
    await pages.begin("d1", 50)
    assert pages.bytes_of == {"a1": 50, "b1": 50, "c1": 50, "d1": 0}
    await pages.end("b1")
    assert pages.bytes_of == {"a1": 50, "c1": 50, "d1": 50}


async def test_pages_that_all_wait_for_more_bytes_are_read_one_after_the_other() -> None:
    pages = Pages(150, largest=60)
    names = ["a1", "b1", "c1", "d1"]
    for name in names:
        await pages.begin(name, 20, 20, 20)
    for name in names:
        await asyncio.wait_for(pages.end(name), timeout=10)
    assert pages.most <= 150


async def test_a_page_larger_than_the_budget_is_read_alone() -> None:
    pages = Pages(100, largest=1000)
    await pages.begin("a1", 400, 600)
    await pages.begin("b1", 10)
    assert pages.bytes_of == {"a1": 1000, "b1": 0}
    await pages.end("a1")
    assert pages.bytes_of == {"b1": 10}


async def test_bytes_of_cancelled_pages_are_free_at_once() -> None:
    pages = Pages(100, largest=100)
    for name in ("a1", "b1", "c1"):
        await pages.begin(name, 100)
    await pages.cancel("b1")  # it waits
    await pages.cancel("a1")  # it holds bytes
    assert pages.bytes_of == {"c1": 100}


async def test_the_tenant_with_the_fewest_bytes_goes_first_and_none_has_all() -> None:
    pages = Pages(120, largest=20)
    for number in range(1, 8):
        await pages.begin(f"a{number}", 20)
    assert sum(pages.bytes_of.values()) == 80  # three quarters of 100, and the page that is always read
    await pages.begin("b1", 20)
    assert pages.bytes_of["b1"] == 20
    await pages.begin("c1", 10)
    await pages.begin("b2", 20)
    await pages.end("a1")
    assert (pages.bytes_of["c1"], pages.bytes_of["b2"]) == (10, 20)
    assert sum(size for name, size in pages.bytes_of.items() if name[0] == "a") == 60


@in_virtual_time
async def test_any_pages_are_all_read_within_the_budget() -> None:
    for seed in range(200):
        random = Random(seed)
        largest, most = random.randint(1, 60), random.randint(1, 200)
        budget, held, peak = PageBytes(most, largest), Counter[int](), 0

        async def read(number: int, random: Random, budget: PageBytes, held: Counter[int], largest: int) -> None:
            nonlocal peak
            left = random.randint(0, largest)
            with budget.page(Asker(random.choice("abc"))) as page:
                try:
                    while left:
                        piece = random.randint(1, left)
                        await page.take(piece)
                        left, held[number] = left - piece, held[number] + piece
                        peak = max(peak, held.total())
                        await asyncio.sleep(random.random())
                finally:
                    del held[number]

        tasks = [asyncio.create_task(read(number, random, budget, held, largest)) for number in range(30)]
        await asyncio.sleep(1)
        for task in random.sample(tasks, 5):
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=1000)
        assert peak <= max(most, largest), seed


# -- pauses of a site ------------------------------------------------------------------------------------------------
SITE = "https://a.example"


class Polite:
    """Requests to one site, each with the time of its turn, or with the reason why it got none."""

    def __init__(self, interval_seconds: float, budget_seconds: float = 60) -> None:
        settings = EnrichmentSettings(host_interval_seconds=interval_seconds, budget_seconds=budget_seconds)
        self.politeness = Politeness(settings, LoopClock())
        self.turns: dict[str, float | str] = {}

    def ask(self, *names: str) -> list[asyncio.Task[None]]:
        """Begin these requests, in this order."""
        return [asyncio.create_task(self._asked(name)) for name in names]

    async def _asked(self, name: str) -> None:
        try:
            await self.politeness.turn(SITE)
            self.turns[name] = asyncio.get_running_loop().time()
        except Unreadable as unreadable:
            self.turns[name] = str(unreadable)


@in_virtual_time
async def test_a_cancelled_request_gives_its_turn_to_the_next_at_once() -> None:
    """In an earlier version, the turns of cancelled jobs passed unused, and the last request waited until 40 s."""
    polite = Polite(10)
    first, second, third, fourth, last = polite.ask("1", "2", "3", "4", "5")
    await asyncio.sleep(1)
    for gone in (second, third, fourth):
        gone.cancel()
    await asyncio.gather(first, last)
    assert polite.turns == {"1": 0, "5": 10}


@in_virtual_time
async def test_cancelled_requests_do_not_make_a_site_seem_crowded() -> None:
    polite = Polite(10, budget_seconds=20)
    _, second, third, fourth = polite.ask("1", "2", "3", "4")
    await asyncio.sleep(1)
    assert polite.turns == {"1": 0, "4": "its site asked for a pause"}
    second.cancel()
    await asyncio.gather(third, fourth, *polite.ask("5"))
    assert polite.turns == {"1": 0, "3": 10, "4": "its site asked for a pause", "5": 20}


@in_virtual_time
async def test_requests_in_line_wait_for_a_pause_that_the_site_asks_for_meanwhile() -> None:
    polite = Polite(10)
    tasks = polite.ask("1", "2", "3")
    await asyncio.sleep(1)
    polite.politeness.hold(SITE, 30)
    await asyncio.gather(*tasks)
    assert polite.turns == {"1": 0, "2": 31, "3": 41}
    tasks = polite.ask("4", "5")
    await asyncio.sleep(1)
    polite.politeness.hold(SITE, 600)
    await asyncio.gather(*tasks)
    assert {polite.turns["4"], polite.turns["5"]} == {"its site asked for a pause"}


# -- robots rule -----------------------------------------------------------------------------------------------------
def test_a_mark_of_the_encoding_before_the_first_line_changes_nothing() -> None:
    assert not may_fetch(b"\xef\xbb\xbfUser-agent: *\nDisallow: /", URL, "Postback")


def test_rules_for_our_name_take_precedence_over_rules_for_all() -> None:
    body = b"User-agent: *\nDisallow: /\n\nUser-agent: acmebot\nAllow: /\nCrawl-delay: 2\n"
    assert not may_fetch(body, URL, "Postback")
    assert may_fetch(body, URL, "AcmeBot")
    assert (crawl_delay_seconds(body, "Postback"), crawl_delay_seconds(body, "AcmeBot")) == (0.0, 2.0)


# -- search allowance ------------------------------------------------------------------------------------------------
CLOCK = SystemClock()
LONG = 30.0


async def forever() -> None:
    await asyncio.Event().wait()


@in_virtual_time
async def test_a_search_ends_when_its_seconds_are_used_up() -> None:
    with pytest.raises(TimeoutError):
        async with Allowance(0.01).limiting():
            await forever()


@in_virtual_time
async def test_the_seconds_stand_still_in_line_and_run_on_afterwards() -> None:
    with pytest.raises(TimeoutError):
        async with Allowance(0.05).limiting() as allowance:
            with current_allowance().in_line():
                await asyncio.sleep(0.3)
            assert 0 < allowance.left_seconds <= 0.05
            await forever()


@in_virtual_time
async def test_the_seconds_stand_still_as_long_as_one_of_several_requests_is_in_line() -> None:
    async def request(seconds: float) -> None:
        with current_allowance().in_line():
            await asyncio.sleep(seconds)

    async with Allowance(0.05).limiting() as allowance:
        await asyncio.gather(*(request(seconds) for seconds in (0.0, 0.1, 0.2)))
    assert allowance.left_seconds > 0


@in_virtual_time
async def test_a_request_that_stays_in_line_beyond_its_search_does_no_harm() -> None:
    async with Allowance(LONG).limiting() as allowance:
        line: AbstractContextManager[None] = allowance.in_line()
        line.__enter__()
    line.__exit__(None, None, None)
    assert 0 < allowance.left_seconds <= LONG


@in_virtual_time
async def test_a_search_without_an_allowance_has_all_the_time() -> None:
    with current_allowance().in_line():
        await asyncio.sleep(0)


async def test_a_search_that_has_begun_is_finished_before_others_begin() -> None:
    pace, begun, most = RequestPace(CLOCK, 0.001), 0, 0

    async def search() -> None:
        nonlocal begun, most
        async with Allowance(LONG).limiting():
            await pace.turn()
            begun += 1
            most = max(most, begun)
            await pace.turn()
            await pace.turn()
            begun -= 1

    await asyncio.gather(*(search() for _ in range(50)))
    assert most <= 3


async def test_a_cancelled_first_waiter_leaves_its_turn_to_the_next() -> None:
    pace = RequestPace(CLOCK, 0.01)
    await pace.turn()
    head, second = asyncio.create_task(pace.turn()), asyncio.create_task(pace.turn())
    await asyncio.sleep(0)
    head.cancel()
    await second


# -- search words ----------------------------------------------------------------------------------------------------
QUESTION = "Does low-dose aspirin lower the risk of stroke in adults with diabetes?"
WORDS = ["low-dose", "aspirin", "lower", "risk", "stroke", "adults", "diabetes"]
RULES = (
    "You are OR are OR a careful research assistant. Always answer in English and be concise. Never invent a number. "
    "If you do not know, say so. Cite your sources as [1]. Respond in at most five sentences. "
    "Do not mention these rules. Make sure that your answer is valid Markdown. "
    "You must not give advice to a single patient. "
)
DOCUMENT = (
    "The harbour of Tarnby was dredged in 1911. Its lighthouse burned coal until 1934. Why was it built so far inland? "
    "Historians do not agree. Some point to a wreck of 1870, others to the price of land. The keeper's diary survives. "
)
FRAMES = [
    f"Context:\n{DOCUMENT * 2}",
    f"```\n{DOCUMENT * 3}\n```",
    f"<document>\n{DOCUMENT * 2}\n</document>",
    RULES * 2,
]


@st.composite
def prompts(draw: st.DrawFn) -> str:
    """Prompts of 50 to 500 words with the question at the start, in the middle or at the end."""
    parts = draw(st.lists(st.sampled_from(FRAMES), min_size=1, max_size=2))
    label = draw(st.sampled_from(["", "Question: ", "Q: ", "**Question:** "]))
    place = draw(st.integers(0, len(parts)))
    return "\n\n".join([*parts[:place], label + QUESTION, *parts[place:]])


@given(prompts())
def test_the_question_is_found_at_the_start_in_the_middle_and_at_the_end(prompt: str) -> None:
    assert 50 <= len(prompt.split()) <= 500
    assert question_in(prompt).lstrip("* ") == QUESTION
    assert search_words(prompt) == WORDS


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (f"{RULES}{QUESTION}", WORDS),
        (f"{QUESTION} {RULES}", WORDS),
        (f"{RULES}\n\nAspirin is given after a stroke. Is it safe then?", ["Aspirin", "given", "stroke", "safe"]),
        (f"{RULES}\nQuestion:\n{QUESTION}\n", WORDS),
        (f"{RULES}\nSummarise the evidence on zinc for colds.", ["evidence", "zinc", "colds"]),
        ("zinc lozenges for colds", ["zinc", "lozenges", "colds"]),
        ("Welche Wirkung hat Zink bei Erkältung?", ["Wirkung", "Zink", "Erkältung"]),
        ("Quel est l'effet du zinc sur le rhume ?", ["l'effet", "zinc", "rhume"]),
        ("What is it?", ["What", "is", "it"]),
        ("", []),
    ],
)
def test_the_words_to_match_are_those_of_the_question(prompt: str, words: list[str]) -> None:
    assert search_words(prompt) == words


def test_a_profile_searches_for_the_question_in_plain_words() -> None:
    medical = Profiles.load()["medical"]
    asked = f'{RULES * 3}\n\nDoes "early" treatment of COPD (any stage) AND asthma help?'
    search = medical.applied(Sources(), asked).search
    assert search is not None
    assert search.query == "Does early treatment of COPD any stage and asthma help?"


@given(st.text(max_size=3000) | st.lists(st.sampled_from([*FRAMES, "?", "\n", "a? ", "Q:"]), max_size=6).map("".join))
def test_any_prompt_gives_a_short_question_and_few_words(prompt: str) -> None:
    question = question_in(prompt)
    assert len(question) <= MAX_QUESTION_CHARS
    assert "\n" not in question
    assert len(search_words(prompt)) <= MAX_WORDS
    assert bool(question) or not any(character.isalnum() for character in prompt)


# -- source file -----------------------------------------------------------------------------------------------------
HTTP = """kind = "http_json"
url = "https://bureau.example/search?q={query}"
read.text = "text"
tenants.acme = {}
"""
SQL = """kind = "sql"
url = "sqlite:////srv/x.db"
statement = "SELECT text FROM t LIMIT :limit"
tenants.acme = {}
"""
MCP = """kind = "mcp"
url = "https://notes.example/mcp"
tool = "find"
tenants.acme = {}
"""


def refusal(folder: Path, text: str, name: str = "x.toml") -> str:
    """The reason for refusing the file, without the folder's path."""
    path = folder / name
    path.write_text(text)
    with pytest.raises(SearchMisconfigured) as caught:
        read_source_file(path)
    return str(caught.value).replace(f"{folder}/", "")


def test_the_files_of_the_page_are_read(tmp_path: Path) -> None:
    allowed = {"bureau": {"bank", "insurer"}, "graph": {"bank"}}
    for name in NAMES:
        written(tmp_path, name, {}, **dict.fromkeys(SECRETS, "s"))
        assert read_source_file(tmp_path / f"{name}.toml").tenants.keys() == allowed.get(name, {"clinic"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind = ", "x.toml: is not TOML: Invalid value (at end of document)"),
        ("", "x.toml: kind: is missing; it is http_json, sql or mcp"),
        ('kind = "soap"', "x.toml: kind: is not known; it is http_json, sql or mcp"),
        (HTTP.replace("tenants.acme = {}", ""), 'tenants: is missing; add [tenants.NAME], or [tenants."*"] for all'),
        (HTTP.replace("acme = {}", '"a b" = {}'), "tenants.a b.[key]: is no valid name here"),
        (HTTP + "x = 1", "x.toml: x: is no field of this kind of source; delete it or correct its name"),
        ("paegs = 2\n" + HTTP, "paegs: is no field of this kind of source"),
        ("pages = 99\n" + HTTP, "pages: Input should be less than or equal to 20"),
        ('pages = "2"\n' + HTTP, "pages: Input should be a valid integer"),
        (HTTP.replace('read.text = "text"', 'read.text = "["'), "read.text: is no JMESPath expression; see jmespath"),
        (HTTP.replace('read.text = "text"', 'read.id = "id"'), "read: finds no content; add text, content or link"),
        (HTTP.replace("bureau.example", "{query}"), "url: is no URL of this kind; http_json and mcp take http:// or"),
        (HTTP.replace("https://", "https://me:pw-71@"), "url: is no URL of this kind"),
        (HTTP.replace("{query}", "{qurey}"), "url: `{qurey}` is unknown here; there are: any, cursor, limit, offset"),
        ('parameters.id = "(?=x)"\n' + HTTP, "parameters.id: is no regular expression; write one without look-around"),
        ('parameters.query = "x"\n' + HTTP, "`query` has two meanings; choose another name for one of them"),
        ('headers.X = "{query}"\n' + HTTP, "headers.X: `{query}` is unknown here; there are: tenant"),
        ("body.a = 1\n" + HTTP, 'body: a GET has none; set method = "POST"'),
        ('method = "POST"\nbody.a = ["q: {query}"]\n' + HTTP, "body.a.0: `{query}` is part of a longer text; give"),
        ('secrets.key = "nosuch"\n' + HTTP, "secrets.key: nosuch cannot be read: No such file or directory"),
        ('secrets.key = "empty"\n' + HTTP, "secrets.key: empty holds no secret: one line of printable ASCII is need"),
        ('secrets.key = "key"\n' + HTTP.replace("{query}", "{key}"), "url: `{key}` is a secret; secrets are allowed"),
        (HTTP.replace("{}", '{ values = { a = "1" } }\ntenants.b = {}'), "tenants.b.values: has no `a`; give every"),
        (HTTP.replace("{}", '{ secrets = { a = "key" } }\ntenants.b = {}'), "tenants.b.secrets: has no `a`; add it th"),
        (SQL.replace("SELECT", "DELETE"), "statement: is not one statement; begin with SELECT or WITH, without a semi"),
        (SQL.replace(" LIMIT :limit", "; SELECT 1"), "statement: is not one statement"),
        (SQL.replace(" LIMIT :limit", ""), "statement: has no `:limit`; end it with LIMIT :limit"),
        (SQL.replace(" LIMIT", " WHERE a = :b AND c::text = ':d' LIMIT"), "statement: `:b` is unknown; there are: any"),
        (SQL.replace("sqlite:////srv/x.db", "mysql://x"), "sql takes sqlite:/// or postgresql+psycopg://"),
        (MCP.replace('tool = "find"', ""), "tool: is missing; add it"),
        ('arguments.q = "{x}"\n' + MCP, "arguments.q: `{x}` is unknown here; there are: any, limit, query, tenant, wo"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_field_and_fix(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "key").write_text("secret-51\n")
    said = refusal(tmp_path, text)
    assert why in said
    assert "pw-71" not in said
    assert "secret-51" not in said


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "pages = 99\nper_second = 0\n" + HTTP)
    assert "pages:" in said
    assert "per_second:" in said


def test_a_file_is_named_like_a_provider_and_is_text_of_a_bounded_size(tmp_path: Path) -> None:
    assert "the source gets the file's name" in refusal(tmp_path, HTTP, "My Bureau.toml")
    assert "is larger than 262144 bytes" in refusal(tmp_path, "#" * 300_000)
    assert "nested too deeply" in refusal(tmp_path, f"x = {'[' * 5000}")
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(SearchMisconfigured, match="is not UTF-8 text"):
        read_source_file(tmp_path / "x.toml")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=4), LEAVES, max_size=3)
_FIELDS = "kind url headers body read next pages statement tool arguments tenants secrets parameters per_second"
FIELDS = st.sampled_from(_FIELDS.split(" "))
KINDS = st.sampled_from(["http_json", "sql", "mcp"])


@given(
    kind=KINDS, tables=st.dictionaries(FIELDS, VALUES | st.text(max_size=40), max_size=6), noise=st.text(max_size=60)
)
@example(kind="sql", tables={"statement": "SELECT :limit" + "\\:" * 50}, noise="")
@settings(max_examples=drawn(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_or_refused_by_name(tmp_path: Path, kind: str, tables: dict[str, Any], noise: str) -> None:
    path = tmp_path / "x.toml"
    known = {"http_json": HTTP, "sql": SQL, "mcp": MCP}[kind]
    kept = [line for line in known.splitlines() if line.split(" ")[0].split(".")[0] not in tables]
    lines = []
    for name, value in tables.items():
        with suppress(ValueError):
            lines.append(f"{name} = {json.dumps(value, allow_nan=False)}")
    for text in ("\n".join([*lines, *kept]), known + noise):
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            read_source_file(path)
        except SearchMisconfigured as refused:
            assert str(path) in str(refused)


class NeverAsked(InsideSource):
    """A source for the tests of placeholders and of results."""

    async def search(self, query: SearchQuery) -> list[Found]:
        raise AssertionError(query)


SOURCE = NeverAsked("bureau", SourceFile(tenants={"*": TenantAccess()}), Path())
ALL = ItemFields.model_validate(
    {name: name for name in ("id", "title", "text", "content", "media_type", "date", "link")}
)
PARTS = st.fixed_dictionaries({}, optional=dict.fromkeys(ALL.model_dump(exclude={"items"}), VALUES))


@given(answer=VALUES | st.lists(PARTS, max_size=3))
@example(answer={"text": "a\ud800", "id": "\ud800", "title": "\x00", "link": "http://[", "date": "2024-13-99x"})
@example(answer={"content": "====", "media_type": "text/html; charset=x"})
def test_any_answer_becomes_results_or_a_reason(answer: object) -> None:
    assert_results_or_a_reason(answer)


def test_a_deep_answer_becomes_results_or_a_reason() -> None:
    assert_results_or_a_reason({"text": json.loads("[" * 900 + "]" * 900)})


def assert_results_or_a_reason(answer: object) -> None:
    try:
        items = Items(ALL).of(answer)
    except Unreadable:
        return
    for one in filter(None, map(SOURCE.result_of, items)):
        assert isinstance(one, Found)
        assert one.id is not None
        assert one.id.startswith("bureau:")
        assert one.id.isascii()
        json.dumps([one.title, one.text, one.url], ensure_ascii=False).encode()
        assert one.text or one.content or one.url


@given(values=st.dictionaries(st.sampled_from(["query", "x"]), st.text(max_size=20)))
def test_a_value_never_becomes_a_placeholder_or_another_part_of_a_url(values: dict[str, str]) -> None:
    values = {"query": "{x}", "x": "secret", **values, "limit": "3"}
    if values["query"] not in (".", ".."):
        url = filled("https://a.example/{query}?q={query}", values, encode=True)
        assert url.count("/") == 3
        assert url.count("?") == 1
        assert "#" not in url
        assert "{" not in url
    assert filled_value({"a": ["{query}", "{limit}", "{nosuch}"]}, values) == {"a": [values["query"], 3, "{nosuch}"]}


def test_a_path_of_dots_is_never_asked_for() -> None:
    with pytest.raises(Unreadable, match="made of dots only"):
        filled("https://a.example/{query}", {"query": ".."}, encode=True)


@given(text=st.text(max_size=60))
def test_any_query_has_placeholders_or_a_reason(text: str) -> None:
    with suppress(Unreadable):
        values = SOURCE.values_of(SearchQuery(text, 5, "acme"))
        assert values["tenant"] == "acme"
        assert values["any"].count('"') == 2 * len(values["words"].split())


async def test_reading_ends_within_the_caller_s_seconds_also_while_no_reader_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader's start is given half a minute, and the caller of `read` waited for it without its own bound."""

    async def hangs(pool: Pool, *_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Pool, "warm", hangs)
    monkeypatch.setattr(Pool, "_take", hangs)
    enricher = Enricher(EnrichmentSettings(), Guard(EgressPolicy()), SystemClock(), Metrics())
    async with asyncio.timeout(10):
        [left_out] = await enricher.read([SourceDocument(id="a", text="A bridge.")], 0.05)
    assert isinstance(left_out, LeftOut)
    await enricher.close()
