"""`/openapi.json` and `/docs`: the description of the API, for programs and for people. They need no credential."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway.door.door import Door
from gateway.door.openapi import openapi_document

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2.5rem; font-size: 1.1rem; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, monospace; font-size: .9rem; }
pre { overflow-x: auto; border: 1px solid; padding: .75rem; border-radius: .25rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid; }
nav li { overflow-wrap: anywhere; }
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_CONTENT_POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; frame-ancestors 'none'; base-uri 'none'"
"""The page's Content-Security-Policy: it allows this page's style sheet, and nothing else."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ document.info.title }} API</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ document.info.title }} API</h1>
<p>{{ document.info.description }}</p>
<p>The same as <a href="openapi.json">OpenAPI document</a>.</p>
<nav><ul>
{% for path, methods in document.paths.items() %}{% for method, operation in methods.items() -%}
<li><a href="#{{ operation.operationId }}"><code>{{ method | upper }} {{ path }}</code></a> {{ operation.summary }}</li>
{% endfor %}{% endfor %}
</ul></nav>
<main>
{% for path, methods in document.paths.items() %}{% for method, operation in methods.items() -%}
<h2 id="{{ operation.operationId }}"><code>{{ method | upper }} {{ path }}</code></h2>
<p>{{ operation.summary }}. {{ operation.description }}</p>
{% if operation.parameters -%}
<table>
<tr><th>Parameter</th><th>In</th><th>Meaning</th></tr>
{% for parameter in operation.parameters -%}
<tr><td><code>{{ parameter.name }}</code></td><td>{{ parameter["in"] }}</td><td>{{ parameter.description }}</td></tr>
{% endfor %}
</table>
{% endif -%}
{% if operation.requestBody %}{% for kind, content in operation.requestBody.content.items() -%}
<p>Body, {{ kind }}: <a href="#{{ content.schema["$ref"] | name }}">{{ content.schema["$ref"] | name }}</a></p>
{% endfor %}{% endif -%}
{% for status, answer in operation.responses.items() %}{% for kind, content in (answer.content or {}).items() -%}
<p>Answer {{ status }}, {{ kind }}{% if content.schema["$ref"] %}:
<a href="#{{ content.schema["$ref"] | name }}">{{ content.schema["$ref"] | name }}</a>{% endif %}</p>
{% endfor %}{% endfor %}
{% endfor %}{% endfor %}
<h1>Schemas</h1>
{% for name, schema in document.components.schemas.items() -%}
<h2 id="{{ name }}">{{ name }}</h2>
<pre>{{ schema | shown }}</pre>
{% endfor %}
</main>
</body>
</html>
"""


def routes(door: Door) -> list[Route]:
    """Return the routes of the description."""

    async def as_json(request: Request) -> Response:
        await door.visit(request)
        return Response(_described()[0], media_type="application/json")

    async def as_page(request: Request) -> Response:
        await door.visit(request)
        return HTMLResponse(_described()[1], headers={"content-security-policy": _CONTENT_POLICY})

    return [Route("/openapi.json", as_json), Route("/docs", as_page)]


@cache
def _described() -> tuple[bytes, str]:
    """Return the document and the page, which are made at the first request and kept."""
    described = openapi_document()
    return to_json(described), _page(described)


def _page(document: dict[str, Any]) -> str:
    """Return the document as HTML, without scripts and without resources of other hosts. All texts are escaped."""
    from jinja2 import Environment  # most gateways show no page

    environment = Environment(autoescape=True)
    environment.filters["name"] = lambda place: place.rpartition("/")[2]
    environment.filters["shown"] = lambda schema: json.dumps(schema, indent=2, ensure_ascii=False)
    return environment.from_string(_PAGE).render(document=document, style=_STYLE)
