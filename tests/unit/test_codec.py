"""Jobs on the wire: valid, invalid, later and by reference, with unknown fields, and as the gateway reads them."""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import jsonschema
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams

from gateway.door.awaiting import bounded
from gateway.errors import ApiError
from producers.jsonl import read_jobs
from producers.sharding import prefix_key
from schemas import payload as payloads
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
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.job import MAX_JOB_BYTES, Job
from schemas.kinds import ASKED
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, URLS
from schemas.outcome import Outcome
from schemas.payload import MAX_VALUES, PAYLOAD_FIELDS, UnusablePayload, with_payload
from schemas.problems import MAX_PROBLEMS
from schemas.result import Result, Usage
from schemas.screening import ScreeningFinding, Verdict, write_findings
from schemas.strict import NotAJob, body_job, ignored_members, job_in, job_of, parsed
from schemas.topics import LANES_KEPT_MS, LATER_SECONDS, hop
from schemas.unknown import MAX_NAME_CHARACTERS, MAX_NAMES, UnknownFields, described, unknown_in
from scripts.publish.wire_schemas import FOLDER
from telemetry.hand_clock import HandClock
from tests.drawn import drawn
from tests.handlers import CLOCK, TOPICS
from tests.unit.echo_worker import TOPIC_ID, headers_of, record, working
from workers.delivery.outputs import moved_on
from workers.delivery.tier_pace import TierPace
from workers.inference.tenants import PAYLOAD_TOKENS, prompt_tokens
from workers.stage.record import Output, Record

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


# -- valid jobs --------------------------------------------------------------------------------------------------------


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


@given(
    st.lists(FINDING, max_size=4),
    st.one_of(st.binary(max_size=60), st.sampled_from([b"[{}]", b"[[" * 2000, b"9" * 99, b"[" + b"1," * 8000])),
)
def test_the_findings_of_the_gateways_filter_read_back_and_any_other_value_is_none(
    findings: list[ScreeningFinding], noise: bytes
) -> None:
    assert list(read(BARE, ("screening", write_findings(findings))).screening) == findings
    assert read(BARE, ("screening", noise)).screening == ()


def test_headers_give_the_fields_that_the_body_leaves_open_and_may_repeat_it() -> None:
    received = read(
        {**BARE, "job_id": "carried", "priority": 7, "ttl_seconds": 5},
        ("tenant", b"not a tenant"),
        ("tenant", b"acme"),  # the last header of a name counts
        ("deadline", b"1700000005000"),
        ("priority", b"7"),
        ("idempotency-key", b"once-1"),
        ("traceparent", TRACEPARENT.encode()),
        ("schema", b"1"),
        ("job-id", b"carried"),
    )

    assert (received.tenant, received.deadline_ms, received.priority) == ("acme", 1_700_000_005_000, 7)
    assert (received.idempotency_key, received.traceparent) == ("once-1", TRACEPARENT)
    assert read(BARE, ("job-id", b"carried")).job_id == received.job_id == "carried"
    assert read(BARE, ("priority", b"7")).priority == 7
    assert read({**BARE, "ttl_seconds": 1.5}).deadline_ms == TIMESTAMP_MS + 1500


def test_identifiers_come_from_the_place_in_the_topic_and_differ_for_every_other_place() -> None:
    places = [ORIGIN, Origin("another", 3, 41), Origin(ORIGIN.topic_id, 34, 1), Origin(ORIGIN.topic_id, 3, 42)]
    received = [read(BARE, origin=place) for place in places]
    named = [read({**BARE, "job_id": "mine"}, origin=place) for place in places]

    assert len({one.job_id for one in received}) == len({one.webhook_id for one in received}) == len(places)
    assert read(BARE) == received[0]
    assert ({one.job_id for one in named}, len({one.webhook_id for one in named})) == ({"mine"}, len(places))


def test_a_traceparent_that_cannot_be_parsed_is_ignored_and_a_later_version_may_say_more() -> None:
    later = "01" + TRACEPARENT[2:] + "-more"
    wrong = ("", "garbage", TRACEPARENT.upper(), "ff" + TRACEPARENT[2:], TRACEPARENT + "-more")
    zeros = (TRACEPARENT.replace(TRACEPARENT[3:35], "0" * 32), TRACEPARENT.replace(TRACEPARENT[36:52], "0" * 16))

    found = {text: read(BARE, ("traceparent", text.encode())).traceparent for text in (*wrong, *zeros, later)}
    assert found == dict.fromkeys((*wrong, *zeros)) | {later: later}


def test_fields_that_are_not_known_are_passed_over_and_the_last_of_two_equal_keys_counts() -> None:
    assert read({**BARE, "colour": "blue"}, ("x-colour", b"\xff")).job == read(BARE).job
    assert read(b'{"prompt":"first","prompt":"second"}').job.prompt == "second"


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


def test_a_job_and_a_result_survive_their_bytes_and_fields_with_none_are_left_out() -> None:
    usage = Usage(prompt_tokens=3)
    result = Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="Ω\n\u0000", usage=usage, created_at=1)
    written = write_result(result)

    assert json.loads(write_job(Job(prompt="a", max_tokens=5))) == {"prompt": "a", "max_tokens": 5}
    assert read_result(written) == result
    assert b"confidence" not in written
    assert b": " not in written
    assert write_result(read_result(written)) == written


