"""Enrichment against real servers on loopback. Hostile servers and pages are in `hostile`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.job import Search, Sources
from scripts.play.site import HIDDEN_SENTENCE, Site, questions
from tests.integration.raw_server import FACT, HTML, SLOW, Script, enriching, page, reading_here, saying, speaking
from workers.enrichment.answering.grounding import TemplateRefused, ground
from workers.enrichment.choosing.rank import estimated_tokens
from workers.enrichment.enrich import CROWDED
from workers.enrichment.evidence import Evidence, NothingFound, Unreadable
from workers.enrichment.processes.pool import Pool
from workers.enrichment.search.searches import UNKNOWN
from workers.enrichment.turns import Asker
from workers.processes.child import Child


async def read(script: Script, **settings: object) -> Evidence:
    async with speaking(script) as origin, reading_here(None, **settings) as enricher:
        return await enricher.enrich(Sources(urls=[f"{origin}/secret/path?token=1"]), "When did the bridge open?")


async def reason(script: Script, **settings: object) -> str:
    """The reason for omitting this server's page; asserts that the note names only the origin of its URL."""
    evidence = await read(script, **settings)
    assert evidence.sources == ()
    (note,) = evidence.notes
    assert "secret" not in note
    assert "token" not in note
    return note


# -- successes ---------------------------------------------------------------------


async def test_facts_of_real_pages_become_numbered_sources() -> None:
    async with Site() as site, reading_here(robots=True) as enricher:
        for question in questions():
            evidence = await enricher.enrich(Sources(urls=[site.url(question.path)]), question.text)
            (source,) = evidence.sources
            assert (source.number, source.id, evidence.notes) == (1, site.url(question.path), ())
            assert any(question.answer in passage for passage in source.passages)
            assert HIDDEN_SENTENCE not in " ".join(source.passages)
        assert site.requests.count("/robots.txt") == 1


async def test_the_right_page_of_many_comes_with_its_passage() -> None:
    async with Site() as site, reading_here(evidence_chars=300) as enricher:
        urls = [site.url(path) for path in ("/mine", "/ferry", "/clock")]
        evidence = await enricher.enrich(Sources(urls=urls), "Who is the captain of the ferry Astrelle?")
        assert site.url("/ferry") in [source.id for source in evidence.sources]
        assert "Pettigrew" in " ".join(passage for source in evidence.sources for passage in source.passages)


async def test_a_url_that_is_named_twice_is_fetched_once() -> None:
    async with Site() as site, reading_here() as enricher:
        evidence = await enricher.enrich(Sources(urls=[site.url("/mine")] * 3), "silver")
        assert len(evidence.sources) == 1
        assert site.requests == ["/mine"]


async def test_one_source_that_fails_leaves_the_others_and_a_note() -> None:
    async with Site() as site, reading_here() as enricher:
        evidence = await enricher.enrich(Sources(urls=[site.url("/nothing"), site.url("/mine")]), "silver mine")
        assert [source.id for source in evidence.sources] == [site.url("/mine")]
        left_out = f"source 1 ({site.url('')}) was left out: its server answered 404"
        assert evidence.notes == (left_out,)


async def test_a_redirect_is_followed_and_the_source_keeps_its_name() -> None:
    async with Site() as site, reading_here() as enricher:
        script = saying(b"", f"Location: {site.url('/mine')}", status="302 Found")
        async with speaking(script) as origin:
            evidence = await enricher.enrich(Sources(urls=[f"{origin}/"]), "silver mine")
        assert [(source.id, source.url) for source in evidence.sources] == [(f"{origin}/", site.url("/mine"))]


