"""The channel of deltas: an answer's text on its way from a worker to a waiting client, while it is generated.

The channel is Redis's PUBLISH and SUBSCRIBE, so Redis keeps nothing. It stands beside Kafka and never in place of the
result: a client gets the rest of its answer from the result, also if the channel loses everything.

A message is the JSON `[attempt, offset, piece]`: the piece begins at this character of the text of this attempt. A job
has another attempt if its worker dies, or if its engine begins the answer again. The listener joins pieces to one text
as long as every attempt says the same, and is deaf from the first contradiction on.

The worker publishes the newest text of each job in batches. A job's buffer is its text alone, so a slow Redis makes
pieces larger, and never more. A piece that reached no listener is a part of the next one.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from io import StringIO
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import ConfigDict, NonNegativeInt, SecretStr, TypeAdapter

from schemas.result import MAX_RESULT_BYTES
from schemas.settings import RoomSettings
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.system.side_task import SideTask

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

BATCH_SECONDS: Final = 0.02
"""Pause between two batches of pieces. The first piece after a pause leaves at once."""
MOST_IN_A_BATCH: Final = 512
"""Pieces of one batch; the other jobs follow in the next one."""
UNHEARD_SECONDS: Final = 1.0
"""Pause of a job whose piece reached no listener: its gateway connects again, or its client has left."""
AWAY_SECONDS: Final = 1.0
"""Pause after an error of Redis."""
ANSWER_SECONDS: Final = 2.0
"""Longest wait for a connection to Redis, and for the answer to a batch."""
_PING_SECONDS: Final = 5.0
"""A listener without a message for this time asks Redis for a sign of life, and waits as long for it."""
OWN_CHANNEL: Final = "postback:deltas:"
"""The channel of no job, which a gateway always hears; the names of all channels begin with it."""

log = get_logger()


class DeltaSettings(RoomSettings, env_prefix="POSTBACK_DELTAS__"):
    """The channel by which clients get answers while they are generated."""

    redis_url: SecretStr | None = None
    """URL of the Redis through which workers send answers piece by piece to the gateways, the same for both.

    Redis keeps nothing of them. Without a URL, `stream=True` gives each answer as a whole.
    """


def channel_of(topic_prefix: str, tenant: str, job_id: str) -> str:
    """Return the name of a job's channel. Neither prefix nor tenant has a colon, so no two jobs share a channel."""
    return f"{OWN_CHANNEL}{topic_prefix}:{tenant}:{job_id}"


# -- The worker's side --


class Speaker:
    """The text of one job's answer. The engine calls it with each piece, and `DeltaPublisher` publishes the text."""

    def __init__(self, channel: str, unsaid: dict[Speaker, None], woken: asyncio.Event) -> None:
        self.channel = channel
        self._unsaid = unsaid
        self._woken = woken
        self._leaving = ("", 0)
        """The attempt of the last message, which perhaps has no answer yet, and the text's length with it."""
        self._silent_until = 0.0
        self._begin()

    def _begin(self) -> None:
        self._attempt, self._text = secrets.token_hex(4), StringIO()
        self._said = 0
        """The characters of this attempt's text that listeners have."""

    def __call__(self, piece: str, offset: int) -> None:
        """Take the next piece of the text; a piece without characters before it begins another attempt."""
        if offset == 0:
            self._begin()
        self._text.write(piece)
        self._unsaid[self] = None
        self._woken.set()

    def end(self) -> None:
        """Publish no more: the result has the rest."""
        self._begin()
        self._unsaid.pop(self, None)

    def message(self, now: float) -> str | None:
        """Return the next message; None without new text, or while the pause after an unheard piece lasts."""
        if now < self._silent_until or self._text.tell() <= self._said:
            return None
        self._text.seek(self._said)
        piece = self._text.read()
        self._leaving = self._attempt, self._text.tell()
        return json.dumps([self._attempt, self._said, piece])

    def heard(self, listeners: int, now: float) -> None:
        """Note how many listeners the last message had."""
        attempt, end = self._leaving
        if not listeners:
            self._silent_until = now + UNHEARD_SECONDS
        elif attempt == self._attempt:
            self._said = end


class DeltaPublisher(SideTask):
    """Publishes the texts of a worker's running jobs. No job waits for it, or fails with it."""

    def __init__(self, redis_url: str, clock: Clock) -> None:
        self._redis = _redis(redis_url, socket_timeout=ANSWER_SECONDS)
        self._clock = clock
        self._unsaid: dict[Speaker, None] = {}
        """The speakers with new text, the one that waits longest first."""
        self._woken = asyncio.Event()
        self._absence = _Absence("publishing no answers piece by piece until it does")

    def speaker(self, channel: str) -> Speaker:
        """Return a job's speaker, whose `end` must be called when the engine has answered."""
        return Speaker(channel, self._unsaid, self._woken)

    async def ended(self) -> None:
        """Publish until cancelled."""
        async with self._redis:
            while True:
                await self._woken.wait()
                await asyncio.sleep(BATCH_SECONDS if await self.publish() else AWAY_SECONDS)

    async def publish(self) -> bool:
        """Publish one batch. Return False if Redis does not answer; the texts then stay for a later batch."""
        from redis.exceptions import RedisError

        now = self._clock.monotonic()
        batch = {speaker: speaker.message(now) for speaker in islice(self._unsaid, MOST_IN_A_BATCH)}
        said = {speaker: message for speaker, message in batch.items() if message is not None}
        for speaker in batch:
            del self._unsaid[speaker]
        if not self._unsaid:
            self._woken.clear()
        try:
            async with self._redis.pipeline(transaction=False) as asked:
                for speaker, message in said.items():
                    asked.publish(speaker.channel, message)
                counts = await asked.execute() if said else []
        except (RedisError, OSError) as error:
            self._absence.begin(error)
            for speaker in said:
                self._unsaid.setdefault(speaker)
            self._woken.set()
            return False
        for speaker, listeners in zip(said, counts, strict=True):
            speaker.heard(listeners, now)
        self._absence.end()
        return True