def test_a_record_that_no_worker_wrote_is_an_invalid_result_that_shows_nothing() -> None:
    for value in (None, b"", b"{", b"[]", b'{"job_id":"a","outcome":"s3cret","created_at":1}'):
        with pytest.raises(InvalidResult) as raised:
            read_result(value)
        assert "s3cret" not in str(raised.value)


# -- invalid jobs ------------------------------------------------------------------------------------------------------


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


def test_a_callback_url_is_kept_as_it_was_written_or_refused_and_never_used() -> None:
    good = (
        *("http://127.0.0.1:8080", "HTTPS://consumer.example/hook?token=a#b", "https://[2001:db8::1]:8443/hook"),
        *("https://münchen.example/ü?q=1", "https://consumer.example:65535/"),
    )
    bad = (
        *("ftp://consumer.example/", "consumer.example/hook", "https://", "https:///path", "https://[::1/", 7),
        *("https://user:secret@consumer.example/", "https://consumer.example:99999/", "https://consumer.example/a b"),
        *("https://consumer.example/\u0000", "https://consumer.example\\@internal/"),
        "https://consumer.example/" + "a" * 2048,
    )
    assert [read({"prompt": "a", "callback_url": url}).job.callback_url for url in good] == [*good]
    for url in bad:
        invalid = refusal({"prompt": "a", "callback_url": url})
        assert (fields(invalid), invalid.callback_url) == (["callback_url"], None), url


def test_a_header_that_is_not_usable_or_contradicts_the_body_is_refused_by_its_name() -> None:
    latest = TIMESTAMP_MS + LANES_KEPT_MS
    whole = {**BARE, "job_id": "mine", "priority": 0}
    wrong = {
        "tenant": (b"a tenant", b"t\xc3\xa9nant", b"-t", b"a" * 64, b"acme\n"),
        # By a later deadline, the lane has deleted the job.
        "deadline": (b"soon", b"-1", "٣".encode(), str(latest + 1).encode()),
        "priority": (b"10", b"3"),
        "idempotency-key": (b"a b",),
        "schema": (b"2",),
        "job-id": (b"a b", b"yours"),
    }
    for name, values in wrong.items():
        for value in values:
            invalid = refusal(whole, (name, value))
            assert (fields(invalid), invalid.callback_url) == ([f"headers.{name}"], CALLBACK), value
    assert read(BARE, ("deadline", str(latest).encode())).deadline_ms == latest


def test_a_value_of_exactly_the_limit_is_a_job_and_one_byte_more_is_not() -> None:
    frame = len(encoded({**BARE, "prompt": ""}))
    largest = {**BARE, "prompt": "a" * (MAX_JOB_BYTES - frame)}
    invalid = refusal({**BARE, "prompt": "a" * (MAX_JOB_BYTES - frame + 1)})

    assert read(largest).job_id == f"job_{ORIGIN.digest}"
    assert [str(problem) for problem in invalid.problems] == ["value: is larger than 524288 bytes"]
    assert invalid.callback_url == CALLBACK


def test_the_readable_fields_of_an_invalid_job_say_where_its_refusal_goes() -> None:
    wrong = {"prompt": 5, "job_id": "mine", "custom_id": "row 1", "callback_url": CALLBACK}
    invalid = refusal(wrong, ("tenant", b"acme"), ("traceparent", TRACEPARENT.encode()))
    unreadable = refusal({"prompt": 5, "job_id": "a b", "custom_id": 7}, ("tenant", b"a b"))

    assert (invalid.job_id, invalid.custom_id, invalid.callback_url) == ("mine", "row 1", CALLBACK)
    assert (invalid.tenant, invalid.webhook_id) == ("acme", ORIGIN.webhook_id(encoded(wrong)))
    assert invalid.traceparent == TRACEPARENT
    assert (unreadable.job_id, unreadable.custom_id, unreadable.callback_url) == (f"job_{ORIGIN.digest}", None, None)
    assert unreadable.tenant == "default"
    # No pydantic error is kept, since it holds the input.
    assert (invalid.__cause__, invalid.__suppress_context__) == (None, True)


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


def test_audio_is_refused_because_only_text_and_images_are_taken() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "input_audio", "input_audio": {"data": "AAAA"}}]
    invalid = refusal({"messages": [{"role": "user", "content": parts}], "callback_url": CALLBACK})

    assert fields(invalid)[0] == "messages.0.content.1.type"
    assert "only `text` and `image_url` parts are taken" in invalid.problems[0].reason
    assert invalid.callback_url == CALLBACK


def test_the_reasons_of_a_job_with_thousands_of_mistakes_stay_few() -> None:
    wrong = {"prompt": "a", "metadata": {str(number): number for number in range(1000)}, "sources": {"urls": [1] * 20}}

    assert 1 < len(refusal(wrong).problems) <= MAX_PROBLEMS


# -- unknown fields ----------------------------------------------------------------------------------------------------


def unknown_read(**job: object) -> ReceivedJob:
    return read({"prompt": "q", **job})


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
    unknown = unknown_read(**job).unknown
    assert (unknown.names if unknown is not None else None) == names


