"""`/metrics`, `/healthz`, `/readyz` and a role's own pages, served by separate threads.

These pages must answer while the event loop is stuck, so this module never calls the loop.
`/healthz` fails when an orchestrator should restart the process; `/readyz` fails while the process cannot do its work.
A worker without a broker is alive but not ready. A process that has not started is neither alive nor ready. So a
startup probe of `/healthz` limits the time for the start, and ends a process that hangs.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Thread
from types import MappingProxyType, TracebackType
from typing import Any, Self

from prometheus_client.exposition import choose_encoder

from telemetry.clock import Clock, SystemClock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Readiness:
    """The reasons why a process cannot do its work now; a process without reasons is ready."""

    reasons: tuple[str, ...] = ()
    """Sentences for an operator. Any client of the port can read these sentences, so they contain no secrets and no
    URLs.
    """

    @property
    def ready(self) -> bool:
        """True if there are no reasons."""
        return not self.reasons


READY = Readiness()


@dataclass(frozen=True, slots=True)
class HealthPage:
    """The answer at one of a role's own paths."""

    content_type: str
    body: bytes
    max_age_seconds: int = 0
    """Seconds for which readers and proxies may cache the page (RFC 9111, section 5.2.2.1); 0 forbids caching."""
    status: HTTPStatus = HTTPStatus.OK


Pages = Mapping[str, Callable[[str], HealthPage | None]]
"""Functions that make pages, by path. A request calls the function on the request's own thread.

A path that ends with `/` is a folder: its function gets the last part of the requested path, and returns None for an
unknown page. All other functions get an empty text."""

_NO_PAGES: Pages = MappingProxyType({})


class Heartbeat:
    """A watchdog. A call returns True if the last `beat` was at most `limit_seconds` ago. Any thread may `beat`."""

    def __init__(self, clock: Clock, limit_seconds: float) -> None:
        self._clock = clock
        self._limit_seconds = limit_seconds
        self._last = clock.monotonic()

    def beat(self) -> None:
        """Record that the watched loop is alive now."""
        self._last = self._clock.monotonic()

    def __call__(self) -> bool:
        """True if the last beat is within the limit."""
        return self._clock.monotonic() - self._last <= self._limit_seconds


def _yes() -> bool:
    return True


class HealthServer:
    """The small HTTP server of every process. If `port` is 0, any free port is used.

    Each request looks its page up in `pages`, so a role may add pages later. The constructor binds the port, and raises
    OSError if the port is taken, before any work begins; `start` serves.
    """

    def __init__(
        self,
        metrics: Metrics,
        readiness: Callable[[], Readiness],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        started: Callable[[], bool] = _yes,
        alive: Callable[[], bool] = _yes,
        pages: Pages = _NO_PAGES,
    ) -> None:
        metrics.clock_seconds.set_function(SystemClock().time)
        self._server = _Server((host, port), metrics, readiness, started, alive, pages)
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port on which the server listens, also if the constructor's `port` was 0."""
        return self._server.server_port

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering, and release the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # The base class would join its request threads on close, and one slow client would delay the end of the process.
    block_on_close = False

    def __init__(
        self,
        address: tuple[str, int],
        metrics: Metrics,
        readiness: Callable[[], Readiness],
        started: Callable[[], bool],
        alive: Callable[[], bool],
        pages: Pages,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.metrics = metrics
        self.readiness = readiness
        self.started = started
        self.alive = alive
        self.pages = pages
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind the port only. HTTPServer also resolves the machine's name, which may hang."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnected, for which the base class prints a traceback."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # seconds within which a client has to send its request
    server_version = "postback"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        own = {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._readiness}
        try:
            if path in own:
                own[path]()
            elif (page := self._own_page(path)) is not None:
                self._page(page)
            else:
                known = " ".join([*own, *self.server.pages])
                self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", f"{known}\n".encode())
        except OSError:
            raise
        except Exception:
            _log.exception("A health check raised; answering it with status 500.", action="health-check-failed")
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"reasons": ["The check itself failed; see the log."]})

    do_HEAD = do_GET  # noqa: N815 - the base class finds it by this name

    def _metrics(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._send(HTTPStatus.OK, content_type, encode(self.server.metrics.registry))

    def _health(self) -> None:
        reasons = []
        if not self.server.started():
            reasons = ["The process has not started yet."]
        elif not self.server.alive():
            reasons = ["The main loop has not reported for too long."]
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        self._send_json(status, {"alive": not reasons, "reasons": reasons})

    def _readiness(self) -> None:
        readiness = self.server.readiness()
        status = HTTPStatus.OK if readiness.ready else HTTPStatus.SERVICE_UNAVAILABLE
        self._send_json(status, {"ready": readiness.ready, "reasons": list(readiness.reasons)})

    def _own_page(self, path: str) -> HealthPage | None:
        folder, _, name = path.rpartition("/")
        pages = self.server.pages
        if path in pages and name:
            return pages[path]("")
        return pages[f"{folder}/"](name) if f"{folder}/" in pages else None

    def _page(self, page: HealthPage) -> None:
        caching = f"public, max-age={page.max_age_seconds}" if page.max_age_seconds else "no-store"
        self._send(page.status, page.content_type, page.body, caching)

    def _send_json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value).encode() + b"\n")

    def _send(self, status: HTTPStatus, content_type: str, body: bytes, caching: str = "no-store") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", caching)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class' name
        """Log no requests: probes come every few seconds."""
