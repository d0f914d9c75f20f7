"""Listed words in the disguises that people use, and innocent texts that contain such words."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.job import Job
from schemas.screening import Verdict
from tests.screening_rules import found_in, screen_of, words

IS_FLAGGED = [
    "you bastard",
    "YOU BASTARD",
    "you bastards!",
    "b@stard",
    "b4$t4rd",
    "baaaastard",
    "ba\u200bst\u00adard",
    "ｂａｓｔａｒｄ",
    "𝖇𝖆𝖘𝖙𝖆𝖗𝖉",
    "b\u0336a\u0336s\u0336t\u0336a\u0336r\u0336d",
    "bаstаrd",  # with Cyrillic а
    "sh1t",
    "$hit",
    "SHIIIIT",
    "blow-job",
    "blow\njob",
    "a$$",
    "what a dipshit.",
    "🖕",
]
IS_INNOCENT = [
    "Scunthorpe, Penistone and Lightwater are towns",
    "The assassin classified a bass in the cockpit; the analyst assumed grass.",
    "gay marriage and gay rights",
    "a lesbian poet, a trans woman, a queer archive",
    "breast cancer screening and prostate cancer",
    "sexual health: penis, vagina, semen and rectum are words of medicine",
    "how to kill a Python process",
    "Dick Cheney met Mr Hancock; Moby-Dick is a novel",
    "the Alaskan pipeline, a hoe for the garden, and hard-core memory",
    "the A55 road and order 455; part A$5 costs $5",
    "Shiitake, Matsushita, Dickens, cocktail, button, Essex, therapist",
    "tied up in traffic, that sucks",
    "XXX marks the spot; xx% of XXXL shirts",
    "a rape crisis centre; white power supply; date raped is reported",
    "as soon as possible",
    "Die Rosette am Dom, der Lümmel von der letzten Bank",
    "Un con vélo; coño is said in Spain only",
]


@pytest.mark.parametrize("text", IS_FLAGGED)
def test_a_listed_word_is_flagged_in_any_disguise(tmp_path: Path, text: str) -> None:
    screened = screen_of(tmp_path, words()).check("acme", Job(prompt=f"Well, {text} indeed"))

    assert screened.verdict is Verdict.FLAG
    assert found_in(screened) == {("words", "words", "prompt"): 1}


@pytest.mark.parametrize("text", IS_INNOCENT)
def test_an_innocent_text_passes(tmp_path: Path, text: str) -> None:
    assert screen_of(tmp_path, words()).check("acme", Job(prompt=text)).findings == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [("german", "So ein Scheisser, du Hurensohn"), ("french", "quelle connasse"), ("spanish", "cabrón")],
)
def test_each_list_finds_words_of_its_language(tmp_path: Path, name: str, text: str) -> None:
    assert screen_of(tmp_path, words(f'lists = ["{name}"]')).check("acme", Job(prompt=text)).findings
    assert not screen_of(tmp_path, words('words = ["unused"]')).check("acme", Job(prompt=text)).findings


def test_an_eszett_is_found_as_double_s_too(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, words('lists = ["german"]'))

    assert screen.check("acme", Job(prompt="so eine Scheisse")).findings
    assert screen.check("acme", Job(prompt="so eine SCHEIẞE")).findings


def test_everyday_words_count_where_a_rule_says_so(tmp_path: Path) -> None:
    job = Job(prompt="penis")

    assert not screen_of(tmp_path, words()).check("acme", job).findings
    assert screen_of(tmp_path, words('lists = ["english"]\neveryday = true')).check("acme", job).findings


def test_an_operator_adds_words_from_files_and_takes_words_away(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("# our own\nblockhead\nbig  fool\nfool\n", encoding="utf-8")
    screen = screen_of(tmp_path, words('lists = ["english"]\nfiles = ["own.txt"]\nexcept_words = ["Bastard", "fool"]'))

    assert screen.check("acme", Job(prompt="a BLOCKHEAD")).findings
    assert not screen.check("acme", Job(prompt="a bastard and a fool")).findings


def test_each_place_counts_once_whichever_readings_find_it(tmp_path: Path) -> None:
    screened = screen_of(tmp_path, words()).check("acme", Job(prompt="bastard, shit and shiiit, b4stard"))

    assert found_in(screened) == {("words", "words", "prompt"): 4}
