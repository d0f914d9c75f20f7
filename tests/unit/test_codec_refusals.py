"""Invalid jobs: each is refused with reasons that name the field."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.codec import InvalidJob, rejected_result, write_result
from schemas.job import MAX_JOB_BYTES
from schemas.outcome import Outcome
from schemas.problems import MAX_PROBLEMS
from schemas.topics import LANES_KEPT_MS
from tests.unit.codec_jobs import BARE, CALLBACK, ORIGIN, TIMESTAMP_MS, TRACEPARENT, encoded, read


def refusal(job: object, *headers: tuple[str, bytes]) -> InvalidJob:
    with pytest.raises(InvalidJob) as raised:
        read(job, *headers)
    return raised.value


def fields(invalid: InvalidJob) -> list[str]:
    return [problem.field for problem in invalid.problems]


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
        (
            {},
            "prompt",
            "exactly one of `prompt`, `messages`, `embed`, `rerank`, `score`, `classify` and `payload_url` is required",
        ),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt", "exactly one"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": 5}, "prompt", "valid string"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "valid integer"),
        ({"prompt": "a", "seed": 10**400}, "seed", "less than or equal"),
        (b'{"prompt":"a","temperature":NaN}', "temperature", "finite number"),
        (b'{"messages":[{"role":"user","content":"a"}],"raw":true}', "raw", "`raw` goes with `prompt`"),
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
def test_an_invalid_job_is_refused_with_a_reason_that_names_the_field(job: object, field: str, reason: str) -> None:
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


def test_audio_is_refused_because_only_text_and_images_are_taken() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "input_audio", "input_audio": {"data": "AAAA"}}]
    invalid = refusal({"messages": [{"role": "user", "content": parts}], "callback_url": CALLBACK})

    assert fields(invalid)[0] == "messages.0.content.1.type"
    assert "only `text` and `image_url` parts are taken" in invalid.problems[0].reason
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


def test_a_deadline_by_which_the_lane_has_deleted_the_job_is_refused() -> None:
    latest = TIMESTAMP_MS + LANES_KEPT_MS

    assert read(BARE, ("deadline", str(latest).encode())).deadline_ms == latest
    assert fields(refusal(BARE, ("deadline", str(latest + 1).encode()))) == ["headers.deadline"]


def test_a_value_of_exactly_the_limit_is_a_job_and_one_byte_more_is_not() -> None:
    frame = len(encoded({**BARE, "prompt": ""}))
    largest = {**BARE, "prompt": "a" * (MAX_JOB_BYTES - frame)}
    invalid = refusal({**BARE, "prompt": "a" * (MAX_JOB_BYTES - frame + 1)})

    assert read(largest).job_id == f"job_{ORIGIN.digest}"
    assert [str(problem) for problem in invalid.problems] == ["value: is larger than 524288 bytes"]
    assert invalid.callback_url == CALLBACK


def test_the_readable_fields_of_an_invalid_job_say_where_its_refusal_goes() -> None:
    wrong = {"prompt": 5, "job_id": "mine", "custom_id": "row 1", "callback_url": CALLBACK}
    invalid = refusal(
        wrong,
        ("tenant", b"acme"),
        ("traceparent", TRACEPARENT.encode()),
    )

    assert (invalid.job_id, invalid.custom_id, invalid.callback_url) == ("mine", "row 1", CALLBACK)
    assert (invalid.tenant, invalid.webhook_id) == ("acme", ORIGIN.webhook_id(encoded(wrong)))
    assert invalid.traceparent == TRACEPARENT


def test_unreadable_ids_of_an_invalid_job_are_replaced_by_our_own() -> None:
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
