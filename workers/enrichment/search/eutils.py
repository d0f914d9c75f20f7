"""NCBI's E-utilities (https://www.ncbi.nlm.nih.gov/books/NBK25497/). Each request identifies its caller."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from workers.enrichment.evidence import Unreadable
from workers.enrichment.search.service import Refused, Service, ServiceAnswer
from workers.enrichment.search.settings import PubmedSettings

TOOL: Final = "postback"


class EUtils:
    """A client for all E-utilities at one pace: NCBI's limit per address or key covers all utilities together."""

    def __init__(self, service: Service, settings: PubmedSettings, email: str | None) -> None:
        self._service = service
        self._common = {"db": "pubmed", "tool": TOOL}
        if email is not None:
            self._common["email"] = email
        if settings.api_key is not None:
            self._common["api_key"] = settings.api_key.get_secret_value()

    async def turn(self, *, behind: int = 0) -> None:
        """See `Service.turn`."""
        await self._service.turn(behind=behind)

    async def get(self, utility: str, params: dict[str, str], *, has_turn: bool = False) -> ServiceAnswer:
        """Return the answer of a utility such as `esearch`. Raises Unreadable."""
        try:
            return await self._service.get(self._common | params, path=f"/{utility}.fcgi", has_turn=has_turn)
        except Refused as refused:
            if refused.answer.status == HTTPStatus.BAD_REQUEST and b"API key" in refused.answer.body:
                raise Unreadable("the search service refuses the operator's key") from None
            raise
