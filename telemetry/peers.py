"""The silence of a process's peers: servers that it needs, such as a database or a model server.

A process that has no work notices no dead server, and a call to a frozen server may hang for minutes. So each peer is
asked every few seconds on a thread of its own, and a scrape tells for how long a question has had no answer.
A process that was frozen has asked nothing meanwhile, so it accuses no peer when it goes on.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.client import HTTPException
from threading import Event, Lock, Thread
from typing import Literal

from pydantic import SecretStr

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics

ASK_SECONDS = 5.0
"""The time between two questions to one peer. An alert's threshold is several times longer."""
ANSWER_SECONDS = 5.0
"""The longest wait for an HTTP server's answer."""
MOST_BYTES = 4 * 1024 * 1024
"""The longest answer that is read."""

Peer = Literal["kafka", "store", "files", "redis", "model_server"]

_log = get_logger()


class PeerWatch:
    """Shows the seconds for which each peer has not answered as a metric. Any thread may call."""

    def __init__(self, metrics: Metrics, clock: Clock, ask_seconds: float = ASK_SECONDS) -> None:
        self._metrics = metrics
        self._clock = clock
        self._ask_seconds = ask_seconds
        self._stop = Event()
        self._lock = Lock()
        self._silent_since: dict[Peer, list[float | None]] = {}
        """For each server of a peer, the time since which it has been silent; None if it answered the last question."""

    def watch(self, peer: Peer, ask: Callable[[], object]) -> None:
        """Call `ask` every few seconds until `close`. An exception means that the peer did not answer."""
        Thread(target=self._ask, args=(peer, ask, self._silence_of(peer)), name=f"peer-{peer}", daemon=True).start()

    def watch_redis(self, *urls: SecretStr | None) -> None:
        """Watch each Redis that settings name, once also where several name the same one."""
        for url in {each.get_secret_value() for each in urls if each is not None}:
            self.watch("redis", redis_ping(url))

    def expect(self, peer: Peer) -> Callable[[], None]:
        """Show a peer that the caller asks itself. Returns the function to call after each answer."""
        silent_since = self._silence_of(peer)
        silent_since(self._clock.monotonic())
        return lambda: silent_since(self._clock.monotonic())

    def close(self) -> None:
        """Ask no more. A question that hangs is left to its daemon thread."""
        self._stop.set()

    def _silence_of(self, peer: Peer) -> Callable[[float | None], None]:
        """Show one more server of a peer. Returns the function that notes since when the server has been silent."""
        with self._lock:
            times = self._silent_since.setdefault(peer, [])
            number = len(times)
            times.append(None)
        self._metrics.peer_silent_seconds.labels(peer).set_function(lambda: self._longest(times))

        def note(since: float | None) -> None:
            times[number] = since

        return note

    def _longest(self, times: Sequence[float | None]) -> float:
        now = self._clock.monotonic()
        return max(0.0 if since is None else now - since for since in times)

    def _ask(self, peer: Peer, ask: Callable[[], object], silent_since: Callable[[float | None], None]) -> None:
        silent = False
        while not self._stop.is_set():
            if not silent:
                silent_since(self._clock.monotonic())
            try:
                ask()
            except Exception as error:
                if not silent and not self._stop.is_set():
                    _log.warning(
                        f"The peer {peer} did not answer a question; asking again every {self._ask_seconds:g} s.",
                        action="peer-silent",
                        peer=peer,
                        error=type(error).__name__,
                    )
                silent = True
            else:
                silent_since(None)
                if silent:
                    _log.info(f"The peer {peer} answers again.", action="peer-answers", peer=peer)
                silent = False
            self._stop.wait(self._ask_seconds)


def http_answers(url: str) -> None:
    """Ask an HTTP server for JSON, without a key.

    Refusals of the request count as answers. Raises OSError for a server's error, or ValueError if a success has no
    JSON in it: then jobs wait as if the server were away.
    """
    try:
        # As the engine does, the question uses no proxy of the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=ANSWER_SECONDS) as answer:
            body = answer.read(MOST_BYTES + 1)
        if len(body) <= MOST_BYTES:  # a longer list is not judged
            json.loads(body)
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
    except HTTPException as error:
        raise OSError(type(error).__name__) from None


def redis_ping(url: str) -> Callable[[], object]:
    """Return a function that asks a Redis and raises its errors. Each question makes a new connection."""
    from redis import Redis  # a package of workers and gateways only

    def ping() -> None:
        with Redis.from_url(url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS) as client:
            client.ping()

    return ping
