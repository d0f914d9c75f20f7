"""The benches' statistics and counts, their data sets, and the list of mutants."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import bm25s
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from selectolax.lexbor import LexborHTMLParser

from bench import citations, end_to_end, passages
from bench.assignors import Place, Step, compared
from bench.citations import load_public
from bench.end_to_end import DEFERRED, SETTLED
from bench.evaluation.beir import compared as ranked
from bench.evaluation.beir import load_collection, ndcg
from bench.evaluation.pages import FOLDER, SIDE_BY_SIDE, Page, beside, holds, load_pages
from bench.fleet import Kafka, Sample
from bench.network.link import Conditions, Direction
from bench.paired import Ratio, ratio
from bench.recovery import PARTITIONS, Measured, measured
from bench.scaling.__main__ import MOST_SHARE, compare
from bench.scaling.cluster import START_SECONDS, WORKER_JOBS, Sight, simulate
from bench.scaling.traces import NAMES, SimulatedJob, trace
from bench.scaling.ways import by_deadlines
from cli.operations.fleet_bench import BenchPlan, FleetBench
from schemas.settings import KafkaSettings
from scripts.dashboards.pictures import (
    Dashboard,
    Period,
    Series,
    draw,
    figure_of,
    legend_of,
    line_of,
    read_dashboard,
    written,
)
from telemetry.hand_clock import HandClock, SetClock
from tests.drawn import JSON, drawn
from workers.enrichment.choosing.rank import K1, B, terms, weights


def owners(**topics: str) -> dict[Place, int]:
    """The owner of each partition; each topic's text lists members' numbers in the order of its partitions."""
    return {(topic, number): int(owner) for topic, names in topics.items() for number, owner in enumerate(names)}


@pytest.mark.parametrize(
    ("before", "after", "step"),
    [
        # Moves to a newcomer are needed, and others are not; the partitions of a member that left have to move.
        (owners(a="0011", b="0011"), owners(a="0122", b="1120"), Step(7, needed=2, largest_part=1.5, spread=1)),
        (owners(a="0012", b="0122"), owners(a="0011", b="0111"), Step(3, needed=3, largest_part=1.5, spread=2)),
        # A member with a whole topic has as many equal parts as there are members.
        (*[owners(a="0000", b="1111", c="2222")] * 2, Step(0, needed=0, largest_part=3.0, spread=0)),
    ],
)
def test_moves_of_partitions_are_counted(before: dict[Place, int], after: dict[Place, int], step: Step) -> None:
    assert compared(before, after, set(after.values())) == step
    # A member without any partition counts in the spread.
    assert compared(owners(a="0011"), owners(a="0011"), {0, 1, 2}).spread == 2


# -- citations ---------------------------------------------------------------------------------------------------------


SICK = """pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment
1\tThe old bridge is not open\tThe old bridge is open\t4.1\tCONTRADICTION
2\tThe "old" bridge is open\tThe old bridge is open\t4.8\tENTAILMENT
3\tThe old bridge is open\tThe old bridge is long\t3.0\tNEUTRAL
"""
FEVER = [
    ("SUPPORTS", "The mill -LRB- built in 1871 -RRB- ground rye .", "The mill ground rye ."),
    ("REFUTES", "The mill ground rye .", "The mill ground barley and rye in Osby ."),
    ("REFUTES", "The mill ground rye .", "The mill ground rye slowly ."),
]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    sick, fever = tmp_path / "SICK.txt", tmp_path / "fever.jsonl"
    sick.write_text(SICK, encoding="utf-8")
    rows = [dict(zip(("label", "evidence", "claim"), row, strict=True)) for row in FEVER]
    fever.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [sick, fever]


def test_pairs_of_public_sets_are_read_without_the_neutral_ones(files: list[Path]) -> None:
    sick, fever = map(load_public, files)
    assert [(pair.label, pair.passage) for pair in sick] == [
        ("contradicted", "The old bridge is not open"),
        ("true", 'The "old" bridge is open'),
    ]
    assert fever[0].passage == "The mill ( built in 1871 ) ground rye ."


def test_the_table_has_a_row_for_each_file(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["citations", "--data", *map(str, files)])
    citations.main()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert ["SICK.txt", "1", "0 (0%)", "0", "0", "1", "0 (0%)"] in rows
    assert ["fever.jsonl", "2", "1 (50%)", "0", "0", "1", "0 (0%)"] in rows


def usage_error(main: Callable[[], None], path: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """True if the bench ends with a usage error about its data."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["bench", "--data", str(path)])
        main()
    return ended.value.code == 2 and "--data" in capsys.readouterr().err


