"""Counts wrong judgements of sentences by their sources: `python -m bench.citations [--judge FOLDER]`.

`evaluation/answers.toml` has 240 pairs of a sentence and its source: 80 true ones, 80 contradicted ones, 80 without a
basis. One half chooses thresholds (`--half thresholds`). Further sets stand beside it, each written by someone who had
seen neither the rules nor the other sets. The rules were changed after each but `last`, after which only true sentences
that had lost their support got it back.

The bench uses no clock and no random numbers, so the results are equal on every machine. Without `--judge`, the rules
and words decide alone; with it, the cross-encoder in this folder decides what the rules leave open.

`--data FILE…` judges files of these public sets instead, which are not part of this project:

    *.jsonl  FEVER-Symmetric (https://github.com/TalSchuster/FeverSymmetric): `evidence`, `claim`, and `label`
    others   SICK, of SemEval-2014 task 1: tab-separated columns, with `entailment_judgment` as the label

Pairs with any other label are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.result import figure, parsed, table, verdict
from schemas.result import Support
from workers.enrichment.answering.citations import BEARING, Reading, judged
from workers.enrichment.answering.judging import CrossEncoder, Judge
from workers.enrichment.evidence import Evidence, NumberedSource
from workers.enrichment.settings import EnrichmentSettings

FOLDER: Final = Path(__file__).parent / "evaluation"
SETS: Final = ("older", "languages", "blind", "last")
"""The sets beside `answers.toml`, in the order in which they were written."""
BY_RULES: Final = ("number", "unit", "date", "name", "quotation")
"""The kinds of contradictions that rules find without a judge."""
MOST_PASSED: Final = 0.1
"""Largest share of the contradictions for rules that may pass as supported."""
Label = Literal["true", "contradicted", "baseless"]
_ALL: Final[tuple[Label, ...]] = ("contradicted", "baseless", "true")
_LABELS: Final[dict[str, Label]] = {
    "SUPPORTS": "true",
    "REFUTES": "contradicted",
    "ENTAILMENT": "true",
    "CONTRADICTION": "contradicted",
}
"""The labels of public sets."""
Half = Literal["thresholds", "figures"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence that cites a passage, and what a reader finds of it."""

    label: Label
    kind: str
    passage: str
    sentence: str

    def is_right(self, support: Support) -> bool:
        """True for a true sentence with support, and for any other sentence without."""
        return (support in BEARING) is (self.label == "true")


def load_answers(half: Half) -> list[Pair]:
    """Return one half of the pairs in `answers.toml`."""
    with (FOLDER / "answers.toml").open("rb") as opened:
        passages = tomllib.load(opened)["passages"][0 if half == "thresholds" else 1 :: 2]
    return [Pair(label, one[label]["kind"], one["text"], one[label]["text"]) for one in passages for label in _ALL]


def load_pairs(name: str) -> list[Pair]:
    """Return the pairs of a set beside `answers.toml`, in order."""
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [Pair(one["label"], one["kind"], one["passage"], one["sentence"]) for one in rows]


def load_public(path: Path) -> list[Pair]:
    """Return the pairs of a public set's file that are labelled as support or contradiction.

    Raises KeyError for a file without the set's columns, ValueError for lines that are no JSON, OSError.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in lines]
            found = [(one["label"], one["evidence"], one["claim"]) for one in rows]
        else:
            table_rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            found = [(one["entailment_judgment"], one["sentence_A"], one["sentence_B"]) for one in table_rows]
    return [
        Pair(_LABELS[label], label, _unescaped(passage), _unescaped(sentence))
        for label, passage, sentence in found
        if label in _LABELS
    ]


def _unescaped(text: str) -> str:
    """Return the text with parentheses in place of the words that the Penn Treebank writes for them."""
    return text.replace("-LRB-", "(").replace("-RRB-", ")")


async def supports(pairs: Iterable[Pair], judge: Judge | None = None) -> list[Support]:
    """Return the support that is found for each pair's sentence."""
    found = []
    for pair in pairs:
        source = NumberedSource(1, "1", None, None, (pair.passage,))
        reading = Reading(f"{pair.sentence.rstrip('.')} [1].", Evidence((source,), question=pair.sentence))
        verdicts, _ = await judged(reading.open, judge, seconds=600.0)
        outcomes = reading.outcomes(verdicts)
        found.append(outcomes[0] if outcomes else Support.UNSUPPORTED)
    return found


