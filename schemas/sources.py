"""The sources of a job: pages, documents and searches that are read before the answer."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from schemas.bounded import WireModel
from schemas.identifiers import Identifier
from schemas.urls import Url

MAX_DOCUMENTS = 20
"""The maximum number of documents of a job. The job's size limits all documents together."""
MAX_SEARCHES = 4
"""The maximum number of further searches of a job."""
MAX_DOMAINS = 20
MAX_QUERY_CHARS = 1024
MAX_PARAMETER_CHARS = 256
"""The maximum number of characters of a search, and of a search's parameter."""

_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
Base64 = Annotated[str, StringConstraints(min_length=4, pattern=_BASE64)]
"""Bytes in base64 with padding (RFC 4648, section 4)."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
MediaType = Annotated[str, StringConstraints(max_length=255, pattern=rf"^{_NAME}/{_NAME}$")]
"""A media type (RFC 6838, section 4.2) without parameters."""
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
Domain = Annotated[str, StringConstraints(max_length=253, pattern=rf"^{_LABEL}(?:\.{_LABEL})+$")]
Day = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])$")]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")]


def _only(named: str, other: str) -> dict[str, Any]:
    """Return the JSON Schema of an object that has a text in the member `named` and has no member `other`."""
    return {"required": [named], "properties": {named: {"type": "string"}, other: {"type": "null"}}}


class Search(WireModel):
    """A search whose results become sources."""

    provider: Identifier
    """The search service's name, such as `pubmed`, `arxiv` or `wikipedia`."""
    query: Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS)]
    """The search words."""
    limit: int = Field(default=5, ge=1, le=20)
    """How many results become sources at most."""
    parameters: dict[
        Annotated[str, StringConstraints(max_length=32)],
        Annotated[str, StringConstraints(min_length=1, max_length=MAX_PARAMETER_CHARS)],
    ] = Field(default_factory=dict, max_length=16)
    """Parameters of an operator's own source, by name, such as a patient's number."""
    domains: list[Domain] = Field(default_factory=list, max_length=MAX_DOMAINS)
    """Hosts of the results, such as `who.int`, with their subdomains; empty allows any host."""
    since: Day | None = None
    """The first day of publication, at providers that have a date range: `arxiv`, `brave` and `pubmed`."""
    until: Day | None = None
    """The last day of publication, at providers that have a date range: `arxiv`, `brave` and `pubmed`."""
    language: Language | None = None
    """The language of the results (ISO 639-1), at providers that have languages: `brave` and `searxng`."""


class SourceDocument(WireModel):
    """A document that the job itself carries.

    The document is read like a page: in the same processes, between the same marks.
    """

    model_config = ConfigDict(json_schema_extra={"oneOf": [_only("text", "base64"), _only("base64", "text")]})

    id: Identifier
    """The document's name within the job; citations and `source_details` repeat it."""
    title: str | None = None
    """The title that the model sees; where absent, the title that the document itself states."""
    text: Annotated[str, StringConstraints(min_length=1)] | None = None
    """The document as text. Set either `text` or `base64`."""
    base64: Base64 | None = None
    """The document's bytes in base64 (RFC 4648, section 4), such as those of a PDF. Set either `base64` or `text`."""
    media_type: MediaType | None = None
    """The media type (RFC 6838). Where absent, `text` is `text/plain`, and the type of `base64` is detected from its
    bytes.
    """

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.text is None) == (self.base64 is None):
            raise ValueError("exactly one of `text` and `base64` is required")
        return self


class Sources(WireModel):
    """The sources of the answer's evidence."""

    urls: list[Url] = Field(default_factory=list, max_length=20)
    """Pages to fetch."""
    documents: list[SourceDocument] = Field(default_factory=list, max_length=MAX_DOCUMENTS)
    """Documents of the job itself. Of documents with the same `id`, only the first one is used."""
    search: Search | None = None
    """A search whose results become sources too."""
    searches: list[Search] = Field(default_factory=list, max_length=MAX_SEARCHES)
    """Further searches, which run beside `search`. A page that several searches find is one source."""
    budget_seconds: float | None = Field(default=None, gt=0, le=120)
    """Time for all sources; the operator's default where absent, and at most the operator's bound."""
    freshness_seconds: float | None = Field(default=None, ge=0, le=31_536_000)
    """The greatest age of a cached page or search; at least the operator's bound."""
    max_chars: int | None = Field(default=None, ge=200, le=1_000_000)
    """The maximum number of characters of quoted passages.

    Where absent, the operator's default counts. A number above the operator's bound counts as this bound.
    """
    rewrite: bool | None = None
    """If true, the model first rewrites a conversation's last question so that it can be searched for.

    Where absent, the profile or the operator decides.
    """
    profile: Identifier = "default"
    """The profile by which the question is answered, such as `default`, `medical` or `finance`."""
    required: bool = False
    """If true, a job without usable sources fails; if false, its prompt states that there are none."""

    @property
    def all_searches(self) -> list[Search]:
        """`search` and the further searches."""
        return [*([self.search] if self.search is not None else []), *self.searches]
