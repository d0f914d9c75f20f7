"""Measures the input filter beside plain `re` searches over the same texts: `python -m bench.screening`.

The texts are drawn from words of a small vocabulary, as prompts of three lengths, in ASCII and with other letters.
Plain `re` searches for six patterns with the forms of the personal data, and for one alternation of all listed words,
without folding, checks or offsets. Both sides run in turn, in the same process; the times are CPU times of that
process.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from bench.result import parsed, table, title, verdict
from schemas.job import Job
from schemas.screening import Verdict
from workers.screening.screen import Screen

TARGET_MS_PER_KB: Final = 1.0
SIZES: Final = {"1 kB": 1024, "16 kB": 16 * 1024, "500 kB": 500 * 1024}
WORDS: Final = (
    "the", "a", "of", "and", "in", "to", "is", "that", "on", "for", "with", "as", "was", "please", "summarise",
    "report", "customer", "order", "number", "invoice", "delivery", "week", "weather", "model", "answer",
    "question", "between", "analysis", "class", "Scunthorpe", "document", "2026-11-27", "17:30", "12.50",
    "4711", "assistant", "bass", "grass", "patient", "therapy", "dose", "because", "however",
)  # fmt: skip
ACCENTED: Final = (*WORDS, "Grüße", "naïve", "Straße", "über", "café", "日本語", "мир")
RULES: Final = """
[[rule]]
name = "private"
kind = "pii"
find = ["card", "iban", "email", "phone", "ip", "ssn"]
verdict = "redact"

[[rule]]
name = "project"
kind = "regex"
patterns = ['project\\s+falcon']
ignore_case = true
verdict = "reject"

[[rule]]
name = "toxicity"
kind = "words"
lists = ["english", "german"]
"""
FORMS: Final = (
    r"\b(?:\d[ -]?){13,19}\b",
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b",
    r"[\w.+-]{1,64}@[\w-]+\.[\w.]+",
    r"\+\d[\d ().-]{6,20}",
    r"\b\d{1,3}(?:\.\d{1,3}){3}\b",
    r"\b\d{3}-\d{2}-\d{4}\b",
)


def main() -> None:
    """Print the milliseconds that each side takes for a kilobyte."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parsed(parser)
    title(f"Input filter, {options.rounds} rounds")
    screen, peer = _screen(), _peer()
    rows = []
    slowest = 0.0
    for name, size in SIZES.items():
        for kind, words in (("ASCII", WORDS), ("mixed", ACCENTED)):
            text = _text(words, size)
            ours, theirs = _paired(partial(_checked, screen, text), partial(peer, text), options.rounds, size)
            slowest = max(slowest, ours)
            rows.append((f"{name}, {kind}", f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}"))
    table(("text", "filter, ms/kB", "plain re, ms/kB", "ratio"), rows)
    verdict("slowest median", slowest, TARGET_MS_PER_KB, at_least=False, unit=" ms/kB")


def _screen() -> Screen:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.toml"
        path.write_text(RULES, encoding="utf-8")
        return Screen.load(path)


def _peer() -> Callable[[str], None]:
    listed = Path(__file__).parents[1] / "workers" / "screening" / "words"
    words = [word for name in ("english", "german") for word in (listed / f"{name}.txt").read_text("utf-8").split("\n")]
    alternation = "|".join(map(re.escape, sorted(filter(None, words), key=len, reverse=True)))
    patterns = [*map(re.compile, FORMS), re.compile(rf"\b(?:{alternation})\b", re.IGNORECASE)]

    def search(text: str) -> None:
        for pattern in patterns:
            for _ in pattern.finditer(text):
                pass

    return search


def _text(words: tuple[str, ...] | list[str], size: int) -> str:
    rng = random.Random(1)
    text = ""
    while len(text.encode()) < size:
        text += " ".join(rng.choices(words, k=200)) + ".\n"
    return text.encode()[:size].decode(errors="ignore")


def _checked(screen: Screen, text: str) -> None:
    found = screen.check("acme", Job(prompt=text))
    assert found.verdict is Verdict.PASS, found.findings


def _paired(ours: Callable[[], None], theirs: Callable[[], None], rounds: int, size: int) -> tuple[float, float]:
    """Return the median milliseconds of CPU for a kilobyte of both sides, which run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, into in zip((ours, theirs), times, strict=True):
            began = time.process_time()
            side()
            into.append((time.process_time() - began) * 1000 / (size / 1024))
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
