"""A SPARQL endpoint on loopback: Oxigraph, a SPARQL 1.1 database, behind a bearer token.

The server follows https://www.w3.org/TR/sparql11-protocol/ for queries by GET: a query that is not SPARQL gets 400, and
a request that accepts no SPARQL results in JSON gets 406.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from pyoxigraph import QueryResultsFormat, QuerySolutions, RdfFormat, Store

from tests.integration.search_services import served

TOKEN = "graph-token-2b9f"
LEI = "5299000J2N45DDNE4Y28"
RESULTS = "application/sparql-results+json"
COMPANIES = f"""
PREFIX g: <https://graph.bank.example/terms#>
PREFIX id: <https://graph.bank.example/id/>
PREFIX rdfs: <http://www.w3.org/2000/01/rdf-schema#>
g:ownedBy rdfs:label "is owned by" .
g:supplies rdfs:label "supplies" .
id:halvorsen g:lei "{LEI}" ; rdfs:label "Halvorsen Steel" ; g:ownedBy id:vesla ; g:supplies id:bridge .
id:vesla g:lei "5299000J2N45DDNE4Y29" ; rdfs:label "Vesla Holding" ; g:ownedBy id:nordfjord .
id:bridge rdfs:label "Tårnby Bridges" .
id:nordfjord rdfs:label "Nordfjord Trust" .
"""


@dataclass(slots=True)
class SparqlEndpoint:
    """The graph, and the queries that were asked."""

    store: Store = field(default_factory=Store)
    url: str = ""
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401, text=f"unknown: {request.headers.get('Authorization')}")
        if RESULTS not in request.headers.get("Accept", ""):
            return web.Response(status=406, text=f"only {RESULTS}")
        self.asked.append(request.query.get("query", ""))
        try:
            found = self.store.query(self.asked[-1])
        except SyntaxError as error:
            return web.Response(status=400, text=str(error))
        assert isinstance(found, QuerySolutions)
        return web.Response(body=found.serialize(format=QueryResultsFormat.JSON), headers={"Content-Type": RESULTS})


@asynccontextmanager
async def sparql() -> AsyncIterator[SparqlEndpoint]:
    """An endpoint with a graph of four companies on a free port."""
    server = SparqlEndpoint()
    server.store.load(input=COMPANIES, format=RdfFormat.TURTLE)
    async with served(server.answer) as server.url:
        yield server