async def test_a_source_and_a_redirect_are_asked_for_as_they_are_written() -> None:
    first, second = "/a%3Bb/../c?sig=x%3By%27z&q=%2C%3A", "/d%2Fe/./f;g?h=%7e&"
    targets: list[str] = []
    elsewhere: list[str] = []
    async with reading_here() as enricher, speaking(saying(page(), HTML), targets=elsewhere) as there:
        script = saying(b"", f"Location: {there}{second}", status="302 Found")
        async with speaking(script, targets=targets) as here:
            evidence = await enricher.enrich(Sources(urls=[here + first]), "When did the bridge open?")
    assert len(evidence.sources) == 1
    assert (targets, elsewhere) == ([first], [second])


async def test_a_redirect_to_a_relative_place_keeps_how_its_folder_is_written() -> None:
    targets: list[str] = []
    script = saying(b"", "Location: ../c%3Bd", status="302 Found")
    async with reading_here(redirects=1) as enricher, speaking(script, targets=targets) as origin:
        await enricher.enrich(Sources(urls=[f"{origin}/x/a%2Fb/y"]), "Why?")
    assert targets == ["/x/a%2Fb/y", "/x/c%3Bd"]


# -- when nothing is found --------------------------------------------------------------------


async def test_required_sources_that_are_not_found_are_a_failure_with_its_reasons() -> None:
    async with reading_here() as enricher:
        with pytest.raises(NothingFound, match=r"10\.0\.0\.1.*not public"):
            await enricher.enrich(Sources(urls=["http://10.0.0.1/x"], required=True), "Why?")


async def test_sources_that_are_not_required_leave_an_honest_prompt() -> None:
    async with reading_here() as enricher:
        evidence = await enricher.enrich(Sources(urls=["http://10.0.0.1/x"]), "Why?")
        assert evidence.sources == ()
        assert "none could be read" in (ground("Why?", evidence).prompt or "")


async def test_a_search_provider_that_is_not_configured_is_named_as_the_reason() -> None:
    async with reading_here() as enricher:
        wanted = Sources(search=Search(provider="nosuch", query="bridges"))
        evidence = await enricher.enrich(wanted, "Why?")
        assert evidence.notes == (f"the search at nosuch brought nothing: {UNKNOWN}",)


# -- the processes that read pages --------------------------------------------------------------------


def readers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if is_reader(child)]


def is_reader(process: psutil.Process) -> bool:
    try:
        return "workers.enrichment.processes.member" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # the process ended after the listing, or is a zombie
        return False


async def test_no_process_runs_before_it_is_needed_and_none_is_left() -> None:
    async with Site() as site:
        async with enriching() as enricher:
            await enricher.enrich(Sources(), "Why?")
            assert readers() == []
            await enricher.enrich(Sources(urls=[site.url("/mine")]), "silver mine")
            assert len(readers()) == 1
        assert readers() == []


async def test_the_start_of_the_first_reader_takes_no_time_from_the_jobs_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, steps = Child.start, list[str]()

    async def noted_start(*arguments: str) -> Child:
        steps.append("a reader starts")
        child = await start(*arguments)
        steps.append("it has started")
        return child

    async def noted_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        steps.append("the page is asked for")
        await saying(page(), HTML)(reader, writer)

    monkeypatch.setattr(Child, "start", noted_start)
    async with speaking(noted_page) as origin, enriching() as enricher:
        evidence = await enricher.enrich(Sources(urls=[f"{origin}/"]), "How long?")
        assert len(evidence.sources) == 1
        assert steps == ["a reader starts", "it has started", "the page is asked for"]


async def test_a_page_that_takes_too_long_is_killed_and_the_next_one_is_read() -> None:
    async with (
        Site() as site,
        speaking(saying(SLOW, HTML)) as origin,
        enriching(member_seconds=2, members=1) as enricher,
    ):
        slow, fine = await asyncio.gather(
            enricher.enrich(Sources(urls=[f"{origin}/"]), "Why?"),
            enricher.enrich(Sources(urls=[site.url("/mine")]), "silver mine"),
        )
        assert slow.notes == (f"source 1 ({origin}) was left out: reading it took more than 2 s",)
        assert len(fine.sources) == 1