def test_any_other_file_ends_the_bench_with_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("a.jsonl", "{"), ("a.jsonl", "{}"), ("a.txt", "a\tb\n1\t2\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert usage_error(citations.main, tmp_path / name, capsys)


# -- ends of runs ------------------------------------------------------------------------------------------------------


JOBS = 10


class Worker:
    """A worker whose samples give the numbers of settled and deferred records; the last sample repeats."""

    def __init__(self, *said: tuple[int, int]) -> None:
        self._said = list(said)

    def sample(self) -> Sample:
        settled, deferred = self._said.pop(0) if len(self._said) > 1 else self._said[0]
        return Sample(float(settled), {SETTLED: settled, DEFERRED: deferred}, 0.0)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of results that the bench finds at each look; the last number repeats."""
    counts: list[int] = []

    def found(kafka: KafkaSettings) -> Iterator[str]:
        return map(str, range(counts.pop(0) if len(counts) > 1 else counts[0]))

    monkeypatch.setattr(end_to_end, "answered_jobs", found)
    monkeypatch.setattr(end_to_end, "LOOK_SECONDS", 0.0)
    return counts


def finished(worker: Worker) -> float:
    """The number of settled records at which the run ended."""
    commands: Any = [worker]
    samples, _ = end_to_end.wait_until_finished(KafkaSettings(), Kafka("nowhere"), commands, JOBS)
    return samples[0].at


@pytest.mark.parametrize(
    ("found", "said", "end"),
    [
        ([JOBS], [(4, 0), (JOBS, 0)], JOBS),
        ([3, 7, JOBS], [(JOBS, 7), (13, 7), (17, 7)], 17),  # deferred jobs are settled twice
        ([9, 9, JOBS], [(JOBS, 0), (JOBS + 5, 0)], JOBS),  # results that are seen late do not lengthen the run
    ],
)
def test_a_run_ends_when_every_job_is_settled_and_has_a_result(
    results: list[int], found: list[int], said: list[tuple[int, int]], end: int
) -> None:
    results += found
    assert finished(Worker(*said)) == end


def test_a_run_with_missing_results_ends_with_their_number(results: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    results += [9]
    monkeypatch.setattr(end_to_end, "STILL_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="10 jobs have 9 results"):
        finished(Worker((JOBS, 0)))


# -- a slow link -------------------------------------------------------------------------------------------------------


PACKET = b"x" * 1000
SLOW = Conditions(round_trip_seconds=0.1, bits_per_second=1_000_000)
"""A packet takes 8 ms on the link, and 50 ms more until it arrives."""


@pytest.fixture
def device() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, whose reads never wait."""
    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    yield reads, writes
    os.close(reads)
    os.close(writes)


def arrived(reads: int) -> int:
    """The packets that have arrived since the last call."""
    try:
        return len(os.read(reads, 1 << 20)) // len(PACKET)
    except BlockingIOError:
        return 0


def test_packets_leave_one_after_another_and_arrive_half_a_round_trip_later(device: tuple[int, int]) -> None:
    reads, writes = device
    way = Direction(writes)
    for _ in range(2):
        way.take(PACKET, 10.0, SLOW, random.Random(1))
    assert way.due_seconds(10.0) == pytest.approx(0.058)
    for now, number in ((10.05, 0), (10.06, 1), (10.06, 0), (10.07, 1)):
        way.deliver(now)
        assert arrived(reads) == number


def test_a_full_queue_drops_packets_and_loss_drops_its_share(device: tuple[int, int]) -> None:
    reads, writes = device
    full, lossy, chance = Direction(writes), Direction(writes), random.Random(1)
    for _ in range(60):
        full.take(PACKET, 10.0, SLOW, chance)
    full.deliver(20.0)
    assert arrived(reads) == 31  # the queue holds 30 packets, and the first packet goes on the link at once
    wide = replace(SLOW, bits_per_second=1_000_000_000, loss=0.5)
    for number in range(60):
        lossy.take(PACKET, 10.0 + number, wide, chance)
    lossy.deliver(100.0)
    assert 15 < arrived(reads) < 45


# -- paired measurements -----------------------------------------------------------------------------------------------


def test_pairs_that_agree_give_a_narrow_interval_and_a_verdict_and_few_or_different_ones_give_none() -> None:
    agreeing, with_a_slow_minute, few = ratio([1.05] * 8), ratio([1.0] * 9 + [30.0]), ratio([1.0] * 4)
    assert (agreeing.estimate, agreeing.low, agreeing.high) == pytest.approx((1.05, 1.05, 1.05))
    assert (agreeing.kept(1.1), agreeing.kept(1.0)) == ("met", "missed")
    assert with_a_slow_minute == Ratio(1.0, 1.0, 1.0)
    assert few == Ratio(1.0, 0.0, math.inf)
    assert few.kept(1.1) == ratio([0.8, 1.3, 0.9, 1.2, 1.0, 1.1]).kept(1.1) == "not shown"


@pytest.mark.parametrize("count", [5, 8, 20])
def test_the_interval_contains_the_ratio_as_often_as_stated(count: int) -> None:
    chance = random.Random(count)
    held = 0
    for _ in range(1000):
        shown = ratio([math.exp(chance.gauss(0.0, 0.2)) for _ in range(count)])
        held += shown.low <= 1.0 <= shown.high
    assert 870 <= held <= 970


# -- passages ----------------------------------------------------------------------------------------------------------


DOCUMENTS = [
    {"_id": "d1", "title": "Mills", "text": "The mill of Osby ground rye and wheat."},
    {"_id": "d2", "text": "The harbour of Tarnby froze in January."},
    {"_id": "d3", "title": "Bridges", "text": "A bridge of oak crossed the river near the mill."},
]
QUERIES = [
    {"_id": "q1", "text": "When did the harbour freeze?"},
    {"_id": "q2", "text": "Which grain did the mill grind?"},
    {"_id": "q3", "text": "Who paid for the bridge?"},
]
GRADES = "query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td1\t2\nq2\td3\t1\nq3\td1\t0\n"
_WORDS = ["mill", "river", "oak", "rye", "osby", "frost", "harbour"]
_TEXTS = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    for name, rows in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text(GRADES, encoding="utf-8")
    return tmp_path


@settings(max_examples=drawn(60))
@given(st.lists(_TEXTS, min_size=1, max_size=6), _TEXTS)
def test_our_weights_are_those_of_bm25s(documents: Sequence[Sequence[str]], query: Sequence[str]) -> None:
    index = bm25s.BM25(method="lucene", k1=K1, b=B, dtype="float64")
    index.index([list(words) for words in documents], show_progress=False)
    known = sorted({word for word in query if any(word in words for words in documents)})
    ours = weights(" ".join(query), [Counter(terms(" ".join(words))) for words in documents])
    theirs = index.get_scores(known).tolist() if known else [0.0] * len(documents)
    assert ours == pytest.approx([(K1 + 1) * score for score in theirs])


def test_ndcg_is_the_gain_of_the_ranking_over_that_of_the_best_one() -> None:
    assert ndcg(["a", "b"], {"a": 2, "b": 1}) == 1.0
    assert ndcg(["c", "a"], {"a": 1}) == pytest.approx(0.6309, abs=1e-4)  # 1 / log2(3)
    assert ndcg(["c"] * 10 + ["a"], {"a": 1}) == 0.0


def test_only_queries_with_a_relevant_document_are_asked_and_each_ranking_has_its_gain(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = load_collection(folder)
    assert list(collection.queries) == ["q1", "q2"]
    assert [value for _, value in ranked(collection)] == [1.0, 1.0, 1.0]
    monkeypatch.setattr("sys.argv", ["passages", "--data", str(folder)])
    passages.main()
    printed = capsys.readouterr().out
    assert "3 documents, 2 queries" in printed
    assert sum("1.000" in line for line in printed.splitlines()) == 3
    # A document that does not answer lowers the gain.
    (folder / "qrels" / "test.tsv").write_text(GRADES.replace("q1\td2", "q1\td1"), encoding="utf-8")
    assert all(value < 1 for _, value in ranked(load_collection(folder)))


def test_a_folder_that_is_no_collection_ends_the_bench_with_a_usage_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graded = "qrels/test.tsv"
    for name, wrong in (
        *(("corpus.jsonl", content) for content in ("{", "{}", None)),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}'),
        (graded, "a\tb\n1\t2\n"),
        (graded, GRADES.replace("\t2\n", "\tmuch\n")),
        (graded, "query-id\tcorpus-id\tscore\n"),
    ):
        before = (folder / name).read_text(encoding="utf-8")
        (folder / name).unlink() if wrong is None else (folder / name).write_text(wrong, encoding="utf-8")
        assert usage_error(passages.main, folder, capsys), (name, wrong)
        (folder / name).write_text(before, encoding="utf-8")


# -- recovery ----------------------------------------------------------------------------------------------------------


KILLED_AT = 1000.0


def test_jobs_are_counted_by_when_their_results_were_written() -> None:
    answered = [(0, 980.0), (12, 995.0), (24, 999.0), (36, 1000.0), (48, 1009.0), (60, 1020.0)]
    assert measured(answered, KILLED_AT, before=10, after=20, under_way=0) == Measured(0.2, 0.1, 0.0)


def test_the_oldest_are_the_first_that_were_not_answered_at_the_kill_in_each_partition() -> None:
    answered = [(number, 990.0) for number in range(PARTITIONS)]
    answered += [(number, 1010.0) for number in range(PARTITIONS, 2 * PARTITIONS - 1)]
    answered += [(2 * PARTITIONS - 1, 1030.0), (2 * PARTITIONS, 1050.0)]
    assert measured(answered, KILLED_AT, 10, 60, under_way=PARTITIONS).oldest_seconds == 30.0
    assert measured(answered, KILLED_AT, 10, 60, under_way=2 * PARTITIONS).oldest_seconds is None


# -- scaling -----------------------------------------------------------------------------------------------------------


SHORT_SECONDS = 7200.0
SLOW_MODEL = "slow model"


@pytest.mark.parametrize("name", NAMES)
def test_scaling_by_deadlines_costs_less_than_scaling_by_lag_and_misses_no_further_deadline(name: str) -> None:
    jobs = trace(name, SHORT_SECONDS)
    assert jobs == trace(name, SHORT_SECONDS)
    assert jobs == sorted(jobs, key=lambda job: job.arrival)
    assert all(job.service_seconds > 0 and job.deadline > job.arrival for job in jobs)

    ours, (lag, *_) = compare(name, SHORT_SECONDS)
    few = len(jobs) / 200 if name == SLOW_MODEL else 0
    assert len(ours.missed - lag.missed) <= few
    assert ours.replica_hours <= MOST_SHARE * lag.replica_hours


@pytest.mark.parametrize(("due_seconds", "late_share", "cost"), [(1200, 0.5, 1.05), (900, 0.999, 1.1)])
def test_if_answers_outlast_the_fixed_margin_the_measured_one_leaves_fewer_late_jobs_for_few_hours(
    due_seconds: float, late_share: float, cost: float
) -> None:
    """Four hours of slow answers show as much as a day, since each job is due after a short time, and many are late.

    Even answers that take nearly all of the jobs' time do not start all workers.
    """
    jobs = [replace(job, deadline=job.arrival + due_seconds) for job in trace(SLOW_MODEL, 2 * SHORT_SECONDS)]
    measured, fixed = (simulate(jobs, by_deadlines(measured=each), 2 * SHORT_SECONDS) for each in (True, False))

    assert len(measured.missed) <= late_share * len(fixed.missed)
    assert measured.replica_hours <= cost * fixed.replica_hours


def test_the_simulated_lag_is_counted_from_the_slowest_job_of_a_partition() -> None:
    seen: list[Sight] = []

    def wish(sight: Sight) -> int:
        seen.append(sight)
        return 5

    slow = SimulatedJob(1.0, 1000.0, 9000.0)
    jobs = [slow, *(SimulatedJob(2.0 + n / 100, 1.0, 9000.0) for n in range(159))]
    outcome = simulate(jobs, wish, 600)

    late = next(sight for sight in seen if sight.at == 600)
    assert (late.kafka_lag, sum(lane.jobs for lane in late.lanes), late.done) == (10, 1, 159)
    assert outcome.missed == set()
    assert outcome.replica_seconds >= 5 * 1000
    # A job that no worker could take in time is missed.
    late_jobs = [SimulatedJob(0.0, 1.0, START_SECONDS / 2)] * (WORKER_JOBS + 1)
    assert len(simulate(late_jobs, lambda _: 1, 300).missed) == WORKER_JOBS + 1


# -- the evaluation set ------------------------------------------------------------------------------------------------


PAGES = load_pages()
UNSEEN = "head, script, style, template, noscript, [hidden], [aria-hidden], [style*='display:none'], .kw, .seo-box"
"""Selectors of hidden nodes. The style sheet of the page with hidden text hides the last two."""
WITHOUT_SPACES = {"zh", "ja"}


def as_seen(page: Page) -> str:
    """The page's text as a reader sees it, found without enrichment's own code."""
    if not page.content_type.startswith("text/html"):
        return page.written
    tree = LexborHTMLParser(page.written)
    for node in reversed(tree.css(UNSEEN)):
        node.decompose()
    return tree.root.text(separator=" ") if tree.root is not None else ""


def length(page: Page) -> int:
    """The page's length in words; in a script without spaces, two characters count as one."""
    seen = as_seen(page)
    return len("".join(seen.split())) // 2 if page.language in WITHOUT_SPACES else len(seen.split())


def test_there_are_many_long_pages_of_many_kinds_in_a_small_set() -> None:
    assert len(PAGES) >= 64
    assert sum(len(page.questions) for page in PAGES) >= 100
    assert len({page.make for page in PAGES}) >= 40
    assert len({page.language for page in PAGES}) >= 10
    assert len({page.encoding for page in PAGES}) >= 9
    assert {page.content_type.partition(";")[0] for page in PAGES} == {
        "text/html", "text/plain", "application/json", "application/pdf",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_000_000
    assert {page.file: length(page) for page in PAGES if not 300 <= length(page) <= 3000} == {}
    assert sorted(page.file for page in PAGES) == sorted(path.name for path in (FOLDER / "pages").iterdir())


def test_every_page_is_asked_about_in_every_way() -> None:
    assert all(page.questions for page in PAGES)
    asked = [question.text for page in PAGES for question in page.questions]
    assert len(set(asked)) == len(asked)
    kinds = Counter(question.kind for page in PAGES for question in page.questions)
    assert set(kinds) == {"direct", "paraphrase", "number", "negation", "which of two"}
    assert min(kinds.values()) >= 15


def test_the_right_passage_is_on_its_page_once_and_on_no_other() -> None:
    seen = {page.file: as_seen(page) for page in PAGES}
    wrong = []
    for page in PAGES:
        for question in page.questions:
            once = "".join(seen[page.file].split()).count("".join(question.passage.split())) == 1
            if not once or [file for file, text in seen.items() if holds(text, question.passage)] != [page.file]:
                wrong.append((page.file, question.text))
    assert wrong == []


def test_a_page_is_served_in_the_charset_that_it_has() -> None:
    pages = [page for page in PAGES if page.content_type != "application/pdf"]
    assert [page.file for page in pages if page.body().decode(page.encoding) != page.written] == []


def test_a_question_is_asked_with_the_pages_that_are_similar() -> None:
    for page in PAGES:
        company = beside(page, PAGES, "seed")
        alike = [other for other in PAGES if other.subject == page.subject]
        assert len({one.file for one in company}) == SIDE_BY_SIDE
        assert page in company
        assert all(other in company for other in alike) or {one.subject for one in company} == {page.subject}
    assert beside(PAGES[0], PAGES, "seed") == beside(PAGES[0], PAGES, "seed")
    assert max(Counter(page.subject for page in PAGES).values()) == SIDE_BY_SIDE


# -- `postback models bench` -------------------------------------------------------------------------------------------


URL = "https://bench.example/"


def event(job_id: object, kind: object = "inference.succeeded") -> dict[str, object]:
    return {"type": kind, "data": {"id": job_id}}


def test_a_job_is_timed_from_its_submission_to_its_first_callback() -> None:
    clock = SetClock(1_000.0)
    bench, plan = FleetBench(clock), BenchPlan("echo", 4, URL, 60.0)
    ids = [job.job_id for job in bench.work(plan)]
    for seconds, job_id, kind in ((1.0, ids[0], "succeeded"), (1.0, ids[1], "failed"), (2.0, ids[0], "failed")):
        clock.now += seconds
        bench.arrived(event(job_id, f"inference.{kind}"))

    report = bench.report(plan, accepted=3)
    assert report.document() == {
        "model": "echo",
        "jobs": 4,
        "accepted": 3,
        "called_back": 2,
        "outcomes": {"succeeded": 1, "failed": 1},
        "seconds": 2.0,
        "jobs_per_second": 1.0,
        "submit_to_callback_ms": {"p50": 1000.0, "p90": 2000.0, "p99": 2000.0, "max": 2000.0},
    }
    assert report.succeeded == 1
    silent, plan = FleetBench(SetClock(0.0)), BenchPlan("echo", 1, URL, 60.0)
    list(silent.work(plan))
    without = silent.report(plan, accepted=1)
    assert (without.called_back, without.jobs_per_second, without.percentile(99)) == (0, 0.0, None)
    json.dumps(without.document())


def test_a_rate_spreads_the_jobs_and_each_job_expires_by_itself() -> None:
    clock = HandClock()
    bench, plan = FleetBench(clock), BenchPlan("echo", 5, URL, 60.0, rate=4.0)
    at = [(clock.monotonic(), job.ttl_seconds, job.model_id) for job in bench.work(plan)]

    assert [later[0] - earlier[0] for earlier, later in pairwise(at)] == [0.25] * 4
    assert {one[1:] for one in at} == {(60.0, "echo")}


@given(JSON | st.dictionaries(st.sampled_from(["data", "id", "type"]), JSON) | st.builds(event, JSON, JSON))
def test_an_event_of_any_form_changes_nothing(said: object) -> None:
    bench = FleetBench(SetClock(0.0))
    list(bench.work(BenchPlan("echo", 2, URL, 60.0)))
    bench.arrived(said)

    assert bench.called_back == 0


# -- pictures of dashboards --------------------------------------------------------------------------------------------


PERIOD = Period(end=1_800_000_000.0, seconds=600.0)
PNG = b"\x89PNG\r\n\x1a\n"


def panel(title: str, number: int, **defaults: Any) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "gridPos": {"x": 8 * number, "y": 0, "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": "s", **defaults}},
        "targets": [{"expr": "x", "legendFormat": "{{lane}}"}],
        "options": {"legend": {"sortBy": "Max"}},
    }