@given(st.dictionaries(st.text(), st.recursive(st.integers(), st.lists), max_size=12))
def test_unknown_fields_change_neither_the_job_nor_the_forwarded_record(more: dict[str, object]) -> None:
    given = {name: value for name, value in more.items() if name not in Job.model_fields}
    received = unknown_read(**given)
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


def test_a_name_that_resembles_a_field_is_reported_with_that_field() -> None:
    meant = {
        "temprature": "temperature",
        "ttl": "ttl_seconds",
        "model": "model_id",
        "callback": "callback_url",
        "maxTokens": "max_tokens",
        "max_completion_tokens": "max_tokens",
        "sources.require": "sources.required",
        "body.top_pp": "body.top_p",
        "body.max_output_tokens": "body.max_tokens",
    }
    assert {name: described(name) for name in meant} == {
        name: f"`{name}` (did you mean `{field}`?)" for name, field in meant.items()
    }
    for name in ("body.presence_penalty", "body.prompt_cache_retention", "colour"):
        assert described(name) == f"`{name}`"
    # Many unknown fields are counted.
    assert str(UnknownFields(("a", "b"), 7)) == "unknown fields of the job were ignored: `a`, `b` and 5 more"
    assert unknown_in([]) is None
    many = {"promt": 1, **{f"f{number}": 1 for number in range(9)}}
    assert unknown_in(many) == UnknownFields(("promt", "f0", "f1", "f2", "f3"), 10)


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


# -- jobs as the gateway reads them ------------------------------------------------------------------------------------


QUESTIONS: dict[str, dict[str, Any]] = {
    CHAT_COMPLETIONS: {"messages": [{"role": "user", "content": "Why?"}]},
    COMPLETIONS: {"prompt": "Why?"},
    RESPONSES: {"input": "Why?"},
}
DOCUMENTS = JSON | st.dictionaries(
    st.sampled_from([*MEMBERS, "custom_id", "input", "instructions", "model"]) | TEXT,
    JSON | st.sampled_from(URLS),
    max_size=6,
)


def problems(document: object, url: str | None = None) -> list[str]:
    """The problems of a job, or of a body for this URL."""
    with pytest.raises(NotAJob) as raised:
        job_in(encoded(document)) if url is None else body_job(url, document)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"prompt": "q", "ttl": 3}, ["ttl: is unknown; did you mean `ttl_seconds`?"]),
        ({"prompt": "q", "sources": {"urlz": []}}, ["sources.urlz: is unknown; did you mean `sources.urls`?"]),
        ({"prompt": "q", "zzz": 1}, ["zzz: is unknown; remove it"]),
        (
            {"promt": "q"},
            [
                "promt: is unknown; did you mean `prompt`?",
                "prompt: exactly one of `prompt`, `messages`, `embed`, `rerank`, `score`, `classify` and "
                "`payload_url` is required",
            ],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q", "lang": 1}], "nme": 1}]},
            ["messages.0.nme: is unknown; remove it", "messages.0.content.0.lang: is unknown; remove it"],
        ),
        ([], ["value: is not a JSON object"]),
        ({"prompt": "q", "custom_id": "a\0"}, ["custom_id: has a NUL character, which a database cannot store"]),
        ({"prompt": "q", "metadata": {"\0": ""}}, ["metadata: has a NUL character, which a database cannot store"]),
    ],
)
def test_each_problem_of_a_job_names_its_field_and_the_fix(document: object, found: list[str]) -> None:
    assert problems(document) == found


def test_a_batch_line_is_a_job_and_its_problems_are_named_in_the_line() -> None:
    line = {"custom_id": "a", "url": RESPONSES, "body": {**QUESTIONS[RESPONSES], "max_output_tokens": 5}}
    job = job_in(json.dumps(line).encode())

    assert (job.custom_id, job.max_tokens) == ("a", 5)
    line["body"] = {**QUESTIONS[RESPONSES], "max_tokens": 5}
    assert problems({**line, "urgent": True}) == [
        "urgent: is unknown; remove it",
        "body.max_tokens: is unknown; did you mean `max_output_tokens`?",
    ]


@pytest.mark.parametrize(
    ("url", "member", "value", "said"),
    [
        (CHAT_COMPLETIONS, "temprature", 1, "unknown; did you mean `temperature`?"),
        (CHAT_COMPLETIONS, "max_output_tokens", 1, "unknown; did you mean `max_completion_tokens`?"),
        (COMPLETIONS, "messages", 1, "unknown; did you mean `prompt`?"),
        (RESPONSES, "max_token", 1, "unknown; did you mean `max_output_tokens`?"),
        (RESPONSES, "promt", 1, "unknown; did you mean `input`?"),
        (RESPONSES, "response_format", 1, "unknown; did you mean `text`?"),
        (RESPONSES, "stream", True, "not supported here; the answer comes whole"),
        (RESPONSES, "previous_response_id", "resp_1", "not supported here; send the earlier messages in `input`"),
        (RESPONSES, "modalities", ["audio"], "not supported here"),
    ],
)
def test_a_member_that_the_url_has_not_is_refused_with_the_right_name_or_the_way_around(
    url: str, member: str, value: object, said: str
) -> None:
    assert problems({**QUESTIONS[url], member: value}, url) == [f"{member}: is {said}"]


