"""The reference of the wire format is complete: each field has a valid example, each error code a meaning."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any

import pytest

from console.job_examples import (
    CALLED,
    CALLING,
    CHAT,
    FAILURE,
    HEADER_EXAMPLES,
    JOB,
    REFERRING,
    RESULT,
    SAMPLED,
    SAMPLING,
    SCORED,
    SEEING,
)
from console.job_reference import OUTCOMES, SUPPORT, page
from console.kind_examples import KIND_JOBS, KIND_RESULTS
from console.publish import ROOT
from gateway.batches import expansion
from schemas.asyncapi import PRODUCER_HEADERS
from schemas.codec import Origin, read_job, read_result
from schemas.codes import DEAD_LETTER_REASONS, ERROR_CODES
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.result import Result, Support
from workers.delivery.deliver import DISABLED, UNUSABLE
from workers.delivery.retries import EXHAUSTED, GONE, REFUSED
from workers.stage.defects import HANDLER_DEFECT

PLACE = Origin("AAAAAAAAAAAAAAAAAAAAAA", 0, 0)
CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def code_constants(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and CODE.fullmatch(inner.value):
            yield inner.value


def made_in(source: str) -> Iterator[str]:
    """Each error code that this source writes: `code=…`, `code = …`, `Failure(…, …)` and `failed(received, …, …)`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "code" for t in node.targets):
            yield from code_constants(node.value)
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called == "ResultError":
            for keyword in node.keywords:
                if keyword.arg == "code":
                    yield from text_in(keyword.value)
        elif called == "Failure":
            yield from text_in(node.args[0])
        elif called.removeprefix("_") == "failed" and len(node.args) == 3:
            yield from text_in(node.args[1])


def text_in(node: ast.expr) -> Iterator[str]:
    """The text of a constant; nothing for other expressions."""
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, str)
        yield node.value


@cache
def constants() -> frozenset[str]:
    """Each constant of the sources with the form of an error code."""
    return frozenset(code for source in sources() for code in code_constants(ast.parse(source)))


def sources() -> Iterator[str]:
    for package in ("schemas", "workers"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "codes.py":
                yield path.read_text(encoding="utf-8")


@pytest.mark.parametrize("example", [JOB, CHAT, SEEING, REFERRING, SAMPLING, CALLING, *KIND_JOBS.values()])
def test_each_job_of_the_page_is_one(example: dict[str, Any]) -> None:
    headers = [
        (name, HEADER_EXAMPLES[name].encode()) for name in ("tenant", "traceparent", "schema", "idempotency-key")
    ]

    received = read_job(json.dumps(example).encode(), headers, PLACE, 1764022000000)

    assert received.unknown is None
    assert received.tenant == "acme"


@pytest.mark.parametrize(
    "example",
    [RESULT, CALLED, SAMPLED, SCORED, FAILURE, *KIND_RESULTS.values()],
    ids=["success", "called", "sampled", "scored", "failure", *KIND_RESULTS],
)
def test_each_result_of_the_page_is_one(example: dict[str, Any]) -> None:
    assert read_result(json.dumps(example).encode()) == Result.model_validate(example)


def test_the_examples_have_every_field_and_header() -> None:
    assert {*JOB, *CHAT, *SAMPLING, *CALLING, *REFERRING, *chain(*KIND_JOBS.values())} == Job.model_fields.keys()
    assert {*RESULT, *CALLED, *SAMPLED, *SCORED, *FAILURE, *chain(*KIND_RESULTS.values())} == Result.model_fields.keys()
    assert list(HEADER_EXAMPLES) == list(PRODUCER_HEADERS)


def test_each_outcome_and_each_support_level_has_a_meaning() -> None:
    assert list(OUTCOMES) == list(Outcome)
    assert list(SUPPORT) == list(Support)


def test_each_error_code_that_the_source_writes_has_a_meaning_and_no_other_has() -> None:
    made = {code for source in sources() for code in made_in(source)}

    assert len(made) > 6
    assert sorted(made - ERROR_CODES.keys()) == [], "declare them in schemas/codes.py"
    assert sorted(ERROR_CODES.keys() - constants()) == [], "no source has these: remove them from schemas/codes.py"


def test_each_reason_of_a_dead_letter_has_a_meaning() -> None:
    of_callbacks, of_batches = {EXHAUSTED, REFUSED, GONE, DISABLED, UNUSABLE}, {expansion.UNUSABLE}

    assert of_callbacks | of_batches | {HANDLER_DEFECT, "rejected"} <= DEAD_LETTER_REASONS.keys()
    assert sorted(DEAD_LETTER_REASONS.keys() - constants() - of_batches) == []


def test_the_page_names_the_largest_job() -> None:
    assert "512 KiB" in page()
