"""An HTTP server in a thread, for a handler of Python's http.server."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any


class Answering(BaseHTTPRequestHandler):
    """A handler that reads a body and answers in one call each, and logs nothing."""

    def body(self) -> bytes:
        """The request's body; read it before an answer."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(
        self, status: int, body: bytes = b"", kind: str = "text/html", headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Answer with a body of this media type."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, status: int, value: Any, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """Answer with JSON."""
        self.answer(status, json.dumps(value).encode(), "application/json", headers)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def handling(
    handler: Callable[..., BaseHTTPRequestHandler], context: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[str]:
    """Serve on this port for a block, over TLS if `context` is given; yield the URL. Port 0 takes any free port."""
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
