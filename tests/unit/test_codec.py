"""Jobs on the wire: valid, invalid, with unknown fields, and as the gateway reads them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams

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
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, URLS
from schemas.outcome import Outcome
from schemas.problems import MAX_PROBLEMS
from schemas.result import Result, Usage
from schemas.screening import ScreeningFinding, Verdict, write_findings
from schemas.strict import NotAJob, body_job, ignored_members, job_in, job_of, parsed
from schemas.topics import LANES_KEPT_MS
from schemas.unknown import MAX_NAME_CHARACTERS, MAX_NAMES, UnknownFields, described, unknown_in
from tests.unit.codec_jobs import BARE, CALLBACK, ORIGIN, TIMESTAMP_MS, TRACEPARENT, encoded, read
from tests.unit.echo_worker import record, working

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
    assert ignored_members(CHAT_COMPLETIONS, body) == "ignored, since no engine here has it: `presence_penalty`"
    assert ignored_members(CHAT_COMPLETIONS, QUESTIONS[CHAT_COMPLETIONS]) is None


def test_the_hash_of_a_prompt_is_that_of_its_text() -> None:
    asked = Job.model_validate(QUESTIONS[CHAT_COMPLETIONS])
    assert Job(prompt="Why?").prompt_sha256 == "5d8a995a6fa7cf7c577cc9d49ca9e00d4aee4d0bcd5e2ad5caff27e2a8097276"
    assert asked.prompt_sha256 == body_job(RESPONSES, QUESTIONS[RESPONSES]).prompt_sha256
