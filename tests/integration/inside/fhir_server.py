"""A FHIR R4 server on loopback: search of Observation and DocumentReference, with paging and bearer tokens.

The server follows https://hl7.org/fhir/R4/search.html: results are a `searchset` Bundle, `next` links are opaque, and
failures are OperationOutcomes. The server refuses an unknown search parameter (`handling=strict`).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "fhir-token-8a1c"
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
        kind = request.match_info["kind"]
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
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
    app = web.Application()
    app.router.add_get("/r4/{kind}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = "http://{}:{}".format(*runner.addresses[0][:2])
    try:
        yield server
    finally:
        await runner.cleanup()
