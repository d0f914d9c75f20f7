"""The registry of search providers: configured ones, allowed ones, and those of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.integration.search.asking import NAMES
from tests.integration.search_services import CLOCK
from workers.enrichment.evidence import Found
from workers.enrichment.search.base import SearchMisconfigured, SearchProvider, SearchQuery
from workers.enrichment.search.providers import providers
from workers.enrichment.search.service import Web
from workers.enrichment.search.settings import SearchSettings


class Library:
    """A provider of another package."""

    async def search(self, query: SearchQuery) -> list[Found]:
        return [Found(f"https://library.example/{query.text}", id="library:1", text="A book.")]


def make_library(web: Web) -> SearchProvider:
    assert web.service("https://library.example", per_second=1)
    return Library()


def make_nothing(web: Web) -> None:
    """Another package's factory that makes no provider, since its own settings are missing."""


def point(name: str, function: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{function}", "postback.search")


def names(*installed: EntryPoint, **settings: Any) -> list[str]:
    return list(providers(SearchSettings.model_validate(settings), Web("x", CLOCK), installed))


def test_an_unconfigured_provider_does_not_exist() -> None:
    assert names() == ["arxiv", "pubmed", "wikipedia"]
    assert names(searxng={"base_url": "http://searx.internal"}, brave={"api_key": "k"}) == sorted(NAMES)


def test_an_operator_may_allow_only_some_providers() -> None:
    assert names(allowed="pubmed, wikipedia") == ["pubmed", "wikipedia"]
    assert names(allowed="") == []


@pytest.mark.parametrize("name", ["brave", "nosuch"])
def test_a_provider_that_is_allowed_but_missing_ends_the_start(name: str) -> None:
    with pytest.raises(SearchMisconfigured, match=f"POSTBACK_SEARCH__ALLOWED names {name}"):
        names(allowed=f"pubmed,{name}")


async def test_another_package_adds_a_provider_by_an_entry_point() -> None:
    installed = [point("library", "make_library"), point("other", "make_nothing")]
    made = providers(SearchSettings(), Web("x", CLOCK), installed)
    assert sorted(made) == ["arxiv", "library", "pubmed", "wikipedia"]
    assert [one.id for one in await made["library"].search(SearchQuery("book", 1))] == ["library:1"]
    assert names(*installed, allowed="library") == ["library"]


def test_the_entry_point_of_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "library_search-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: library-search\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[postback.search]\nlibrary = {__name__}:make_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(providers(SearchSettings(), Web("x", CLOCK))["library"], Library)


@pytest.mark.parametrize(
    ("installed", "why"),
    [
        (point("pubmed", "make_library"), "a built-in provider's name: pubmed"),
        (point("broken", "no_such_function"), r"broken .*no_such_function.* cannot be made: AttributeError"),
    ],
)
def test_an_entry_point_that_is_wrong_ends_the_start_and_names_itself(installed: EntryPoint, why: str) -> None:
    with pytest.raises(SearchMisconfigured, match=why):
        names(installed)


def test_settings_come_from_the_environment_and_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_SEARCH__BRAVE__API_KEY", "brave-key")
    monkeypatch.setenv("POSTBACK_SEARCH__ALLOWED", "brave,arxiv")
    settings = SearchSettings()
    assert list(providers(settings, Web("x", CLOCK), [])) == ["arxiv", "brave"]
    assert "brave-key" not in repr(settings)
