"""A client for one search service: paces requests, bounds answers, and raises `Unreadable` for each failure.

A service limits the operator's key or address, so all jobs share one queue. The time that a search waits for its turn
does not count as the search's own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from telemetry.clock import Clock
from workers.egress import Proxy, ProxyFailed, bounded_connector
from workers.egress.answers import BodyTooLarge, bounded_body, parse_retry_after
from workers.enrichment.evidence import Unreadable

PATIENCE_SECONDS = 2.0
"""If a service asks for a pause, jobs wait at most this long.

If a longer pause remains, requests to the service fail."""
MAX_REST_SECONDS = 3600.0
"""Cap on the pause that a service may ask for."""


class Allowance:
    """The remaining time of one search. The time does not run while the search waits `in_line` for a turn."""

    def __init__(self, seconds: float) -> None:
        self.left_seconds = seconds
        """The remaining seconds, updated only when the search starts to wait and when the search ends."""
        self.had_a_turn = False
        """True after the search's first turn.

        From then on, the search's requests go before searches that have had no turn.
        """
        self._limit = asyncio.timeout(None)
        self._waits = 0
        self._is_open = False

    @asynccontextmanager
    async def limiting(self) -> AsyncIterator[Allowance]:
        """Raise TimeoutError if the body of this context takes longer than the remaining time."""
        async with self._limit:
            token = _current.set(self)
            self._is_open = True
            self._run()
            try:
                yield self
            finally:
                _current.reset(token)
                self._stand_still()
                self._is_open = False

    @contextmanager
    def in_line(self) -> Iterator[None]:
        """Stop the time while the context waits for a turn. Several requests of a search may wait at once."""
        self._waits += 1
        self._stand_still()
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self._run()

    def _run(self) -> None:
        self._reschedule(asyncio.get_running_loop().time() + self.left_seconds)

    def _stand_still(self) -> None:
        if (ends := self._limit.when()) is not None:
            self.left_seconds = max(0.0, ends - asyncio.get_running_loop().time())
        self._reschedule(None)

    def _reschedule(self, ends: float | None) -> None:
        if self._is_open and not self._limit.expired():
            self._limit.reschedule(ends)


_current: ContextVar[Allowance | None] = ContextVar("allowance", default=None)
"""The allowance of the running search, as a context variable, so that providers need not pass it to each request."""


def current_allowance() -> Allowance:
    """Return the running search's allowance; outside of a search, return an allowance without a limit."""
    return _current.get() or Allowance(0.0)


