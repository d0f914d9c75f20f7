"""Servers of inside sources on loopback: a credit bureau, a FHIR server, a SPARQL endpoint, and an MCP server."""

from __future__ import annotations

import asyncio
import socket
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from aiohttp import web
from mcp.server.mcpserver import MCPServer
from mcp_types import BlobResourceContents, EmbeddedResource, TextContent
from pyoxigraph import QueryResultsFormat, QuerySolutions, RdfFormat, Store
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.integration.search_services import served

BANKS_KEY, INSURERS_KEY = "bureau-key-4d1e", "bureau-key-77c0"
_PURPOSES = {BANKS_KEY: {"credit", "collection"}, INSURERS_KEY: {"underwriting"}}
_FIELDS = {"person": str, "purpose": str, "most": int}
PERSON = "01019012345"
SCORE = {"id": "S1", "model": "Risk score", "value": 612, "date": "2026-02-01"}
LOAN = {
    "id": "A7",
    "kind": "Car loan",
    "lender": "Vesla Bank",
    "standing": "two instalments overdue",
    "balance": {"amount": 18250, "currency": "EUR"},
    "date": "2026-01-15T09:30:00Z",
}


@dataclass(slots=True)
class CreditBureau:
    """The bureau's reports by person, and the bodies of its requests."""

    reports: dict[str, dict[str, Any]]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        if (request.method, request.path) != ("POST", "/v1/reports"):
            return _error(404, "no such resource")
        purposes = _PURPOSES.get(request.headers.get("X-Api-Key", ""))
        if purposes is None:
            return _error(401, f"the key {request.headers.get('X-Api-Key')} is unknown")
        if request.content_type != "application/json":
            return _error(415, "send application/json")
        body = await request.json()
        self.asked.append(body)
        if {name: type(value) for name, value in body.items()} != _FIELDS:
            return _error(400, "the body needs exactly person, purpose and most")
        if body["purpose"] not in purposes:
            return _error(403, "your contract does not cover this purpose")
        report = self.reports.get(body["person"], {"scores": [], "accounts": []})
        accounts = report["accounts"][: body["most"]]
        return web.json_response({"request": "R-1", "report": {**report, "accounts": accounts}})


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": {"message": text}}, status=status)


@asynccontextmanager
async def bureau() -> AsyncIterator[CreditBureau]:
    """A bureau with a report about one person on a free port."""
    server = CreditBureau({PERSON: {"scores": [SCORE], "accounts": [LOAN]}})
    async with served(server.answer) as server.url:
        yield server


FHIR_TOKEN = "fhir-token-8a1c"
_KNOWN = {"Observation": {"patient", "code:text", "_sort", "_count", "_offset"}}
_KNOWN["DocumentReference"] = _KNOWN["Observation"] - {"code:text"}
_DATES = {"Observation": "effectiveDateTime", "DocumentReference": "date"}
Resource = dict[str, Any]


def observation(number: str, patient: str, name: str, value: float, unit: str, date: str) -> Resource:
    return {
        "resourceType": "Observation",
        "id": number,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}], "text": name},
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": date,
        "valueQuantity": {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit},
    }


def letter(number: str, patient: str, title: str, date: str, media_type: str, data: bytes) -> Resource:
    return {
        "resourceType": "DocumentReference",
        "id": number,
        "status": "current",
        "subject": {"reference": f"Patient/{patient}"},
        "date": date,
        "description": title,
        "content": [{"attachment": {"contentType": media_type, "data": b64encode(data).decode()}}],
    }


