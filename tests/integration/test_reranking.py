"""Passages chosen by words and by meaning, with a real embedding model in its own process: all-MiniLM-L6-v2."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from schemas.job import Sources
from scripts.play.model import embedding_model
from telemetry.clock import Deadline
from telemetry.metrics import Metrics
from tests.ecs import log_lines
from tests.integration.raw_server import CLOCK, HTML, LOOPBACK, saying, speaking
from tests.postback_command import environment_of, postback, started
from workers.egress import Guard
from workers.enrichment.choosing.choose import Choice, Chooser
from workers.enrichment.choosing.embedder import Embedder, EmbeddingModelRefused
from workers.enrichment.choosing.rank import Budget
from workers.enrichment.enrich import Enricher
from workers.enrichment.processes.pool import Pool
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker
from workers.processes.model_process import ModelAway

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("trapped"),
]

ASKER = Asker("default")
PASSAGE_CHARS = 110
TOWN = """\
The town council met on Tuesday and talked about the budget of the swimming pool for the coming year.
The library is closed on Mondays and lends four books at a time, as it has for years in this town.
Children under twelve pay half the fare on all buses that run within the town and to the villages near it.
A physician is on duty every night at the clinic behind the station, and you need not ring first.
The baker opens at six and sells what is left at half the price in the evening, except on holidays.
The museum shows old ploughs and mills, and a film about the flood that tore away the old harbour wall.
The choir sings on the second Sunday of every month, and guests are asked to bring cake for the break.
Parking in the square costs two crowns an hour and is free after seven in the evening and on holidays."""
ASKED = {
    "Doctor?": "physician",
    "Can kids travel more cheaply?": "Children under twelve",
    "Bread?": "baker",
    "Who performs music?": "choir",
}
"""Questions, each with a part of the passage that answers it. The question shares no word with the passage."""
BY_WORDS = "the passages were chosen by their words alone: "


@pytest.fixture(autouse=True, scope="module")
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@asynccontextmanager
async def choosing(metrics: Metrics | None = None, **settings: object) -> AsyncIterator[Chooser]:
    values = {"rerank_seconds": 60.0, "member_seconds": 30.0, **settings}
    made = EnrichmentSettings.model_validate(values)
    pool = Pool(made, Metrics())
    chooser = Chooser(made, pool, CLOCK, metrics or Metrics())
    await chooser.start()
    try:
        yield chooser
    finally:
        await chooser.close()
        await pool.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def chooser() -> AsyncIterator[Chooser]:
    async with choosing(rerank_model=str(embedding_model())) as one:
        yield one


async def chosen(chooser: Chooser, question: str) -> Choice:
    """Choose the page's two best passages."""
    deadline = Deadline.after(CLOCK, 120)
    return await chooser.choose(question, [("Tarnby", TOWN)], Budget(220), PASSAGE_CHARS, ASKER, deadline)


def quoted(choice: Choice) -> str:
    return " ".join(passage for passages in choice.passages for passage in passages)


def processes(parent: int | None = None) -> list[psutil.Process]:
    """Child processes of this process, or of `parent`, that hold a model."""
    return [one for one in psutil.Process(parent).children() if has_model(one)]


def has_model(process: psutil.Process) -> bool:
    try:
        return "workers.enrichment.choosing.embedding" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # the process ended after the listing, or is a zombie
        return False


# -- successes ---------------------------------------------------------------------


async def test_a_passage_without_a_word_of_the_question_is_found_by_its_meaning_and_not_by_its_words(
    chooser: Chooser,
) -> None:
    async with choosing() as by_words:
        for question, answer in ASKED.items():
            assert answer not in quoted(await chosen(by_words, question))
            both = await chosen(chooser, question)
            assert answer in quoted(both)
            assert both.notes == ()


async def test_each_of_many_jobs_at_once_gets_its_own_passages(chooser: Chooser) -> None:
    questions = [*ASKED] * 6
    choices = await asyncio.gather(*(chosen(chooser, question) for question in questions))
    assert [choice.notes for choice in choices] == [()] * len(questions)
    assert all(ASKED[question] in quoted(choice) for question, choice in zip(questions, choices, strict=True))


