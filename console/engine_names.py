"""The engines' names in the chart and its documentation, written from the registry by `python -m console.publish`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from workers.engines import ENGINES
from workers.engines.registry import engine_settings

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "postback"


class PlaceGone(Exception):  # noqa: N818 - named after the file's fault
    """A file has no line, or several, where the engines' names belong."""


def documents() -> dict[Path, str]:
    """Map each file's path to its text, with the names of today's engines written into it. Raises PlaceGone."""
    settings = engine_settings().model_construct()  # `model_construct` takes the defaults and reads no environment
    alone = [name for name in ENGINES if not settings.section(name).needs_model]
    return {path: _replaced(path, pattern, line(list(ENGINES), alone)) for path, pattern, line in PLACES}


def _replaced(path: Path, pattern: str, line: str) -> str:
    text, count = re.subn(pattern, lambda _: line, path.read_text(encoding="utf-8"))
    if count != 1:
        raise PlaceGone(f"{path.name} has {count} lines like {pattern}; the engines' names belong in exactly one")
    return text


def _either(names: Sequence[str]) -> str:
    """Return the names as a phrase, such as `a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


Line = Callable[[list[str], list[str]], str]
"""Builds a line of a file from the names of all engines, and from the names of the engines that need no model."""

PLACES: tuple[tuple[Path, str, Line], ...] = (
    (
        CHART / "values.schema.json",
        r'"engine": \{"enum": \[[^\]]*\]\}',
        lambda names, _: f'"engine": {{"enum": {json.dumps(names)}}}',
    ),
    (
        CHART / "values.yaml",
        r"(?m)^  # .*\n(?=  engine: )",
        lambda names, _: f"  # {_either(names)}.\n",
    ),
    (
        CHART / "templates" / "_worker.tpl",
        r"has \.engine \(list [^)]*\)",
        lambda _, alone: f"has .engine (list {' '.join(map(json.dumps, alone))})",
    ),
)
