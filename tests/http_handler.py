"""An HTTP server in a thread, for a handler of Python's http.server."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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
