"""The set's pages and their questions, from `questions.toml`."""

from __future__ import annotations

import random
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.evaluation.typeset import typeset

FOLDER: Final = Path(__file__).parent
SIDE_BY_SIDE: Final = 8
"""Each question is asked with this many pages, including the question's own page."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a page, and the page's own words that answer the question."""

    text: str
    kind: str
    passage: str


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the set."""

    file: str
    make: str
    language: str
    """The page's language, as a tag of BCP 47."""
    subject: str
    """The page's subject. Several pages can have the same subject."""
    questions: tuple[Question, ...]
    content_type: str
    encoding: str
    """The charset in which the page is served. The page's header or markup may name another charset."""

    @property
    def path(self) -> str:
        """The page's path on the site."""
        return f"/{self.file}"

    @property
    def written(self) -> str:
        """The page's stored markup or text."""
        return (FOLDER / "pages" / self.file).read_text("utf-8")

    def body(self) -> bytes:
        """Return the bytes that the site serves."""
        return typeset(self.written) if self.content_type == "application/pdf" else self.written.encode(self.encoding)


def load_pages() -> list[Page]:
    """Return all pages, in the order of the file."""
    with (FOLDER / "questions.toml").open("rb") as file:
        return [_page(table) for table in tomllib.load(file)["page"]]


def _page(table: dict[str, Any]) -> Page:
    asked = tuple(Question(**question) for question in table["question"])
    content_type = table.get("content_type", "text/html; charset=utf-8")
    file, make, language, subject = (str(table[name]) for name in ("file", "make", "language", "subject"))
    return Page(file, make, language, subject, asked, content_type, table.get("encoding", "utf-8"))


def beside(page: Page, pages: Sequence[Page], seed: str) -> list[Page]:
    """Return the page among seven others, in an order that `seed` decides.

    The others are pages with the same subject first, then pages in the same language, then any pages.
    """
    chance = random.Random(f"{seed} {page.file}")
    others = [other for other in pages if other is not page]
    chance.shuffle(others)
    others.sort(key=lambda other: (other.subject != page.subject, other.language != page.language))
    company = [page, *others[: SIDE_BY_SIDE - 1]]
    chance.shuffle(company)
    return company


def holds(text: str, passage: str) -> bool:
    """True if the text contains the passage, ignoring white space and differences that Unicode's NFKC removes."""
    return _squeezed(passage) in _squeezed(text)


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())