def dashboard(folder: Path, *panels: dict[str, Any]) -> Dashboard:
    file = folder / "fleet.json"
    file.write_text(json.dumps({"title": "A fleet", "panels": panels}))
    return read_dashboard(file)


def line(legend: str, *values: float) -> Series:
    return Series(legend, tuple(PERIOD.end - 60 + number for number in range(len(values))), values)


def legend_texts(axes: Axes) -> list[str]:
    """The legend's names, and its title if it has one."""
    legend = axes.get_legend()
    assert legend is not None
    return [text for each in (*legend.get_texts(), legend.get_title()) if (text := each.get_text())]


def test_a_legend_shows_the_values_of_labels_as_grafana_shows_them() -> None:
    assert legend_of("{{lane}} alive", {"lane": "gpu"}) == "gpu alive"
    assert legend_of("{{ model }} {{result}}", {"model": "m", "result": "failed"}) == "m failed"
    assert legend_of("{{lane}}", {"lane": ""}) == legend_of("{{lane}}", {}) == "Value"
    assert legend_of("p95", {}) == "p95"


def test_a_number_has_its_unit_as_on_grafanas_axes() -> None:
    units: dict[str, dict[float, str]] = {
        "s": {0: "0 s", 0.025: "25 ms", -90: "-1.5 min", 7_200: "2 hour"},
        "short": {1_500: "1.5 K", 0.5: "0.5"},
        "ops": {0.25: "0.25 ops/s"},
        "reqps": {12: "12 req/s"},
        "suffix: tokens/s": {2_000: "2 K tokens/s"},
        "percentunit": {0.5: "50%"},
        "percent": {50: "50%"},
    }
    for unit, texts in units.items():
        assert {value: written(value, unit) for value in texts} == texts


