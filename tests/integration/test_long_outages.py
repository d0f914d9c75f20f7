"""Outages of days on a hand-set clock: how often events for a dead origin go through the tiers, and how they end."""

from __future__ import annotations

import heapq
import json
import random
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import count
from pathlib import Path

import pytest
from aiohttp import web

from schemas import topics as names
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import TIER_DELAYS_SECONDS, Topics
from telemetry.hand_clock import SetClock
from telemetry.metrics import Metrics
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy
from workers.stage.record import Output, Record

TOPICS = Topics("t.")
START = 1_700_000_000.0
DAY = 86_400.0
NOTHING_MORE: Mapping[str, str] = {}
TIERS = {name: delay for delay, name in TOPICS.tiers.items()}


@dataclass
class World:
    """A delivery process in virtual time. A heap stands for the tiers; a POST takes no time."""

    handler: DeliveryHandler
    clock: SetClock
    waiting: list[tuple[float, int, Record]] = field(default_factory=list)
    written: Counter[str] = field(default_factory=Counter)
    """Number of records written to tiers, by event."""
    letters: dict[str, tuple[float, Record]] = field(default_factory=dict)
    """Dead letters by event, with their time in seconds from the start."""
    delivered: dict[str, float] = field(default_factory=dict)
    """Time of each event's delivery, in seconds from the start."""
    posts: int = 0
    failed: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Times of failed attempts by event, in seconds from the start."""
    numbers: Iterator[int] = field(default_factory=count)

    def add(self, url: str, at: float = 0.0) -> str:
        """Add an event that comes `at` seconds after the start."""
        number = next(self.numbers)
        event = f"msg_{number:032x}"
        value = write_result(Result(job_id=f"job_{number}", outcome=Outcome.SUCCEEDED, text="x", created_at=int(START)))
        headers = [
            (names.JOB_ID, b"job"),
            (names.WEBHOOK_ID, event.encode()),
            (names.CALLBACK_URL, url.encode()),
        ]
        self._push(at, Record(TOPICS.results, 0, number, value, None, headers, int(1000 * (START + at))))
        return event

    async def run(self, until: float = 1000 * DAY) -> None:
        """Handle records until none waits, or until that time."""
        while self.waiting and self.waiting[0][0] <= until:
            at, _, record = heapq.heappop(self.waiting)
            self.clock.now = max(self.clock.now, START + at)
            event = record.header(names.WEBHOOK_ID) or ""
            for output in await self.handler.handle(record):
                self._take(output, event)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.clock.now - START

    def _take(self, output: Output, event: str) -> None:
        record = Record(output.topic, 0, 0, output.value or b"", output.key, output.headers, int(1000 * self.clock.now))
        if output.topic in TIERS:
            self.written[event] += 1
            self._push(self.seconds + TIERS[output.topic], record)
        elif output.topic == TOPICS.dead_letters:
            self.letters[event] = self.seconds, record
        elif output.topic == TOPICS.endpoints:
            self.handler.states.apply(output.key, output.value)
        elif output.topic == TOPICS.attempts:
            self.posts += 1
            if json.loads(output.value or b"")["error"] is None:
                self.delivered[event] = self.seconds
            else:
                self.failed[event].append(self.seconds)

    def _push(self, at: float, record: Record) -> None:
        heapq.heappush(self.waiting, (at, next(self.numbers), record))


@pytest.fixture
def dead_origin(port: socket.socket) -> str:
    """The origin of a port that refuses connections."""
    return f"http://127.0.0.1:{port.getsockname()[1]}"


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """A bound socket, which reserves its port; connections are refused until a server listens there."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    # No record may wait for a probe's outcome, since one record is handled at a time.
    clock, settings = SetClock(START), DeliverySettings(destination_queue_records=0)
    poster = Poster(settings, EgressPolicy(allow=(ip_network("127.0.0.0/8"),), development=True), clock)
    keyring = Keyring.create(tmp_path / "keyring.json", clock)
    handler = DeliveryHandler(TOPICS, keyring, poster, clock, Metrics(), settings, rng=random.Random(1))
    yield World(handler, clock)
    await handler.close()


@asynccontextmanager
async def listening(
    port: socket.socket, status: int = 200, headers: Mapping[str, str] = NOTHING_MORE
) -> AsyncIterator[None]:
    """Run a real server that gives this answer, on this port."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=status, headers=headers)

    application = web.Application()
    application.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.SockSite(runner, port).start()
    yield
    await runner.cleanup()


async def test_events_with_a_url_of_their_own_end_although_none_of_their_urls_is_ever_disabled(
    world: World, dead_origin: str
) -> None:
    events = [world.add(f"{dead_origin}/job/{number}", at=number) for number in range(300)]
    await world.run()
    assert set(world.letters) == set(events)
    # The schedule lasts three days, and an endpoint is disabled after five days of failures. An event that is tried on
    # the last of these days waits for up to three more days.
    assert max(at for at, _ in world.letters.values()) < 13 * DAY
    reasons = {record.header(names.REASON) for _, record in world.letters.values()}
    assert reasons == {"callback_exhausted"}
    assert any("its origin fails" in (record.header(names.REASON_DETAIL) or "") for _, record in world.letters.values())


async def test_an_origin_that_asks_for_a_day_each_time_is_asked_ten_times_and_its_last_answer_is_shown(
    world: World, dead_origin: str, port: socket.socket
) -> None:
    events = [world.add(f"{dead_origin}/job/{number}", at=3 * number) for number in range(5)]
    async with listening(port, 429, {"Retry-After": "86400"}):
        await world.run()
    assert set(world.letters) == set(events)
    assert world.posts == 10 * len(events)
    details = {letter.header(names.REASON_DETAIL) for _, letter in world.letters.values()}
    assert details == {"the last attempt: throttled (status 429)"}


async def test_an_outage_of_days_writes_each_event_some_fifty_times_and_not_once_for_each_probe(
    world: World, dead_origin: str
) -> None:
    events = [world.add(f"{dead_origin}/hook", at=60.0 * number) for number in range(1000)]
    await world.run(until=5 * DAY)
    assert sum(world.written.values()) < 50 * len(events)
    assert world.posts > 5 * DAY / 600  # the origin is probed at least once in ten minutes on average


@pytest.mark.parametrize("hours", [0.5, 1.01, 4.01, 10.01, 25.01, 48])
async def test_waiting_events_come_within_a_third_of_the_outage_and_some_minutes_after_its_end(
    world: World, dead_origin: str, port: socket.socket, hours: float
) -> None:
    events = [world.add(f"{dead_origin}/hook", at=3.6 * hours * number) for number in range(500)]
    await world.run(until=3600 * hours)
    async with listening(port):
        await world.run()
    assert set(world.delivered) == set(events)
    late = [event for event, at in world.delivered.items() if at >= 3600 * hours * 4 / 3 + 660]
    assert len(late) <= 2, "only events that probed so often that their own next attempt is that far off"
    for event in late:
        *_, last = failed = world.failed[event]
        assert world.delivered[event] < last + TIER_DELAYS_SECONDS[len(failed) - 1] * 1.1 + 660
    assert not world.letters


async def test_a_letter_does_not_record_its_waits_so_that_a_redrive_starts_over(world: World, dead_origin: str) -> None:
    for number in range(40):
        world.add(f"{dead_origin}/job/{number}")
    await world.run()
    assert len(world.letters) == 40
    for _, letter in world.letters.values():
        assert not {names.WAITED, names.DEFERRED, names.ATTEMPT} & {name for name, _ in letter.headers or ()}
