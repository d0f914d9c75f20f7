"""Counts contradictions that pass as supported, and true sentences that do not: `python -m bench.citations`.

Each pair of the seven tables has a passage and a sentence that cites it. The real `cited` judges the sentence, with the
passage as the only source. The bench uses no clock and no random numbers, so the results are equal on every machine.
"""

from __future__ import annotations

import argparse
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
)
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
        """The support that `cited` gives the sentence."""
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


def main() -> None:
    """Print the rates of each table, the rates by kind, and each misjudged pair."""
    argparse.ArgumentParser(description=__doc__).parse_args()
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
    return len(false), f"{passing} ({passing / len(false):.0%})", len(true), f"{lost} ({lost / len(true):.0%})"


if __name__ == "__main__":
    main()
