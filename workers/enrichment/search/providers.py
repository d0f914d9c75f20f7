"""Finds all configured providers: built-in ones, the operator's own sources, and those of other installed packages.

A package adds a provider by an entry point in the group `postback.search`. The entry point is named after the provider,
and refers to a function that takes a `Web` and returns a `SearchProvider`, or None if the package's settings are
missing:

    [project.entry-points."postback.search"]
    library = "our_package.search:make"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from workers.enrichment.search import arxiv, pubmed
from workers.enrichment.search.base import SearchMisconfigured, SearchProvider
from workers.enrichment.search.inside import (
    HttpJsonFile,
    HttpJsonSource,
    InsideSource,
    McpFile,
    SqlFile,
    read_source_file,
)
from workers.enrichment.search.json_services import json_service
from workers.enrichment.search.service import Web
from workers.enrichment.settings import SearchSettings

GROUP: Final = "postback.search"

_OURS: Final[dict[str, Callable[[SearchSettings, Web], SearchProvider | None]]] = {
    "arxiv": arxiv.make,
    "brave": partial(json_service, "brave"),
    "pubmed": pubmed.make,
    "searxng": partial(json_service, "searxng"),
    "wikipedia": partial(json_service, "wikipedia"),
}


def providers(
    settings: SearchSettings, web: Web, installed: Iterable[EntryPoint] | None = None
) -> dict[str, SearchProvider]:
    """Return the providers that jobs may name, by name. Raises SearchMisconfigured.

    `installed` holds other packages' entry points; None means all entry points of this environment.
    """
    others = {point.name: point for point in (entry_points(group=GROUP) if installed is None else installed)}
    if taken := sorted(others.keys() & _OURS.keys()):
        raise SearchMisconfigured(f"an installed package uses a built-in provider's name: {', '.join(taken)}")
    files = _files(settings.providers, _OURS.keys() | others.keys())
    names = settings.allowed if settings.allowed is not None else _OURS.keys() | others.keys() | files.keys()
    found = {name: _made(name, settings, web, others, files) for name in sorted(names)}
    if settings.allowed is not None and (missing := sorted(name for name, made in found.items() if made is None)):
        raise SearchMisconfigured(
            f"POSTBACK_SEARCH__ALLOWED names {', '.join(missing)}: unknown, or without a key or address; "
            f"built in are {', '.join(_OURS)}"
        )
    return {name: made for name, made in found.items() if made is not None}


def _files(folder: Path | None, taken: Set[str]) -> dict[str, Path]:
    """Map the name of each of the operator's own sources to its file. Raises SearchMisconfigured."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise SearchMisconfigured(
            f"POSTBACK_SEARCH__PROVIDERS: {folder} is no folder; POSTBACK_SEARCH__ALLOWED names the allowed providers"
        )
    files = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if both := sorted(files.keys() & taken):
        raise SearchMisconfigured(f"{files[both[0]]}: a provider of this name exists already; rename the file")
    return files


def _source(path: Path, web: Web) -> InsideSource:
    """Return the operator's source that this file describes. Raises SearchMisconfigured."""
    file = read_source_file(path)
    try:
        match file:
            case HttpJsonFile():
                return HttpJsonSource(path.stem, file, path.parent, web)
            case SqlFile():
                from workers.enrichment.search.sql import SqlSource

                return SqlSource(path.stem, file, path.parent, web)
            case McpFile():
                from workers.enrichment.search.mcp_tool import McpSource

                return McpSource(path.stem, file, path.parent, web)
    except ImportError:
        raise SearchMisconfigured(
            f"{path}: kind: {file.kind} needs more packages; run pip install 'postback[worker,inside]'"
        ) from None


def _made(
    name: str, settings: SearchSettings, web: Web, others: dict[str, EntryPoint], files: dict[str, Path]
) -> SearchProvider | None:
    if name in _OURS:
        return _OURS[name](settings, web)
    if name in files:
        return _source(files[name], web)
    if name not in others:
        return None
    try:
        provider: SearchProvider | None = others[name].load()(web)
    except Exception as error:
        text = f"the search provider {name} ({others[name].value}) cannot be made: {type(error).__qualname__}"
        raise SearchMisconfigured(text) from error
    return provider
