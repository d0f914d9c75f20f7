"""Records of results with a callback, a consumer of callbacks, and a maker of delivery handlers."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network

from aiohttp import web

from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import Topics
from telemetry.metrics import Metrics
from tests.messages import in_text
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy
from workers.stage.record import Output, Record

NOW_MS = 1_700_000_000_000
TOPICS = Topics("t.")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RESULT = write_result(Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000))


class JumpingClock:
    """A clock in milliseconds, whose wall time a test may set wrong."""

    def __init__(self) -> None:
        self.ms = NOW_MS
        self.wrong_ms = 0
        """Error of the wall clock in milliseconds."""

    def time(self) -> float:
        return (self.ms + self.wrong_ms) / 1000

    def monotonic(self) -> float:
        return self.ms / 1000

    def sleep(self, seconds: float) -> None:
        raise AssertionError("delivery never blocks its loop")


@dataclass
class Consumer:
    """A real HTTP server that answers with one status after the other, and repeats the last one."""

    statuses: list[int] = field(default_factory=lambda: [200])
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    gate: asyncio.Event | None = None
    """If given, answers wait for this event."""
    held: deque[asyncio.Future[int]] | None = None
    """If given, each answer waits here for its status."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    origin: str = ""

    @property
    def url(self) -> str:
        return f"{self.origin}/hooks/path-token?key=query-token"

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        self.arrived.set()
        if self.held is not None:
            self.held.append(asyncio.get_running_loop().create_future())
            return web.Response(status=await self.held[-1])
        if self.gate is not None:
            await self.gate.wait()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers=self.headers, body=self.body)

    @asynccontextmanager
    async def busy_with(self, handler: DeliveryHandler) -> AsyncIterator[None]:
        """While the block runs, one callback of this handler has arrived here and waits for its answer."""
        self.gate = gate = asyncio.Event()
        self.arrived.clear()
        first = asyncio.ensure_future(handler.handle(result_record(self.url)))
        await self.arrived.wait()
        yield
        gate.set()
        assert topics_of(await first) == [TOPICS.attempts]


@dataclass
class Maker:
    """Makes and remembers handlers, which share a keyring, a clock and metrics."""

    keyring: Keyring
    clock: JumpingClock
    metrics: Metrics
    rng: random.Random | None = field(default_factory=lambda: random.Random(1))
    made: list[DeliveryHandler] = field(default_factory=list)

    def __call__(
        self, settings: DeliverySettings | None = None, allow: tuple[str, ...] = ("127.0.0.0/8",)
    ) -> DeliveryHandler:
        settings = settings or DeliverySettings()
        policy = EgressPolicy(allow=tuple(map(ip_network, allow)), development=True)
        poster = Poster(settings, policy, self.clock)
        handler = DeliveryHandler(TOPICS, self.keyring, poster, self.clock, self.metrics, settings, rng=self.rng)
        self.made.append(handler)
        return handler


def carried_to(url: str) -> dict[str, str]:
    """The headers of a result with this callback URL; the result keeps them through all tiers."""
    return {
        "tenant": "acme",
        "webhook-id": "msg_1",
        "job-id": "job_1",
        "callback-url": url,
        "traceparent": TRACEPARENT,
        "x-own": "kept",
    }


def result_record(url: str | None, value: bytes = RESULT, **changed: bytes | None) -> Record:
    headers: dict[str, bytes | None] = {name: value.encode() for name, value in carried_to(url or "").items()}
    headers |= {"callback-url": None} if url is None else {}
    headers |= {name.replace("_", "-"): header for name, header in changed.items()}
    present = [(name, header) for name, header in headers.items() if header is not None]
    return Record(TOPICS.results, 3, 17, value, b"job_1", present, NOW_MS)


def delivered_from(output: Output, offset: int, at_ms: int) -> Record:
    """Return a written output in the form in which the stage reads it again."""
    return Record(output.topic, 3, offset, output.value or b"", output.key, output.headers, at_ms)


def headers_of(output: Output) -> dict[str, str]:
    return in_text(output.headers)


def topics_of(outputs: Sequence[Output]) -> list[str]:
    return [output.topic for output in outputs]


def attempt_of(outputs: Sequence[Output]) -> dict[str, object]:
    [attempt] = [output for output in outputs if output.topic == TOPICS.attempts]
    assert attempt.key == b"job_1"
    said: dict[str, object] = json.loads(attempt.value or b"")
    return said
