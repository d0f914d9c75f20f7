"""Compares extracted text with the gold text of public sets: `python -m bench.extraction --data DIR`.

DIR holds one or both of these sets, which are not part of this project:

    zyte/   `html/ID.html.gz` and `ground-truth.json` of https://github.com/scrapinghub/article-extraction-benchmark
    wcxb/   `html/ID.html.gz` and `ground-truth/ID.json` of the Web Content Extraction Benchmark

The score of a page is that of the set's authors: shared runs of four words for zyte, shared words for wcxb. Our
extraction runs with each extractor of POSTBACK_ENRICHMENT__EXTRACTOR; readability takes part if it is installed. CPU
times of one run are comparable on a busy machine, wall times are not.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from bench.result import parsed, table, title, verdict
from workers.enrichment.choosing.rank import Budget, Ranking
from workers.enrichment.evidence import Extractor, Unreadable
from workers.enrichment.reading.extract import Extracted, extract
from workers.enrichment.reading.steering import steering

HTML: Final = "text/html"
MANY_WORDS: Final = 100
"""A page with at least this many words of gold text must not end as "no visible text"."""
SIDE_BY_SIDE: Final = 8
EVIDENCE_CHARS: Final = 4000
PASSAGE_CHARS: Final = 600
_NEARLY: Final = 0.8
_WORD: Final = re.compile(r"\w+")
_SENTENCE: Final = re.compile(r"[^.!?\n]{60,300}[.!?]")
_TARGETS: Final = {"zyte": 0.94, "wcxb": 0.86}
"""Wanted F1 of the main text in each set."""
_END_TO_END: Final = 0.97
"""Wanted share of questions whose answer is quoted, in each set."""
_LABELLED: Final = 0.01
"""The largest share of ordinary pages that may be labelled as steering."""
_CPU_MS: Final[dict[Extractor, float]] = {"resiliparse": 6.0, "trafilatura": 20.0}


@dataclass(frozen=True, slots=True)
class GoldPage:
    """A page with the main text that people found in it."""

    name: str
    body: bytes
    gold: str


@dataclass(slots=True)
class Scores:
    """The results of one extractor on one set."""

    precision: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    empty: list[str] = field(default_factory=list)
    """Names of the pages without any text, although the gold text has many words."""

    @property
    def f1(self) -> float:
        """The mean of the pages' F1."""
        return statistics.mean(_f1(*pair) for pair in zip(self.precision, self.recall, strict=True))


def main() -> None:
    """Read all pages with all extractors, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with zyte/ and wcxb/")
    folder = parsed(parser).data
    sets = {name: pages for name, load in _SETS.items() if (pages := list(load(folder / name)))}
    if not sets:
        parser.error(f"--data {folder}: has neither zyte/ground-truth.json nor wcxb/ground-truth/")
    for name, pages in sets.items():
        title(f"{name}: the main text of {len(pages)} pages")
        _compare(name, pages)


def _zyte(folder: Path) -> Iterator[GoldPage]:
    if (folder / "ground-truth.json").is_file():
        for name, gold in sorted(json.loads((folder / "ground-truth.json").read_text("utf-8")).items()):
            yield GoldPage(name, _unpacked(folder / "html" / f"{name}.html.gz"), gold["articleBody"])


def _wcxb(folder: Path) -> Iterator[GoldPage]:
    for path in sorted((folder / "ground-truth").glob("*.json")):
        gold = json.loads(path.read_text("utf-8"))["ground_truth"]["main_content"]
        yield GoldPage(path.stem, _unpacked(folder / "html" / f"{path.stem}.html.gz"), gold or "")


def _unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


_SETS: Final[dict[str, Callable[[Path], Iterator[GoldPage]]]] = {"zyte": _zyte, "wcxb": _wcxb}


# -- the extractors --------------------------------------------------------------------------------------------------


def _ours(extractor: Extractor) -> Callable[[bytes], str]:
    return lambda body: _extracted(body, extractor).text


def _name(extractor: Extractor) -> str:
    return f"ours, by {extractor}"


def _extractors() -> dict[str, Callable[[bytes], str]]:
    """Return the extractors that are installed, by name. Each extractor takes a page's bytes."""
    found = {_name(extractor): _ours(extractor) for extractor in get_args(Extractor)}
    found["resiliparse"] = _resiliparse()
    for name, make in (("trafilatura", _trafilatura), ("readability", _readability)):
        try:
            found[name] = make(importlib.import_module(name))
        except ImportError:
            print(f"{name} is not installed, and does not take part")
    return found


def _resiliparse() -> Callable[[bytes], str]:
    text = importlib.import_module("resiliparse.extract.html2text")
    encoding = importlib.import_module("resiliparse.parse.encoding")

    def extracted(body: bytes) -> str:
        html = encoding.bytes_to_str(body, encoding.detect_encoding(body))
        return str(text.extract_plain_text(html, main_content=True, alt_texts=False))

    return extracted


def _trafilatura(library: Any) -> Callable[[bytes], str]:
    return lambda body: str(library.extract(body) or "")


