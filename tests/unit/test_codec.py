"""Valid jobs: the contents of their bytes and headers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import (
    Headers,
    InvalidJob,
    InvalidResult,
    Origin,
    ReceivedJob,
    read_job,
    read_result,
    rejected_result,
    write_job,
    write_result,
)
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.result import Result, Usage
from schemas.screening import ScreeningFinding, Verdict, write_findings
from tests.unit.codec_jobs import BARE, CALLBACK, ORIGIN, TIMESTAMP_MS, TRACEPARENT, encoded, read


def test_a_bare_prompt_with_a_callback_is_a_whole_job() -> None:
    received = read_job(encoded(BARE), None, ORIGIN, TIMESTAMP_MS)

    assert received == ReceivedJob(
        job=Job(prompt="Why is the sky blue?", callback_url=CALLBACK),
        job_id=f"job_{ORIGIN.digest}",
        tenant="default",
        webhook_id=ORIGIN.webhook_id(encoded(BARE)),
        place=ORIGIN,
        origin=ORIGIN,
        deadline_ms=TIMESTAMP_MS + 24 * 3600 * 1000,
        priority=0,
        traceparent=None,
        received_ms=TIMESTAMP_MS,
    )


FINDING = st.builds(
    ScreeningFinding,
    rule=st.text(max_size=9),
    kind=st.text(max_size=9),
    verdict=st.sampled_from([Verdict.FLAG, Verdict.REDACT, Verdict.REJECT]),
    field=st.sampled_from(["prompt", "messages", "metadata"]),
    count=st.integers(1, 2**70),
)


@given(st.lists(FINDING, max_size=4))
def test_the_findings_of_the_gateways_filter_read_back(findings: list[ScreeningFinding]) -> None:
    assert list(read(BARE, ("screening", write_findings(findings))).screening) == findings


@given(st.one_of(st.binary(max_size=60), st.sampled_from([b"[{}]", b"[[" * 2000, b"9" * 99, b"[" + b"1," * 8000])))
def test_a_header_of_another_form_is_no_finding_and_refuses_no_job(value: bytes) -> None:
    assert read(BARE, ("screening", value)).screening == ()


def test_headers_give_the_fields_that_the_body_leaves_open() -> None:
    received = read(
        BARE,
        ("tenant", b"acme"),
        ("deadline", b"1700000005000"),
        ("priority", b"7"),
        ("idempotency-key", b"once-1"),
        ("traceparent", TRACEPARENT.encode()),
        ("schema", b"1"),
        ("job-id", b"carried"),
    )

    assert (received.tenant, received.deadline_ms, received.priority) == ("acme", 1_700_000_005_000, 7)
    assert (received.idempotency_key, received.traceparent) == ("once-1", TRACEPARENT)
    assert received.job_id == "carried"


def test_the_last_header_of_a_name_counts() -> None:
    assert read(BARE, ("tenant", b"not a tenant"), ("tenant", b"acme")).tenant == "acme"


def test_the_deadline_is_the_timestamp_plus_the_ttl_where_no_header_has_it() -> None:
    assert read({**BARE, "ttl_seconds": 1.5}).deadline_ms == TIMESTAMP_MS + 1500


def test_identifiers_come_from_the_place_in_the_topic_and_differ_for_every_other_place() -> None:
    places = [ORIGIN, Origin("another", 3, 41), Origin(ORIGIN.topic_id, 34, 1), Origin(ORIGIN.topic_id, 3, 42)]
    received = [read(BARE, origin=place) for place in places]

    assert len({one.job_id for one in received}) == len({one.webhook_id for one in received}) == len(places)
    assert read(BARE) == received[0]


def test_two_jobs_of_one_job_id_have_a_webhook_id_each() -> None:
    other = ORIGIN._replace(offset=42)
    received = [read({**BARE, "job_id": "mine"}, origin=place) for place in (ORIGIN, other)]

    assert [one.job_id for one in received] == ["mine", "mine"]
    assert received[0].webhook_id != received[1].webhook_id


@pytest.mark.parametrize(
    "invalid",
    [
        "",
        "garbage",
        TRACEPARENT.upper(),
        "ff" + TRACEPARENT[2:],
        TRACEPARENT + "-more",
        TRACEPARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        TRACEPARENT.replace("00f067aa0ba902b7", "0" * 16),
    ],
)
def test_a_traceparent_that_cannot_be_parsed_is_ignored(invalid: str) -> None:
    assert read(BARE, ("traceparent", invalid.encode())).traceparent is None


def test_a_traceparent_of_a_later_version_may_say_more() -> None:
    later = "01" + TRACEPARENT[2:] + "-more"

    assert read(BARE, ("traceparent", later.encode())).traceparent == later


def test_fields_that_are_not_known_are_passed_over() -> None:
    assert read({**BARE, "colour": "blue"}, ("x-colour", b"\xff")).job == read(BARE).job


def test_the_last_of_two_equal_keys_counts() -> None:
    assert read(b'{"prompt":"first","prompt":"second"}').job.prompt == "second"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080",
        "HTTPS://consumer.example/hook?token=a#b",
        "https://[2001:db8::1]:8443/hook",
        "https://münchen.example/ü?q=1",
        "https://consumer.example:65535/",
    ],
)
def test_a_good_callback_url_is_kept_as_it_was_written(url: str) -> None:
    assert read({"prompt": "a", "callback_url": url}).job.callback_url == url


def test_a_header_that_repeats_the_body_is_no_conflict() -> None:
    received = read({**BARE, "job_id": "mine", "priority": 3}, ("job-id", b"mine"), ("priority", b"3"))

    assert (received.job_id, received.priority) == ("mine", 3)


def test_a_carried_deadline_is_no_conflict_with_the_ttl_that_it_came_from() -> None:
    assert read({**BARE, "ttl_seconds": 5}, ("deadline", b"1700000005000")).deadline_ms == 1_700_000_005_000


TEXT = st.text("a0 /:é\u0000\u2028\ud800𝄞", max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MEMBERS = [*Job.model_fields, "body", "url", "method"]
JOBS = st.dictionaries(st.sampled_from(MEMBERS), JSON, max_size=6)
LINES = st.fixed_dictionaries(
    {
        "custom_id": JSON,
        "url": st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/responses"]) | JSON,
        "body": st.dictionaries(
            st.sampled_from(["messages", "prompt", "input", "instructions", "metadata", "text", "n", "model"]), JSON
        ),
    }
)
HEADERS: st.SearchStrategy[Headers] = st.lists(
    st.tuples(
        st.sampled_from(["tenant", "deadline", "priority", "schema", "job-id", "webhook-id", "traceparent", "other"]),
        st.binary(max_size=12),
    ),
    max_size=4,
)


@given(st.binary(max_size=64) | JOBS.map(encoded) | LINES.map(encoded), HEADERS)
def test_any_bytes_are_a_job_or_an_invalid_job_with_reasons_and_a_sendable_refusal(
    value: bytes, headers: Headers
) -> None:
    try:
        received = read_job(value, headers, ORIGIN, TIMESTAMP_MS)
    except InvalidJob as invalid:
        assert invalid.problems
        assert all(problem.field and problem.reason for problem in invalid.problems)
        assert read_result(write_result(rejected_result(invalid, 1))).job_id == invalid.job_id
    else:
        assert read_job(write_job(received.job), headers, ORIGIN, TIMESTAMP_MS) == received


def test_a_written_job_has_only_the_fields_that_were_set() -> None:
    assert json.loads(write_job(Job(prompt="a", max_tokens=5))) == {"prompt": "a", "max_tokens": 5}


def test_a_result_survives_its_bytes_and_fields_with_none_are_left_out() -> None:
    result = Result(
        job_id="job_1", outcome=Outcome.SUCCEEDED, text="Ω\n\u0000", usage=Usage(prompt_tokens=3), created_at=1
    )
    written = write_result(result)

    assert read_result(written) == result
    assert b"confidence" not in written
    assert b": " not in written
    assert write_result(read_result(written)) == written


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b'{"job_id":"a","outcome":"s3cret","created_at":1}'])
def test_a_record_that_no_worker_wrote_is_an_invalid_result_that_shows_nothing(value: bytes | None) -> None:
    with pytest.raises(InvalidResult) as raised:
        read_result(value)

    assert "s3cret" not in str(raised.value)
