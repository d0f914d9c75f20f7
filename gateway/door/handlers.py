"""Every error of a request becomes a response in OpenAI's shape; no error's text repeats the request's body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route

from gateway.access.principal import IssuerAway
from gateway.blobs.base import BlobMissing, BlobsAway
from gateway.dependency import DependencyBusy
from gateway.door.noted import note_reason
from gateway.errors import ApiError, unavailable
from gateway.store.store import StoreAway

_AWAY: tuple[tuple[type[Exception], str, int], ...] = (
    (StoreAway, "store_away", 5),
    (BlobsAway, "store_away", 5),
    (DependencyBusy, "busy", 5),
    (IssuerAway, "issuer_away", 30),
)
"""Errors that pass by themselves: each gets status 503 with this code, and `Retry-After` with these seconds."""
REFUSALS: Final[tuple[type[Exception], ...]] = (ApiError, BlobMissing, *(kind for kind, _, _ in _AWAY))
"""The errors of routes that refuse a request; any other error is a defect."""


def add_handlers(app: Starlette) -> None:
    """Register the handlers for the errors that routes raise."""
    for kind in REFUSALS:
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _defect)


def error_response(error: ApiError, request: Request | None = None) -> JSONResponse:
    """Return the response of a refusal, whose code goes into the audit line of the request."""
    if request is not None:
        note_reason(request, error.code)
    return JSONResponse(error.body, error.status, headers=dict(error.headers))


def defect_response() -> JSONResponse:
    """Return the 500 of an error that no handler knows."""
    message = "The request failed in the gateway; repeat it, and report its x-request-id if it fails again."
    return error_response(ApiError(500, "internal_error", message))


def refusal_of(error: Exception) -> ApiError:
    """Return the refusal of a request by one of REFUSALS."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BlobMissing):
        return ApiError(404, "content_missing", "The storage has lost the file's content; upload the file again.")
    code, seconds = next((code, seconds) for kind, code, seconds in _AWAY if isinstance(error, kind))
    return unavailable(code, f"{error}; repeat the request.", seconds)


async def _refused(request: Request, error: Exception) -> Response:
    return error_response(refusal_of(error), request)


async def _http(request: Request, error: Exception) -> Response:
    """Answer for a path or a method that no route has."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    method, path = request.method, request.scope["path"]
    allowed = ", ".join(_allowed(request.app.router.routes, request.scope))
    if method == "OPTIONS" and (allowed or path == "*"):
        return Response(status_code=204, headers={"allow": allowed or "GET, HEAD, POST, DELETE, OPTIONS"})
    if error.status_code == 404:
        return error_response(ApiError(404, "unknown_url", f"The API has no URL {method} {path!r}."), request)
    if error.status_code == 405:
        message = f"The URL {path!r} does not take {method}, only {allowed}."
        return error_response(ApiError(405, "method_not_supported", message, headers={"allow": allowed}), request)
    headers = dict(error.headers or {})
    return error_response(
        ApiError(error.status_code, f"http_{error.status_code}", str(error.detail), headers=headers), request
    )


def _allowed(routes: Sequence[BaseRoute], scope: object) -> list[str]:
    """Return the methods of all routes with the request's path. Starlette's 405 names one route's methods only."""
    assert isinstance(scope, dict)  # noqa: S101 - Starlette's scopes are dicts
    methods: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.methods and route.matches(scope)[0] is not Match.NONE:
            methods |= route.methods
    return sorted(methods | {"OPTIONS"}) if methods else []


async def _defect(_request: Request, _error: Exception) -> Response:
    return defect_response()
