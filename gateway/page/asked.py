"""Reads the queries and forms of pages. Browsers send empty fields too; an empty field counts as absent."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from starlette.requests import Request

from gateway.door.routes.jobs import METADATA
from gateway.errors import ApiError

_LABEL = "metadata"


def asked(request: Request) -> Request:
    """Return the request with a query as the API takes it: no empty fields, and one parameter for each metadata key."""
    said: list[tuple[str, str]] = []
    for name, value in request.query_params.multi_items():
        if not value:
            continue
        if name == _LABEL:
            key, equals, wanted = value.partition("=")
            if not equals:
                raise ApiError(400, "invalid_parameter", "metadata: write the key and its value as `key=value`.")
            name, value = f"{METADATA}{key}", wanted
        said.append((name, value))
    return Request({**request.scope, "query_string": urlencode(said).encode()})


def identifier_of(said: Mapping[str, str], kind: str) -> str:
    """Return the field `id`. Raises ApiError (404) if the field is absent or empty."""
    identifier = said.get("id")
    if not identifier:
        raise ApiError(404, f"{kind}_not_found", f"The address names no {kind}.")
    return identifier
