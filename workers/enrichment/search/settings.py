"""Settings of search, read from `POSTBACK_SEARCH__…`, for example `POSTBACK_SEARCH__BRAVE__API_KEY`."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PUBMED_PER_SECOND: Final = 3.0
PUBMED_PER_SECOND_WITH_KEY: Final = 10.0
"""What NCBI allows an address, and a key (A General Introduction to the E-utilities, "Frequency")."""

BaseUrl = Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
PerSecond = Annotated[float, Field(gt=0, le=1000)]
"""Requests in a second, of this worker alone: where several share a key or an address, give each its part."""


class _SearchSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class SearxngSettings(_SearchSection):
    """An instance with `json` among its `search.formats`."""

    base_url: BaseUrl | None = None
    """Where the instance is, without `/search`; absent, there is no such provider."""
    per_second: PerSecond = 10.0
    """Requests a second, of this worker alone."""


class WikipediaSettings(_SearchSection):
    """Any MediaWiki with CirrusSearch."""

    base_url: BaseUrl = "https://en.wikipedia.org/w/api.php"
    """The wiki's `api.php`; the language is part of it."""
    per_second: PerSecond = 5.0
    """Requests a second, of this worker alone."""


class PubmedSettings(_SearchSection):
    """NCBI's E-utilities."""

    base_url: BaseUrl = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
    """Where the E-utilities are."""
    api_key: SecretStr | None = None
    """A key of NCBI's."""
    email: str | None = Field(default=None, pattern=r"^[^\s@]+@[^\s@]+$")
    """Whom NCBI writes to before it blocks an address; absent, the contact of enrichment."""
    per_second: PerSecond | None = None
    """Requests a second, of this worker alone; absent, what NCBI allows: 3, or 10 with a key."""


class ArxivSettings(_SearchSection):
    """arXiv's API."""

    base_url: BaseUrl = "https://export.arxiv.org/api/query"
    """Where the API is."""
    per_second: PerSecond = 1 / 3
    """Requests a second, of this worker alone; by arXiv's terms of use one in three seconds."""


class BraveSettings(_SearchSection):
    """Brave's web search."""

    base_url: BaseUrl = "https://api.search.brave.com/res/v1/web/search"
    """Where the search is."""
    api_key: SecretStr | None = None
    """The key of Brave's; absent, there is no such provider."""
    per_second: PerSecond = 1.0
    """Requests a second, of this worker alone."""


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class SearchSettings(BaseSettings):
    """Which services jobs may search, and with which keys."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_SEARCH__",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    providers: Annotated[frozenset[str] | None, NoDecode, BeforeValidator(_names)] = None
    """Names with commas; absent, every provider that is configured, those of other installed packages too."""
    searxng: SearxngSettings = Field(default_factory=SearxngSettings)
    wikipedia: WikipediaSettings = Field(default_factory=WikipediaSettings)
    pubmed: PubmedSettings = Field(default_factory=PubmedSettings)
    arxiv: ArxivSettings = Field(default_factory=ArxivSettings)
    brave: BraveSettings = Field(default_factory=BraveSettings)