@pytest.mark.parametrize(
    ("url", "params"), [(CHAT_COMPLETIONS, ChatParams), (COMPLETIONS, CompletionParams), (RESPONSES, ResponseParams)]
)
def test_every_member_that_openais_package_sends_is_known(url: str, params: type) -> None:
    for member in params.__annotations__.keys() - QUESTIONS[url].keys():
        try:
            body_job(url, {**QUESTIONS[url], member: "?"})
        except NotAJob as refused:
            assert "unknown" not in str(refused), member


@given(st.binary(max_size=40) | DOCUMENTS.map(encoded), st.sampled_from(URLS), DOCUMENTS)
@example(b'{"prompt":"q","temperature":NaN}', RESPONSES, None)
@example(b'{"prompt":"\\ud800"}', RESPONSES, None)
@example(b"[" * 5000, RESPONSES, None)
@example(b'{"prompt":"q","seed":' + b"9" * 5000 + b"}", RESPONSES, None)
def test_any_bytes_and_any_body_are_a_job_or_are_refused_with_few_problems(
    value: bytes, url: str, body: object
) -> None:
    readers: list[Callable[[], Job]] = [
        *(lambda: job_in(value), lambda: job_of(parsed(value)), lambda: body_job(url, body))
    ]
    for read_it in readers:
        try:
            read_it()
        except NotAJob as refused:
            assert 1 <= len(refused.problems) <= MAX_PROBLEMS


def test_members_without_effect_are_named() -> None:
    body = {**QUESTIONS[CHAT_COMPLETIONS], "presence_penalty": 1, "logit_bias": None, "user": "u"}
    assert ignored_members(CHAT_COMPLETIONS, body) == ["ignored, since no engine here has it: `presence_penalty`"]
    assert ignored_members(CHAT_COMPLETIONS, QUESTIONS[CHAT_COMPLETIONS]) == []


def test_the_hash_of_a_prompt_is_that_of_its_text() -> None:
    asked = Job.model_validate(QUESTIONS[CHAT_COMPLETIONS])
    assert Job(prompt="Why?").prompt_sha256 == "5d8a995a6fa7cf7c577cc9d49ca9e00d4aee4d0bcd5e2ad5caff27e2a8097276"
    assert asked.prompt_sha256 == body_job(RESPONSES, QUESTIONS[RESPONSES]).prompt_sha256


DAY = 86_400
LANES = frozenset((*TOPICS.requests_of(None), *TOPICS.requests_of("gpu")))
DELAYS = {topic: delay for delay, topic in TOPICS.later.items()}
SHORTEST = min(LATER_SECONDS)


def later_by(seconds: float) -> float:
    return CLOCK.time() + seconds


def as_read(output: Output, at_ms: int, offset: int = 9) -> Record:
    """Return an output in the form in which a stage reads it again."""
    number = 0 if output.partition is None else output.partition
    return Record(output.topic, number, offset, output.value or b"", output.key, output.headers, at_ms)


# -- the worker ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["handled", "deferred"])
@pytest.mark.parametrize(("seconds", "tier"), [(3, 5), (100, 30), (3000, 300), (30_000, 21_600)])
async def test_a_job_whose_time_has_not_come_moves_to_a_tier_with_its_identity(
    seconds: float, tier: float, way: str
) -> None:
    begins = later_by(seconds)
    given = record(None, ("tenant", b"acme"), ("lane", b"forged"), not_before=begins, ttl_seconds=60)
    async with working() as worker:
        [output] = await worker.outputs(given) if way == "handled" else worker.handler.sharing.defer(given)
    origin = Origin(TOPIC_ID, 3, 7)
    assert (output.topic, output.value, output.key, output.partition) == (
        TOPICS.later[tier],
        given.value,
        given.key,
        given.partition,
    )
    said = headers_of(output)
    assert seconds * 1000 - 5000 < int(said.pop("left")) <= seconds * 1000
    assert int(said.pop("written")) <= CLOCK.time() * 1000 + 1
    assert said == {
        "tenant": "acme",
        "job-id": f"job_{origin.digest}",
        "webhook-id": origin.webhook_id(given.value),
        "job-origin": str(origin),
        "deadline": str(round(1000 * begins) + 60_000),
        "lane": TOPICS.requests(),
        "not-before": str(round(1000 * begins)),
    }
    assert worker.sample("postback_jobs_total", outcome="succeeded") == 0


async def test_a_job_whose_time_has_come_is_answered() -> None:
    async with working() as worker:
        assert (await worker.result(record(not_before=later_by(-1)))).outcome == "succeeded"


async def test_a_job_for_a_model_that_no_worker_has_yet_waits_for_its_time() -> None:
    async with working(model_wait_seconds=0) as worker:
        [output] = await worker.outputs(record(not_before=later_by(9), model_id="tomorrow"))
    assert output.topic in DELAYS


async def test_a_cancelled_job_ends_as_soon_as_a_worker_meets_it_and_starts_nothing() -> None:
    given = record(not_before=later_by(900), job_id="j1")
    at_ms = round(1000 * CLOCK.time())
    cancelled = JobControl(tenant="default", job_id="j1", state=ControlState.CANCELLED, at=at_ms)
    async with working() as worker:
        worker.handler.cancellations.apply(job_key_bytes(cancelled.key), write_control(cancelled))
        result = await worker.result(given)
    assert (result.outcome, result.usage) == ("cancelled", None)


