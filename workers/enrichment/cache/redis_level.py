"""Level 2: Redis, shared by all workers of a fleet. Redis deletes expired entries (SET … PX).

A sorted set holds the invalidations: the members are targets, and the scores are times in Unix seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Final, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from workers.enrichment.cache.entry import Key
from workers.enrichment.cache.levels import LevelFailed
from workers.enrichment.settings import CacheSettings

T = TypeVar("T")

_CONNECTIONS: Final = 32


class RedisLevel:
    """Implements `Level`. Connects at the first call."""

    name = "redis"

    def __init__(self, url: str, settings: CacheSettings) -> None:
        self._prefix = settings.redis_prefix
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=settings.answer_seconds,
            socket_timeout=settings.answer_seconds,
            socket_connect_timeout=settings.answer_seconds,
            retry=Retry(NoBackoff(), 1),  # tries once more, because a restart of Redis breaks pooled connections
        )
        self._redis: Redis = Redis.from_pool(self._pool)

    async def get(self, key: Key) -> bytes | None:
        """See `Level`."""
        return cast("bytes | None", await _mapped(self._redis.get(f"{self._prefix}{key}")))

    async def put(self, key: Key, value: bytes, seconds: float) -> None:
        """See `Level`."""
        await _mapped(self._redis.set(f"{self._prefix}{key}", value, px=max(1, int(seconds * 1000))))

    async def invalidate(self, target: str, at: float, seconds: float) -> None:
        """See `Level`."""
        name = f"{self._prefix}invalidations"
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zadd(name, {target: at}, gt=True)
            pipe.zremrangebyscore(name, "-inf", at - seconds)
            await _mapped(pipe.execute())

    async def invalidations(self, since: float) -> Mapping[str, float]:
        """See `Level`."""
        name = f"{self._prefix}invalidations"
        found: Any = await _mapped(self._redis.zrangebyscore(name, since, "+inf", withscores=True))
        return {target.decode(): float(at) for target, at in found}

    async def close(self) -> None:
        """See `Level`."""
        await _mapped(self._redis.aclose())
        await _mapped(self._pool.disconnect())


async def _mapped(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except (RedisError, OSError, ValueError) as error:
        raise LevelFailed(type(error).__name__) from None
