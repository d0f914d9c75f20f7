"""Shares of the evaluation set's questions whose right passage is extracted and chosen. Nothing is timed."""

from __future__ import annotations

import asyncio

import pytest

from bench.evaluation.pages import load_pages
from bench.passages import BASELINE, BM25, Outcome, measured, report, share

EXTRACTED_FLOOR = 1.0
HIT_FLOOR = 0.85
"""The required share: a little below the figure in docs/EVIDENCE.md, so that one or two hard questions may be added."""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return asyncio.run(measured(load_pages()))


def test_every_right_passage_is_in_the_text_of_its_page(outcomes: list[Outcome]) -> None:
    lost = [(outcome.page.file, outcome.question.passage) for outcome in outcomes if not outcome.extracted]
    assert share([outcome.extracted for outcome in outcomes]) >= EXTRACTED_FLOOR, lost


def test_ranking_finds_the_right_passage_far_more_often_than_the_beginnings_do(outcomes: list[Outcome]) -> None:
    missed = [(outcome.page.file, outcome.question.text) for outcome in outcomes if not outcome.hits[BM25]]
    assert share([outcome.hits[BM25] for outcome in outcomes]) >= HIT_FLOOR, missed
    assert share([outcome.hits[BASELINE] for outcome in outcomes]) < HIT_FLOOR / 2


def test_the_report_names_every_choice_every_kind_of_page_and_each_miss(
    outcomes: list[Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    report(outcomes)
    printed = capsys.readouterr().out
    named = {line.strip("|").split("|")[0].strip() for line in printed.splitlines() if line.startswith("| ")}
    assert named >= {*outcomes[0].hits, *(outcome.page.make for outcome in outcomes)}
    assert all(outcome.question.text in printed for outcome in outcomes if not outcome.hits[BM25])