async def test_a_job_that_is_cancelled_takes_its_reader_with_it() -> None:
    async with speaking(saying(SLOW, HTML)) as origin, enriching(member_seconds=60, budget_seconds=60) as enricher:
        job = asyncio.create_task(enricher.enrich(Sources(urls=[f"{origin}/"]), "Why?"))
        # A reader's start takes half a second of CPU time, so a reader with more than 2 s is reading the page.
        while not any(reader.cpu_times().user > 2 for reader in readers()):
            await asyncio.sleep(0.05)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert readers() == []


async def test_a_reader_that_was_killed_is_replaced() -> None:
    async with Site() as site, enriching() as enricher:
        for _ in range(2):
            evidence = await enricher.enrich(Sources(urls=[site.url("/mine")]), "silver mine")
            assert len(evidence.sources) == 1
            (reader,) = readers()
            reader.kill()
            reader.wait()
            await asyncio.sleep(0.2)


async def test_a_reader_of_a_large_worker_is_kept() -> None:
    """At the fork, the kernel counts the worker's memory as the reader's.

    An earlier version therefore started a new reader for each page.
    """
    ballast = b"x" * (400 * 1024 * 1024)
    async with Site() as site, enriching(members=1) as enricher:
        kept = set()
        for path in ("/mine", "/clock"):
            await enricher.enrich(Sources(urls=[site.url(path)]), "silver mine")
            kept |= {reader.pid for reader in readers()}
        assert len(kept) == 1
    assert ballast


async def test_a_reader_is_ended_before_the_worker_where_memory_runs_out() -> None:
    async with Site() as site, enriching() as enricher:
        await enricher.enrich(Sources(urls=[site.url("/mine")]), "silver mine")
        assert [Path(f"/proc/{reader.pid}/oom_score_adj").read_text() for reader in readers()] == ["1000\n"]


async def test_a_page_that_needs_too_much_memory_is_left_out() -> None:
    hungry = b"<p>" + b"".join(b"<b id=%d>" % n for n in range(900)) + b"</p><p>x" * 20_000
    async with Site() as site, speaking(saying(hungry, HTML)) as origin, enriching(member_bytes=2**28) as enricher:
        evidence = await enricher.enrich(Sources(urls=[f"{origin}/", site.url("/mine")]), "silver mine")
        assert [source.id for source in evidence.sources] == [site.url("/mine")]
        assert "more memory than allowed" in evidence.notes[0]


async def test_readers_get_nothing_of_the_environment_that_could_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_KEYRING", "secret")
    async with Site() as site, enriching() as enricher:
        await enricher.enrich(Sources(urls=[site.url("/mine")]), "silver mine")
        (reader,) = readers()
        assert "POSTBACK_KEYRING" not in reader.environ()


# -- memory of pages ---------------------------------------------------------------


async def test_the_pages_of_all_jobs_share_one_budget_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an earlier version, six jobs with large files took a worker from 70 to 1,005 MB."""
    held = most = 0

    async def ask(self: Pool, task: dict[str, Any], body: bytes, asker: Asker) -> dict[str, Any]:
        nonlocal held, most
        if task["kind"] != "extract":
            raise Unreadable("only pages are read here")
        held += len(body)
        most = max(most, held)
        await asyncio.sleep(0.02)
        held -= len(body)
        return {"title": None, "text": FACT, "rest": "", "particulars": {}}

    limits = {"in_flight_bytes": 3_000_000, "pdf_bytes": 1_000_000, "page_bytes": 1_000_000}
    async with speaking(saying(b"%PDF-" + b" " * 900_000)) as origin, reading_here(**limits) as enricher:
        with monkeypatch.context() as patched:  # ends before that of `reading_here`
            patched.setattr(Pool, "ask", ask)
            jobs = [Sources(urls=[f"{origin}/{job}/{number}" for number in range(4)]) for job in range(6)]
            found = await asyncio.gather(
                *(enricher.enrich(job, "When?", tenant=f"tenant-{number}") for number, job in enumerate(jobs))
            )
    notes = [note for evidence in found for note in evidence.notes]
    assert [note for note in notes if "left out" in note and CROWDED not in note] == []
    assert 900_000 < most <= 3_000_000


# -- robots.txt --------------------------------------------------------------------


def site_with_robots(robots: Script, asked: list[str]) -> Script:
    """A server that answers its first request as one for robots.txt, and every other request as one for the page."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append("robots" if not asked else "page")
        await (robots if len(asked) == 1 else saying(page(), HTML))(reader, writer)

    return script


