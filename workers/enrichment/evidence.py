"""The values that enrichment hands from step to step, and its errors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from schemas.job import SourceDocument
from telemetry.logs import origin_of

Extractor = Literal["resiliparse", "trafilatura"]
"""The library that finds a page's main text."""


class NothingFound(Exception):  # noqa: N818 - named after the event, as the engines' EngineDied is
    """The job requires sources, and none could be read. The text names the origin of each source, and the reason."""

    def __init__(self, notes: tuple[str, ...]) -> None:
        super().__init__("; ".join(["sources are required, and none could be used", *notes]))
        self.notes = notes


class Unreadable(Exception):  # noqa: N818 - as above
    """One source cannot be used. The text tells the result's reader the reason, without quoting the page."""

    def __init__(self, reason: str, *, is_outage: bool = False, is_lasting: bool = True, is_ours: bool = False) -> None:
        super().__init__(reason)
        self.is_outage = is_outage or is_ours
        """True if the page is not at fault, so that an older copy of the page may be served instead."""
        self.is_lasting = is_lasting
        """True if the cache may remember the failure. False, for example, if only this job was refused."""
        self.is_ours = is_ours
        """True if this worker is at fault. Other workers may succeed, so the failure is not shared with them."""


@dataclass(frozen=True, slots=True)
class Particulars:
    """Facts about a source besides its text. They come from its page or from the search service."""

    published: str | None = None
    """The date of publication in ISO 8601, as exactly as it is known: `2023`, `2023-05` or `2023-05-17`."""
    canonical_url: str | None = None
    """The canonical address that the page names, if it differs from the page's URL and has the same origin."""
    doi: str | None = None
    read_by: str | None = None
    """`ocr` if a program read the text from pictures; such a text may contain wrong characters."""

    def under(self, better: Particulars) -> Particulars:
        """Return the merged particulars. If both have a value for a field, the value in `better` is used."""
        return Particulars(
            better.published or self.published,
            better.canonical_url or self.canonical_url,
            better.doi or self.doi,
            better.read_by or self.read_by,
        )


@dataclass(frozen=True, slots=True)
class Page:
    """A server's answer, whose body is not parsed yet."""

    url: str
    """The URL after the last redirect."""
    media_type: str
    charset: str | None
    """The charset that the `Content-Type` header names."""
    body: bytes
    etag: str | None = None
    last_modified: str | None = None
    cache_control: str = ""
    expires: str | None = None
    date: str | None = None
    age: str | None = None
    is_inside: bool = False
    """True if the body came from an address that is not public."""
    is_unchanged: bool = False
    """True if the server confirmed the known copy (304); the body is then empty."""


@dataclass(frozen=True, slots=True)
class Found:
    """One result of a search."""

    url: str
    """Empty for a result without an address. Such a result has an `id`, and either `text` or `content`."""
    id: str | None = None
    """The source's id in the job's result, for example `pmid:…`. If it is None, the URL is the id."""
    title: str | None = None
    text: str | None = None
    """Text from the search service, for example an abstract. It is used instead of the page: the URL is not fetched."""
    particulars: Particulars = Particulars()
    content: bytes | None = None
    """Bytes from the search service, for example a PDF. They are used instead of the page: the URL is not fetched."""
    media_type: str | None = None
    """The media type of `text` or `content`.

    If it is None, `text` is plain text, and the type of `content` is detected.
    """
    excerpt: str | None = None
    """The service's excerpt of the page, used if the page cannot be read."""

    @property
    def page(self) -> Page | None:
        """The text or content in the form of a server's answer; None if the URL has to be fetched."""
        if self.text is not None:
            return Page(self.url, self.media_type or "text/plain", "utf-8", self.text.encode("utf-8", "replace"))
        return Page(self.url, self.media_type or "", None, self.content) if self.content is not None else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One source to read.

    Notes name the source by `position`, counted from 1, since two sources may share an origin.
    """

    position: int
    url: str
    """Empty for a document of the job, and for a search result without an address."""
    found: Found | None = None
    """The search result that names this URL; None if the job names the source."""
    document: SourceDocument | None = None
    """The job's own document, which needs no fetching."""

    @classmethod
    def of(cls, position: int, source: str | SourceDocument | Found) -> Wanted:
        """Return a URL, a document or a search result as a source to read."""
        if isinstance(source, str):
            return cls(position, source)
        return cls(position, source.url, source) if isinstance(source, Found) else cls(position, "", document=source)

    @property
    def id(self) -> str:
        """The source's id in the job's result."""
        if self.document is not None:
            return self.document.id
        return self.url if self.found is None or self.found.id is None else self.found.id

    @property
    def name(self) -> str:
        """The source's name in notes. Only the origin of a URL is named, since the rest of a URL may be a secret."""
        if self.document is not None:
            return f"document {self.document.id}"
        return origin_of(self.url) if self.url else self.id