async def test_a_request_given_up_while_the_model_reads_it_harms_no_other(chooser: Chooser) -> None:
    (process,) = processes()
    given_up = [asyncio.create_task(chosen(chooser, f"Doctor number {n}?")) for n in range(5)]
    await asyncio.sleep(0.01)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    assert ASKED["Doctor?"] in quoted(await chosen(chooser, "Doctor?"))
    assert processes() == [process]


async def test_texts_of_any_size_and_script_are_taken(chooser: Chooser) -> None:
    documents = [
        ("", "大桥于一九八七年开通。" * 300),
        ("\ud800", "\ud800 \x00 <|endoftext|>"),
        ("A" * 10_000, "B" * 100_000),
    ]
    deadline = Deadline.after(CLOCK, 120)
    choice = await chooser.choose("何" * 50_000, documents, Budget(4000), 10_000, ASKER, deadline)
    assert len(choice.passages) == 3
    assert choice.notes == ()


async def test_an_enricher_with_the_model_quotes_passages_that_ranking_by_words_leaves_out() -> None:
    body = f"<html><head><title>Tarnby</title></head><body><p>{TOWN.replace(chr(10), '</p><p>')}</p></body></html>"
    settings = EnrichmentSettings(
        rerank_model=str(embedding_model()), rerank_seconds=60, member_seconds=30, budget_seconds=100,
        robots=False, evidence_chars=220, passage_chars=PASSAGE_CHARS,
    )  # fmt: skip
    metrics = Metrics()
    enricher = Enricher(settings, Guard(LOOPBACK), CLOCK, metrics)
    await enricher.start()
    try:
        async with speaking(saying(body.encode(), HTML)) as origin:
            evidence = await enricher.enrich(Sources(urls=[f"{origin}/"]), "Can kids travel more cheaply?")
    finally:
        await enricher.close()
    assert evidence.notes == ()
    assert "Children under twelve" in " ".join(evidence.sources[0].passages)
    assert metrics.registry.get_sample_value("postback_reranks_total", {"result": "done"}) == 1
    assert metrics.registry.get_sample_value("postback_rerank_seconds_count") == 1


# -- when the model is late or away --------------------------------------------------------------------


async def test_a_model_that_is_late_leaves_the_choice_by_words_and_a_note() -> None:
    metrics = Metrics()
    async with choosing(metrics, rerank_model=str(embedding_model()), rerank_seconds=0.0001) as late:
        choice = await chosen(late, "Bread?")
        assert processes() != []
    async with choosing() as by_words:
        assert choice.passages == (await chosen(by_words, "Bread?")).passages
    assert choice.notes == (f"{BY_WORDS}the embedding model was late",)
    assert metrics.registry.get_sample_value("postback_reranks_total", {"result": "late"}) == 1


async def test_passages_compared_before_the_time_was_up_count() -> None:
    embedder = Embedder(str(embedding_model()))
    await embedder.start()
    many = [f"{number}. {TOWN}" for number in range(2000)]
    try:
        found = await embedder.similarities("Doctor?", many, 5)
        assert 0 < len(found) < len(many)
        assert found[:8] == pytest.approx(await embedder.similarities("Doctor?", many[:8], 60))
    finally:
        await embedder.close()


async def test_a_result_says_for_how_many_passages_there_was_time() -> None:
    metrics = Metrics()
    wanted = {"rerank_model": str(embedding_model()), "rerank_passages": 1000, "rerank_seconds": 3.0}
    page = " ".join(f"{number}. {TOWN}" for number in range(900))  # the page has more than 1,000 passages
    async with choosing(metrics, **wanted) as chooser:
        deadline = Deadline.after(CLOCK, 120)
        choice = await chooser.choose("Bread?", [("Tarnby", page)], Budget(4000), 600, ASKER, deadline)
    (note,) = choice.notes
    assert note.startswith("the embedding model had time for ")
    assert choice.passages != ((),)
    assert metrics.registry.get_sample_value("postback_reranks_total", {"result": "partly"}) == 1


