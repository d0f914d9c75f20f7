"""`/openapi.json` and `/docs`: the description of the API, for programs and for people. They need no credential."""

from __future__ import annotations

from functools import cache

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.door.door import Door
from gateway.door.openapi.document import openapi_document
from gateway.door.openapi.page import CONTENT_POLICY, openapi_page


def routes(door: Door) -> list[BaseRoute]:
    """Return the routes of the description."""

    async def as_json(request: Request) -> Response:
        await door.visit(request)
        return Response(_described()[0], media_type="application/json")

    async def as_page(request: Request) -> Response:
        await door.visit(request)
        return HTMLResponse(_described()[1], headers={"content-security-policy": CONTENT_POLICY})

    return [Route("/openapi.json", as_json), Route("/docs", as_page)]


@cache
def _described() -> tuple[bytes, str]:
    """Return the document and the page, which are made at the first request and kept."""
    described = openapi_document()
    return to_json(described), openapi_page(described)