@dataclass(frozen=True, slots=True)
class Document:
    """A source's text as a person would see it."""

    source: Wanted
    url: str
    title: str | None
    text: str
    """The main text."""
    rest: str = ""
    """The page's other text, such as comments and menus."""
    particulars: Particulars = Particulars()
    older: str | None = None
    """The reason why an older copy of the page is used; None for a current page."""
    unread: str | None = None
    """The reason why the search service's excerpt is used; None for a page that was read."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source that was not used, with the reason."""

    source: Wanted
    reason: str

    def __str__(self) -> str:
        return f"source {self.source.position} ({self.source.name}) was left out: {self.reason}"


@dataclass(frozen=True, slots=True)
class NumberedSource:
    """A source as the model sees it."""

    number: int
    """The number, counted from 1, by which the answer cites the source: `[1]` for the first."""
    id: str
    """The source's id in the result: the URL as the job gave it, or an identifier such as `arxiv:2305.12345`."""
    url: str | None
    """The address of the source; None for a document of the job."""
    title: str | None
    passages: tuple[str, ...]
    """The passages that the prompt has before the question, in the order of the page."""
    steering: tuple[str, ...] = ()
    """The ways in which the title and passages try to steer the model; the prompt warns the model of such a source."""
    particulars: Particulars = Particulars()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All evidence for one job. `sources` is empty if the job asked for sources and none could be used."""

    sources: tuple[NumberedSource, ...]
    notes: tuple[str, ...] = ()
    question: str = ""
    """The job's question. The answer may repeat links from the question."""
    template: str = "plain"
    """The name or path of the prompt's template, see `answering.template`."""
    conversation: str = ""
    """The text of all messages, if the job has messages. The answer may repeat links from this text, too."""
    mark_secret: bytes | None = field(default=None, repr=False)
    """The fleet's secret for the marks around sources. If it is None, a random secret of this process is used."""

    @property
    def chars(self) -> int:
        """The number of characters in all passages together."""
        return sum(map(_chars, self.sources))

    def shortened(self, chars: float) -> Evidence:
        """Remove passages until at most `chars` characters are left; remove at least one passage.

        Each step removes the last passage of the longest source that has several passages. When every source has only
        one passage left, whole sources are removed, the longest first. The remaining sources are renumbered.
        """
        sources = list(self.sources)
        while sources:
            most = max(range(len(sources)), key=lambda at: (len(sources[at].passages) > 1, _chars(sources[at])))
            fewer = replace(sources[most], passages=sources[most].passages[:-1])
            sources[most : most + 1] = [fewer] if fewer.passages else []
            if sum(map(_chars, sources)) <= chars:
                break
        numbered = tuple(replace(source, number=number) for number, source in enumerate(sources, start=1))
        return replace(self, sources=numbered)


def _chars(source: NumberedSource) -> int:
    return sum(map(len, source.passages))