# -- the tiers -----------------------------------------------------------------------------------------------------
@given(
    st.floats(0.001, 6 * DAY),
    st.sampled_from([*LANES, "fleet.model_requests.gone"]),
    st.lists(st.floats(0, 2), min_size=1, max_size=9),
    st.floats(-50, 50),
)
def test_a_job_returns_to_its_lane_once_after_its_time_and_within_the_shortest_tier(
    seconds: float, lane: str, delays: Sequence[float], skew: float
) -> None:
    """Delivery's clock differs from the worker's by `skew` seconds, and records leave their tiers late by `delays`."""
    clock = HandClock(1_764_700_000.0)
    begins_ms = round(1000 * (clock.time() + seconds))
    headers = [("tenant", b"acme"), ("lane", lane.encode()), ("own", b"1")]
    given = Record(lane, 5, 1, b"job", b"key", headers)
    left = begins_ms - round(1000 * clock.time())
    first = Output(
        TOPICS.later[hop(left, LATER_SECONDS)],
        b"job",
        b"key",
        [*headers, ("not-before", str(begins_ms).encode()), ("left", str(left).encode())],
        5,
    )
    job, moves, late = as_read(first, 0), 0, 0.0
    while job.topic in DELAYS:
        tier, delay = DELAYS[job.topic], delays[moves % len(delays)]
        clock.now += tier + delay
        late += delay
        output = moved_on(job, round(1000 * tier), round(1000 * (clock.time() + skew)), TOPICS, LANES)
        job, moves = as_read(output, 0), moves + 1
    there = lane if lane in LANES else TOPICS.requests()
    assert (job.topic, job.partition, job.value, job.key) == (there, given.partition, given.value, given.key)
    assert job.headers == [("tenant", b"acme"), ("own", b"1")]
    assert 1000 * (clock.time() + skew) >= begins_ms - 1
    assert clock.time() + skew - begins_ms / 1000 <= SHORTEST + max(delays) + max(0.0, skew) + SHORTEST * (skew > 0)
    assert moves <= 80


@given(
    st.lists(st.tuples(st.sampled_from(["lane", "not-before", "left", "written", "x"]), st.binary(max_size=20))),
    st.sampled_from(sorted(DELAYS)),
)
def test_headers_of_noise_move_a_job_to_a_tier_or_to_a_lane_that_exists(
    headers: list[tuple[str, bytes | None]], topic: str
) -> None:
    job = Record(topic, 2, 1, b"job", None, headers)
    output = moved_on(job, round(1000 * DELAYS[topic]), TIMESTAMP_MS, TOPICS, LANES)
    assert output.topic in {*DELAYS, *LANES}
    assert (output.value, output.partition) == (b"job", 2)


def test_a_job_with_forged_headers_leaves_the_tiers_after_six_days() -> None:
    """Any producer may write to the tiers, and Kafka would keep a job that is rewritten for ever."""
    clock = HandClock(1_764_700_000.0)
    headers = [("not-before", b"9" * 15), ("left", b"9" * 15)]
    job, waited = Record(TOPICS.later[21_600], 2, 1, b"job", None, headers), 0.0
    while job.topic in DELAYS:
        tier = DELAYS[job.topic]
        clock.now, waited = clock.now + tier, waited + tier
        assert waited <= 6 * DAY + 21_600
        job = as_read(moved_on(job, round(1000 * tier), round(1000 * clock.time()), TOPICS, LANES), 0)
    assert job.topic == TOPICS.requests()


@pytest.mark.parametrize("way", ["handled", "deferred"])
@pytest.mark.parametrize(
    ("days", "deadline_days", "ahead_days", "is_late"),
    [(5.9, None, 0, False), (5.9, None, 3, False), (6.1, None, 3, True), (6.5, 6.9, 0, False), (6.5, 7.1, 3, True)],
)
async def test_a_job_may_not_end_later_because_its_timestamp_lies_ahead(
    days: float, deadline_days: float | None, ahead_days: int, is_late: bool, way: str
) -> None:
    """The codec counts from the record's timestamp, which the producer may set."""
    deadline = [] if deadline_days is None else [("deadline", b"%d" % round(1000 * later_by(deadline_days * DAY)))]
    given = record(None, *deadline, not_before=later_by(days * DAY), ttl_seconds=60)
    given.timestamp_ms += ahead_days * DAY * 1000
    async with working() as worker:
        outputs = await worker.outputs(given) if way == "handled" else worker.handler.sharing.defer(given)
    assert [output.topic in DELAYS for output in outputs] == ([False, False] if is_late else [True])
    if is_late:
        assert "not_before: the job would end too late" in (outputs[0].value or b"").decode()


def test_a_clock_that_is_behind_by_a_year_releases_a_job_after_its_tiers_all_the_same() -> None:
    begins_ms = TIMESTAMP_MS + 30_000
    headers = [("lane", TOPICS.requests().encode()), ("not-before", str(begins_ms).encode()), ("left", b"30000")]
    job = Record(TOPICS.later[30], 2, 1, b"job", None, headers)
    assert moved_on(job, 30_000, begins_ms - 366 * DAY * 1000, TOPICS, LANES).topic == TOPICS.requests()


