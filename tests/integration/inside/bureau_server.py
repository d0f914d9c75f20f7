"""A credit bureau on loopback: one POST with a JSON body returns a person's report.

Like the bureaus' own APIs, the server knows its subscribers by a key in a header, gives each subscriber a report only
for the purposes of its contract, refuses unknown fields, and answers a person without a file with an empty report.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

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
