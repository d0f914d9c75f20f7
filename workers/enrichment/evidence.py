"""What enrichment hands from step to step, and what it hands out."""

from __future__ import annotations

from dataclasses import dataclass, replace


class NothingFound(Exception):  # noqa: N818 - it names what happened, as the engines' EngineDied does
    """The job requires sources, and none could be read. The text says why, source by source; it names origins only."""

    def __init__(self, notes: tuple[str, ...]) -> None:
        super().__init__("; ".join(["sources are required, and none could be used", *notes]))
        self.notes = notes


class Unreadable(Exception):  # noqa: N818 - as above
    """One source cannot be used. The text is the reason, for the result's reader, and quotes nothing from the page."""

    def __init__(self, reason: str, *, is_outage: bool = False, is_lasting: bool = True, is_ours: bool = False) -> None:
        super().__init__(reason)
        self.is_outage = is_outage or is_ours
        """It cannot be read now, which is not the page's doing: an older copy is as good as there is."""
        self.is_lasting = is_lasting
        """Who asks this worker again at once hears the same. Not so where it was refused to this job only."""
        self.is_ours = is_ours
        """It is this worker that could not read it: others may, and are not told."""


@dataclass(frozen=True, slots=True)
class Particulars:
    """What is known of a source beside its text, as the page or the search service says it."""

    published: str | None = None
    """An ISO 8601 date, as exact as it is known: `2023`, `2023-05` or `2023-05-17`."""
    canonical_url: str | None = None
    """The page's own name for its address, where that is another one of the same origin."""
    doi: str | None = None

    def under(self, better: Particulars) -> Particulars:
        """These, with `better` before them where it knows something."""
        return Particulars(
            better.published or self.published,
            better.canonical_url or self.canonical_url,
            better.doi or self.doi,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a search found."""

    url: str
    id: str | None = None
    """What the result calls it, for example `pmid:…`; the URL where absent."""
    title: str | None = None
    text: str | None = None
    """What the service gave of it, for example its abstract: that is the source then, and the URL is not fetched."""
    particulars: Particulars = Particulars()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One URL to read. `position` is its place among the job's sources, from 1: two may share an origin."""

    position: int
    url: str
    found: Found | None = None
    """How a search described it, where it was not the job that named it."""

    @property
    def id(self) -> str:
        """What the result calls it."""
        return self.url if self.found is None or self.found.id is None else self.found.id


@dataclass(frozen=True, slots=True)
class Page:
    """What a server answered: bytes that nobody has looked at yet."""

    url: str
    """Where the last redirect led."""
    media_type: str
    charset: str | None
    """As the header says."""
    body: bytes
    etag: str | None = None
    last_modified: str | None = None
    cache_control: str = ""
    expires: str | None = None
    date: str | None = None
    age: str | None = None
    is_unchanged: bool = False
    """The server says that a copy which is known is still right (304); there is no body."""


@dataclass(frozen=True, slots=True)
class Document:
    """A source's text as a person would see it."""

    source: Wanted
    url: str
    title: str | None
    text: str
    steering: tuple[str, ...] = ()
    """The ways in which it tries to steer whoever reads it for people, see `steering`."""
    particulars: Particulars = Particulars()
    older: str | None = None
    """Why an older copy of it has to do, where that is so."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source that was not used, and why. Names its origin only, since the rest of a URL may be a secret."""

    position: int
    origin: str
    reason: str

    def __str__(self) -> str:
        return f"source {self.position} ({self.origin}) was left out: {self.reason}"


@dataclass(frozen=True, slots=True)
class NumberedSource:
    """A source as the model sees it."""

    number: int
    """What `[n]` in the answer means; from 1."""
    id: str
    """What the result calls it: the URL as the job gave it, or an identifier such as `arxiv:2305.12345`."""
    url: str
    title: str | None
    passages: tuple[str, ...]
    """What of it was put before the question, in the order of the page."""
    steering: tuple[str, ...] = ()
    """The ways in which its page tries to steer the model; the prompt says so."""
    particulars: Particulars = Particulars()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was found for one job. No sources: they were asked for, and none could be used."""

    sources: tuple[NumberedSource, ...]
    notes: tuple[str, ...] = ()
    question: str = ""
    """What was asked: a link that the answer repeats from it is the job's own."""
    template: str = "plain"
    """The wording of the prompt, see `template`."""
    conversation: str = ""
    """The text of all the job's messages, where it has more than its question: links in it are its own as well."""

    @property
    def chars(self) -> int:
        """Characters of all passages."""
        return sum(map(_chars, self.sources))

    def shortened(self, chars: float) -> Evidence:
        """With this many characters at most, and one passage less at least: whole passages, of who has the most first.

        A source that has none left is left out, and the others are numbered anew.
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
