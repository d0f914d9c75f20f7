"""Sources of `kind = "mcp"`: a tool of an MCP server, called by the official SDK (https://modelcontextprotocol.io).

Each search has a session of its own, over the transport Streamable HTTP.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import BlobResourceContents, CallToolResult, EmbeddedResource, TextContent, TextResourceContents
from pydantic import ValidationError

from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.base import SearchQuery
from workers.enrichment.search.inside import REFUSED_KEY, InsideSource, Items, McpFile, filled, filled_value
from workers.enrichment.search.service import KEY_REFUSED, MAX_ANSWER_BYTES, REQUEST_SECONDS, RequestPace, Web

for _chatty in ("mcp", "httpx2"):
    logging.getLogger(_chatty).setLevel(logging.CRITICAL)  # below this level, these libraries log answers and addresses


class McpSource(InsideSource):
    """Implements `SearchProvider`."""

    def __init__(self, name: str, file: McpFile, folder: Path, web: Web) -> None:
        super().__init__(name, file, folder)
        self._file = file
        self._pace = RequestPace(web.clock, 1 / file.per_second)
        self._items = Items(file.read) if file.read is not None else None

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`. If the file has no `read`, each content block with text or a resource is a result."""
        values = self.values_of(query)
        known = self._with_secrets(query, values)
        headers = {name: filled(text, known) for name, text in self._file.headers.items()}
        await self._pace.turn()
        transport = _BoundedTransport()
        try:
            async with httpx2.AsyncClient(
                transport=transport, headers=headers, timeout=REQUEST_SECONDS, trust_env=False
            ) as http:
                result = await self._called(http, filled_value(self._file.arguments, values))
        except (MCPError, httpx2.HTTPError, ExceptionGroup, OSError, ValidationError, ValueError):
            raise Unreadable(transport.reason) from None
        return [one for one in map(self.result_of, self._parts(result)) if one is not None][: query.limit]

    async def _called(self, http: httpx2.AsyncClient, arguments: dict[str, Any]) -> CallToolResult:
        connection = streamable_http_client(self._file.url, http_client=http, max_sse_event_size=MAX_ANSWER_BYTES)
        async with Client(connection, read_timeout_seconds=REQUEST_SECONDS, cache=None) as client:
            return await client.call_tool(self._file.tool, arguments)

    def _parts(self, result: CallToolResult) -> list[dict[str, Any]]:
        if result.is_error:
            raise Unreadable("the MCP server's tool reports an error")
        if self._items is None:
            return [read for block in result.content if (read := _block(block))]
        if result.structured_content is not None:
            return self._items.of(result.structured_content)
        text = next((block.text for block in result.content if isinstance(block, TextContent)), "")
        try:
            return self._items.of(json.loads(text))
        except (ValueError, RecursionError):
            raise Unreadable("the MCP server's tool answers with other content than JSON") from None


def _block(block: object) -> dict[str, Any]:
    """Return the parts of a content block; an empty dict for pictures, sounds and links."""
    if isinstance(block, TextContent):
        return {"text": block.text}
    if isinstance(block, EmbeddedResource):
        resource = block.resource
        parts = {"id": resource.uri, "media_type": resource.mime_type}
        if isinstance(resource, TextResourceContents):
            return {**parts, "text": resource.text}
        if isinstance(resource, BlobResourceContents):
            return {**parts, "content": resource.blob}
    return {}


class _BoundedTransport(httpx2.AsyncHTTPTransport):
    """A transport that refuses large and compressed answers, and remembers the reason of a failure."""

    def __init__(self) -> None:
        super().__init__()
        self.reason = "the MCP server could not be reached"

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["Accept-Encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.status_code in KEY_REFUSED:
            self.reason = REFUSED_KEY
        elif not response.is_success:
            self.reason = f"the MCP server answered {response.status_code}"
        else:
            self.reason = "the MCP server's answer broke off or is not MCP"
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise httpx2.DecodingError("the answer is compressed", request=request)
        response.stream = _BoundedStream(response.stream)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MAX_ANSWER_BYTES
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise httpx2.ReadError("the answer is too large")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
