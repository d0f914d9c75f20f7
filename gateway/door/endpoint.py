"""An endpoint of the API as data, its route, and the call that its handler gets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.access import Principal, Scope
from gateway.door import query
from gateway.door.body import json_response, parse_json, read_body
from gateway.door.door import PEER, Door
from gateway.door.noted import note_action
from gateway.errors import validated

P = ParamSpec("P")
T = TypeVar("T")

JSON = "application/json"
_CONVERTER = re.compile(r":[a-z]+\}")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a query or a header field."""

    name: str
    meaning: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request."""

    schema: str | type[BaseModel]
    """The model that reads the body, or the name of a schema of the OpenAPI document."""
    most_bytes: int | None = None
    """The maximum size; None for the setting `body_bytes`, or if the handler reads a form itself."""
    media_type: str = JSON
    required: bool = True
    """False if an empty body means an object without members."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to an endpoint, from a principal that has the endpoint's scope.

    A form of the console page is a call too: its fields are given in place of a path and a body.
    """

    door: Door
    request: Request
    principal: Principal
    _body: Body | None = None
    path: Mapping[str, Any] | None = None
    given: Any = None

    @property
    def tenant(self) -> str:
        """The principal's tenant."""
        return self.principal.tenant

    def in_path(self, name: str) -> str:
        """Return a parameter of the path."""
        return str((self.request.path_params if self.path is None else self.path)[name])

    async def read(self, query: Callable[Concatenate[Connection, str, P], T], *of: P.args, **named: P.kwargs) -> T:
        """Run a query of the tenant's rows. Raises the query's own error, and StoreAway."""
        return await self.door.store.read(lambda connection: query(connection, self.tenant, *of, **named))

    async def write(self, change: Callable[Concatenate[Connection, str, P], T], *of: P.args, **named: P.kwargs) -> T:
        """Run a change of the tenant's rows. Raises the change's own error, and StoreAway."""
        return await self.door.store.write(lambda connection: change(connection, self.tenant, *of, **named))

    async def require_credential(self) -> None:
        """Raise CredentialRefused if the credential has ended since the request began; StoreAway and IssuerAway.

        This is for answers that last: the request is not counted again.
        """
        access = self.door.access
        await access.principal(access.parsed(self.request.headers.get("authorization")), self.request.scope.get(PEER))

    async def content(self) -> bytes:
        """Read the whole body. Raises ApiError (400, 408, 413, 415, 503) and ClientDisconnect."""
        most = None if self._body is None else self._body.most_bytes
        return await read_body(self.request, self.door.settings.body_bytes if most is None else most)

    async def body(self) -> Any:
        """Read the body: return an instance of the endpoint's model, or JSON if the endpoint names a schema only.

        Raises what `content` raises, and ApiError (400), which names the field and repeats no input.
        """
        document, body = self.given, self._body
        if document is None:
            content = await self.content()
            document = {} if body is not None and not body.required and not content else parse_json(content)
        if body is None or isinstance(body.schema, str):
            return document
        return validated(body.schema, document)


Answer = ASGIApp | dict[str, Any]
"""A handler's answer: a response, or the JSON of one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path: a row of the table in `api`."""

    method: str
    path: str
    """The path as Starlette reads it, such as `/v1/jobs/{job_id:path}`."""
    handler: Callable[[Call], Awaitable[Answer]]
    name: str
    """The id of the OpenAPI operation, and the action in the audit."""
    scope: Scope
    """The scope that the credential needs."""
    answer: str | None
    """The name of the answer's schema; None for an answer that is not JSON."""
    body: Body | None = None
    parameters: tuple[Parameter, ...] = ()
    """If a parameter of the query is among them, unknown ones are refused."""
    status: int = 200
    _: KW_ONLY
    answer_type: str = JSON
    summary: str | None = None
    """The operation in a phrase; by default the first sentence of the handler's docstring."""
    prefix: str | None = None
    """Parameters of the query that begin with it are known, too."""
    ignores_unknown: bool = False
    """True if unknown parameters of the query are ignored, since OpenAI's clients send more than the endpoint reads."""

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it, such as `/v1/jobs/{job_id}`."""
        return _CONVERTER.sub("}", self.path)

    @property
    def described(self) -> tuple[str, str]:
        """The operation in a phrase, and more about it: the docstring of the handler."""
        summary, _, about = " ".join((inspect.getdoc(self.handler) or "").split()).partition(". ")
        return self.summary or summary.removesuffix("."), about

    def route(self, door: Door) -> Route:
        """Return the route, which admits the request before it reads anything else of it."""
        names = () if self.ignores_unknown else tuple(each.name for each in self.parameters if each.place == "query")

        async def serve(request: Request) -> ASGIApp:
            if request.method == self.method:  # Starlette also serves HEAD, which has no line in the audit
                note_action(request, self.name)
            principal = await door.principal(request, self.scope)
            if names:
                query.only(request, names, self.prefix)
            answer = await self.handler(Call(door, request, principal, self.body))
            return json_response(answer) if isinstance(answer, dict) else answer

        return Route(self.path, serve, methods=[self.method])


PAGING = (
    Parameter("limit", "The maximum number of objects.", {"type": "integer", "minimum": 1, "maximum": 100}),
    Parameter("after", "The id of the last object of the previous page."),
    Parameter("order", "The order by time of creation.", {"enum": ["asc", "desc"]}),
)
IDEMPOTENCY = Parameter(
    "Idempotency-Key",
    "A repeat with the same key and body gets the first answer; another body is a 409.",
    {"type": "string", "pattern": r"^[\x21-\x7e]{1,256}$"},
    "header",
)
