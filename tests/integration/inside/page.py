"""The files of docs/howto/inside-sources.md in a folder, with the addresses of a test's servers."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from schemas.job import Search
from tests.integration.search_services import CLOCK
from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.providers import providers
from workers.enrichment.search.searches import Searches
from workers.enrichment.search.service import Web
from workers.enrichment.settings import SearchSettings

PAGE = (Path(__file__).parents[3] / "docs" / "howto" / "inside-sources.md").read_text()
_FILES = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NAMES = ("labs", "letters", "bureau", "graph", "guidelines", "notes")
SECRETS = {
    "token": "clinic.token",
    "password": "clinic.password",
    "key": "bank.key",
    "insurers_key": "insurer.key",
    "graph_token": "bank.token",
}


def written(folder: Path, name: str, changes: dict[str, str], **secrets: str) -> Path:
    """Write one of the page's files and its secrets into the folder; return the folder."""
    text: str = dict(zip(NAMES, _FILES, strict=True))[name]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.toml").write_text(text)
    for secret, value in secrets.items():
        (folder / SECRETS[secret]).write_text(f"{value}\n")
    return folder


def job_of_the_page() -> dict[str, Any]:
    """The job that the page shows."""
    [text] = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    job: dict[str, Any] = json.loads(text)
    return job


class Asking:
    """The searches that a worker would run; the test calls them itself."""

    def __init__(self, searches: Searches) -> None:
        self._searches = searches

    async def found(self, search: dict[str, Any], tenant: str = "clinic") -> list[Found]:
        """The results of a search of this tenant."""
        return list((await self._searches.find(Search.model_validate(search), tenant)).found)

    async def failure(self, search: dict[str, Any], tenant: str = "clinic") -> str:
        """The reason for which a search fails."""
        try:
            await self.found(search, tenant)
        except Unreadable as reason:
            return str(reason)
        raise AssertionError("the search did not fail")


@asynccontextmanager
async def asking(folder: Path) -> AsyncIterator[Asking]:
    """Searches of the sources whose files lie in this folder."""
    web = Web("Postback-tests/1", CLOCK)
    await web.start()
    try:
        made = providers(SearchSettings.model_validate({"providers": folder}), web, [])
        yield Asking(Searches(made, 30.0, 600.0, CLOCK))
    finally:
        await web.close()
