"""A webhook consumer that verifies signatures, for development, the demo and tests of delivery; not for production.

The receiver answers 200 to requests signed with a known key and 401 to all others. The receiver passes each request on
as a `Received`. To test a sender's retries, the receiver can answer with a status other than 200, answer late, succeed
only from the n-th attempt on, and send a `Retry-After`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from schemas.signature import ID_HEADER, VerificationError, verify
from telemetry.clock import Clock, SystemClock

MAX_BODY_BYTES = 1024 * 1024
"""Largest accepted body; an event with its envelope has at most 900 kB. The limit is needed because parsed JSON of
empty objects takes 25 times the memory of its text."""
_UNAUTHORIZED = 401
_SUCCESSES = range(200, 300)
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Received:
    """One request and its answer."""

    webhook_id: str | None
    verified: bool
    problem: str | None
    """The reason why the request is not verified; None if it is verified."""
    headers: dict[str, str]
    """Headers by name in lower case."""
    event: Any
    """The body's JSON; None if it is not JSON."""
    body: bytes
    received_at: float
    """Time of receipt, Unix seconds."""
    status: int
    """The answer's HTTP status."""

    def line(self) -> str:
        """Return one JSON object on one line, as `postback receive` prints it."""
        names = ("webhook_id", "verified", "problem", "headers", "event", "received_at", "status")
        return json.dumps({name: getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that verify signatures."""

    secrets: Sequence[str]
    """Shared secrets, `whsec_…`."""
    public_keys: Sequence[str]
    """Public keys, `whpk_…`."""
    tenant: str | None = None
    """The tenant that every event must name; None skips this check."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The answers to verified requests."""

    status: int = 200
    delay_seconds: float = 0.0
    fail_first: int = 0
    """For each event, the first attempts up to this number are answered with `fail_status`."""
    fail_status: int = 503
    retry_after_seconds: int | None = None
    """The `Retry-After` header's value in answers to verified requests with a failure status."""


_FRIENDLY = Behaviour()


class Receiver:
    """An HTTP server that accepts webhooks at any path.

    If `port` is 0, a free port is chosen. `keys` is called for each request, so that rotated keys are known at once.
    `sink` is called with each request before the answer is sent, so that no event is lost here after its sender has
    seen it as delivered. With `tls` the server speaks https. `start` raises OSError if the port is taken.
    """

    def __init__(
        self,
        keys: Callable[[], Keys],
        sink: Callable[[Received], None],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        behaviour: Behaviour = _FRIENDLY,
        tls: ssl.SSLContext | None = None,
        clock: Clock = _CLOCK,
    ) -> None:
        self._keys = keys
        self._sink = sink
        self._host = host
        self._port = port
        self._behaviour = behaviour
        self._tls = tls
        self._clock = clock
        self._attempts: Counter[str | None] = Counter()
        self._runner: web.ServerRunner | None = None

    @property
    def port(self) -> int:
        """The port that the receiver listens on."""
        return self._port

    @property
    def url(self) -> str:
        """A URL that senders on this machine can post to."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}/"

    async def start(self) -> Self:
        """Start listening."""
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=1024, ssl_context=self._tls)
        await site.start()
        self._port = int(self._runner.addresses[0][1])
        return self

    async def stop(self) -> None:
        """Stop listening. Requests in progress have a short time to end."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST"})
        received_at = self._clock.time()
        body = await _body_of(request)
        if body is None:
            return web.Response(status=413)
        headers = {name.lower(): value for name, value in request.headers.items()}
        webhook_id, problem = headers.get(ID_HEADER), self._problem(headers, body, received_at)
        status = self._status(webhook_id, verified=problem is None)
        self._sink(Received(webhook_id, problem is None, problem, headers, _json(body), body, received_at, status))
        if problem is None and self._behaviour.delay_seconds:
            await asyncio.sleep(self._behaviour.delay_seconds)
        return web.Response(status=status, headers=self._headers(status, verified=problem is None))

    def _headers(self, status: int, *, verified: bool) -> dict[str, str]:
        seconds = self._behaviour.retry_after_seconds
        return {} if seconds is None or not verified or status in _SUCCESSES else {"Retry-After": str(seconds)}

    def _problem(self, headers: dict[str, str], body: bytes, now: float) -> str | None:
        keys = self._keys()
        try:
            verify(headers, body, keys.secrets, keys.public_keys, now)
        except VerificationError as error:
            return str(error)
        return None if keys.tenant is None else _problem_of_tenant(_json(body), keys.tenant)

    def _status(self, webhook_id: str | None, *, verified: bool) -> int:
        if not verified:
            return _UNAUTHORIZED
        if self._behaviour.fail_first:
            self._attempts[webhook_id] += 1
            if self._attempts[webhook_id] <= self._behaviour.fail_first:
                return self._behaviour.fail_status
        return self._behaviour.status


async def _body_of(request: web.BaseRequest) -> bytes | None:
    """Return the body, or None if it is too large.

    Reading stops at the limit, so no more than the limit is ever in memory.
    """
    chunks, size = [], 0
    async for chunk in request.content.iter_chunked(64 * 1024):
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _problem_of_tenant(event: Any, tenant: str) -> str | None:
    """Return the reason why a verified event is not for this tenant; None if the event is for this tenant."""
    named = event.get("tenant") if isinstance(event, dict) else None
    if named == tenant:
        return None
    return f"the event is for another tenant than {tenant}" if named is not None else "the event names no tenant"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    """Refuse NaN and Infinity: they are not JSON (RFC 8259, section 6), and would make the printed line invalid."""
    raise ValueError(constant)