def test_a_tier_of_jobs_releases_its_records_after_its_delay() -> None:
    clock = HandClock(1_764_700_000.0)
    now_ms = round(1000 * clock.time())
    pace = TierPace(TOPICS, clock)
    for delay, topic in TOPICS.later.items():
        assert pace.due_ms(Record(topic, 0, 0, b"job", None, [], now_ms)) == now_ms + 1000 * delay


# -- the refused times ---------------------------------------------------------------------------------------------
def refused(not_before: object, *headers: tuple[str, bytes], **fields: object) -> str | None:
    value = json.dumps({"prompt": "x", "not_before": not_before, **fields}).encode()
    try:
        read_job(value, headers, ORIGIN, TIMESTAMP_MS)
    except InvalidJob as invalid:
        return str(invalid)
    return None


def test_the_ttl_counts_from_the_time_at_which_a_job_may_start() -> None:
    begins = TIMESTAMP_MS // 1000 + 3600
    value = json.dumps({"prompt": "x", "not_before": begins, "ttl_seconds": 60}).encode()
    assert read_job(value, None, ORIGIN, TIMESTAMP_MS).deadline_ms == 1000 * begins + 60_000
    past = json.dumps({"prompt": "x", "not_before": begins - 7200, "ttl_seconds": 60}).encode()
    assert read_job(past, None, ORIGIN, TIMESTAMP_MS).deadline_ms == TIMESTAMP_MS + 60_000


@given(st.integers(1, 5 * DAY), st.integers(1, 6 * DAY))
def test_a_job_lives_six_days_at_most_from_when_it_is_sent(seconds: int, ttl: int) -> None:
    said = refused(TIMESTAMP_MS / 1000 + seconds, ttl_seconds=ttl)
    assert (said is None) == (seconds + ttl <= 6 * DAY)
    if said is not None:
        assert said.startswith("not_before: with `ttl_seconds` the job would end ")
        assert "at most 6 are possible" in said
        assert "retention.ms" in said


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (TIMESTAMP_MS, "less than or equal to 10000000000"),
        (60, "greater than or equal to 1000000000"),
        ("2026-03-01T22:00:00Z", "valid number"),
        (math.inf, "finite number"),
    ],
)
def test_a_time_that_is_no_unix_seconds_is_refused_by_its_field(value: object, reason: str) -> None:
    said = refused(value)
    assert said is not None
    assert said.startswith("not_before:")
    assert reason in said or math.inf == value


def test_a_time_past_the_stated_deadline_is_refused() -> None:
    begins = TIMESTAMP_MS // 1000 + 3600
    assert refused(begins, ("deadline", str(1000 * begins + 1).encode())) is None
    assert refused(begins, ("deadline", str(1000 * begins).encode())) == (
        "not_before: is past the job's deadline; choose an earlier time"
    )


def test_a_file_of_jobs_is_checked_by_the_present_time() -> None:
    clock = HandClock(TIMESTAMP_MS / 1000)
    lines = [json.dumps({"prompt": "x", "not_before": clock.time() + days * DAY}).encode() for days in (4, 5.5)]
    lines.append(b'{"prompt": "y"}')
    read = read_jobs(lines, not_before=clock.time() + DAY, clock=clock)
    assert [problem.line for problem in read.problems] == [2]
    assert [job.not_before for job in read.jobs] == [clock.time() + 4 * DAY, clock.time() + DAY]
    assert read_jobs(lines, not_before=clock.time() + 6 * DAY, clock=clock).invalid == 2


def test_a_request_that_waits_for_its_answer_takes_no_job_that_starts_later() -> None:
    with pytest.raises(ApiError, match="not_before: goes with requests that do not wait"):
        bounded(Job(prompt="x", not_before=2e9), 60)


def test_a_result_of_a_batch_line_has_the_line_s_time() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "not_before": 2e9}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    received = read_job(json.dumps(line).encode(), [("deadline", b"2000000060000")], ORIGIN, 2_000_000_000_000 - DAY)
    assert received.job.not_before == 2e9


ADDRESS = "https://files.example/question.json?signature=s3cret"
RECORD: dict[str, Any] = {"payload_url": ADDRESS, "callback_url": "https://consumer.example/hook", "max_tokens": 7}
SECRET = "Grünspan"
DIGEST = hashlib.sha256(b"{}").hexdigest()
OF_DOCUMENTS = jsonschema.Draft202012Validator(json.loads((FOLDER / "job.json").read_text()))

TOOL = {"type": "function", "function": {"name": "clock"}}
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.text(min_size=1, max_size=9),
    "messages": st.lists(st.builds(lambda text: {"role": "user", "content": text}, st.text(max_size=9)), min_size=1),
    "embed": st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3),
    "rerank": st.just({"query": "a", "documents": ["b", "c"]}),
    "score": st.just({"queries": ["a"], "documents": ["b", "c"]}),
    "classify": st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3),
    "tools": st.just([TOOL]),
    "sources": st.just({"urls": ["https://a.example/"], "documents": [{"id": "a", "text": "One."}]}),
    "response_format": st.just({"type": "json_object"}),
}
REST = st.fixed_dictionaries(
    {},
    optional={
        "raw": st.booleans(),
        "n": st.integers(1, 3),
        "stop": st.just(["x"]),
        "dimensions": st.integers(1, 9),
        "metadata": st.just({"a": "b"}),
        "temperature": st.none() | st.just(0.5),
    },
)
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just(SECRET),
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(st.sampled_from([*Job.model_fields, "role", "content", "urls"]) | st.text(max_size=5), some)
    ),
    max_leaves=12,
)


