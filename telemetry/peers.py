"""The silence of a process's peers: servers that it needs, such as a database or a model server.

A process that has no work notices no dead server, and a call to a frozen server may hang for minutes. So each peer is
asked every few seconds on a thread of its own, and a scrape tells how long the last answer was ago.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
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
    """Shows the seconds since each peer's last answer as a metric. Any thread may call."""

    def __init__(self, metrics: Metrics, clock: Clock, ask_seconds: float = ASK_SECONDS) -> None:
        self._metrics = metrics
        self._clock = clock
        self._ask_seconds = ask_seconds
        self._stop = Event()
        self._lock = Lock()
        self._answered_at: dict[Peer, list[float]] = {}
        """For each server of a peer, the time of its last answer; the start of the watch counts as an answer."""

    def watch(self, peer: Peer, ask: Callable[[], object]) -> None:
        """Call `ask` every few seconds until `close`. An exception means that the peer did not answer."""
        answered = self.expect(peer)
        Thread(target=self._ask, args=(peer, ask, answered), name=f"peer-{peer}", daemon=True).start()

    def watch_redis(self, *urls: SecretStr | None) -> None:
        """Watch each Redis that settings name, once also where several name the same one."""
        for url in {each.get_secret_value() for each in urls if each is not None}:
            self.watch("redis", redis_ping(url))

    def expect(self, peer: Peer) -> Callable[[], None]:
        """Show a peer that the caller asks itself. Returns the function to call after each answer."""
        with self._lock:
            times = self._answered_at.setdefault(peer, [])
            number = len(times)
            times.append(self._clock.monotonic())
        self._metrics.peer_silent_seconds.labels(peer).set_function(lambda: self._silence(peer))

        def answered() -> None:
            times[number] = self._clock.monotonic()

        return answered

    def close(self) -> None:
        """Ask no more. A question that hangs is left to its daemon thread."""
        self._stop.set()

    def _silence(self, peer: Peer) -> float:
        """Return the longest silence of the peer's servers."""
        return self._clock.monotonic() - min(self._answered_at[peer])

    def _ask(self, peer: Peer, ask: Callable[[], object], answered: Callable[[], None]) -> None:
        silent = False
        while not self._stop.is_set():
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
                answered()
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