class RequestPace:
    """Grants one request per `interval_seconds` in order of arrival, but requests of searches that have begun go first.

    Otherwise many concurrent searches would all send a first request, and no search could send its second request in
    time.
    """

    def __init__(self, clock: Clock, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._door, self._queue = asyncio.Lock(), asyncio.Lock()
        """A new search holds the lock `_door` while it is in the queue, so at most one new search is in the queue."""
        self._next = self._rest_ends = clock.monotonic()

    async def turn(self, *, behind: int = 0) -> None:
        """Let up to `behind` new searches go first, and then wait for the next turn.

        A waiter that is cancelled uses up no turn. Raises Unreadable if the service has asked for a long pause.
        """
        self._check_rest()
        allowance = current_allowance()
        with allowance.in_line():
            while behind > 0 and self._door.locked():
                await asyncio.sleep(self._interval_seconds)
                behind -= 1
            async with nullcontext() if allowance.had_a_turn else self._door, self._queue:
                self._check_rest()
                await asyncio.sleep(max(self._next, self._rest_ends) - self._clock.monotonic())
                self._next = self._clock.monotonic() + self._interval_seconds
        allowance.had_a_turn = True

    def rest(self, seconds: float) -> None:
        """Send no requests for `seconds`, since the service asks for a pause."""
        self._rest_ends = max(self._rest_ends, self._clock.monotonic() + min(seconds, MAX_REST_SECONDS))

    def _check_rest(self) -> None:
        left = self._rest_ends - self._clock.monotonic()
        if left > PATIENCE_SECONDS:
            raise Unreadable(f"the search service asks for {left:.0f} s without requests")


MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""Cap on the bytes of an answer. Sixty articles of PubMed have 3 MB.

In memory, empty JSON objects take 25 times the size of their text.
"""
MOST_RESULTS: Final = 1_000
"""Cap on the number of results in an answer; queries ask for at most 50."""
REQUEST_SECONDS: Final = 30.0
"""Timeout of a request whose caller has no budget; a job's own budget is usually shorter."""
DEFAULT_WAIT_SECONDS: Final = 1.0
"""The wait, in seconds, after an overload if the service names no time."""

KEY_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""The statuses by which services refuse a key."""
_OVERLOADED: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_Model = TypeVar("_Model", bound=BaseModel)


class Refused(Unreadable):
    """The service answered with a status other than 200."""

    def __init__(self, answer: ServiceAnswer) -> None:
        super().__init__(f"the search service answered {answer.status}")
        self.answer = answer


@dataclass(frozen=True, slots=True)
class ServiceRequest:
    """One request to a service. `params` and `headers` may hold keys, so no error quotes them."""

    url: str | URL
    """A string is encoded before it is sent; a `yarl.URL` is sent as it is."""
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "GET"
    body: Any = None
    """A value that is sent as JSON. If it is None, no body is sent."""


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """A service's answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    received: float
    """The time of arrival in Unix seconds, which is needed if `Retry-After` is a date."""

    def read(self, model: type[_Model]) -> _Model:
        """Parse the JSON body as this model. Raises Unreadable."""
        try:
            return model.model_validate(self.json())
        except ValidationError:
            raise Unreadable("the search service's answer has another form than its documentation says") from None

    def json(self) -> Any:
        """Parse the JSON body. Raises Unreadable, for example for the HTML that some services send with status 200."""
        try:
            return json.loads(self.body, strict=False)  # PubMed's JSON has control characters in strings
        except (ValueError, RecursionError):
            raise Unreadable("the search service's answer is not JSON") from None


def asked_to_wait(answer: ServiceAnswer) -> float | None:
    """Return the seconds that an overloaded service asks to wait (RFC 9110, section 10.2.3); None without overload."""
    return retry_after(answer) if answer.status in _OVERLOADED else None


def retry_after(answer: ServiceAnswer) -> float:
    """Return the `Retry-After` header in seconds, or `DEFAULT_WAIT_SECONDS` if the header is missing or invalid."""
    seconds = parse_retry_after(answer.headers.get("Retry-After", ""), answer.received)
    return seconds if seconds is not None else DEFAULT_WAIT_SECONDS


class Web:
    """A worker's connections to all search services. Operators of services may write to the address `email`."""

    def __init__(self, user_agent: str, clock: Clock, email: str | None = None, proxy: Proxy | None = None) -> None:
        self.clock = clock
        self.email = email
        self._user_agent = user_agent
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the session. Connections are opened later, for the first requests."""
        self._session = aiohttp.ClientSession(
            connector=bounded_connector(self._proxy),
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "gzip, deflate"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def service(self, base_url: str, per_second: float) -> Service:
        """Return a service that gets at most `per_second` requests a second."""
        return Service(self, base_url, RequestPace(self.clock, 1 / per_second))

    async def send(self, request: ServiceRequest) -> ServiceAnswer:
        """Send one request. Raises Unreadable if no answer comes."""
        if self._session is None:
            raise RuntimeError("the session has not been started")
        try:
            # Redirects are not followed: the operator chose the address, and a key must not go to another address.
            async with self._session.request(
                request.method,
                request.url,
                params=request.params,
                headers=request.headers,
                json=request.body,
                allow_redirects=False,
            ) as response:
                body = await _bounded(response)
                return ServiceAnswer(response.status, response.headers, body, self.clock.time())
        except ProxyFailed as failed:
            raise Unreadable(f"the search service could not be reached: {failed}") from None
        except aiohttp.ClientConnectionError:
            raise Unreadable("the search service could not be reached") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise Unreadable("the search service's answer broke off or is not HTTP") from None


class Service:
    """One service; made by `Web.service`."""

    def __init__(self, web: Web, base_url: str, pace: RequestPace) -> None:
        self._web = web
        self._base_url = base_url.rstrip("/")
        self.pace = pace
        """Grants turns to all requests to the service."""

    async def get(
        self,
        params: Mapping[str, str],
        *,
        path: str = "",
        headers: Mapping[str, str] | None = None,
        overloaded: Callable[[ServiceAnswer], float | None] = asked_to_wait,
        has_turn: bool = False,
    ) -> ServiceAnswer:
        """Send a GET request for `path` below the service's URL, and return the answer; see `send`."""
        request = ServiceRequest(self._base_url + path, params, headers or {})
        return await self.send(request, overloaded=overloaded, has_turn=has_turn)

    async def send(
        self,
        request: ServiceRequest,
        *,
        overloaded: Callable[[ServiceAnswer], float | None] = asked_to_wait,
        has_turn: bool = False,
    ) -> ServiceAnswer:
        """Send the request and return the answer with status 200; try again once if the service asks for a short wait.

        The request waits for its turn, unless the caller already has one (`has_turn`). `overloaded` is called with the
        answer, and returns the seconds of the pause that the answer asks for, or None. Raises Refused and other kinds
        of Unreadable.
        """
        if not has_turn:
            await self.pace.turn()
        answer = await self._web.send(request)
        wait = overloaded(answer)
        if wait is not None:
            self.pace.rest(wait)
            if wait > PATIENCE_SECONDS:
                raise Unreadable(f"the search service is overloaded and asks to wait {wait:.0f} s")
            await self.pace.turn()
            answer = await self._web.send(request)
            if overloaded(answer) is not None:
                raise Unreadable("the search service is overloaded")
        if answer.status != HTTPStatus.OK:
            raise Refused(answer)
        return answer


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await bounded_body(response, MAX_ANSWER_BYTES)
    except BodyTooLarge:
        raise Unreadable("the search service's answer is too large") from None
