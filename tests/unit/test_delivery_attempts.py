"""The ways of a callback through delivery's handler, with a poster that answers from a list."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas import topics as names
from telemetry.hand_clock import SetClock
from telemetry.metrics import Metrics
from tests.integration.delivery_handler.records import NOW_MS, TOPICS, headers_of, result_record
from tests.virtual_time import LoopClock, VirtualLoop
from workers.delivery.deliver import GROUP_COMMIT_SECONDS, DeliveryHandler
from workers.delivery.keyring import Keyring
from workers.delivery.post import CallbackAnswer, Delivered, FailedDelivery, FailureReason, Poster, PostOutcome
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy
from workers.stage.record import Output, Record
from workers.stage.transactions import LINGER_SECONDS

URL = "https://a.example/hook"
OK = Delivered(200, 0.1)
DOWN = FailedDelivery(FailureReason.CONNECT_FAILED, 0.1)
SETTINGS = DeliverySettings(breaker_failures=2, breaker_open_seconds=5, breaker_longest_seconds=5)
"""With these settings, two failures in a row open an origin's breaker for the longest time."""
DAY_MS = 86_400_000


class Answers(Poster):
    """A poster that sends nothing, and returns the next outcome of a list."""

    def __init__(self, clock: SetClock, outcomes: list[PostOutcome]) -> None:
        super().__init__(SETTINGS, EgressPolicy(), clock)
        self.outcomes = outcomes

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], tenant: str, number: int = 1
    ) -> PostOutcome:
        return self.outcomes.pop(0)


class Desk:
    """A handler, and the outcomes that its next attempts will have."""

    def __init__(self, folder: Path, *outcomes: PostOutcome) -> None:
        self.clock = SetClock(NOW_MS / 1000)
        self.poster = Answers(self.clock, list(outcomes))
        keyring = Keyring.create(folder / "keyring.json", self.clock)
        rng = random.Random(1)
        self.handler = DeliveryHandler(TOPICS, keyring, self.poster, self.clock, Metrics(), SETTINGS, rng=rng)

    async def handled(self, **waiting: int) -> list[tuple[str, str | None]]:
        """Handle one record; return the topic of each output, with a deferral's or dead letter's reason."""
        said = {name: str(value).encode() for name, value in waiting.items()}
        return list(map(_ending, await self.handler.handle(result_record(URL, **said))))


def _ending(output: Output) -> tuple[str, str | None]:
    headers = headers_of(output)
    return output.topic, headers.get(names.DEFERRED_REASON) or headers.get(names.REASON)


TRIED, AGAIN = (TOPICS.attempts, None), (TOPICS.tier(5), None)
LEFT_ALONE = (TOPICS.tier(5), "origin_left_alone")
GIVEN_UP = (TOPICS.dead_letters, "callback_exhausted")


async def test_failures_in_a_row_stop_the_attempts_at_an_origin_until_one_is_answered(tmp_path: Path) -> None:
    desk = Desk(tmp_path, DOWN, OK, DOWN, DOWN, OK)
    failed, delivered = [TRIED, AGAIN], [TRIED]
    assert [await desk.handled() for _ in range(5)] == [failed, delivered, failed, failed, [LEFT_ALONE]]
    desk.clock.now += 5
    assert await desk.handled() == delivered
    assert desk.poster.outcomes == []


@pytest.mark.parametrize(("waited_days", "ending"), [(0, LEFT_ALONE), (7, LEFT_ALONE), (30, GIVEN_UP)])
async def test_a_callback_for_a_dead_origin_is_given_up_only_after_days(
    tmp_path: Path, waited_days: int, ending: tuple[str, str]
) -> None:
    desk = Desk(tmp_path, DOWN, DOWN)
    for _ in range(2):
        await desk.handled()
    [(topic, reason)] = await desk.handled(waited=waited_days * DAY_MS)
    assert (topic if reason == "callback_exhausted" else TOPICS.tier(5), reason) == ending


