"""What enrichment hands from step to step, and what it hands out."""

from __future__ import annotations

from dataclasses import dataclass


class NothingFound(Exception):  # noqa: N818 - it names what happened, as the engines' EngineDied does
    """The job requires sources, and none could be read. The text says why, source by source; it names origins only."""

    def __init__(self, notes: tuple[str, ...]) -> None:
        super().__init__("; ".join(["sources are required, and none could be used", *notes]))
        self.notes = notes


class Unreadable(Exception):  # noqa: N818 - as above
    """One source cannot be used. The text is the reason, for the result's reader, and quotes nothing from the page."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One URL to read. `position` is its place among the job's sources, from 1: two may share an origin."""

    position: int
    url: str


@dataclass(frozen=True, slots=True)
class Page:
    """What a server answered: bytes that nobody has looked at yet."""

    url: str
    """Where the last redirect led."""
    media_type: str
    charset: str | None
    """As the header says."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Document:
    """A source's text as a person would see it."""

    source: Wanted
    url: str
    title: str | None
    text: str


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


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was found for one job. No sources: they were asked for, and none could be used."""

    sources: tuple[NumberedSource, ...]
    notes: tuple[str, ...] = ()
    question: str = ""
    """What was asked: a link that the answer repeats from it was given to the model."""
