"""Log lines: their form on a pipe and on a terminal, throttling, and the secrets that they never contain."""

from __future__ import annotations

import io
import json
import logging
import string
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import BaseModel
from structlog.testing import capture_logs

from telemetry.audit import DATASET, Audit, AuditEvent
from telemetry.clock import SystemClock
from telemetry.logs import configure, get_logger, log_context, origin_of, redact, scrub
from telemetry.throttle import LogThrottle
from tests.ecs import LOG_REQUIRED, REQUIRED, TYPES, log_lines, problems
from tests.log_store import CONFIGURATION
from tests.process_state import state_kept

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"  # the Standard Webhooks specification has this example
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PRIVATE_NAMES = (
    *("secret", "token", "password", "authorization", "prompt", "messages", "text", "body"),
    *("Authorization", "sasl_password", "api-key", "a.b_body"),
)


class Strict(BaseModel):
    prompt: str


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def pipe() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    with state_kept():
        configure("worker", stream=stream, level="INFO")
        yield stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_on_a_pipe_is_one_ecs_object(pipe: io.StringIO) -> None:
    get_logger().info("A job was settled.", action="job_settled", job_id="j1", offset=7)
    [line] = lines(pipe)
    assert line.pop("@timestamp").endswith("Z")
    assert line.pop("process.pid") > 0
    assert line == {
        "log.level": "info",
        "message": "A job was settled.",
        "ecs.version": "9.4.0",
        "service.name": "worker",
        "log.logger": "postback",
        "event.action": "job_settled",
        "postback.job_id": "j1",
        "postback.offset": 7,
    }


def test_a_line_on_a_terminal_is_readable_text() -> None:
    stream = Terminal()
    with state_kept():
        configure("worker", stream=stream)
        get_logger().warning("The broker is away.", action="broker_away", token="abc")
    assert "The broker is away." in stream.getvalue()
    assert "\x1b[" in stream.getvalue()
    assert "abc" not in stream.getvalue()