def test_a_time_without_a_value_is_a_gap_in_its_line() -> None:
    found = line_of("a", [10.0, 11.0, 12.0], [(10, "1"), (12, "+Inf")])

    assert found.values[::2] == (1.0, math.inf)
    assert math.isnan(found.values[1])
    assert not found.is_empty
    assert line_of("a", [10.0, 11.0], [(10, "NaN")]).is_empty
    # A rate looks back over at least four scrapes.
    assert (PERIOD.rate_interval, Period(0, 86_400, scrape_seconds=5).rate_interval) == ("60s", "365s")


def test_a_panel_that_is_no_graph_is_refused_by_its_title(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'Sum' is a stat"):
        dashboard(tmp_path, {**panel("Sum", 0), "type": "stat"})


def test_a_picture_shows_titles_legends_units_thresholds_and_bounds_in_place(tmp_path: Path) -> None:
    steps = [{"value": None, "color": "green"}, {"value": 60, "color": "red"}]
    shown = {"thresholds": {"steps": steps}, "custom": {"thresholdsStyle": {"mode": "dashed"}}}
    read = dashboard(tmp_path, panel("Wait", 0, min=0, max=120, **shown), panel("Nothing", 1))
    first, second = figure_of(read, {read.panels[0]: [line("gpu", 1.0, 90.0)], read.panels[1]: []}, PERIOD).axes

    assert [each.get_title(loc="left") for each in (first, second)] == ["Wait", "Nothing"]
    assert first.get_ylim() == (0, 120)
    assert first.yaxis.get_major_formatter()(90, 0) == "1.5 min"
    assert legend_texts(first) == ["gpu"]
    assert [numpy.asarray(each.get_ydata()).tolist() for each in first.lines] == [[1.0, 90.0], [60, 60]]
    assert first.get_position().x1 < second.get_position().x0
    assert [text.get_text() for text in second.texts] == ["No data"]


def test_a_picture_is_written_as_png_whose_legend_begins_with_the_highest_of_many_series(tmp_path: Path) -> None:
    read = dashboard(tmp_path, panel("Routes", 0))
    lines = [line(f"/v1/route/{number}", float(number)) for number in range(25)]
    draw(read, {read.panels[0]: lines}, PERIOD, tmp_path / "fleet.png")
    [axes] = figure_of(read, {read.panels[0]: lines}, PERIOD).axes

    assert (tmp_path / "fleet.png").read_bytes().startswith(PNG)
    assert legend_texts(axes) == [f"/v1/route/{number}" for number in range(24, 4, -1)] + ["and 5 more"]
