"""Pure ASGI middleware: the rate of the whole door, which is counted before any part of a request is examined."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access.gate import Gate, TooManyRequests
from gateway.door.door import too_many
from gateway.door.handlers import error_response


class Limited:
    """Answers 429 to requests above the door's rate."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            await self._gate.enter()
        except TooManyRequests as error:
            await error_response(too_many(error))(scope, receive, send)
            return
        await self._app(scope, receive, send)
