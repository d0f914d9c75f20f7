"""The ASGI application: the routes, within middleware for ids, header fields, metrics, audit, spans and defects."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import Principal
from gateway.door.api import API
from gateway.door.body import BODIES, BodyBudget, HeldBytes
from gateway.door.door import ANSWER_HEADERS, PRINCIPAL, REQUEST_ID, SECURITY, Door, new_request_id
from gateway.door.handlers import add_handlers, defect_response, error_response
from gateway.door.noted import AUDIT
from gateway.door.openapi import document_routes
from gateway.errors import unavailable
from schemas.topics import TRACEPARENT
from telemetry.audit import Audit, AuditEvent, Type
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.traces import (
    Kind,
    TraceContext,
    annotate,
    collecting,
    current_trace,
    exemplar,
    parse_traceparent,
    rename,
    span,
)

CLIENT_GONE = "499"
"""The metrics' status of a request whose client ended the connection before the response, as in nginx."""
UNMATCHED = "unmatched"
"""The metrics' route of a request with an unknown URL."""
FRAMES = 8
"""The number of a traceback's innermost frames that the log shows. The outer frames are the framework's."""
_DENIED = (401, 403)

log = get_logger()

MakeRoutes = Callable[[Door], Sequence[BaseRoute]]


def routes(door: Door) -> list[Route]:
    """Return the routes of the API and of its description."""
    return [*(endpoint.route(door) for endpoint in API), *document_routes(door)]


def create_app(door: Door, beside: Iterable[MakeRoutes] = ()) -> ASGIApp:
    """Return the application: the API, and the routes of the packages above the door.

    The caller runs the application on a server.
    """
    app = Starlette(routes=[*routes(door), *(route for make in beside for route in make(door))])
    app.router.redirect_slashes = False
    add_handlers(app)
    observed = Observed(app, door.metrics, door.clock, door.audit, BodyBudget(door.settings.bodies_bytes))
    return Traced(observed) if collecting() else observed


class Observed:
    """Serves each request with an id of its own, and measures it."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, clock: Clock, audit: Audit | None = None, bodies: BodyBudget | None = None
    ) -> None:
        self._app = app
        self._bodies = bodies or BodyBudget(sys.maxsize)
        self._audit = audit
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors of the application are answered with status 500, and not raised."""
        begun = self._clock.monotonic()
        state = scope.setdefault("state", {})
        exchange = _Exchange(new_request_id(), send, state)
        state["request_id"] = exchange.request_id
        held = state[BODIES] = HeldBytes(self._bodies)
        try:
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_GONE
        except asyncio.CancelledError:
            # The server cancels requests only when it stops. It then cancels streams of events, and requests that take
            # too long.
            if exchange.status:
                # Ending fails if the response has ended already, or has fewer bytes than its Content-Length.
                with suppress(Exception):
                    await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                stopping = unavailable("stopping", "The gateway stops; repeat the request.", seconds=1)
                await error_response(stopping)(scope, receive, exchange.send)
        except Exception as error:
            _report(error, exchange.request_id, _route(scope))
            if not exchange.status:
                await defect_response()(scope, receive, exchange.send)
        finally:
            held.release()
        route, status = _route(scope), exchange.status or CLIENT_GONE
        rename(f"{scope['method']} {route}")  # the name of the request's span
        annotate({"http.route": route, "http.response.status_code": int(status)}, failed=int(status) >= 500)
        self._metrics.http_requests.labels(route, status).inc()
        self._metrics.http_request_seconds.labels(route).observe(
            self._clock.monotonic() - begun, exemplar(current_trace())
        )
        self._write_audit(scope, int(status))

    def _write_audit(self, scope: Scope, status: int) -> None:
        if self._audit is not None and (event := _audit_event(scope, status)) is not None:
            self._audit.record(event)


class _Exchange:
    """One response on its way: it gets the header fields that every response has."""

    def __init__(self, request_id: str, send: Send, state: Mapping[str, Any]) -> None:
        self.request_id = request_id
        self.status = ""
        self._state = state
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = str(message["status"])
            headers = message["headers"] = list(message.get("headers", ()))
            present = {name.lower() for name, _ in headers}
            headers.append((REQUEST_ID.encode(), self.request_id.encode()))
            headers += [field for field in SECURITY if field[0] not in present]
            for name, value in self._state.get(ANSWER_HEADERS, {}).items():
                if name.encode() not in present:
                    headers.append((name.encode(), value.encode()))
        await self._send(message)


def _route(scope: Scope) -> str:
    """Return the template of the request's route, such as `/v1/jobs/{job_id}`.

    With the paths themselves, which contain ids, each job would get a series of metrics.
    """
    route: Any = scope.get("route")
    return str(getattr(route, "path", UNMATCHED))


def _report(error: Exception, request_id: str, route: str) -> None:
    """Log a defect: its class and its lines of code. The error's text may repeat a body, so it is left out."""
    log.error(
        "A request failed by a defect of the gateway; answering it with status 500.",
        action="request-failed",
        request_id=request_id,
        route=route,
        error_type=type(error).__qualname__,
        stack="".join(traceback.format_tb(error.__traceback__, -FRAMES)),
    )


def _audit_event(scope: Scope, status: int) -> AuditEvent | None:
    """Return the audit event of an answered request that has a credential, or is refused with 401 or 403.

    None for any other request, such as one for `/docs`.
    """
    state = scope["state"]
    principal: Principal | None = state.get(PRINCIPAL)
    noted: dict[str, Any] = {"user": None, "tenant": None, **state.get(AUDIT, {})}
    if "action" not in noted or (principal is None and status not in _DENIED):
        return None
    if principal is not None:
        noted |= {"user": principal.credential, "tenant": principal.tenant}
    noted["objects"] = [*map(str, scope.get("path_params", {}).values()), *noted.get("objects", ())]
    client: Any = scope.get("client")
    return AuditEvent(
        type=_audit_type(scope["method"], noted["action"], status),
        succeeded=status < 400,
        status=status,
        request_id=state.get("request_id"),
        address=client[0] if client else None,
        **noted,
    )


def _audit_type(method: str, action: str, status: int) -> Type:
    if status in _DENIED:
        return "denied"
    if method == "GET":
        return "access"
    if method == "DELETE":
        return "deletion"
    return "creation" if action.startswith("create") else "change"


class Traced:
    """Serves each request as a span. The names are OpenTelemetry's semantic conventions for HTTP servers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        method = scope["method"]
        with span(method, _parent(scope), {"http.request.method": method}, kind=Kind.SERVER):
            await self._app(scope, receive, send)


def _parent(scope: Scope) -> TraceContext | None:
    """Return the client's span; None without a valid `traceparent`.

    Several such fields are not valid, because servers join them by commas.
    """
    said = [value for name, value in scope["headers"] if name == TRACEPARENT.encode()]
    return parse_traceparent(b",".join(said).decode("latin-1"))
