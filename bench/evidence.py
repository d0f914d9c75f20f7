"""Runs the benches one after another, keeps their figures as JSON, and renders docs/EVIDENCE.md from them.

A stopped run goes on at the next bench, as long as the commit is the same. A bench that fails, or that takes twice its
time of `evidence.toml`, does not stop the others; the last line names it. `--only` takes a part (core, peers,
mutations, faults) or a question, such as latency. `--quick` runs tiny sizes into build/evidence: this shows that each
bench runs, and measures nothing. `--gpu MODEL` measures the part `gpu` with the model of this folder, on a machine with
a GPU. `--render` only makes the page again.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.mutations import SURVIVED
from bench.result import ROOT, Result, Table, commit

FOLDER = ROOT / "docs" / "evidence"
PAGE = ROOT / "docs" / "EVIDENCE.md"
SMOKE = ROOT / "build" / "evidence"
LIST = Path(__file__).with_name("evidence.toml")
HEAD = Path(__file__).with_name("evidence.md")
GPU = "gpu"
"""The part that runs only with `--gpu`."""
_CARRIED = "carried"
_UNWIND_SECONDS = 60.0
"""Wait for a stopped bench to end its brokers and processes."""


@dataclass(frozen=True, slots=True)
class Question:
    """A heading of the page, and the bench that answers it."""

    name: str
    about: str
    part: str = ""
    """The part of a full run; empty if the bench is not run by this command."""
    run: str = ""
    by: str = ""
    full: str = ""
    """Arguments of a full run, for a question that shares its bench with another one."""
    quick: str = ""
    seconds: float = 0.0
    """Time of a full run on two quiet cores. A bench is stopped after twice this time."""
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
    parser.add_argument("--gpu", type=Path, metavar="MODEL", help="the folder of a model, such as Qwen or Llama")
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args()
    if options.gpu is not None:
        _check_gpu(parser, options.gpu)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, also by the benches
    failed = [] if options.render else run(_chosen(parser, options), quick=options.quick, model=options.gpu)
    if not options.quick:
        PAGE.write_text(page(FOLDER), encoding="utf-8")
        for name, text in own_pages(FOLDER).items():
            PAGE.with_name(name).write_text(text, encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; run the same command again to repeat only these")


def _check_gpu(parser: argparse.ArgumentParser, model: Path) -> None:
    """Exit with a message unless the model is there, and vLLM here finds a GPU."""
    if not (model / "config.json").is_file():
        parser.error(f"--gpu: {model} has no config.json; give the folder of a model in Hugging Face's form")
    if not has_gpu():
        parser.error("--gpu: vLLM finds no GPU on this machine, so nothing was measured; without --gpu all else runs")


def has_gpu() -> bool:
    """True if vLLM is installed here and finds a GPU."""
    check = "from vllm.platforms import current_platform as it; print(it.is_cpu() or it.is_unspecified())"
    found = subprocess.run((sys.executable, "-c", check), capture_output=True, text=True, check=False)
    return found.returncode == 0 and found.stdout.strip().endswith("False")


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Question]:
    only = options.only
    runnable = [each for each in questions() if each.part and (each.part == GPU) == (options.gpu is not None)]
    chosen = [each for each in runnable if only in (None, each.part, slug(each.name))]
    if not chosen:
        names = sorted({each.part for each in runnable}) + [slug(each.name) for each in runnable]
        parser.error(f"--only {only} is neither a part nor a question; choose one of {', '.join(names)}")
    return chosen


def run(chosen: list[Question], *, quick: bool, model: Path | None = None) -> list[str]:
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
        began = time.monotonic()
        fault = _fault_of(question, file, quick=quick, model=model)
        if fault:
            failed.append(f"{slug(question.name)} ({fault})")
        print(f"{question.name}: {fault or 'done'} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return failed


def _fault_of(question: Question, file: Path, *, quick: bool, model: Path | None) -> str:
    """Run one bench, and keep its file if it ends well. Return what was wrong, or an empty text."""
    part = file.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    arguments = (question.quick if quick else question.full).split()
    arguments += ["--model", str(model.absolute())] if model is not None else []
    command = [sys.executable, "-m", question.run, *arguments, "--json", str(part)]
    try:
        status = status_of(command, 2 * question.seconds)
        if status not in (0, SURVIVED):
            return "no end in time" if status is None else f"exit status {status}"
        if not part.exists() or not Result.read(part).rows:
            return "no figures"
        part.rename(file)
        return ""
    finally:
        part.unlink(missing_ok=True)


def status_of(command: Sequence[str], seconds: float) -> int | None:
    """Run a command, and return its exit status; None if it was stopped after `seconds`, with all that it started."""
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)  # so that the bench unwinds its with blocks
        with suppress(subprocess.TimeoutExpired):
            process.wait(_UNWIND_SECONDS)
        process.kill()
        process.wait()
        for each in started:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(started, _UNWIND_SECONDS)
        return None


def _commit_of(file: Path) -> str:
    return Result.read(file).commit if file.exists() else ""


def page(folder: Path) -> str:
    """Return EVIDENCE.md for the files of a folder. Its head names the origin that most figures share."""
    answered = {each.name: Result.read(file) for each in questions() if (file := folder / each.file).exists()}
    usual = _usual_origin(answered.values())
    parts = [HEAD.read_text(encoding="utf-8").rstrip("\n").replace("{usual}", usual)]
    for question in questions():
        result = answered.get(question.name)
        if result is None and question.part == GPU:
            continue  # the page's head says that no figure is of a GPU
        if result is None:
            parts += [f"## {question.name}", f"`python -m {question.run}` has not run yet.\n\n{question.about}"]
            continue
        if question.page:
            missed = sum(row.verdict == "missed" for row in result.rows)
            told = f", **{missed} missed**" if missed else ""
            parts += [f"## {question.name}", f"[Its own page]({question.page}) has the figures{told}."]
            continue
        shown = [result.tables[number] for number in question.tables if number < len(result.tables)]
        parts += [f"## {question.name}", *_answer(question, result, shown, usual)]
    return "\n\n".join(parts) + "\n"


def _usual_origin(results: Iterable[Result]) -> str:
    """Return machine, date and commit of most figures; "no run" if all are carried."""
    found = Counter(_origin(result) for result in results if result.commit)
    return max(found, key=lambda origin: found[origin], default="no run")


def own_pages(folder: Path) -> dict[str, str]:
    """Return the pages of single questions, by name."""
    found = {}
    for question in questions():
        if question.page and (folder / question.file).exists():
            result = Result.read(folder / question.file)
            parts = [f"# {question.name}", *_answer(question, result, result.tables)]
            found[question.page] = "\n\n".join(parts) + "\n"
    return found


def _answer(question: Question, result: Result, shown: Sequence[Table], usual: str = "") -> list[str]:
    """Return the parts below a question's heading. An origin that is the page's usual one is not repeated."""
    rows = [[row.what, row.target, row.result, _bold(row.verdict)] for row in result.rows]
    origin = _origin(result) if result.commit else _CARRIED
    known = [] if origin == usual else [origin]
    load = [] if result.load is None else [f"load {result.load:.1f}"]
    parts = [f"`{result.command}` ({', '.join(known + load)})\n\n{question.about}"]
    if rows:
        parts.append(_table(["claim", "target", "result", ""], rows))
    return parts + [_table(table.head, table.rows) for table in shown]


def _origin(result: Result) -> str:
    return f"{result.machine}, {result.date[:10]}, `{result.commit}`"


def _bold(verdict: str) -> str:
    return "**missed**" if verdict == "missed" else verdict


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without padding."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


if __name__ == "__main__":
    main()
