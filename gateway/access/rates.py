"""Counts requests against rates, in fixed windows: in memory, or in Redis for several gateways together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from cachetools import TLRUCache

from telemetry.clock import Clock
from telemetry.logs import get_logger

if TYPE_CHECKING:
    from limits.aio.storage import RedisStorage

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
    seconds: int
    """The length of a window."""

    def key_for(self, *names: str) -> str:
        """Return the window's name in Redis."""
        return "/".join(("postback", *names, f"{self.amount}", f"{self.seconds}"))


def per_second(rate: int) -> Rate:
    """Return a limit of requests per second."""
    return Rate(rate, 1)


def per_minute(rate: int) -> Rate:
    """Return a limit of requests per minute."""
    return Rate(rate, 60)


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


class RateWindows:
    """Fixed windows in this process's memory.

    The windows of the library `limits` are not used, because the library sets no limit on their number. While requests
    come, it also starts a thread every 10 ms, which took a tenth of the event loop's time.
    """

    def __init__(self, clock: Clock, most: int = MOST_WINDOWS) -> None:
        self._clock = clock
        self._windows: TLRUCache[str, RateWindow] = TLRUCache(
            most, ttu=lambda _, window, __: window.ends, timer=clock.monotonic
        )

    def window(self, key: str, seconds: float) -> RateWindow:
        """Return the present window. If there is none, return a new one of this length, which `take` will store."""
        return self._windows.get(key) or RateWindow(self._clock.monotonic() + seconds)

    def take(self, key: str, window: RateWindow) -> None:
        """Count a request in the window."""
        window.count += 1
        if window.count == 1:
            self._windows[key] = window


class Rates:
    """Counts requests in Redis.

    Without Redis, or while Redis does not answer, each gateway counts in its own memory.
    """

    def __init__(self, redis_url: str | None, clock: Clock) -> None:
        self._memory = RateWindows(clock)
        self._clock = clock
        self._redis = _redis_storage(redis_url) if redis_url is not None else None
        self._away_until = -math.inf
        self._away = False

    async def take(self, item: Rate, *names: str) -> Taken:
        """Count one request in the present window, and return its place. A request beyond the limit is counted, too."""
        return await self._place(item, names, take=True)

    async def is_spent(self, item: Rate, *names: str) -> bool:
        """True if the present window has no place left. No place is taken."""
        found = await self._place(item, names, take=False)
        return not found.allowed

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._redis is not None:
            await self._redis.bridge.get_connection().aclose()  # type: ignore[attr-defined]

    async def _place(self, item: Rate, names: Sequence[str], *, take: bool) -> Taken:
        """Return a request's place. Without `take`, return the place that the next request would get."""
        key, more = item.key_for(*names), 0 if take else 1
        if (storage := self._shared()) is not None:
            from limits.errors import StorageError  # most gateways count in memory, and do not need this import

            try:
                count = more + await (storage.incr(key, item.seconds) if take else storage.get(key))
                is_over = count > item.amount
                seconds = await storage.get_expiry(key) - self._clock.time() if is_over else item.seconds
            except StorageError:
                self._gone()
            else:
                self._back()
                return self._taken(item, count, seconds)
        window = self._memory.window(key, item.seconds)
        if take:
            self._memory.take(key, window)
        return self._taken(item, window.count + more, window.ends - self._clock.monotonic())

    @staticmethod
    def _taken(item: Rate, count: int, seconds: float) -> Taken:
        """Return the place of request number `count` in a window that ends in `seconds`."""
        reset = min(max(math.ceil(seconds), 1), item.seconds)
        return Taken(item.amount, max(item.amount - count, 0), reset, count <= item.amount)

    def _shared(self) -> RedisStorage | None:
        return self._redis if self._clock.monotonic() >= self._away_until else None

    def _gone(self) -> None:
        self._away_until = self._clock.monotonic() + AWAY_SECONDS
        if not self._away:
            self._away = True
            log.warning(
                "Redis does not answer; this gateway counts its own requests only until it does.",
                action="rates-unshared",
            )

    def _back(self) -> None:
        if self._away:
            self._away = False
            log.info("Redis answers again; counting the requests of all gateways together.", action="rates-shared")


def _redis_storage(url: str) -> RedisStorage:
    from limits.aio.storage import RedisStorage  # most gateways count in memory, and do not need these imports
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {
        "socket_connect_timeout": REDIS_SECONDS,
        "socket_timeout": REDIS_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    return RedisStorage(f"async+{url}", wrap_exceptions=True, implementation="redispy", **options)
