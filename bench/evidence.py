"""Runs the benches one after another, keeps their figures as JSON, and renders docs/EVIDENCE.md from them.

A stopped run goes on at the next bench, as long as the commit is the same. `--only` takes a part (core, peers,
mutations, faults) or a question, such as latency. `--quick` runs tiny sizes into build/evidence: this shows that each
bench runs, and measures nothing. `--render` only makes the page again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.mutations import SURVIVED
from bench.result import ROOT, Result, Table, commit

FOLDER = ROOT / "docs" / "evidence"
PAGE = ROOT / "docs" / "EVIDENCE.md"
SMOKE = ROOT / "build" / "evidence"
LIST = Path(__file__).with_name("evidence.toml")
HEAD = Path(__file__).with_name("evidence.md")
_CARRIED = "carried"


@dataclass(frozen=True, slots=True)
class Question:
    """A heading of the page, and the bench that answers it."""

    name: str
    about: str
    part: str = ""
    """The part of a full run; empty if the bench is not run by this command."""
    run: str = ""
    by: str = ""
    quick: str = ""
    tables: tuple[int, ...] = ()
    page: str = ""
    """A page of docs/ that has all tables, for a question with long tables."""

    @property
    def file(self) -> str:
        """Name of the JSON file."""
        return f"{slug(self.name)}.json"


def slug(heading: str) -> str:
    """Return a heading's anchor."""
    return heading.lower().replace(" ", "-")


def questions() -> list[Question]:
    """Read the list of questions."""
    listed = tomllib.loads(LIST.read_text(encoding="utf-8"))["question"]
    return [Question(**{**each, "tables": tuple(each.get("tables", ()))}) for each in listed]


def main() -> None:
    """Run the benches that have no figures of this commit, then render. Exit status 1 if a bench failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="a part, or a question")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args()
    failed = [] if options.render else run(_chosen(parser, options.only), quick=options.quick)
    if not options.quick:
        PAGE.write_text(page(FOLDER), encoding="utf-8")
        for name, text in own_pages(FOLDER).items():
            PAGE.with_name(name).write_text(text, encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; run the same command again to repeat only these")


def _chosen(parser: argparse.ArgumentParser, only: str | None) -> list[Question]:
    runnable = [each for each in questions() if each.part]
    chosen = [each for each in runnable if only in (None, each.part, slug(each.name))]
    if not chosen:
        names = sorted({each.part for each in runnable}) + [slug(each.name) for each in runnable]
        parser.error(f"--only {only} is neither a part nor a question; choose one of {', '.join(names)}")
    return chosen


def run(chosen: list[Question], *, quick: bool) -> list[str]:
    """Run benches; return the names of those that failed. Figures of this commit are not measured again.

    Exits if tracked files are changed, because a full run's figures must all belong to one commit.
    """
    now = commit()
    if now.endswith("+") and not quick:
        sys.exit("Tracked files are changed. Commit them first: the figures are kept with their commit.")
    failed = []
    for number, question in enumerate(chosen, 1):
        file = (SMOKE if quick else FOLDER) / question.file
        if not quick and _commit_of(file) == now:
            continue
        print(f"{number} of {len(chosen)}: {question.name}", file=sys.stderr, flush=True)
        part = file.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        arguments = question.quick.split() if quick else []
        command = [sys.executable, "-m", question.run, *arguments, "--json", str(part)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode in (0, SURVIVED) and part.exists():
            part.rename(file)
        else:
            part.unlink(missing_ok=True)
            failed.append(slug(question.name))
    return failed


def _commit_of(file: Path) -> str:
    return Result.read(file).commit if file.exists() else ""


def page(folder: Path) -> str:
    """Return EVIDENCE.md for the files of a folder."""
    parts = [HEAD.read_text(encoding="utf-8").rstrip("\n")]
    for question in questions():
        file = folder / question.file
        if not file.exists():
            parts += [f"## {question.name}", f"`python -m {question.run}` has not run yet.\n\n{question.about}"]
            continue
        result = Result.read(file)
        if question.page:
            missed = sum(row.verdict == "missed" for row in result.rows)
            told = f", **{missed} missed**" if missed else ""
            parts += [f"## {question.name}", f"[Its own page]({question.page}) has the figures{told}."]
            continue
        shown = [result.tables[number] for number in question.tables if number < len(result.tables)]
        parts += [f"## {question.name}", *_answer(question, result, shown)]
    return "\n\n".join(parts) + "\n"


def own_pages(folder: Path) -> dict[str, str]:
    """Return the pages of single questions, by name."""
    found = {}
    for question in questions():
        if question.page and (folder / question.file).exists():
            result = Result.read(folder / question.file)
            parts = [f"# {question.name}", *_answer(question, result, result.tables)]
            found[question.page] = "\n\n".join(parts) + "\n"
    return found


def _answer(question: Question, result: Result, shown: Sequence[Table]) -> list[str]:
    """Return the parts below a question's heading."""
    rows = [[row.what, row.target, row.result, _bold(row.verdict)] for row in result.rows]
    parts = [f"`{result.command}` ({_origin(result)})\n\n{question.about}"]
    if rows:
        parts.append(_table(["claim", "target", "result", ""], rows))
    return parts + [_table(table.head, table.rows) for table in shown]


def _origin(result: Result) -> str:
    if not result.commit:
        return _CARRIED
    return f"{result.machine}, load {result.load or 0:.1f}, {result.date[:10]}, `{result.commit}`"


def _bold(verdict: str) -> str:
    return "**missed**" if verdict == "missed" else verdict


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without padding."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


if __name__ == "__main__":
    main()