async def test_a_process_that_is_killed_costs_its_jobs_a_note_and_another_takes_its_place(chooser: Chooser) -> None:
    (killed,) = processes()
    killed.suspend()  # keeps jobs in flight until the kill
    jobs = [asyncio.create_task(chosen(chooser, question)) for question in ASKED]
    await asyncio.sleep(0.5)
    killed.kill()
    choices = await asyncio.gather(*jobs)
    failed, loading = f"{BY_WORDS}the embedding model failed", f"{BY_WORDS}the embedding model is being loaded again"
    assert Counter(choice.notes for choice in choices) == {(failed,): 1, (loading,): len(choices) - 1}
    assert all(len(choice.passages[0]) == 2 for choice in choices)
    meanwhile = await chosen(chooser, "Bread?")
    assert meanwhile.notes == (loading,)
    while (await chosen(chooser, "Bread?")).notes:
        await asyncio.sleep(0.5)
    (other,) = processes()
    assert other.pid != killed.pid
    assert ASKED["Bread?"] in quoted(await chosen(chooser, "Bread?"))


async def test_a_process_that_hangs_is_killed() -> None:
    embedder = Embedder(str(embedding_model()), batch_seconds=1.0)
    before = processes()
    await embedder.start()
    (hanging,) = [process for process in processes() if process not in before]
    try:
        hanging.send_signal(signal.SIGSTOP)
        with pytest.raises(ModelAway, match="failed"):
            await embedder.similarities("Doctor?", TOWN.splitlines(), 60)
        while hanging in processes():
            await asyncio.sleep(0.05)
    finally:
        await embedder.close()
    assert processes() == before


async def test_a_model_is_found_by_its_name_in_the_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "hub" / "models--acme--mini"
    shutil.copytree(embedding_model(), kept / "snapshots" / "0123abcd")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123abcd")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    embedder = Embedder("acme/mini")
    await embedder.start()
    assert len(await embedder.similarities("Doctor?", TOWN.splitlines(), 60)) == len(TOWN.splitlines())
    await embedder.close()


# -- refusals at the start ---------------------------------------------------------------------------


async def test_a_model_that_is_not_there_is_refused_by_the_settings_name(tmp_path: Path) -> None:
    before = processes()
    with pytest.raises(
        EmbeddingModelRefused, match=r"POSTBACK_ENRICHMENT__RERANK_MODEL names .*nosuch, which cannot be loaded"
    ):
        await Embedder(str(tmp_path / "nosuch")).start()
    assert processes() == before


async def test_a_worker_without_the_extra_says_what_to_install_before_it_asks_for_a_broker(tmp_path: Path) -> None:
    (tmp_path / "sentence_transformers.py").write_text("raise ModuleNotFoundError")
    env = environment_of(PYTHONPATH=tmp_path, POSTBACK_ENRICHMENT__RERANK_MODEL="all-MiniLM-L6-v2")
    done = await asyncio.to_thread(postback, "worker", "--engine", "echo", env=env)
    assert done.returncode == 1
    said = log_lines(done.stderr)[-1]["message"]
    assert said.startswith("POSTBACK_ENRICHMENT__RERANK_MODEL names all-MiniLM-L6-v2, which cannot be loaded")
    assert "install postback with the extra rerank" in said


async def test_a_worker_that_is_killed_takes_its_model_with_it() -> None:
    env = environment_of(POSTBACK_ENRICHMENT__RERANK_MODEL=str(embedding_model()))
    with started("worker", "--engine", "echo", env=env) as worker:
        while not (left := processes(worker.pid)):
            await asyncio.sleep(0.05)
        worker.kill()
        await asyncio.to_thread(worker.communicate)
    _, alive = await asyncio.to_thread(psutil.wait_procs, left, 120)
    assert alive == []


async def test_a_worker_that_is_stopped_while_its_model_loads_ends_at_once_and_leaves_nothing() -> None:
    env = environment_of(POSTBACK_ENRICHMENT__RERANK_MODEL=str(embedding_model()))
    with started("worker", "--engine", "echo", env=env) as worker:
        while not (loading := processes(worker.pid)):
            await asyncio.sleep(0.05)
        worker.terminate()
        said = await asyncio.to_thread(worker.communicate)
    assert worker.returncode == 0, said
    assert not any(process.is_running() for process in loading)
