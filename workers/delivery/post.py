"""One callback attempt: at most one POST, and the outcome of the attempt.

Requests are never repeated, since a POST is not idempotent (RFC 9110, section 9.2.2). A connection that closes without
an answer always makes the attempt fail. Redirects are never followed, so a 302 cannot turn a POST into a GET that
counts as delivered. This module ignores the environment's proxies and netrc.
"""

from __future__ import annotations

import asyncio
import codecs
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache, partial

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.http import HttpProcessingError
from yarl import URL

from schemas.topics import TRACEPARENT
from telemetry.clock import Clock
from telemetry.logs import get_logger, origin_of
from telemetry.throttle import LogThrottle
from telemetry.traces import Kind, annotate, collecting, parse_traceparent, span
from workers.delivery.exchange import CallbackAnswer, Exchanges
from workers.delivery.exhaustion import Exhausted, exhausted_by
from workers.delivery.settings import DeliverySettings
from workers.delivery.tls import TlsContexts
from workers.egress import EgressPolicy, EgressRefused, GuardedConnector, check_url
from workers.egress.retry_after import parse_retry_after

_CHECKED_URLS = 4096

_SAY_SECONDS = 60.0
"""The shortest time in seconds between two log lines about exhausted resources.

All callbacks meet the same lack of resources, and would log a line each.
"""

_THROTTLING = frozenset({429, 502, 504})

log = get_logger()


class FailureReason(StrEnum):
    """The reason for a failed attempt: a label of metrics, and the error class in `callback_attempts`."""

    REFUSED = "refused"
    """The egress guard refuses the URL itself, whatever its host resolves to. Permanent."""
    ADDRESS_REFUSED = "address_refused"
    """The egress guard refuses the host's present address.

    Temporary: name servers may give wrong answers for minutes.
    """
    GONE = "gone"
    """410: the consumer wants no more events at this URL. Permanent."""
    THROTTLED = "throttled"
    """429, 502, 504."""
    REDIRECTED = "redirected"
    """3xx. A redirect is never followed, because the producer did not name its target, and no guard checked it."""
    CLIENT_ERROR = "client_error"
    """Any other 4xx."""
    SERVER_ERROR = "server_error"
    """Any other 5xx, and statuses outside 200 to 599."""
    TIMEOUT = "timeout"
    """The deadline passed during name resolution, connecting, TLS, the wait for headers, or the body of a 2xx."""
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    TLS_FAILED = "tls_failed"
    CONNECTION_CLOSED = "connection_closed"
    """The connection closed before a status came. The endpoint may have closed an idle connection just before use."""
    BAD_RESPONSE = "bad_response"
    """The answer is not HTTP, its headers are too large, or the body of a 2xx ended early."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The consumer answered 2xx."""

    status: int
    duration_seconds: float
    answer_excerpt: str | None = field(default=None, repr=False)
    """The beginning of the answer's body, if a setting asks for it. The excerpt never reaches a log."""


@dataclass(frozen=True, slots=True)
class FailedDelivery:
    """The attempt failed: any outcome other than a 2xx that was read in full."""

    reason: FailureReason
    duration_seconds: float
    status: int | None = None
    """None if no status line was read."""
    retry_after_seconds: float | None = None
    """The `Retry-After` of a 4xx or 5xx, at most MAX_RETRY_AFTER_SECONDS."""
    detail: str | None = None
    """The egress guard's reason for a refusal, as a phrase without any part of the URL."""
    answer_excerpt: str | None = field(default=None, repr=False)
    """See `Delivered.answer_excerpt`."""


PostOutcome = Delivered | FailedDelivery


