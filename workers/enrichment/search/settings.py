"""Settings of search, read from `POSTBACK_SEARCH__…`, for example `POSTBACK_SEARCH__BRAVE__API_KEY`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

from schemas.settings import Constants, RoomSettings

PUBMED_PER_SECOND: Final = 3.0
PUBMED_PER_SECOND_WITH_KEY: Final = 10.0
"""NCBI's limits without a key and with one (A General Introduction to the E-utilities, "Frequency")."""

BaseUrl = Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]


class _SearchSection(Constants):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    per_second: float | None = None
    """The maximum number of requests in a second that the service allows, or takes without harm."""


class SearxngSettings(_SearchSection):
    """A SearXNG instance with `json` among its `search.formats`."""

    base_url: BaseUrl | None = None
    """The instance's URL, without `/search`. Without a URL, jobs cannot use SearXNG."""
    per_second: float = 10.0


class WikipediaSettings(_SearchSection):
    """Wikipedia, or any MediaWiki with CirrusSearch."""

    base_url: BaseUrl = "https://en.wikipedia.org/w/api.php"
    """URL of the wiki's `api.php`; the language is part of the URL."""
    per_second: float = 5.0


class _PubmedConstants(_SearchSection):
    base_url: str = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"


class PubmedSettings(_PubmedConstants):
    """NCBI's E-utilities."""

    api_key: SecretStr | None = None
    """An API key from NCBI."""


class _ArxivConstants(_SearchSection):
    base_url: str = "https://export.arxiv.org/api/query"
    per_second: float = 1 / 3
    """arXiv's terms of use allow one request in three seconds."""


class ArxivSettings(_ArxivConstants):
    """arXiv's API."""


class _BraveConstants(_SearchSection):
    base_url: str = "https://api.search.brave.com/res/v1/web/search"
    per_second: float = 1.0
    """The limit of Brave's smallest plan."""


class BraveSettings(_BraveConstants):
    """Brave's web search."""

    api_key: SecretStr | None = None
    """An API key from Brave. Without a key, jobs cannot use Brave."""


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class SearchSettings(RoomSettings, env_prefix="POSTBACK_SEARCH__", env_nested_delimiter="__"):
    """The services that jobs may search, and the keys for these services."""

    providers: Path | None = None
    """A folder with a `.toml` file for each source of your own: an HTTP API, a database or an MCP server."""
    allowed: Annotated[frozenset[str] | None, NoDecode, BeforeValidator(_names)] = None
    """Names of the providers that jobs may use, separated by commas.

    By default, jobs may use all providers, also those of other packages.
    """
    workers: int = Field(default=1, ge=1, le=10_000)
    """The number of workers with the same address or keys: each sends this part of the requests that a service allows
    in a second."""
    searxng: SearxngSettings = Field(default_factory=SearxngSettings)
    wikipedia: WikipediaSettings = Field(default_factory=WikipediaSettings)
    pubmed: PubmedSettings = Field(default_factory=PubmedSettings)
    arxiv: ArxivSettings = Field(default_factory=ArxivSettings)
    brave: BraveSettings = Field(default_factory=BraveSettings)
