"""Sends requests to the gateway, by one connection pool and with a limit for each answer.

Failed requests are repeated if that is safe. A request is repeated after a lost connection and after 408, 429 and 5xx,
unless the answer's `x-should-retry` forbids it. If the answer has a `Retry-After`, the pause before the repeat is that
long, but at most `MOST_PAUSE_SECONDS`. A wait of seconds is told once, until the gateway answers again: between two
tries, or by a timer's thread while one is not answered.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from postback_client.clock import ClientClock, TimeLimit
from postback_client.errors import (
    GatewayRefused,
    NotTrusted,
    PostbackError,
    Unreachable,
    UnreadableAnswer,
    refusal_class,
)
from postback_client.shapes import Shape, parsed, read

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
"""The longest silence of the gateway within an answer."""
MOST_PAUSE_SECONDS = 60.0
TOLD_SECONDS = 2.0
"""A request that is not answered by this time has its wait told."""
_SLOW_BYTES_A_SECOND = 256 * 1024
"""The timer that tells of a wait runs later by the time that a slow line takes for the request's body."""
_PER_PAGE = "100"
_FIRST_PAUSE_SECONDS, _GROWN_PAUSE_SECONDS = 0.25, 8.0
_REPEATED = frozenset({408, 429, 500, 502, 503, 504})

warn: Callable[[str], None] = logging.getLogger("postback_client").warning
"""Tells of a wait. In a program that has not set up `logging`, Python writes warnings to standard error."""


class _Bearer(requests.auth.AuthBase):
    """Sets the key on each request. Without this class, a password in the user's .netrc would replace the key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["authorization"] = f"Bearer {self._key}"
        return request


class HttpSession:
    """Sends requests with the key. Raises ValueError if the URL is not safe for sending a key.

    `tell` gets a sentence when a request waits for a gateway that does not answer.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        ca_file: str | None,
        patience_seconds: float,
        clock: ClientClock,
        tell: Callable[[str], None],
    ) -> None:
        self.base = _base_of(url)
        self.clock = clock
        self._patience_seconds = patience_seconds
        self._tell = tell
        self._is_told = False
        """True if the present wait was told."""
        self._session = requests.Session()
        self._session.auth = _Bearer(key)
        self._session.headers["user-agent"] = "postback-client"
        self._verify: str | bool = ca_file or True

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        stream: bool = False,
        silence_seconds: float = ANSWER_SECONDS,
        limit: TimeLimit | None = None,
    ) -> requests.Response:
        """Send a request and return its answer; repeat the request until the client's patience or `limit` ends.

        Use this method only for requests that may be repeated, because they have an idempotency key or because a repeat
        has no effect. Raises GatewayRefused and Unreachable.
        """
        patience, silence = TimeLimit(self.clock, self._patience_seconds), TimeLimit(self.clock, TOLD_SECONDS)
        grown, outcome_unknown = _FIRST_PAUSE_SECONDS, False
        while True:
            until = patience if limit is None else limit.before(patience)
            failure, pause = self._tried(method, path, body, headers, params, stream, silence_seconds, until)
            if isinstance(failure, requests.Response):
                self._is_told = False
                return failure
            failure.outcome_unknown = outcome_unknown = outcome_unknown or _may_be_done(failure)
            wait = grown * random.uniform(0.5, 1.0) if pause is None else pause  # noqa: S311 - spreads repeats
            grown = min(2 * grown, _GROWN_PAUSE_SECONDS)
            ends = patience.within(wait) < wait or (limit is not None and limit.within(wait) < wait)
            if ends or not _may_repeat(failure):
                raise failure
            if silence.within(wait) < wait:
                self._tell_of(failure, until)
            self.clock.sleep(wait)

    def json(self, method: str, path: str, **arguments: Any) -> Any:
        """Return the JSON of the answer. Raises the errors of `call`, and UnreadableAnswer."""
        return parsed(self.call(method, path, **arguments).content)

    def listed(self, path: str, kind: type[Shape], params: Mapping[str, str] | None = None) -> Iterator[Shape]:
        """Yield all objects of a list, page by page. Raises PostbackError."""
        asked = {"limit": _PER_PAGE, **(params or {})}
        while True:
            page = self.json("GET", path, params=asked)
            if not isinstance(page, dict) or not isinstance(page.get("data"), list):
                raise UnreadableAnswer(f"the answer to GET {path} is not a list")
            yield from (read(kind, each) for each in page["data"])
            if page.get("has_more") is not True or not isinstance(page.get("last_id"), str):
                return
            asked["after"] = page["last_id"]

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @contextmanager
    def _telling(self, body: bytes | None, silence_seconds: float, until: TimeLimit) -> Iterator[None]:
        """Tell of a block that waits for an answer.

        A request that is allowed a longer silence than others is slow by nature, so its wait is not told.
        """
        if silence_seconds > ANSWER_SECONDS:
            yield
            return
        seconds = TOLD_SECONDS + len(body or b"") / _SLOW_BYTES_A_SECOND
        timer = threading.Timer(seconds, self._tell_of, (None, until))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _tell_of(self, failure: PostbackError | None, until: TimeLimit) -> None:
        if self._is_told:
            return
        self._is_told = True
        end = datetime.fromtimestamp(self.clock.time() + until.left, UTC)
        answer = f"answers with status {failure.status}" if isinstance(failure, GatewayRefused) else "does not answer"
        self._tell(f"the gateway at {self.base} {answer}; trying again until {end:%H:%M:%S} UTC")

    def _tried(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        params: Mapping[str, str] | None,
        stream: bool,
        silence_seconds: float,
        until: TimeLimit,
    ) -> tuple[requests.Response | PostbackError, float | None]:
        """Send the request once. Return the answer, or the error and the pause that the gateway asks for."""
        try:
            with self._telling(body, silence_seconds, until):
                response = self._session.request(
                    method,
                    self.base + path,
                    data=body,
                    headers=headers,
                    params=params,
                    stream=True,  # so that the block ends when the answer begins
                    timeout=(CONNECT_SECONDS, silence_seconds),
                    verify=self._verify,
                    allow_redirects=False,  # a redirect would send the key to another server
                )
            if response.status_code < 300:
                if not stream:
                    _ = response.content  # reads the answer to its end, and keeps it in the response
                return response, None
            return _refusal(response), _pause_of(response)
        except requests.exceptions.SSLError as error:
            return NotTrusted(f"{self.base}: TLS fails ({type(error).__name__}); check the CA file and the URL"), None
        except requests.RequestException as error:
            return Unreachable(f"{method} {self.base}{path}: no answer ({type(error).__name__})"), None