class Deadlines:
    """Makes timeouts of one length, with one timer for all. They must run on the event loop of the first timeout.

    All attempts have the same timeout, so the oldest attempt expires first, and one alarm for this attempt is enough. A
    timer for each attempt, as `asyncio.timeout` makes it, would cost a twentieth of a callback on a warm connection.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: dict[asyncio.Timeout, float] = {}
        """The timeouts, each with its deadline by the loop's clock. The oldest timeout is first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def begin(self) -> asyncio.Timeout:
        """Return a timeout whose time starts now. The caller must enter it at once, and pass it to `end`."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        timeout = asyncio.Timeout(None)
        self._running[timeout] = at = loop.time() + self._seconds
        if self._alarm is None:
            self._alarm = loop.call_at(at, self._ring, loop)
        return timeout

    def end(self, timeout: asyncio.Timeout) -> None:
        """Remove a timeout, whether it has expired or not."""
        self._running.pop(timeout, None)

    def close(self) -> None:
        """Cancel the alarm. Attempts that still run have no deadline from now on."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """Expire overdue timeouts, and set the alarm for the next timeout.

        All timeouts here belong to running attempts, since `end` removes the timeouts of finished attempts.
        """
        now, self._alarm = loop.time(), None
        while self._running:
            timeout, at = next(iter(self._running.items()))
            if at > now:
                self._alarm = loop.call_at(at, self._ring, loop)
                return
            del self._running[timeout]
            timeout.reschedule(now)


class Poster:
    """Sends POSTs over warm connections, behind the egress guard. All posts must run on one event loop."""

    def __init__(
        self,
        settings: DeliverySettings,
        policy: EgressPolicy,
        clock: Clock,
        *,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._clock = clock
        self._resolver = resolver
        self.tls = TlsContexts(settings, clock)
        """The TLS contexts of this poster's connections, by tenant."""
        # Checks are cached, since they depend on the URL's text alone. The connector checks addresses on every
        # connection.
        self._check = lru_cache(maxsize=_CHECKED_URLS)(partial(check_url, policy=policy))
        self._exchanges: Exchanges | None = None
        self._deadlines = Deadlines(settings.deadline_seconds)
        self._traced = collecting()
        self._exhausted_throttle = LogThrottle(_SAY_SECONDS)

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], tenant: str, number: int = 1
    ) -> PostOutcome:
        """Make one attempt. The other side's failures are outcomes, not exceptions. `headers` must be clean ASCII.

        Raises Exhausted if a lack of this machine's own resources prevented the attempt.

        If spans are collected when the poster is made, each attempt has a span and sends the span's `traceparent`.
        `number` is the attempt's number, from 1, for the span.
        """
        if not self._traced:
            return await self._attempt(url, body, headers, tenant)
        parent = parse_traceparent(headers.get(TRACEPARENT))
        about: dict[str, str | int] = {"http.request.method": "POST", "url.origin": origin_of(url), "attempt": number}
        if "webhook-id" in headers:
            about["webhook_id"] = headers["webhook-id"]
        with span("POST callback", parent, about, kind=Kind.CLIENT) as context:
            traced = {**headers, TRACEPARENT: context.traceparent} if context is not None else headers
            outcome = await self._attempt(url, body, traced, tenant)
            annotate(_attributes(outcome), failed=isinstance(outcome, FailedDelivery))
        return outcome

    async def _attempt(self, url: str, body: bytes, headers: Mapping[str, str], tenant: str) -> PostOutcome:
        """Make the attempt, with one deadline around every step that the other side can delay."""
        try:
            target = self._check(url)
        except EgressRefused as refused:
            return FailedDelivery(FailureReason.REFUSED, 0.0, detail=str(refused.reason))
        started = self._clock.monotonic()
        answer, detail = CallbackAnswer(), None
        deadline = self._deadlines.begin()
        try:
            async with deadline:
                failure = await self._exchange(target, body, headers, tenant, answer)
        except TimeoutError:
            failure = FailureReason.TIMEOUT
        except EgressRefused as refused:
            failure, detail = FailureReason.ADDRESS_REFUSED, str(refused.reason)
        finally:
            self._deadlines.end(deadline)
        duration = self._clock.monotonic() - started
        if answer.status is None or (failure is not None and _is_success(answer.status)):
            reason, excerpt = failure or FailureReason.BAD_RESPONSE, excerpt_of(answer)
            return FailedDelivery(reason, duration, answer.status, detail=detail, answer_excerpt=excerpt)
        return self._judge(answer.status, answer, duration)

    async def close(self) -> None:
        """Close all connections."""
        self._deadlines.close()
        if self._exchanges is not None:
            await self._exchanges.close()
            self._exchanges = None

    async def _exchange(
        self, url: URL, body: bytes, headers: Mapping[str, str], tenant: str, answer: CallbackAnswer
    ) -> FailureReason | None:
        """Fill in the answer. If a library raises an error, return the reason; only this method maps such errors.

        Raises EgressRefused and Exhausted. The deadline's cancellation passes through.
        """
        try:
            exchanges = self._exchanges or self._open()
            await exchanges.post(url, body, headers, self.tls.of(tenant), answer)
        except (aiohttp.ClientSSLError, ssl.SSLError):
            return FailureReason.TLS_FAILED
        except aiohttp.ClientConnectorError as error:
            return self._unconnected(error)
        except (aiohttp.ClientPayloadError, HttpProcessingError):
            return FailureReason.BAD_RESPONSE
        except (aiohttp.ClientError, OSError):
            return FailureReason.CONNECTION_CLOSED
        return None

    def _unconnected(self, error: aiohttp.ClientConnectorError) -> FailureReason:
        """Return the reason for a failed connection. Raises Exhausted if this machine lacks resources."""
        lacking = exhausted_by(error)
        if lacking is not None:
            if self._exhausted_throttle.admit(self._clock.monotonic()) is not None:
                log.error(
                    "This process can open no more connections; deferring callbacks. "
                    "Raise its limit of open files, or run more processes.",
                    action="resources-exhausted",
                    error=lacking,
                )
            raise Exhausted(lacking) from None
        is_dns = isinstance(error, aiohttp.ClientConnectorDNSError)
        return FailureReason.DNS_FAILED if is_dns else FailureReason.CONNECT_FAILED

    def _judge(self, status: int, answer: CallbackAnswer, duration: float) -> PostOutcome:
        """Return the outcome of a status. Only a 2xx needs a complete body; other statuses alone decide the outcome."""
        if _is_success(status):
            return Delivered(status, duration, excerpt_of(answer))
        wait = None
        if answer.retry_after is not None and status >= 400:
            wait = parse_retry_after(answer.retry_after, self._clock.time())
        return FailedDelivery(_reason_of(status), duration, status, wait, answer_excerpt=excerpt_of(answer))

    def _open(self) -> Exchanges:
        connector = GuardedConnector(
            self._policy,
            self._resolver,
            # The connector has no limit, because destinations.py limits the attempts at each destination, and so the
            # connections.
            limit=0,
            keepalive_timeout=self._settings.keep_alive_seconds,
        )
        settings = self._settings
        self._exchanges = Exchanges(connector, settings.response_cap_bytes, settings.answer_excerpt_bytes)
        return self._exchanges


def _attributes(outcome: PostOutcome) -> dict[str, str | int]:
    """Return a span's attributes for the outcome, with OpenTelemetry's names."""
    said: dict[str, str | int] = {}
    if outcome.status is not None:
        said["http.response.status_code"] = outcome.status
    if isinstance(outcome, FailedDelivery):
        said["error.type"] = str(outcome.reason)
    return said


def excerpt_of(answer: CallbackAnswer) -> str | None:
    """Return the excerpt as text, without a last character that the cut would split; None for an empty text."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(answer.excerpt) or None


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _reason_of(status: int) -> FailureReason:
    if status == 410:
        return FailureReason.GONE
    if status in _THROTTLING:
        return FailureReason.THROTTLED
    if 300 <= status < 400:
        return FailureReason.REDIRECTED
    return FailureReason.CLIENT_ERROR if 400 <= status < 500 else FailureReason.SERVER_ERROR
