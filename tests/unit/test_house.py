"""The size of classes that CONTRIBUTING.md states."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_METHODS = 25


def sources() -> Iterator[tuple[str, str]]:
    """The path and the text of each Python file of the product."""
    for folder in (path for path in ROOT.iterdir() if path.is_dir() and path.name != "tests" and path.name[0] != "."):
        for path in folder.rglob("*.py"):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_no_class_has_more_methods_than_a_reader_keeps_in_mind() -> None:
    files = dict(sources())
    assert len(files) > 500
    assert {
        (name, node.name): methods
        for name, text in files.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
        and (methods := sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body))
        > MOST_METHODS
    } == {}
