"""The console's style sheet, scripts and icon.

Each file's address has a hash of the content, so browsers may keep the file for ever.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = "/console/static"
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class StaticFile(NamedTuple):
    """One file, and its type."""

    content: bytes
    media_type: str
    digest: str


@cache
def _file(name: str) -> StaticFile:
    content = files("gateway.page").joinpath("static", name).read_bytes()
    return StaticFile(content, _TYPES[name.rpartition(".")[2]], hashlib.sha256(content).hexdigest()[:16])


NAMES = ("console.css", "console.js", "htmx.min.js", "icon.svg")


def address_of(name: str) -> str:
    """Return a file's address."""
    return f"{_FOLDER}/{_file(name).digest}/{name}"


def static_routes() -> list[Route]:
    """Return the routes of the files, which need no credential."""

    async def serve(request: Request) -> Response:
        file = _file(request.url.path.rpartition("/")[2])
        headers = {
            "cache-control": "public, max-age=31536000, immutable",
            "cross-origin-resource-policy": "same-origin",
        }
        return Response(file.content, headers=headers, media_type=file.media_type)

    return [Route(address_of(name), serve) for name in NAMES]
