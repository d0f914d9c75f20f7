"""Settings of search, read from `POSTBACK_SEARCH__…`, for example `POSTBACK_SEARCH__BRAVE__API_KEY`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PUBMED_PER_SECOND: Final = 3.0
PUBMED_PER_SECOND_WITH_KEY: Final = 10.0
"""NCBI's limits without a key and with one (A General Introduction to the E-utilities, "Frequency")."""

BaseUrl = Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
PerSecond = Annotated[float, Field(gt=0, le=1000)]
"""The maximum number of requests that this worker sends in a second.

If workers share a key or an address, give each worker a part of the limit.
"""


class _SearchSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class SearxngSettings(_SearchSection):
    """A SearXNG instance with `json` among its `search.formats`."""

    base_url: BaseUrl | None = None
    """The instance's URL, without `/search`. Without a URL, jobs cannot use SearXNG."""
    per_second: PerSecond = 10.0
    """The maximum number of requests that this worker sends in a second."""


class WikipediaSettings(_SearchSection):
    """Wikipedia, or any MediaWiki with CirrusSearch."""

    base_url: BaseUrl = "https://en.wikipedia.org/w/api.php"
    """URL of the wiki's `api.php`; the language is part of the URL."""
    per_second: PerSecond = 5.0
    """The maximum number of requests that this worker sends in a second."""


class PubmedSettings(_SearchSection):
    """NCBI's E-utilities."""

    base_url: BaseUrl = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
    """The E-utilities' URL."""
    api_key: SecretStr | None = None
    """An API key from NCBI."""
    email: str | None = Field(default=None, pattern=r"^[^\s@]+@[^\s@]+$")
    """The e-mail address to which NCBI writes before it blocks a caller. The default is enrichment's `contact`."""
    per_second: PerSecond | None = None
    """The maximum number of requests that this worker sends in a second.

    The default is NCBI's limit: 3, or 10 with a key.
    """


class ArxivSettings(_SearchSection):
    """arXiv's API."""

    base_url: BaseUrl = "https://export.arxiv.org/api/query"
    """The API's URL."""
    per_second: PerSecond = 1 / 3
    """The maximum number of requests that this worker sends in a second.

    arXiv's terms of use allow one request in three seconds.
    """


class BraveSettings(_SearchSection):
    """Brave's web search."""

    base_url: BaseUrl = "https://api.search.brave.com/res/v1/web/search"
    """The search's URL."""
    api_key: SecretStr | None = None
    """An API key from Brave. Without a key, jobs cannot use Brave."""
    per_second: PerSecond = 1.0
    """The maximum number of requests that this worker sends in a second."""


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class SearchSettings(BaseSettings):
    """The services that jobs may search, and the keys for these services."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_SEARCH__",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    providers: Path | None = None
    """A folder with a `.toml` file for each source of your own: an HTTP API, a database or an MCP server."""
    allowed: Annotated[frozenset[str] | None, NoDecode, BeforeValidator(_names)] = None
    """Names of the providers that jobs may use, separated by commas.

    By default, jobs may use all providers, also those of other packages.
    """
    searxng: SearxngSettings = Field(default_factory=SearxngSettings)
    wikipedia: WikipediaSettings = Field(default_factory=WikipediaSettings)
    pubmed: PubmedSettings = Field(default_factory=PubmedSettings)
    arxiv: ArxivSettings = Field(default_factory=ArxivSettings)
    brave: BraveSettings = Field(default_factory=BraveSettings)
