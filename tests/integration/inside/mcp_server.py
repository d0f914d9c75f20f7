"""An MCP server of the official SDK on loopback, behind a bearer token."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp_types import BlobResourceContents, EmbeddedResource, TextContent
from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN = "mcp-token-77e2"


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
        raise RuntimeError(f"a defect with {TOKEN}")

    return server


def _guarded(app: ASGIApp) -> ASGIApp:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        allowed = [(b"authorization", f"Bearer {TOKEN}".encode())]
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
