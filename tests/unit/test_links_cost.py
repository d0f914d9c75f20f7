"""The time of cleaning an answer's links, which the event loop spends: linear in the text, whatever the text is."""

from __future__ import annotations

import time

import pytest

from workers.enrichment.answering.links import LINK_REMOVED, without_unknown_links
from workers.enrichment.evidence import Evidence

CHARS = 32 * 1024
PROSE = "Why is the sky blue? It is said to be. "
HOSTILE = {
    "spaces in a link": "[](" + " " * 512 * 1024,
    "one word": "a",
    "words of schemes": "http+a.b-",
    "schemes": "ab://",
    "schemes apart": "ab://<",
    "hosts": "www.",
    "slashes": "/",
    "folders": "//a.b",
    "brackets": "[",
    "links": "[a](",
    "links apart": "[](x(y) ",
    "images": "![",
    "targets": "](<",
    "definitions": "]:>>",
    "tags": "<a ",
    "attributes": '<a b="',
    "parentheses": "x://(" + "y" * 190,
    "quotation marks": '"\\',
}


def repeated(unit: str, chars: int) -> str:
    return (unit * (chars // len(unit) + 1))[:chars]


def seconds(text: str, evidence: Evidence) -> float:
    """The least CPU time of some runs: other threads and processes do not count."""
    without_unknown_links("", evidence)  # finds the job's own URLs
    times = []
    for _ in range(3):
        before = time.thread_time()
        without_unknown_links(text, evidence)
        times.append(time.thread_time() - before)
    return min(times)


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_a_text_four_times_as_long_takes_about_four_times_as_long(unit: str) -> None:
    short, long = (seconds(repeated(unit, chars), Evidence(())) for chars in (CHARS, 4 * CHARS))
    assert long < 8 * short


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_no_text_takes_many_times_as_long_as_prose(unit: str) -> None:
    assert seconds(repeated(unit, CHARS), Evidence(())) < 30 * seconds(repeated(PROSE, CHARS), Evidence(()))


def test_the_number_of_the_jobs_own_urls_hardly_matters() -> None:
    """A question may name URLs of a thousand lengths, and an answer thousands of URLs."""
    one, many = ("\n".join(f"https://{'a' * length}" for length in lengths) for lengths in ([1], range(1, 1000)))
    answer = repeated("ab://c\n", CHARS)
    assert seconds(answer, Evidence((), question=many)) < 5 * seconds(answer, Evidence((), question=one))


@pytest.mark.parametrize(
    "url", ["HTTP://b.example/", "WwW.b.example", "http\u017f://b.example/", "\u212aind://b.example/"]
)
def test_an_address_in_any_case_is_removed(url: str) -> None:
    """U+017F and U+212A are letters of ASCII where case is ignored."""
    assert without_unknown_links(f"See {url} there", Evidence(())) == f"See {LINK_REMOVED} there"
