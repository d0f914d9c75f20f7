"""The house that docs/ARCHITECTURE.md draws has few folders and small modules, and each mutant applies to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.mutations import ROOT, Mutant, mutants

MOST_FOLDERS = 12
SMALL_LINES = 60
MOST_SMALL = 90
"""The number of small modules today. A small module with one importer belongs into its importer: lower this number."""


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_top_level_has_few_folders() -> None:
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    assert len(folders) <= MOST_FOLDERS, sorted(folders)


def test_few_modules_are_too_small_for_a_subject() -> None:
    product = [path for path in tracked("*.py") if path.parts[0] not in ("tests", "bench")]
    small = [
        path
        for path in product
        if path.name not in ("__init__.py", "__main__.py")
        and len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= SMALL_LINES
    ]
    assert len(product) > 300
    assert len(small) <= MOST_SMALL, [str(path) for path in small]


LISTED = mutants()


@pytest.mark.parametrize("mutant", LISTED, ids=lambda mutant: mutant.name)
def test_a_mutants_text_stands_exactly_once_in_the_tree_and_changes_it(mutant: Mutant) -> None:
    mutated = mutant.source(ROOT)
    assert mutated != (ROOT / mutant.file).read_text()
    compile(mutated, mutant.file, "exec")


@pytest.mark.parametrize("mutant", LISTED, ids=lambda mutant: mutant.name)
def test_the_tests_that_are_to_kill_a_mutant_are_there(mutant: Mutant) -> None:
    assert mutant.tests
    for named in mutant.tests:
        file, _, test = named.partition("::")
        assert f"def {test}" in (ROOT / file).read_text()


def test_no_two_mutants_have_one_name() -> None:
    names = [mutant.name for mutant in LISTED]
    assert len(set(names)) == len(names)
