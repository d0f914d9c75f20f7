"""Unknown fields of jobs: ignored, and named to the job's author without their values and within bounds."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Origin, ReceivedJob, read_job, write_job
from schemas.job import MAX_JOB_BYTES, Job
from schemas.unknown import MAX_NAME_CHARACTERS, MAX_NAMES, UnknownFields, described, unknown_in
from tests.unit.echo_worker import record, working


def read(**job: object) -> ReceivedJob:
    return read_job(json.dumps({"prompt": "q", **job}).encode(), None, Origin("t", 0, 1), 1)


SCHEMA = {"type": "json_schema", "json_schema": {"schema": {}, "strikt": True}}


@pytest.mark.parametrize(
    ("job", "names"),
    [
        ({}, None),
        ({"ttl_seconds": 5, "metadata": {"ttl": "5"}}, None),
        ({"ttl": None}, None),
        ({"ttl": 5, "temprature": 1}, ("ttl", "temprature")),
        ({"sources": {"urls": [], "require": True}}, ("sources.require",)),
        ({"sources": {"search": {"provider": "p", "query": "q", "limits": 3}}}, ("sources.search.limits",)),
        ({"response_format": SCHEMA}, ("response_format.json_schema.strikt",)),
        ({"näme\n": 1, "x" * 100: 2}, ("n?me?", "x" * MAX_NAME_CHARACTERS)),
    ],
)
def test_the_unknown_fields_of_a_job_are_named_by_their_place(
    job: dict[str, object], names: tuple[str, ...] | None
) -> None:
    unknown = read(**job).unknown
    assert (unknown.names if unknown is not None else None) == names


@given(st.dictionaries(st.text(), st.recursive(st.integers(), st.lists), max_size=12))
def test_unknown_fields_change_neither_the_job_nor_the_forwarded_record(more: dict[str, object]) -> None:
    given = {name: value for name, value in more.items() if name not in Job.model_fields}
    received = read(**given)
    assert received.job == Job(prompt="q")
    assert write_job(received.job) == b'{"prompt":"q"}'
    assert received.job.model_extra in (None, {})
    said = str(received.unknown)
    assert (received.unknown is not None) == bool(given)
    assert said.isascii() and said.isprintable()
    assert len(said) < 2 * MAX_NAMES * (MAX_NAME_CHARACTERS + 30)


def test_values_of_unknown_fields_are_not_kept_in_memory() -> None:
    junk: list[dict[str, str]] = [{}] * (MAX_JOB_BYTES // 6)
    message = {"role": "user", "content": [{"type": "text", "text": "q", "junk": junk[:20_000]}], "junk": junk[:60_000]}
    value = json.dumps({"messages": [message], "sources": {"junk": junk[:20_000]}, "junk": junk[:20_000]}).encode()
    value = value.replace(b" ", b"")
    tracemalloc.start()
    received = [read_job(value, None, Origin("t", 0, number), 1) for number in range(5)]
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [each.unknown and each.unknown.names for each in received] == [("junk", "sources.junk")] * 5
    assert kept < 200_000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("temprature", "`temprature` (did you mean `temperature`?)"),
        ("ttl", "`ttl` (did you mean `ttl_seconds`?)"),
        ("model", "`model` (did you mean `model_id`?)"),
        ("callback", "`callback` (did you mean `callback_url`?)"),
        ("maxTokens", "`maxTokens` (did you mean `max_tokens`?)"),
        ("max_completion_tokens", "`max_completion_tokens` (did you mean `max_tokens`?)"),
        ("sources.require", "`sources.require` (did you mean `sources.required`?)"),
        ("body.top_pp", "`body.top_pp` (did you mean `body.top_p`?)"),
        ("body.max_output_tokens", "`body.max_output_tokens` (did you mean `body.max_tokens`?)"),
        ("body.presence_penalty", "`body.presence_penalty`"),
        ("body.prompt_cache_retention", "`body.prompt_cache_retention`"),
        ("colour", "`colour`"),
    ],
)
def test_a_name_that_resembles_a_field_is_reported_with_that_field(name: str, said: str) -> None:
    assert described(name) == said


def test_many_unknown_fields_are_counted() -> None:
    assert str(UnknownFields(("a", "b"), 7)) == "unknown fields of the job were ignored: `a`, `b` and 5 more"
    assert unknown_in([]) is None
    assert unknown_in({"promt": 1, **{f"f{number}": 1 for number in range(9)}}) == UnknownFields(
        ("promt", "f0", "f1", "f2", "f3"), 10
    )


async def test_a_result_names_what_was_ignored_however_its_job_ended_and_the_log_does_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    note = "unknown fields of the job were ignored: `ttl` (did you mean `ttl_seconds`?)"
    async with working() as worker:
        answered = [await worker.result(record(ttl="private", offset=offset)) for offset in (1, 2)]
        expired = await worker.result(record(None, ("deadline", b"1000"), ttl=3))
        body = {"messages": [{"role": "user", "content": "q"}], "temprature": 1, "user": "u"}
        line = {"custom_id": "c", "url": "/v1/chat/completions", "body": body}
        batch = await worker.result(record(line))
    assert [result.notes for result in (*answered, expired)] == [[note]] * 3
    assert batch.notes == [note.replace("ttl_seconds", "body.temperature").replace("ttl", "body.temprature")]
    assert caplog.text.count("fields-unknown") == 2
    assert "private" not in caplog.text