def test_the_job_in_the_context_stands_on_every_line_and_a_librarys_line_ends_in_the_same_stream(
    pipe: io.StringIO,
) -> None:
    with log_context(job_id="j1", traceparent=TRACEPARENT):
        get_logger().info("A job was taken.", action="job_taken")
    logging.getLogger("aiohttp.server").error("Error handling %s", "request")
    inside, outside = lines(pipe)
    assert inside["postback.job_id"] == "j1"
    assert inside["trace.id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert inside["span.id"] == "00f067aa0ba902b7"
    said = (outside["message"], outside["log.logger"], outside["log.level"])
    assert said == ("Error handling request", "aiohttp.server", "error")
    assert {"trace.id", "postback.job_id"}.isdisjoint(outside)


def test_an_exception_is_named_and_its_text_is_scrubbed(pipe: io.StringIO) -> None:
    try:
        raise RuntimeError(f"refused {SECRET} at https://user:pw@example.com/hook/tok?k=v")
    except RuntimeError:
        get_logger().exception("A callback failed.", action="callback_failed")
    [line] = lines(pipe)
    assert line["error.type"] == "RuntimeError"
    assert "RuntimeError" in line["error.stack_trace"]
    assert "https://example.com/…" in line["error.message"]
    for private in ("C2FVsBQI", "user:pw", "hook/tok", "k=v"):
        assert private not in pipe.getvalue()


def test_the_input_that_pydantic_quotes_is_not_logged(pipe: io.StringIO) -> None:
    document = {"prompt": ["my private question"]}
    try:
        Strict.model_validate(document)
    except ValueError:
        get_logger().exception("A job is invalid.", action="job_invalid")
    assert "string_type" in pipe.getvalue()
    assert "my private question" not in pipe.getvalue()


def test_a_field_with_a_private_name_is_redacted_and_a_count_or_an_id_is_not() -> None:
    for name in PRIVATE_NAMES:
        assert redact({"a": [{name: "hunter2"}]}) == {"a": [{name: "[redacted]"}]}
        assert redact({name: ["hunter2"]}) == {name: "[redacted]"}
    counts = dict.fromkeys(("prompt_tokens", "body_bytes", "context", "job_id", "key"), 5)
    assert redact(counts) == counts


def test_a_secret_in_any_string_is_redacted_and_an_unknown_object_is_named_by_its_type_only() -> None:
    assert redact({"note": f"key {SECRET}, whsk_AAAA+/=="}) == {"note": "key whsec_[redacted], whsk_[redacted]"}
    assert redact("Authorization: Bearer abcdefgh12345") == "Authorization: Bearer [redacted]"
    private = {"job": Strict(prompt="my private question"), "raw": b"abc"}
    assert redact(private) == {"job": "<Strict>", "raw": "<3 bytes>"}


def test_lines_can_be_captured_by_tests(pipe: io.StringIO) -> None:
    with capture_logs() as captured:
        get_logger().info("A job was taken.", action="job_taken")
    assert captured == [{"event": "A job was taken.", "action": "job_taken", "log_level": "info"}]
    assert pipe.getvalue() == ""


def test_the_origin_of_a_url_says_nothing_more() -> None:
    origins = {
        "https://user:pw@example.com/hook/tok?k=v#f": "https://example.com",
        "http://example.com:8080/x": "http://example.com:8080",
        "http://[::1]:8080/x": "http://[::1]:8080",
        "HTTPS://Example.COM:443/x": "https://example.com",
        "http://example.com:0080": "http://example.com",
        "http://example.com:443/": "http://example.com:443",
        "http://[2001:DB8:0:0::1]:80/x": "http://[2001:db8::1]",
        "https://BÜCHER.example/x": "https://xn--bcher-kva.example",
        "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
        "https://faß.example": "https://xn--fa-hia.example",
        "https://☃.example": "https://xn--n3h.example",
        "http://example。com/": "http://example.com",
        "http://my_host.example./x": "http://my_host.example.",
        "file:///etc/passwd": "file:",
    }
    none = ("http://example.com:99999/x", "http://[", "http://[::1::]/", "http://a\u202eb.example/", "/hook/secret")
    origins |= dict.fromkeys((*none, "secret", ""), "(not a URL)")
    assert {url: origin_of(url) for url in origins} == origins


# -- URLs --------------------------------------------------------------------------------------------------------------


SCHEMES = ("http", "https", "redis", "rediss", "postgresql+asyncpg", "amqp", "ftp", "s3", "kafka", "x-own.scheme")
IN_URLS = string.ascii_letters + string.digits + "-._~!$&'()*+,;=:%"
SECRETS = st.text(IN_URLS, min_size=4, max_size=12).map(lambda text: f"S3{text}cr")
LABELS = st.text(string.ascii_lowercase, min_size=1, max_size=8)


@st.composite
def urls(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """A URL, its host, and its secret parts: password, path, query and fragment."""
    scheme = "".join(draw(st.sampled_from((letter, letter.upper()))) for letter in draw(st.sampled_from(SCHEMES)))
    host = draw(st.one_of(LABELS.map(lambda label: f"{label}.example"), st.just("[2001:db8::1]"), st.just("10.0.0.1")))
    before = {part: draw(st.none() | SECRETS) for part in ("user", "password")}
    userinfo = ""
    if before["user"] or before["password"]:
        userinfo = f"{before['user'] or ''}{':' + before['password'] if before['password'] else ''}@"
    behind = {sign: draw(st.none() | SECRETS) for sign in "/?#"}
    text = f"{scheme}://{userinfo}{host}{draw(st.sampled_from(('', ':6379')))}"
    text += "".join(f"{sign}{value}" for sign, value in behind.items() if value)
    return text, host, [value for value in (*before.values(), *behind.values()) if value]


@given(urls(), st.sampled_from(("{}", "cannot reach {}: refused", "url='{}'", '{{"url":"{}"}}', "({}),", "a {} b {}")))
def test_scrubbing_leaves_only_scheme_host_and_port_of_any_url(url: tuple[str, str, list[str]], line: str) -> None:
    text, host, secrets = url
    scrubbed = scrub(line.replace("{}", text))
    assert [secret for secret in secrets if secret in scrubbed] == []
    assert host in scrubbed


@given(SECRETS, st.text("/?#@:", min_size=1, max_size=4), SECRETS, st.sampled_from(SCHEMES))
def test_a_password_that_should_have_been_encoded_is_not_shown_either(
    first: str, signs: str, second: str, scheme: str
) -> None:
    """The end of a password with, say, a slash is unknown, so only the URL's scheme is shown."""
    assume(first not in second)
    scrubbed = scrub(f"{scheme}://:{first}{signs}{second}@cache.example/0")
    assert first not in scrubbed
    assert second not in scrubbed


def test_a_url_in_a_line_is_scrubbed_and_the_other_words_stay() -> None:
    scrubbed = {
        "HTTPS://user:pw@a.example/hook?k=v": "HTTPS://a.example/…",
        "redis://:pw@cache:6379/0": "redis://cache:6379/…",
        "see https://a.example.": "see https://a.example.",
        "'https://a.example'": "'https://a.example",
        "no URL: a:b@c": "no URL: a:b@c",
    }
    assert {text: scrub(text) for text in scrubbed} == scrubbed


# -- ECS ---------------------------------------------------------------------------------------------------------------


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"x_[a-z_]{1,12}", fullmatch=True)
"""Names of the keyword arguments of a log call, in the form that our own calls use."""
FAILING = """
import logging, sys, threading, warnings
from cli.fleet.roles import log_uncaught
from telemetry import logs

class Finalized:
    def __del__(self):
        raise ValueError("in a finalizer")

logs.configure("worker")
log_uncaught()
warnings.warn("old since\\nlong")
logging.getLogger("library").error("%d of %d", "one")
for target in (lambda: 1 / 0, sys.exit):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
Finalized()
raise RuntimeError("first line\\nsecond line of https://user:pw@example.com/hook")
"""


FULL = AuditEvent(
    *("createJobs", "creation", True, "key_1", "acme", ["job_1"], ["0" * 64], 202, "req_1"), "2001:db8::1"
)


@contextmanager
def logging_to(stream: io.TextIOWrapper) -> Iterator[None]:
    with state_kept():
        configure("worker", stream=stream, level="INFO")
        yield
        stream.flush()


@example("\ud800", {"x_a": float("nan"), "x_b": [float("inf")]}, "utf-8")
@given(st.text(), st.dictionaries(NAMES, VALUES, max_size=4), st.sampled_from(["utf-8", "ascii"]))
def test_any_log_line_is_one_ecs_line_in_any_encoding(message: str, fields: dict[str, object], encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with logging_to(stream):
        get_logger().info(message, action="job-done", **fields)
        logging.getLogger("library").warning("%s", message)
    stream.seek(0)
    ours, theirs = log_lines(stream.read())
    assert ours.keys() >= {f"postback.{name}" for name in fields}
    assert theirs["log.logger"] == "library"


def test_failures_that_no_code_handles_are_ecs_lines_too() -> None:
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=False)
    lines = log_lines(done.stderr)
    assert (done.returncode, done.stdout) == (1, "")
    assert [(line.get("event.action"), line.get("error.type")) for line in lines] == [
        (None, None),  # the line is a warning by Python
        ("log-line-failed", None),
        ("thread-crashed", "ZeroDivisionError"),
        ("error-ignored", "ValueError"),
        ("process-crashed", "RuntimeError"),
    ]
    assert "user:pw" not in done.stderr


def test_an_audit_line_is_an_ecs_line(capfd: pytest.CaptureFixture[str]) -> None:
    audit = Audit(None, SystemClock(), "gateway")
    audit.record(AuditEvent("createJobs", "denied", False, None, None))
    audit.record(FULL)
    assert [problems(line, REQUIRED) for line in capfd.readouterr().out.splitlines()] == [[], []]


# -- Filebeat's templates ----------------------------------------------------------------------------------------------


LOGS = {
    *(*LOG_REQUIRED, "log.logger", "process.pid", "event.action", "trace.id", "span.id"),
    *("error.type", "error.message", "error.stack_trace"),
}
STREAMS = {"logs": "postback", "audit": DATASET}


def file(name: str) -> Any:
    return json.loads((CONFIGURATION / name).read_text())


def mapped(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each field of a mapping, with its type."""
    for name, field in properties.items():
        if "properties" in field:
            yield from mapped(field["properties"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field["type"]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_template_maps_each_field_of_our_lines_to_its_ecs_type_and_our_own_fields_to_one_that_takes_any_value(
    tmp_path: Path, kind: str
) -> None:
    audit = Audit(tmp_path / "audit.jsonl", SystemClock(), "gateway")
    audit.record(FULL)
    audit.close()
    said = json.loads((tmp_path / "audit.jsonl").read_text())
    needed = LOGS if kind == "logs" else {name for name in said if not name.startswith("postback.")}
    fields = dict(mapped(file(f"{kind}.template.json")["template"]["mappings"]["properties"]))
    assert fields.pop("postback") == "flattened"
    assert fields == {name: TYPES[name] for name in fields}
    assert sorted(needed - fields.keys()) == []


@pytest.mark.parametrize(("kind", "dataset"), STREAMS.items())
def test_a_data_stream_has_its_own_template_and_its_own_retention(kind: str, dataset: str) -> None:
    template, policy = file(f"{kind}.template.json"), file(f"{kind}.policy.json")["policy"]
    assert template["index_patterns"] == [f"logs-{dataset}-*"]
    assert template["template"]["settings"]["index.lifecycle.name"] == f"postback-{kind}"
    assert f"dataset: {dataset}, namespace" in (CONFIGURATION / "filebeat.yml").read_text()
    assert policy["phases"]["delete"]["min_age"] == {"logs": "30d", "audit": "400d"}[kind]
    assert "rollover" in policy["phases"]["hot"]["actions"]


# -- throttled lines ---------------------------------------------------------------------------------------------------


def test_a_line_is_admitted_once_in_a_period_of_its_kind_with_the_count_of_those_held_back() -> None:
    assert LogThrottle(10.0).admit(0.0) == LogThrottle(10.0).admit(1e9) == 0
    throttle = LogThrottle(10.0)
    times = (100.0, 100.0, 105.0, 109.9, 110.0, 119.9, 120.0)
    assert [throttle.admit(now) for now in times] == [0, None, None, None, 3, None, 1]
    assert [throttle.admit(120.0, kind) for kind in ("a", "b", "a")] == [0, 0, None]


def test_kinds_are_bounded_and_a_forgotten_one_is_admitted_again() -> None:
    throttle = LogThrottle(10.0, most_kinds=3)
    for kind in "abcd":
        assert throttle.admit(0.0, kind) == 0
        assert len(throttle) <= 3

    assert throttle.admit(0.0, "d") is None
    assert throttle.admit(0.0, "a") == 0