async def test_a_page_that_robots_txt_forbids_is_not_asked_for() -> None:
    asked: list[str] = []
    note = await reason(site_with_robots(saying(b"User-agent: *\nDisallow: /secret"), asked), robots=True)
    assert "forbids reading it" in note
    assert asked == ["robots"]


@pytest.mark.parametrize("path", ["/x/../secret", "/%73ecret", "/./secret?a"])
async def test_no_other_spelling_of_a_path_leads_around_robots_txt(path: str) -> None:
    rules = b"User-agent: *\nDisallow: /secret"
    targets: list[str] = []
    server = speaking(saying(page(), HTML), robots=rules, targets=targets)
    async with server as origin, reading_here(robots=True) as enricher:
        evidence = await enricher.enrich(Sources(urls=[origin + path]), "Why?")
    assert evidence.sources == ()
    assert targets == ["/robots.txt"]


@pytest.mark.parametrize("status", ["404 Not Found", "204 No Content"])
async def test_a_site_without_robots_txt_is_read(status: str) -> None:
    evidence = await read(site_with_robots(saying(b"", status=status), []), robots=True)
    assert len(evidence.sources) == 1


async def test_the_rules_of_robots_txt_for_our_configured_name_are_followed() -> None:
    rules = saying(b"User-agent: *\nDisallow: /\n\nUser-agent: AcmeBot\nAllow: /\n")
    agent = "Mozilla/5.0 (compatible; AcmeBot/1.0)"
    evidence = await read(site_with_robots(rules, []), robots=True, user_agent=agent, robots_agent="AcmeBot")
    assert len(evidence.sources) == 1


async def test_many_jobs_ask_for_robots_txt_once() -> None:
    async with Site() as site, reading_here(robots=True) as enricher:
        wanted = Sources(urls=[site.url("/mine")])
        found = await asyncio.gather(*(enricher.enrich(wanted, "silver mine") for _ in range(8)))
        assert all(len(evidence.sources) == 1 for evidence in found)
        assert site.requests.count("/robots.txt") == 1


async def test_sources_fit_into_the_room_that_a_context_window_leaves() -> None:
    async with Site() as site, reading_here() as enricher:
        wanted = Sources(urls=[site.url(path) for path in ("/mine", "/ferry", "/clock")])
        tight = await enricher.enrich(wanted, "Who is the captain of the ferry Astrelle?", room_tokens=220)
        none = await enricher.enrich(wanted, "Who is the captain of the ferry Astrelle?", room_tokens=50)
    prompt = ground("", tight).prompt or ""
    assert "Pettigrew" in prompt
    assert estimated_tokens(prompt) <= 220
    assert none.sources == ()
    assert "context_window or the model leaves no room" in " ".join(none.notes)


async def test_a_page_of_one_letter_lines_costs_no_source() -> None:
    """In an earlier version, such a page took as long to rank as ten others, and two of them cost a job all sources."""
    letters = FACT.encode() + b"\na" * 150_000
    async with speaking(saying(letters, "Content-Type: text/plain")) as origin, reading_here() as enricher:
        wanted = Sources(urls=[f"{origin}/{number}" for number in range(4)])
        evidence = await enricher.enrich(wanted, "When did the Halvorsen bridge open?")
    assert "1987" in " ".join(passage for source in evidence.sources for passage in source.passages)
    assert "only the first 150000 characters of long sources were read" in evidence.notes


