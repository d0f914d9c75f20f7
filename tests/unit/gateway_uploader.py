"""A client of `/v1/uploads` over the application."""

from __future__ import annotations

from typing import Any

import httpx

from tests.unit.gateway_rig import Rig

TERMS = {"bytes": 3, "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}


class Uploader:
    """A client of one tenant."""

    def __init__(self, rig: Rig, tenant: str = "acme") -> None:
        self.rig = rig
        self.key = rig.key(tenant)

    async def post(self, path: str, **arguments: Any) -> httpx.Response:
        return await self.rig.request("POST", f"/v1/uploads{path}", self.key, **arguments)

    async def create(self, size: int, **changes: Any) -> httpx.Response:
        return await self.post("", json={**TERMS, "bytes": size, **changes})

    async def begun(self, size: int, **changes: Any) -> str:
        answer = await self.create(size, **changes)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def add(self, upload_id: str, data: bytes) -> httpx.Response:
        return await self.post(f"/{upload_id}/parts", files={"data": ("upload", data)})

    async def added(self, upload_id: str, *contents: bytes) -> list[str]:
        answers = [await self.add(upload_id, content) for content in contents]
        assert [answer.status_code for answer in answers] == [200] * len(contents), answers[-1].text
        return [answer.json()["id"] for answer in answers]

    async def complete(self, upload_id: str, part_ids: list[str], **changes: Any) -> httpx.Response:
        return await self.post(f"/{upload_id}/complete", json={"part_ids": part_ids, **changes})

    async def files(self) -> list[dict[str, Any]]:
        return list((await self.rig.request("GET", "/v1/files", self.key)).json()["data"])

    async def content(self, file_id: str) -> bytes:
        return (await self.rig.request("GET", f"/v1/files/{file_id}/content", self.key)).content


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]
