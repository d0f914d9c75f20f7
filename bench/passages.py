"""Counts how often the enricher chooses the right passage, on the evaluation set: `python -m bench.passages`.

The real enricher gets each question with eight pages of a loopback site: the question's page, and seven others. Pages
with the same subject are taken first. A question is a hit if the passages chosen from its page contain the words that
answer it.

With `--data DIR`, the bench instead ranks the documents of a public test collection, by our BM25 and by bm25s. See
`bench.evaluation.beir` for the files of DIR.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import uvloop

from bench.evaluation.beir import DEPTH, compared, load_collection
from bench.evaluation.pages import SIDE_BY_SIDE, Page, Question, beside, holds, load_pages
from bench.evaluation.site import serving
from bench.result import figure, parsed, table, title
from schemas.job import Sources
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy, Guard
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Unreadable
from workers.enrichment.reading.extract import extract
from workers.enrichment.settings import EnrichmentSettings

SEED: Final = "passages"
EVIDENCE_CHARS: Final = 4000
"""Code points for all passages together: the setting's default."""
ONE_PASSAGE_CHARS: Final = 750
"""Code points that suffice for the best passage of all eight pages, and for hardly any other."""


def _settings(evidence_chars: int) -> EnrichmentSettings:
    """Return the default settings with long timeouts, since hits must not depend on the machine's load."""
    return EnrichmentSettings(evidence_chars=evidence_chars, budget_seconds=60.0, member_seconds=30.0)


BASELINE: Final = f"beginnings, {EVIDENCE_CHARS}"
BM25: Final = f"BM25, {EVIDENCE_CHARS}"
WAYS: Final[Mapping[str, EnrichmentSettings]] = {
    BM25: _settings(EVIDENCE_CHARS),
    f"BM25, {ONE_PASSAGE_CHARS}": _settings(ONE_PASSAGE_CHARS),
}
"""Settings of the compared ways of choosing, by name. A name includes the number of code points."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome for one question."""

    page: Page
    question: Question
    extracted: bool
    """True if the text extracted from the page contains the right passage."""
    hits: Mapping[str, bool]
    """For each way of choosing, true if the chosen passages contain the right one."""


def main() -> None:
    """Ask every question in every way and print the hits, or print the nDCG of a public collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="rank the documents of this collection in BEIR's format, not the bench's own",
    )
    folder = parsed(parser).data
    if folder is None:
        pages = load_pages()
        title(f"The right passage among {SIDE_BY_SIDE} pages, {len(pages)} pages in the set")
        report(uvloop.run(measured(pages)))
        return
    try:
        collection = load_collection(folder)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--data {folder}: {error!r}")
    title(f"{folder.name}: {len(collection.documents)} documents, {len(collection.queries)} queries")
    table(("ranking", f"nDCG@{DEPTH}"), [(name, f"{value:.3f}") for name, value in compared(collection)])


async def measured(pages: Sequence[Page], ways: Mapping[str, EnrichmentSettings] = WAYS) -> list[Outcome]:
    """Return the outcome of each of the pages' questions, in every way."""
    texts = {page.file: _text(page) for page in pages}
    hits: dict[Question, dict[str, bool]] = defaultdict(dict)
    async with serving(pages) as origin:
        for name, settings in ways.items():
            for question, found in await _asked(pages, origin, settings):
                hits[question][name] = holds(found, question.passage)
    for page in pages:
        for question in page.questions:
            beginning = texts[page.file][: EVIDENCE_CHARS // SIDE_BY_SIDE]
            hits[question][BASELINE] = holds(beginning, question.passage)
    return [
        Outcome(page, question, holds(texts[page.file], question.passage), hits[question])
        for page in pages
        for question in page.questions
    ]


async def _asked(pages: Sequence[Page], origin: str, settings: EnrichmentSettings) -> list[tuple[Question, str]]:
    """Return, for each question, the passages of its page that an enricher with these settings chooses."""
    guard = Guard(EgressPolicy(allow=(ip_network("127.0.0.0/8"),)))
    enricher = Enricher(settings, guard, SystemClock(), Metrics())
    await enricher.start()

    async def ask(page: Page, question: Question) -> tuple[Question, str]:
        urls = [origin + one.path for one in beside(page, pages, f"{SEED} {question.text}")]
        evidence = await enricher.enrich(Sources(urls=urls), question.text)
        chosen = [source.passages for source in evidence.sources if source.id == origin + page.path]
        return question, "\n\n".join(passage for passages in chosen for passage in passages)

    try:
        return [await ask(page, question) for page in pages for question in page.questions]
    finally:
        await enricher.close()


def _text(page: Page) -> str:
    """Return the page's extracted text, which is empty if the page is unreadable."""
    media_type, _, parameter = page.content_type.partition("; charset=")
    try:
        extracted = extract(page.body(), media_type, parameter or None)
        return f"{extracted.text}\n\n{extracted.rest}"
    except Unreadable:
        return ""


_GROUPS: Final[Mapping[str, Callable[[Outcome], str]]] = {
    "kind of question": lambda outcome: outcome.question.kind,
    "language": lambda outcome: outcome.page.language,
    "make": lambda outcome: outcome.page.make,
}


def share(flags: Sequence[bool]) -> float:
    """Return the share of true flags, from 0 to 1."""
    return sum(flags) / len(flags)


def report(outcomes: Sequence[Outcome]) -> None:
    """Print the hit rates over all questions and by group, and then the misses."""
    _print_ways(outcomes)
    for what, of in _GROUPS.items():
        _print_groups(what, of, outcomes)
    _print_misses(outcomes)


def _print_ways(outcomes: Sequence[Outcome]) -> None:
    extracted = share([outcome.extracted for outcome in outcomes])
    print(f"\n{len(outcomes)} questions; the text of the page held the right passage for {extracted:.1%}")
    figure(
        f"questions whose right passage was chosen by {BM25}", f"{share([each.hits[BM25] for each in outcomes]):.1%}"
    )
    figure("the page's beginning instead", f"{share([each.hits[BASELINE] for each in outcomes]):.1%}")
    names = [BASELINE, *(name for name in outcomes[0].hits if name != BASELINE)]
    rows = [(name, f"{share([outcome.hits[name] for outcome in outcomes]):.1%}") for name in names]
    table(("way of choosing, code points", "hit rate"), rows)


def _print_groups(what: str, of: Callable[[Outcome], str], outcomes: Sequence[Outcome]) -> None:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[of(outcome)].append(outcome)
    rows = [
        (
            name,
            len(group),
            sum(outcome.extracted for outcome in group),
            *(sum(outcome.hits[way] for outcome in group) for way in outcomes[0].hits),
        )
        for name, group in sorted(groups.items())
    ]
    table((what, "questions", "extracted", *outcomes[0].hits), rows)


def _print_misses(outcomes: Sequence[Outcome]) -> None:
    missed = [outcome for outcome in outcomes if not outcome.hits[BM25]]
    print(f"Missed by {BM25}:")
    for outcome in missed:
        why = "" if outcome.extracted else " (not in the extracted text)"
        print(f"  {outcome.page.file}: {outcome.question.text}{why}")


if __name__ == "__main__":
    main()
