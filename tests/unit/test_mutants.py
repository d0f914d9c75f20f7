"""The list of mutants is valid: each defect applies to the current tree, and the tests that it names exist."""

from __future__ import annotations

import pytest

from bench.mutations import ROOT, Mutant, mutants

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