# -- The gateway's side --


class Listener:
    """The text that a waiting request has heard of its job's answer."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set when the text becomes longer."""
        self._text = StringIO()
        self._length = 0
        self._attempt = ""
        self._end = 0
        """The characters heard of the present attempt, from its first one on."""
        self._is_deaf = False

    def take(self, attempt: str, offset: int, piece: str) -> None:
        """Take a piece. It is ignored if a piece before it was lost, and after a contradiction all pieces are."""
        if attempt != self._attempt and offset == 0:
            self._attempt, self._end = attempt, 0
        end = offset + len(piece)
        if self._is_deaf or attempt != self._attempt or offset > self._end or end > MAX_RESULT_BYTES:
            return
        known = self.text_from(offset, len(piece))
        if not piece.startswith(known):
            self._is_deaf = True
            return
        self._end = max(self._end, end)
        if end > self._length:
            self._text.seek(self._length)
            self._text.write(piece[len(known) :])
            self._length = end
            self.changed.set()

    def text_from(self, offset: int, most: int = -1) -> str:
        """Return the text from this character on, and of it at most so many characters; -1 stands for all."""
        self._text.seek(offset)
        return self._text.read(most)


class DeltaListeners(SideTask):
    """The channels of a gateway's waiting requests, on one connection to Redis."""

    def __init__(self, redis_url: str, topic_prefix: str) -> None:
        # A listener waits for a message as long as it takes, so the socket has no timeout; pings replace it.
        self._redis = _redis(redis_url)
        self._topic_prefix = topic_prefix
        self._listening: dict[str, set[Listener]] = {}
        self._pubsub: PubSub | None = None
        """The open connection; None while Redis is away."""
        self._absence = _Absence("sending each streamed answer as a whole until it does")

    @asynccontextmanager
    async def hearing(self, tenant: str, job_id: str) -> AsyncIterator[Listener]:
        """Yield a listener to a job. It hears nothing while Redis is away."""
        channel, listener = channel_of(self._topic_prefix, tenant, job_id), Listener()
        listeners = self._listening.setdefault(channel, set())
        listeners.add(listener)
        try:
            await self._order("subscribe", channel)
            yield listener
        finally:
            listeners.discard(listener)
            if not listeners:
                del self._listening[channel]
                await self._order("unsubscribe", channel)

    async def _order(self, order: Literal["subscribe", "unsubscribe"], channel: str) -> None:
        """Change the connection's channels. A new connection begins with all channels, so an error changes nothing."""
        from redis.exceptions import RedisError

        if self._pubsub is not None:
            with suppress(RedisError, OSError):
                await getattr(self._pubsub, order)(channel)

    async def ended(self) -> None:
        """Listen until cancelled; connect again after each error."""
        from redis.exceptions import RedisError

        async with self._redis:
            while True:
                try:
                    async with self._redis.pubsub() as pubsub:
                        await self._listen(pubsub)
                except (RedisError, OSError) as error:
                    self._absence.begin(error)
                finally:
                    self._pubsub = None
                await asyncio.sleep(AWAY_SECONDS / 2)  # sooner than the workers publish again

    async def _listen(self, pubsub: PubSub) -> None:
        """Read messages until Redis is silent. Raises RedisError and OSError."""
        await pubsub.subscribe(OWN_CHANNEL, *self._listening)  # the connection always has a channel
        self._pubsub = pubsub
        is_asked = False
        while True:
            message = await pubsub.get_message(timeout=_PING_SECONDS)
            if message is not None:
                is_asked = False
                self._absence.end()
                self._take(message)
            elif is_asked:
                raise TimeoutError
            else:
                is_asked = True
                await pubsub.ping()

    def _take(self, message: dict[str, Any]) -> None:
        """Give a piece to its listeners. Content of another form, which no worker wrote, is ignored."""
        if message["type"] != "message":
            return
        with suppress(ValueError):
            attempt, offset, piece = _PIECE.validate_json(message["data"])
            for listener in self._listening.get(message["channel"].decode(), ()):
                listener.take(attempt, offset, piece)


_PIECE: Final = TypeAdapter(tuple[str, NonNegativeInt, str], config=ConfigDict(strict=True))


class _Absence:
    """Logs the begin and the end of an absence of Redis, once each."""

    def __init__(self, meanwhile: str) -> None:
        self._meanwhile = meanwhile
        self._is_away = False

    def begin(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning(
                f"The Redis of deltas does not answer; {self._meanwhile}.",
                action="deltas-away",
                error=type(error).__name__,
            )

    def end(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("The Redis of deltas answers again.", action="deltas-back")


def _redis(url: str, socket_timeout: float | None = None) -> Redis:
    from redis.asyncio import Redis  # without deltas, no process needs these
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        url,
        socket_timeout=socket_timeout,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
