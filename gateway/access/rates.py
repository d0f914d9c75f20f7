"""Counts requests against rates, in fixed windows: in memory, or in Redis for several gateways together."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, TypeVar

from cachetools import TLRUCache

from telemetry.clock import Clock
from telemetry.logs import get_logger

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

REDIS_SECONDS = 0.25
"""Longest wait for one answer of Redis. A request asks for up to three answers at the same time."""
AWAY_SECONDS = 5.0
"""Redis is not asked for this time after a failure."""
_IPV6_PREFIX = 64
MOST_WINDOWS = 100_000
"""The maximum number of windows that memory keeps. A further window evicts the least recently used one."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to one request: a place in the rate's window, or a refusal."""

    limit: int
    remaining: int
    reset_seconds: int
    """Seconds until the window ends, rounded up."""
    allowed: bool

    @property
    def headers(self) -> dict[str, str]:
        """The header fields by which OpenAI's clients know their rate (API reference, "Rate limits in headers")."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_seconds}s",
        }


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit of requests in each window."""

    amount: int
    seconds: int = 1
    """The length of a window."""

    def key_for(self, *names: str) -> str:
        """Return the window's name in Redis."""
        return "/".join(("postback", *names, f"{self.amount}", f"{self.seconds}"))


def network_of(address: str | None) -> str:
    """Return the name under which a client's requests are counted: its IPv4 address, or the /64 of its IPv6 address."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, _IPV6_PREFIX), strict=False))
    return str(parsed)


@dataclass(slots=True)
class RateWindow:
    """One fixed window. `ends` is in monotonic seconds."""

    ends: float
    count: int = 0


class Rates:
    """Counts requests in Redis.

    Without Redis, or while Redis does not answer, each gateway counts in its own memory.
    """

    def __init__(self, redis_url: str | None, clock: Clock, most: int = MOST_WINDOWS) -> None:
        self._windows: TLRUCache[str, RateWindow] = TLRUCache(
            most, ttu=lambda _, window, __: window.ends, timer=clock.monotonic
        )
        self._clock = clock
        self._redis = _redis(redis_url) if redis_url is not None else None
        self._away_until = -math.inf
        self._away = False

    async def take(self, rate: Rate, *names: str) -> Taken:
        """Count one request in the present window, and return its place. A request beyond the limit is counted, too."""
        key = rate.key_for(*names)

        async def counted(redis: Redis) -> tuple[int, float]:
            async with redis.pipeline() as asked:
                asked.set(key, 0, ex=rate.seconds, nx=True)
                asked.incr(key)
                asked.pttl(key)
                _, count, left_ms = await asked.execute()
            if left_ms < 0:  # the counter has no end, as after `PERSIST`, and would refuse for ever
                await redis.expire(key, rate.seconds)
                left_ms = 1000 * rate.seconds
            return count, left_ms / 1000

        count, seconds = await self._shared(counted) or self._counted_here(key, rate.seconds)
        reset = min(max(math.ceil(seconds), 1), rate.seconds)
        return Taken(rate.amount, max(rate.amount - count, 0), reset, count <= rate.amount)

    async def is_spent(self, rate: Rate, *names: str) -> bool:
        """True if the present window has no place left. No place is taken."""
        key = rate.key_for(*names)

        async def looked_up(redis: Redis) -> int:
            return int(await redis.get(key) or 0)

        count = await self._shared(looked_up)
        if count is None:
            window = self._windows.get(key)
            count = window.count if window is not None else 0
        return count >= rate.amount

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._redis is not None:
            await self._redis.aclose()

    def _counted_here(self, key: str, seconds: float) -> tuple[int, float]:
        """Count a request in memory; return the window's requests, and the seconds until it ends."""
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = RateWindow(self._clock.monotonic() + seconds)
        window.count += 1
        return window.count, window.ends - self._clock.monotonic()

    async def _shared(self, ask: Callable[[Redis], Awaitable[T]]) -> T | None:
        """Return the answer of Redis; None without Redis, and while it is away."""
        if self._redis is None or self._clock.monotonic() < self._away_until:
            return None
        from redis.exceptions import RedisError  # most gateways count in memory, and do not need this import

        try:
            answer = await ask(self._redis)
        except (RedisError, OSError):
            self._away_until = self._clock.monotonic() + AWAY_SECONDS
            if not self._away:
                self._away = True
                log.warning(
                    "Redis does not answer; this gateway counts its own requests only until it does.",
                    action="rates-unshared",
                )
            return None
        if self._away:
            self._away = False
            log.info("Redis answers again; counting the requests of all gateways together.", action="rates-shared")
        return answer


def _redis(url: str) -> Redis:
    from redis.asyncio import BlockingConnectionPool, Redis  # most gateways count in memory, and do not need these
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    # A burst waits for a connection: a pool that refused it would look like a Redis that is away.
    pool = BlockingConnectionPool.from_url(
        url,
        timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        socket_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)
