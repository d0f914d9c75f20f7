from __future__ import annotations

import json
from typing import Any

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
from schemas.job import MAX_JOB_BYTES, Job
from schemas.problems import MAX_PROBLEMS
from schemas.result import Outcome, Result, Usage
from schemas.topics import LANES_KEPT_MS

ORIGIN = Origin("u2tSXKJNTn6GAzrYv6bXfQ", 3, 41)
CALLBACK = "https://consumer.example/hook?token=t0ken"
BARE = {"prompt": "Why is the sky blue?", "callback_url": CALLBACK}
TIMESTAMP_MS = 1_700_000_000_000
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def encoded(job: object) -> bytes:
    return json.dumps(job).encode()


def read(job: object, *headers: tuple[str, bytes], origin: Origin = ORIGIN) -> ReceivedJob:
    value = job if isinstance(job, bytes) else encoded(job)
    return read_job(value, list(headers), origin, TIMESTAMP_MS)


def refusal(job: object, *headers: tuple[str, bytes]) -> InvalidJob:
    with pytest.raises(InvalidJob) as raised:
        read(job, *headers)
    return raised.value


def fields(invalid: InvalidJob) -> list[str]:
    return [problem.field for problem in invalid.problems]


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


def test_headers_say_what_the_body_leaves_open() -> None:
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


def test_a_key_that_stands_twice_counts_the_last_time() -> None:
    assert read(b'{"prompt":"first","prompt":"second"}').job.prompt == "second"


@pytest.mark.parametrize(
    ("job", "field", "reason"),
    [
        (b"", "value", "is empty"),
        (b"{", "value", "is not JSON"),
        (b"\xff\xfe", "value", "is not JSON"),
        (b'{"prompt":"\\ud800"}', "value", "is not JSON"),
        (b'{"prompt":"a","x":' + b"[" * 5000 + b"]" * 5000 + b"}", "value", "is not JSON"),
        (b'{"prompt":"a","seed":' + b"9" * 5000 + b"}", "value", "is not JSON"),
        (b"[]", "value", "is not a JSON object"),
        (b"null", "value", "is not a JSON object"),
        ({}, "prompt", "exactly one of `prompt` and `messages` is required"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt", "exactly one"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": 5}, "prompt", "valid string"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "valid integer"),
        ({"prompt": "a", "seed": 10**400}, "seed", "less than or equal"),
        (b'{"prompt":"a","temperature":NaN}', "temperature", "finite number"),
        (b'{"prompt":"a","ttl_seconds":Infinity}', "ttl_seconds", "finite number"),
        ({"prompt": "a", "ttl_seconds": 7 * 24 * 3600}, "ttl_seconds", "less than or equal to 518400"),
        ({"prompt": "a", "priority": 10}, "priority", "less than or equal"),
        ({"prompt": "a", "job_id": "a b"}, "job_id", "printable ASCII"),
        ({"prompt": "a", "sources": {"urls": ["file:///etc/passwd"]}}, "sources.urls.0", "http or https URL"),
        ({"prompt": "a", "metadata": {"prompt": 5}}, "metadata", "valid string"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string"),
        ({"prompt": "a", "response_format": {"type": "json_schema"}}, "response_format", "`json_schema` is required"),
        (
            b'{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":{"maximum":NaN}}}}',
            "response_format.json_schema.schema",
            "not JSON",
        ),
    ],
)
def test_what_is_no_job_is_refused_with_a_reason_that_names_the_field(job: object, field: str, reason: str) -> None:
    invalid = refusal(job)

    assert fields(invalid) == [field]
    assert reason in invalid.problems[0].reason


@pytest.mark.parametrize(
    "url",
    [
        "ftp://consumer.example/",
        "consumer.example/hook",
        "https://",
        "https:///path",
        "https://user:secret@consumer.example/",
        "https://consumer.example:99999/",
        "https://consumer.example/a b",
        "https://consumer.example/\u0000",
        "https://consumer.example\\@internal/",
        "https://[::1/",
        "https://consumer.example/" + "a" * 2048,
        7,
    ],
)
def test_a_bad_callback_url_is_refused_and_never_used(url: object) -> None:
    invalid = refusal({"prompt": "a", "callback_url": url})

    assert fields(invalid) == ["callback_url"]
    assert invalid.callback_url is None


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


def test_an_image_is_refused_because_only_text_is_taken() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "http://internal/"}}]
    invalid = refusal({"messages": [{"role": "user", "content": parts}], "callback_url": CALLBACK})

    assert fields(invalid)[0] == "messages.0.content.1.type"
    assert "only text parts are taken" in invalid.problems[0].reason
    assert invalid.callback_url == CALLBACK


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tenant", b"a tenant"),
        ("tenant", b"t\xc3\xa9nant"),
        ("tenant", b"-t"),
        ("tenant", b"a" * 64),
        ("tenant", b"acme\n"),
        ("deadline", b"soon"),
        ("deadline", b"-1"),
        ("deadline", "٣".encode()),
        ("priority", b"10"),
        ("idempotency-key", b"a b"),
        ("schema", b"2"),
        ("job-id", b"a b"),
    ],
)
def test_a_header_that_is_not_usable_is_refused_by_its_name(name: str, value: bytes) -> None:
    assert fields(refusal(BARE, (name, value))) == [f"headers.{name}"]