def _readability(library: Any) -> Callable[[bytes], str]:
    parser = importlib.import_module("selectolax.lexbor").LexborHTMLParser
    return lambda body: str(parser(library.Document(body.decode("utf-8", "replace")).summary()).text(separator=" "))


# -- scores ----------------------------------------------------------------------------------------------------------


def _compare(name: str, pages: Sequence[GoldPage]) -> None:
    scores = {extractor: _scores(name, run, pages) for extractor, run in _extractors().items()}
    head = ("extractor", "precision", "recall", "F1", "CPU ms a page", f"empty, of {MANY_WORDS} words")
    table(head, [(extractor, *_row(each, len(pages))) for extractor, each in scores.items()])
    for extractor in get_args(Extractor):
        title(f"{name}: {_name(extractor)}")
        ours = scores[_name(extractor)]
        found, labelled = _found(pages, extractor)
        verdict("F1", ours.f1, _TARGETS[name], at_least=True)
        verdict(f"questions with their passage, of {SIDE_BY_SIDE} pages", found, _END_TO_END, at_least=True)
        verdict("questions whose passages are labelled as steering", labelled, _LABELLED, at_least=False)
        verdict("CPU", 1000 * ours.cpu_seconds / len(pages), _CPU_MS[extractor], at_least=False, unit=" ms a page")
        verdict("empty pages", len(ours.empty), 0, at_least=False)


def _scores(name: str, run: Callable[[bytes], str], pages: Sequence[GoldPage]) -> Scores:
    scores = Scores()
    for page in pages:
        started = time.process_time()
        try:
            text = run(page.body)
        except Exception as error:  # if a library fails on a page, the page's text counts as empty
            print(f"{page.name}: {type(error).__name__}")
            text = ""
        scores.cpu_seconds += time.process_time() - started
        precision, recall = _measured(_parts(name, text), _parts(name, page.gold))
        scores.precision.append(precision)
        scores.recall.append(recall)
        if not text.strip() and len(_WORD.findall(page.gold)) >= MANY_WORDS:
            scores.empty.append(page.name)
    return scores


def _parts(name: str, text: str) -> Counter[tuple[str, ...]]:
    """Return the parts of a text that its set compares: runs of four words, or single words in lower case."""
    if name == "zyte":
        words = _WORD.findall(text)
        return Counter(tuple(words[at : at + 4]) for at in range(max(1, len(words) - 3))) if words else Counter()
    return Counter((word,) for word in _WORD.findall(text.lower()))


def _measured(found: Counter[tuple[str, ...]], gold: Counter[tuple[str, ...]]) -> tuple[float, float]:
    """Return precision and recall."""
    shared = (found & gold).total()
    if not found or not gold:
        return float(not found and not gold), float(not gold)
    return shared / found.total(), shared / gold.total()


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _row(scores: Scores, pages: int) -> tuple[str, ...]:
    means = (statistics.mean(scores.precision), statistics.mean(scores.recall), scores.f1)
    return (*(f"{mean:.3f}" for mean in means), f"{1000 * scores.cpu_seconds / pages:.1f}", str(len(scores.empty)))


# -- from a question to its passage ----------------------------------------------------------------------------------


def _found(pages: Sequence[GoldPage], extractor: Extractor) -> tuple[float, float]:
    """Return the share of questions whose answer is quoted, and the share whose page is labelled as steering.

    A question has the words of one sentence of a page's gold text, in another order. Each question is asked of eight
    pages.
    """
    texts = [_extracted(page.body, extractor) for page in pages]
    hits, labels = [], []
    for number, page in enumerate(pages):
        chance = random.Random(page.name)
        sentences = [found.group().strip() for found in _SENTENCE.finditer(page.gold)]
        if not sentences:
            continue
        sentence = chance.choice(sentences)
        words = _WORD.findall(sentence)
        chance.shuffle(words)
        others = chance.sample([at for at in range(len(pages)) if at != number], SIDE_BY_SIDE - 1)
        documents = [texts[at] for at in (number, *others)]
        passages = _chosen(" ".join(words), documents)
        hits.append(_says(" ".join(passages), sentence))
        labels.append(bool(steering(*passages)))
    return statistics.mean(hits), statistics.mean(labels)


def _extracted(body: bytes, extractor: Extractor) -> Extracted:
    try:
        return extract(body, HTML, None, extractor=extractor)
    except Unreadable:
        return Extracted(None, "")


def _chosen(question: str, documents: Sequence[Extracted]) -> list[str]:
    """Return the passages that are quoted from the first document."""
    titled = [(one.title or "", one.text, one.rest) for one in documents]
    return Ranking(question, titled, PASSAGE_CHARS).chosen(Budget(EVIDENCE_CHARS))[0]


def _says(text: str, sentence: str) -> bool:
    """True if the text has nearly all of the sentence's runs of three words: some span parts that gold text joins."""
    runs = _runs(sentence)
    return len(runs & _runs(text)) >= _NEARLY * len(runs)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


if __name__ == "__main__":
    main()