def _may_be_done(failure: PostbackError) -> bool:
    """True if the gateway may have carried out the request. A proxy's 5xx says nothing about the gateway behind it."""
    return not isinstance(failure, GatewayRefused) or failure.status >= 500


def _may_repeat(failure: PostbackError) -> bool:
    if isinstance(failure, GatewayRefused):
        return failure.status in _REPEATED and not failure.final
    return not isinstance(failure, NotTrusted)


def _refusal(response: requests.Response) -> GatewayRefused:
    """Return the error that an answer states: in a body in OpenAI's shape, or else by its status."""
    status, error = response.status_code, {}
    try:
        document = parsed(response.content)
    except UnreadableAnswer:
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), dict):
        error = document["error"]
    problems = error.get("problems")
    return refusal_class(status)(
        status,
        str(error.get("message") or f"the gateway answered with status {status}"),
        code=_text(error.get("code")),
        param=_text(error.get("param")),
        problems=[each for each in problems if isinstance(each, dict)] if isinstance(problems, list) else (),
        request_id=response.headers.get("x-request-id"),
        final=response.headers.get("x-should-retry") == "false",
    )


def _pause_of(response: requests.Response) -> float | None:
    said = response.headers.get("retry-after", "")
    return min(float(said), MOST_PAUSE_SECONDS) if said.isascii() and said.isdecimal() else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _base_of(url: str) -> str:
    """Return the URL without a path. Raises ValueError for plain HTTP, unless the URL leads to this machine."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.rstrip("/") not in ("", "/v1"):
        raise ValueError("the gateway's URL is https://host[:port], without a path")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("the gateway's URL has neither a password nor a query")
    local = parts.hostname == "localhost" or parts.hostname.startswith("127.") or parts.hostname == "::1"
    if parts.scheme == "http" and not local:
        raise ValueError("the gateway's URL begins with http://, which does not encrypt the key; use https://")
    return f"{parts.scheme}://{parts.netloc}"