@pytest.mark.parametrize(
    ("body", "header"),
    [({"job_id": "mine"}, ("job-id", b"yours")), ({"priority": 0}, ("priority", b"3"))],
)
def test_a_header_that_contradicts_the_body_is_refused(body: dict[str, Any], header: tuple[str, bytes]) -> None:
    invalid = refusal({**BARE, **body}, header)

    assert fields(invalid) == [f"headers.{header[0]}"]
    assert invalid.callback_url == CALLBACK


def test_a_header_that_repeats_the_body_is_no_conflict() -> None:
    received = read({**BARE, "job_id": "mine", "priority": 3}, ("job-id", b"mine"), ("priority", b"3"))

    assert (received.job_id, received.priority) == ("mine", 3)


def test_a_deadline_by_which_the_lane_has_deleted_the_job_is_refused() -> None:
    latest = TIMESTAMP_MS + LANES_KEPT_MS

    assert read(BARE, ("deadline", str(latest).encode())).deadline_ms == latest
    assert fields(refusal(BARE, ("deadline", str(latest + 1).encode()))) == ["headers.deadline"]


def test_a_carried_deadline_is_no_conflict_with_the_ttl_that_it_came_from() -> None:
    assert read({**BARE, "ttl_seconds": 5}, ("deadline", b"1700000005000")).deadline_ms == 1_700_000_005_000


def test_a_value_of_exactly_the_limit_is_a_job_and_one_byte_more_is_none() -> None:
    frame = len(encoded({**BARE, "prompt": ""}))
    largest = {**BARE, "prompt": "a" * (MAX_JOB_BYTES - frame)}
    invalid = refusal({**BARE, "prompt": "a" * (MAX_JOB_BYTES - frame + 1)})

    assert read(largest).job_id == f"job_{ORIGIN.digest}"
    assert [str(problem) for problem in invalid.problems] == ["value: is larger than 524288 bytes"]
    assert invalid.callback_url == CALLBACK


def test_what_can_be_read_of_an_invalid_job_says_where_its_refusal_goes() -> None:
    wrong = {"prompt": 5, "job_id": "mine", "custom_id": "row 1", "callback_url": CALLBACK}
    invalid = refusal(
        wrong,
        ("tenant", b"acme"),
        ("traceparent", TRACEPARENT.encode()),
    )

    assert (invalid.job_id, invalid.custom_id, invalid.callback_url) == ("mine", "row 1", CALLBACK)
    assert (invalid.tenant, invalid.webhook_id) == ("acme", ORIGIN.webhook_id(encoded(wrong)))
    assert invalid.traceparent == TRACEPARENT


def test_what_cannot_be_read_of_an_invalid_job_is_replaced_by_our_own() -> None:
    invalid = refusal({"prompt": 5, "job_id": "a b", "custom_id": 7}, ("tenant", b"a b"))

    assert (invalid.job_id, invalid.custom_id, invalid.callback_url) == (f"job_{ORIGIN.digest}", None, None)
    assert invalid.tenant == "default"


def test_a_rejected_result_names_the_fields_and_repeats_no_input() -> None:
    secret = "s3cret-input"
    job = {
        "prompt": {secret: secret},
        "max_tokens": secret,
        "callback_url": f"ftp://{secret}",
        "metadata": {secret: 5},
        "messages": [{"role": secret, "content": [{"type": secret}]}],
    }
    invalid = refusal(job, ("tenant", f"{secret} x".encode()))
    result = rejected_result(invalid, created_at=1_700_000_000)

    assert (result.outcome, result.created_at) == (Outcome.REJECTED, 1_700_000_000)
    assert result.error is not None
    assert result.error.code == "invalid_job"
    assert {"prompt", "max_tokens", "metadata", "callback_url", "headers.tenant"} <= set(fields(invalid))
    assert secret not in write_result(result).decode() + str(invalid) + repr(invalid)


def test_the_reasons_of_a_job_with_thousands_of_mistakes_stay_few() -> None:
    wrong = {"prompt": "a", "metadata": {str(number): number for number in range(1000)}, "sources": {"urls": [1] * 20}}

    assert 1 < len(refusal(wrong).problems) <= MAX_PROBLEMS


def test_an_invalid_job_keeps_no_pydantic_error_that_holds_the_input() -> None:
    invalid = refusal({"prompt": 5})

    assert invalid.__cause__ is None
    assert invalid.__suppress_context__


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


def test_a_written_job_says_only_what_was_said() -> None:
    assert json.loads(write_job(Job(prompt="a", max_tokens=5))) == {"prompt": "a", "max_tokens": 5}


def test_a_result_survives_its_bytes_and_what_is_none_is_left_out() -> None:
    result = Result(
        job_id="job_1", outcome=Outcome.SUCCEEDED, text="Ω\n\u0000", usage=Usage(prompt_tokens=3), created_at=1
    )
    written = write_result(result)

    assert read_result(written) == result
    assert b"confidence" not in written
    assert b": " not in written
    assert write_result(read_result(written)) == written


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b'{"job_id":"a","outcome":"s3cret","created_at":1}'])
def test_what_no_worker_wrote_is_an_invalid_result_that_shows_nothing(value: bytes | None) -> None:
    with pytest.raises(InvalidResult) as raised:
        read_result(value)

    assert "s3cret" not in str(raised.value)
