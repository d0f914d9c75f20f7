"""Counts contradictions that pass as supported, and true sentences that do not pass: `python -m bench.citations`.

The eight tables `evaluation/support*.toml` hold pairs of a passage and a sentence that cites it. The real `cited`
judges the sentence, with the passage as the only source. The bench uses no clock and no random numbers, so the results
are equal on every machine.

`--data FILE…` judges files of these public sets instead, which are not part of this project:

    *.jsonl  FEVER-Symmetric (https://github.com/TalSchuster/FeverSymmetric): `evidence`, `claim`, and `label`
    others   SICK, of SemEval-2014 task 1: tab-separated columns, with `entailment_judgment` as the label

Pairs with any other label, such as "neutral", are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.table import table
from schemas.result import Support
from workers.enrichment.answering.cite import BEARING, cited
from workers.enrichment.evidence import Evidence, NumberedSource

FOLDER: Final = Path(__file__).parent / "evaluation"
TABLES: Final = (
    "support.toml",
    "support_held_out.toml",
    "support_unseen.toml",
    "support_fresh.toml",
    "support_final.toml",
    "support_later.toml",
    "support_last.toml",
    "support_blind.toml",
)
_HOLDS: Final = {"SUPPORTS": True, "REFUTES": False, "ENTAILMENT": True, "CONTRADICTION": False}
"""The labels of public sets: true if the passage supports the sentence, false if it contradicts it."""
_HEAD: Final = ("table", "contradictions", "pass as supported", "true sentences", "lose support")


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence that cites a passage. `holds` is true if a reader finds that the passage supports the sentence."""

    domain: str
    language: str
    holds: bool
    kind: str
    passage: str
    sentence: str

    @property
    def support(self) -> Support:
        """The support for the sentence that `cited` finds in the passage."""
        source = NumberedSource(1, "https://a.example/", "https://a.example/", None, (self.passage,))
        _, _, (citation, *_) = cited(f"{self.sentence.rstrip('.')} [1].", Evidence((source,)))
        return citation.support

    @property
    def is_judged_right(self) -> bool:
        """True for a true sentence with support, and for a contradiction without support."""
        return (self.support in BEARING) is self.holds


def load_pairs(file: str) -> list[Pair]:
    """Return the pairs of a table, in order."""
    with (FOLDER / file).open("rb") as opened:
        return [Pair(**pair) for pair in tomllib.load(opened)["pair"]]


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
        Pair("", "en", _HOLDS[label], label, _unescaped(passage), _unescaped(sentence))
        for label, passage, sentence in found
        if label in _HOLDS
    ]


def _unescaped(text: str) -> str:
    """Return the text with parentheses in place of the words that the Penn Treebank writes for them."""
    return text.replace("-LRB-", "(").replace("-RRB-", ")")


def main() -> None:
    """Print the rates of each table, the rates by kind, and each misjudged pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of public data sets to judge, instead of the tables in this repository",
    )
    files = parser.parse_args().data
    try:
        rows = [(path.name, *_rates(load_public(path))) for path in files]
    except (KeyError, ValueError, OSError) as error:
        parser.error(f"--data: {error!r}")
    if rows:
        table(_HEAD, rows)
    else:
        _report_tables()


def _report_tables() -> None:
    rows, by_kind, wrong = [], defaultdict(list), []
    for file in TABLES:
        pairs = load_pairs(file)
        rows.append((file, *_rates(pairs)))
        wrong += [(file, pair) for pair in pairs if not pair.is_judged_right]
        for pair in pairs:
            by_kind["holds" if pair.holds else "contradicts", pair.kind].append(pair.is_judged_right)
    table(_HEAD, rows)
    table(
        ("pairs", "kind", "judged right"),
        [(*group, f"{sum(right)} of {len(right)}") for group, right in sorted(by_kind.items())],
    )
    for file, pair in wrong:
        print(f"{file}: {pair.support}, though it {'holds' if pair.holds else 'contradicts'}: {pair.sentence}")


def _rates(pairs: Sequence[Pair]) -> tuple[int, str, int, str]:
    false = [pair for pair in pairs if not pair.holds]
    true = [pair for pair in pairs if pair.holds]
    passing, lost = (sum(not pair.is_judged_right for pair in some) for some in (false, true))
    return len(false), _share(passing, len(false)), len(true), _share(lost, len(true))


def _share(some: int, of: int) -> str:
    return f"{some} ({some / of:.0%})" if of else "0"


if __name__ == "__main__":
    main()
