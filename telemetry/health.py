"""`/metrics`, `/healthz` and `/readyz`, and a role's own pages, served from threads of their own.

They have to answer while the event loop is stuck, since that is when somebody asks; so nothing here touches the loop.
`/healthz` says whether the process should go on living (an orchestrator restarts it otherwise), `/readyz` whether it
does its work now: a worker whose broker is away is alive, and not ready. One that has not started yet is neither, so
that a startup probe at `/healthz` counts how long that takes, and a start that hangs ends.
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

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a process does its work now: it does if there is no reason why not."""

    reasons: tuple[str, ...] = ()
    """Sentences for an operator. They are public to whoever reaches the port: no secrets, no URLs."""

    @property
    def ready(self) -> bool:
        """Whether nothing is in the way."""
        return not self.reasons


READY = Readiness()


@dataclass(frozen=True, slots=True)
class HealthPage:
    """What one of a role's own paths answers with."""

    content_type: str
    body: bytes
    max_age_seconds: int = 0
    """How long readers and proxies may keep it (RFC 9111, section 5.2.2.1); 0 is not at all."""


Pages = Mapping[str, Callable[[str], HealthPage | None]]
"""Path to the maker of its page, which is called on a thread of its own, at each request.

A path that ends with `/` is a folder: its maker gets the last part of the path that was asked for, and returns None
where there is no such page. Every other maker gets an empty text."""

_NO_PAGES: Pages = MappingProxyType({})


class Heartbeat:
    """Says whether something that should come by regularly still does. `beat` may be called from any thread."""

    def __init__(self, clock: Clock, limit_seconds: float) -> None:
        self._clock = clock
        self._limit_seconds = limit_seconds
        self._last = clock.monotonic()

    def beat(self) -> None:
        """Came by."""
        self._last = self._clock.monotonic()

    def __call__(self) -> bool:
        """Whether it came by within the limit."""
        return self._clock.monotonic() - self._last <= self._limit_seconds


def _yes() -> bool:
    return True


class HealthServer:
    """The small HTTP server that every process has. `port` 0 is any free one; `port` tells which it became.

    `pages` are looked up at each request, so that a role may add its own once it has what they show.
    Binds in the constructor, so that a busy port is an OSError before any work begins; `start` serves.
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
        self._server = _Server((host, port), metrics, readiness, started, alive, pages)
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    def start(self) -> Self:
        """Answer from now on."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering and give the port back."""
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
    # The base class joins its request threads on close: one slow client would hold up the end of the process.
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
        """Bind only: HTTPServer's own would then ask the resolver for the machine's name, and may hang in it."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is no event; the base class prints a traceback."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # seconds that a client may take to send its request
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
            _log.exception("A health check could not be answered.", action="health-check-failed")
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
            reasons = ["The main loop has not come by for too long."]
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
        self._send(HTTPStatus.OK, page.content_type, page.body, caching)

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
        """A probe every few seconds is no event."""