async def test_the_beginnings_are_used_if_choosing_passages_does_not_end_in_time() -> None:
    async with Site() as site, enriching(member_seconds=2) as enricher:
        wanted = Sources(urls=[site.url(path) for path in ("/mine", "/ferry")])
        assert len((await enricher.enrich(wanted, "silver mine")).sources) == 2
        for reader in readers():
            reader.suspend()
        evidence = await enricher.enrich(wanted, "silver mine", room_tokens=400)
    assert [source.id for source in evidence.sources] == wanted.urls
    assert all(
        word in source.passages[0] for word, source in zip(("Corrow", "Astrelle"), evidence.sources, strict=True)
    )
    assert "choosing passages took too long: the beginning of each source was used" in evidence.notes
    assert estimated_tokens(ground("", evidence).prompt or "") <= 400


# -- politeness --------------------------------------------------------------------


async def test_a_site_that_asks_for_long_pauses_is_asked_for_one_page() -> None:
    asked: list[str] = []
    robots = saying(b"User-agent: *\nCrawl-delay: 600\n")
    async with speaking(site_with_robots(robots, asked)) as origin, reading_here(robots=True) as enricher:
        evidence = await enricher.enrich(Sources(urls=[f"{origin}/1", f"{origin}/2"]), "When did the bridge open?")
    assert len(evidence.sources) == 1
    assert "its site asked for a pause" in " ".join(evidence.notes)
    assert asked == ["robots", "page"]


async def test_a_pause_that_robots_txt_no_longer_asks_for_is_no_longer_kept() -> None:
    bodies = iter([b"User-agent: *\nCrawl-delay: 600\n", b"User-agent: *\nDisallow: /secret\n"])

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append("robots" if len(asked) % 2 == 0 else "page")
        await (saying(next(bodies)) if asked[-1] == "robots" else saying(page(), HTML))(reader, writer)

    asked: list[str] = []
    async with speaking(script) as origin, reading_here(robots=True, robots_seconds=0.01) as enricher:
        for path in ("1", "2"):
            evidence = await enricher.enrich(Sources(urls=[f"{origin}/{path}"]), "When did the bridge open?")
            await asyncio.sleep(0.02)
            sources = len(evidence.sources)
    assert (sources, asked) == (1, ["robots", "page", "robots", "page"])


async def test_a_server_that_asks_for_time_gets_it() -> None:
    asked: list[str] = []
    busy = saying(b"", "Retry-After: 600", status="429 Too Many Requests")
    async with speaking(site_with_robots(busy, asked)) as origin, reading_here() as enricher:
        first = await enricher.enrich(Sources(urls=[f"{origin}/1"]), "When did the bridge open?")
        second = await enricher.enrich(Sources(urls=[f"{origin}/2"]), "When did the bridge open?")
    assert "its server answered 429" in first.notes[0]
    assert "its site asked for a pause" in second.notes[0]
    assert asked == ["robots"]


async def test_pages_of_a_site_are_read_one_after_the_other_where_the_operator_says_so() -> None:
    async with Site() as site, reading_here(host_interval_seconds=0.05) as enricher:
        evidence = await enricher.enrich(Sources(urls=[site.url(path) for path in ("/mine", "/ferry")]), "silver")
    assert len(evidence.sources) == 2


async def test_a_template_that_cannot_be_used_stops_the_worker_before_its_first_job() -> None:
    with pytest.raises(TemplateRefused, match="nosuch"):
        async with reading_here(template="nosuch"):
            pass


async def test_the_prompt_has_the_words_that_the_operator_chose() -> None:
    async with Site() as site, reading_here(template="deepseek") as enricher:
        evidence = await enricher.enrich(Sources(urls=[site.url("/mine")]), "silver mine")
    assert "[webpage 1 begin " in (ground("When did it close?", evidence).prompt or "")