@dataclass(slots=True)
class FhirServer:
    """The server's records and requests. `most` is the server's own cap on the records of a page."""

    records: list[Resource]
    most: int = 50
    url: str = ""
    asked: list[web.Request] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        kind = request.path.removeprefix("/r4/")
        if request.headers.get("Authorization") != f"Bearer {FHIR_TOKEN}":
            return self._outcome(401, "login", f"the token {request.headers.get('Authorization')} is unknown")
        if unknown := request.query.keys() - _KNOWN.get(kind, set()):
            return self._outcome(400, "not-supported", f"unknown: {', '.join(sorted(unknown))}")
        found = [one for one in self.records if one["resourceType"] == kind and self._matches(one, request)]
        found.sort(key=lambda one: str(one[_DATES[kind]]), reverse=request.query.get("_sort") == "-date")
        start, count = int(request.query.get("_offset", "0")), min(self.most, int(request.query.get("_count", "20")))
        links = [{"relation": "self", "url": f"{self.url}{request.rel_url}"}]
        if start + count < len(found):
            following = request.rel_url.update_query({"_offset": str(start + count)})
            links.append({"relation": "next", "url": f"{self.url}{following}"})
        entries = [
            {"fullUrl": f"{self.url}/r4/{kind}/{one['id']}", "resource": one, "search": {"mode": "match"}}
            for one in found[start : start + count]
        ]
        bundle = {"resourceType": "Bundle", "type": "searchset", "total": len(found), "link": links}
        return self._json({**bundle, **({"entry": entries} if entries else {})}, 200)

    @staticmethod
    def _matches(one: Resource, request: web.Request) -> bool:
        subject = f"Patient/{request.query.get('patient', '')}"
        text = request.query.get("code:text", "").lower()
        return one["subject"]["reference"] == subject and text in str(one.get("code", {}).get("text", "")).lower()

    def _outcome(self, status: int, code: str, text: str) -> web.Response:
        issue = {"severity": "error", "code": code, "diagnostics": text}
        return self._json({"resourceType": "OperationOutcome", "issue": [issue]}, status)

    @staticmethod
    def _json(value: object, status: int) -> web.Response:
        response = web.json_response(value, status=status)
        response.headers["Content-Type"] = "application/fhir+json; fhirVersion=4.0"
        return response


@asynccontextmanager
async def fhir(*records: Resource, most: int = 50) -> AsyncIterator[FhirServer]:
    """A FHIR server with these records on a free port."""
    server = FhirServer(list(records), most)
    async with served(server.answer) as server.url:
        yield server


GRAPH_TOKEN = "graph-token-2b9f"
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
        if request.headers.get("Authorization") != f"Bearer {GRAPH_TOKEN}":
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


NOTES_TOKEN = "mcp-token-77e2"


def clinic_notes() -> MCPServer:
    """A server with tools that search notes."""
    server = MCPServer("notes")

    @server.tool()
    def search_notes(text: str, most: int) -> list[TextContent | EmbeddedResource]:
        """Search notes."""
        html = "PHA+VGhlIHBhdGllbnQgcmVmdXNlcyA8Yj5kaWFseXNpczwvYj4uPC9wPg=="
        blob = BlobResourceContents(uri="note://7", mime_type="text/html", blob=html)
        blocks: list[TextContent | EmbeddedResource] = [
            TextContent(type="text", text=f"The patient asked for {text}."),
            EmbeddedResource(type="resource", resource=blob),
            TextContent(type="text", text="The patient sleeps."),
        ]
        return blocks[:most]

    @server.tool()
    def list_notes(text: str) -> dict[str, Any]:
        """Find notes as structured data."""
        return {"notes": [{"number": 3, "note": f"Dialysis was begun: {text}", "day": "2025-04-01"}]}

    @server.tool()
    def broken() -> str:
        """Fail."""
        raise RuntimeError(f"a defect with {NOTES_TOKEN}")

    return server


def _guarded(app: ASGIApp) -> ASGIApp:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        allowed = [(b"authorization", f"Bearer {NOTES_TOKEN}".encode())]
        if scope["type"] == "http" and not {*allowed} & {*scope["headers"]}:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await app(scope, receive, send)

    return guarded


@asynccontextmanager
async def mcp_server(server: MCPServer | None = None, *, stateless: bool = False) -> AsyncIterator[str]:
    """Serve on a free port; yield the origin."""
    app = _guarded((server or clinic_notes()).streamable_http_app(stateless_http=stateless))
    config = uvicorn.Config(app, log_config=None, lifespan="on", ws="none")
    listening = socket.create_server(("127.0.0.1", 0))
    serving = uvicorn.Server(config)
    task = asyncio.create_task(serving.serve([listening]))
    try:
        while not serving.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        serving.should_exit = True
        await task
        listening.close()
