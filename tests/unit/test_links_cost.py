"""Cleaning an answer's links takes the event loop a time that is linear in the text, whatever the text is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from workers.enrichment.answering.links import LINK_REMOVED, _Given, without_unknown_links
from workers.enrichment.evidence import Evidence, NumberedSource

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
    """The shortest of three runs in CPU time of this thread, so that other threads and processes do not count."""
    without_unknown_links("", evidence)  # finds the job's own URLs outside of the measured time
    times = []
    for _ in range(3):
        before = time.thread_time()
        without_unknown_links(text, evidence)
        times.append(time.thread_time() - before)
    return min(times)


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_a_text_sixteen_times_as_long_takes_far_less_than_the_square_of_that(unit: str) -> None:
    """A quadratic cost would be 256 times as high; a linear one was 15 to 27 times as high."""
    short, long = (seconds(repeated(unit, chars), Evidence(())) for chars in (CHARS // 4, 4 * CHARS))
    assert long < 64 * short


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_no_text_takes_many_times_as_long_as_prose(unit: str) -> None:
    assert seconds(repeated(unit, CHARS), Evidence(())) < 30 * seconds(repeated(PROSE, CHARS), Evidence(()))


def test_the_number_of_the_jobs_own_urls_hardly_matters() -> None:
    """A question may name URLs of a thousand different lengths, and an answer may contain thousands of URLs."""
    one, many = ("\n".join(f"https://{'a' * length}" for length in lengths) for lengths in ([1], range(1, 1000)))
    answer = repeated("ab://c\n", CHARS)
    assert seconds(answer, Evidence((), question=many)) < 5 * seconds(answer, Evidence((), question=one))


def sources_at(urls: Iterable[str]) -> Evidence:
    return Evidence(tuple(NumberedSource(number, url, url, None, ()) for number, url in enumerate(urls, 1)))


def test_a_found_url_is_compared_with_no_longer_ones() -> None:
    """In an earlier version, the URLs of 128 sources made a million characters of short URLs take six seconds."""
    links = _Given.of(sources_at(f"https://s.example/{'a' * length}" for length in range(100)))
    assert links._lengths_within(len("ab://c")) == []
    assert links._lengths_within(len("https://s.example/aa")) == [20, 19, 17]


class ComparesWithAll(_Given):
    """Compares each found URL with the given URLs of all lengths."""

    def _lengths_within(self, most: int) -> list[int]:
        return sorted({len(url) for url in self.links}, reverse=True)


URLS = st.lists(
    st.sampled_from(
        ["http", "https", "ab", ":", "://", ":/", "\\", "//", "/", "www.", "a", "b.example", "é", "(", ")", "(x)", "[",
         "]", "'", '"', "|", "。", "<", ">", "~", ".", "_", "?x=", "#"]
    ),
    max_size=10,
).map("".join)  # fmt: skip


@settings(max_examples=drawn(300))
@given(st.lists(URLS, max_size=4), st.data())
def test_the_urls_that_are_compared_are_enough(urls: list[str], data: st.DataObject) -> None:
    urls = [f"https://{url}" for url in urls] + urls
    text = "".join(data.draw(st.lists(st.sampled_from([*urls, " ", "\n"]) | URLS, max_size=8)))
    evidence = sources_at(urls)
    of_all = ComparesWithAll(*astuple(_Given.of(evidence)))
    assert _Given.of(evidence).cleaned(text) == of_all.cleaned(text)


@pytest.mark.parametrize(
    "url", ["HTTP://b.example/", "WwW.b.example", "http\u017f://b.example/", "\u212aind://b.example/"]
)
def test_an_address_in_any_case_is_removed(url: str) -> None:
    """If case is ignored, U+017F equals the letter s, and U+212A equals the letter k."""
    assert without_unknown_links(f"See {url} there", Evidence(())) == f"See {LINK_REMOVED} there"