def counts(pairs: Sequence[Pair], found: Sequence[Support]) -> dict[tuple[Label, str], tuple[int, int]]:
    """Return the number of wrong judgements and of pairs, by label and kind; the kind `all` has their sums."""
    wrong: dict[tuple[Label, str], tuple[int, int]] = {}
    for pair, support in zip(pairs, found, strict=True):
        for kind in (
            pair.kind,
            "all",
            *(["by rules"] if pair.label == "contradicted" and pair.kind in BY_RULES else []),
        ):
            some, of = wrong.get((pair.label, kind), (0, 0))
            wrong[pair.label, kind] = (some + (not pair.is_right(support)), of + 1)
    return wrong


def main() -> None:
    """Print the wrong judgements by kind, the rates of all sets, and misjudged pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("thresholds", "figures"), default="figures", help="the half that is judged")
    parser.add_argument("--judge", metavar="FOLDER", help="the folder of a cross-encoder in ONNX")
    parser.add_argument("--classes", help="its classes in their order, such as contradiction,entailment,neutral")
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="FILE", help="files of public data sets")
    options = parsed(parser)
    try:
        public = [(path.name, load_public(path)) for path in options.data]
    except (KeyError, ValueError, OSError) as error:
        parser.error(f"--data: {error!r}")
    asyncio.run(_report(options.half, options.judge, options.classes, public))


async def _report(half: Half, folder: str | None, classes: str | None, public: list[tuple[str, list[Pair]]]) -> None:
    settings = EnrichmentSettings(entailment=folder, entailment_classes=classes)
    judge = CrossEncoder(folder, settings) if folder is not None else None
    if judge is not None:
        await judge.start()
    if not public:
        pairs = load_answers(half)
        found = await supports(pairs, judge)
        _print_kinds(counts(pairs, found))
        _print_wrong(f"answers.toml ({half})", pairs, found)
    rates = []
    for name, pairs in public or [(name, load_pairs(name)) for name in SETS]:
        found = await supports(pairs, judge)
        wrong = counts(pairs, found)
        rates.append((name, *(cell for label in _ALL for cell in _cells(wrong.get((label, "all"), (0, 0))))))
        if name == SETS[-1]:
            _print_verdict(wrong)
            _print_wrong(name, pairs, found)
    table(("set", "contradicted", "pass", "without a basis", "pass", "true", "lose support"), rates)
    if judge is not None:
        await judge.close()


def _cells(wrong: tuple[int, int]) -> tuple[int, str]:
    return wrong[1], _share(*wrong)


def _print_kinds(wrong: Mapping[tuple[Label, str], tuple[int, int]]) -> None:
    rows = [(label, kind, of, _share(some, of)) for (label, kind), (some, of) in sorted(wrong.items())]
    table(("pairs", "kind", "number", "pass as supported, or true and lost"), rows)


def _print_verdict(wrong: Mapping[tuple[Label, str], tuple[int, int]]) -> None:
    passed, of = wrong["contradicted", "by rules"]
    what = f"contradictions by number, unit, date, name or quotation that pass as supported, of {of}"
    verdict(what, passed, of * MOST_PASSED, at_least=False)
    for what, (some, all_of) in (
        ("contradictions by a negation that pass", wrong["contradicted", "negation"]),
        ("sentences without a basis that pass", wrong["baseless", "all"]),
        ("true sentences, verbatim, that lose support", wrong["true", "verbatim"]),
        ("true sentences with a figure in another form that lose it", wrong["true", "form"]),
        ("true paraphrases that lose it", wrong["true", "paraphrase"]),
    ):
        figure(what, f"{some} of {all_of}")


def _print_wrong(name: str, pairs: Sequence[Pair], found: Sequence[Support]) -> None:
    for pair, support in zip(pairs, found, strict=True):
        if not pair.is_right(support):
            print(f"{name}: {support}, though {pair.label} ({pair.kind}): {pair.sentence}")


def _share(some: int, of: int) -> str:
    return f"{some} ({some / of:.0%})" if of else "0"


if __name__ == "__main__":
    main()
