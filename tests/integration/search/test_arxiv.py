"""arXiv in its real format, including quirks and errors."""

from __future__ import annotations

import pytest

from tests.integration.search.asking import failure, found
from tests.integration.search_services import ATOM_ERROR, Reply, answering, atom, configured, paper
from workers.enrichment.evidence import Found, Particulars
from workers.enrichment.search.base import SearchQuery


async def test_arxiv_gives_abstracts_by_id_without_version() -> None:
    reply = atom(
        paper("2305.12345v2", "Bridges <of\n  Tarnby", "We measure\n bridges & rivers.", doi="10.1000/x.1"),
        paper("hep-th/9901001v1", "Old", "Strings."),
        paper("math.GT/0309136v1", "Older", "Knots."),
    )
    day = "2023-05-20"
    abstracts = "https://arxiv.org/abs/"
    assert await found("arxiv", reply) == [
        Found(
            f"{abstracts}2305.12345v2", "arxiv:2305.12345", "Bridges <of Tarnby", "We measure bridges & rivers.",
            Particulars(day, doi="10.1000/x.1"),
        ),
        Found(f"{abstracts}hep-th/9901001v1", "arxiv:hep-th/9901001", "Old", "Strings.", Particulars(day)),
        Found(f"{abstracts}math.GT/0309136v1", "arxiv:math.GT/0309136", "Older", "Knots.", Particulars(day)),
    ]  # fmt: skip


@pytest.mark.parametrize("status", [200, 400])
async def test_arxiv_errors_are_entries_whatever_the_status(status: int) -> None:
    reply = atom(ATOM_ERROR)
    assert "does not understand" in await failure("arxiv", Reply(reply.body, reply.media_type, status))


async def test_arxiv_answers_an_empty_page_now_and_then_although_there_are_results() -> None:
    assert "empty page" in await failure("arxiv", atom(total=30))
    assert await found("arxiv", atom(total=0)) == []


async def test_arxiv_papers_that_were_withdrawn_or_say_nothing_are_no_sources() -> None:
    entries = [
        paper("2305.00001v3", "Gone", "This paper has been withdrawn by the author due to an error."),
        paper("2305.00002v1", "Silent", ""),
        "<entry><title>Without an id</title><summary>x</summary></entry>",
        paper("2305.00003v1", "Here", "Withdrawn troops are what this paper counts? No: bridges."),
        paper("2305.00004v1", "Also here", "We count bridges from which troops were withdrawn."),
    ]
    assert [one.id for one in await found("arxiv", atom(*entries))] == ["arxiv:2305.00004"]


@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("What is a self-attention layer?", {"search_query": "all:self-attention OR all:layer"}),
        ("au:bengio AND ti:attention", {"search_query": "au:bengio AND ti:attention"}),
        ("arXiv:2305.12345v2", {"id_list": "2305.12345v2"}),
        ("hep-th/9901001", {"id_list": "hep-th/9901001"}),
        ('the "of" (and)', {"search_query": "all:the OR all:of OR all:and"}),
    ],
)
async def test_arxiv_is_asked_by_words_by_its_own_query_language_or_by_id(query: str, params: dict[str, str]) -> None:
    async with answering(atom()) as service, configured("arxiv", service.url) as provider:
        await provider.search(SearchQuery(query, 4))
        assert service.queries == [{**params, "start": "0", "max_results": "4", "sortBy": "relevance"}]
