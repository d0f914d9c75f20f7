"""Sphinx's settings for the site of these pages; `scripts/docs` builds it.

The source folder is the repository, so that the pages' relative links work on the site as they do in the repository.
The navigation is made from the lists of docs/index.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")

project = "Postback"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "producers/postback_client/README.md", "requirements/README.md"]
exclude_patterns = [".*", "*/.*", "build", "tests", "workers", "helm", "**/node_modules"]
html_theme = "furo"
html_title = "Postback"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a rule of CHANGELOG's form leaves out a level
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def navigation(index: str) -> str:
    """Return hidden tables of contents, one for each list of the index page, below its heading's name."""
    made = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        caption, _, text = section.partition("\n")
        pages = [f"{label} <{target.removesuffix('.md')}>" for label, target, _ in LINK.findall(text)]
        made += ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]
    return index + "\n".join(made) + "\n"


def without_outer_links(page: Path, text: str) -> str:
    """Turn links to files that are no pages of the site into names of files: the repository has them, not the site."""

    def shown(link: re.Match[str]) -> str:
        label, path, _ = link.groups()
        target = (page.parent / path).resolve()
        if "://" in path or path.startswith("mailto:") or (target.suffix == ".md" and target.is_file()):
            return link[0]
        name = target.relative_to(ROOT).as_posix()
        return f"`{name}`" if label in (name, target.name, f"`{name}`") else f"{label} (`{name}`)"

    return LINK.sub(shown, text)


def setup(app: Any) -> None:
    """Change each page before Sphinx reads it."""

    def read(app: Any, name: str, source: list[str]) -> None:
        page = Path(app.env.doc2path(name))
        source[0] = without_outer_links(page, source[0])
        if name == root_doc:
            source[0] = navigation(source[0])

    app.connect("source-read", read)
