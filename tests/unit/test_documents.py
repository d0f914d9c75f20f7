"""The documents name files that exist, and docs/ARCHITECTURE.md, the map, stays short."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.py)(?:::\w+)?`")
TEST_NAMED = re.compile(r"`(test_\w+)`")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
CODE = re.compile(r"`[^`\n]+`")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MOST_WORDS_OF_THE_MAP = 1600


@cache
def files() -> frozenset[str]:
    """Return the path of each file in the project, and each suffix of such a path."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    paths = [path.relative_to(ROOT).parts for folder in folders for path in folder.rglob("*.*")]
    at_root = {path.name for path in ROOT.iterdir() if path.is_file()}
    return frozenset("/".join(parts[start:]) for parts in paths for start in range(len(parts))) | at_root


@cache
def functions_that_test() -> frozenset[str]:
    """The name of each test function."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return frozenset(name for source in sources for name in re.findall(r"def (test_\w+)\(", source))


def prose_of(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page: Path) -> set[str]:
    headings = HEADING.findall(prose_of(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_each_file_and_test_that_a_page_names_exists(page: Path) -> None:
    prose = prose_of(page)

    assert sorted(set(NAMED.findall(prose)) - files()) == []
    assert sorted(name for name in set(TEST_NAMED.findall(prose)) - functions_that_test()) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_each_link_of_a_page_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    for target in LINK.findall(CODE.sub("code", prose_of(page))):
        path, _, anchor = target.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


def test_the_map_is_read_in_ten_minutes() -> None:
    words = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8").split()

    assert len(words) <= MOST_WORDS_OF_THE_MAP
