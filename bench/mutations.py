"""Puts defects into the kernel and delivery, and names the tests that fail with them: `python -m bench.mutations`.

`mutants.toml` lists the defects. Each defect is a text that occurs exactly once in a file, its replacement, and the
tests that must then fail. One defect at a time is put into a copy of the tree (DeMillo, Lipton and Sayward 1978). A
mutant that no test kills shows a claim of the documentation that no test checks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from bench.table import table, title
from telemetry.clock import SystemClock

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutants.toml")
COPIED = (
    "schemas",
    "telemetry",
    "producers",
    "workers",
    "devkit",
    "operators",
    "gateway",
    "console",
    "bench",
    "tests",
)
TEST_SECONDS = 120
"""Timeout of one test, so that a mutant that makes a test hang is noticed too."""
RUN_SECONDS = 900
TESTS_FAILED = 1
"""pytest's exit status for failed tests; another status means that pytest could not run them."""

_FAILED = re.compile(r"^(?:FAILED|ERROR) \S*?([\w.]+\.py)(?:::(\S+))?", re.MULTILINE)


class NotOnce(Exception):  # noqa: N818 - named after the list's problem
    """The mutant's text does not occur exactly once in its file: the list is older than the code."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect."""

    name: str
    """The defect, in a few words."""
    file: str
    """The file's path from the root of the repository."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Test files or single tests, in the order of running."""

    def source(self, root: Path) -> str:
        """Return the file's text with the defect. Raises NotOnce."""
        text = (root / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise NotOnce(f"{self.name}: its old text stands {count} times in {self.file}, and has to stand there once")
        return text.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    """Return all mutants of `mutants.toml`, in order."""
    listed = tomllib.loads(LIST.read_text())["mutant"]
    return [Mutant(one["name"], one["file"], one["old"], one["new"], tuple(one["tests"])) for one in listed]


def copy_of_the_tree(folder: Path) -> None:
    """Copy the packages and their tests, without compiled files."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "pages"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def failing_test(folder: Path, tests: tuple[str, ...]) -> str | None:
    """Return the first of these tests that fails in the copy, or a note of a timeout; None if all pass.

    Raises RuntimeError if pytest could not run the tests.
    """
    command = [sys.executable, "-m", "pytest", *tests, "-q", "-x", "-rfE", "-p", "no:cacheprovider"]
    command += [f"--timeout={TEST_SECONDS}", "--tb=no"]
    # Put the copy first on the path. Otherwise the copy's tests would import the checkout's packages.
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"none ended within {RUN_SECONDS} s"
    if done.returncode == 0:
        return None
    found = _FAILED.search(done.stdout)
    if done.returncode != TESTS_FAILED or found is None:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    file, test = found.groups()
    return f"`{file}` {(test or '').replace('_', ' ')}"


def killer(mutant: Mutant, folder: Path) -> str | None:
    """Return the test that notices a mutant, and restore the copy."""
    target = folder / mutant.file
    before = target.read_text()
    target.write_text(mutant.source(folder))
    try:
        return failing_test(folder, mutant.tests)
    finally:
        target.write_text(before)


def main() -> None:
    """Run the mutants one by one, and print the test that kills each. The exit status is 1 if a mutant survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run only mutants whose name contains this text")
    options = parser.parse_args()
    chosen = [mutant for mutant in mutants() if options.only in mutant.name]
    clock, rows, survivors = SystemClock(), list[tuple[str, ...]](), list[str]()
    title(f"{len(chosen)} mutants of workers/stage and workers/delivery")
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        copy_of_the_tree(folder)
        for mutant in chosen:
            mutant.source(folder)  # raises before any test runs if the list of mutants is outdated
        named = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
        if (failed := failing_test(folder, named)) is not None:
            sys.exit(f"this test fails even without a mutant: {failed}")
        for mutant in chosen:
            began = clock.monotonic()
            found = killer(mutant, folder)
            rows.append((mutant.name, found or "**none**", f"{clock.monotonic() - began:.0f}"))
            print(f"{len(rows)} of {len(chosen)}: {mutant.name}: {found or 'SURVIVES'}", file=sys.stderr, flush=True)
            survivors += [] if found else [mutant.name]
    table(("mutant", "killed by", "s"), rows)
    print(f"{len(rows) - len(survivors)} of {len(rows)} are killed; survivors: {', '.join(survivors) or 'none'}")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
