"""The order in which waiting jobs and tenants get places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from workers.enrichment.turns import Asker, Turns


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


async def test_a_job_that_is_alone_has_every_place() -> None:
    async with working(3) as work:
        await work.begin("a1", "a2", "a3", "a4")
        assert work.running == ["a1", "a2", "a3"]


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


async def test_a_single_place_is_never_kept_free() -> None:
    async with working(1, kept=0) as work:
        await work.begin("a1", "a2")
        assert work.running == ["a1"]
        await work.end("a1")
        assert work.running == ["a2"]


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
