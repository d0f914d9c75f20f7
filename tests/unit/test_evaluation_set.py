"""The evaluation set keeps its promise: many pages of many kinds, and answers that a reader finds on them."""

from __future__ import annotations

from collections import Counter

import pytest
from selectolax.lexbor import LexborHTMLParser

from bench.evaluation.pages import FOLDER, SIDE_BY_SIDE, Page, beside, holds, load_pages

PAGES = load_pages()
UNSEEN = "head, script, style, template, noscript, [hidden], [aria-hidden], [style*='display:none'], .kw, .seo-box"
"""Selectors of hidden nodes. The style sheet of the page with hidden text hides the last two."""
WITHOUT_SPACES = {"zh", "ja"}


def as_seen(page: Page) -> str:
    """The page's text as a reader sees it, found without enrichment's own code."""
    if not page.content_type.startswith("text/html"):
        return page.written
    tree = LexborHTMLParser(page.written)
    for node in reversed(tree.css(UNSEEN)):
        node.decompose()
    return tree.root.text(separator=" ") if tree.root is not None else ""


def length(page: Page) -> int:
    """The page's length in words; in a script without spaces, two characters count as one."""
    seen = as_seen(page)
    return len("".join(seen.split())) // 2 if page.language in WITHOUT_SPACES else len(seen.split())


def test_there_are_many_pages_of_many_kinds() -> None:
    assert len(PAGES) >= 64
    assert sum(len(page.questions) for page in PAGES) >= 100
    assert len({page.make for page in PAGES}) >= 40
    assert len({page.language for page in PAGES}) >= 10
    assert len({page.encoding for page in PAGES}) >= 9
    assert {page.content_type.partition(";")[0] for page in PAGES} == {
        "text/html", "text/plain", "application/json", "application/pdf",
    }  # fmt: skip


def test_every_page_is_there_and_asked_about() -> None:
    assert sorted(page.file for page in PAGES) == sorted(path.name for path in (FOLDER / "pages").iterdir())
    assert all(page.questions for page in PAGES)
    asked = [question.text for page in PAGES for question in page.questions]
    assert len(set(asked)) == len(asked)
    kinds = Counter(question.kind for page in PAGES for question in page.questions)
    assert set(kinds) == {"direct", "paraphrase", "number", "negation", "which of two"}
    assert min(kinds.values()) >= 15


def test_the_set_is_small_and_each_of_its_pages_is_long() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_000_000
    assert {page.file: length(page) for page in PAGES if not 300 <= length(page) <= 3000} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.file)
def test_the_right_passage_is_on_its_page_once_and_on_no_other(page: Page) -> None:
    for question in page.questions:
        assert [other.file for other in PAGES if holds(as_seen(other), question.passage)] == [page.file]
        assert "".join(as_seen(page).split()).count("".join(question.passage.split())) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.file)
def test_a_page_is_served_in_the_charset_that_it_has(page: Page) -> None:
    if page.content_type != "application/pdf":
        assert page.body().decode(page.encoding) == page.written


def test_a_question_is_asked_with_the_pages_that_are_similar() -> None:
    for page in PAGES:
        company = beside(page, PAGES, "seed")
        alike = [other for other in PAGES if other.subject == page.subject]
        assert len({one.file for one in company}) == SIDE_BY_SIDE
        assert page in company
        assert all(other in company for other in alike) or {one.subject for one in company} == {page.subject}
    assert beside(PAGES[0], PAGES, "seed") == beside(PAGES[0], PAGES, "seed")
    assert max(Counter(page.subject for page in PAGES).values()) == SIDE_BY_SIDE
