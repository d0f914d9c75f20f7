"""The site of the pages: its navigation has every page, its links lead to pages, and the pages stay short.

`scripts/docs` builds the site; the nightly workflow runs it.
"""

from __future__ import annotations

import re
import runpy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "index.md"
CONF: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "site" / "conf.py"))
LISTED = [(INDEX.parent / target).resolve() for _, target, _ in CONF["LINK"].findall(INDEX.read_text(encoding="utf-8"))]
GENERATED = {
    *(ROOT / "docs" / "reference" / f"{name}.md" for name in ("chart", "jobs", "licences", "log-actions", "metrics")),
    ROOT / "docs" / "reference" / "settings.md",
    *(ROOT / "docs" / name for name in ("EVIDENCE.md", "evidence-faults.md")),  # tables of the benches' samples
}
MOST_WORDS = 35_500
"""Limit for all pages together, as `wc -w` counts them, with code and tables: they can be read in a day."""


def pages() -> list[Path]:
    """Return the project's Markdown files."""
    readmes = [*ROOT.glob("[a-z]*/README.md"), *ROOT.glob("[a-z]*/*/README.md")]
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *readmes]


def test_the_navigation_has_each_page_once() -> None:
    assert sorted(LISTED) == sorted(set(pages()) - {INDEX})


def test_each_page_is_part_of_the_site() -> None:
    patterns: list[str] = CONF["include_patterns"]
    names = [page.relative_to(ROOT).as_posix() for page in pages()]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_tables_of_contents_are_the_lists_of_the_index() -> None:
    made = CONF["navigation"](
        "# T\n\nWords [a](no.md).\n\n## One\n\n- [A b](x/a.md)\n\n## Two\n\n- [C](../C.md)\n- [D](d.md)\n"
    )
    contents = re.findall(r"```\{toctree\}\n:hidden:\n:caption: (.*)\n\n((?:.*\n)*?)```", made)
    assert contents == [("One", "A b <x/a>\n"), ("Two", "C <../C>\nD <d>\n")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[DEPLOY](DEPLOY.md#acls)", "[DEPLOY](DEPLOY.md#acls)"),
        ("[W3C](https://www.w3.org/TR/)", "[W3C](https://www.w3.org/TR/)"),
        ("![A way](way-of-a-job.svg)", "![A way](way-of-a-job.svg)"),
        ("[conf.py](site/conf.py)", "`docs/site/conf.py`"),
        ("[the rules](../helm/postback/files/prometheus)", "the rules (`helm/postback/files/prometheus`)"),
    ],
)
def test_a_link_to_a_file_that_is_no_page_becomes_its_name(text: str, shown: str) -> None:
    assert CONF["without_outer_links"](INDEX, text) == shown


def test_the_pages_written_by_hand_can_be_read_in_a_day() -> None:
    by_hand = [page for page in pages() if page not in GENERATED]
    assert sum(len(page.read_text(encoding="utf-8").split()) for page in by_hand) <= MOST_WORDS
