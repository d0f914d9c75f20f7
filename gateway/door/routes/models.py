"""`GET /v1/models`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from gateway.access import Scope
from gateway.door.door import Door


def routes(door: Door) -> list[BaseRoute]:
    """Return the routes of models."""

    async def list_models(request: Request) -> JSONResponse:
        await door.principal(request, Scope.READ)
        return JSONResponse({"object": "list", "data": []})

    return [Route("/v1/models", list_models)]
