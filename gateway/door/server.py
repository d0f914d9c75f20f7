"""The HTTP server as a side task of the process: uvicorn on uvloop and httptools, HTTP/1.1."""

from __future__ import annotations

import socket
import ssl

import uvicorn
from starlette.types import ASGIApp


class DoorServer:
    """Serves the application on a bound socket until cancelled."""

    def __init__(self, app: ASGIApp, bound: socket.socket, tls: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=10,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        self._server = _Server(config)
        self._socket = bound

    @property
    def alive(self) -> bool:
        """True: the loop's own heartbeat covers the server."""
        return True

    def reasons(self) -> list[str]:
        """Return the reason why no request is served, while the server starts or stops."""
        return [] if self._server.started else ["the door does not serve yet"]

    async def ended(self) -> None:
        """Serve until cancelled; then answer the requests in work."""
        await self._server.serve([self._socket])


class _Server(uvicorn.Server):
    """A server that leaves the process's signals to the process."""

    def install_signal_handlers(self) -> None:
        """Do nothing."""
