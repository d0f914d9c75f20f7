"""All configured providers: ours, and those of other installed packages.

A package adds a provider by an entry point in the group `postback.search`. The entry point is named after the provider,
and refers to a function that takes a `Web` and returns a `SearchProvider`, or None if the package's settings are
missing:

    [project.entry-points."postback.search"]
    library = "our_package.search:make"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from workers.enrichment.search import arxiv, brave, pubmed, searxng, wikipedia
from workers.enrichment.search.base import SearchProvider
from workers.enrichment.search.service import Web
from workers.enrichment.search.settings import SearchSettings

GROUP: Final = "postback.search"

_OURS: Final[dict[str, Callable[[SearchSettings, Web], SearchProvider | None]]] = {
    "arxiv": arxiv.make,
    "brave": brave.make,
    "pubmed": pubmed.make,
    "searxng": searxng.make,
    "wikipedia": wikipedia.make,
}


class SearchMisconfigured(Exception):  # noqa: N818 - named after the fault
    """A provider that the settings name is missing, or another package's provider cannot be used. The text says why."""


def providers(
    settings: SearchSettings, web: Web, installed: Iterable[EntryPoint] | None = None
) -> dict[str, SearchProvider]:
    """Return the providers that jobs may name, by name. Raises SearchMisconfigured.

    `installed` holds other packages' entry points; None means all entry points of this environment.
    """
    others = {point.name: point for point in (entry_points(group=GROUP) if installed is None else installed)}
    if taken := sorted(others.keys() & _OURS.keys()):
        raise SearchMisconfigured(f"an installed package gives its search provider a name of ours: {', '.join(taken)}")
    names = settings.providers if settings.providers is not None else _OURS.keys() | others.keys()
    found = {name: _made(name, settings, web, others) for name in sorted(names)}
    if settings.providers is not None and (missing := sorted(name for name, made in found.items() if made is None)):
        raise SearchMisconfigured(
            f"POSTBACK_SEARCH__PROVIDERS names {', '.join(missing)}: unknown, or without a key or address; "
            f"built in are {', '.join(_OURS)}"
        )
    return {name: made for name, made in found.items() if made is not None}


def _made(name: str, settings: SearchSettings, web: Web, others: dict[str, EntryPoint]) -> SearchProvider | None:
    if name in _OURS:
        return _OURS[name](settings, web)
    if name not in others:
        return None
    try:
        provider: SearchProvider | None = others[name].load()(web)
    except Exception as error:
        text = f"the search provider {name} ({others[name].value}) cannot be made: {type(error).__qualname__}"
        raise SearchMisconfigured(text) from error
    return provider