def job(**fields: Any) -> Job:
    return Job.model_validate({**RECORD, **fields})


def refusal_of(document: object, **fields: Any) -> str:
    written = document if isinstance(document, bytes) else encoded(document)
    with pytest.raises(UnusablePayload) as raised:
        with_payload(job(**fields), written)
    return str(raised.value)


@pytest.mark.parametrize(
    "url",
    [ADDRESS, "http://files.example:8080/a", "s3://uploads/acme/q 1?.json", "s3://a.b-c/%2e%2e/ä", "HTTPS://a.example"],
)
def test_a_payloads_url_is_taken_and_written_as_it_is(url: str) -> None:
    found = read({"payload_url": url, "payload_sha256": DIGEST}).job
    assert (found.payload_url, found.payload_sha256) == (url, DIGEST)
    assert read(write_job(found)).job == found == job_in(write_job(found))


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://files.example/q", "file:///etc/passwd", "https://user:passwd@files.example/", "gs://uploads/q", "", 7),
        *("s3://", "s3://ab/passwd", "s3://Uploads/passwd", "s3://uploads", "s3://uploads/", "s3://uploads/a\nb"),
        "https://files.example/" + "a" * 2048,
    ],
)
def test_any_other_url_is_refused_by_its_field_and_never_repeated(url: object) -> None:
    with pytest.raises(InvalidJob) as raised:
        read({"payload_url": url})
    [problem] = map(str, raised.value.problems)
    assert problem.startswith("payload_url: ") and "passwd" not in problem
    assert not OF_DOCUMENTS.is_valid({"payload_url": url})


@given(
    st.dictionaries(
        st.sampled_from(["payload_url", "payload_sha256", "prompt", "embed", "dimensions", "raw", "n"]),
        NOISE | st.sampled_from([ADDRESS, DIGEST, "s3://uploads/a", ["a"], 1]),
        min_size=1,
    )
)
@example({"payload_sha256": DIGEST, "prompt": "a"})
@example({"payload_url": ADDRESS, "prompt": "a"})
@example({"payload_url": ADDRESS, "embed": ["a"]})
@example({"payload_url": ADDRESS, "payload_sha256": DIGEST[1:]})
@example({"payload_url": ADDRESS, "payload_sha256": None, "dimensions": 3})
def test_the_published_schema_and_the_reader_agree_on_any_reference(document: dict[str, Any]) -> None:
    # Python tests the schema's `$` here, and in Python `$` also matches before a line break at the end.
    assume(not any(isinstance(value, str) and "\n" in value for value in document.values()))
    try:
        found = read(document).job
    except InvalidJob:
        is_read = False
    else:
        is_read = True
        assert (found.payload_url is None) != all(getattr(found, name) is None for name in ASKED)
    assert OF_DOCUMENTS.is_valid(document) == is_read


@settings(max_examples=drawn(200))
@given(st.data(), REST)
def test_a_job_is_the_same_whichever_of_its_fields_are_in_the_document(data: st.DataObject, rest: Any) -> None:
    asked = data.draw(st.sampled_from(ASKED))
    others = data.draw(st.sets(st.sampled_from([name for name in FIELDS if name not in ASKED])))
    fields = {name: data.draw(FIELDS[name]) for name in (asked, *others)}
    in_document = {asked, *data.draw(st.sets(st.sampled_from(sorted(others)) if others else st.nothing()))}
    if "tools" in fields:
        fields["tool_choice"] = "auto"
        in_document |= {"tool_choice"} if "tools" in in_document else set()
    document = encoded({name: value for name, value in fields.items() if name in in_document})
    record = {**rest, **{name: value for name, value in fields.items() if name not in in_document}}
    try:
        whole = Job.model_validate({**fields, **rest, "callback_url": RECORD["callback_url"], "max_tokens": 7})
    except ValueError:
        whole = None
    try:
        found = with_payload(job(**record), document)
    except ValueError:  # the error is UnusablePayload, or a validation error if the record's own fields break a rule
        assert whole is None
    else:
        assert found.job == whole and found.job.model_fields_set == whole.model_fields_set
        assert found.unknown is None


@settings(max_examples=drawn(300))
@given(NOISE | st.dictionaries(st.sampled_from([*PAYLOAD_FIELDS, "payload_url"]), NOISE, min_size=1))
@example({"payload_url": ADDRESS})
@example({"prompt": "\ud800"})
@example({"messages": [{"role": "user", "content": [{"type": "text", "text": SECRET, "x": 1}]}], "x": 1})
def test_any_document_makes_a_job_or_is_refused_in_words_that_repeat_nothing_of_it(document: object) -> None:
    try:
        found = with_payload(job(), encoded(document))
    except UnusablePayload as unusable:
        assert SECRET not in str(unusable) and len(str(unusable)) < 4000
    else:
        assert found.job.payload_url is None and found.job.callback_url == RECORD["callback_url"]
        assert found.job.max_tokens == 7
        assert read(write_job(found.job)).job == found.job