@pytest.mark.parametrize(
    ("status", "asked", "outcome"),
    [
        (200, None, Delivered(200, 0.0)),
        (204, "60", Delivered(204, 0.0)),
        (302, "60", FailedDelivery(FailureReason.REDIRECTED, 0.0, 302)),
        (400, "60", FailedDelivery(FailureReason.CLIENT_ERROR, 0.0, 400, 60)),
        (410, None, FailedDelivery(FailureReason.GONE, 0.0, 410)),
        (429, "60", FailedDelivery(FailureReason.THROTTLED, 0.0, 429, 60)),
        (429, "soon", FailedDelivery(FailureReason.THROTTLED, 0.0, 429)),
        (500, "60", FailedDelivery(FailureReason.SERVER_ERROR, 0.0, 500, 60)),
        (503, "60", FailedDelivery(FailureReason.SERVER_ERROR, 0.0, 503, 60)),
        (504, "60", FailedDelivery(FailureReason.THROTTLED, 0.0, 504, 60)),
        (199, None, FailedDelivery(FailureReason.SERVER_ERROR, 0.0, 199)),
        (None, None, FailedDelivery(FailureReason.BAD_RESPONSE, 0.0)),
    ],
)
async def test_the_outcome_follows_from_the_answers_status_and_its_retry_after(
    status: int | None, asked: str | None, outcome: PostOutcome
) -> None:
    class Answered(Poster):
        """A poster whose exchange ends with this answer."""

        async def _exchange(self, *given: Any) -> None:
            answer = given[-1]
            assert isinstance(answer, CallbackAnswer)
            answer.status, answer.retry_after = status, asked

    poster = Answered(DeliverySettings(), EgressPolicy(), SetClock(0.0))
    assert await poster.post(URL, b"{}", {}, "acme") == outcome
    await poster.close()


# -- an origin that is away ------------------------------------------------------------------------------------------


class Away(Poster):
    """A poster whose only origin is away until a time; until then, each attempt fails after `takes_seconds`."""

    def __init__(self, back_at: float, takes_seconds: float) -> None:
        self.back_at, self.takes_seconds = back_at, takes_seconds
        self.posts: Counter[str] = Counter()

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], tenant: str, number: int = 1
    ) -> PostOutcome:
        self.posts[headers["webhook-id"]] += 1
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(min(self.takes_seconds, max(0.01, self.back_at - began)))
        is_back = asyncio.get_running_loop().time() >= self.back_at
        return OK if is_back else FailedDelivery(FailureReason.TIMEOUT, self.takes_seconds)


@pytest.mark.parametrize(("spread_seconds", "takes_seconds"), [(0.0, 0.01), (60.0, 0.01), (0.0, 20.0), (60.0, 20.0)])
def test_after_a_minute_away_an_origin_gets_every_callback_within_thirty_seconds(
    tmp_path: Path, spread_seconds: float, takes_seconds: float
) -> None:
    poster, tiers = Away(60.0, takes_seconds), {name: delay for delay, name in TOPICS.tiers.items()}
    keyring, clock = Keyring.create(tmp_path / "keyring.json", SetClock(NOW_MS / 1000)), LoopClock(NOW_MS / 1000)
    handler = DeliveryHandler(TOPICS, keyring, poster, clock, Metrics(), DeliverySettings(), random.Random(1))
    delivered: list[float] = []
    writes = Counter[int]()

    async def deliver(number: int) -> None:
        await asyncio.sleep(spread_seconds * number / 1000)
        record = result_record(URL, webhook_id=f"msg_{number:032x}".encode())
        while waits := [output for output in await handler.handle(record) if output.topic in tiers]:
            writes[number] += 1
            lingers = LINGER_SECONDS if waits[0].may_linger else GROUP_COMMIT_SECONDS
            await asyncio.sleep(lingers + tiers[waits[0].topic])
            now_ms = int(1000 * clock.time())
            record = Record(waits[0].topic, 0, 0, record.value, None, waits[0].headers, now_ms)
        delivered.append(asyncio.get_running_loop().time())

    async def deliver_all() -> None:
        await asyncio.gather(*(deliver(number) for number in range(1000)))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(deliver_all())
    assert max(delivered) <= 90.0 + LINGER_SECONDS
    assert max(writes.values()) <= 5


class SetBackClock(SetClock):
    """A wall clock that can be set, beside a steady clock."""

    ahead = 3600.0

    def time(self) -> float:
        return self.now + self.ahead


async def test_a_record_of_a_process_whose_clock_was_set_back_waits_its_tiers_time(tmp_path: Path) -> None:
    clock = SetBackClock(NOW_MS / 1000)
    keyring, poster = Keyring.create(tmp_path / "keyring.json", clock), Answers(clock, [])
    handler = DeliveryHandler(TOPICS, keyring, poster, clock, Metrics(), SETTINGS, random.Random(1))
    clock.ahead = 0.0
    early = {"not_before": str(NOW_MS + 5_000).encode(), "left": b"5000", "attempt": b"1"}
    [hopped] = await handler.handle(result_record(URL, **early))
    due_ms = handler.due_ms(Record(hopped.topic, 0, 0, hopped.value or b"", None, hopped.headers, NOW_MS))
    assert due_ms == NOW_MS + 5_000
