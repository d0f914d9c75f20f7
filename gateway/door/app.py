"""The ASGI application: routes, errors in OpenAI's shape, and a request id in every answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.batches.refused import Refused
from gateway.blobs.base import BlobMissing, BlobsAway
from gateway.door.door import Door
from gateway.door.errors import ApiError
from gateway.door.routes import files, models
from gateway.store.store import StoreAway

REQUEST_ID = "x-request-id"

ROUTES = (files.routes, models.routes)
"""The routes of each file in `routes/`."""


def create_app(door: Door) -> ASGIApp:
    """Return the application. The caller runs it on a server."""
    app = FastAPI(title="Postback", docs_url=None, redoc_url=None)
    for make in ROUTES:
        made: Sequence[BaseRoute] = make(door)
        app.router.routes.extend(made)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(StoreAway, _away)
    app.add_exception_handler(BlobsAway, _away)
    app.add_exception_handler(BlobMissing, _content_missing)
    app.add_exception_handler(Refused, _refused_by_batches)
    app.add_exception_handler(HTTPException, _http)
    return RequestIds(app)


class RequestIds:
    """Pure ASGI middleware: an `x-request-id` in every answer, and in the scope for logs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identifier = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = identifier

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = identifier
            await send(message)

        await self._app(scope, receive, with_id)


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for this class
    return JSONResponse(error.body, error.status, headers=dict(error.headers))


async def _away(_request: Request, error: Exception) -> JSONResponse:
    refused = ApiError(503, "store_away", f"{error}; repeat the request.", headers={"retry-after": "5"})
    return JSONResponse(refused.body, refused.status, headers=dict(refused.headers))


async def _refused_by_batches(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)  # noqa: S101 - registered for this class
    return JSONResponse(ApiError(error.status, error.code, error.message, param=error.param).body, error.status)


async def _content_missing(_request: Request, _error: Exception) -> JSONResponse:
    refused = ApiError(404, "content_missing", "The storage has lost the file's content; upload the file again.")
    return JSONResponse(refused.body, refused.status)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    refused = ApiError(error.status_code, f"http_{error.status_code}", str(error.detail))
    return JSONResponse(refused.body, refused.status, headers=dict(error.headers or {}))