@given(st.binary(max_size=40))
@example(b'{"prompt": "a"')
@example(b"\xff\xfe")
@example(b"[" * 40_000)
@example(b'{"tools":' * 1000)
def test_bytes_that_are_no_job_are_refused(payload: bytes) -> None:
    with pytest.raises(UnusablePayload):
        with_payload(job(), payload)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"payload_url": ADDRESS}, "it has `payload_url`, and a document cannot name another one"),
        (
            {"prompt": "a", "callback_url": ADDRESS, "model_id": "b"},
            "it has `model_id`, `callback_url`; move this into",
        ),
        ({"prompt": "a", "sources": {"urls": []}}, "it has `sources`, and so has the record; send this once"),
        ({"embed": ["a"]}, "with the record's fields it has these problems: sources: `sources` goes with `prompt` or"),
        ({"messages": [{"role": "user"}]}, "it has these problems: messages.0"),
        ({}, "it has these problems: prompt: exactly one of `prompt`"),
        ([], "it has these problems: value: is not a JSON object"),
        (b"{", "it has these problems: value: is not JSON: EOF"),
    ],
)
def test_a_document_that_cannot_be_used_is_refused_with_its_fault_and_the_fix(document: object, reason: str) -> None:
    assert refusal_of(document, sources={"profile": "medical"}).startswith(reason)


def test_a_document_with_another_digest_is_refused() -> None:
    payload = encoded({"prompt": "a"})
    digest = hashlib.sha256(payload).hexdigest()
    for spelled in (digest, digest.upper()):
        assert with_payload(job(payload_sha256=spelled), payload).job.prompt == "a"
    assert refusal_of(payload + b" ", payload_sha256=digest).startswith("its SHA-256 is not `payload_sha256`; send")


def test_the_unknown_fields_of_a_document_are_ignored_by_name() -> None:
    found = with_payload(job(), encoded({"prompt": "a", "tool": 1, "sources": {"url": "x"}}))
    assert found.unknown is not None and found.unknown.names == ("tool", "sources.url")


def count(document: object) -> int:
    """The values of a document: members of objects and items of lists, at all levels."""
    if not isinstance(document, list | dict):
        return 0
    values = list(document.values()) if isinstance(document, dict) else document
    return len(values) + sum(map(count, values))


@given(NOISE, st.integers(0, 12), st.booleans())
def test_no_document_with_more_values_than_the_bound_is_parsed(document: object, most: int, is_ascii: bool) -> None:
    assume(count(document) > most)
    payload = json.dumps(document, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    with patch.object(payloads, "MAX_VALUES", most), pytest.raises(UnusablePayload, match=f"more than {most} values"):
        with_payload(job(), payload)


@given(st.text(st.sampled_from('",[{\\\n:]}a'), min_size=1, max_size=40))
def test_the_text_of_a_string_counts_as_one_value(text: str) -> None:
    with patch.object(payloads, "MAX_VALUES", 4):
        assert with_payload(job(), encoded({"prompt": text, "sources": {"urls": []}})).job.prompt == text


def test_a_long_conversation_is_accepted_and_a_flood_of_values_is_refused() -> None:
    turn = {"role": "user", "content": "a, [b], {c}"}
    found = with_payload(job(), encoded({"messages": [turn] * (MAX_VALUES // 4)}))
    assert len(found.job.messages or ()) == MAX_VALUES // 4
    for flood in (b"[]", b"{}", b'""', b'"\\""', b"1"):
        payload = b'{"prompt": "a", "x": [' + b",".join([flood] * (MAX_VALUES + 1)) + b"]}"
        assert refusal_of(payload) == f"it has more than {MAX_VALUES} values; send fewer or longer texts"


def test_jobs_with_one_document_go_to_one_place_even_if_its_url_is_signed_again() -> None:
    first, second = ({**RECORD, "payload_url": f"https://files.example/q?signature={one}"} for one in "ab")
    other, named = {**RECORD, "payload_url": "s3://uploads/q"}, {**first, "payload_sha256": DIGEST}
    keys = [prefix_key(encoded(each)) for each in (first, second, other, named)]
    assert None not in keys and keys[0] == keys[1] and len({*keys}) == 3
    assert prefix_key(encoded({**other, "payload_sha256": DIGEST.upper()})) == keys[3]


def test_a_waiting_payload_costs_as_much_as_the_largest_record_until_it_is_answered() -> None:
    assert prompt_tokens(encoded(RECORD)) == prompt_tokens(write_job(job())) == PAYLOAD_TOKENS
    assert prompt_tokens(encoded({"prompt": '"payload_url": "https://a.example/"'})) < 100


def test_the_hash_of_the_question_is_the_documents_or_its_urls() -> None:
    assert job(payload_sha256=DIGEST.upper()).prompt_sha256 == DIGEST
    assert job().prompt_sha256 == hashlib.sha256(ADDRESS.encode()).hexdigest()


def test_the_gateway_takes_a_reference_and_refuses_a_misspelt_one() -> None:
    assert job_in(encoded(RECORD)).payload_url == ADDRESS
    with pytest.raises(NotAJob) as raised:
        job_in(encoded({"prompt": "a", "payload_uri": ADDRESS}))
    assert [str(problem) for problem in raised.value.problems] == [
        "payload_uri: is unknown; did you mean `payload_url`?"
    ]
