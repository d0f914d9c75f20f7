"""Pure ASGI middleware: each request is a span, under the span that the client's `traceparent` names."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.topics import TRACEPARENT
from telemetry.traces import Kind, TraceContext, annotate, parse_traceparent, rename, span


class Traced:
    """Serves each request as a span. The names are OpenTelemetry's semantic conventions for HTTP servers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        method = scope["method"]
        with span(method, _parent(scope), {"http.request.method": method}, kind=Kind.SERVER):
            await self._app(scope, receive, send)


def describe(method: str, route: str, status: int) -> None:
    """Name the span of the present request after the route's template, and add the response's status to it."""
    rename(f"{method} {route}")
    annotate({"http.route": route, "http.response.status_code": status}, failed=status >= 500)


def _parent(scope: Scope) -> TraceContext | None:
    """Return the client's span; None without a valid `traceparent`.

    Several such fields are not valid, because servers join them by commas.
    """
    said = [value for name, value in scope["headers"] if name == TRACEPARENT.encode()]
    return parse_traceparent(b",".join(said).decode("latin-1"))
